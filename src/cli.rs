//! The command line as typed. What it means is in `commands`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Train and fine-tune BitNet b1.58 ternary language models.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct TrainerCli {
    #[command(subcommand)]
    pub(crate) command: Option<TrainerCommand>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Runs a recipe.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct RunArgs {
    /// What to run.
    #[arg(long, required = true, value_name = "RECIPE.toml")]
    pub(crate) recipe: Option<PathBuf>,
    /// Recipe keys to set, such as train.steps=100.
    #[arg(value_name = "dotted.key=value")]
    pub(crate) overrides: Vec<String>,
    /// Run directory [default: runs/<recipe name>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// never, auto, or a checkpoint (a path, or step-N in the run directory).
    #[arg(long, default_value = "never", value_name = "never|auto|PATH")]
    pub(crate) resume: String,
    /// A recipe key that may differ from the run on disk; `data` for changed files.
    #[arg(long, value_name = "KEY")]
    pub(crate) allow_change: Vec<String>,
    /// Device, over the recipe's.
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// Worker threads [default: the cores this process may run on]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Allow more threads on a machine than it has cores, all ranks together.
    #[arg(long)]
    pub(crate) oversubscribe: bool,
    /// Prepare everything, run the first step and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
    /// Errors only.
    #[arg(short, long, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// A line for every step instead of a bar.
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrainerCommand {
    /// Show what a recipe will do and need: schedule, memory, time.
    Plan(PlanArgs),
    /// Look at what a model would see, or at what it holds.
    #[command(subcommand)]
    Inspect(Inspect),
    /// Train a byte-level BPE tokenizer from text.
    Tokenizer(TokenizerArgs),
    /// Held-out loss of a model on text.
    Eval(EvalArgs),
    /// Write a model in a format that runs.
    Export(ExportArgs),
    /// Write a fresh BF16 master of any shape, its weights drawn at random.
    Init(InitArgs),
    /// Measure how fast a shape trains here, on random tokens.
    Bench(TrainBenchArgs),
}

/// A number above 0 that is no infinity.
fn positive(word: &str) -> Result<f64, String> {
    let number = word.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "expected a number above 0".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The recipe.
    #[arg(long, value_name = "RECIPE.toml")]
    pub(crate) recipe: PathBuf,
    /// Recipe keys to set, such as train.steps=100.
    #[arg(value_name = "dotted.key=value")]
    pub(crate) overrides: Vec<String>,
    /// Do not run a step to estimate the time.
    #[arg(long)]
    pub(crate) no_probe: bool,
    /// Processes that are to train together, each on a machine or a part of one like this.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ranks: u32,
    /// What a rank sends and receives at the same time, in gigabits a second.
    #[arg(long, value_name = "GBPS", requires = "ranks", value_parser = positive)]
    pub(crate) link: Option<f64>,
    /// Worker threads of the probe [default: the cores this process may run on]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print the estimate as one JSON line on stdout behind the table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Inspect {
    /// The first rows of a recipe with their loss mask, and what packing did to the documents.
    Data(InspectDataArgs),
    /// Config, tensors and ternary statistics of a model folder.
    Model(InspectModelArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InspectDataArgs {
    /// The recipe.
    #[arg(long, value_name = "RECIPE.toml")]
    pub(crate) recipe: PathBuf,
    /// Rows to show of each set.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) rows: usize,
    /// Recipe keys to set, such as `data.seq_len=100`.
    #[arg(value_name = "dotted.key=value")]
    pub(crate) overrides: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectModelArgs {
    /// A checkpoint, a Hugging Face folder, a packed folder or a GGUF file.
    pub(crate) path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct TokenizerArgs {
    /// Text files: .txt, or .jsonl with a "text" field.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub(crate) data: Vec<PathBuf>,
    /// Entries, the 256 bytes and 8 special tokens included.
    #[arg(long, value_name = "N")]
    pub(crate) vocab_size: usize,
    /// The file to write; refused when it exists.
    #[arg(long, value_name = "tokenizer.json")]
    pub(crate) out: PathBuf,
    /// Replace the file.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// A checkpoint, a Hugging Face folder or a packed folder with its tokenizer.json, or a GGUF
    /// file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
    /// Text files: .txt, or .jsonl with a "text" field.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub(crate) data: Vec<PathBuf>,
    /// The files hold conversations; the loss is that of the assistant's turns.
    #[arg(long)]
    pub(crate) conversations: bool,
    /// Tokens a row [default: the model's context, at most 512]
    #[arg(long, value_name = "N")]
    pub(crate) seq_len: Option<usize>,
    /// Where to compute.
    #[arg(long, value_name = "DEVICE", default_value = "flex")]
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
    /// A checkpoint, a Hugging Face folder, a packed folder or a GGUF file.
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
    /// hf-bf16, hf-packed, gguf-i2_s, gguf-tq1_0 or gguf-tq2_0
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: String,
    /// What to write; refused when it exists.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// Replace what is there.
    #[arg(long)]
    pub(crate) force: bool,
    /// Embedding and head of a GGUF file: `f32`, `f16`, `q8_0` or `q6_k` [default: f16]
    #[arg(long, value_name = "TYPE")]
    pub(crate) embedding: Option<String>,
    /// What the scales of hf-packed do: multiply (autobitlinear, the default) or divide (bitlinear).
    #[arg(long, value_name = "CLASS")]
    pub(crate) linear_class: Option<LinearClass>,
    /// The source is a GGUF file whose I2_S tensors an ARM build of bitnet.cpp wrote (blocks of 64
    /// values instead of 128; nothing in the file tells).
    #[arg(long)]
    pub(crate) i2s_arm: bool,
    /// Skip comparing the written file with the source and running it.
    #[arg(long)]
    pub(crate) no_verify: bool,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Hugging Face's two readers of packed folders.
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
    /// Tokens a row.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) seq_len: usize,
    /// Rows a step, over all ranks.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) batch: usize,
    /// Steps that are timed; two before them are not.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) steps: usize,
    /// Operands of the float products: f32 or bf16.
    #[arg(long, value_name = "f32|bf16", default_value = "f32")]
    pub(crate) precision: String,
    /// Compute each block again for the backward pass instead of keeping its activations.
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Several ranks: each keeps only its part of the moments.
    #[arg(long)]
    pub(crate) shard_optimizer: bool,
    /// Several ranks: in what gradients travel, f32 or bf16.
    #[arg(long, value_name = "f32|bf16", default_value = "f32")]
    pub(crate) reduce_precision: String,
    /// Allow more threads on a machine than it has cores, all ranks together.
    #[arg(long)]
    pub(crate) oversubscribe: bool,
    /// Worker threads.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Where to compute.
    #[arg(long, value_name = "DEVICE", default_value = "flex")]
    pub(crate) device: String,
    /// Instruction set to use instead of the fastest: scalar, avx2, avx-vnni, avx512-vnni,
    /// neon-dotprod.
    #[arg(long, value_name = "NAME")]
    pub(crate) kernel: Option<String>,
    /// Another size of vocabulary than the config's.
    #[arg(long, value_name = "N")]
    pub(crate) vocab_size: Option<usize>,
    /// One line of JSON instead of words.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The shape.
    #[arg(long, value_name = "CONFIG.toml")]
    pub(crate) config: PathBuf,
    /// The folder to write; refused when it exists.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Where the random numbers start.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// A tokenizer to put beside the weights.
    #[arg(long, value_name = "tokenizer.json")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Replace what is there.
    #[arg(long)]
    pub(crate) force: bool,
}
