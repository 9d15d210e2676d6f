//! What is left of a bug: panics are kept as they happen, and written to `crash.json` by the
//! program that gives up over one. Most panics never get that far: a library's are caught and
//! become errors.

use crate::Shown;
use std::backtrace::Backtrace;
use std::io::Write;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

/// The last panics, oldest first: a panic of a worker thread becomes one of the thread that waits.
static PANICS: Mutex<Vec<KeptPanic>> = Mutex::new(Vec::new());
/// How many are kept.
const KEPT: usize = 8;

/// A panic as it happened.
#[derive(Debug)]
struct KeptPanic {
    message: String,
    place: String,
    thread: String,
    backtrace: Backtrace,
}

impl KeptPanic {
    fn of(info: &PanicHookInfo) -> Self {
        Self {
            message: info.payload_as_str().unwrap_or_default().to_owned(),
            place: info.location().map(ToString::to_string).unwrap_or_default(),
            thread: std::thread::current().name().unwrap_or_default().to_owned(),
            backtrace: Backtrace::force_capture(),
        }
    }

    fn json(&self) -> Value {
        json!({
            "message": self.message, "place": self.place, "thread": self.thread,
            "backtrace": self.backtrace.to_string().lines().collect::<Vec<_>>(),
        })
    }
}

/// From now on panics are kept, and not printed.
pub fn keep_panics() {
    std::panic::set_hook(Box::new(|info| {
        // A hook that panicked itself would end the process before anything is written.
        let mut kept = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(KeptPanic::of(info));
    }));
}

/// The program that gives up.
#[derive(Clone, Copy, Debug)]
pub struct CrashedProgram {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Where bugs are reported.
    pub repository: &'static str,
}

impl CrashedProgram {
    /// Writes `crash.json` with `facts` into `folder`, or into the folder for temporary files where
    /// there is none; the line that tells the user.
    pub fn report(&self, folder: Option<&Path>, facts: &Value) -> String {
        let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
        let command: Vec<String> =
            std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let report = json!({
            "program": self.name, "version": self.version, "command": command, "facts": facts,
            "panics": panics.iter().map(KeptPanic::json).collect::<Vec<_>>(),
        });
        let text = format!("{report:#}\n");
        let with = match write(folder, self.name, &text) {
            Some(path) => format!("with {}", path.shown()),
            None => "with your command line (crash.json could not be written)".to_owned(),
        };
        let Self { name, version, repository } = self;
        format!("this is a bug in {name} {version}; please report it at {repository}/issues {with}")
    }
}

fn write(folder: Option<&Path>, program: &str, text: &str) -> Option<PathBuf> {
    if let Some(path) = folder.map(|folder| folder.join("crash.json"))
        && fs_err::write(&path, text).is_ok()
    {
        return Some(path);
    }
    let name = format!("{program}-{}-crash.json", std::process::id());
    let path = std::env::temp_dir().join(name);
    // The folder is everybody's: a new file only, so that no link of somebody else is followed.
    let mut file = fs_err::File::create_new(&path).ok()?;
    file.write_all(text.as_bytes()).ok()?;
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_any_thread_is_written_with_what_a_report_needs() {
        let before = std::panic::take_hook();
        keep_panics();
        let worker = std::thread::Builder::new().name("worker 3".to_owned());
        let ended = worker.spawn(|| panic!("seven of {}", 9)).unwrap().join();
        std::panic::set_hook(before);
        assert!(ended.is_err());
        let folder = tempfile::tempdir().unwrap();
        let program = CrashedProgram { name: "p", version: "1.2", repository: "https://r" };
        let line = program.report(Some(folder.path()), &json!({"step": 4}));
        assert!(!line.contains('\n') && line.contains("this is a bug in p 1.2"), "{line}");
        assert!(line.contains("https://r/issues") && line.contains("crash.json"), "{line}");
        let text = fs_err::read(folder.path().join("crash.json")).unwrap();
        let report: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&report["version"], &report["facts"]["step"]), (&json!("1.2"), &json!(4)));
        let panics = report["panics"].as_array().unwrap();
        let ours = panics.iter().find(|panic| panic["message"] == "seven of 9").unwrap();
        assert_eq!(ours["thread"], "worker 3");
        assert!(ours["place"].as_str().unwrap().contains("crash.rs"), "{ours}");
        assert!(!ours["backtrace"].as_array().unwrap().is_empty());
    }

    #[test]
    fn without_a_folder_the_report_goes_to_the_temporary_files() {
        let program = CrashedProgram { name: "test-crash", version: "1", repository: "r" };
        let line = program.report(Some(Path::new("/no/such/folder")), &Value::Null);
        let path = line.rsplit_once("with ").unwrap().1;
        assert!(path.ends_with("crash.json"), "{line}");
        fs_err::remove_file(path).unwrap();
    }
}
