//! Models that are in the cache, whole.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bitnet_format::folder::{
    CONFIG_FILE as CONFIG, INDEX_FILE as INDEX, MODEL_FILE as WEIGHTS, TOKENIZER_FILE as TOKENIZER,
};
use bitnet_format::shards::shard_files;

use super::address::{DEFAULT_REVISION, HubModel, is_plain};
use super::settings::HubSettings;

/// The snapshot of `model` in the cache, if nothing of it is missing.
pub(super) fn cached(settings: &HubSettings, model: &HubModel) -> Option<PathBuf> {
    let folder = settings.cache.join(model.at(DEFAULT_REVISION).folder_name());
    let commit = fs_err::read_to_string(folder.join("refs").join(&model.revision));
    // A revision without a ref may be a commit itself.
    let commit = commit.unwrap_or_else(|_| model.revision.clone());
    let commit = commit.trim();
    let snapshot = settings.repository(model, commit).pointer_path(commit);
    // What a ref says becomes part of a path, so it is checked like an answer of the hub.
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
pub(super) fn read_shards(index: &Path) -> Result<BTreeSet<String>, String> {
    let shards = shard_files(index).map_err(|error| error.to_string())?;
    match shards.iter().find(|name| !is_plain(name)) {
        Some(name) => Err(format!("expected plain file names, got {name:?}")),
        None if shards.is_empty() => Err(format!("{}: names no file", index.display())),
        None => Ok(shards),
    }
}
