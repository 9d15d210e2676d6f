//! The module as its callers use it: recipes in a folder, loaded with words of a command line.

mod changes;
mod distill;
mod keys;
mod mistakes;
mod numbers;
mod resolved;
mod rules;

use std::path::PathBuf;

use super::*;

/// A recipe that names keys of every section.
pub(super) const EXAMPLE: &str = r#"
stage = "pretrain"
seed  = 1

[model]
config = "../configs/tiny.toml"

[tokenizer]
path = "tokenizer.json"

[data]
train      = ["text/*.jsonl"]
validation = ["val.jsonl"]
seq_len    = 512
long_rows  = "truncate"
sets       = { general = ["general/*.txt"], hq = ["hq.txt"] }

[train]
steps       = 1000
batch       = 32
micro_batch = 8
precision   = "f32"

[[phase]]
name          = "main"
share         = 0.5
learning_rate = { shape = "linear", peak = 1.5e-3, end = 0.0, span = "run" }
weight_decay  = { shape = "constant", value = 0.1 }
data          = { general = 1.0 }
[[phase]]
name          = "cooldown"
share         = 0.5
learning_rate = { shape = "linear", peak = 1.0e-3, end = 0.0, span = "run" }
weight_decay  = { shape = "constant", value = 0.0 }
data          = { general = 0.3, hq = 0.7 }

[optimizer]
beta1 = 0.9
beta2 = 0.95
eps   = 1e-8
grad_clip = 1.0
warmup_steps = 375

[loss]
reduction = "mean"
[dpo]
beta = 0.1
[eval]
every = 200
[checkpoint]
every = 200
keep  = 3
[sample]
every   = 200
prompts = ["Once upon a time"]
[export]
formats = ["hf-packed", "gguf-i2_s"]
"#;

/// As little as a recipe can say.
pub(super) const SHORT: &str = r#"stage = "pretrain"
[model]
config = "../configs/tiny.toml"
[tokenizer]
train = { vocab_size = 512 }
[data]
train = ["a.txt"]
seq_len = 16
[train]
steps = 40
batch = 8
"#;

const TINY: &str = "hidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\n\
    num_attention_heads = 4\nnum_key_value_heads = 2\n";

/// A folder with `recipes/r.toml` and `configs/tiny.toml`.
pub(super) struct RecipeFolder(tempfile::TempDir);

impl RecipeFolder {
    pub(super) fn new(recipe: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("configs/tiny.toml", TINY);
        folder.write("recipes/r.toml", recipe);
        folder
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn load(&self, words: &[&str]) -> Result<Plan, RecipeError> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        super::load(&self.path("recipes/r.toml"), &words)
    }

    /// The problems' lines, without the folder's name.
    pub(super) fn problems(&self, words: &[&str]) -> Vec<String> {
        let error = self.load(words).unwrap_err();
        let folder = format!("{}/", self.0.path().display());
        error.problems().iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    }
}

pub(super) fn recipe(text: &str, words: &[&str]) -> Recipe {
    match RecipeFolder::new(text).load(words) {
        Ok(Plan::Single(recipe)) => recipe,
        other => panic!("{other:?}"),
    }
}

/// The one problem of a recipe, without its file.
pub(super) fn problem(text: &str, words: &[&str]) -> String {
    let problems = RecipeFolder::new(text).problems(words);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems[0].replace("recipes/r.toml:", "")
}
