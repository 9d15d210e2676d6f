//! Where the curves of a run go: `TensorBoard`, `MLflow`, a command of the user's.

use std::io;
use std::path::Path;

use serde_json::Value;

use super::events::EventFile;
use super::line_command::LineCommand;
use super::mlflow::{MlflowRun, TrackedRun};

/// A program whose form of a run is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackerKind {
    /// Event files.
    TensorBoard,
    /// A file store.
    Mlflow,
}

impl TrackerKind {
    /// All, each with the word for it in a recipe.
    pub const WORDS: &'static [(&'static str, Self)] =
        &[("tensorboard", Self::TensorBoard), ("mlflow", Self::Mlflow)];

    /// The word for it in a recipe.
    pub fn name(self) -> &'static str {
        Self::WORDS.iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }
}

/// What follows a run.
#[derive(Debug, Default)]
pub struct Trackers {
    events: Option<EventFile>,
    mlflow: Option<MlflowRun>,
    command: Option<LineCommand>,
}

/// Where a run's files are, and how far it has come.
#[derive(Clone, Copy, Debug)]
pub struct TrackedFiles<'a> {
    /// Folder of the event files.
    pub events: &'a Path,
    /// The store of `MLflow`.
    pub mlflow: &'a Path,
    /// `metrics.jsonl`.
    pub log: &'a Path,
    /// The step after which the run goes on, if it does.
    pub resumed_from: Option<u64>,
}

impl Trackers {
    /// Opens what the recipe asks for.
    pub fn open(
        kinds: &[TrackerKind],
        command: Option<&str>,
        files: TrackedFiles<'_>,
        run: TrackedRun<'_>,
    ) -> io::Result<Self> {
        let mut this = Self::default();
        for kind in kinds {
            match (kind, files.resumed_from) {
                (TrackerKind::TensorBoard, Some(step)) => {
                    this.events = Some(EventFile::resume(files.events, files.log, step)?);
                }
                (TrackerKind::TensorBoard, None) => {
                    this.events = Some(EventFile::create(files.events)?);
                }
                (TrackerKind::Mlflow, step) => {
                    let last = step.unwrap_or(0);
                    this.mlflow = Some(MlflowRun::open(files.mlflow, run, files.log, last)?);
                }
            }
        }
        // Last, when nothing else can fail: a started command is not taken back.
        this.command = command.map(LineCommand::start).transpose()?;
        Ok(this)
    }

    /// Draws a line of the log.
    ///
    /// # Errors
    /// When the disk is full or broken.
    pub fn line(&mut self, line: &Value) -> io::Result<()> {
        self.events.as_mut().map_or(Ok(()), |events| events.line(line))?;
        self.mlflow.as_mut().map_or(Ok(()), |mlflow| mlflow.line(line))
    }

    /// Gives the command the line as it stands in the log; what to tell the user.
    pub fn command_line(&mut self, line: &str) -> Option<String> {
        self.command.as_mut()?.line(line)
    }

    /// Shows a text beside the curves.
    ///
    /// # Errors
    /// When the disk is full or broken.
    pub fn text(&mut self, tag: &str, step: u64, text: &str) -> io::Result<()> {
        self.events.as_mut().map_or(Ok(()), |events| events.text(tag, step, text))
    }

    /// Says that the run is finished; what to tell the user.
    ///
    /// # Errors
    /// When the disk is full or broken.
    pub fn finish(&mut self) -> io::Result<Option<String>> {
        self.events.as_mut().map_or(Ok(()), EventFile::flush)?;
        self.mlflow.as_mut().map_or(Ok(()), MlflowRun::finish)?;
        Ok(self.command.as_mut().and_then(LineCommand::finish))
    }
}
