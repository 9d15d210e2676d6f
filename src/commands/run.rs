//! `bitnet-train --recipe R`: trains one stage or several, then shows what the model generates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bitnet_stories::{Difficulty, StoryStyle};
use bitnet_train::distributed::Comm;
use bitnet_train::monitor::{Monitor, Silent, Terminal, Verbosity};
use bitnet_train::platform::Signals;
use bitnet_train::recipe::{self, DataSource, Plan, Recipe, StageKind};
use bitnet_train::run::{self, PipelineStage, Resume, RunOptions, Summary};
use bitnet_train::train::{TrainError, all_ok, first_only};
use serde_json::{Value, json};

use super::chat_model::{ChatModel, ExactMatches};
use super::print_line;
use super::ranks::with_ranks;
use crate::cli::RunArgs;
use crate::failure::Usage;

/// Tokens generated for each prompt at the end of a run.
const GENERATED_TOKENS: usize = 60;
/// Held-out stories for the exact-match score at the end of a run.
const EVALUATED_STORIES: u64 = 200;
/// Held-out conversations that are shown.
const SHOWN_CONVERSATIONS: u64 = 2;

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    with_ranks(args.threads, args.oversubscribe, |comm| run_on(args, comm))
}

fn run_on(args: &RunArgs, comm: &Comm) -> Result<()> {
    let path = args.recipe.as_ref().expect("clap requires --recipe");
    let mut overrides = args.overrides.clone();
    overrides.extend(args.device.iter().map(|device| format!("device=\"{device}\"")));
    let plan = recipe::load(path, &overrides).map_err(TrainError::from);
    let plan = all_ok(comm, plan)?;
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(name(path, &plan)));
    let signals =
        Signals::listen().map_err(TrainError::from).context("cannot listen for signals")?;
    let runner = Runner { args, comm, signals };
    match plan {
        Plan::Single(recipe) => runner.single(&recipe, &out),
        Plan::Pipeline(files) => {
            let stages = run::pipeline(&files, &overrides, &out).map_err(TrainError::from);
            let stages = all_ok(comm, stages)?;
            runner.pipeline(&stages, &out)
        }
    }
}

/// The run's name.
fn name(path: &Path, plan: &Plan) -> String {
    match plan {
        Plan::Single(recipe) => recipe.name.clone(),
        Plan::Pipeline(_) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
    }
}

/// Shared by all stages.
struct Runner<'a> {
    args: &'a RunArgs,
    comm: &'a Comm,
    signals: Signals,
}

/// A finished stage.
struct FinishedStage<'a> {
    recipe: &'a Recipe,
    summary: Summary,
    /// Exact matches on held-out stories, by difficulty.
    scores: BTreeMap<Difficulty, ExactMatches>,
}

