//! `bitnet-train`: parse, run one command, report the error with its exit code.

mod allocator;
mod cli;
mod commands;
mod failure;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    allocator::keep_pages();
    let cli = cli::TrainerCli::parse();
    match commands::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
