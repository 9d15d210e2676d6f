//! What the model says while it trains: continuations by the training forward itself, without a
//! cache. Slow and exact; the engine is what runs a finished model.

use bitnet_text::Tokenizer;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;

use crate::host::to_host;
use crate::model::{LanguageModel, SegmentStarts, argmax, token_logits};
use crate::random;

/// How a sample is drawn.
#[derive(Clone, Copy, Debug)]
pub struct SampleSettings {
    /// Tokens to add at most.
    pub max_tokens: usize,
    /// 0 takes the most likely token.
    pub temperature: f64,
    /// The run's seed.
    pub seed: u64,
    /// The step, which keys the draw.
    pub step: u64,
}

/// Continues the ids of a prompt until an end token; `None` when `interrupted` says so in between.
pub fn sample(
    model: &LanguageModel,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    settings: SampleSettings,
    interrupted: &dyn Fn() -> bool,
) -> Option<String> {
    let mut ids = prompt.to_vec();
    let start = ids.len();
    let ends = [tokenizer.eos(), tokenizer.eot()];
    let mut random = random::keyed(settings.seed, "sample", settings.step, 0);
    let device = model.device();
    while ids.len() - start < settings.max_tokens {
        if interrupted() {
            return None;
        }
        let logits = last_logits(model, &ids, &device);
        let id = choose(&logits, settings.temperature, &mut random);
        if ends.contains(&Some(id)) {
            break;
        }
        ids.push(id);
    }
    Some(tokenizer.decode(&ids[start..]))
}

fn last_logits(model: &LanguageModel, ids: &[u32], device: &Device) -> Vec<f32> {
    let time = ids.len();
    let data = TensorData::new(ids.iter().map(|&id| id as i32).collect(), [1, time]);
    let tokens: Tensor<2, Int> = Tensor::from_data(data, device);
    let hidden = model.forward(tokens, &SegmentStarts::whole_rows(1, time));
    let last = hidden.narrow(1, time - 1, 1).flatten(0, 1);
    to_host(token_logits(last, model.head()))
}

fn choose(logits: &[f32], temperature: f64, random: &mut impl Rng) -> u32 {
    let best = argmax(logits);
    if temperature <= 0.0 {
        return best as u32;
    }
    let weight = |logit: f32| (f64::from(logit - logits[best]) / temperature).exp();
    let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
    // 53 random bits, a number in [0, 1).
    let mut left = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
    for (id, &logit) in logits.iter().enumerate() {
        left -= weight(logit);
        if left < 0.0 {
            return id as u32;
        }
    }
    best as u32
}
