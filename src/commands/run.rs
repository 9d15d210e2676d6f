//! `bitnet-train --recipe R`: train, and let the result speak.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bitnet_engine::{GenerateRequest, Model, SamplerSettings, generate};
use bitnet_text::Tokenizer;
use bitnet_train::data::world::{Split, Telling, story};
use bitnet_train::monitor::{Terminal, Verbosity};
use bitnet_train::platform::Signals;
use bitnet_train::recipe::{self, DataSource, Plan, Recipe};
use bitnet_train::train::{self, Resume, RunOptions, Summary, TrainError};
use serde_json::json;

use super::{print_line, set_threads};
use crate::cli::RunArgs;

/// Tokens the packed model speaks for each prompt at the end of a run.
const SPOKEN_TOKENS: usize = 60;
/// Held-out stories whose questions are asked at the end of a run on the generated world.
const PROBED_STORIES: u64 = 100;

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    set_threads(args.threads)?;
    let path = args.recipe.as_ref().expect("clap requires --recipe");
    let mut overrides = args.overrides.clone();
    overrides.extend(args.device.iter().map(|device| format!("device=\"{device}\"")));
    let recipe = match recipe::load(path, &overrides).map_err(TrainError::from)? {
        Plan::Single(recipe) => recipe,
        Plan::Pipeline(_) => return Err(no_pipeline(path)),
    };
    let options = options(args, &recipe)?;
    let verbosity = match (args.quiet, args.verbose) {
        (true, _) => Verbosity::Quiet,
        (_, true) => Verbosity::Verbose,
        _ => Verbosity::Normal,
    };
    let summary = train::run(&recipe, &options, &mut Terminal::new(verbosity))?;
    if args.json {
        print_line(&json_summary(&summary));
        return Ok(());
    }
    for (_, packed) in summary.exports.iter().filter(|(format, _)| format == "hf-packed") {
        let speaker = Speaker::open(packed)?;
        for prompt in &recipe.sample.prompts {
            let text = speaker.continue_text(prompt, SPOKEN_TOKENS)?;
            print_line(&format!("> {prompt}{text}"));
        }
        if matches!(recipe.data.source, DataSource::Generate(_)) {
            speaker.check_facts(recipe.seed)?.iter().for_each(|line| print_line(line));
        }
    }
    print_next_steps(&summary);
    Ok(())
}

fn no_pipeline(path: &Path) -> anyhow::Error {
    let what = "is not in this version yet; expected the recipe of one stage".to_owned();
    TrainError::Contradiction { path: path.to_owned(), field: "pipeline", what }.into()
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

/// The packed model, opened as any user would open it.
struct Speaker {
    model: Model,
    tokenizer: Tokenizer,
    threads: rayon::ThreadPool,
}

impl Speaker {
    fn open(packed: &Path) -> Result<Self> {
        Ok(Self {
            model: Model::load(packed).map_err(TrainError::from)?,
            tokenizer: Tokenizer::from_file(&packed.join("tokenizer.json"))
                .map_err(TrainError::from)?,
            threads: rayon::ThreadPoolBuilder::new().build()?,
        })
    }

    fn continue_text(&self, prompt: &str, max_tokens: usize) -> Result<String> {
        let spec = self.model.spec();
        let request = GenerateRequest {
            sampler: SamplerSettings::greedy(),
            stop_ids: spec.eos_token_id.clone(),
            max_tokens,
        };
        let mut ids: Vec<u32> = spec.bos_token_id.into_iter().collect();
        ids.extend(self.tokenizer.encode(prompt).map_err(TrainError::from)?);
        let mut cache = self.model.new_cache();
        let each = |_| ControlFlow::Continue(());
        let spoken = generate(&self.model, &mut cache, &ids, &request, &self.threads, each)
            .map_err(TrainError::from)?;
        Ok(self.tokenizer.decode(&spoken.tokens))
    }

    /// Asks about worlds that were never trained on; only the exact answer counts. `None` when no
    /// story fits the model's context.
    fn check_facts(&self, seed: u64) -> Result<Option<String>> {
        let (mut asked, mut right) = (0, 0);
        for index in 0..PROBED_STORIES {
            for probe in story(seed, Split::HeldOut, Telling::Hq, index).probes {
                let length = |text: &str| self.tokenizer.encode(text).map(|ids| ids.len());
                let answer = length(&probe.answer).map_err(TrainError::from)?;
                let prompt = length(&probe.prompt).map_err(TrainError::from)?;
                if prompt + answer + 3 > self.model.spec().max_position_embeddings {
                    continue;
                }
                let text = self.continue_text(&probe.prompt, answer + 2)?;
                asked += 1;
                right += usize::from(text.starts_with(&probe.answer));
            }
        }
        let line =
            format!("facts: {right} of {asked} questions about unseen worlds answered exactly");
        Ok((asked > 0).then_some(line))
    }
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
