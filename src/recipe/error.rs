//! What can be wrong with a recipe, and where.
//!
//! A recipe is read to its end before anything is reported, so that one message shows every
//! mistake. The first line has no `error: ` in front, because the caller prints it as for every
//! other error; further lines have theirs.

use bitnet_format::Shown;
use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// In a file; line and column count from 1, the column in characters.
    File {
        /// The file as the user named it.
        path: Arc<Path>,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// Among the `dotted.key=value` words.
    CommandLine,
}

impl Location {
    /// The line, from 1; none on the command line.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::File { line, .. } => Some(*line),
            Self::CommandLine => None,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(out, "{}:{line}:{column}", path.shown()),
            Self::CommandLine => out.write_str("command line"),
        }
    }
}

/// One mistake in a recipe or in a config it names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it is.
    pub place: Location,
    /// The dotted key it is about; empty for a mistake of TOML itself.
    pub key: String,
    /// What is wrong, what was expected, what was found.
    pub message: String,
    /// What to do about it, if that can be guessed.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.place)?;
        if !self.key.is_empty() {
            write!(out, " [{}]", printable(&self.key))?;
        }
        write!(out, ": {}", printable(&self.message))?;
        match &self.hint {
            Some(hint) => write!(out, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Text of a file on a line of its own, its control characters escaped.
fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// The mistakes found so far.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub(super) fn add(&self, problem: Problem) {
        self.0.borrow_mut().push(problem);
    }

    pub(super) fn extend(&self, problems: Vec<Problem>) {
        self.0.borrow_mut().extend(problems);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// All of them, files first and each in its order.
    pub(super) fn into_sorted(self) -> Vec<Problem> {
        let mut problems = self.0.into_inner();
        // `Location` orders files before the command line and, within a file, by line. Equal
        // problems come from a table that two readers open: both find that it is none.
        problems.sort();
        problems.dedup();
        problems
    }
}

/// Why there is no recipe to run. Every variant is exit code 3.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The recipe file itself cannot be read.
    #[error("{}: cannot read the recipe; expected a TOML file, got: {reason}", path.shown())]
    Unreadable {
        /// The file as the user named it.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The recipe was read and is not valid; problems are in order of file and line.
    #[error("{}", lines(problems))]
    Invalid {
        /// Every mistake found; never empty.
        problems: Vec<Problem>,
    },
    /// A pattern of data files that matches nothing.
    #[error(
        "{pattern} [{key}]: no such file; expected your own files, got nothing\nhint: put files there, \
         or name yours on the command line: {}",
        on_the_command_line(key)
    )]
    NoMatch {
        /// The recipe's key.
        key: String,
        /// The absolute pattern.
        pattern: String,
    },
    /// A data set of the hub that this build or its name cannot bring.
    #[error("{name} [{key}]: {what}")]
    Dataset {
        /// The recipe's key.
        key: String,
        /// The name.
        name: String,
        /// What was expected.
        what: String,
    },
    /// A pattern of data files that matches nothing but a folder.
    #[error(
        "{pattern} [{key}]: a folder without data; expected files, got none\nhint: name its files: \
         '{key}=[\"{}/*.jsonl\"]', or ** for those of the folders in it", folder.shown()
    )]
    Folder {
        /// The recipe's key.
        key: String,
        /// The absolute pattern.
        pattern: String,
        /// What it matches.
        folder: PathBuf,
    },
    /// A folder under a pattern that cannot be listed.
    #[error("{pattern}: cannot list the files; expected readable folders, got: {reason}")]
    Unlistable {
        /// The absolute pattern.
        pattern: String,
        /// What the system said.
        reason: String,
    },
    /// A warm-up as long as the run, found when the number of steps became known.
    #[error(
        "{} [optimizer.warmup_steps]: the warm-up fills the run; expected fewer than its {steps} \
         steps, got {warmup}\nhint: leave the key out: the warm-up is then a 20th of the run, and \
         at most 375 steps", path.shown()
    )]
    WarmupTooLong {
        /// The recipe.
        path: PathBuf,
        /// Steps of warm-up asked for.
        warmup: u64,
        /// Steps of the run.
        steps: u64,
    },
}

impl RecipeError {
    /// Every mistake with its place; empty unless the recipe was read and is not valid.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid { problems } => problems,
            _ => &[],
        }
    }

    /// How many mistakes this error reports, at least 1.
    pub fn count(&self) -> usize {
        self.problems().len().max(1)
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\nerror: ")
}

/// How files are named there: as an option, or as a key of the recipe.
fn on_the_command_line(key: &str) -> String {
    if key.starts_with("--") {
        format!("{key} '/my/text/*.jsonl'")
    } else {
        format!("'{key}=[\"/my/text/*.jsonl\"]'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(line: usize, hint: Option<&str>) -> Problem {
        Problem {
            place: Location::File { path: Path::new("r.toml").into(), line, column: 1 },
            key: "data.seq_length".into(),
            message: "unknown key".into(),
            hint: hint.map(String::from),
        }
    }

    #[test]
    fn printed_after_error_every_problem_has_its_line() {
        let hint = Some("did you mean `seq_len`?");
        let error = RecipeError::Invalid { problems: vec![problem(3, hint), problem(7, None)] };
        assert_eq!(
            format!("error: {error}"),
            "error: r.toml:3:1 [data.seq_length]: unknown key\nhint: did you mean `seq_len`?\n\
             error: r.toml:7:1 [data.seq_length]: unknown key"
        );
        assert_eq!(error.count(), 2);
    }

    #[test]
    fn the_command_line_is_a_place_without_a_line() {
        let problem = Problem { place: Location::CommandLine, ..problem(1, None) };
        assert_eq!(problem.to_string(), "command line [data.seq_length]: unknown key");
    }
}
