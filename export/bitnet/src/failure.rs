//! Reports errors: one message on stderr and a documented exit code (docs/src/promises.md).

use std::io::ErrorKind;
use std::process::ExitCode;

use bitnet_engine::EngineError;
use bitnet_eval::EvalError;
use bitnet_format::FormatError;
use bitnet_format::crash::CrashedProgram;
use bitnet_text::TextError;
use serde_json::Value;

use crate::output::StdoutError;

/// A bug in this program.
pub(crate) const INTERNAL: u8 = 1;
const USAGE: u8 = 2;
const RECIPE: u8 = 3;
const INPUT: u8 = 4;
const ENVIRONMENT: u8 = 5;
const REFUSED: u8 = 7;

/// A file or argument with unusable contents; the message begins with its name.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadInput(pub(crate) String);

/// Something that does not fit into this machine's memory.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TooLarge(pub(crate) String);

/// A flag with a value that clap accepts and that is still wrong; the message begins with its name.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongFlag(pub(crate) String);

/// A server that cannot be reached, or does not answer as asked; the message begins with its
/// address.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ServerFailed(pub(crate) String);

/// A server that a signal ended, after its answers; nothing to report.
#[cfg(feature = "serve")]
#[derive(Debug, thiserror::Error)]
#[error("ended by a signal")]
pub(crate) struct EndedBySignal(pub(crate) u8);

/// The code of an end that needs no words.
fn quiet_code(error: &anyhow::Error) -> Option<u8> {
    #[cfg(feature = "serve")]
    if let Some(EndedBySignal(code)) = error.downcast_ref() {
        return Some(*code);
    }
    is_closed_pipe(error).then_some(0)
}

/// Prints the error and returns the exit code. A closed pipe on stdout is not an error.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(code) = quiet_code(error) {
        return code.into();
    }
    let code = exit_code(error);
    bitnet_terminal::report(&message(error), code);
    ExitCode::from(code)
}

/// The message; a setting of the sampler is named as its flag.
fn message(error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        Some(EngineError::Setting { name, value, expected }) => {
            format!("--{}: expected {expected}, got {value}", name.replace('_', "-"))
        }
        _ => format!("{error:#}"),
    }
}

const PROGRAM: CrashedProgram = CrashedProgram {
    name: env!("CARGO_PKG_NAME"),
    version: env!("CARGO_PKG_VERSION"),
    repository: env!("CARGO_PKG_REPOSITORY"),
};

/// Reports a panic that nothing caught.
pub(crate) fn report_bug() -> ExitCode {
    bitnet_terminal::report(&PROGRAM.report(None, &Value::Null), INTERNAL);
    ExitCode::from(INTERNAL)
}

/// Shows what clap has to say: help, the version, or what is wrong with the command line.
pub(crate) fn usage(shown: &clap::Error) -> ExitCode {
    if shown.use_stderr() {
        return bitnet_terminal::report_usage(shown, None).into();
    }
    match shown.print() {
        Err(error) => report(&StdoutError(error).into()),
        Ok(()) => ExitCode::SUCCESS,
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let stdout = error.downcast_ref().map(|StdoutError(error)| error.kind());
    stdout == Some(ErrorKind::BrokenPipe)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let from_engine = |error: &EngineError| match error {
        EngineError::Format(error) => format_code(error),
        EngineError::NotANumber => INPUT,
        // What was asked for does not fit the model: the command line is at fault.
        EngineError::EmptyPrompt
        | EngineError::ContextFull { .. }
        | EngineError::UnknownToken { .. }
        | EngineError::Setting { .. } => USAGE,
    };
    let from_text = |error: &TextError| match error {
        TextError::Io(error) => io_code(error),
        _ => INPUT,
    };
    let from_eval = |error: &EvalError| match error {
        EvalError::Io(error) => io_code(error),
        EvalError::Format(error) => format_code(error),
        EvalError::Text(error) => from_text(error),
        EvalError::Engine(error) => from_engine(error),
        error if error.is_usage() => USAGE,
        _ => INPUT,
    };
    // `anyhow` finds an error by its type through any context that was put around it. The order
    // does not matter: an error has one type.
    None.or_else(|| error.downcast_ref::<BadInput>().map(|_| INPUT))
        .or_else(|| error.downcast_ref::<TooLarge>().map(|_| ENVIRONMENT))
        .or_else(|| error.downcast_ref::<ServerFailed>().map(|_| ENVIRONMENT))
        .or_else(|| error.downcast_ref::<WrongFlag>().map(|_| USAGE))
        .or_else(|| server_code(error))
        .or_else(|| error.downcast_ref().map(from_engine))
        .or_else(|| error.downcast_ref().map(format_code))
        .or_else(|| error.downcast_ref().map(from_text))
        .or_else(|| error.downcast_ref().map(from_eval))
        .or_else(|| error.downcast_ref().map(io_code))
        .or_else(|| error.downcast_ref().map(|StdoutError(error)| io_code(error)))
        .unwrap_or(INTERNAL)
}

/// An address or thread that cannot be had is a fault of the environment; else it is a bug.
#[cfg(feature = "serve")]
fn server_code(error: &anyhow::Error) -> Option<u8> {
    error.downcast_ref().map(|error| match error {
        bitnet_serve::ServeError::InferenceEnded => INTERNAL,
        _ => ENVIRONMENT,
    })
}

/// A program without the server has no such error.
#[cfg(not(feature = "serve"))]
fn server_code(_: &anyhow::Error) -> Option<u8> {
    None
}

fn format_code(error: &FormatError) -> u8 {
    match error {
        FormatError::Io(error) => io_code(error),
        FormatError::Shape { .. } => RECIPE,
        FormatError::Exists { .. } => REFUSED,
        _ => INPUT,
    }
}

/// A missing path is bad input; a full disk or a missing permission is a fault of the environment.
fn io_code(error: &std::io::Error) -> u8 {
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::InvalidData
        | ErrorKind::InvalidInput => INPUT,
        _ => ENVIRONMENT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_error_has_its_code() {
        let io = |kind| std::io::Error::from(kind);
        let denied = || io(ErrorKind::PermissionDenied);
        for (error, code) in [
            (anyhow::Error::new(BadInput("x".to_owned())), INPUT),
            (anyhow::Error::new(TooLarge("x".to_owned())), ENVIRONMENT),
            (EngineError::EmptyPrompt.into(), USAGE),
            (EngineError::NotANumber.into(), INPUT),
            (EngineError::Format(FormatError::Io(denied())).into(), ENVIRONMENT),
            (FormatError::Io(io(ErrorKind::NotFound)).into(), INPUT),
            (TextError::Io(denied()).into(), ENVIRONMENT),
            (TextError::VocabSize { got: 1 }.into(), INPUT),
            (io(ErrorKind::StorageFull).into(), ENVIRONMENT),
            (StdoutError(io(ErrorKind::StorageFull)).into(), ENVIRONMENT),
            (anyhow::anyhow!("a surprise"), INTERNAL),
        ] {
            assert_eq!(exit_code(&error), code, "{error}");
        }
    }
}
