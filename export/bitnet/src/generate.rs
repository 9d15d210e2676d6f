//! `bitnet generate`: the completion on stdout, streamed or as one JSON object.

use std::io::{IsTerminal, Read, stdin, stdout};
use std::ops::ControlFlow;
use std::time::Instant;

use bitnet_chat::StopTexts;
use bitnet_energy::EnergyMeter;
use bitnet_engine::{FinishReason, GenerateRequest, Model, SamplerSettings, generate};
use bitnet_format::figures::significant;
use bitnet_text::Tokenizer;
use serde_json::json;

use crate::cli::{GenerateArgs, SamplingArgs};
use crate::energy::{self, PhaseEnergy, decode_estimate};
use crate::failure::BadInput;
use crate::open;
use crate::output::{StdoutError, generated_text, json_line, note};

/// A completion and how long it took.
struct Completion {
    tokens: Vec<u32>,
    stop: FinishReason,
    /// Decoding speed: the tokens after the first over the time since it.
    tokens_per_second: f64,
    /// Energy of a token, prompt and completion alike.
    energy: PhaseEnergy,
}

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let model = open::model(args.model.path(), args.head, &args.adapter)?;
    let tokenizer = open::tokenizer(args.model.path(), &model)?;
    let prompt = prompt_ids(&args.prompt, &tokenizer)?;
    if !args.json {
        let completion = complete(args, &model, &tokenizer, &prompt, &mut generated_text)?;
        // The text is all there is in a pipe; on a terminal the prompt of the shell follows.
        if stdout().is_terminal() {
            generated_text("\n")?;
        }
        if args.threads.verbose {
            note(&format!("{} tokens/s", significant(completion.tokens_per_second)));
            note(&energy::in_words(completion.energy));
        }
        return Ok(());
    }
    let mut text = String::new();
    let mut keep = |piece: &str| {
        text.push_str(piece);
        Ok(())
    };
    let completion = complete(args, &model, &tokenizer, &prompt, &mut keep)?;
    let line = json!({
        "prompt_tokens": prompt.len(),
        "tokens": completion.tokens,
        "text": text,
        "tokens_per_second": completion.tokens_per_second,
        "stop": match completion.stop {
            FinishReason::Id(_) => "id",
            FinishReason::Length => "length",
            FinishReason::Caller => "text",
        },
    });
    Ok(json_line(&line)?)
}

/// The prompt's ids, after the token that the tokenizer puts before texts. The user of the program
/// writes the prompt, so special tokens that it spells are those tokens.
fn prompt_ids(prompt: &str, tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let read;
    let text = if prompt == "-" {
        read = read_stdin()?;
        &read
    } else {
        prompt
    };
    Ok(tokenizer.encode_prompt(text)?)
}

/// No context holds a longer prompt, and `/dev/zero` has no end.
const LARGEST_PROMPT: u64 = 64 << 20;

fn read_stdin() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    stdin().lock().take(LARGEST_PROMPT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_PROMPT {
        let what = format!("<stdin>: expected at most {LARGEST_PROMPT} bytes, got more");
        return Err(BadInput(what).into());
    }
    let broken = |error| BadInput(format!("<stdin>: is not UTF-8 text: {error}"));
    Ok(String::from_utf8(bytes).map_err(|error| broken(error.utf8_error()))?)
}

/// The config's stop ids; the tokenizer's where the config names none.
fn stop_ids(model: &Model, tokenizer: &Tokenizer) -> Vec<u32> {
    match &model.spec().eos_token_id[..] {
        [] => tokenizer.eos().into_iter().chain(tokenizer.eot()).collect(),
        ids => ids.to_vec(),
    }
}

/// Gives the text to `out` token by token.
fn complete(
    args: &GenerateArgs,
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    out: &mut dyn FnMut(&str) -> Result<(), StdoutError>,
) -> anyhow::Result<Completion> {
    let threads = open::threads(&args.threads, model)?;
    let request = GenerateRequest {
        sampler: settings(&args.sampling),
        stop_ids: stop_ids(model, tokenizer),
        max_tokens: args.max_tokens,
    };
    let (mut stream, mut stops) = (tokenizer.stream(), StopTexts::new(args.stop.clone()));
    let (mut written, mut stopped) = (Ok(()), false);
    let mut first_token = None;
    let mut meter = EnergyMeter::open();
    let mut cache = open::cache(model, &args.cache);
    let generated = generate(model, &mut cache, prompt, &request, &threads, |id| {
        // From the first token on: before it the prompt is read, which is another speed.
        first_token.get_or_insert_with(Instant::now);
        let (text, reached) = stops.push(&stream.push(id));
        (written, stopped) = (out(&text), reached);
        if written.is_ok() && !stopped { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let seconds = first_token.map_or(0.0, |start| start.elapsed().as_secs_f64());
    written?;
    if !stopped {
        // A stop text may still be complete in what the last character brought.
        let (rest, _) = stops.push(&stream.finish());
        out(&rest)?;
        out(&stops.finish())?;
    }
    let later = generated.tokens.len().saturating_sub(1) as f64;
    let tokens_per_second = if later > 0.0 { later / seconds } else { 0.0 };
    let all = (prompt.len() + generated.tokens.len()) as f64;
    let context = prompt.len() as f64 + later / 2.0;
    let energy = PhaseEnergy {
        estimate: decode_estimate(model.spec(), args.head, &args.cache, context, 1),
        measured: meter.as_mut().map(|meter| meter.joules() / all),
    };
    Ok(Completion { tokens: generated.tokens, stop: generated.stop, tokens_per_second, energy })
}

pub(crate) fn settings(args: &SamplingArgs) -> SamplerSettings {
    SamplerSettings {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
        ..SamplerSettings::default()
    }
}
