//! `bitnet-train --recipe R`: trains one stage or several, then shows what the model generates.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bitnet_train::distributed::Comm;
use bitnet_train::monitor::{Monitor, Silent, Terminal, Verbosity};
use bitnet_train::output::note;
use bitnet_train::platform::Signals;
use bitnet_train::recipe::{self, Plan, Recipe};
use bitnet_train::run::{self, PipelineStage, Resume, RunOptions, Summary, later_steps};
use bitnet_train::train::{TrainError, all_ok, first_only};
use serde_json::{Value, json};

use super::closing::{FinishedStage, print_closing, print_next_steps, show};
use super::ranks::with_ranks;
use super::{overrides_with_device, print_json};
use crate::bug;
use crate::cli::{RunArgs, TrainingFlags};
use crate::failure::Usage;

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    with_ranks(args.flags.threads, args.flags.oversubscribe, |comm| run_on(args, comm))
}

fn run_on(args: &RunArgs, comm: &Comm) -> Result<()> {
    let (path, settings) = args.recipe.read()?;
    let overrides = overrides_with_device(&settings, args.flags.device.as_deref());
    let plan = recipe::load(&path, &overrides).map_err(TrainError::from);
    // Every rank reads the files itself, which can fail on one of them alone.
    let plan = all_ok(comm, plan)?;
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(name(&path, &plan)));
    let runner = Runner::new(&args.flags, comm)?;
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
pub(super) struct Runner<'a> {
    args: &'a TrainingFlags,
    comm: &'a Comm,
    pub(super) signals: Signals,
}

impl<'a> Runner<'a> {
    pub(super) fn new(args: &'a TrainingFlags, comm: &'a Comm) -> Result<Self> {
        let signals =
            Signals::listen().map_err(TrainError::from).context("cannot listen for signals")?;
        Ok(Self { args, comm, signals })
    }

    fn single(&self, recipe: &Recipe, out: &Path) -> Result<()> {
        let summary = self.alone(recipe, out)?;
        if !self.comm.is_first() {
            return Ok(());
        }
        if self.args.dry_run {
            self.print_dry_run(&summary);
            return Ok(());
        }
        let stage = FinishedStage::new(recipe, summary)?;
        if self.args.json {
            print_json(&stage.json());
            return Ok(());
        }
        show(&stage)?;
        print_next_steps(&stage)
    }

    /// Refuses what a run would refuse before it opens anything.
    pub(super) fn check(&self, recipe: &Recipe, out: &Path) -> Result<()> {
        run::check(recipe, self.comm)?;
        if self.resume(out) == Resume::Never {
            first_only(self.comm, || run::refuse_existing(out))?;
        }
        Ok(())
    }

    /// Runs the one stage of a plan.
    pub(super) fn alone(&self, recipe: &Recipe, out: &Path) -> Result<Summary> {
        self.stage(recipe, out, self.resume(out), None)
    }

    fn pipeline(&self, stages: &[PipelineStage], out: &Path) -> Result<()> {
        let resume = self.resume(out);
        self.check_pipeline(stages, out, &resume)?;
        // Each stage in its own directory, so that resuming skips those that are finished.
        let mut finished = Vec::with_capacity(stages.len());
        for (at, PipelineStage { recipe, out }) in stages.iter().enumerate() {
            if !self.args.quiet && self.comm.is_first() {
                note(&format!("\n== stage {} of {}: {}", at + 1, stages.len(), recipe.name));
            }
            let later = later_steps(stages, at);
            let summary = self.stage(recipe, out, resume.clone(), later)?;
            if self.args.dry_run {
                if self.comm.is_first() {
                    self.print_dry_run(&summary);
                    note("the later stages need its model and are left out of a dry run");
                }
                return Ok(());
            }
            if self.comm.is_first() {
                finished.push(FinishedStage::new(recipe, summary)?);
            }
        }
        if !self.comm.is_first() {
            return Ok(());
        }
        if self.args.json {
            let stages: Vec<Value> = finished.iter().map(FinishedStage::json).collect();
            let out = out.display().to_string();
            let peak = bitnet_train::platform::peak_memory();
            let line = json!({"out": out, "stages": stages, "peak_rss_bytes": peak});
            print_json(&line);
            return Ok(());
        }
        print_closing(&finished)
    }

