//! `bitnet-train sweep`: trains every run of a ladder in turn, each in a directory of its own. The same
//! command again continues where it stopped, between two runs or within one.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use bitnet_format::figures::grouped;
use bitnet_format::staged::{OnExisting, write_file};
use bitnet_train::distributed::Comm;
use bitnet_train::monitor::{Terminal, Verbosity};
use bitnet_train::output::note;
use bitnet_train::platform::Signals;
use bitnet_train::recipe::{self, DataSource, ModelSource, Plan, Recipe};
use bitnet_train::run::{self, Resume, RunOptions};
use bitnet_train::scaling::{FoundRuns, Ladder, MeasuredRun, Rung, WeightKind, read_runs};
use bitnet_train::train::TrainError;
use serde_json::{Value, json};

use super::{print_json, print_lines, set_threads};
use crate::bug;
use crate::cli::SweepArgs;
use crate::failure::Usage;

/// The table of a ladder.
const TABLE_FILE: &str = "ladder.csv";
/// Evaluates a run of any length after its last step only.
const AT_THE_END: &str = "eval.every=1000000000";

pub(crate) fn run(args: &SweepArgs) -> Result<()> {
    set_threads(args.threads)?;
    // The recipe without a rung, for its shape and its held-out sets.
    let base = load(args, &[])?;
    let ModelSource::New { spec } = &base.model else {
        let what = "expected a recipe with a new model, got model.init";
        return Err(Usage(format!("--recipe {}: {what}", args.recipe.display())).into());
    };
    let ladder = Ladder {
        sizes: args.sizes.clone(),
        tokens: args.tokens.clone(),
        seeds: args.seeds.clone(),
        weights: args.weights.clone(),
    };
    let rungs = ladder.rungs(spec.blocks()).map_err(|what| Usage(format!("--sizes {what}")))?;
    // All mistakes before the first run.
    require_set(&base, args.set.as_deref())?;
    let words = |rung: &Rung| load(args, &evaluated(&base, rung));
    let recipes = rungs.iter().map(words).collect::<Result<Vec<_>>>()?;
    refuse_foreign(&args.out, &rungs)?;
    let signals = Signals::listen().map_err(TrainError::from)?;
    for (at, (rung, recipe)) in rungs.iter().zip(&recipes).enumerate() {
        if !args.quiet {
            note(&format!("\n== run {} of {}: {}", at + 1, rungs.len(), rung.name));
        }
        train(args, recipe, &args.out.join(&rung.name), &signals)?;
        // After every run: a ladder takes long, and its first rows are of use before the last.
        write_table(&args.out, args.set.as_deref())?;
    }
    let found = read(&args.out, args.set.as_deref())?;
    if args.json {
        print_json(&result(&args.out, &found));
    } else {
        print_lines(&table(&found.measured));
    }
    Ok(())
}

/// The base recipe, changed by the command line and by `words`.
fn load(args: &SweepArgs, words: &[String]) -> Result<Recipe> {
    let words: Vec<String> = args.settings.iter().chain(words).cloned().collect();
    match recipe::load(&args.recipe, &words).map_err(TrainError::from)? {
        Plan::Single(recipe) => Ok(recipe),
        Plan::Pipeline(_) => {
            let what = "expected a recipe of one stage, got a pipeline";
            Err(Usage(format!("--recipe {}: {what}", args.recipe.display())).into())
        }
    }
}

/// The settings of a run; without an evaluation it would be of no use.
fn evaluated(base: &Recipe, rung: &Rung) -> Vec<String> {
    // A recipe that evaluates by itself keeps its own steps.
    let at_the_end = base.eval.every.is_none().then(|| AT_THE_END.to_owned());
    rung.words.iter().cloned().chain(at_the_end).collect()
}

fn train(args: &SweepArgs, recipe: &Recipe, out: &Path, signals: &Signals) -> Result<()> {
    let options = RunOptions {
        out: out.to_owned(),
        // A run that is finished says so and returns; one that was cut goes on.
        resume: Resume::Auto,
        allow_change: Vec::new(),
        force: false,
        command: super::run::command_line(),
        signals: signals.clone(),
        comm: Comm::single(),
    };
    bug::note_run_dir(out);
    let verbosity = if args.quiet { Verbosity::Quiet } else { Verbosity::Normal };
    let made = run::run(recipe, &options, &mut Terminal::new(verbosity));
    let stopped = matches!(made, Err(TrainError::Stopped(_)));
    let made = made.map_err(anyhow::Error::from);
    // Only a stop is mended by asking again.
    if stopped { made.context("the same command continues the sweep") } else { made }?;
    Ok(())
}

