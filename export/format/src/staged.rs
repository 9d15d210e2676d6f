//! Atomic publishing: directories and files that exist under their final name only when complete.
//!
//! ```text
//! 1. write   <name>.tmp-<pid>          beside the target: a rename stays within the file system
//! 2. fsync   every file, then every directory of the tree
//! 3. rename  <name> → <name>.tmp-<pid>.old      only where an old directory is replaced
//! 4. rename  <name>.tmp-<pid> → <name>
//! 5. fsync   the parent, so that the name survives a power cut
//! 6. remove  <name>.tmp-<pid>.old
//! ```
//!
//! Flushing comes before renaming: otherwise a power cut could leave the final name with empty
//! files. A process that dies before step 3 leaves `<name>.tmp-<pid>` and the old target as it
//! was. A file is replaced by a single rename; a directory cannot be, so between steps 3 and 4
//! neither version has the final name, and both are complete beside it.

use std::path::{Path, PathBuf};

use crate::FormatError;

/// What to do with a target that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExisting {
    /// Leave it alone and report [`FormatError::Exists`].
    Refuse,
    /// Put the new content in its place.
    Replace,
}

/// A directory under construction.
#[derive(Debug)]
pub struct StagedDir {
    staged: PathBuf,
    target: PathBuf,
    on_existing: OnExisting,
    published: bool,
}

impl StagedDir {
    /// Opens an empty directory beside `target`.
    pub fn beside(target: &Path, on_existing: OnExisting) -> Result<Self, FormatError> {
        refuse_existing(target, on_existing)?;
        let staged = own_name(target);
        if let Some(parent) = target.parent() {
            fs_err::create_dir_all(parent)?;
        }
        // A leftover under this name is of an earlier process with the same id, and is gone.
        remove_any(&staged)?;
        fs_err::create_dir(&staged)?;
        Ok(Self { staged, target: target.to_owned(), on_existing, published: false })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.staged
    }

    /// Flushes every file and gives the directory its final name.
    pub fn publish(mut self) -> Result<(), FormatError> {
        sync_tree(&self.staged)?;
        // Asked again: something may have appeared while the content was being written.
        refuse_existing(&self.target, self.on_existing)?;
        // A directory cannot be renamed onto a full one: step the old one aside first.
        let old = self.staged.with_added_extension("old");
        let had_old = self.target.exists();
        if had_old {
            fs_err::rename(&self.target, &old)?;
        }
        if let Err(error) = fs_err::rename(&self.staged, &self.target) {
            // The old version gets its name back.
            if had_old {
                fs_err::rename(&old, &self.target)?;
            }
            return Err(error.into());
        }
        self.published = true;
        sync_parent(&self.target)?;
        remove_any(&old)?;
        Ok(())
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: a leftover has a temporary name and does no harm.
            let _ = remove_any(&self.staged);
        }
    }
}

/// A file under construction.
#[derive(Debug)]
pub struct StagedFile {
    staged: PathBuf,
    target: PathBuf,
    on_existing: OnExisting,
}

impl StagedFile {
    /// Chooses a temporary name beside `target`; the caller creates the file there.
    pub fn beside(target: &Path, on_existing: OnExisting) -> Result<Self, FormatError> {
        refuse_existing(target, on_existing)?;
        refuse_directory(target)?;
        if let Some(parent) = target.parent() {
            fs_err::create_dir_all(parent)?;
        }
        let staged = own_name(target);
        remove_any(&staged)?;
        Ok(Self { staged, target: target.to_owned(), on_existing })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.staged
    }

    /// Flushes the file and gives it its final name.
    pub fn publish(self) -> Result<(), FormatError> {
        fs_err::File::open(&self.staged)?.sync_all()?;
        refuse_existing(&self.target, self.on_existing)?;
        fs_err::rename(&self.staged, &self.target)?;
        Ok(sync_parent(&self.target)?)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // Best effort, and nothing is there after publishing.
        let _ = remove_any(&self.staged);
    }
}

/// Writes one file beside its target, flushes it and renames it into place.
pub fn write_file(target: &Path, bytes: &[u8], on_existing: OnExisting) -> Result<(), FormatError> {
    refuse_existing(target, on_existing)?;
    if let Some(parent) = target.parent() {
        fs_err::create_dir_all(parent)?;
    }
    let staged = own_name(target);
    let written = fs_err::write(&staged, bytes)
        .and_then(|()| fs_err::File::open(&staged)?.sync_all())
        .and_then(|()| fs_err::rename(&staged, target));
    if let Err(error) = written {
        let _ = remove_any(&staged);
        return Err(error.into());
    }
    Ok(sync_parent(target)?)
}

