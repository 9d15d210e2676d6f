//! Reports an error: one message on stderr and the documented exit code.

use std::io::Write;
use std::process::ExitCode;

use bitnet_train::train::TrainError;

/// A command line that clap accepts but that is still invalid.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Prints `error` and returns its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(TrainError::Stopped(stop) | TrainError::ExportStopped(stop)) = error.downcast_ref()
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
    // A closed stderr cannot be reported anywhere.
    let _ = std::io::stderr().write_all(format!("{message}\n").as_bytes());
}

/// The documented exit code.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Usage>().is_some() {
        return 2;
    }
    error.downcast_ref::<TrainError>().map_or(1, TrainError::exit_code)
}
