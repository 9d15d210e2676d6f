//! The files of a data set: those that are in the cache, or those that are brought there.
//!
//! Beside the standard folders the cache keeps `lists/COMMIT.json`, the names of all files of a
//! commit: with it the choice of files needs no network. A revision whose list is here stays at its
//! commit, so that all splits that are ever read are of one commit.

use std::path::PathBuf;
use std::sync::mpsc::Sender;

use bitnet_format::input::{LARGEST_TEXT, read_text};
use bitnet_format::staged::{OnExisting, write_file};
use hf_hub::api::sync::Api;
use serde::Deserialize;

use super::address::{DEFAULT_REVISION, HubDataset, HubRepository, is_plain_path};
use super::choice::{chosen_files, converted_files};
use super::download::{Download, Event};
use super::error::HubError;
use super::request::{Request, no_repository, open};
use super::settings::HubSettings;

const README: &str = "README.md";

/// The branch to which the hub converts data sets.
const CONVERTED: &str = "refs/convert/parquet";

/// What stands in messages for the answer that lists the files.
const LIST: &str = "the list of files";

/// What the hub says of a repository.
#[derive(Deserialize)]
struct Answer {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Where missing files come from.
struct Network<'a> {
    request: &'a Request,
    api: Api,
    events: &'a Sender<Event>,
}

/// The names of a commit's files, some of which are here.
struct Snapshot<'a> {
    repository: HubRepository,
    commit: String,
    names: Vec<String>,
    folder: PathBuf,
    download: Option<Download<'a>>,
}

/// The files of `dataset` in the cache, if nothing of it is missing.
pub(super) fn cached_files(
    settings: &HubSettings,
    dataset: &HubDataset,
) -> Result<Option<Vec<PathBuf>>, HubError> {
    files(settings, dataset, None)
}

/// The files of `dataset`, with what is missing brought into the cache.
pub(super) fn download_files(
    request: &Request,
    dataset: &HubDataset,
    events: &Sender<Event>,
) -> Result<Vec<PathBuf>, HubError> {
    let network = Network { request, api: open(request)?, events };
    let found = files(&request.settings, dataset, Some(&network))?;
    Ok(found.expect("the network has whatever the cache has not"))
}

/// `None` where something is not in the cache and there is no network.
fn files(
    settings: &HubSettings,
    dataset: &HubDataset,
    network: Option<&Network<'_>>,
) -> Result<Option<Vec<PathBuf>>, HubError> {
    let wrong = |reason| HubError::Choice { dataset: Box::new(dataset.clone()), reason };
    let Some(own) = Snapshot::find(settings, &dataset.repository, network)? else {
        return Ok(None);
    };
    let Some(readme) = own.readme()? else { return Ok(None) };
    if let Some(names) = chosen_files(&own.names, &readme, dataset).map_err(wrong)? {
        return own.bring_all(&names);
    }
    let no_data = || wrong(no_data(dataset));
    if dataset.repository.revision != DEFAULT_REVISION {
        return Err(no_data());
    }
    // Its branch is not there for data sets that the hub cannot read either.
    let converted = Snapshot::find(settings, &dataset.repository.with_revision(CONVERTED), network);
    let converted = match converted {
        Ok(Some(converted)) => converted,
        Ok(None) => return Ok(None),
        Err(HubError::NoRepository { .. }) => return Err(no_data()),
        Err(error) => return Err(error),
    };
    let names = converted_files(&converted.names, dataset).map_err(wrong)?.ok_or_else(no_data)?;
    let files = converted.bring_all(&names)?;
    // Last: until then the cache does not claim to have anything.
    own.name()?;
    Ok(files)
}

fn no_data(dataset: &HubDataset) -> String {
    let branch = if dataset.repository.revision == DEFAULT_REVISION {
        format!(", nor files that the hub converted ({CONVERTED})")
    } else {
        String::new()
    };
    format!(
        "has no file of data that is read here; expected .parquet, .jsonl, .json, .csv, .tsv or \
         .txt, got none{branch}"
    )
}