impl Runner<'_> {
    fn single(&self, recipe: &Recipe, out: &Path) -> Result<()> {
        let summary = self.stage(recipe, out, self.resume(out))?;
        if self.args.dry_run || !self.comm.is_first() {
            return Ok(());
        }
        let stage = FinishedStage { recipe, scores: exact_match(recipe, &summary)?, summary };
        if self.args.json {
            print_line(&stage.json().to_string());
            return Ok(());
        }
        show(&stage)?;
        print_next_steps(&stage);
        Ok(())
    }

    fn pipeline(&self, stages: &[PipelineStage], out: &Path) -> Result<()> {
        let resume = self.resume(out);
        self.check_pipeline(stages, &resume)?;
        let mut finished = Vec::with_capacity(stages.len());
        for (number, PipelineStage { recipe, out }) in (1..).zip(stages) {
            if !self.args.quiet && self.comm.is_first() {
                eprintln!("\n== stage {number} of {}: {}", stages.len(), recipe.name);
            }
            let summary = self.stage(recipe, out, resume.clone())?;
            if self.args.dry_run {
                if self.comm.is_first() {
                    eprintln!("the stages behind it need its model and are not rehearsed");
                }
                return Ok(());
            }
            let first = self.comm.is_first();
            let scores = if first { exact_match(recipe, &summary)? } else { BTreeMap::new() };
            finished.push(FinishedStage { recipe, summary, scores });
        }
        if !self.comm.is_first() {
            return Ok(());
        }
        if self.args.json {
            let stages: Vec<Value> = finished.iter().map(FinishedStage::json).collect();
            let out = out.display().to_string();
            let peak = bitnet_train::platform::peak_memory();
            let line = json!({"out": out, "stages": stages, "peak_rss_bytes": peak});
            print_line(&line.to_string());
            return Ok(());
        }
        let last = finished.last().expect("a pipeline has a stage");
        show(last)?;
        print_scores(&finished);
        print_next_steps(last);
        Ok(())
    }

    /// Checks every stage before the first one starts.
    fn check_pipeline(&self, stages: &[PipelineStage], resume: &Resume) -> Result<()> {
        if let Resume::From(_) = resume {
            let what = "--resume: expected never or auto for a pipeline, got a checkpoint";
            return Err(Usage(what.to_owned()).into());
        }
        for PipelineStage { recipe, out } in stages {
            run::check(recipe, self.comm)?;
            if *resume == Resume::Never {
                first_only(self.comm, || run::refuse_existing(out))?;
            }
        }
        Ok(())
    }

    fn stage(&self, recipe: &Recipe, out: &Path, resume: Resume) -> Result<Summary> {
        let args = self.args;
        let options = RunOptions {
            out: out.to_owned(),
            resume,
            allow_change: args.allow_change.clone(),
            command: std::env::args().collect::<Vec<_>>().join(" "),
            signals: self.signals.clone(),
            comm: self.comm.clone(),
        };
        let verbosity = match (args.quiet, args.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        let mut monitor: Box<dyn Monitor> = if self.comm.is_first() {
            Box::new(Terminal::new(verbosity))
        } else {
            Box::new(Silent)
        };
        if args.dry_run {
            return Ok(run::dry_run(recipe, &options, monitor.as_mut())?);
        }
        Ok(run::run(recipe, &options, monitor.as_mut())?)
    }

    fn resume(&self, out: &Path) -> Resume {
        match self.args.resume.as_str() {
            "never" => Resume::Never,
            "auto" => Resume::Auto,
            path => Resume::From(checkpoint_path(out, path)),
        }
    }
}

/// `step-N` names a checkpoint of the run directory; anything else is a path.
fn checkpoint_path(out: &Path, given: &str) -> PathBuf {
    match given.strip_prefix("step-").and_then(|number| number.parse().ok()) {
        Some(step) => bitnet_train::checkpoint::path_of(out, step),
        None => PathBuf::from(given),
    }
}

impl FinishedStage<'_> {
    fn packed(&self) -> Option<&Path> {
        packed(&self.summary)
    }

    fn json(&self) -> Value {
        let path = |path: &PathBuf| json!(path.display().to_string());
        let exports = &self.summary.exports;
        let exports: serde_json::Map<_, _> =
            exports.iter().map(|(format, at)| (format.clone(), path(at))).collect();
        let mut line = json!({
            "out": path(&self.summary.out),
            "steps": self.summary.steps,
            "loss": self.summary.last_loss,
            "exports": exports,
            "peak_rss_bytes": bitnet_train::platform::peak_memory(),
        });
        for (difficulty, ExactMatches { asked, right }) in &self.scores {
            line["questions"][word(*difficulty)] = json!({"asked": asked, "right": right});
        }
        line
    }
}

fn packed(summary: &Summary) -> Option<&Path> {
    let found = summary.exports.iter().find(|(format, _)| format == "hf-packed");
    found.map(|(_, path)| path.as_path())
}

