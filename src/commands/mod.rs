//! The commands of `bitnet-train`, one file each: arguments in, work done, results printed.

mod bench;
mod chat_model;
mod closing;
mod convert;
mod corpus;
mod data_flag;
mod eval;
mod eval_tasks;
mod export;
mod fetch;
mod fit;
mod histogram;
mod init;
mod inspect;
mod manual;
mod plan;
mod ranks;
mod report;
mod run;
mod statistics_out;
mod sweep;
mod tokenizer;

use std::path::Path;

use anyhow::Result;
use bitnet_format::Shown;
use bitnet_format::foreign::missing_tokenizer;
use bitnet_text::Tokenizer;
use bitnet_train::device;
use bitnet_train::output::result_line;
use bitnet_train::train::TrainError;

use crate::cli::{Inspect, TrainerCli, TrainerCommand};
use crate::failure::Usage;

/// The most worker threads of a process, as in `bitnet`.
const MOST_THREADS: usize = 1024;

/// Runs the chosen command.
pub(crate) fn run(cli: &TrainerCli) -> Result<()> {
    match &cli.command {
        None => run::run(&cli.run),
        Some(TrainerCommand::Plan(args)) => plan::run(args),
        Some(TrainerCommand::Inspect(Inspect::Data(args))) => inspect::data(args),
        Some(TrainerCommand::Inspect(Inspect::Model(args))) => inspect::model(args),
        Some(TrainerCommand::Tokenizer(args)) => tokenizer::run(args),
        Some(TrainerCommand::Data(command)) => corpus::run(command),
        Some(TrainerCommand::Eval(args)) if !args.tasks.is_empty() => eval_tasks::run(args),
        Some(TrainerCommand::Eval(args)) => eval::run(args),
        Some(TrainerCommand::Export(args)) => export::run(args),
        Some(TrainerCommand::Init(args)) => init::run(args),
        Some(TrainerCommand::Bench(args)) => bench::run(args),
        Some(TrainerCommand::Convert(args)) => convert::run(args),
        Some(TrainerCommand::Sweep(args)) => sweep::run(args),
        Some(TrainerCommand::Fit(args)) => fit::run(args),
        Some(TrainerCommand::Report(args)) => report::report(args),
        Some(TrainerCommand::Watch(args)) => report::watch(args),
        Some(TrainerCommand::Runs(args)) => report::runs(args),
        Some(TrainerCommand::Diff(args)) => report::diff(args),
        Some(TrainerCommand::Devices) => {
            print_line(&device::listed().join("\n"));
            Ok(())
        }
        Some(TrainerCommand::Completions { shell }) => manual::completions(*shell),
        Some(TrainerCommand::Man { folder }) => manual::pages(folder),
    }
}

/// Starts the worker threads of this process; without a number, one for each core.
fn set_threads(threads: Option<usize>) -> Result<()> {
    if let Some(threads) = threads
        && !(1..=MOST_THREADS).contains(&threads)
    {
        let what = format!("--threads {threads}: expected a number from 1 to {MOST_THREADS}");
        return Err(Usage(what).into());
    }
    // 0 leaves it to rayon: the cores that this process may run on.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build_global();
    let failed = |error| std::io::Error::other(format!("cannot start worker threads: {error}"));
    Ok(pool.map_err(|error| TrainError::Io(failed(error)))?)
}

/// The tokenizer stored with a model.
fn tokenizer_of(model: &Path) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::of_model(model).map_err(TrainError::from)?;
    let way_out = "put the tokenizer.json it was trained with there";
    let missing = || TrainError::from(missing_tokenizer(model, way_out));
    let tokenizer = tokenizer.ok_or_else(missing)?;
    if let Some(assumed) = tokenizer.assumed() {
        bitnet_train::output::note(&format!("note: {}: {assumed}", model.shown()));
    }
    Ok(tokenizer)
}

/// The recipe keys of a command line, `--device` among them.
fn overrides_with_device(overrides: &[String], device: Option<&str>) -> Vec<String> {
    let device = device.map(|name| format!("device={}", toml::Value::String(name.to_owned())));
    // Last, so that the flag wins over a `device=` among the words.
    overrides.iter().cloned().chain(device).collect()
}

/// Prints results; what files and models say in them cannot command the terminal.
fn print_line(text: &str) {
    result_line(&bitnet_terminal::printable(text));
}

/// Prints a table, a drawing or a list.
fn print_lines(lines: &[String]) {
    for line in lines {
        print_line(line);
    }
}

/// Prints a result for programs, on one line.
fn print_json(value: &serde_json::Value) {
    result_line(&bitnet_terminal::printable_json(&value.to_string()));
}
