//! What a killed process leaves in a run directory: files and folders under the temporary names of
//! [`bitnet_format::staged`]. Only those of a process that the directory's record names, and only
//! for names that a run writes, are ours to clean up.

use std::path::Path;

use crate::checkpoint;
use crate::recipe::ExportFormat;
use crate::run_record::RECORD_FILE;

/// A temporary name, `<target>.tmp-<process><suffix>`.
#[derive(Debug, PartialEq, Eq)]
struct Leftover<'a> {
    target: &'a str,
    process: u32,
    suffix: &'a str,
}

/// The suffix of an old folder that a new one was about to replace.
const OLD: &str = ".old";

impl<'a> Leftover<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (target, rest) = name.rsplit_once(".tmp-")?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (process, suffix) = rest.split_at(digits);
        let known = ["", OLD, "-gone"].contains(&suffix);
        Some(Self { target, process: process.parse().ok()?, suffix }).filter(|_| known)
    }

    /// The record itself names its writer only once it is written.
    fn is_of(&self, writers: &[u32], names: &[&str]) -> bool {
        let named = names.contains(&self.target) || checkpoint::step_of(self.target).is_some();
        self.is_of_record() || named && writers.contains(&self.process)
    }

    fn is_of_record(&self) -> bool {
        self.target == RECORD_FILE && self.suffix.is_empty()
    }
}

/// Whether a name is that of a record that was being written.
pub(crate) fn is_unfinished_record(name: &str) -> bool {
    Leftover::parse(name).is_some_and(|leftover| leftover.is_of_record())
}

/// Removes what `writers` left half-written in a run directory and its folder of exports. An old
/// version that had already made room for a new one gets its name back.
pub(crate) fn clean(run_dir: &Path, writers: &[u32], names: &[&str]) -> std::io::Result<()> {
    clean_folder(run_dir, writers, names)?;
    // `run_dir::EXPORT_DIR`; that file imports this one.
    let exports = run_dir.join("export");
    let formats: Vec<&str> = ExportFormat::all().map(ExportFormat::file_name).collect();
    if exports.is_dir() { clean_folder(&exports, writers, &formats) } else { Ok(()) }
}

fn clean_folder(folder: &Path, writers: &[u32], names: &[&str]) -> std::io::Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let leftover = name.to_str().and_then(Leftover::parse);
        let Some(leftover) = leftover.filter(|leftover| leftover.is_of(writers, names)) else {
            continue;
        };
        // Between the two renames of a publication (`staged`, steps 3 and 4) only the old version
        // is left, under this name; it goes back to where it was. Everything else is unfinished and
        // goes.
        let (path, target) = (entry.path(), folder.join(leftover.target));
        if leftover.suffix == OLD && target.symlink_metadata().is_err() {
            fs_err::rename(path, target)?;
        } else if entry.file_type()?.is_dir() {
            fs_err::remove_dir_all(path)?;
        } else {
            fs_err::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_our_own_processes_left_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let theirs = ["notes.tmp-7", "final.tmp-8", "final.tmp-", "final.tmp-7x", "step-1.tmp-7"];
        let ours = ["final.tmp-7", "step-000001.tmp-7", "step-000002.tmp-7-gone", "run.json.tmp-9"];
        for name in theirs.iter().chain(&ours).chain(&["export", "export/hf-packed.tmp-7"]) {
            fs_err::create_dir(root.path().join(name)).unwrap();
        }
        clean(root.path(), &[7], &["final"]).unwrap();
        let left = |name: &&str| root.path().join(name).exists();
        assert!(theirs.iter().all(left), "somebody else's are gone");
        assert!(!ours.iter().any(left), "our own are still there");
        assert!(!left(&"export/hf-packed.tmp-7"));
    }

    #[test]
    fn an_old_version_comes_back_where_no_new_one_took_its_place() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in ["best.tmp-7", "best.tmp-7.old", "final", "final.tmp-7.old"] {
            fs_err::create_dir(path(name)).unwrap();
        }
        fs_err::write(path("best.tmp-7.old/a"), "").unwrap();
        clean(root.path(), &[7], &["best", "final"]).unwrap();
        assert!(path("best/a").exists() && path("final").exists());
        assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 2);
    }
}
