//! Reports an error: one message on stderr and the documented exit code.

use std::process::ExitCode;

use bitnet_train::output;
use bitnet_train::train::TrainError;

/// A command line that clap accepts but that is still invalid.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// How a command ends that did its work: where it was asked for what it prints, that must have been
/// written too.
pub(crate) fn finish(prints_results: bool) -> ExitCode {
    match output::results_written() {
        Err(error) if prints_results => report(&TrainError::Io(error).into()),
        _ => ExitCode::SUCCESS,
    }
}

/// Shows what clap has to say: help, the version, or what is wrong with the command line. `meant` is
/// what the user probably meant.
pub(crate) fn usage(shown: &clap::Error, meant: Option<&str>) -> ExitCode {
    if shown.use_stderr() {
        return bitnet_terminal::report_usage(shown, meant).into();
    }
    match shown.print().map_err(|error| output::of_stdout(&error)) {
        Err(Err(error)) => report(&TrainError::Io(error).into()),
        _ => ExitCode::SUCCESS,
    }
}

/// Prints `error` and returns its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let code = code_of(error);
    // The other rank reports its own.
    if !matches!(error.downcast_ref(), Some(TrainError::OtherRank { .. })) {
        // A recipe reports all its problems at once, each after the first with its own "error: ".
        bitnet_terminal::report(&format!("{error:#}"), code);
    }
    ExitCode::from(code)
}

/// The documented exit code.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Usage>().is_some() {
        return 2;
    }
    error.downcast_ref::<TrainError>().map_or(1, TrainError::exit_code)
}
