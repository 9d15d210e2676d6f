//! A command of the user's that reads every line of `metrics.jsonl` from its standard input.
//!
//! A thread writes, so that a command that is slow or dead never holds training up: what it does not
//! take in time is dropped, with one warning.

use std::io::{self, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines that may wait for the command.
const MOST_WAITING: usize = 10_000;
/// How long the end of a run waits for the command's own end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running command. Dropping it closes its input.
#[derive(Debug)]
pub(super) struct LineCommand {
    text: String,
    child: Child,
    lines: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
}

impl LineCommand {
    /// Starts `text` in the system's shell, out of reach of the terminal's Ctrl-C.
    pub(super) fn start(text: &str) -> io::Result<Self> {
        // What it prints would run into the results that this program prints there.
        let mut child =
            crate::platform::shell(text).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let mut input = child.stdin.take().expect("it is piped");
        // Bounded: `try_send` then fails where a command lags behind, and nothing waits.
        let (lines, waiting) = sync_channel::<String>(MOST_WAITING);
        let writer = std::thread::Builder::new().name("metrics".into()).spawn(move || {
            // A command that has ended takes no more; its end is reported when the run ends.
            while let Ok(line) = waiting.recv() {
                if input.write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { text: text.to_owned(), child, lines: Some(lines), writer: Some(writer) })
    }

    /// Gives it a line; what to tell the user when it no longer reads.
    pub(super) fn line(&mut self, line: &str) -> Option<String> {
        let lines = self.lines.as_ref()?;
        let why = match lines.try_send(format!("{line}\n")) {
            Ok(()) => return None,
            Err(TrySendError::Full(_)) => "does not read its input",
            Err(TrySendError::Disconnected(_)) => "has ended",
        };
        // Ends the thread, and with it the command's input.
        self.lines = None;
        Some(format!("report.command `{}` {why}; it gets no more lines", self.text))
    }

    /// Closes its input and waits for its end; what to tell the user when it failed.
    pub(super) fn finish(&mut self) -> Option<String> {
        self.lines = None;
        let start = Instant::now();
        // Polled, because a wait for a child has no limit of time.
        while start.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return None,
                Ok(Some(status)) => {
                    return Some(format!("report.command `{}` ended with {status}", self.text));
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => return Some(format!("report.command `{}`: {error}", self.text)),
            }
        }
        // Its thread may wait in a write for ever, and ends with the program.
        self.writer = None;
        Some(format!(
            "report.command `{}` is still running; the run does not wait for it",
            self.text
        ))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn every_line_arrives_and_a_failure_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("lines");
        let mut command = LineCommand::start(&format!("cat > '{}'", out.display())).unwrap();
        assert_eq!(command.line("{\"step\":1}"), None);
        assert_eq!(command.line("{\"step\":2}"), None);
        assert_eq!(command.finish(), None);
        let text = fs_err::read_to_string(&out).unwrap();
        assert_eq!(text, "{\"step\":1}\n{\"step\":2}\n");
        let mut command = LineCommand::start("cat >/dev/null; exit 3").unwrap();
        assert!(command.finish().unwrap().contains("exit status: 3"));
    }

    #[test]
    fn a_command_that_does_not_read_holds_nothing_up() {
        let mut command = LineCommand::start("sleep 3").unwrap();
        let line = "x".repeat(1000);
        let told: Vec<_> = (0..MOST_WAITING * 2).filter_map(|_| command.line(&line)).collect();
        assert_eq!(told.len(), 1, "told once: {told:?}");
        assert!(told[0].contains("does not read"), "{}", told[0]);
    }
}
