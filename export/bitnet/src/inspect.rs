//! `bitnet inspect`: config, tensors and ternary shares of a model folder.

use std::io::{Write, stdout};

use bitnet_format::folder::ModelFolder;
use bitnet_format::report::report;

use crate::cli::InspectArgs;
use crate::open;

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    open::check_folder(&args.path)?;
    let folder = ModelFolder::open(&args.path)?;
    let mut lines = Vec::new();
    report(&folder, |line| lines.push(line.to_owned()))?;
    Ok(writeln!(stdout().lock(), "{}", lines.join("\n"))?)
}
