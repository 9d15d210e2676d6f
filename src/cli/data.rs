//! The command line of `bitnet-train data`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What is done with files of data.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Write files of any form and shape as one .jsonl file in the canonical shape.
    Convert(ConvertDataArgs),
    /// Count documents, bytes and tokens; draw the lengths.
    Stats(DataStatsArgs),
    /// Hold out a share of the rows, by a hash of what they say.
    Split(SplitDataArgs),
    /// Leave out rows that say the same as one before, or nearly.
    Dedup(DedupDataArgs),
    /// Leave out rows that contain what evaluation sets ask.
    Decontaminate(DecontaminateDataArgs),
    /// Bring the rows of tasks from the hub into a folder for `bitnet eval --data`.
    Fetch(FetchDataArgs),
}

/// The files of a command, and how they are read.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct DataFiles {
    /// Files, globs or folders: .jsonl, .json, .parquet, .csv, .tsv or .txt, each also as .gz or .zst;
    /// or data sets of the hub: hf-dataset:owner/name[@revision][:config][/split].
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub(crate) data: Vec<String>,
    /// The key of the list of rows in a .json file that is one object, as `data.field`.
    #[arg(long, value_name = "KEY")]
    pub(crate) field: Option<String>,
    /// A column that stands for a field, as `data.columns`, such as instruction=Question.
    #[arg(long, value_name = "FIELD=COLUMN", value_parser = pair)]
    pub(crate) column: Vec<(String, String)>,
    /// Cut text files at blank lines.
    #[arg(long)]
    pub(crate) blank_lines: bool,
    /// Leave out turns of unknown roles.
    #[arg(long)]
    pub(crate) drop_unknown_roles: bool,
    /// Take a row as bad of which turns would be left out, as `data.strict`.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Leave out rows that cannot be used, up to `--max-bad-share` of them.
    #[arg(long)]
    pub(crate) skip_bad: bool,
    /// The largest share of rows that is left out.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share)]
    pub(crate) max_bad_share: f64,
    /// Worker threads [default: the cores this process may run on]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A file that a command writes.
#[derive(Debug, Args)]
pub(crate) struct RowsOut {
    /// The .jsonl file to write; an error if it exists.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) out: PathBuf,
    /// Overwrite existing output.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertDataArgs {
    #[command(flatten)]
    pub(crate) files: DataFiles,
    #[command(flatten)]
    pub(crate) to: RowsOut,
}

#[derive(Debug, Args)]
pub(crate) struct DataStatsArgs {
    #[command(flatten)]
    pub(crate) files: DataFiles,
    /// Count tokens too.
    #[arg(long, value_name = "tokenizer.json")]
    pub(crate) tokenizer: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SplitDataArgs {
    #[command(flatten)]
    pub(crate) files: DataFiles,
    #[command(flatten)]
    pub(crate) to: RowsOut,
    /// The .jsonl file of the rows that are held out; an error if it exists.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) held_out: PathBuf,
    /// The share that is held out.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share)]
    pub(crate) share: f64,
    /// Another seed holds out other rows.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct DedupDataArgs {
    #[command(flatten)]
    pub(crate) files: DataFiles,
    #[command(flatten)]
    pub(crate) to: RowsOut,
    /// Also leave out rows whose runs of five words are shared by this share (0.8 is usual), estimated by
    /// `MinHash`.
    #[arg(long, value_name = "SIMILARITY", value_parser = share)]
    pub(crate) near: Option<f64>,
    /// A file for the rows that are left out, a JSON object a line with place and reason.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) list: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DecontaminateDataArgs {
    #[command(flatten)]
    pub(crate) files: DataFiles,
    #[command(flatten)]
    pub(crate) to: RowsOut,
    /// Tasks of `bitnet eval`, separated by commas.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', requires = "task_data")]
    pub(crate) tasks: Vec<String>,
    /// The folder of their data, as `bitnet eval --data`.
    #[arg(long, value_name = "DIR", requires = "tasks")]
    pub(crate) task_data: Option<PathBuf>,
    /// Files of evaluation rows, of any fields.
    #[arg(long, num_args = 1.., value_name = "FILE", required_unless_present = "tasks")]
    pub(crate) against: Vec<String>,
    /// Words that a row and an evaluation set must share in a run.
    #[arg(long, value_name = "N", default_value_t = 13, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) words: u32,
    /// A file for the rows that are left out, a JSON object a line with place and reason.
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) list: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct FetchDataArgs {
    /// Tasks of `bitnet eval`, separated by commas.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', required_unless_present = "suite")]
    pub(crate) tasks: Vec<String>,
    /// All tasks of the 2B4T report.
    #[arg(long, value_name = "SUITE", value_parser = ["report"])]
    pub(crate) suite: Option<String>,
    /// The folder; what it has already is not fetched again.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Parses a share from 0 to 1.
fn share(word: &str) -> Result<f64, String> {
    // NaN parses too, and lies in no range.
    let number = word.parse().ok().filter(|number: &f64| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

fn pair(word: &str) -> Result<(String, String), String> {
    // At the first `=`: the name of a column may hold others.
    let pair =
        word.split_once('=').filter(|(field, column)| !field.is_empty() && !column.is_empty());
    let (field, column) = pair.ok_or("expected FIELD=COLUMN, such as instruction=Question")?;
    Ok((field.to_owned(), column.to_owned()))
}
