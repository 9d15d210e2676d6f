//! `model.init = "hf:owner/name[@revision]"`: a model of the Hugging Face hub, brought into the
//! standard cache (`blobs`, `snapshots`, `refs`), which other tools share.
//!
//! A complete model in the cache is used without any request, so that a run and its continuation
//! see the same weights. What is missing is downloaded by `hf-hub`
//! on a thread of its own; this module decides what is needed, checks every name before it becomes
//! a path, and handles what `hf-hub` leaves open (a token in the environment, a complete but
//! unnamed download, retries, a file's size, interruption).

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use bitnet_format::folder::{
    CONFIG_FILE as CONFIG, INDEX_FILE as INDEX, MODEL_FILE as WEIGHTS, TOKENIZER_FILE as TOKENIZER,
};
use bitnet_format::shards::shard_files;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

#[cfg(test)]
mod tests;

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

const ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_REVISION: &str = "main";
/// How often one file is tried before its download is given up.
const ATTEMPTS: u32 = 4;
/// How long an interruption may go unnoticed.
const TICK: Duration = Duration::from_millis(100);
/// Bytes between two reports of progress.
const STEP: u64 = 1 << 20;

/// `hf:owner/name[@revision]`, parsed and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit; `main` when none was named.
    pub revision: String,
}

impl HubModel {
    /// Reads `text`; `None` when it does not start with `hf:`, and so is a folder.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        let rest = text.strip_prefix("hf:")?;
        let (repository, revision) = rest.split_once('@').unwrap_or((rest, DEFAULT_REVISION));
        let named = repository.split('/').count() == 2 && repository.split('/').all(is_plain);
        let model = Self { repository: repository.to_owned(), revision: revision.to_owned() };
        Some(if named && revision.split('/').all(is_plain) {
            Ok(model)
        } else {
            Err(format!("not a model; expected \"hf:owner/name[@revision]\", got {text:?}"))
        })
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repository.clone(), RepoType::Model, revision.to_owned())
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repository)?;
        match self.revision.as_str() {
            DEFAULT_REVISION => Ok(()),
            revision => write!(f, "@{revision}"),
        }
    }
}

/// Why a model of the hub is not here.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No answer, and not all of it is in the cache.
    #[error(
        "{model}: cannot be reached ({reason}); it is not in the cache {}; \
         download it elsewhere and give its folder as model.init", cache.display()
    )]
    Unreachable {
        /// The model.
        model: HubModel,
        /// What went wrong.
        reason: String,
        /// The cache that was looked into.
        cache: PathBuf,
    },
    /// 401 or 403.
    #[error(
        "{model}: the hub refuses it (status {status}): it is private or gated, or does not exist; \
         a token with access is needed (HF_TOKEN, or `hf auth login`), {}",
        if *token { "the one given has none" } else { "and none is given" }
    )]
    Refused {
        /// The model.
        model: HubModel,
        /// The status of the answer.
        status: u16,
        /// Whether a token was sent.
        token: bool,
    },
    /// 404 for the first file.
    #[error(
        "{model}: no such repository or revision on the hub, or it has no {CONFIG} (status 404)"
    )]
    NoRepository {
        /// The model.
        model: HubModel,
    },
    /// 404 for another file.
    #[error("{model}: the repository has no file {file} (status 404)")]
    NoFile {
        /// The model.
        model: HubModel,
        /// The missing file, or files.
        file: String,
    },
    /// An answer that is not what the hub gives.
    #[error("{model}: unexpected answer for {file}: {reason}")]
    Answer {
        /// The model.
        model: HubModel,
        /// The file that was asked for.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The list of shards is not usable.
    #[error("{model}: {reason}")]
    Index {
        /// The model.
        model: HubModel,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection broke inside a file.
    #[error("{model}: the download of {file} broke off ({reason}); start again to continue it")]
    Broken {
        /// The model.
        model: HubModel,
        /// The file.
        file: String,
        /// What went wrong.
        reason: String,
    },
    /// A file arrived with another length than announced.
    #[error("{model}: {file} arrived damaged: expected {expected} bytes, got {got}; start again")]
    Damaged {
        /// The model.
        model: HubModel,
        /// The file.
        file: String,
        /// Its announced length.
        expected: u64,
        /// Its length here.
        got: u64,
    },
    /// Another process downloads the same file.
    #[error("{model}: another process is downloading it ({} is locked)", lock.display())]
    Busy {
        /// The model.
        model: HubModel,
        /// The lock.
        lock: PathBuf,
    },
    /// The cache cannot be written.
    #[error("{model}: {source}")]
    Io {
        /// The model.
        model: HubModel,
        /// What the system says.
        source: io::Error,
    },
    /// Neither a home folder nor a variable says where the cache is.
    #[error("no home folder for the Hugging Face cache; set HF_HOME")]
    NoHome,
    /// The user asked to stop.
    #[error("{model}: interrupted; start again to continue the download")]
    Interrupted {
        /// The model.
        model: HubModel,
    },
}

/// Where the hub is, where its files go, and who asks.
#[derive(Clone)]
pub struct HubSettings {
    /// The hub's address, without a `/` at the end.
    pub endpoint: String,
    /// The folder that holds `models--owner--name`.
    pub cache: PathBuf,
    /// Sent with every request.
    pub token: Option<String>,
    /// Whether to make no request.
    pub offline: bool,
    /// The wait before the second attempt at a file; it grows with each.
    pub pause: Duration,
}

impl HubSettings {
    /// As `huggingface_hub` reads them: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(&|name| std::env::var(name).ok(), std::env::home_dir())
    }

    fn from_variables(
        variable: &dyn Fn(&str) -> Option<String>,
        user: Option<PathBuf>,
    ) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let folder = |name: &str| set(name).map(PathBuf::from);
        let home = folder("HF_HOME")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(user?.join(".cache").join("huggingface")));
        let cache = folder("HF_HUB_CACHE").or_else(|| Some(home.clone()?.join("hub")));
        let token_file = folder("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let token = set("HF_TOKEN").or_else(|| fs_err::read_to_string(token_file?).ok());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Ok(Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_owned(),
            cache: std::path::absolute(cache.ok_or(HubError::NoHome)?)
                .map_err(|_| HubError::NoHome)?,
            token: token.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()),
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| is_yes(&value)),
            pause: Duration::from_secs(1),
        })
    }

    fn repository(&self, model: &HubModel, revision: &str) -> CacheRepo {
        Cache::new(self.cache.clone()).repo(model.at(revision))
    }

    fn unreachable(&self, model: &HubModel, reason: impl fmt::Display) -> HubError {
        let reason = reason.to_string();
        HubError::Unreachable { model: model.clone(), reason, cache: self.cache.clone() }
    }
}

