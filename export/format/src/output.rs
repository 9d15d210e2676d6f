//! Where a command writes: what may be replaced there, and by one process at a time.
//!
//! `staged` writes and publishes. A result that is already there is replaced only when the user
//! says so, only when it is a result of that kind, and never when the command reads from it.

use std::fs::TryLockError;
use std::path::{Path, PathBuf};

use same_file::Handle;

use crate::FormatError;
use crate::Shown;
use crate::adapter::{ADAPTER_CONFIG_FILE, ADAPTER_MODEL_FILE};
use crate::folder::CONFIG_FILE;
use crate::staged::{OnExisting, temporary_name};

/// A target that this process alone may write. Dropping it lets others.
#[derive(Debug)]
pub struct OutputClaim {
    path: PathBuf,
    // The lock belongs to the open file.
    _file: std::fs::File,
}

impl OutputClaim {
    /// Claims `target` for a command that reads `inputs`. `is_result` says whether something at a
    /// path is a result of this command, and nothing else.
    ///
    /// # Errors
    /// [`FormatError::Exists`] where the target is there and is not to be replaced,
    /// [`FormatError::Kept`] where it must not be, or where another process is writing it.
    pub fn of(
        target: &Path,
        on_existing: OnExisting,
        inputs: &[&Path],
        is_result: impl Fn(&Path) -> bool,
    ) -> Result<Self, FormatError> {
        if let Some(parent) = target.parent() {
            fs_err::create_dir_all(parent)?;
        }
        // The lock first: what is found at the target then stays as it is until we replace it.
        let claim = Self::lock(target)?;
        let there = target.symlink_metadata().is_ok();
        if there && on_existing == OnExisting::Refuse {
            return Err(FormatError::Exists { path: target.to_owned() });
        }
        let kept = |what: String| FormatError::Kept { path: target.to_owned(), what };
        if let Some(input) = inputs.iter().find(|input| holds(target, input)) {
            return Err(kept(format!("it holds {}, which is read", input.shown())));
        }
        // Renaming would replace the link and leave what it names as it was.
        if target.is_symlink() {
            return Err(kept("it is a link; expected what it names, or a free name".to_owned()));
        }
        if there && !is_result(target) {
            return Err(kept("it is no earlier result of this command, or holds more".to_owned()));
        }
        Ok(claim)
    }

    fn lock(target: &Path) -> Result<Self, FormatError> {
        let path = temporary_name(target, "lock");
        loop {
            let mut how = std::fs::OpenOptions::new();
            how.write(true).create(true).truncate(false);
            let file = how.open(&path).map_err(|error| named(&path, &error))?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => return Ok(Self { path, _file: file }),
                // The one before removed its lock file between our opening and locking it.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let what = "another process is writing it".to_owned();
                    return Err(FormatError::Kept { path: target.to_owned(), what });
                }
                Err(TryLockError::Error(error)) => return Err(named(&path, &error).into()),
            }
        }
    }
}

impl Drop for OutputClaim {
    fn drop(&mut self) {
        // Best effort: an empty lock file that stays does no harm.
        let _ = fs_err::remove_file(&self.path);
    }
}

fn named(path: &Path, error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("{}: {error}", path.shown()))
}

/// Whether something is a model as `export` and `init` write it: a GGUF file, or a folder of a
/// model's files and nothing else. An empty file or folder counts; nothing is lost with it.
pub fn is_model(path: &Path) -> bool {
    let Ok(entries) = fs_err::read_dir(path) else { return is_gguf(path) };
    let names: Vec<_> = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .map(Result::unwrap_or_default)
        .collect();
    let model = names.iter().any(|name| name == CONFIG_FILE);
    names.is_empty() || model && names.iter().all(|name| is_model_file(&path.join(name), name))
}

/// Whether something is an adapter's folder with nothing else in it, or empty.
pub fn is_adapter(path: &Path) -> bool {
    let Ok(entries) = fs_err::read_dir(path) else { return false };
    let known = [ADAPTER_CONFIG_FILE, ADAPTER_MODEL_FILE];
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    names.flatten().all(|name| known.iter().any(|known| name == **known))
}

fn is_gguf(path: &Path) -> bool {
    use std::io::Read;
    let mut start = Vec::new();
    let read = crate::input::open_file(path)
        .is_ok_and(|file| file.take(4).read_to_end(&mut start).is_ok());
    read && (start.is_empty() || start == *b"GGUF")
}

fn is_model_file(path: &Path, name: &str) -> bool {
    // A folder with any other file is not replaced: somebody put it there.
    let known = [
        CONFIG_FILE,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ];
    let weights = name.starts_with("model") && name.ends_with(".safetensors");
    path.is_file() && (weights || known.contains(&name))
}

