//! The command line. Each command's own file interprets it.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use crate::common_args::{AdapterArgs, CacheArg, CacheArgs, HeadArg, ThreadArgs};

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
    /// Answer OpenAI's API over HTTP, with a page to chat in at `/`
    #[cfg(feature = "serve")]
    Serve(crate::serve_args::ServeArgs),
    /// Score token ids: log-probabilities and perplexity
    Score(ScoreArgs),
    /// Run benchmarks, with the scores of lm-evaluation-harness; or compare two runs
    Eval(EvaluationArgs),
    /// Answer MT-bench's questions in FastChat's files, and have a judge rate the answers
    MtBench(MtBenchArgs),
    /// Print config, tensors and ternary statistics of a model
    Inspect(InspectArgs),
    /// Measure the speed of a model, or of random weights of a shape
    Bench(BenchArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all commands
    Man {
        /// The folder to write them to
        folder: PathBuf,
    },
}

/// The model of a command, named with `--model` or without
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ModelWord {
    /// Model folder or GGUF file
    #[arg(value_name = "MODEL")]
    positional: Option<PathBuf>,
    /// The same
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
}

impl ModelWord {
    pub(crate) fn path(&self) -> &Path {
        self.positional.as_ref().or(self.model.as_ref()).expect("clap requires one of them")
    }
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelWord,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// Text to continue; `-` reads all of stdin
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: String,
    /// Maximum number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// Stop before this text; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Precision of the head (and a tied embedding): as in the file, or 8 bits with a scale per row
    #[arg(long, value_enum, value_name = "file|int8", default_value = "int8")]
    pub(crate) head: HeadArg,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Print one JSON object at the end instead of streaming the text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Who answers: a model of this process, or a server.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ModelOrServer {
    /// Model folder or GGUF file
    #[arg(value_name = "MODEL")]
    positional: Option<PathBuf>,
    /// The same
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Address of a running `bitnet serve`, or of another server of OpenAI's chat completions,
    /// instead
    #[arg(long, value_name = "URL", conflicts_with_all = ["adapter", "head", "cache", "threads"])]
    pub(crate) server: Option<String>,
}

impl ModelOrServer {
    pub(crate) fn path(&self) -> &Path {
        self.positional.as_ref().or(self.model.as_ref()).expect("clap requires one of them")
    }
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelOrServer,
    /// File with the key of the server: its first line that is no comment
    #[arg(long, value_name = "FILE", requires = "server")]
    pub(crate) api_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Maximum number of tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) max_tokens: usize,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Precision of the head (and a tied embedding): as in the file, or 8 bits with a scale per row
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
    /// Divides the logits; 0 is greedy, always the most likely token; 0.7 makes answers vary
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Keep only the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Keep the smallest set of most likely tokens whose probabilities reach P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Keep tokens at least P times as likely as the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub(crate) min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that already occurred; 1 is off
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub(crate) repetition_penalty: f32,
    /// Random seed; the same seed gives the same text
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) model: ModelWord,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// File with one JSON array of token ids a line
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: PathBuf,
    /// Precision of the head (and a tied embedding): as in the file, or 8 bits with a scale per row
    #[arg(long, value_enum, value_name = "file|int8", default_value = "file")]
    pub(crate) head: HeadArg,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Print `logprobs` and `argmax` of each line as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// How tasks are asked, and whether programs of the model run.
