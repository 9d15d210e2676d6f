//! A run directory, read and read again as it grows.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bitnet_format::Shown;
use bitnet_format::input::read_text;
use serde_json::Value;

use crate::error::ReportError;
use crate::history::RunHistory;
use crate::recipe_keys::{read_recipe, whole};
use crate::samples::{SampleText, take_sample};
use crate::state::RunState;

/// What only a run directory holds.
const MARKS: [&str; 3] = ["metrics.jsonl", "run.json", "recipe.resolved.toml"];
/// Directories below the given one that are searched for runs.
const DEPTH: usize = 3;
/// A longer line is not ours and ends the reading.
const LONGEST_LINE: u64 = 16 << 20;
/// A larger file of the others is not ours either.
const MOST_BYTES: u64 = 16 << 20;

/// A run: what its directory says of it.
#[derive(Clone, Debug)]
pub struct RunFolder {
    /// Its directory.
    pub path: PathBuf,
    /// As people call it.
    pub name: String,
    /// The recipe with every default; empty where there is none.
    pub recipe: toml::Table,
    /// The command lines that started and continued it.
    pub commands: Vec<String>,
    /// `run.json`, or null.
    pub record: Value,
    /// What the model said while it trained.
    pub samples: Vec<SampleText>,
    /// Its figures.
    pub history: RunHistory,
    /// Whether it goes on.
    pub state: RunState,
    /// Files and folders under `export/`.
    pub exports: Vec<String>,
    read: [u64; 2],
}

impl RunFolder {
    /// Reads a run directory.
    ///
    /// # Errors
    /// When it is not a run, or a file of it cannot be read.
    pub fn open(path: &Path) -> Result<Self, ReportError> {
        if !is_run(path) {
            let what = "is no run directory; expected one with metrics.jsonl or run.json in it";
            return Err(ReportError::input(path, what));
        }
        let mut run = Self {
            name: name_of(path),
            path: path.to_owned(),
            recipe: toml::Table::new(),
            commands: Vec::new(),
            record: Value::Null,
            samples: Vec::new(),
            history: RunHistory::default(),
            state: RunState::Empty,
            exports: Vec::new(),
            read: [0; 2],
        };
        run.refresh()?;
        Ok(run)
    }

    /// Reads what was added since the last time. A line that is not whole yet waits.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn refresh(&mut self) -> Result<(), ReportError> {
        let recipe = self.path.join("recipe.resolved.toml");
        if recipe.exists() {
            self.recipe = read_recipe(&recipe)?;
        }
        let text = |name: &str| read_text(&self.path.join(name), MOST_BYTES).unwrap_or_default();
        self.commands = text("command.txt").lines().map(str::to_owned).collect();
        self.record = serde_json::from_str(&text("run.json")).unwrap_or_default();
        self.exports = entries(&self.path.join("export"));
        let (history, samples) = (&mut self.history, &mut self.samples);
        let metrics = self.path.join("metrics.jsonl");
        // A shorter file is another run in the same directory (or one whose log was cut): all that
        // was read of the old one goes.
        if read_lines(&metrics, &mut self.read[0], |line| history.line(line))? {
            *history = RunHistory::default();
            read_lines(&metrics, &mut self.read[0], |line| history.line(line))?;
        }
        let said = self.path.join("samples.jsonl");
        if read_lines(&said, &mut self.read[1], |line| take_sample(samples, line))? {
            samples.clear();
            read_lines(&said, &mut self.read[1], |line| take_sample(samples, line))?;
        }
        self.state = RunState::of(&self.path, &self.record, self.history.step);
        Ok(())
    }

    /// Steps of the whole run, where the recipe or the record says.
    pub fn steps(&self) -> Option<u64> {
        let recorded = self.record.get("steps").and_then(Value::as_u64);
        recorded.or_else(|| whole(&self.recipe, &["train", "steps"]))
    }
}

/// What is given, or the runs in it: of a pipeline its stages, in order.
pub fn find_runs(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    search(path, DEPTH, &mut found);
    found
}

/// Opens the runs that were named, and those in the directories that were named.
///
/// # Errors
/// When there is none where one was named, or one cannot be read.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<RunFolder>, ReportError> {
    let mut runs = Vec::new();
    for path in paths {
        let found = find_runs(path);
        if found.is_empty() {
            let there = if path.is_dir() { "holds no run" } else { "no such directory" };
            let what = format!("{there}; expected a run directory, or one of runs");
            return Err(ReportError::input(path, what));
        }
        for path in found {
            runs.push(RunFolder::open(&path)?);
        }
    }
    tell_apart(&mut runs);
    Ok(runs)
}

