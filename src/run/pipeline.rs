//! Several recipes in a row, each from the model of the one before. Every stage has a run directory
//! of its own, so that a pipeline stops and continues at any point of any stage.

use std::path::{Path, PathBuf};

use super::final_dir;
use crate::recipe::{self, Plan, Recipe, RecipeError, StageKind};
use crate::train::open::known_steps;

/// One stage of a pipeline.
#[derive(Clone, Debug)]
pub struct PipelineStage {
    /// What it does; from the second stage on, `model.init` is the final folder of the one before.
    pub recipe: Recipe,
    /// Its run directory.
    pub out: PathBuf,
}

/// Overrides of these tables make a new model or tokenizer, so they count for the first stage only.
const FIRST_STAGE_ONLY: [&str; 2] = ["model.", "tokenizer."];

/// Reads all recipes of a pipeline before anything is run; `out` is the pipeline's directory, which
/// holds one directory a stage: `1-pretrain`, `2-sft`, …
///
/// # Errors
/// When one of the recipes is not valid, or is a pipeline itself.
pub fn pipeline(
    files: &[PathBuf],
    overrides: &[String],
    out: &Path,
) -> Result<Vec<PipelineStage>, RecipeError> {
    let unreadable =
        |path: &Path, reason: String| RecipeError::Unreadable { path: path.to_owned(), reason };
    // Recipes may lie in different folders, so the path of the stage before is written out in full.
    let absolute = std::path::absolute(out).map_err(|error| unreadable(out, error.to_string()))?;
    let mut stages: Vec<PipelineStage> = Vec::with_capacity(files.len());
    for (number, file) in (1..).zip(files) {
        let mut words = overrides.to_vec();
        if let Some(before) = stages.last() {
            words.retain(|word| !FIRST_STAGE_ONLY.iter().any(|table| word.starts_with(table)));
            let folder = absolute.join(before.out.file_name().expect("a stage has a name"));
            // As the last word: whatever file and user say, this stage starts from the one before.
            words.push(format!("model.init={}", quoted(&final_dir(&folder))));
        }
        let Plan::Single(recipe) = recipe::load(file, &words)? else {
            let reason = "is a pipeline; expected a recipe of one stage in a pipeline".to_owned();
            return Err(unreadable(file, reason));
        };
        let out = out.join(format!("{number}-{}", recipe.name));
        stages.push(PipelineStage { recipe, out });
    }
    Ok(stages)
}

/// The work of the stages after stage `at`, in steps of that stage; `None` where a number of steps
/// is not known before the data is read. A token is taken to cost the same in every stage.
pub fn later_steps(stages: &[PipelineStage], at: usize) -> Option<f64> {
    let later = stages[at + 1..].iter().map(|stage| {
        let steps = known_steps(&stage.recipe)?;
        Some(steps as f64 * tokens_a_step(&stage.recipe))
    });
    Some(later.sum::<Option<f64>>()? / tokens_a_step(&stages[at].recipe))
}

fn tokens_a_step(recipe: &Recipe) -> f64 {
    let rows = if recipe.stage == StageKind::Dpo { 2 } else { 1 };
    (recipe.train.batch * rows * recipe.data.seq_len) as f64
}

fn quoted(path: &Path) -> String {
    toml::Value::String(path.to_string_lossy().into_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::ModelSource;

    const STAGE: &str = "stage = \"sft\"\n[data]\ngenerate = {}\nseq_len = 8\n\
                         [train]\nsteps = 2\nbatch = 1\n";

    #[test]
    fn each_stage_starts_from_the_final_folder_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs_err::write(&path, text).unwrap();
            path
        };
        let shape = "[model]\nhidden_size = 8\nintermediate_size = 8\nnum_hidden_layers = 1\n\
                     num_attention_heads = 1\nnum_key_value_heads = 1\n\
                     [tokenizer]\ntrain = { vocab_size = 300 }\n";
        let first = write("base.toml", &format!("{STAGE}{shape}"));
        let second = write("chat.toml", STAGE);
        let words = ["train.steps=5".to_owned(), "model.hidden_size=16".to_owned()];
        let stages = pipeline(&[first, second], &words, dir.path()).unwrap();
        let names: Vec<_> = stages.iter().map(|stage| stage.out.file_name().unwrap()).collect();
        assert_eq!(names, ["1-base", "2-chat"]);
        let before = dir.path().join("1-base/final").to_string_lossy().into_owned();
        let ModelSource::Init(init) = &stages[1].recipe.model else { panic!() };
        assert_eq!(init.path, before);
        assert!(matches!(stages[0].recipe.model, ModelSource::New { .. }));
        assert_eq!(later_steps(&stages, 0), Some(5.0));
        assert_eq!(later_steps(&stages, 1), Some(0.0));
        for stage in stages {
            assert_eq!(stage.recipe.train.length, crate::recipe::Length::Steps(5));
        }
    }
}
