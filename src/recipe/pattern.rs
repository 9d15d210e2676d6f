//! Names of data files, with the wildcards `*`, `?`, `[…]` and `**`.

use std::fmt;
use std::path::{Path, PathBuf};

use super::error::RecipeError;
use crate::data::is_data_name;

/// What the names of data sets of the hub begin with:
/// `hf-dataset:owner/name[@revision][:config][/split]`.
pub const DATASET_PREFIX: &str = "hf-dataset:";

/// An absolute file name or pattern, known to be well formed, or the name of a data set of the hub.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathPattern(String);

impl PathPattern {
    /// `pattern` as seen from the folder `base`, whose own name is taken literally.
    pub fn new(base: &Path, pattern: &str) -> Result<Self, String> {
        // `hub` checks the parts of such a name before they become part of a path or an address.
        if pattern.starts_with(DATASET_PREFIX) {
            return Ok(Self(pattern.to_owned()));
        }
        let absolute = if Path::new(pattern).is_absolute() {
            pattern.to_owned()
        } else {
            let base = base.to_str().ok_or("the recipe's folder has no UTF-8 name")?;
            format!("{}/{pattern}", glob::Pattern::escape(base.trim_end_matches('/')))
        };
        glob::Pattern::new(&absolute).map_err(|error| error.msg.to_owned())?;
        Ok(Self(absolute))
    }

    /// The absolute pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names a data set of the hub, which `data_files` has the files of.
    pub fn is_on_hub(&self) -> bool {
        self.0.starts_with(DATASET_PREFIX)
    }

    /// The files that match, at least one, in order of their names. `key` is the recipe's key for a
    /// message.
    pub fn expand(&self, key: &str) -> Result<Vec<PathBuf>, RecipeError> {
        let unlistable = |reason| RecipeError::Unlistable { pattern: self.0.clone(), reason };
        let matches = glob::glob(&self.0).map_err(|error| unlistable(error.to_string()))?;
        let mut files = Vec::new();
        for found in matches {
            files.push(found.map_err(|error| unlistable(error.to_string()))?);
        }
        // `data/*` matches files and folders: a folder stands for its files only where no file
        // matches.
        let folders: Vec<_> = files.iter().filter(|path| path.is_dir()).cloned().collect();
        files.retain(|path| !path.is_dir());
        if files.is_empty() {
            folders
                .iter()
                .try_for_each(|folder| add_data_files(folder, &mut files))
                .map_err(|error| unlistable(error.to_string()))?;
        }
        // A folder is listed in no order, and the order of files is that of the documents.
        files.sort();
        if files.is_empty() {
            let (key, pattern) = (key.to_owned(), self.0.clone());
            return Err(match folders.into_iter().next() {
                Some(folder) => RecipeError::Folder { key, pattern, folder },
                None => RecipeError::NoMatch { key, pattern },
            });
        }
        Ok(files)
    }

    /// Whether a file of this absolute name would be among them, were it there.
    pub fn matches(&self, file: &Path) -> bool {
        if self.is_on_hub() {
            return false;
        }
        // `expand` goes folder by folder, so its `*` never crosses a slash. By default it would
        // here.
        let options =
            glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
        let pattern = glob::Pattern::new(&self.0).expect("it was checked when it was made");
        pattern.matches_path_with(file, options)
    }
}

/// Adds the files of data in a folder and in the folders in it; hidden ones are left out.
fn add_data_files(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // A link to a folder is no folder here, so a loop of links has an end.
        if entry.file_type()?.is_dir() {
            add_data_files(&path, files)?;
        } else if is_data_name(&path) {
            files.push(path);
        }
    }
    Ok(())
}

impl fmt::Display for PathPattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::Builder::new().prefix("odd[1]name").tempdir().unwrap();
        for name in names {
            fs_err::write(folder.path().join(name), "x").unwrap();
        }
        folder
    }

    #[test]
    fn files_come_sorted_even_from_a_folder_with_wildcards_in_its_name() {
        let folder = folder_with(&["b.txt", "a.txt", "c.jsonl"]);
        fs_err::create_dir(folder.path().join("d.txt")).unwrap();
        let found = PathPattern::new(folder.path(), "*.txt").unwrap().expand("data.train").unwrap();
        assert_eq!(found, ["a.txt", "b.txt"].map(|name| folder.path().join(name)));
    }

    #[test]
    fn a_pattern_without_a_match_is_an_error_that_names_it() {
        let folder = folder_with(&[]);
        let error =
            PathPattern::new(folder.path(), "no-*.txt").unwrap().expand("data.train").unwrap_err();
        assert!(
            error.to_string().contains("no-*.txt [data.train]: no such file; expected"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_stands_for_the_files_of_data_in_it() {
        let folder = folder_with(&["b.txt", "a.jsonl.gz", "README.md", ".hidden.txt"]);
        let path = folder.path().to_str().unwrap();
        let pattern = PathPattern::new(Path::new("/"), &glob::Pattern::escape(path)).unwrap();
        let found = pattern.expand("data.train").unwrap();
        assert_eq!(found, ["a.jsonl.gz", "b.txt"].map(|name| folder.path().join(name)));
        for name in ["b.txt", "a.jsonl.gz"] {
            fs_err::remove_file(folder.path().join(name)).unwrap();
        }
        let error = pattern.expand("data.train").unwrap_err().to_string();
        assert!(error.contains("[data.train]: a folder") && error.contains("/*.jsonl"), "{error}");
    }

    #[test]
    fn an_absolute_pattern_stays_as_it_is() {
        let once = PathPattern::new(Path::new("/a[b]"), "c/*.txt").unwrap();
        assert_eq!(once.as_str(), "/a[[]b[]]/c/*.txt");
        assert_eq!(PathPattern::new(Path::new("/elsewhere"), once.as_str()).unwrap(), once);
    }

    #[test]
    fn a_file_that_is_not_there_yet_is_matched_by_its_name() {
        let here = |pattern: &str| PathPattern::new(Path::new("/a"), pattern).unwrap();
        let file = Path::new("/a/run/metrics.jsonl");
        assert!(here("**/*.jsonl").matches(file) && here("run/*").matches(file));
        assert!(!here("*.jsonl").matches(file) && !here("run/*.txt").matches(file));
    }

    #[test]
    fn a_data_set_of_the_hub_is_no_path() {
        let name = "hf-dataset:a/b:c[";
        let pattern = PathPattern::new(Path::new("/a"), name).unwrap();
        assert_eq!((pattern.as_str(), pattern.is_on_hub()), (name, true));
        assert!(!pattern.matches(Path::new("/a/hf-dataset:a/b:c[")));
        assert!(pattern.expand("data.train").is_err());
    }

    #[test]
    fn a_malformed_pattern_is_refused_at_once() {
        assert!(PathPattern::new(Path::new("/a"), "b***").is_err());
    }
}
