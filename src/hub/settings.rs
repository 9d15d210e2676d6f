//! Where the hub and its cache are, as `huggingface_hub` reads it from the environment.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hf_hub::{Cache, CacheRepo};

use super::address::HubModel;
use super::error::HubError;

const ENDPOINT: &str = "https://huggingface.co";

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

    pub(super) fn repository(&self, model: &HubModel, revision: &str) -> CacheRepo {
        Cache::new(self.cache.clone()).repo(model.at(revision))
    }

    pub(super) fn unreachable(&self, model: &HubModel, reason: impl fmt::Display) -> HubError {
        let reason = reason.to_string();
        HubError::Unreachable { model: model.clone(), reason, cache: self.cache.clone() }
    }
}

fn is_yes(value: &str) -> bool {
    // The words that huggingface_hub takes for yes.
    ["1", "on", "yes", "true"].contains(&value.trim().to_lowercase().as_str())
}
