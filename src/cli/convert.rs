//! Arguments of `convert`.

use std::path::PathBuf;

use clap::Args;

use super::TrainingFlags;

/// Arguments of a conversion.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The dense model: a checkpoint or a Hugging Face folder.
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Text, or rows of any shape that a recipe takes; with stage=sft conversations.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub(crate) data: Vec<PathBuf>,
    /// Held-out files of the same kind [default: the recipe's share of the data]
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub(crate) validation: Vec<PathBuf>,
    /// Another teacher than the dense model itself, with the same vocabulary.
    #[arg(long, value_name = "MODEL")]
    pub(crate) teacher: Option<PathBuf>,
    /// The run directory; final/ in it holds the ternary model, export/ its packed form.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Another recipe than the built-in one, which is recipes/convert.toml.
    #[arg(long, value_name = "RECIPE.toml")]
    pub(crate) recipe: Option<PathBuf>,
    /// Recipe keys to set, such as train.tokens=10000000.
    #[arg(value_name = "dotted.key=value")]
    pub(crate) settings: Vec<String>,
    #[command(flatten)]
    pub(crate) flags: TrainingFlags,
}
