//! Downloads the files of a model at one commit, on the worker's thread.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use bitnet_format::folder::{
    CONFIG_FILE as CONFIG, INDEX_FILE as INDEX, MODEL_FILE as WEIGHTS, TOKENIZER_FILE as TOKENIZER,
};
use hf_hub::CacheRepo;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiRepo};

use super::error::HubError;
use super::request::{Request, metadata, no_repository, open};
use super::snapshot::read_shards;

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Bytes between two reports of progress.
const STEP: u64 = 1 << 20;

/// How far a file is.
pub(super) struct Event {
    pub(super) file: String,
    pub(super) done: u64,
    pub(super) total: u64,
}

/// Everything at one commit, so that a branch that moves meanwhile mixes no files. The branch's
/// name is written last: until then the cache does not claim to have the model.
pub(super) fn download_model(request: Request, events: Sender<Event>) -> Result<PathBuf, HubError> {
    let api = open(&request)?;
    let named = api.repo(request.model.at(&request.model.revision));
    // The config is asked for first: its answer names the commit, and the branch is not
    // asked again.
    let found = request.retried(|| metadata(&request, &api, &named, CONFIG));
    let commit = found.map_err(no_repository)?.commit_hash().to_owned();
    request.check_plain(CONFIG, "X-Repo-Commit", &commit)?;
    let here = request.settings.repository(&request.model, &commit);
    let there = api.repo(request.model.at(&commit));
    let snapshot = here.pointer_path(&commit);
    let download = Download { request, api, here, there, snapshot, events };
    download.all_files()?;
    let Download { request, snapshot, .. } = download;
    let named = request.settings.repository(&request.model, &request.model.revision);
    named.create_ref(&commit).map_err(|source| request.io(source))?;
    Ok(snapshot)
}

/// The worker's state, once the commit is known.
struct Download {
    request: Request,
    api: Api,
    here: CacheRepo,
    there: ApiRepo,
    snapshot: PathBuf,
    events: Sender<Event>,
}

impl Download {
    /// Small files first: what is wrong shows before gigabytes are moved.
    fn all_files(&self) -> Result<(), HubError> {
        self.file(CONFIG).map_err(no_repository)?;
        self.optional(TOKENIZER_CONFIG)?;
        self.file(TOKENIZER)?;
        if self.optional(WEIGHTS)? {
            return Ok(());
        }
        let model = self.request.model.clone();
        if !self.optional(INDEX)? {
            return Err(HubError::NoFile { model, file: format!("{WEIGHTS} or {INDEX}") });
        }
        let shards = read_shards(&self.snapshot.join(INDEX));
        let shards = shards.map_err(|reason| HubError::Index { model, reason })?;
        shards.iter().try_for_each(|shard| self.file(shard))
    }

    /// Whether the repository has `name`, which is then here.
    fn optional(&self, name: &str) -> Result<bool, HubError> {
        match self.file(name) {
            Ok(()) => Ok(true),
            Err(HubError::NoFile { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn file(&self, name: &str) -> Result<(), HubError> {
        if self.snapshot.join(name).is_file() {
            return Ok(());
        }
        self.request.retried(|| self.attempt(name))
    }

    fn attempt(&self, name: &str) -> Result<(), HubError> {
        let found = metadata(&self.request, &self.api, &self.there, name)?;
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
        fs_err::create_dir_all(&self.snapshot)?;
        let pointer = self.snapshot.join(name);
        // `snapshots/COMMIT/NAME` points to `blobs/ETAG`, relative so that the cache can be moved.
        #[cfg(unix)]
        return fs_err::os::unix::fs::symlink(Path::new("../../blobs").join(etag), pointer);
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
        let (model, file) = (self.request.model.clone(), name.to_owned());
        Err(HubError::Damaged { model, file, expected, got })
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
