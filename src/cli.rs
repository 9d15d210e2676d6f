//! The command line; `commands` interprets it.

mod convert;
mod data;
mod report;
mod scaling;
mod training;

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

pub(crate) use convert::ConvertArgs;
pub(crate) use data::{
    ConvertDataArgs, DataCommand, DataFiles, DataStatsArgs, DecontaminateDataArgs, DedupDataArgs,
    FetchDataArgs, SplitDataArgs,
};
pub(crate) use report::{DiffArgs, ReportArgs, RunsArgs, WatchArgs};
pub(crate) use scaling::{FitArgs, SweepArgs};
pub(crate) use training::{RunArgs, TrainingFlags};

use crate::failure::Usage;

// Here and in the files below, doc comments of commands and fields are the text of `--help` and of
// the manual pages.
/// Train and fine-tune BitNet b1.58 ternary language models.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct TrainerCli {
    #[command(subcommand)]
    pub(crate) command: Option<TrainerCommand>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

impl TrainerCli {
    /// Whether what is printed is what was asked for; a run leaves files.
    pub(crate) fn prints_results(&self) -> bool {
        self.command.is_some() || self.run.flags.json
    }
}

/// The recipe of a command and the keys to set in it.
#[derive(Debug, Args)]
pub(crate) struct RecipeWords {
    /// The recipe; the flag may be left out.
    #[arg(long, value_name = "RECIPE.toml")]
    recipe: Option<PathBuf>,
    /// Recipe keys to set, such as train.steps=100.
    #[arg(value_name = "dotted.key=value")]
    words: Vec<String>,
}

impl RecipeWords {
    /// The recipe's path and the settings. A word that is no setting may be the recipe.
    pub(crate) fn read(&self) -> Result<(PathBuf, Vec<String>), Usage> {
        let is_setting = |word: &&String| word.contains('=');
        let settings: Vec<_> = self.words.iter().filter(is_setting).cloned().collect();
        let mut others = self.words.iter().filter(|word| !is_setting(word));
        let recipe = match &self.recipe {
            Some(recipe) => Some(recipe.clone()),
            None => others.next().map(|word| recipe_word(word)).transpose()?,
        };
        if let Some(word) = others.next() {
            let what = "not a setting; expected dotted.key=value, such as train.batch=32, got";
            return Err(Usage(format!("command line: {what} {word:?}")));
        }
        let missing = "--recipe: missing; expected a recipe, such as --recipe recipes/sft.toml\n\
                       hint: bitnet-train --help lists what else there is";
        let recipe = recipe.ok_or_else(|| Usage(missing.to_owned()))?;
        Ok((recipe, settings))
    }
}

/// A word in the place of a recipe or a command.
fn recipe_word(word: &str) -> Result<PathBuf, Usage> {
    match unknown_command(word) {
        Some(what) => Err(Usage(what)),
        None => Ok(PathBuf::from(word)),
    }
}

