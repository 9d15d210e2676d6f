//! `bitnet-train`: parse, run one command, report the error with its exit code.

mod allocator;
mod bug;
mod cli;
mod commands;
mod failure;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    allocator::keep_pages();
    bitnet_format::crash::keep_panics();
    bitnet_train::platform::report_file_size_limit();
    let cli = match cli::TrainerCli::try_parse() {
        Ok(cli) => cli,
        Err(shown) => {
            let word = std::env::args().nth(1);
            let meant = word.and_then(|word| cli::unknown_command(&word));
            return failure::usage(&shown, meant.as_deref());
        }
    };
    match catch_unwind(AssertUnwindSafe(|| commands::run(&cli))) {
        Ok(Ok(())) => failure::finish(cli.prints_results()),
        Ok(Err(error)) => failure::report(&error),
        Err(_) => bug::report(),
    }
}
