//! A file of the cache that holds what a frozen model says of a set, item after item: the reference of DPO, or
//! a teacher. All ranks compute it round after round, and it is mapped when it is whole. What a killed process
//! wrote of it stays beside it, and the next one goes on there.
//!
//! The file name is a hash of everything that the values depend on; BLAKE3 of all values ends the file.

use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bitnet_format::FileBytes;
use bitnet_format::staged::{OnExisting, StagedFile};
use rayon::prelude::*;

use crate::data::{FileLock, LoaderSettings, TokenCache};
use crate::distributed::{Comm, all_ok, first_only};
use crate::error::TrainError;
use crate::recipe::Recipe;
use crate::train::context::StepContext;

/// Bytes of the checksum that ends a finished file.
const HASH_BYTES: usize = 32;
/// Bytes that are sent to other machines at a time.
const SENT_AT_ONCE: usize = 1 << 24;

/// What kept values depend on.
#[derive(Clone, Debug)]
pub(super) struct KeptKey {
    /// Data, tokenizer and template: the token cache's key.
    data: String,
    /// Hash of the model that says them.
    model: String,
    /// Everything else that decides the rows and the arithmetic.
    rows: String,
}

impl KeptKey {
    pub(super) fn new(
        cache: &TokenCache,
        model: &str,
        recipe: &Recipe,
        LoaderSettings { seq_len, policy, .. }: LoaderSettings,
    ) -> Self {
        let (precision, device) = (recipe.train.precision.name(), &recipe.device);
        let rows = format!("{seq_len} {policy:?} {precision} {device}");
        Self { data: cache.key().to_owned(), model: model.to_owned(), rows }
    }

    /// A hash of this and of `more`; `purpose` keeps those of one kind of file from all others.
    pub(super) fn hash(&self, purpose: &str, more: &[&str]) -> String {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        let own = [self.data.as_str(), &self.model, &self.rows];
        for part in own.iter().chain(more).chain(&[env!("CARGO_PKG_VERSION")]) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// A file by its name and what is in it.
pub(super) struct KeptFile {
    pub(super) path: PathBuf,
    /// Where each item begins, and the end.
    pub(super) starts: Vec<u64>,
}

/// How items are computed.
pub(super) struct ItemComputation<F> {
    /// The bytes of an item.
    pub(super) of: F,
    /// Whether all threads compute items side by side.
    pub(super) in_parallel: bool,
    /// Items of a thread in a round, after each of which the file grows.
    pub(super) at_once: usize,
}

/// Who computes, and who gets the progress: items that are done, and all.
#[derive(Clone, Copy)]
pub(super) struct KeptWork<'a> {
    pub(super) context: StepContext<'a>,
    pub(super) progress: &'a dyn Fn(u64, u64),
}

/// An unfinished file, locked.
struct KeptWriter {
    path: PathBuf,
    file: fs_err::File,
    written: u64,
    hasher: blake3::Hasher,
    _lock: FileLock,
}

/// A file when work on it begins.
enum BegunFile {
    Whole(FileBytes),
    Unfinished(Box<KeptWriter>),
}

impl KeptFile {
    /// Lets all ranks compute what the file of rank 0 lacks; its content, on that rank. `computation` is
    /// called only when something is left to compute.
    pub(super) fn complete<F: Fn(u64) -> Vec<u8> + Sync>(
        &self,
        work: KeptWork,
        computation: impl FnOnce() -> Result<ItemComputation<F>, TrainError>,
    ) -> Result<Option<FileBytes>, TrainError> {
        let comm = work.context.comm;
        let begun = first_only(comm, || self.begin(work.context))?;
        // Rank 0 alone knows the file; all ranks need the same number to compute the same rounds.
        let done = match &begun {
            Some(BegunFile::Unfinished(writer)) => self.items_before(writer.written),
            _ => self.items(),
        };
        let done = comm.broadcast(done.to_le_bytes().to_vec());
        let done = u64::from_le_bytes(done.try_into().expect("eight bytes"));
        let (whole, mut writer) = match begun {
            Some(BegunFile::Whole(bytes)) => (Some(bytes), None),
            Some(BegunFile::Unfinished(writer)) => (None, Some(writer)),
            None => (None, None),
        };
        // A kill may have cut the last item in half: it goes, and work continues at a whole one.
        let kept = self.starts[done as usize];
        all_ok(comm, writer.as_mut().map_or(Ok(()), |writer| writer.cut(kept)))?;
        if done < self.items() {
            let computation = all_ok(comm, computation())?;
            self.compute(work, &computation, done, writer.as_deref_mut())?;
        }
        first_only(comm, || match (whole, writer) {
            (Some(bytes), _) => Ok(bytes),
            (None, Some(writer)) => writer.finish().and_then(|()| self.open()),
            (None, None) => unreachable!("the first rank has the file or writes it"),
        })
    }

