//! Runs programs that a model wrote, where a user allowed it: each in a process of its own with
//! limits on time and memory, in an empty folder, without the user's environment, and without a
//! network where the system lets a user make a network namespace. It is no sandbox against somebody
//! who means harm.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::EvalError;

/// As the harness's `code_eval` has it.
const LONGEST: Duration = Duration::from_secs(3);
// The standard library has no wait with a limit, so the child is asked again and again.
const PAUSE: Duration = Duration::from_millis(5);
/// Limits of the shell: KiB of memory, seconds of CPU, blocks of a file.
const LIMITS: &str = r#"ulimit -v 4194304; ulimit -t 4; ulimit -f 2048; exec "$@""#;
/// A new network namespace has no interface.
const NO_NETWORK: [&str; 3] = ["unshare", "-r", "-n"];
/// Runs the program that comes in. Only a whole run ends with this status.
const RUN: &str = "import sys\nsource = sys.stdin.read()\ntry:\n    exec(source, {})\n\
                   except BaseException:\n    sys.exit(1)\nsys.exit(113)";
const PASSED: i32 = 113;

/// A Python that may run a model's programs.
#[derive(Clone, Debug)]
pub struct CodeRunner {
    python: PathBuf,
    has_no_network: bool,
    longest: Duration,
}

impl CodeRunner {
    /// Tries the Python, first without a network.
    ///
    /// # Errors
    /// It does not run here.
    pub fn new(python: &Path) -> Result<Self, EvalError> {
        for has_no_network in [true, false] {
            let runner = Self { python: python.to_owned(), has_no_network, longest: LONGEST };
            // Trying is the only sure test: whether a user may make a namespace is a setting of the
            // kernel, and `unshare` may be missing.
            if runner.passes("x = 1").is_ok_and(|passes| passes) {
                return Ok(runner);
            }
        }
        let what = format!("{} does not run a program here; expected Python 3", python.display());
        Err(EvalError::setting("--allow-code-execution", what))
    }

    /// Whether programs run without a network.
    pub fn has_no_network(&self) -> bool {
        self.has_no_network
    }

    /// Whether a program runs to its end without an exception, in time.
    pub(crate) fn passes(&self, program: &str) -> std::io::Result<bool> {
        let folder = tempfile::tempdir()?;
        let mut child = self.command(folder.path()).spawn()?;
        let mut input = child.stdin.take().expect("is piped");
        // A process that ended before it read everything has not passed.
        let _ = input.write_all(program.as_bytes());
        drop(input);
        self.ends_well(&mut child)
    }

    fn command(&self, folder: &Path) -> Command {
        // The shell, `unshare` and Python replace each other (`exec`), so one process is the
        // program itself: killing it leaves no Python behind.
        let mut command = Command::new("sh");
        command.args(["-c", LIMITS, "sh"]);
        if self.has_no_network {
            command.args(NO_NETWORK);
        }
        // `-I`: no user's site-packages and no modules from the folder.
        command.arg(&self.python).args(["-I", "-c", RUN]);
        // PATH alone stays, to find `unshare` and a Python that is given by name; tokens and keys
        // of the user's environment do not reach the program.
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).current_dir(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn ends_well(&self, child: &mut Child) -> std::io::Result<bool> {
        let begin = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                // Not 0: a program may end itself with that (`os._exit`) before its tests. A signal
                // has no code.
                return Ok(status.code() == Some(PASSED));
            }
            if begin.elapsed() > self.longest {
                child.kill()?;
                child.wait()?;
                return Ok(false);
            }
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a Python there is nothing to run; the message about a missing one is tested
    /// everywhere.
    #[test]
    fn programs_pass_that_end_well_and_in_time() {
        let error = CodeRunner::new("no-such-python".as_ref()).unwrap_err().to_string();
        assert!(error.contains("no-such-python does not run a program here"), "{error}");
        let Ok(runner) = CodeRunner::new("python3".as_ref()) else { return };
        for (program, passes) in [
            ("def f(x):\n    return x + 1\nassert f(1) == 2", true),
            ("assert 1 == 2", false),
            ("import sys\nsys.exit(0)", false),
            ("import os\nos._exit(0)", false),
            ("def f(:", false),
            ("x = bytearray(6 << 30)", false),
            ("import os\nassert 'HOME' not in os.environ and os.listdir() == []", true),
        ] {
            assert_eq!(runner.passes(program).unwrap(), passes, "{program}");
        }
        let short = CodeRunner { longest: Duration::from_millis(100), ..runner.clone() };
        assert!(!short.passes("while True: pass").unwrap());
        let connect = "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)";
        assert!(!runner.passes(connect).unwrap());
    }
}