/// Removes a directory so that it is never seen half removed: it is renamed first.
pub fn retire(dir: &Path) -> std::io::Result<()> {
    let mut nameless = own_name(dir).into_os_string();
    nameless.push("-gone");
    fs_err::rename(dir, &nameless)?;
    fs_err::remove_dir_all(PathBuf::from(nameless))
}

fn refuse_existing(target: &Path, on_existing: OnExisting) -> Result<(), FormatError> {
    if on_existing == OnExisting::Refuse && target.symlink_metadata().is_ok() {
        return Err(FormatError::Exists { path: target.to_owned() });
    }
    Ok(())
}

/// A file does not take the place of a directory.
fn refuse_directory(target: &Path) -> Result<(), FormatError> {
    if target.is_dir() {
        return Err(FormatError::container(target, "is a directory; expected a file name"));
    }
    Ok(())
}

fn own_name(target: &Path) -> PathBuf {
    temporary_name(target, &std::process::id().to_string())
}

/// A name beside `target` that no result has.
pub(crate) fn temporary_name(target: &Path, kind: &str) -> PathBuf {
    let name = target.file_name().map_or_else(|| "out".into(), |name| name.to_string_lossy());
    target.with_file_name(format!("{name}.tmp-{kind}"))
}

fn sync_tree(dir: &Path) -> std::io::Result<()> {
    for entry in fs_err::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            fs_err::File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

fn sync_parent(target: &Path) -> std::io::Result<()> {
    match target.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Directories can be opened and flushed on Unix; elsewhere the file system does it.
fn sync_dir(dir: &Path) -> std::io::Result<()> {
    if cfg!(unix) { fs_err::File::open(dir)?.sync_all() } else { Ok(()) }
}

fn remove_any(path: &Path) -> std::io::Result<()> {
    match path.symlink_metadata() {
        Err(_) => Ok(()),
        Ok(meta) if meta.is_dir() => fs_err::remove_dir_all(path),
        Ok(_) => fs_err::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(target: &Path, content: &str, on_existing: OnExisting) -> Result<(), FormatError> {
        let dir = StagedDir::beside(target, on_existing)?;
        fs_err::write(dir.path().join("a"), content)?;
        dir.publish()
    }

    #[test]
    fn a_directory_appears_only_when_published() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        let dir = StagedDir::beside(&target, OnExisting::Refuse).unwrap();
        fs_err::write(dir.path().join("a"), "1").unwrap();
        assert!(!target.exists());
        drop(dir);
        assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 0, "nothing is left behind");
        stage(&target, "1", OnExisting::Refuse).unwrap();
        assert_eq!(fs_err::read_to_string(target.join("a")).unwrap(), "1");
    }

    #[test]
    fn an_existing_target_is_kept_unless_replaced() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        stage(&target, "old", OnExisting::Refuse).unwrap();
        let refused = stage(&target, "new", OnExisting::Refuse);
        assert!(matches!(refused, Err(FormatError::Exists { .. })));
        assert_eq!(fs_err::read_to_string(target.join("a")).unwrap(), "old");
        stage(&target, "new", OnExisting::Replace).unwrap();
        assert_eq!(fs_err::read_to_string(target.join("a")).unwrap(), "new");
        assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_staged_file_appears_only_when_published() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        let stage = |content: &str, on_existing| {
            let file = StagedFile::beside(&target, on_existing)?;
            fs_err::write(file.path(), content)?;
            Ok::<_, FormatError>(file)
        };
        drop(stage("1", OnExisting::Refuse).unwrap());
        assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 0, "nothing is left behind");
        stage("1", OnExisting::Refuse).unwrap().publish().unwrap();
        assert!(matches!(stage("2", OnExisting::Refuse), Err(FormatError::Exists { .. })));
        drop(stage("2", OnExisting::Replace).unwrap());
        assert_eq!(fs_err::read(&target).unwrap(), b"1", "the old target is intact");
        stage("3", OnExisting::Replace).unwrap().publish().unwrap();
        assert_eq!(fs_err::read(&target).unwrap(), b"3");
        let root = root.path();
        assert_eq!(fs_err::read_dir(root).unwrap().count(), 1);
        assert!(StagedFile::beside(root, OnExisting::Replace).is_err());
    }

    #[test]
    fn a_retired_directory_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        stage(&target, "1", OnExisting::Refuse).unwrap();
        retire(&target).unwrap();
        assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 0);
        assert!(retire(&target).is_err());
    }

    #[test]
    fn a_file_is_replaced_in_one_step() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("deep/file");
        write_file(&target, b"1", OnExisting::Refuse).unwrap();
        assert!(write_file(&target, b"2", OnExisting::Refuse).is_err());
        write_file(&target, b"3", OnExisting::Replace).unwrap();
        assert_eq!(fs_err::read(&target).unwrap(), b"3");
    }
}
