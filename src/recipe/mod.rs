//! What a run is: reading recipes, checking them, writing them out complete.
//!
//! A recipe is TOML, its config a second file, and the command line may change any key of it. All
//! of that becomes one [`Recipe`], complete with defaults and checked, so that no caller has to check
//! it again. Reading never stops at the first mistake: [`RecipeError`] lists
//! them all with their lines.
//!
//! This module opens no model, no tokenizer and no data; it only names them.

#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests state exact values"))]

mod batch_size;
mod change;
mod conversion;
mod data;
mod distill;
mod error;
mod export_format;
mod item;
mod keys;
mod model;
mod overrides;
mod parametrisation;
mod pattern;
mod phase;
mod rate;
mod read;
mod reading;
mod reference;
mod resolved;
mod rules;
mod schedule;
mod section;
mod settings;
mod stage;
mod ternary_warmup;
#[cfg(test)]
mod tests;
mod tree;

use std::path::{Path, PathBuf};

pub use batch_size::{BatchSizes, BatchWarmup};
pub use change::{Change, ChangeClass};
pub use conversion::Conversion;
pub use data::{
    Data, DataSource, FileSet, FileSets, Generate, TRAIN, VALIDATION, generated_sets,
    held_out_name, set_key, validation_key,
};
pub use distill::{DistillSettings, RelationForm};
pub use error::{Location, Problem, RecipeError};
pub use export_format::ExportFormat;
pub use model::{InitModel, ModelSource, ModelTable};
pub use overrides::Overrides;
pub use parametrisation::Parametrisation;
pub use pattern::{DATASET_PREFIX, PathPattern};
pub use phase::Phase;
pub use rate::{CurveShape, Rate, Span};
pub use reference::reference;
pub(crate) use rules::quantiser_conflicts;
pub use schedule::{IDLE_STEP, Schedule, StepRates, default_warmup};
pub use settings::{
    AdapterSettings, Bf16Sums, ChatFormat, Checkpoint, DpoSettings, Eval, EvalTasks, Export,
    GRADIENT_ROUNDING_WORDS, Guard, Length, LossSettings, Optimizer, Precision,
    REDUCE_PRECISION_WORDS, Recipe, ReportSettings, Sample, TelemetrySettings, TokenizerSource,
    Train,
};
pub use stage::{LossReduction, StageKind};
pub use ternary_warmup::{TernaryWarmup, WarmupShape};

use error::Problems;
use item::Item;
use section::Section;
use tree::Node;

/// What a recipe file asks for.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a program holds one plan")]
pub enum Plan {
    /// One run.
    Single(Recipe),
    /// Recipes run in order, each from the model of the one before; absolute paths. The words of
    /// the command line are for each of them.
    Pipeline(Vec<PathBuf>),
}

/// Reads the recipe at `path`, changed by `dotted.key=value` words.
pub fn load(path: &Path, overrides: &[String]) -> Result<Plan, RecipeError> {
    let unreadable = |reason| RecipeError::Unreadable { path: path.to_owned(), reason };
    load_text(&tree::read_text(path).map_err(unreadable)?, path, overrides)
}

/// Reads a recipe as if this text stood at `path`.
pub fn load_text(text: &str, path: &Path, overrides: &[String]) -> Result<Plan, RecipeError> {
    let unreadable = |reason| RecipeError::Unreadable { path: path.to_owned(), reason };
    // Keys that name paths become absolute with it; messages show the path as the user named it.
    let absolute = std::path::absolute(path).map_err(|error| unreadable(error.to_string()))?;
    let problems = Problems::default();
    let plan = match tree::parse(path, text) {
        Ok(tree) => read_plan(tree, &absolute, path, overrides, &problems),
        Err(syntax) => {
            problems.extend(syntax);
            None
        }
    };
    match plan {
        // Readers go on with stand-ins after a mistake, so a plan counts only without any.
        Some(plan) if problems.is_empty() => Ok(plan),
        _ => Err(RecipeError::Invalid { problems: problems.into_sorted() }),
    }
}

fn read_plan(
    mut tree: Node,
    path: &Path,
    shown: &Path,
    overrides: &[String],
    problems: &Problems,
) -> Option<Plan> {
    // Before the file is asked what it is: a word that is no setting is wrong for a pipeline too.
    let overrides = Overrides::parse(overrides).map_err(|wrong| problems.extend(wrong));
    let overrides = overrides.unwrap_or_default();
    // The words are for its stages (`run::pipeline` hands them on): this file has none of
    // their keys.
    if Section::root(&tree, problems).has("pipeline") {
        return read_pipeline(&tree, path, problems).map(Plan::Pipeline);
    }
    overrides.apply(&mut tree, problems);
    Some(Plan::Single(read::read_recipe(&tree, path, shown, problems)))
}

fn read_pipeline(tree: &Node, path: &Path, problems: &Problems) -> Option<Vec<PathBuf>> {
    let base = path.parent().unwrap_or(Path::new(""));
    let mut root = Section::root(tree, problems);
    let stages = root.optional("pipeline", |item| {
        let items = item.list("a list of recipes, such as [\"a.toml\", \"b.toml\"]")?;
        if items.is_empty() {
            item.problem("no stage; expected at least one recipe, got an empty list".into());
        }
        items.iter().map(|item| read_stage_path(item, base)).collect()
    });
    root.finish();
    stages
}

fn read_stage_path(item: &Item<'_>, base: &Path) -> Option<PathBuf> {
    let name = item.word()?;
    let path = base.join(&name);
    // Only that it is there: `run::pipeline` reads all of them before the first one runs.
    if !path.is_file() {
        item.problem(format!("no such recipe; expected a TOML file, got {name:?}"));
    }
    Some(path)
}
