//! A laboratory: a small recipe in a temporary folder and the real program to run it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A recipe of a few seconds with two phases, evaluation, samples and frequent checkpoints.
const RECIPE: &str = r#"
stage = "pretrain"
seed = 3
[model]
config = "model.toml"
[tokenizer]
train = { vocab_size = 320 }
[data]
generate = { stories = 120, held_out = 6 }
seq_len = 48
cache = "cache"
[train]
steps = 30
batch = 4
micro_batch = 2
[[phase]]
name = "main"
share = 0.5
learning_rate = { shape = "linear", peak = 4e-3, end = 0.0, span = "run" }
weight_decay = { shape = "constant", value = 0.1 }
data = { general = 1.0 }
[[phase]]
name = "cooldown"
share = 0.5
learning_rate = { shape = "cosine", peak = 2e-3, end = 0.0, span = "phase" }
weight_decay = { shape = "constant", value = 0.0 }
data = { general = 0.3, hq = 0.7 }
[optimizer]
warmup_steps = 4
[eval]
every = 7
[checkpoint]
every = 2
keep = 3
[sample]
every = 11
prompts = ["One day"]
max_tokens = 8
"#;

const MODEL: &str = "hidden_size = 32\nintermediate_size = 64\nnum_hidden_layers = 2\n\
    num_attention_heads = 2\nnum_key_value_heads = 1\nmax_position_embeddings = 128\n";

/// A folder with a recipe.
pub(crate) struct Lab {
    dir: TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("recipe.toml"), RECIPE).unwrap();
        fs_err::write(dir.path().join("model.toml"), MODEL).unwrap();
        // What commands without a tokenizer take.
        let shape = format!("{MODEL}vocab_size = 64\n");
        fs_err::write(dir.path().join("shape.toml"), shape).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program on this recipe with further arguments, one thread unless they say otherwise.
    pub(crate) fn command(&self, out: &Path, extra: &[&str]) -> Command {
        self.command_on("recipe.toml", out, extra)
    }

    fn command_on(&self, recipe: &str, out: &Path, extra: &[&str]) -> Command {
        let one = ["--threads", "1"];
        let threads = if extra.contains(&"--threads") { &[][..] } else { &one[..] };
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
        command.arg("--recipe").arg(self.path(recipe)).arg("--out").arg(out);
        command.args(threads).args(extra);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, out: &Path, extra: &[&str]) -> Output {
        self.command(out, extra).output().unwrap()
    }

    pub(crate) fn spawn(&self, out: &Path, extra: &[&str]) -> Child {
        let mut command = self.command(out, extra);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The program with these arguments alone, in the lab's directory.
    pub(crate) fn tool(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
        command.current_dir(self.path("")).args(arguments).output().unwrap()
    }

    pub(crate) fn run_recipe(&self, recipe: &str, out: &Path, extra: &[&str]) -> Output {
        self.command_on(recipe, out, extra).output().unwrap()
    }

    pub(crate) fn spawn_recipe(&self, recipe: &str, out: &Path, extra: &[&str]) -> Child {
        let mut command = self.command_on(recipe, out, extra);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    #[track_caller]
    pub(crate) fn finish_recipe(&self, recipe: &str, out: &Path, extra: &[&str]) -> Output {
        let output = self.run_recipe(recipe, out, extra);
        assert!(output.status.success(), "{}", stderr(&output));
        output
    }

    /// Runs to the end and insists on success.
    #[track_caller]
    pub(crate) fn finish(&self, out: &Path, extra: &[&str]) -> Output {
        let output = self.run(out, extra);
        assert!(output.status.success(), "{}", stderr(&output));
        output
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
pub(crate) fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", stderr(output));
}

/// What a run came to: the loss bits of every step and the bytes of the final weights.
#[derive(PartialEq, Eq)]
pub(crate) struct Result {
    pub(crate) losses: BTreeMap<u64, String>,
    weights: Vec<u8>,
}

/// Reads a finished run; of two lines for one step the later counts.
pub(crate) fn result(out: &Path) -> Result {
    let losses = metrics(out)
        .iter()
        .filter_map(|line| Some((line["step"].as_u64()?, line["loss_bits"].as_str()?.to_owned())))
        .collect();
    let model = fs_err::read(out.join("final/model.safetensors"));
    let weights = model.or_else(|_| fs_err::read(out.join("final/adapter_model.safetensors")));
    Result { losses, weights: weights.unwrap() }
}

pub(crate) fn metrics(out: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.split_terminator('\n').map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
pub(crate) fn assert_same(found: &Result, expected: &Result, what: &str) {
    assert_eq!(found.losses, expected.losses, "{what}: loss bits");
    assert!(found.weights == expected.weights, "{what}: final weights");
}

/// Numbers that look random and are the same in every run of the tests.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
