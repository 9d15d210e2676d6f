//! The command line as typed. What it means is decided in the file of each command.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Runs packed BitNet b1.58 models on a CPU.
#[derive(Debug, Parser)]
#[command(name = "bitnet", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Continue a prompt and print the completion
    Generate(GenerateArgs),
    /// Talk with a model; in a pipe, one user turn a line
    Chat(ChatArgs),
    /// Print how likely a model finds given token ids
    Score(ScoreArgs),
    /// Print what a model holds
    Inspect(InspectArgs),
    /// Measure how fast a model, or random weights of a shape, run here
    Bench(BenchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Model folder or GGUF file
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
    /// Text to continue; `-` reads all of stdin as it is
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: String,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Hold the head (and a tied embedding) as the file does, or in 8 bits with a scale a row
    #[arg(long, value_enum, value_name = "file|int8", default_value = "int8")]
    pub(crate) head: HeadArg,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Print one JSON object when done instead of the text as it comes
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Model folder or GGUF file
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
    /// What the model is told before the first turn
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) max_tokens: usize,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Hold the head (and a tied embedding) as the file does, or in 8 bits with a scale a row
    #[arg(long, value_enum, value_name = "file|int8", default_value = "int8")]
    pub(crate) head: HeadArg,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
}

/// Applied in this order: repetition penalty, temperature, top-k, top-p, min-p, draw.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Keep only the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Keep the fewest likeliest tokens whose probabilities reach P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Keep tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(crate) min_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens already there; 1 is off
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub(crate) repetition_penalty: f32,
    /// Where the random numbers start; the same seed gives the same text
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// Hold keys and values as computed, or rounded to half precision in half the memory
    #[arg(long, value_enum, value_name = "f32|f16", default_value = "f32")]
    pub(crate) cache: CacheArg,
}

/// What keys and values are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheArg {
    F32,
    F16,
}

/// How the head is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HeadArg {
    File,
    Int8,
}

#[derive(Debug, Args)]
pub(crate) struct ThreadArgs {
    /// Worker threads [default: the cores this process may run on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Say on stderr what computes and where the weights lie
    #[arg(long)]
    pub(crate) verbose: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// Model folder or GGUF file
    #[arg(long, value_name = "PATH")]
    pub(crate) model: PathBuf,
    /// File with one JSON array of token ids a line
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: PathBuf,
    /// Hold the head (and a tied embedding) as the file does, or in 8 bits with a scale a row
    #[arg(long, value_enum, value_name = "file|int8", default_value = "file")]
    pub(crate) head: HeadArg,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Print `logprobs` and `argmax` of each line as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Model folder or GGUF file
    pub(crate) path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Model folder or GGUF file
    #[arg(long, value_name = "PATH", required_unless_present = "config")]
    pub(crate) model: Option<PathBuf>,
    /// Random weights of this shape instead
    #[arg(long, value_name = "CONFIG.toml", conflicts_with = "model")]
    pub(crate) config: Option<PathBuf>,
    /// Tokens of the prompt; 0 leaves prefill out
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Tokens to generate; 0 leaves decoding out
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) generate_tokens: usize,
    /// Tokens in the context before decoding begins
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) context_tokens: usize,
    /// Sequences that are decoded together; the speed is that of all of them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) sequences: u16,
    /// How often; the median is reported
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: u32,
    /// Instruction set to use: scalar, avx2, avx-vnni, avx512-vnni, neon-dotprod
    /// [default: the fastest]
    #[arg(long, value_name = "NAME")]
    pub(crate) kernel: Option<String>,
    /// Also measure what the machine can do at most
    #[arg(long)]
    pub(crate) limits: bool,
    /// Hold the head (and a tied embedding) as the file does, or in 8 bits with a scale a row
    #[arg(long, value_enum, value_name = "file|int8", default_value = "int8")]
    pub(crate) head: HeadArg,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
