//! How an error leaves the program: one message on stderr, the documented exit code.

use std::io::Write;
use std::process::ExitCode;

use bitnet_train::train::TrainError;

/// A command line that clap accepts and that still makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Prints `error` and gives its exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(TrainError::Stopped(stop) | TrainError::ExportStopped(stop)) = error.downcast_ref()
    {
        say(&format!("{error:#}"));
        return ExitCode::from(stop.exit_code());
    }
    // Another rank says what happened.
    if let Some(TrainError::OtherRank { code, .. }) = error.downcast_ref() {
        return ExitCode::from(*code);
    }
    // A recipe reports all its problems at once; each further one brings its own "error: ".
    say(&format!("error: {error:#}"));
    ExitCode::from(code_of(error))
}

/// Writes a message to stderr in one piece, so that what other ranks and their launcher say at the
/// same time stays outside of it.
pub(crate) fn say(message: &str) {
    // Nobody is left to be told that nobody listens.
    let _ = std::io::stderr().write_all(format!("{message}\n").as_bytes());
}

/// The documented exit code.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Usage>().is_some() {
        return 2;
    }
    error.downcast_ref::<TrainError>().map_or(1, TrainError::exit_code)
}