fn is_yes(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_lowercase().as_str())
}

/// The local snapshot folder of `model`: `config.json`, the weights (`model.safetensors`, or its
/// index and shards), `tokenizer.json`, and `tokenizer_config.json` where the repository has one.
///
/// `progress` receives the file, the bytes that are here and its whole length. `interrupted` is
/// polled, also while the network is silent; the current file is then left to its thread until the
/// process ends, and the next call resumes it.
pub fn fetch(
    model: &HubModel,
    interrupted: &dyn Fn() -> bool,
    progress: &dyn Fn(&str, u64, u64),
) -> Result<PathBuf, HubError> {
    fetch_with(&HubSettings::from_env()?, model, interrupted, progress)
}

/// [`fetch`], from a given hub into a given cache.
pub fn fetch_with(
    settings: &HubSettings,
    model: &HubModel,
    interrupted: &dyn Fn() -> bool,
    progress: &dyn Fn(&str, u64, u64),
) -> Result<PathBuf, HubError> {
    if let Some(snapshot) = cached(settings, model) {
        return Ok(snapshot);
    }
    if settings.offline {
        return Err(settings.unreachable(model, "HF_HUB_OFFLINE is set"));
    }
    let (events, received) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let request =
        Request { settings: settings.clone(), model: model.clone(), stop: Arc::clone(&stop) };
    let worker = thread::Builder::new()
        .name("hub".to_owned())
        .spawn(move || download_model(request, events))
        .map_err(|source| HubError::Io { model: model.clone(), source })?;
    if watch(&received, interrupted, progress) {
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    } else {
        stop.store(true, Ordering::Relaxed);
        Err(HubError::Interrupted { model: model.clone() })
    }
}

/// Passes progress on until the worker ends (true) or the user wants it to (false).
fn watch(
    events: &Receiver<Event>,
    interrupted: &dyn Fn() -> bool,
    progress: &dyn Fn(&str, u64, u64),
) -> bool {
    while !interrupted() {
        match events.recv_timeout(TICK) {
            Ok(event) => progress(&event.file, event.done, event.total),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
        }
    }
    false
}

/// The snapshot of `model` in the cache, if nothing of it is missing.
fn cached(settings: &HubSettings, model: &HubModel) -> Option<PathBuf> {
    let folder = settings.cache.join(model.at(DEFAULT_REVISION).folder_name());
    let commit = fs_err::read_to_string(folder.join("refs").join(&model.revision));
    let commit = commit.unwrap_or_else(|_| model.revision.clone());
    let commit = commit.trim();
    let snapshot = settings.repository(model, commit).pointer_path(commit);
    (is_plain(commit) && is_whole(&snapshot)).then_some(snapshot)
}

fn is_whole(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    let sharded = || {
        let shards = read_shards(&snapshot.join(INDEX));
        shards.is_ok_and(|shards| shards.iter().all(|name| has(name)))
    };
    has(CONFIG) && has(TOKENIZER) && (has(WEIGHTS) || sharded())
}

