//! `bitnet-train`: parse, run one command, report the error with its exit code.

mod cli;
mod commands;
mod failure;

use std::process::ExitCode;

use clap::Parser;

/// Training takes and gives back the same large buffers again and again; the system's allocator
/// returns them to the kernel each time, which then clears every page anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match commands::run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