/// What is wrong with `word` if it was meant as a command: neither one, nor a setting, nor a file.
pub(crate) fn unknown_command(word: &str) -> Option<String> {
    let commands = TrainerCli::command();
    let mut names = commands.get_subcommands().map(clap::Command::get_name).chain(["help"]);
    let is_file = Path::new(word).extension().is_some_and(|end| end == "toml");
    let known = names.any(|name| name == word);
    if known || word.starts_with('-') || word.contains('=') || is_file || Path::new(word).exists() {
        return None;
    }
    let names = commands.get_subcommands().map(clap::Command::get_name);
    let near = names.map(|name| (strsim::damerau_levenshtein(word, name), name)).min();
    let hint = match near {
        // Of a short word, few letters may differ; who says `run` wants to train.
        Some((distance, name)) if word != "run" && 2 * distance < word.chars().count() => {
            format!("did you mean bitnet-train {name}?")
        }
        _ => "bitnet-train --recipe RECIPE.toml trains; bitnet-train --help lists the commands"
            .to_owned(),
    };
    Some(format!("{word}: no such command and no recipe\nhint: {hint}"))
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrainerCommand {
    /// Estimate a recipe: schedule, memory, time.
    Plan(PlanArgs),
    /// Show training data as the model sees it, or the contents of a model.
    #[command(subcommand)]
    Inspect(Inspect),
    /// Train a byte-level BPE tokenizer from text.
    Tokenizer(TokenizerArgs),
    /// Convert, count, split and clean files of data.
    #[command(subcommand)]
    Data(DataCommand),
    /// Compute the loss of a model on text.
    Eval(EvalArgs),
    /// Convert a model to an inference format.
    Export(ExportArgs),
    /// Write a randomly initialised BF16 master of any shape.
    Init(InitArgs),
    /// Measure the training speed of a shape, on random tokens.
    Bench(TrainBenchArgs),
    /// Train a dense model into a ternary one, and say what it cost.
    Convert(ConvertArgs),
    /// Train a ladder of models: sizes x tokens x seeds of one recipe.
    Sweep(SweepArgs),
    /// Fit a scaling law to the losses of finished runs.
    Fit(FitArgs),
    /// Write a page about runs: curves, ternary codes, samples, recipe.
    Report(ReportArgs),
    /// Follow runs on the terminal: curves, ETA, samples, events.
    Watch(WatchArgs),
    /// List runs: state, steps, losses, the recipe keys in which they differ.
    Runs(RunsArgs),
    /// Show the recipe keys in which two runs or recipes differ.
    Diff(DiffArgs),
    /// List the devices of this build and this machine.
    Devices,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all commands.
    Man {
        /// The folder to write them to.
        folder: PathBuf,
    },
}

/// Parses gigabits per second of a link that exists.
fn gigabits(word: &str) -> Result<f64, String> {
    let number = word.parse().ok().filter(|number: &f64| (1e-6..=1e6).contains(number));
    number.ok_or_else(|| "expected a number from 0.000001 to 1000000".to_owned())
}

/// Parses a number of things, as a recipe takes it.
fn count(word: &str) -> Result<usize, String> {
    let number = word.parse().ok().filter(|number| (1..=u32::MAX as usize).contains(number));
    number.ok_or_else(|| format!("expected a whole number from 1 to {}", u32::MAX))
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeWords,
    /// Device, over the recipe's.
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// Do not run a step to estimate the time.
    #[arg(long)]
    pub(crate) no_probe: bool,
    /// Number of ranks, each on a machine, or a share of one, like this.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ranks: u32,
    /// Bandwidth of a rank in each direction, in gigabits per second.
    #[arg(long, value_name = "GBPS", requires = "ranks", value_parser = gigabits)]
    pub(crate) link: Option<f64>,
    /// Worker threads of the probe [default: the cores this process may run on]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print the estimate as one JSON line on stdout, and the table on stderr.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Inspect {
    /// The first packed sequences of a recipe with their loss mask, and packing statistics.
    Data(InspectDataArgs),
    /// Config, tensors and ternary statistics of a model folder.
    Model(InspectModelArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InspectDataArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeWords,
    /// Sequences to show of each set.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) rows: usize,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectModelArgs {
    #[command(flatten)]
    pub(crate) model: ModelPath,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The model of a command, named with `--model` or without.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ModelPath {
    /// A checkpoint, a Hugging Face folder, a packed folder or a GGUF file.
    #[arg(value_name = "MODEL")]
    positional: Option<PathBuf>,
    /// The same.
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
}

impl ModelPath {
    pub(crate) fn path(&self) -> &Path {
        self.positional.as_ref().or(self.model.as_ref()).expect("clap requires one of them")
    }
}

#[derive(Debug, Args)]
pub(crate) struct TokenizerArgs {
    /// Text files, or rows with a "text" field, globs or folders: .txt, .jsonl, .json, .parquet, .csv,
    /// each also as .gz or .zst; or data sets of the hub: hf-dataset:owner/name[@revision][:config][/split].
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub(crate) data: Vec<String>,
    /// Number of tokens, including 256 bytes and 8 special tokens.
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) vocab_size: usize,
    /// The file to write; an error if it exists.
    #[arg(long, value_name = "tokenizer.json")]
    pub(crate) out: PathBuf,
    /// Overwrite the file.
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelPath,
    /// Text files, or rows with a "text" field, globs or folders: .txt, .jsonl, .json, .parquet, .csv,
    /// each also as .gz or .zst; or data sets of the hub: hf-dataset:owner/name[@revision][:config][/split].
    /// With --tasks one folder with the rows of the tasks, as for `bitnet eval`; the tasks of the
    /// quickstart, `stories_one`, `stories_three` and `stories_outside`, need none.
    #[arg(long, required_unless_present = "tasks", num_args = 1.., value_name = "PATH")]
    pub(crate) data: Vec<String>,
    /// Benchmarks, groups or task files (.yaml) to ask instead of the loss on text: the model is packed
    /// in memory first, so that what is measured is what will run.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) tasks: Vec<String>,
    /// Adapter of the model to ask with it, such as a checkpoint of its run
    #[arg(long, value_name = "FOLDER", requires = "tasks")]
    pub(crate) adapter: Option<PathBuf>,
    /// Rows of each task, from the first on [default: all]
    #[arg(long, value_name = "N", value_parser = count, requires = "tasks")]
    pub(crate) limit: Option<usize>,
    /// The files hold conversations; compute the loss of the assistant's messages only.
    #[arg(long, conflicts_with = "tasks")]
    pub(crate) conversations: bool,
    /// Tokens per sequence [default: the model's context, at most 512]
    #[arg(long, value_name = "N", value_parser = count, conflicts_with = "tasks")]
    pub(crate) seq_len: Option<usize>,
    /// Device to compute the loss on.
    #[arg(long, value_name = "DEVICE", default_value = "flex", conflicts_with = "tasks")]
    pub(crate) device: String,
    /// Worker threads [default: the cores this process may run on]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) model: ModelPath,
    /// hf-bf16, hf-packed, gguf-i2_s, gguf-tq1_0, gguf-tq2_0, gguf-q2_0 or gguf-bf16
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: String,
    /// The file or folder to write; an error if it exists.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// Adapter of the model: a latent one is merged, a side one is written beside the output.
    #[arg(long, value_name = "PATH")]
    pub(crate) adapter: Option<PathBuf>,
    /// Overwrite existing output.
    #[arg(long)]
    pub(crate) force: bool,
    /// Embedding and head of a GGUF file: `f32`, `bf16`, `f16`, `q8_0` or `q6_k` [default: f16]
    #[arg(long, value_name = "TYPE")]
    pub(crate) embedding: Option<String>,
    /// Scale convention of hf-packed: multiply (autobitlinear, the default) or divide (bitlinear).
    #[arg(long, value_name = "CLASS")]
    pub(crate) linear_class: Option<LinearClass>,
    /// The source is a GGUF file whose I2_S tensors were written by an ARM build of bitnet.cpp
    /// (blocks of 64 values instead of 128; the file does not record it).
    #[arg(long)]
    pub(crate) i2s_arm: bool,
    /// Skip verification: comparing the written file with its source and running it.
    #[arg(long)]
    pub(crate) no_verify: bool,
    /// Print what the verification compared.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The two Hugging Face classes that read packed folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinearClass {
    Autobitlinear,
    Bitlinear,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct TrainBenchArgs {
    /// The shape.
    #[arg(long, value_name = "CONFIG.toml")]
    pub(crate) config: PathBuf,
    /// Tokens per sequence.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count)]
    pub(crate) seq_len: usize,
    /// Sequences per step, over all ranks.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = count)]
    pub(crate) batch: usize,
    /// Parts of a micro-batch that have gradients of their own, as `train.gradient_copies`.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = count)]
    pub(crate) gradient_copies: usize,
    /// Timed steps, after two warm-up steps.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = count)]
    pub(crate) steps: usize,
    /// Precision of float matrix products: f32, bf16, or int8: bf16 with 8-bit gradients.
    #[arg(long, value_name = "f32|bf16|int8", default_value = "f32")]
    pub(crate) precision: String,
    /// Order of the sums in bf16, as `train.bf16_sums`: tiles is that of Intel's AMX.
    #[arg(long, value_name = "chain|tiles", default_value = "chain")]
    pub(crate) bf16_sums: String,
    /// Activation checkpointing: recompute each block in the backward pass.
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Shard the optimizer's moments over the ranks.
    #[arg(long)]
    pub(crate) shard_optimizer: bool,
    /// Communication dtype of gradients: f32 or bf16.
    #[arg(long, value_name = "f32|bf16", default_value = "f32")]
    pub(crate) reduce_precision: String,
    /// Allow more threads than a machine has cores, over all its ranks.
    #[arg(long)]
    pub(crate) oversubscribe: bool,
    /// Start also where memory seems too small.
    #[arg(long)]
    pub(crate) force: bool,
    /// Worker threads.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Device to compute on.
    #[arg(long, value_name = "DEVICE", default_value = "flex")]
    pub(crate) device: String,
    /// Instruction set to use instead of the fastest: scalar, avx2, avx-vnni, avx512-vnni,
    /// amx-int8, neon-dotprod.
    #[arg(long, value_name = "NAME")]
    pub(crate) kernel: Option<String>,
    /// Vocabulary size, instead of the config's.
    #[arg(long, value_name = "N", value_parser = count)]
    pub(crate) vocab_size: Option<usize>,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The shape.
    #[arg(long, value_name = "CONFIG.toml")]
    pub(crate) config: PathBuf,
    /// The folder to write; an error if it exists.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Random seed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// A tokenizer to copy into the folder.
    #[arg(long, value_name = "tokenizer.json")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Overwrite existing output.
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(words: &[&str]) -> Result<(PathBuf, Vec<String>), String> {
        let cli = TrainerCli::try_parse_from([&["bitnet-train"], words].concat());
        cli.map_err(|error| error.to_string())?.run.recipe.read().map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        TrainerCli::command().debug_assert();
    }

    #[test]
    fn a_recipe_needs_no_flag_and_settings_stand_anywhere() {
        for words in [
            &["r.toml", "train.steps=3"][..],
            &["--recipe", "r.toml", "train.steps=3"],
            &["train.steps=3", "r.toml"],
        ] {
            assert_eq!(recipe(words), Ok(("r.toml".into(), vec!["train.steps=3".to_owned()])));
        }
    }

    #[test]
    fn a_mistyped_command_is_answered_with_the_command() {
        for (word, hint) in [
            ("plna", "bitnet-train plan?"),
            ("evla", "bitnet-train eval?"),
            ("exprot", "bitnet-train export?"),
            ("train", "--recipe RECIPE.toml trains"),
            ("run", "--recipe RECIPE.toml trains"),
        ] {
            let error = recipe(&[word]).unwrap_err();
            assert!(error.contains(word) && error.contains(hint), "{error}");
        }
        for word in ["plan", "help", "--recipe", "train.steps=3", "r.toml"] {
            assert_eq!(unknown_command(word), None, "{word}");
        }
    }

    #[test]
    fn a_word_that_is_neither_a_recipe_nor_a_setting_is_named() {
        assert!(recipe(&["r.toml", "seed"]).unwrap_err().contains("\"seed\""));
        assert!(recipe(&["seed=1"]).unwrap_err().contains("--recipe: missing"));
        assert!(recipe(&[]).unwrap_err().contains("--recipe: missing"));
    }
}
