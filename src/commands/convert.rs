//! `bitnet-train convert`: a dense model becomes a ternary one by the recipe of `recipes/convert.toml`;
//! what that cost is measured on held-out text, before and after.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bitnet_format::figures::significant;
use bitnet_format::{Shown, StoredModel};
use bitnet_train::distributed::Comm;
use bitnet_train::monitor::Silent;
use bitnet_train::recipe::{self, ModelSource, Plan, Recipe};
use bitnet_train::run::{self, MeasuredModel, SetLosses, held_out_losses};
use bitnet_train::train::TrainError;
use serde_json::json;

use super::closing::FinishedStage;
use super::run::Runner;
use super::{overrides_with_device, print_json, print_line, print_lines, set_threads};
use crate::cli::ConvertArgs;
use crate::failure::Usage;

/// The recipe of this command, and its name in messages.
const RECIPE: (&str, &str) = (include_str!("../../recipes/convert.toml"), "convert.toml");

pub(crate) fn run(args: &ConvertArgs) -> Result<()> {
    set_threads(args.flags.threads)?;
    let recipe = load(args)?;
    refuse_ternary(&args.model)?;
    let comm = Comm::single();
    let runner = Runner::new(&args.flags, &comm)?;
    if args.flags.dry_run {
        runner.alone(&recipe, &args.out)?;
        return Ok(());
    }
    // Before anything is measured: a refusal should not come after two evaluations.
    runner.check(&recipe, &args.out)?;
    // What the conversion alone costs is shown before the hours of training.
    let untrained = [MeasuredModel::Stored, MeasuredModel::Converted];
    let mut losses = held_out_losses(&recipe, &untrained, &runner.signals, &mut runner.terminal())?;
    let table = |names: &[&str], losses: &[SetLosses]| {
        if !args.flags.json && !args.flags.quiet {
            print_lines(&lines(names, losses));
        }
    };
    table(&NAMES[..2], &losses);
    let summary = runner.alone(&recipe, &args.out)?;
    let folder = run::final_dir(&summary.out);
    let trained = [MeasuredModel::Trained(&folder)];
    // What opening the run says was said twice by now.
    losses.extend(held_out_losses(&recipe, &trained, &runner.signals, &mut Silent)?);
    if args.flags.json {
        let mut line = FinishedStage::new(&recipe, summary)?.json();
        line["model"] = json!(folder.display().to_string());
        for (name, losses) in ["dense", "untrained", "trained"].into_iter().zip(&losses) {
            line[name] = json!(losses);
        }
        print_json(&line);
        return Ok(());
    }
    table(&NAMES, &losses);
    print_line(&format!("\nThe ternary model: {}", folder.shown()));
    for (format, path) in &summary.exports {
        print_line(&format!("{format}: {}", path.shown()));
    }
    Ok(())
}

/// What is measured, in this order.
const NAMES: [&str; 3] = ["dense", "ternary, untrained", "ternary, trained"];

/// The recipe with what the command line names in it.
fn load(args: &ConvertArgs) -> Result<Recipe> {
    let mut words = vec![
        format!("model.init={}", text(&args.model)),
        format!("data.train={}", list(&args.data)),
    ];
    if !args.validation.is_empty() {
        words.push(format!("data.validation={}", list(&args.validation)));
        // The built-in recipe holds out a share, which must not stand beside files.
        words.push("data.validation_share=0".to_owned());
    }
    // With the built-in recipe it is taught by the model that it is made of.
    let itself = args.recipe.is_none().then_some(&args.model);
    if let Some(teacher) = args.teacher.as_ref().or(itself) {
        words.push(format!("distill.teacher={}", text(teacher)));
    }
    let named = ["model.init", "data.train"];
    let twice =
        |word: &&String| named.iter().any(|key| word.split('=').next().map(str::trim) == Some(key));
    if let Some(word) = args.settings.iter().find(twice) {
        let what = format!("{word}: --model and --data name these");
        return Err(Usage(what).into());
    }
    // The user's own come after: of two words for a key the later one counts.
    words.extend(args.settings.iter().cloned());
    let words = overrides_with_device(&words, args.flags.device.as_deref());
    let plan = match &args.recipe {
        Some(path) => recipe::load(path, &words),
        None => recipe::load_text(RECIPE.0, Path::new(RECIPE.1), &words),
    };
    match plan.map_err(TrainError::from)? {
        Plan::Single(recipe) => {
            if !becomes_ternary(&recipe) {
                let what = "--recipe: expected one with model.quantise = true, got one that leaves \
                            the model as it is";
                return Err(Usage(what.to_owned()).into());
            }
            Ok(recipe)
        }
        Plan::Pipeline(_) => {
            let what = "--recipe: expected a recipe of one stage, got a pipeline";
            Err(Usage(what.to_owned()).into())
        }
    }
}

/// Whether the recipe asks for ternary matrices of its dense model.
fn becomes_ternary(recipe: &Recipe) -> bool {
    let ModelSource::Init(init) = &recipe.model else { return false };
    init.conversion.quantiser.get("quantise") == Some(&toml::Value::Boolean(true))
}

fn text(path: &Path) -> String {
    toml::Value::String(path.to_string_lossy().into_owned()).to_string()
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| text(path)).collect();
    format!("[{}]", paths.join(", "))
}

/// There is nothing to convert in a model that is ternary.
fn refuse_ternary(path: &Path) -> Result<()> {
    if path.exists() && StoredModel::open(path).map_err(TrainError::from)?.spec().quantise {
        let path = path.shown();
        let what = format!("--model {path}: expected a dense model, got one that is ternary");
        return Err(Usage(format!("{what}\nhint: recipes/sft.toml fine-tunes it")).into());
    }
    Ok(())
}

/// A table of losses, a line a set and model.
fn lines(names: &[&str], losses: &[SetLosses]) -> Vec<String> {
    let mut lines =
        vec![format!("{:<20} {:<20} {:>12} {:>12}", "set", "model", "nats a token", "perplexity")];
    let sets: BTreeSet<_> = losses.iter().flat_map(SetLosses::keys).collect();
    for set in sets {
        for (name, losses) in names.iter().zip(losses) {
            let evaluation = &losses[set];
            let perplexity = significant(evaluation.perplexity);
            let loss = evaluation.nll_per_token;
            lines.push(format!("{set:<20} {name:<20} {loss:>12.4} {perplexity:>12}"));
        }
    }
    lines
}
