//! `bitnet-train completions` and `man`: files for a shell and for `man`, made from the command line
//! itself.

use std::path::Path;

use anyhow::Result;
use bitnet_train::train::TrainError;
use clap::CommandFactory;
use clap_complete::Shell;

use super::print_line;
use crate::cli::TrainerCli;

pub(crate) fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut TrainerCli::command(), "bitnet-train", &mut script);
    print_line(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

pub(crate) fn pages(folder: &Path) -> Result<()> {
    fs_err::create_dir_all(folder).map_err(TrainError::from)?;
    clap_mangen::generate_to(TrainerCli::command(), folder).map_err(TrainError::from)?;
    Ok(())
}
