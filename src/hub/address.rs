//! The name of a model on the hub.

use std::fmt;

use hf_hub::{Repo, RepoType};

pub(super) const DEFAULT_REVISION: &str = "main";

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
        // A revision may have parts, as `refs/pr/1` has.
        Some(if named && revision.split('/').all(is_plain) {
            Ok(model)
        } else {
            Err(format!("not a model; expected \"hf:owner/name[@revision]\", got {text:?}"))
        })
    }

    pub(super) fn at(&self, revision: &str) -> Repo {
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

/// Whether `name` is one file name that means the same in a path, in an address and on every
/// system: letters, digits, `-`, `_` and `.`, neither starting with a dot nor with two in a row.
pub(super) fn is_plain(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with('.') && !name.contains("..") && name.chars().all(known)
}
