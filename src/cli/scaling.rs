//! Arguments of `sweep` and `fit`.

use std::path::PathBuf;

use bitnet_train::scaling::{LadderSize, WeightKind, parse_tokens};
use clap::Args;

/// Arguments of a ladder.
#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    /// The recipe that all runs share; of one stage, with a new model and data.validation.
    #[arg(long, value_name = "RECIPE.toml")]
    pub(crate) recipe: PathBuf,
    /// Sizes: names of configs (tiny, s, m, 125m, 700m, 2b4t) or hidden:layers in the proportions of
    /// the recipe's model, such as 96:3,128:4,192:4.
    #[arg(long, required = true, value_delimiter = ',', value_name = "SIZE,…")]
    pub(crate) sizes: Vec<LadderSize>,
    /// Tokens to train on, such as 250k,500k,1M.
    #[arg(long, required = true, value_delimiter = ',', value_parser = parse_tokens, value_name = "N,…")]
    pub(crate) tokens: Vec<u64>,
    /// Random seeds.
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "N,…")]
    pub(crate) seeds: Vec<u64>,
    /// Which models: ternary, dense twins, or both.
    #[arg(long, value_delimiter = ',', default_value = "ternary", value_parser = weights, value_name = "ternary,dense")]
    pub(crate) weights: Vec<WeightKind>,
    /// The held-out set whose loss counts; needed only where there are several.
    #[arg(long, value_name = "NAME")]
    pub(crate) set: Option<String>,
    /// The directory of all runs. One that holds some of them is continued.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Worker threads [default: the cores this process may run on]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print errors only.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Recipe keys to set in all runs, such as train.batch=8.
    #[arg(value_name = "dotted.key=value")]
    pub(crate) settings: Vec<String>,
}

fn weights(word: &str) -> Result<WeightKind, String> {
    let kinds = [WeightKind::Ternary, WeightKind::Dense];
    let kind = kinds.into_iter().find(|kind| kind.name() == word);
    kind.ok_or_else(|| "expected ternary or dense".to_owned())
}

/// Arguments of a fit.
#[derive(Debug, Args)]
pub(crate) struct FitArgs {
    /// Run directories, or directories of runs such as a sweep's.
    #[arg(required = true, value_name = "RUNS")]
    pub(crate) runs: Vec<PathBuf>,
    /// The held-out set whose loss is fitted; needed only where there are several.
    #[arg(long, value_name = "NAME")]
    pub(crate) set: Option<String>,
    /// Samples that the intervals are made from.
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    pub(crate) samples: u32,
    /// Seed of the samples.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Also draw runs and curves into an SVG file; an error if it exists.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) svg: Option<PathBuf>,
    /// Overwrite the SVG file.
    #[arg(long)]
    pub(crate) force: bool,
    /// Print the result as one JSON line on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}
