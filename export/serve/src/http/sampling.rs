//! The parameters of an answer that all endpoints share.

use std::hash::{BuildHasher, Hasher, RandomState};

use bitnet_engine::{Sampler, SamplerSettings};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{BodyFields, expected};
use crate::options::{LONGEST_STOP, MOST_CHOICES, MOST_STOPS};

/// How an answer is made.
#[derive(Clone, Debug)]
pub(crate) struct AnswerSettings {
    pub(crate) sampler: SamplerSettings,
    pub(crate) stop_texts: Vec<String>,
    /// Answers to each prompt.
    pub(crate) choices: usize,
    pub(crate) stream: bool,
    /// Whether a stream ends with the counts of tokens.
    pub(crate) stream_usage: bool,
}

impl AnswerSettings {
    /// Reads the parameters that the completion endpoints of OpenAI share.
    pub(crate) fn read(fields: &mut BodyFields, vocab_size: usize) -> Result<Self, ApiError> {
        let stream = fields.flag("stream")?.unwrap_or(false);
        read_notes(fields)?;
        fields.only("store", &[false.into()])?;
        fields.only("service_tier", &["auto".into(), "default".into()])?;
        Ok(Self {
            stream_usage: read_stream_options(fields, stream)?,
            sampler: read_sampler(fields, vocab_size)?,
            stop_texts: read_stops(fields, "stop")?,
            choices: fields.count("n", 1..=MOST_CHOICES)?.unwrap_or(1),
            stream,
        })
    }

    /// The sampler of one of the answers: each has random numbers of its own.
    pub(crate) fn sampler_of(&self, choice: usize) -> SamplerSettings {
        // With one seed all answers of a request would be the same.
        let seed = self.sampler.seed.wrapping_add(choice as u64);
        SamplerSettings { seed, ..self.sampler.clone() }
    }
}

/// Reads the fields that only serve records of requests; they change nothing.
pub(crate) fn read_notes(fields: &mut BodyFields) -> Result<(), ApiError> {
    for name in ["user", "safety_identifier", "prompt_cache_key"] {
        fields.text(name)?;
    }
    match fields.take("metadata") {
        Some(value) if !value.is_object() => Err(expected("metadata", "an object", &value)),
        _ => Ok(()),
    }
}

fn read_stream_options(fields: &mut BodyFields, stream: bool) -> Result<bool, ApiError> {
    let Some(value) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(fields.error("stream_options", "expected only with stream: true"));
    }
    let mut options = BodyFields::inside("stream_options", value)?;
    let usage = options.flag("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", &[false.into()])?;
    options.finish()?;
    Ok(usage)
}

/// Reads how tokens are drawn; what is absent is as OpenAI has it.
pub(crate) fn read_sampler(
    fields: &mut BodyFields,
    vocab_size: usize,
) -> Result<SamplerSettings, ApiError> {
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    let settings = SamplerSettings {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
        top_k: fields.count("top_k", 0..=u64::from(u32::MAX))?.unwrap_or(0),
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        repetition_penalty: fields.number("repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        logit_bias: read_bias(fields, vocab_size)?,
        seed: seed.map_or_else(random_seed, |seed| seed as u64),
    };
    // The engine has its own idea of what is usable, such as a temperature just above 0.
    let refused = |error: bitnet_engine::EngineError| match error {
        bitnet_engine::EngineError::Setting { name, value, expected } => {
            ApiError::field(name, format!("expected {expected}, got {value}"))
        }
        other => ApiError::field("temperature", other.to_string()),
    };
    Sampler::new(settings.clone()).map_err(refused)?;
    Ok(settings)
}

/// A seed that no other request is likely to have.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn read_bias(fields: &mut BodyFields, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(value) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    let Value::Object(map) = value else {
        return Err(expected("logit_bias", "an object of token ids", &value));
    };
    let entry = |(id, bias): (String, Value)| {
        let name = format!("logit_bias.{id}");
        let wanted = format!("a token id below {vocab_size} as name");
        // Written in one way, so that no token is named twice.
        let is_plain = |token: &u32| (*token as usize) < vocab_size && token.to_string() == id;
        let token = id.parse::<u32>().ok().filter(is_plain);
        let token = token.ok_or_else(|| expected("logit_bias", &wanted, &id.clone().into()))?;
        let number = bias.as_f64().filter(|number| (-100.0..=100.0).contains(number));
        let number = number.ok_or_else(|| expected(&name, "a number from -100 to 100", &bias))?;
        Ok((token, number as f32))
    };
    map.into_iter().map(entry).collect()
}

/// Reads the texts that end an answer.
pub(crate) fn read_stops(fields: &mut BodyFields, name: &str) -> Result<Vec<String>, ApiError> {
    let stops = fields.texts(name)?;
    if stops.len() > MOST_STOPS {
        let message = format!("expected at most {MOST_STOPS} texts, got {}", stops.len());
        return Err(fields.error(name, message));
    }
    let fits = |stop: &String| (1..=LONGEST_STOP).contains(&stop.chars().count());
    if !stops.iter().all(fits) {
        let message = format!("expected texts of 1 to {LONGEST_STOP} characters");
        return Err(fields.error(name, message));
    }
    Ok(stops)
}
