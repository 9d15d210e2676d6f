//! Arguments of `report`, `watch`, `runs` and `diff`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of a page.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Run directories, or directories of runs such as a pipeline's; several are overlaid.
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// The page; an earlier one is replaced.
    #[arg(long, value_name = "FILE.html", default_value = "report.html")]
    pub(crate) out: PathBuf,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of the screen.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Run directories, or directories of runs such as a pipeline's.
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
}

/// Arguments of the table of runs.
#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    /// The directory that holds them.
    #[arg(value_name = "DIR", default_value = "runs")]
    pub(crate) dir: PathBuf,
    /// A column (name, state, step, last, best, tokens, time, path) or a recipe key, such as
    /// train.batch.
    #[arg(long, value_name = "KEY")]
    pub(crate) sort: Option<String>,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of a comparison.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// A run directory or a recipe file.
    #[arg(value_name = "A")]
    pub(crate) one: PathBuf,
    /// Another.
    #[arg(value_name = "B")]
    pub(crate) other: PathBuf,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}
