//! Scores on disk as soon as they exist, with what they depend on; and the log of all rows.

use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bitnet_eval::TaskRecord;
use bitnet_format::input::{LARGEST_TEXT, open_file, read_text};
use bitnet_format::staged::{OnExisting, StagedFile, write_file};
use serde_json::{Map, Value, json};

use crate::eval_settings::PLACES;
use crate::failure::BadInput;

/// The longest first line of a file with rows: a key and little else.
const LONGEST_KEY: u64 = 1 << 10;

/// How each line of a log begins, and what follows its first value. Rows of a data set may begin alike.
const LOG_MARKS: [&[u8]; 2] = [b"{\"task\":\"", b"\",\"doc_id\":"];

/// The rows of a task as an earlier run kept them.
struct RowsFile {
    key: String,
    /// What follows the line with the key.
    rows: BufReader<fs_err::File>,
}

impl RowsFile {
    /// `None` for a file that does not begin with a key of ours.
    fn open(path: &Path) -> anyhow::Result<Option<Self>> {
        let mut rows = BufReader::new(open_file(path)?);
        let mut line = Vec::new();
        rows.by_ref().take(LONGEST_KEY).read_until(b'\n', &mut line)?;
        let first: Value = serde_json::from_slice(&line).unwrap_or(Value::Null);
        let is_key = first.as_object().is_some_and(|fields| fields.len() == 1);
        let key = first["key"].as_str().filter(|_| is_key).map(str::to_owned);
        Ok(key.map(|key| Self { key, rows }))
    }
}

/// Whether a file is empty or begins as a log of rows does.
fn is_log(path: &Path) -> std::io::Result<bool> {
    let mut start = Vec::new();
    fs_err::File::open(path)?.take(LONGEST_KEY).read_to_end(&mut start)?;
    let [first, second] = LOG_MARKS;
    let is_row = start.starts_with(first) && start.windows(second.len()).any(|part| part == second);
    Ok(start.is_empty() || is_row)
}

/// A folder may hold files of the user's under the name of a task.
fn not_ours(path: &Path) -> BadInput {
    let what = "is no result of this program, so it is not replaced; choose another path";
    BadInput(format!("{}: {what}", path.display()))
}

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
            if path.exists() && !is_log(path)? {
                return Err(not_ours(path).into());
            }
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
        for place in PLACES {
            all.remove(place);
        }
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
            if TaskRecord::from_json(&old["result"]).is_none() {
                return Err(not_ours(&path).into());
            }
        }
        let text = json!({"key": key, "result": record.to_json()}).to_string() + "\n";
        Ok(write_file(&path, text.as_bytes(), OnExisting::Replace)?)
    }

    /// Where the rows of a task are kept for a later `--resume`: the log itself has its name only
    /// at the end, and a run that is killed leaves none.
    fn rows_file(&self, task: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{task}.rows.jsonl")))
    }

    /// Writes the rows of a task, if rows were asked for.
    pub(crate) fn log(
        &mut self,
        task: &str,
        key: &str,
        rows: impl Iterator<Item = Value>,
    ) -> anyhow::Result<()> {
        let path = self.rows_file(task);
        let Some((_, writer)) = &mut self.log else { return Ok(()) };
        let text: String = rows.map(|row| format!("{row}\n")).collect();
        writer.write_all(text.as_bytes())?;
        let Some(path) = path else { return Ok(()) };
        if path.exists() && RowsFile::open(&path)?.is_none() {
            return Err(not_ours(&path).into());
        }
        let text = format!("{}\n{text}", json!({"key": key}));
        Ok(write_file(&path, text.as_bytes(), OnExisting::Replace)?)
    }

    /// Writes the rows that an earlier run kept, if rows were asked for; `false` where there are
    /// none that depend on the same.
    pub(crate) fn log_kept(&mut self, task: &str, key: &str) -> anyhow::Result<bool> {
        let path = self.rows_file(task);
        let Some((_, writer)) = &mut self.log else { return Ok(true) };
        let Some(path) = path.filter(|path| path.exists()) else { return Ok(false) };
        let Some(mut kept) = RowsFile::open(&path)?.filter(|kept| kept.key == key) else {
            return Ok(false);
        };
        std::io::copy(&mut kept.rows, writer)?;
        Ok(true)
    }

    /// Gives the log its name.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let Some((staged, mut writer)) = self.log else { return Ok(()) };
        writer.flush()?;
        drop(writer);
        Ok(staged.publish()?)
    }
}
