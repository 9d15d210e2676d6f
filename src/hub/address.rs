//! The names of models and data sets on the hub.

use std::fmt;

use hf_hub::{Repo, RepoType};

use crate::recipe::DATASET_PREFIX;

pub(super) const DEFAULT_REVISION: &str = "main";

/// What a repository of the hub holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubKind {
    /// `hf:`
    Model,
    /// `hf-dataset:`
    Dataset,
}

impl HubKind {
    /// What its names begin with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Model => "hf:",
            Self::Dataset => DATASET_PREFIX,
        }
    }
}

/// A repository of the hub at a revision, checked: its parts may stand in paths and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRepository {
    /// What it holds.
    pub kind: HubKind,
    /// `owner/name`.
    pub name: String,
    /// A branch, a tag or a commit; `main` when none was named.
    pub revision: String,
}

impl HubRepository {
    /// Reads `hf:owner/name[@revision]`; `None` when `text` does not start with `hf:`, and so is a
    /// folder.
    pub fn model(text: &str) -> Option<Result<Self, String>> {
        let rest = text.strip_prefix(HubKind::Model.prefix())?;
        let (name, revision) = rest.split_once('@').unwrap_or((rest, DEFAULT_REVISION));
        Some(Self::checked(HubKind::Model, name, revision).ok_or_else(|| {
            format!("not a model; expected \"hf:owner/name[@revision]\", got {text:?}")
        }))
    }

    fn checked(kind: HubKind, name: &str, revision: &str) -> Option<Self> {
        let named = name.split('/').count() == 2 && name.split('/').all(is_plain);
        // A revision may have parts, as `refs/pr/1` has.
        let checked = named && revision.split('/').all(is_plain);
        checked.then(|| Self { kind, name: name.to_owned(), revision: revision.to_owned() })
    }

    pub(super) fn at(&self, revision: &str) -> Repo {
        let kind = match self.kind {
            HubKind::Model => RepoType::Model,
            HubKind::Dataset => RepoType::Dataset,
        };
        Repo::with_revision(self.name.clone(), kind, revision.to_owned())
    }

    pub(super) fn with_revision(&self, revision: &str) -> Self {
        Self { revision: revision.to_owned(), ..self.clone() }
    }
}

impl fmt::Display for HubRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind.prefix(), self.name)?;
        match self.revision.as_str() {
            DEFAULT_REVISION => Ok(()),
            revision => write!(f, "@{revision}"),
        }
    }
}

/// Files of data on the hub: `hf-dataset:owner/name[@revision][:config][/split]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubDataset {
    /// Where they are.
    pub repository: HubRepository,
    /// The configuration, where one is named.
    pub config: Option<String>,
    /// The split, where one is named.
    pub split: Option<String>,
}

impl HubDataset {
    /// Reads `text`; `None` when it does not start with `hf-dataset:`, and so is a file.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        let rest = text.strip_prefix(DATASET_PREFIX)?;
        Some(Self::read(rest).ok_or_else(|| {
            let form = "hf-dataset:owner/name[@revision][:config][/split]";
            format!("not a data set; expected \"{form}\", got {text:?}")
        }))
    }

    fn read(text: &str) -> Option<Self> {
        let (place, config, split) = if let Some((place, rest)) = text.split_once(':') {
            let (config, split) = halves(rest, '/');
            (place, Some(config), split)
        } else {
            let (place, split) = split_of(text);
            (place, None, split)
        };
        let (name, revision) = halves(place, '@');
        let revision = revision.unwrap_or(DEFAULT_REVISION);
        let repository = HubRepository::checked(HubKind::Dataset, name, revision)?;
        // A config is compared with names and is no part of a path by itself.
        let is_config = |name: &str| !name.is_empty() && !name.contains(['/', ':', '\\', '\0']);
        let fits = config.is_none_or(is_config) && split.is_none_or(is_plain);
        let (config, split) = (config.map(str::to_owned), split.map(str::to_owned));
        fits.then_some(Self { repository, config, split })
    }
}

impl fmt::Display for HubDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        self.config.iter().try_for_each(|config| write!(f, ":{config}"))?;
        self.split.iter().try_for_each(|split| write!(f, "/{split}"))
    }
}

fn halves(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(before, after)| (before, Some(after)))
}

/// Takes the split off `owner/name[@revision][/split]`. Of revisions only `refs/…/…` have slashes
/// here, since another branch with one could not be told from a split.
fn split_of(text: &str) -> (&str, Option<&str>) {
    let slashes_before = if text.contains("@refs/") { 3 } else { 1 };
    match text.match_indices('/').nth(slashes_before) {
        Some((at, _)) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// Whether `name` is one file name that means the same in a path, in an address and on every
/// system: letters, digits, `-`, `_` and `.`, neither starting with a dot nor with two in a row.
pub(super) fn is_plain(name: &str) -> bool {
    is_made_of(name, "-_.")
}

/// Whether `name` is a file in folders, each of which could be named so. Signs that data sets use
/// in names (`lang=en`) and that mean nothing in a path or an address are let through.
pub(super) fn is_plain_path(name: &str) -> bool {
    name.split('/').all(|part| is_made_of(part, "-_.=+,@()~!"))
}

fn is_made_of(name: &str, signs: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || signs.contains(c);
    !name.is_empty() && !name.starts_with('.') && !name.contains("..") && name.chars().all(known)
}
