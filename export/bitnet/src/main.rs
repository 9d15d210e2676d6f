//! `bitnet` runs packed BitNet models from the command line.
//!
//! Results go to stdout, everything else to stderr. Each command has its own file.
#![forbid(unsafe_code)]

mod bench;
mod chat;
mod chat_input;
mod chat_partner;
mod cli;
mod common_args;
mod energy;
mod eval;
mod eval_settings;
mod eval_store;
mod eval_table;
mod failure;
mod generate;
mod growing_file;
mod inspect;
mod key_file;
mod line_editor;
mod manual;
mod mt_bench;
mod open;
mod openai_server;
mod output;
mod score;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_args;
mod server_chat;

use std::alloc::System;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bitnet_format::allocation::ReportingAllocator;
use clap::Parser;

use bitnet_text::LimitedAllocator;
use cli::{Cli, Command};

/// Bounds what a model's chat template may allocate, and says where memory ends.
#[global_allocator]
static ALLOCATOR: LimitedAllocator<ReportingAllocator<System>> =
    LimitedAllocator(ReportingAllocator(System));

fn main() -> ExitCode {
    // Before anything that can panic.
    bitnet_format::crash::keep_panics();
    output::report_file_size_limit();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(shown) => return failure::usage(&shown),
    };
    match catch_unwind(AssertUnwindSafe(|| run(&cli.command))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => failure::report(&error),
        Err(_) => failure::report_bug(),
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    // In a chat, Ctrl-C may end an answer only; a server finishes its answers first.
    match command {
        Command::Chat(_) => {}
        #[cfg(feature = "serve")]
        Command::Serve(_) => {}
        _ => end_on_interrupt()?,
    }
    match command {
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Score(args) => score::run(args),
        Command::Eval(args) => eval::run(args),
        Command::MtBench(args) => mt_bench::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Completions { shell } => manual::completions(*shell),
        Command::Man { folder } => manual::pages(folder),
    }
}

/// Ctrl-C ends the program with the documented code.
fn end_on_interrupt() -> std::io::Result<()> {
    let (signal, always) = (signal_hook::consts::SIGINT, Arc::new(AtomicBool::new(true)));
    signal_hook::flag::register_conditional_shutdown(signal, 130, always).map(|_| ())
}