/// Scores the packed model on held-out stories, if it was trained on the synthetic ones.
fn exact_match(recipe: &Recipe, summary: &Summary) -> Result<BTreeMap<Difficulty, ExactMatches>> {
    match (packed(summary), &recipe.data.source) {
        (Some(packed), DataSource::Generate(_)) => {
            ChatModel::open(packed)?.exact_match(recipe.seed, EVALUATED_STORIES)
        }
        _ => Ok(BTreeMap::new()),
    }
}

fn word(difficulty: Difficulty) -> &'static str {
    match difficulty {
        Difficulty::OneOfEach => "one_of_a_kind",
        Difficulty::ThreeOfEach => "three_of_a_kind",
    }
}

/// Prints what the packed model generates.
fn show(stage: &FinishedStage) -> Result<()> {
    let Some(packed) = stage.packed() else { return Ok(()) };
    let (recipe, model) = (stage.recipe, ChatModel::open(packed)?);
    for prompt in &recipe.sample.prompts {
        if recipe.stage == StageKind::Pretrain {
            print_line(&format!("> {prompt}{}", model.continue_text(prompt, GENERATED_TOKENS)?));
        } else {
            let turn =
                bitnet_text::Message { role: bitnet_text::Role::User, content: prompt.clone() };
            let answer = model.answer(&[turn], GENERATED_TOKENS)?.unwrap_or_default();
            print_line(&format!("User: {prompt}\nAssistant: {}", answer.trim()));
        }
    }
    if !matches!(recipe.data.source, DataSource::Generate(_)) {
        return Ok(());
    }
    if recipe.stage == StageKind::Pretrain {
        for (what, style) in [("plain", StoryStyle::Plain), ("eventful", StoryStyle::Hq)] {
            let ExactMatches { asked, right } =
                model.probe(recipe.seed, style, EVALUATED_STORIES)?;
            print_line(&format!(
                "sentences about held-out {what} stories completed exactly: {right} of {asked}"
            ));
        }
        return Ok(());
    }
    for index in 0..SHOWN_CONVERSATIONS {
        print_line("");
        for message in model.converse(recipe.seed, index)? {
            let word = match message.role {
                bitnet_text::Role::Assistant => "Assistant",
                _ => "User",
            };
            print_line(&format!("{word}: {}", message.content));
        }
    }
    Ok(())
}

fn print_scores(finished: &[FinishedStage]) {
    if finished.iter().all(|stage| stage.scores.is_empty()) {
        return;
    }
    print_line("\nquestions about held-out stories, answered exactly right by the packed model:");
    print_line("                one person, box and thing    three of each");
    for stage in finished {
        let cell = |difficulty: Difficulty| {
            let score = stage.scores.get(&difficulty).copied().unwrap_or_default();
            format!("{:>4} of {} ({:>5.1} %)", score.right, score.asked, 100.0 * score.share())
        };
        print_line(&format!(
            "  after {:<10}{:>26}{:>25}",
            stage.recipe.name,
            cell(Difficulty::OneOfEach),
            cell(Difficulty::ThreeOfEach)
        ));
    }
}

fn print_next_steps(stage: &FinishedStage) {
    let final_dir = run::final_dir(&stage.summary.out);
    print_line(&format!("\nThe trained model: {}", final_dir.display()));
    let Some(packed) = stage.packed() else {
        print_line("Pack it to run it:");
        print_line(&format!(
            "  bitnet-train export --model {} --format hf-packed --out packed",
            final_dir.display()
        ));
        return;
    };
    print_line(&format!("The packed model:  {}", packed.display()));
    if stage.recipe.stage == StageKind::Pretrain {
        print_line("Continue a text of your own:");
        print_line(&format!(
            "  cargo run --release -p bitnet -- generate --model {} --prompt \"Once upon a time\"",
            packed.display()
        ));
    } else {
        print_line("Talk to it:");
        print_line(&format!(
            "  cargo run --release -p bitnet -- chat --model {}",
            packed.display()
        ));
    }
}
