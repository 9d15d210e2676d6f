//! What is needed of a model, and models that are in the cache, whole.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use bitnet_format::folder::{
    CONFIG_FILE as CONFIG, INDEX_FILE as INDEX, MODEL_FILE as WEIGHTS, TOKENIZER_FILE as TOKENIZER,
};
use bitnet_format::shards::shard_files;

use super::address::{HubRepository, is_plain};
use super::download::{Download, Event};
use super::error::HubError;
use super::request::{Request, metadata, no_repository, open};
use super::settings::HubSettings;

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The snapshot of `model` in the cache, if nothing of it is missing.
pub(super) fn cached_model(settings: &HubSettings, model: &HubRepository) -> Option<PathBuf> {
    let commit = settings.commit(model)?;
    let snapshot = settings.repository(model, &commit).pointer_path(&commit);
    is_whole(&snapshot).then_some(snapshot)
}

fn is_whole(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    let sharded = || {
        let shards = read_shards(&snapshot.join(INDEX));
        shards.is_ok_and(|shards| shards.iter().all(|name| has(name)))
    };
    has(CONFIG) && has(TOKENIZER) && (has(WEIGHTS) || sharded())
}

/// Everything at one commit, so that a branch that moves meanwhile mixes no files. The branch's
/// name is written last: until then the cache does not claim to have the model.
pub(super) fn download_model(request: Request, events: Sender<Event>) -> Result<PathBuf, HubError> {
    let api = open(&request)?;
    let named = api.repo(request.repository.at(&request.repository.revision));
    // The config is asked for first: its answer names the commit, and the branch is not
    // asked again.
    let found = request.retried(|| metadata(&request, &api, &named, CONFIG));
    let commit = found.map_err(no_repository)?.commit_hash().to_owned();
    request.check_plain(CONFIG, "X-Repo-Commit", &commit)?;
    let download = Download::new(&request, &api, &request.repository, &commit, &events);
    all_files(&download, &request.repository)?;
    download.name(&request.repository, &commit)?;
    Ok(download.snapshot)
}

/// Small files first: what is wrong shows before gigabytes are moved.
fn all_files(download: &Download<'_>, model: &HubRepository) -> Result<(), HubError> {
    download.file(CONFIG).map_err(no_repository)?;
    download.optional(TOKENIZER_CONFIG)?;
    download.file(TOKENIZER)?;
    if download.optional(WEIGHTS)? {
        return Ok(());
    }
    let repository = model.clone();
    if !download.optional(INDEX)? {
        return Err(HubError::NoFile { repository, file: format!("{WEIGHTS} or {INDEX}") });
    }
    let shards = read_shards(&download.snapshot.join(INDEX));
    let shards = shards.map_err(|reason| HubError::Index { repository, reason })?;
    shards.iter().try_for_each(|shard| download.file(shard))
}

/// The shards that an index names. A name that is safe in a path may still mean something in an
/// address (`#`, `%`), so they are checked once more.
pub(super) fn read_shards(index: &Path) -> Result<BTreeSet<String>, String> {
    let shards = shard_files(index).map_err(|error| error.to_string())?;
    match shards.iter().find(|name| !is_plain(name)) {
        Some(name) => Err(format!("expected plain file names, got {name:?}")),
        None if shards.is_empty() => Err(format!("{}: names no file", index.display())),
        None => Ok(shards),
    }
}
