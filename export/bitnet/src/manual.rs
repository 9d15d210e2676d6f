//! `bitnet completions` and `man`: files for a shell and for `man`, made from the command line
//! itself.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::output::result;

pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "bitnet", &mut script);
    // As every command: a reader that wants no more, such as `head`, is no failure.
    Ok(result(&String::from_utf8(script)?)?)
}

pub(crate) fn pages(folder: &Path) -> anyhow::Result<()> {
    fs_err::create_dir_all(folder)?;
    Ok(clap_mangen::generate_to(Cli::command(), folder)?)
}
