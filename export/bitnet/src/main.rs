//! `bitnet` runs packed BitNet models from the command line.
//!
//! Results go to stdout, everything else to stderr. Each command has its own file.
#![forbid(unsafe_code)]

mod bench;
mod chat;
mod chat_input;
mod cli;
mod failure;
mod generate;
mod inspect;
mod line_editor;
mod open;
mod score;
mod stops;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    std::panic::set_hook(Box::new(failure::report_panic));
    match std::panic::catch_unwind(|| run(&cli.command)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => failure::report(&error),
        Err(_) => ExitCode::from(failure::INTERNAL),
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Score(args) => score::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Bench(args) => bench::run(args),
    }
}
