//! Downloads files of a repository at one commit, on the worker's thread.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use hf_hub::CacheRepo;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiRepo};

use super::address::HubRepository;
use super::error::HubError;
use super::request::{Request, metadata};

/// Bytes between two reports of progress.
const STEP: u64 = 1 << 20;

/// How far a file is.
pub(super) struct Event {
    pub(super) file: String,
    pub(super) done: u64,
    pub(super) total: u64,
}

/// The files of one commit, some of them here.
pub(super) struct Download<'a> {
    request: &'a Request,
    api: &'a Api,
    here: CacheRepo,
    there: ApiRepo,
    pub(super) snapshot: PathBuf,
    events: &'a Sender<Event>,
}

impl<'a> Download<'a> {
    pub(super) fn new(
        request: &'a Request,
        api: &'a Api,
        repository: &HubRepository,
        commit: &str,
        events: &'a Sender<Event>,
    ) -> Self {
        let here = request.settings.repository(repository, commit);
        let there = api.repo(repository.at(commit));
        let snapshot = here.pointer_path(commit);
        Self { request, api, here, there, snapshot, events }
    }

    /// Makes the revision's name stand for the commit.
    pub(super) fn name(&self, repository: &HubRepository, commit: &str) -> Result<(), HubError> {
        let named = self.request.settings.repository(repository, &repository.revision);
        named.create_ref(commit).map_err(|source| self.request.io(source))
    }

    /// Whether the repository has `name`, which is then here.
    pub(super) fn optional(&self, name: &str) -> Result<bool, HubError> {
        match self.file(name) {
            Ok(()) => Ok(true),
            Err(HubError::NoFile { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn file(&self, name: &str) -> Result<(), HubError> {
        if self.snapshot.join(name).is_file() {
            return Ok(());
        }
        self.request.retried(|| self.attempt(name))
    }

    fn attempt(&self, name: &str) -> Result<(), HubError> {
        let found = metadata(self.request, self.api, &self.there, name)?;
        self.request.check_plain(name, "ETag", found.etag())?;
        // A blob is named by its ETag, so what lies there with this size is this file.
        let (blob, size) = (self.here.blob_path(found.etag()), found.size() as u64);
        self.tidy(name, &blob, size).map_err(|source| self.request.io(source))?;
        if length(&blob) == Some(size) {
            return self.link(name, found.etag()).map_err(|source| self.request.io(source));
        }
        let meter = Meter::new(self.events.clone());
        let done = self.there.download_with_progress(name, meter);
        done.map_err(|error| self.request.explain(name, error))?;
        self.check_size(name, &blob, size)
    }

    /// Removes what would stop `hf-hub`: a link to nothing, and a part that is complete already
    /// (stopped before it got its name) or too long.
    fn tidy(&self, name: &str, blob: &Path, size: u64) -> io::Result<()> {
        let (part, pointer) = (blob.with_extension("part"), self.snapshot.join(name));
        if pointer.is_symlink() {
            fs_err::remove_file(pointer)?;
        }
        match length(&part) {
            Some(length) if length == size => fs_err::rename(part, blob),
            Some(length) if length > size => fs_err::remove_file(part),
            _ => Ok(()),
        }
    }

    /// Links a blob that is here already, for instance from another commit.
    fn link(&self, name: &str, etag: &str) -> io::Result<()> {
        let pointer = self.snapshot.join(name);
        fs_err::create_dir_all(pointer.parent().unwrap_or(&self.snapshot))?;
        // `snapshots/COMMIT/NAME` points to `blobs/ETAG`, relative so that the cache can be moved.
        #[cfg(unix)]
        return {
            let up = "../".repeat(2 + name.matches('/').count());
            fs_err::os::unix::fs::symlink(Path::new(&up).join("blobs").join(etag), pointer)
        };
        #[cfg(not(unix))]
        return fs_err::hard_link(self.here.blob_path(etag), pointer);
    }

    /// A file of another length, as a server that ignores `Range` makes one, is not kept.
    fn check_size(&self, name: &str, blob: &Path, expected: u64) -> Result<(), HubError> {
        let pointer = self.snapshot.join(name);
        let got = length(&pointer).unwrap_or(0);
        if got == expected {
            return Ok(());
        }
        for path in [&pointer, blob] {
            fs_err::remove_file(path).ok();
        }
        let (repository, file) = (self.request.repository.clone(), name.to_owned());
        Err(HubError::Damaged { repository, file, expected, got })
    }
}

fn length(path: &Path) -> Option<u64> {
    fs_err::metadata(path).ok().map(|found| found.len())
}

/// Counts a file's bytes and reports them in steps.
struct Meter {
    events: Sender<Event>,
    file: String,
    total: u64,
    done: u64,
    reported: u64,
}

impl Meter {
    fn new(events: Sender<Event>) -> Self {
        Self { events, file: String::new(), total: 0, done: 0, reported: 0 }
    }

    fn report(&mut self) {
        self.reported = self.done;
        let event = Event { file: self.file.clone(), done: self.done, total: self.total };
        // The receiver is gone after an interruption.
        self.events.send(event).ok();
    }
}

impl Progress for Meter {
    fn init(&mut self, size: usize, filename: &str) {
        (self.file, self.total) = (filename.to_owned(), size as u64);
        (self.done, self.reported) = (0, 0);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        if self.done >= self.reported + STEP {
            self.report();
        }
    }

    fn finish(&mut self) {
        self.report();
    }
}
