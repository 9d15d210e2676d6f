//! What the program prints: results on stdout, everything else on stderr. A stream that fails ends
//! nothing: neither a closed terminal nor a full disk under a log may cost a run.

use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

use bitnet_terminal::{Stream, highlighted, printable};

/// The first error of stdout.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// Prints a line of results; after an error nothing more goes to stdout.
pub fn result_line(text: &str) {
    if FAILED.get().is_some() {
        return;
    }
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(format!("{text}\n").as_bytes()).and_then(|()| stdout.flush());
    if let Err(error) = written {
        let _ = FAILED.set(error);
    }
}

/// Prints a line on stderr, in one call, so that the lines of several ranks do not interleave.
pub fn note(text: &str) {
    // An error of stderr cannot be reported anywhere.
    let text = highlighted(&printable(text), Stream::Stderr);
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Whether all results could be written. A reader that closed the pipe has what it wanted.
pub fn results_written() -> io::Result<()> {
    FAILED.get().map_or(Ok(()), of_stdout)
}

/// An error of stdout with its name; none when the reader closed the pipe.
pub fn of_stdout(error: &io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::BrokenPipe => Ok(()),
        kind => Err(io::Error::new(kind, format!("stdout: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_pipe_is_no_error_of_stdout() {
        assert!(of_stdout(&ErrorKind::BrokenPipe.into()).is_ok());
        let full = of_stdout(&ErrorKind::StorageFull.into()).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert!(full.to_string().starts_with("stdout: "), "{full}");
    }
}