#[derive(Debug, Args)]
pub(crate) struct AskingArgs {
    /// Ask in the model's chat template (--suite knows which tasks are asked so)
    #[arg(long, conflicts_with = "suite")]
    pub(crate) apply_chat_template: bool,
    /// Examples as turns of their own instead of in the user's one turn
    #[arg(long, requires = "apply_chat_template")]
    pub(crate) fewshot_as_multiturn: bool,
    /// Run programs that the model wrote, with limits, in this Python (python3 if none is named)
    #[arg(long, value_name = "PYTHON", num_args = 0..=1, require_equals = true, default_missing_value = "python3")]
    pub(crate) allow_code_execution: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct EvaluationArgs {
    /// Model folder or GGUF file
    #[arg(value_name = "MODEL", required_unless_present_any = ["model", "compare"], conflicts_with_all = ["model", "compare"])]
    pub(crate) positional: Option<PathBuf>,
    /// The same
    #[arg(long, value_name = "MODEL", conflicts_with = "compare")]
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// Tasks, groups and task files (.yaml), separated by commas
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', required_unless_present_any = ["suite", "compare"])]
    pub(crate) tasks: Vec<String>,
    /// Tasks of a report instead, as far as there is data for them
    #[arg(long, value_enum, value_name = "report", conflicts_with = "tasks")]
    pub(crate) suite: Option<SuiteArg>,
    /// Folder with the datasets as they lie on the hub, in .parquet, .jsonl or .json
    #[arg(long, value_name = "DIR", required_unless_present = "compare")]
    pub(crate) data: Option<PathBuf>,
    /// Ask the first N rows of each task only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// Examples before each question, instead of what the tasks say
    #[arg(long, value_name = "N", conflicts_with = "suite")]
    pub(crate) num_fewshot: Option<usize>,
    /// Token that begins a document before each text: as the tokenizer does it, always, or never
    #[arg(long, value_enum, value_name = "auto|always|never", default_value = "auto")]
    pub(crate) bos: BosArg,
    #[command(flatten)]
    pub(crate) asking: AskingArgs,
    /// Folder to which each task's scores are written as soon as it is done
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Skip tasks whose scores stand in --out and depend on the same model, data and settings
    #[arg(long, requires = "out")]
    pub(crate) resume: bool,
    /// Write what was asked and answered, a line a row; an earlier log is replaced
    #[arg(long, value_name = "FILE")]
    pub(crate) log_samples: Option<PathBuf>,
    /// Compare two files of --log-samples, row by row
    #[arg(long, value_names = ["A", "B"], num_args = 2)]
    pub(crate) compare: Option<Vec<PathBuf>>,
    /// Precision of the head (and a tied embedding): as in the file, or 8 bits with a scale per row
    #[arg(long, value_enum, value_name = "file|int8", default_value = "file")]
    pub(crate) head: HeadArg,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Print one JSON object in the harness's form
    #[arg(long)]
    pub(crate) json: bool,
}

/// Tasks that are run together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SuiteArg {
    /// Table 1 of the 2B4T report
    Report,
}

/// Whether texts begin with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BosArg {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct MtBenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelWord,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// Questions in the form of FastChat's question.jsonl
    #[arg(long, value_name = "FILE")]
    pub(crate) questions: PathBuf,
    /// Folder for the answers and judgments; what stands there is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// The model's name in these files [default: that of its file or folder]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Ask the first N questions only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// Maximum number of tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    #[command(flatten)]
    pub(crate) judging: JudgingArgs,
    /// Precision of the head (and a tied embedding): as in the file, or 8 bits with a scale per row
    #[arg(long, value_enum, value_name = "file|int8", default_value = "file")]
    pub(crate) head: HeadArg,
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    /// Print the means as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Who rates answers, and how.
#[derive(Debug, Args)]
pub(crate) struct JudgingArgs {
    /// Address of a server of OpenAI's chat completions that rates the answers, over plain HTTP
    #[arg(long, value_name = "URL", requires_all = ["judge_model", "judge_prompts"])]
    pub(crate) judge: Option<String>,
    /// The judge's model
    #[arg(long, value_name = "NAME", requires = "judge")]
    pub(crate) judge_model: Option<String>,
    /// FastChat's file of prompts for a judge
    #[arg(long, value_name = "FILE", requires = "judge")]
    pub(crate) judge_prompts: Option<PathBuf>,
    /// FastChat's file of reference answers, for questions of math, reasoning and coding
    #[arg(long, value_name = "FILE", requires = "judge")]
    pub(crate) references: Option<PathBuf>,
    /// File with the key of the judge's server: its first line that is no comment
    #[arg(long, value_name = "FILE", requires = "judge")]
    pub(crate) judge_key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) model: ModelWord,
    /// Print the report as one JSON line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Model folder or GGUF file
    #[arg(value_name = "MODEL", required_unless_present_any = ["config", "model"], conflicts_with_all = ["config", "model"])]
    pub(crate) positional: Option<PathBuf>,
    /// The same
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,
    /// Random weights of this shape instead
    #[arg(long, value_name = "CONFIG.toml", conflicts_with = "model")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) adapter: AdapterArgs,
    /// Tokens of the prompt; 0 skips prefill
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Tokens to generate; 0 skips decoding
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) generate_tokens: usize,
    /// Tokens in the context before decoding begins
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) context_tokens: usize,
    /// Sequences that are decoded together; the speed is that of all of them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) sequences: u16,
    /// Number of repeats; the median is reported
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: u32,
    /// Instruction set to use: scalar, avx2, avx-vnni, avx512-vnni,
    /// amx-int8, neon-dotprod
    /// [default: the fastest]
    #[arg(long, value_name = "NAME")]
    pub(crate) kernel: Option<String>,
    /// Also measure the limits of the machine
    #[arg(long)]
    pub(crate) limits: bool,
    /// Also state joules per token: by the machine's counters, or else an estimate that says so
    #[arg(long)]
    pub(crate) energy: bool,
    /// Precision of the head (and a tied embedding): as in the file, or 8 bits with a scale per row
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
