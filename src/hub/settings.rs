//! Where the hub and its cache are, as `huggingface_hub` reads it from the environment.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hf_hub::{Cache, CacheRepo};

use super::address::{HubRepository, is_plain};
use super::error::HubError;

const ENDPOINT: &str = "https://huggingface.co";

/// Where the hub is, where its files go, and who asks.
#[derive(Clone)]
pub struct HubSettings {
    /// The hub's address, without a `/` at the end.
    pub endpoint: String,
    /// The folder that holds `models--owner--name` and `datasets--owner--name`.
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

    /// [`HubSettings::from_env`] of other variables, for a user with that home folder.
    ///
    /// # Errors
    /// Neither a home folder nor a variable that takes its place.
    pub fn from_variables(
        variable: &dyn Fn(&str) -> Option<String>,
        user: Option<PathBuf>,
    ) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let folder = |name: &str| set(name).map(PathBuf::from);
        // Cache and token each have a variable of their own, which wins over the home of both.
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

    pub(super) fn repository(&self, named: &HubRepository, revision: &str) -> CacheRepo {
        Cache::new(self.cache.clone()).repo(named.at(revision))
    }

    /// The folder of a repository in the cache.
    pub(super) fn folder(&self, named: &HubRepository) -> PathBuf {
        self.cache.join(named.at(&named.revision).folder_name())
    }

    /// The commit that the cache has for a revision.
    pub(super) fn commit(&self, named: &HubRepository) -> Option<String> {
        let commit = fs_err::read_to_string(self.folder(named).join("refs").join(&named.revision));
        // A revision without a ref may be a commit itself.
        let commit = commit.unwrap_or_else(|_| named.revision.clone());
        let commit = commit.trim();
        // What a ref says becomes part of a path, so it is checked like an answer of the hub.
        is_plain(commit).then(|| commit.to_owned())
    }

    pub(super) fn unreachable(
        &self,
        repository: &HubRepository,
        reason: impl fmt::Display,
    ) -> HubError {
        let (reason, cache) = (reason.to_string(), self.cache.clone());
        HubError::Unreachable { repository: repository.clone(), reason, cache }
    }
}

fn is_yes(value: &str) -> bool {
    // The words that huggingface_hub takes for yes.
    ["1", "on", "yes", "true"].contains(&value.trim().to_lowercase().as_str())
}