/// Refuses a directory that is a run itself, or holds things that no sweep made. A run that was stopped
/// before its first step is known by its name alone.
fn refuse_foreign(out: &Path, rungs: &[Rung]) -> Result<()> {
    run::refuse_existing(out)?;
    let mut known: Vec<String> = rungs.iter().map(|rung| rung.name.clone()).collect();
    known.push(TABLE_FILE.to_owned());
    if out.is_dir() {
        for entry in fs_err::read_dir(out)? {
            let entry = entry?;
            if run::refuse_existing(&entry.path()).is_err() {
                known.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    Ok(run::refuse_foreign(out, &known, false)?)
}

/// Requires `set` to be one of the held-out sets; without a name there may be one at most.
fn require_set(base: &Recipe, set: Option<&str>) -> Result<()> {
    let names: BTreeSet<&str> = match &base.data.source {
        DataSource::Files { sets, .. } if base.data.validation_share > 0.0 => {
            sets.keys().map(|name| recipe::held_out_name(name)).collect()
        }
        DataSource::Files { validation, .. } => validation.keys().map(String::as_str).collect(),
        DataSource::Generate(_) => {
            base.phases.iter().flat_map(|phase| phase.data.keys()).map(String::as_str).collect()
        }
    };
    let chosen = set.map_or(names.len() <= 1, |set| names.contains(set));
    let names: Vec<&str> = names.into_iter().collect();
    let what = || format!("--set: expected one of the held-out sets {}", names.join(", "));
    if chosen { Ok(()) } else { Err(Usage(what()).into()) }
}

fn read(out: &Path, set: Option<&str>) -> Result<FoundRuns> {
    Ok(read_runs(&[out.to_owned()], set)?)
}

/// The cells of the table.
fn cells(run: &MeasuredRun) -> [String; 6] {
    let name = run.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let point = run.point;
    [
        name,
        format!("{}", point.parameters as u64),
        format!("{}", point.tokens as u64),
        run.kind.name().to_owned(),
        format!("{}", run.seed),
        format!("{:.4}", point.loss),
    ]
}

const HEADER: [&str; 6] = ["run", "parameters", "tokens", "weights", "seed", "loss"];

/// Writes what there is so far of the ladder, also of earlier commands.
fn write_table(out: &Path, set: Option<&str>) -> Result<()> {
    let found = read(out, set)?;
    let rows = found.measured.iter().map(|run| cells(run).join(","));
    let lines: Vec<String> = std::iter::once(HEADER.join(",")).chain(rows).collect();
    let text = lines.join("\n") + "\n";
    let written = write_file(&out.join(TABLE_FILE), text.as_bytes(), OnExisting::Replace);
    Ok(written.map_err(TrainError::from)?)
}

/// The table for people.
pub(super) fn table(runs: &[MeasuredRun]) -> Vec<String> {
    let line = |[name, parameters, tokens, kind, seed, loss]: [String; 6]| {
        format!("{name:<32} {parameters:>14} {tokens:>14} {kind:>8} {seed:>5} {loss:>8}")
    };
    let row = |run: &MeasuredRun| {
        let [name, .., kind, seed, loss] = cells(run);
        let [parameters, tokens] =
            [run.point.parameters, run.point.tokens].map(|number| grouped(number as u64));
        line([name, parameters, tokens, kind, seed, loss])
    };
    std::iter::once(line(HEADER.map(str::to_owned))).chain(runs.iter().map(row)).collect()
}

fn result(out: &Path, found: &FoundRuns) -> Value {
    let run = |run: &MeasuredRun| {
        json!({"run": run.path.display().to_string(), "parameters": run.point.parameters as u64,
            "tokens": run.point.tokens as u64, "ternary": run.kind == WeightKind::Ternary, "seed": run.seed,
            "nll_per_token": run.point.loss})
    };
    let runs: Vec<Value> = found.measured.iter().map(run).collect();
    json!({"out": out.display().to_string(), "runs": runs, "unfinished": found.unfinished.len()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_of_a_recipe_that_holds_out_a_share_have_names() {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/pretrain.toml");
        let text = fs_err::read_to_string(&recipe).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        let config = recipe.with_file_name("../configs/s.toml");
        let text = text.replace("\"../configs/s.toml\"", &format!("{config:?}"));
        let text = text.replace("[data.validation]\nval = [\"../data/pretrain/val.jsonl\"]\n", "");
        fs_err::write(&path, text.replace("[data]\n", "[data]\nvalidation_share = 0.1\n")).unwrap();
        let Ok(Plan::Single(recipe)) = recipe::load(&path, &[]) else { panic!() };
        for (set, is_known) in [(Some("general"), true), (Some("hq"), true), (Some("x"), false)] {
            assert_eq!(require_set(&recipe, set).is_ok(), is_known, "{set:?}");
        }
        let unnamed = require_set(&recipe, None).unwrap_err().to_string();
        assert!(unnamed.ends_with("held-out sets general, hq"), "{unnamed}");
    }
}
