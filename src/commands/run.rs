//! `bitnet-train --recipe R`: train, and let the result speak.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bitnet_engine::{GenerateRequest, Model, SamplerSettings, generate};
use bitnet_text::Tokenizer;
use bitnet_train::monitor::{Terminal, Verbosity};
use bitnet_train::platform::Signals;
use bitnet_train::recipe::{self, Plan, Recipe};
use bitnet_train::train::{self, Resume, RunOptions, Summary, TrainError};
use serde_json::json;

use super::{print_line, set_threads};
use crate::cli::RunArgs;

/// Tokens the packed model speaks for each prompt at the end of a run.
const SPOKEN_TOKENS: usize = 60;

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    set_threads(args.threads)?;
    let path = args.recipe.as_ref().expect("clap requires --recipe");
    let mut overrides = args.overrides.clone();
    overrides.extend(args.device.iter().map(|device| format!("device=\"{device}\"")));
    let recipe = match recipe::load(path, &overrides).map_err(TrainError::from)? {
        Plan::Single(recipe) => recipe,
        Plan::Pipeline(_) => return Err(not_yet(path, "pipeline", "a pipeline of stages")),
    };
    if recipe.stage != recipe::Stage::Pretrain {
        return Err(not_yet(path, "stage", "this stage"));
    }
    let options = options(args, &recipe)?;
    let verbosity = if args.quiet { Verbosity::Quiet } else { Verbosity::Normal };
    let summary = train::run(&recipe, &options, &mut Terminal::new(verbosity))?;
    if args.json {
        print_line(&json_summary(&summary));
        return Ok(());
    }
    for (_, packed) in summary.exports.iter().filter(|(format, _)| format == "hf-packed") {
        speak(packed, &recipe.sample.prompts)?;
    }
    print_next_steps(&summary);
    Ok(())
}

fn not_yet(path: &Path, field: &'static str, what: &str) -> anyhow::Error {
    let what = format!("{what} is not in this version yet; expected stage = \"pretrain\"");
    TrainError::Contradiction { path: path.to_owned(), field, what }.into()
}

fn options(args: &RunArgs, recipe: &Recipe) -> Result<RunOptions> {
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let resume = match args.resume.as_str() {
        "never" => Resume::Never,
        "auto" => Resume::Auto,
        path => Resume::From(checkpoint_path(&out, path)),
    };
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    let signals =
        Signals::listen().map_err(TrainError::from).context("cannot listen for signals")?;
    Ok(RunOptions { out, resume, allow_change: args.allow_change.clone(), command, signals })
}

/// `step-N` names a checkpoint of the run directory; anything else is a path.
fn checkpoint_path(out: &Path, given: &str) -> PathBuf {
    match given.strip_prefix("step-").and_then(|number| number.parse().ok()) {
        Some(step) => bitnet_train::checkpoint::path_of(out, step),
        None => PathBuf::from(given),
    }
}

fn json_summary(summary: &Summary) -> String {
    let exports: serde_json::Map<_, _> = summary
        .exports
        .iter()
        .map(|(format, path)| (format.clone(), json!(path.display().to_string())))
        .collect();
    json!({
        "out": summary.out.display().to_string(),
        "steps": summary.steps,
        "loss": summary.last_loss,
        "exports": exports,
        "peak_rss_bytes": bitnet_train::platform::peak_memory(),
    })
    .to_string()
}

/// Opens the packed folder as any user would and lets it continue the sample prompts.
fn speak(packed: &Path, prompts: &[String]) -> Result<()> {
    let model = Model::load(packed).map_err(TrainError::from)?;
    let tokenizer =
        Tokenizer::from_file(&packed.join("tokenizer.json")).map_err(TrainError::from)?;
    let threads = rayon::ThreadPoolBuilder::new().build()?;
    let request = GenerateRequest {
        sampler: SamplerSettings::greedy(),
        stop_ids: model.spec().eos_token_id.clone(),
        max_tokens: SPOKEN_TOKENS,
    };
    for prompt in prompts {
        let mut ids: Vec<u32> = model.spec().bos_token_id.into_iter().collect();
        ids.extend(tokenizer.encode(prompt).map_err(TrainError::from)?);
        let mut cache = model.new_cache();
        let each = |_| ControlFlow::Continue(());
        let spoken = generate(&model, &mut cache, &ids, &request, &threads, each)
            .map_err(TrainError::from)?;
        print_line(&format!("> {prompt}{}", tokenizer.decode(&spoken.tokens)));
    }
    Ok(())
}

fn print_next_steps(summary: &Summary) {
    let final_dir = train::final_dir(&summary.out);
    print_line(&format!("\nThe trained model: {}", final_dir.display()));
    let Some((_, packed)) = summary.exports.first() else {
        print_line("Pack it to run it:");
        print_line(&format!(
            "  bitnet-train export --model {} --format hf-packed --out packed",
            final_dir.display()
        ));
        return;
    };
    print_line(&format!("The packed model:  {}", packed.display()));
    print_line("Let it go on with a text of yours:");
    print_line(&format!(
        "  cargo run --release -p bitnet -- generate --model {} --prompt \"Once upon a time\"",
        packed.display()
    ));
}