    /// Computes items from number `done` on, each rank its share of a round.
    fn compute<F: Fn(u64) -> Vec<u8> + Sync>(
        &self,
        KeptWork { context, progress }: KeptWork,
        computation: &ItemComputation<F>,
        done: u64,
        mut writer: Option<&mut KeptWriter>,
    ) -> Result<(), TrainError> {
        let (comm, all) = (context.comm, self.items());
        let &ItemComputation { ref of, in_parallel, at_once } = computation;
        let threads = if in_parallel { rayon::current_num_threads().min(255) as u8 } else { 1 };
        // All ranks must make rounds of the same size, however many threads each has.
        let threads = usize::from(comm.all_reduce_max(threads));
        let at_once = (threads * comm.world_size() * at_once) as u64;
        let mut from = done;
        while from < all {
            let round = (all - from).min(at_once);
            let share = comm.share(round as usize);
            // A round's items are dealt out in blocks, so that joining what the ranks send gives
            // them in order.
            let own = from + share.start as u64..from + share.end as u64;
            let own = (!context.interrupted()).then(|| -> Vec<Vec<u8>> {
                if in_parallel {
                    own.into_par_iter().map(of).collect()
                } else {
                    own.map(of).collect()
                }
            });
            let own = context.finish(own)?;
            let of_all = comm.gather(&own.concat()).concat();
            // After each round the file is longer: a kill loses one round at most.
            let written = writer.as_mut().map_or(Ok(()), |writer| writer.append(&of_all));
            all_ok(comm, written)?;
            from += round;
            progress(from, all);
        }
        Ok(())
    }

    fn items(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    /// Whole items in `bytes` bytes.
    fn items_before(&self, bytes: u64) -> u64 {
        self.starts.partition_point(|&start| start <= bytes) as u64 - 1
    }

    /// Where the values of the file lie in it.
    fn values(&self) -> Range<usize> {
        0..*self.starts.last().expect("there is the end") as usize
    }

    /// The file, or what is to be written of it. Waits until no other process works on it.
    fn begin(&self, context: StepContext) -> Result<BegunFile, TrainError> {
        if let Ok(bytes) = self.open() {
            return Ok(BegunFile::Whole(bytes));
        }
        fs_err::create_dir_all(self.path.parent().expect("a file of the cache"))?;
        let lock = self.path.with_extension("lock");
        let Some(lock) = FileLock::exclusive(&lock, &|| context.interrupted())? else {
            let stop = context.signals.stop().expect("only a signal interrupts");
            return Err(TrainError::Stopped(stop));
        };
        if let Ok(bytes) = self.open() {
            return Ok(BegunFile::Whole(bytes)); // made by another process meanwhile
        }
        let path = partial_path(&self.path);
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        // Not truncated when opened: this is where work is taken up again.
        let written = file.metadata()?.len().min(self.values().end as u64);
        let (path, hasher) = (self.path.clone(), blake3::Hasher::new());
        let writer = KeptWriter { path, file, written, hasher, _lock: lock };
        Ok(BegunFile::Unfinished(Box::new(writer)))
    }

    /// The content of a whole file whose checksum is right.
    pub(super) fn open(&self) -> Result<FileBytes, TrainError> {
        let bytes = FileBytes::map(&self.path)?;
        let sound = bytes.split_at_checked(self.values().end).is_some_and(|(values, hash)| {
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
        for from in (0..self.values().end + HASH_BYTES).step_by(SENT_AT_ONCE) {
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
    /// Leaves the first bytes of what is there, to continue after them.
    fn cut(&mut self, bytes: u64) -> Result<(), TrainError> {
        self.file.file_mut().set_len(bytes)?;
        self.file.seek(SeekFrom::End(0))?;
        self.written = bytes;
        self.hasher = blake3::Hasher::new();
        // The hash covers the file from its beginning, so what a former process wrote is read once
        // more.
        self.hasher.update(&FileBytes::map(&partial_path(&self.path))?);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(self.file.write_all(bytes)?)
    }

    /// Adds the checksum and gives the file its final name.
    fn finish(mut self) -> Result<(), TrainError> {
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
        let context = StepContext { device: &device, comm: &comm, signals: &signals };
        match file.begin(context).unwrap() {
            BegunFile::Unfinished(writer) => Some(*writer),
            BegunFile::Whole(_) => None,
        }
    }

    #[test]
    fn a_file_that_was_cut_off_goes_on_and_a_broken_one_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeptFile { path: dir.path().join("cache/a.top"), starts: vec![0, 5, 10] };
        let mut writer = begin(&file).unwrap();
        writer.cut(0).unwrap();
        writer.append(b"abcdefg").unwrap();
        drop(writer); // killed
        assert!(file.open().is_err());
        let mut writer = begin(&file).unwrap();
        assert_eq!((writer.written, file.items_before(7)), (7, 1));
        writer.cut(5).unwrap();
        writer.append(b"FGHIJ").unwrap();
        writer.finish().unwrap();
        assert_eq!(&file.open().unwrap()[..10], b"abcdeFGHIJ");
        assert!(begin(&file).is_none());
        let mut bytes = fs_err::read(&file.path).unwrap();
        bytes[3] ^= 1;
        fs_err::write(&file.path, bytes).unwrap();
        assert!(file.open().is_err());
        assert_eq!(begin(&file).unwrap().written, 0);
    }

    #[test]
    fn a_rank_without_the_file_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let found = in_threads(3, |comm| {
            // Ranks 0 and 2 are on one machine, rank 1 on another.
            let machine = dir.path().join(format!("{}", comm.rank() % 2));
            let file = KeptFile { path: machine.join("a.top"), starts: vec![0, 3] };
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
