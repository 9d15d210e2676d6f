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

/// Shows what clap has to say: help, the version, or what is wrong with the command line.
pub(crate) fn usage(shown: &clap::Error) -> ExitCode {
    let code = ExitCode::from(shown.exit_code() as u8);
    match shown.print().map_err(|error| output::of_stdout(&error)) {
        // An error of stderr cannot be reported anywhere.
        Err(Err(error)) if !shown.use_stderr() => report(&TrainError::Io(error).into()),
        _ => code,
    }
}

/// Prints `error` and returns its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(
        TrainError::Stopped(stop)
        | TrainError::ExportStopped(stop)
        | TrainError::VerificationStopped { stop, .. },
    ) = error.downcast_ref()
    {
        print_error_line(&format!("{error:#}"));
        return ExitCode::from(stop.exit_code());
    }
    // The other rank reports it.
    if let Some(TrainError::OtherRank { code, .. }) = error.downcast_ref() {
        return ExitCode::from(*code);
    }
    // A recipe reports all its problems at once, each after the first with its own "error: ".
    print_error_line(&format!("error: {error:#}"));
    ExitCode::from(code_of(error))
}

/// Writes a message to stderr in one call, so that output of other ranks does not interleave.
pub(crate) fn print_error_line(message: &str) {
    output::note(message);
}

/// The documented exit code.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Usage>().is_some() {
        return 2;
    }
    error.downcast_ref::<TrainError>().map_or(1, TrainError::exit_code)
}
