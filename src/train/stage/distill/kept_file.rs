//! A large file of the cache that is made piece by piece and mapped when it is whole. What a killed process
//! wrote of it stays beside it, and the next one goes on there.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bitnet_format::FileBytes;
use bitnet_format::staged::{OnExisting, StagedFile};

use crate::data::FileLock;
use crate::distributed::{Comm, all_ok};
use crate::error::TrainError;
use crate::train::context::StepContext;

/// Bytes of the checksum that ends a finished file.
const HASH_BYTES: usize = 32;
/// Bytes that are sent to other machines at a time.
const SENT_AT_ONCE: usize = 1 << 24;

/// A file by its name and length, without the checksum.
pub(super) struct KeptFile {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// An unfinished file, locked.
pub(super) struct KeptWriter {
    path: PathBuf,
    file: fs_err::File,
    written: u64,
    hasher: blake3::Hasher,
    _lock: FileLock,
}

impl KeptFile {
    /// What is to be written, or `None` where the file is whole. Waits until no other process works on it.
    pub(super) fn begin(&self, context: StepContext) -> Result<Option<KeptWriter>, TrainError> {
        if self.open().is_ok() {
            return Ok(None);
        }
        fs_err::create_dir_all(self.path.parent().expect("a file of the cache"))?;
        let lock = self.path.with_extension("lock");
        let Some(lock) = FileLock::exclusive(&lock, &|| context.interrupted())? else {
            let stop = context.signals.stop().expect("only a signal interrupts");
            return Err(TrainError::Stopped(stop));
        };
        if self.open().is_ok() {
            return Ok(None); // made by another process meanwhile
        }
        let path = partial_path(&self.path);
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let written = file.metadata()?.len().min(self.bytes);
        let (path, hasher) = (self.path.clone(), blake3::Hasher::new());
        Ok(Some(KeptWriter { path, file, written, hasher, _lock: lock }))
    }

    /// The content of a whole file whose checksum is right.
    pub(super) fn open(&self) -> Result<FileBytes, TrainError> {
        let bytes = FileBytes::map(&self.path)?;
        let sound = bytes.split_at_checked(self.bytes as usize).is_some_and(|(values, hash)| {
            hash.len() == HASH_BYTES && blake3::hash(values).as_bytes() == hash
        });
        if sound {
            return Ok(bytes);
        }
        let what = format!("{}: not a whole file of the cache", self.path.display());
        Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what).into())
    }

    /// Gives the file to the ranks on machines that lack it.
    pub(super) fn share(&self, comm: &Comm) -> Result<(), TrainError> {
        let is_missing = !comm.is_first() && self.open().is_err();
        if comm.all_reduce_max(u8::from(is_missing)) == 0 {
            return Ok(());
        }
        let all = all_ok(comm, if comm.is_first() { self.open().map(Some) } else { Ok(None) })?;
        let staged = is_missing.then(|| StagedFile::beside(&self.path, OnExisting::Replace));
        let staged = all_ok(comm, staged.transpose().map_err(TrainError::from))?;
        let mut received = Ok(());
        for from in (0..self.bytes as usize + HASH_BYTES).step_by(SENT_AT_ONCE) {
            let part =
                all.as_ref().map(|all| all[from..all.len().min(from + SENT_AT_ONCE)].to_vec());
            let part = comm.broadcast(part.unwrap_or_default());
            if let Some(staged) = &staged {
                received = received.and_then(|()| append(staged.path(), &part));
            }
        }
        let published = received.map_err(TrainError::from).and_then(|()| match staged {
            Some(staged) => Ok(staged.publish()?),
            None => Ok(()),
        });
        all_ok(comm, published)
    }
}

fn append(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    fs_err::OpenOptions::new().create(true).append(true).open(path)?.write_all(bytes)
}

fn partial_path(path: &Path) -> PathBuf {
    path.with_extension("part")
}

impl KeptWriter {
    /// Bytes that are there already.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Leaves the first bytes of what is there, to go on behind them.
    pub(super) fn cut(&mut self, bytes: u64) -> Result<(), TrainError> {
        self.file.file_mut().set_len(bytes)?;
        self.file.seek(SeekFrom::End(0))?;
        self.written = bytes;
        self.hasher = blake3::Hasher::new();
        self.hasher.update(&FileBytes::map(&partial_path(&self.path))?);
        Ok(())
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(self.file.write_all(bytes)?)
    }

    /// Adds the checksum and gives the file its final name.
    pub(super) fn finish(mut self) -> Result<(), TrainError> {
        self.file.write_all(self.hasher.finalize().as_bytes())?;
        self.file.sync_all()?;
        let partial = partial_path(&self.path);
        Ok(fs_err::rename(partial, &self.path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::in_threads;
    use crate::platform::Signals;

    fn begin(file: &KeptFile) -> Option<KeptWriter> {
        let (device, comm, signals) = (crate::device::cpu(), Comm::single(), Signals::default());
        file.begin(StepContext { device: &device, comm: &comm, signals: &signals }).unwrap()
    }

    #[test]
    fn a_file_that_was_cut_off_goes_on_and_a_broken_one_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeptFile { path: dir.path().join("cache/a.top"), bytes: 10 };
        let mut writer = begin(&file).unwrap();
        writer.cut(0).unwrap();
        writer.append(b"abcdefg").unwrap();
        drop(writer); // killed
        assert!(file.open().is_err());
        let mut writer = begin(&file).unwrap();
        assert_eq!(writer.written(), 7);
        writer.cut(5).unwrap();
        writer.append(b"FGHIJ").unwrap();
        writer.finish().unwrap();
        assert_eq!(&file.open().unwrap()[..10], b"abcdeFGHIJ");
        assert!(begin(&file).is_none());
        let mut bytes = fs_err::read(&file.path).unwrap();
        bytes[3] ^= 1;
        fs_err::write(&file.path, bytes).unwrap();
        assert!(file.open().is_err());
        assert_eq!(begin(&file).unwrap().written(), 0);
    }

    #[test]
    fn a_rank_without_the_file_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let found = in_threads(3, |comm| {
            // Ranks 0 and 2 are on one machine, rank 1 on another.
            let machine = dir.path().join(format!("{}", comm.rank() % 2));
            let file = KeptFile { path: machine.join("a.top"), bytes: 3 };
            if comm.is_first() {
                let mut writer = begin(&file).unwrap();
                writer.cut(0).unwrap();
                writer.append(b"xyz").unwrap();
                writer.finish().unwrap();
            }
            comm.all_reduce_max(0);
            file.share(&comm).unwrap();
            file.open().unwrap()[..3].to_vec()
        });
        assert_eq!(found, [b"xyz"; 3]);
    }
}