/// Gives runs of one name the name of their parent too.
fn tell_apart(runs: &mut [RunFolder]) {
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for (at, run) in runs.iter_mut().enumerate() {
        let twice = names.iter().filter(|name| **name == names[at]).count() > 1;
        if twice && let Some(parent) = run.path.parent() {
            run.name = format!("{}/{}", name_of(parent), run.name);
        }
    }
}

fn search(path: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    if is_run(path) {
        // What lies inside of a run belongs to it: exports and checkpoints need no search.
        found.push(path.to_owned());
        return;
    }
    if depth > 0 {
        for name in entries(path).iter().filter(|name| !name.starts_with('.')) {
            let inner = path.join(name);
            // A link may lead back up, or show a run twice under two names.
            if inner.is_dir() && !inner.is_symlink() {
                search(&inner, depth - 1, found);
            }
        }
    }
}

fn is_run(path: &Path) -> bool {
    MARKS.iter().any(|mark| path.join(mark).is_file())
}

fn name_of(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.file_name().map_or_else(|| ".".to_owned(), |name| Path::new(name).shown().to_string())
}

/// Names in a directory, in order; none if there is no directory.
fn entries(path: &Path) -> Vec<String> {
    let Ok(entries) = fs_err::read_dir(path) else { return Vec::new() };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Takes the whole lines after `from` and moves it; true, with nothing taken, where the file is
/// shorter than that and must be read anew.
fn read_lines(
    path: &Path,
    from: &mut u64,
    mut take: impl FnMut(&[u8]),
) -> Result<bool, ReportError> {
    if !path.is_file() {
        return Ok(std::mem::take(from) > 0);
    }
    let mut file = fs_err::File::open(path)?;
    if file.metadata()?.len() < *from {
        *from = 0;
        return Ok(true);
    }
    file.seek(SeekFrom::Start(*from))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line without its end is still being written (or was torn by a kill): `from` stays
        // before it, and the next refresh reads it whole.
        let read = reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(false);
        }
        *from += read as u64;
        take(&line[..read - 1]);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::fixtures::{small_run, step_line};

    #[test]
    fn a_torn_last_line_waits_until_it_is_whole() {
        let dir = small_run(3);
        let mut run = RunFolder::open(dir.path()).unwrap();
        let line = step_line(4);
        let path = dir.path().join("metrics.jsonl");
        let mut log = fs_err::OpenOptions::new().append(true).open(&path).unwrap();
        log.write_all(&line.as_bytes()[..20]).unwrap();
        run.refresh().unwrap();
        assert_eq!((run.history.step(), run.history.bad_lines), (3, 0));
        log.write_all(&line.as_bytes()[20..]).unwrap();
        log.write_all(b"\n").unwrap();
        run.refresh().unwrap();
        assert_eq!((run.history.step(), run.history.bad_lines), (4, 0));
    }

    #[test]
    fn a_log_that_begins_anew_is_read_anew() {
        let dir = small_run(9);
        let mut run = RunFolder::open(dir.path()).unwrap();
        fs_err::write(dir.path().join("metrics.jsonl"), step_line(1) + "\n").unwrap();
        run.refresh().unwrap();
        assert_eq!(run.history.step(), 1);
        assert_eq!(run.history.curve("loss").unwrap().points().len(), 1);
    }

    #[test]
    fn runs_are_found_in_directories_of_them_and_a_folder_without_one_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        for name in ["2-sft", "1-pretrain", "deep/er"] {
            let dir = root.path().join(name);
            fs_err::create_dir_all(&dir).unwrap();
            fs_err::write(dir.join("run.json"), "{}").unwrap();
        }
        let runs = open_all(&[root.path().to_owned()]).unwrap();
        let names: Vec<_> = runs.iter().map(|run| &*run.name).collect();
        assert_eq!(names, ["1-pretrain", "2-sft", "er"]);
        assert_eq!(runs[0].state, RunState::Empty);
        let empty = tempfile::tempdir().unwrap();
        let error = open_all(&[empty.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("holds no run"), "{error}");
    }
}