impl<'a> Snapshot<'a> {
    /// The commit that the cache has for the revision, or else the one that the hub has now.
    fn find(
        settings: &HubSettings,
        repository: &HubRepository,
        network: Option<&'a Network<'a>>,
    ) -> Result<Option<Self>, HubError> {
        let listed = settings.commit(repository).and_then(|commit| {
            let text = read_text(&list_file(settings, repository, &commit), LARGEST_TEXT).ok()?;
            Some((commit, serde_json::from_str(&text).ok()?))
        });
        let (commit, names) = match (listed, network) {
            (Some(listed), _) => listed,
            (None, Some(network)) => network.list(repository)?,
            (None, None) => return Ok(None),
        };
        let folder = settings.repository(repository, &commit).pointer_path(&commit);
        let download = network.map(|network| {
            Download::new(network.request, &network.api, repository, &commit, network.events)
        });
        Ok(Some(Self { repository: repository.clone(), commit, names, folder, download }))
    }

    /// The text of the README, empty where there is none.
    fn readme(&self) -> Result<Option<String>, HubError> {
        if !self.names.iter().any(|name| name == README) {
            return Ok(Some(String::new()));
        }
        let Some(path) = self.bring(README)? else { return Ok(None) };
        let text = read_text(&path, LARGEST_TEXT);
        text.map(Some).map_err(|error| self.answer(README, error.to_string()))
    }

    fn bring_all(&self, names: &[String]) -> Result<Option<Vec<PathBuf>>, HubError> {
        // All of them before the first: nothing is moved for a list that is refused.
        if let Some(name) = names.iter().find(|name| !is_plain_path(name)) {
            let reason = "expected a name of letters, digits and - _ . = + , @ ( ) ~ !".to_owned();
            return Err(self.answer(&format!("{LIST}: {name:?}"), reason));
        }
        let files = names.iter().map(|name| self.bring(name)).collect::<Result<Option<_>, _>>()?;
        self.name()?;
        Ok(files)
    }

    /// A file, brought here where it is not yet; `None` without a network.
    fn bring(&self, name: &str) -> Result<Option<PathBuf>, HubError> {
        let path = self.folder.join(name);
        if path.is_file() {
            return Ok(Some(path));
        }
        let Some(download) = &self.download else { return Ok(None) };
        download.file(name).map(|()| Some(path))
    }

    /// Makes the revision's name stand for the commit, once its files are here.
    fn name(&self) -> Result<(), HubError> {
        match &self.download {
            Some(download) => download.name(&self.repository, &self.commit),
            None => Ok(()),
        }
    }

    fn answer(&self, file: &str, reason: String) -> HubError {
        HubError::Answer { repository: self.repository.clone(), file: file.to_owned(), reason }
    }
}

fn list_file(settings: &HubSettings, repository: &HubRepository, commit: &str) -> PathBuf {
    settings.folder(repository).join("lists").join(format!("{commit}.json"))
}

impl Network<'_> {
    /// The commit of a revision and the names of its files, which the cache keeps.
    fn list(&self, repository: &HubRepository) -> Result<(String, Vec<String>), HubError> {
        let answer = self.request.retried(|| self.ask(repository)).map_err(no_repository)?;
        let commit = answer.sha;
        self.request.check_plain(LIST, "sha", &commit)?;
        let mut names: Vec<_> = answer.siblings.into_iter().map(|file| file.rfilename).collect();
        names.sort();
        let path = list_file(&self.request.settings, repository, &commit);
        let json = serde_json::to_vec(&names).expect("names become JSON");
        let written = fs_err::create_dir_all(path.parent().expect("it lies in a folder"))
            .map_err(Into::into)
            .and_then(|()| write_file(&path, &json, OnExisting::Replace));
        written.map_err(|error| self.request.io(std::io::Error::other(error)))?;
        Ok((commit, names))
    }

    fn ask(&self, repository: &HubRepository) -> Result<Answer, HubError> {
        let there = self.api.repo(repository.at(&repository.revision));
        let answer = there.info_request().call();
        let mut answer = answer.map_err(|error| self.request.explain_request(LIST, error))?;
        let answer = answer.body_mut().with_config().limit(LARGEST_TEXT).read_json();
        answer.map_err(|error| self.request.explain_request(LIST, error))
    }
}
