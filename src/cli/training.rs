//! Arguments of what trains.

use std::path::PathBuf;

use clap::Args;

use super::RecipeWords;

/// Arguments of a run.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) recipe: RecipeWords,
    /// Run directory [default: runs/<recipe name>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flags: TrainingFlags,
}

/// How a run is made.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct TrainingFlags {
    /// never, auto (the newest checkpoint that verifies; also: latest), or a checkpoint (a path, or
    /// step-N in the run directory).
    #[arg(long, default_value = "never", value_name = "never|auto|PATH")]
    pub(crate) resume: String,
    /// A recipe key that may differ from the run on disk; `data` for changed files.
    #[arg(long, value_name = "KEY")]
    pub(crate) allow_change: Vec<String>,
    /// Train in a directory that holds other things, beside them, or where memory seems too small.
    /// Deletes nothing.
    #[arg(long)]
    pub(crate) force: bool,
    /// Device, over the recipe's.
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Option<String>,
    /// Worker threads [default: the cores this process may run on]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Allow more threads than a machine has cores, over all its ranks.
    #[arg(long)]
    pub(crate) oversubscribe: bool,
    /// Prepare everything and run the first step, but write nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print errors only.
    #[arg(short, long, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more on stderr: a line for every step instead of a progress bar, what was verified.
    #[arg(short, long)]
    pub(crate) verbose: bool,
}