    fn print_dry_run(&self, summary: &Summary) {
        if self.args.json {
            let Summary { out, steps, last_loss, .. } = summary;
            let peak = bitnet_train::platform::peak_memory();
            let line = json!({"dry_run": true, "out": out.display().to_string(), "steps": steps,
                "loss": last_loss, "peak_rss_bytes": peak});
            print_json(&line);
        }
    }

    /// Checks every stage before the first one starts.
    fn check_pipeline(&self, stages: &[PipelineStage], out: &Path, resume: &Resume) -> Result<()> {
        if let Resume::From(_) = resume {
            let what = "--resume: expected never or auto for a pipeline, got a checkpoint";
            return Err(Usage(what.to_owned()).into());
        }
        let name = |stage: &PipelineStage| {
            stage.out.file_name().map(|name| name.to_string_lossy().into_owned())
        };
        let known: Vec<String> = stages.iter().filter_map(name).collect();
        first_only(self.comm, || run::refuse_foreign(out, &known, self.args.force))?;
        // A later stage that cannot start should not be found after hours of an earlier one.
        stages.iter().try_for_each(|PipelineStage { recipe, out }| self.check(recipe, out))
    }

    /// Runs a stage; `later` is the work after it, in steps of this stage.
    fn stage(
        &self,
        recipe: &Recipe,
        out: &Path,
        resume: Resume,
        later: Option<f64>,
    ) -> Result<Summary> {
        let args = self.args;
        // Freed pages kept for the next step are memory that such a run is meant to do without.
        if recipe.lean().is_lean() || recipe.adapter.is_some() {
            crate::allocator::return_pages();
        }
        let options = RunOptions {
            out: out.to_owned(),
            resume,
            allow_change: args.allow_change.clone(),
            force: args.force,
            command: command_line(),
            signals: self.signals.clone(),
            comm: self.comm.clone(),
        };
        // One rank tells of the run: the others would say the same.
        let mut monitor: Box<dyn Monitor> = if self.comm.is_first() {
            Box::new(self.terminal().followed_by(later))
        } else {
            Box::new(Silent)
        };
        if args.dry_run {
            return Ok(run::dry_run(recipe, &options, monitor.as_mut())?);
        }
        if self.comm.is_first() {
            // From here on a bug leaves its `crash.json` there.
            bug::note_run_dir(out);
        }
        Ok(run::run(recipe, &options, monitor.as_mut())?)
    }

    /// What shows a run, as loud as it was asked to be.
    pub(super) fn terminal(&self) -> Terminal {
        Terminal::new(match (self.args.quiet, self.args.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        })
    }

    fn resume(&self, out: &Path) -> Resume {
        match self.args.resume.as_str() {
            "never" => Resume::Never,
            "auto" | "latest" | "last" => Resume::Auto,
            path => Resume::From(checkpoint_path(out, path)),
        }
    }
}

/// The command line as a shell takes it.
pub(super) fn command_line() -> String {
    let words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    shlex::try_join(words.iter().map(String::as_str)).expect("no argument holds a NUL")
}

/// `step-N` names a checkpoint of the run directory; anything else is a path.
fn checkpoint_path(out: &Path, given: &str) -> PathBuf {
    // `step-200` as a person writes it is `step-000200` on disk.
    match given.strip_prefix("step-").and_then(|number| number.parse().ok()) {
        Some(step) => bitnet_train::checkpoint::path_of(out, step),
        None => PathBuf::from(given),
    }
}