/// Whether a target is an input, holds it, or is a file of it; links are followed.
fn holds(target: &Path, input: &Path) -> bool {
    // What is not there has no real path, and holds nothing.
    let (Ok(target), Ok(input)) = (target.canonicalize(), input.canonicalize()) else {
        return false;
    };
    let mut files = fs_err::read_dir(&input).into_iter().flatten().flatten();
    input.starts_with(&target)
        || same_file(&target, &input)
        || files.any(|entry| same_file(&target, &entry.path()))
}

/// Whether two paths name one file: a hard link is another name of it.
fn same_file(one: &Path, two: &Path) -> bool {
    same_file::is_same_file(one, two).unwrap_or(false)
}

/// Whether an open file is the one that has this name now.
fn is_at(file: &std::fs::File, path: &Path) -> bool {
    let open = file.try_clone().and_then(Handle::from_file);
    matches!((open, Handle::from_path(path)), (Ok(open), Ok(named)) if open == named)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            place.model("input");
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn model(&self, name: &str) {
            fs_err::create_dir_all(self.path(name)).unwrap();
            for file in [CONFIG_FILE, "model.safetensors"] {
                fs_err::write(self.path(name).join(file), "{}").unwrap();
            }
        }

        fn claim(&self, name: &str, on_existing: OnExisting) -> Result<OutputClaim, FormatError> {
            OutputClaim::of(&self.path(name), on_existing, &[&self.path("input")], is_model)
        }

        /// Why a target is not replaced.
        fn kept(&self, name: &str) -> String {
            match self.claim(name, OnExisting::Replace) {
                Err(FormatError::Kept { what, .. }) => what,
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_free_target_and_an_earlier_result_may_be_written() {
        let place = Place::new();
        place.model("old");
        fs_err::create_dir(place.path("empty")).unwrap();
        fs_err::write(place.path("old.gguf"), "GGUF....").unwrap();
        for name in ["new", "deep/new", "input/new", "old", "empty", "old.gguf"] {
            drop(place.claim(name, OnExisting::Replace).unwrap());
            let refused = place.claim(name, OnExisting::Refuse);
            let there = place.path(name).exists();
            assert_eq!(matches!(refused, Err(FormatError::Exists { .. })), there, "{name}");
        }
        let left = fs_err::read_dir(place.0.path()).unwrap().flatten();
        assert!(
            left.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains("lock"))
        );
    }

    #[test]
    fn an_input_and_what_holds_it_are_kept() {
        let place = Place::new();
        for name in ["input", ".", "input/model.safetensors", "input/../input"] {
            assert!(place.kept(name).contains("which is read"), "{name}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(place.path("input"), place.path("link")).unwrap();
            let file = place.path("input/model.safetensors");
            fs_err::hard_link(file, place.path("hard")).unwrap();
            for name in ["link", "hard"] {
                assert!(place.kept(name).contains("which is read"), "{name}");
            }
            // What a link names is a result, and the link would be replaced instead of it.
            place.model("old");
            std::os::unix::fs::symlink(place.path("old"), place.path("to-old")).unwrap();
            assert!(place.kept("to-old").contains("it is a link"));
        }
    }

    #[test]
    fn files_that_are_not_results_are_kept() {
        let place = Place::new();
        place.model("notes");
        fs_err::write(place.path("notes/notes.txt"), "mine").unwrap();
        place.model("run");
        fs_err::create_dir(place.path("run/checkpoints")).unwrap();
        fs_err::create_dir_all(place.path("folder/inside")).unwrap();
        fs_err::write(place.path("thesis.txt"), "mine").unwrap();
        for name in ["notes", "run", "folder", "thesis.txt"] {
            assert!(place.kept(name).contains("no earlier result"), "{name}");
        }
    }

    #[test]
    fn an_earlier_adapter_may_be_replaced_and_nothing_else() {
        let place = Place::new();
        place.model("model");
        for (name, files) in [
            ("adapter", vec![ADAPTER_CONFIG_FILE, ADAPTER_MODEL_FILE]),
            ("notes", vec![ADAPTER_CONFIG_FILE, "notes.txt"]),
            ("empty", vec![]),
        ] {
            fs_err::create_dir(place.path(name)).unwrap();
            for file in files {
                fs_err::write(place.path(name).join(file), "{}").unwrap();
            }
        }
        let found = ["adapter", "empty", "notes", "model", "absent"];
        let found = found.map(|name| is_adapter(&place.path(name)));
        assert_eq!(found, [true, true, false, false, false]);
    }

    #[test]
    fn of_many_at_once_one_has_the_target() {
        let place = Place::new();
        let first = place.claim("new", OnExisting::Refuse).unwrap();
        assert_eq!(place.kept("new"), "another process is writing it");
        drop(place.claim("other", OnExisting::Refuse).unwrap());
        drop(first);
        assert!(place.claim("new", OnExisting::Refuse).is_ok());
    }
}
