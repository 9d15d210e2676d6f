//! Reports errors: one message on stderr and a documented exit code (docs/src/promises.md).

use std::fmt;
use std::io::ErrorKind;
use std::panic::PanicHookInfo;
use std::process::ExitCode;

use bitnet_engine::EngineError;
use bitnet_format::FormatError;
use bitnet_text::TextError;

/// A bug in this program.
pub(crate) const INTERNAL: u8 = 1;
const USAGE: u8 = 2;
const INPUT: u8 = 4;
const ENVIRONMENT: u8 = 5;

/// A file or argument with unusable contents; the message begins with its name.
#[derive(Debug)]
pub(crate) struct BadInput(pub(crate) String);

impl fmt::Display for BadInput {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// Prints the error and returns the exit code. A closed pipe on stdout is not an error.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error:#}");
    ExitCode::from(exit_code(error))
}

/// Replaces Rust's panic message.
pub(crate) fn report_panic(info: &PanicHookInfo) {
    let what = info.payload_as_str().unwrap_or("unknown");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    eprintln!("error: internal error at {place}: {what}\nhint: this is a bug; please report it");
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|io: &std::io::Error| io.kind() == ErrorKind::BrokenPipe)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let from_engine = |error: &EngineError| match error {
        EngineError::Format(error) => format_code(error),
        EngineError::Dense { .. } => INPUT,
        EngineError::EmptyPrompt
        | EngineError::ContextFull { .. }
        | EngineError::UnknownToken { .. }
        | EngineError::Setting { .. } => USAGE,
    };
    let from_text = |error: &TextError| match error {
        TextError::Io(error) => io_code(error),
        _ => INPUT,
    };
    None.or_else(|| error.downcast_ref::<BadInput>().map(|_| INPUT))
        .or_else(|| error.downcast_ref().map(from_engine))
        .or_else(|| error.downcast_ref().map(format_code))
        .or_else(|| error.downcast_ref().map(from_text))
        .or_else(|| error.downcast_ref().map(io_code))
        .unwrap_or(INTERNAL)
}

fn format_code(error: &FormatError) -> u8 {
    match error {
        FormatError::Io(error) => io_code(error),
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
            (EngineError::EmptyPrompt.into(), USAGE),
            (EngineError::Format(FormatError::Io(denied())).into(), ENVIRONMENT),
            (FormatError::Io(io(ErrorKind::NotFound)).into(), INPUT),
            (TextError::Io(denied()).into(), ENVIRONMENT),
            (TextError::VocabSize { got: 1 }.into(), INPUT),
            (io(ErrorKind::StorageFull).into(), ENVIRONMENT),
            (anyhow::anyhow!("a surprise"), INTERNAL),
        ] {
            assert_eq!(exit_code(&error), code, "{error}");
        }
    }
}