/// The shards that an index names. A name that is safe in a path may still mean something in an
/// address (`#`, `%`), so they are checked once more.
fn read_shards(index: &Path) -> Result<BTreeSet<String>, String> {
    let shards = shard_files(index).map_err(|error| error.to_string())?;
    match shards.iter().find(|name| !is_plain(name)) {
        Some(name) => Err(format!("expected plain file names, got {name:?}")),
        None if shards.is_empty() => Err(format!("{}: names no file", index.display())),
        None => Ok(shards),
    }
}

/// Whether `name` is one file name that means the same in a path, in an address and on every
/// system: letters, digits, `-`, `_` and `.`, neither starting with a dot nor with two in a row.
fn is_plain(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with('.') && !name.contains("..") && name.chars().all(known)
}

/// How far a file is.
struct Event {
    file: String,
    done: u64,
    total: u64,
}

/// What the worker downloads.
struct Request {
    settings: HubSettings,
    model: HubModel,
    stop: Arc<AtomicBool>,
}

/// Everything at one commit, so that a branch that moves meanwhile mixes no files. The branch's
/// name is written last: until then the cache does not claim to have the model.
fn download_model(request: Request, events: Sender<Event>) -> Result<PathBuf, HubError> {
    let api = open(&request)?;
    let named = api.repo(request.model.at(&request.model.revision));
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

fn open(request: &Request) -> Result<Api, HubError> {
    ApiBuilder::from_cache(Cache::new(request.settings.cache.clone()))
        .with_endpoint(request.settings.endpoint.clone())
        .with_token(request.settings.token.clone())
        .with_progress(false)
        // Its own retries forget how much of a continued file is there.
        .with_retries(0)
        .build()
        .map_err(|error| request.explain(CONFIG, error))
}

fn metadata(
    request: &Request,
    api: &Api,
    repo: &ApiRepo,
    file: &str,
) -> Result<Metadata, HubError> {
    api.metadata(&repo.url(file)).map_err(|error| request.explain(file, error))
}

/// What a missing first file means.
fn no_repository(error: HubError) -> HubError {
    match error {
        HubError::NoFile { model, .. } => HubError::NoRepository { model },
        error => error,
    }
}

impl Request {
    /// `work`, again when the network failed in it.
    fn retried<T>(&self, work: impl Fn() -> Result<T, HubError>) -> Result<T, HubError> {
        for attempt in 1..ATTEMPTS {
            self.check_stop()?;
            match work() {
                Err(HubError::Broken { .. }) => thread::sleep(self.settings.pause * attempt),
                result => return result,
            }
        }
        work()
    }

    fn check_stop(&self) -> Result<(), HubError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(HubError::Interrupted { model: self.model.clone() });
        }
        Ok(())
    }

    /// What the hub says becomes part of a path only if it is one plain name.
    fn check_plain(&self, file: &str, header: &str, value: &str) -> Result<(), HubError> {
        if is_plain(value) {
            return Ok(());
        }
        Err(self.answer(file, format!("{header} is {value:?}")))
    }

    fn io(&self, source: io::Error) -> HubError {
        HubError::Io { model: self.model.clone(), source }
    }

    fn answer(&self, file: &str, reason: String) -> HubError {
        HubError::Answer { model: self.model.clone(), file: file.to_owned(), reason }
    }

    fn broken(&self, file: &str, reason: impl fmt::Display) -> HubError {
        let reason = reason.to_string();
        HubError::Broken { model: self.model.clone(), file: file.to_owned(), reason }
    }

    fn explain(&self, file: &str, error: ApiError) -> HubError {
        match error {
            ApiError::RequestError(error) => self.explain_request(file, *error),
            ApiError::IoError(error) if is_network(&error) => self.broken(file, error),
            ApiError::IoError(source) => self.io(source),
            ApiError::LockAcquisition(lock) => HubError::Busy { model: self.model.clone(), lock },
            error => self.answer(file, error.to_string()),
        }
    }

    fn explain_request(&self, file: &str, error: ureq::Error) -> HubError {
        use ureq::Error;
        let model = self.model.clone();
        match error {
            Error::StatusCode(status @ (401 | 403)) => {
                HubError::Refused { model, status, token: self.settings.token.is_some() }
            }
            Error::StatusCode(404) => HubError::NoFile { model, file: file.to_owned() },
            Error::StatusCode(status @ (429 | 500..)) => {
                self.broken(file, format!("status {status}"))
            }
            Error::StatusCode(status) => self.answer(file, format!("status {status}")),
            // Once connected: worth another attempt.
            Error::Io(error) if is_lost(error.kind()) => self.broken(file, error),
            error => self.settings.unreachable(&self.model, error),
        }
    }
}

/// Whether reading from the network failed, and not writing to the disk.
fn is_network(error: &io::Error) -> bool {
    let inside =
        error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<ureq::Error>);
    inside || is_lost(error.kind())
}

fn is_lost(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown,
        NetworkUnreachable, NotConnected, TimedOut, UnexpectedEof,
    };
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected)
        || matches!(kind, HostUnreachable | NetworkDown | NetworkUnreachable)
        || matches!(kind, TimedOut | UnexpectedEof)
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
