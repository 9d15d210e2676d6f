//! Scores on disk as soon as they exist, with what they depend on; and the log of all rows.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use bitnet_eval::TaskRecord;
use bitnet_format::input::{LARGEST_TEXT, read_text};
use bitnet_format::staged::{OnExisting, StagedFile, write_file};
use serde_json::{Map, Value, json};

use crate::failure::BadInput;

/// Where results go, if anywhere.
pub(crate) struct ResultStore {
    folder: Option<PathBuf>,
    log: Option<(StagedFile, BufWriter<fs_err::File>)>,
}

impl ResultStore {
    pub(crate) fn open(folder: Option<&Path>, log: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(folder) = folder {
            fs_err::create_dir_all(folder)?;
        }
        let begin = |path: &Path| -> anyhow::Result<_> {
            let staged = StagedFile::beside(path, OnExisting::Replace)?;
            let writer = BufWriter::new(fs_err::File::create(staged.path())?);
            Ok((staged, writer))
        };
        Ok(Self { folder: folder.map(Path::to_owned), log: log.map(begin).transpose()? })
    }

    /// Identifies all that a task's scores depend on. Where a model lies is not part of it.
    pub(crate) fn key(
        settings: &Map<String, Value>,
        own: &Map<String, Value>,
        shots: usize,
    ) -> String {
        let mut all = settings.clone();
        // `model_hash` names it whatever its folder is called.
        all.remove("model");
        let text = json!([all, own, shots]).to_string();
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    fn file(&self, task: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{task}.json")))
    }

    /// The scores of a task, if they stand there and depend on the same.
    pub(crate) fn finished(&self, task: &str, key: &str) -> Option<TaskRecord> {
        let text = read_text(&self.file(task)?, LARGEST_TEXT).ok()?;
        let json: Value = serde_json::from_str(&text).ok()?;
        if json["key"] == key { TaskRecord::from_json(&json["result"]) } else { None }
    }

    /// Writes the scores of a task; a file that is not an earlier result of ours is left alone.
    pub(crate) fn save(&self, record: &TaskRecord, key: &str) -> anyhow::Result<()> {
        let Some(path) = self.file(&record.name) else { return Ok(()) };
        if path.exists() {
            let text = read_text(&path, LARGEST_TEXT)?;
            let old = serde_json::from_str(&text).unwrap_or(Value::Null);
            // A folder may hold files of the user's under the name of a task.
            if TaskRecord::from_json(&old["result"]).is_none() {
                let what =
                    "is no result of this program, so it is not replaced; choose another --out";
                return Err(BadInput(format!("{}: {what}", path.display())).into());
            }
        }
        let text = json!({"key": key, "result": record.to_json()}).to_string() + "\n";
        Ok(write_file(&path, text.as_bytes(), OnExisting::Replace)?)
    }

    /// Writes a row.
    pub(crate) fn log(&mut self, line: &Value) -> std::io::Result<()> {
        match &mut self.log {
            Some((_, writer)) => writeln!(writer, "{line}"),
            None => Ok(()),
        }
    }

    /// Gives the log its name.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let Some((staged, mut writer)) = self.log else { return Ok(()) };
        writer.flush()?;
        drop(writer);
        Ok(staged.publish()?)
    }
}
