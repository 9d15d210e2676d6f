//! What the program prints: results on stdout, everything else on stderr. Nothing here panics.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use bitnet_terminal::{printable, printable_json};
use serde_json::Value;

/// An error of stdout, which a caller may tell from those of files.
#[derive(Debug, thiserror::Error)]
#[error("stdout: {0}")]
pub(crate) struct StdoutError(pub(crate) io::Error);

/// Writes a part of the results, at once.
pub(crate) fn result(text: &str) -> Result<(), StdoutError> {
    let mut stdout = io::stdout().lock();
    // Flushed each time: text is read as it comes, also behind a pipe.
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(StdoutError)
}

/// Writes a piece of generated text: to a terminal with its control characters as escapes, so that
/// no model commands the terminal; to a pipe or a file as it is, because its readers are programs.
pub(crate) fn generated_text(text: &str) -> Result<(), StdoutError> {
    if io::stdout().is_terminal() { result(&printable(text)) } else { result(text) }
}

/// Writes a result for programs, on one line.
pub(crate) fn json_line(value: &Value) -> Result<(), StdoutError> {
    result_line(&printable_json(&value.to_string()))
}

/// Writes a line of results.
pub(crate) fn result_line(text: &str) -> Result<(), StdoutError> {
    result(&format!("{text}\n"))
}

/// Prints a line on stderr.
pub(crate) fn note(text: &str) {
    // An error of stderr cannot be reported anywhere.
    let _ = io::stderr().write_all(format!("{}\n", printable(text)).as_bytes());
}

/// Makes writing beyond the file size limit (`ulimit -f`) an error, where it would otherwise end
/// the process.
pub(crate) fn report_file_size_limit() {
    #[cfg(unix)]
    // Without the handler only this limit would end the program.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
}
