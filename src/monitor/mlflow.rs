//! A run in the file store of `MLflow`, which `mlflow ui --backend-store-uri RUN/mlruns` shows.
//!
//! ```text
//! mlruns/EXPERIMENT/meta.yaml
//! mlruns/EXPERIMENT/RUN/meta.yaml
//! mlruns/EXPERIMENT/RUN/{params,tags}/NAME     a value
//! mlruns/EXPERIMENT/RUN/metrics/NAME           lines "milliseconds value step"
//! ```
//!
//! The log is the source: a resumed run writes its metrics anew from it, so that a line that a kill has
//! cut or lost is whole again.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fs_err::{self as fs, OpenOptions};
use serde_json::{Value, json};

use super::curves::{Point, missing, points};
use super::unwritten;

/// How `MLflow` numbers what a run is doing.
const RUNNING: u8 = 1;
const FINISHED: u8 = 3;

/// The longest time that a viewer waits for what was written.
const FLUSH_EVERY: Duration = Duration::from_secs(2);

/// What a full disk may keep in memory; lines beyond it are dropped, and the next resume has them.
const MOST_UNWRITTEN: usize = 8 << 20;

/// What a run is called in the store.
#[derive(Clone, Copy, Debug)]
pub struct TrackedRun<'a> {
    /// The recipe's name, which is the experiment's too.
    pub name: &'a str,
    /// The run's own id.
    pub id: &'a str,
    /// Every setting under its dotted key.
    pub settings: &'a BTreeMap<String, String>,
}

/// An open run of the store.
#[derive(Debug)]
pub(super) struct MlflowRun {
    folder: PathBuf,
    meta: Value,
    /// Lines of each metric that are not on disk.
    unwritten: BTreeMap<String, Vec<u8>>,
    flushed: Instant,
}

impl Drop for MlflowRun {
    fn drop(&mut self) {
        // Curves end no run, and the next one draws from the log what they lack.
        let _ = self.flush();
    }
}

impl MlflowRun {
    /// Creates the run in the store `store`, or takes it up again after step `last`.
    pub(super) fn open(
        store: &Path,
        run: TrackedRun<'_>,
        log: &Path,
        last: u64,
    ) -> io::Result<Self> {
        let experiment = number_of(run.name);
        let home = store.join(&experiment);
        let id = identifier(run.id);
        let folder = home.join(&id);
        for part in ["metrics", "params", "tags", "artifacts"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let now = milliseconds();
        // A resumed run began when it first did, and so did its experiment.
        let since = |meta: &Path, field: &str| kept_time(meta, field).unwrap_or(now);
        let created = since(&home.join("meta.yaml"), "creation_time");
        let of_experiment = json!({
            "artifact_location": address(&home)?, "creation_time": created, "experiment_id": experiment,
            "last_update_time": now, "lifecycle_stage": "active", "name": run.name,
        });
        write_yaml(&home.join("meta.yaml"), &of_experiment)?;
        let started = since(&folder.join("meta.yaml"), "start_time");
        // The fields of MLflow's `RunInfo`; a source of type 4 is a local program.
        let meta = json!({
            "artifact_uri": address(&folder.join("artifacts"))?, "end_time": null, "entry_point_name": "",
            "experiment_id": experiment, "lifecycle_stage": "active", "run_id": id, "run_uuid": id,
            "run_name": run.name, "source_name": "bitnet-train", "source_type": 4,
            "source_version": "", "start_time": started, "status": RUNNING, "tags": [], "user_id": "",
        });
        write_yaml(&folder.join("meta.yaml"), &meta)?;
        fs::write(folder.join("tags").join("mlflow.runName"), run.name)?;
        for (key, value) in run.settings {
            fs::write(folder.join("params").join(file_name(key)), value)?;
        }
        let mut this = Self { folder, meta, unwritten: BTreeMap::new(), flushed: Instant::now() };
        this.write_anew(log, last)?;
        Ok(this)
    }

    /// Writes what the log says up to step `last` in place of what is there.
    fn write_anew(&mut self, log: &Path, last: u64) -> io::Result<()> {
        let metrics = self.folder.join("metrics");
        // A kill may have cut a line in half, and lines after step `last` are void.
        fs::remove_dir_all(&metrics)?;
        fs::create_dir_all(&metrics)?;
        if last > 0 && log.exists() {
            for line in missing(log, 0, last)? {
                self.keep(&line);
            }
        }
        self.flush()
    }

    /// Adds what a line of the log says.
    pub(super) fn line(&mut self, line: &Value) -> io::Result<()> {
        if self.unwritten.values().map(Vec::len).sum::<usize>() < MOST_UNWRITTEN {
            self.keep(line);
        }
        if self.flushed.elapsed() >= FLUSH_EVERY { self.flush() } else { Ok(()) }
    }

    fn keep(&mut self, line: &Value) {
        let Some((step, points)) = points(line) else { return };
        let now = milliseconds();
        let mut keep = |name: &str, value: f64| {
            let lines = self.unwritten.entry(file_name(name)).or_default();
            // `{:?}` writes what Python's `float` reads: NaN, inf, 1e-7.
            let _ = writeln!(lines, "{now} {value:?} {step}");
        };
        for (name, point) in points {
            match point {
                Point::Scalar(value) => keep(&name, value),
                Point::Codes(shares) => {
                    for (code, share) in ["minus", "zero", "plus"].into_iter().zip(shares) {
                        keep(&format!("{name}/{code}"), share);
                    }
                }
            }
        }
    }

    /// Passes what is kept to the operating system.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.flushed = Instant::now();
        // A metric leaves the map once it is on disk: what a full disk refuses is tried again.
        while let Some(mut metric) = self.unwritten.first_entry() {
            let path = self.folder.join("metrics").join(metric.key());
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            unwritten::drain(&mut file, metric.get_mut())?;
            metric.remove();
        }
        Ok(())
    }

    /// Says that the run is finished.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        (self.meta["status"], self.meta["end_time"]) = (json!(FINISHED), json!(milliseconds()));
        write_yaml(&self.folder.join("meta.yaml"), &self.meta)
    }
}

/// A metric's file; `MLflow` allows letters, digits and these, and a slash makes a folder.
fn file_name(name: &str) -> String {
    let allowed = |c: char| if c.is_alphanumeric() || "_-. /".contains(c) { c } else { '_' };
    let parts = name.split('/').filter(|part| !["", ".", ".."].contains(part));
    parts.collect::<Vec<_>>().join("/").chars().map(allowed).collect()
}

/// Eighteen digits, as `MLflow` numbers experiments.
fn number_of(name: &str) -> String {
    // From the name, so that runs of one recipe share an experiment; from 10^17 on, so that
    // none begins with a zero.
    let hash = blake3::hash(name.as_bytes());
    let bytes = hash.as_bytes().first_chunk::<8>().expect("a hash has 32 bytes");
    format!(
        "{:018}",
        u64::from_le_bytes(*bytes) % 900_000_000_000_000_000 + 100_000_000_000_000_000
    )
}

/// Thirty-two hexadecimal digits, as `MLflow` names runs.
fn identifier(id: &str) -> String {
    blake3::hash(id.as_bytes()).to_hex()[..32].to_owned()
}

/// A folder as a URI.
fn address(folder: &Path) -> io::Result<String> {
    let path = std::path::absolute(folder)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    let text = path.to_string_lossy().replace('\\', "/");
    let escaped = text.bytes().map(|byte| {
        if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    });
    Ok(format!("file://{}", escaped.collect::<String>()))
}

/// A flat mapping; JSON's scalars are YAML's.
fn write_yaml(path: &Path, object: &Value) -> io::Result<()> {
    let entries = object.as_object().into_iter().flatten();
    let lines: String = entries.map(|(key, value)| format!("{key}: {value}\n")).collect();
    fs::write(path, lines)
}

/// A time that an earlier part of the run wrote into a `meta.yaml`.
fn kept_time(meta: &Path, field: &str) -> Option<u64> {
    let text = fs::read_to_string(meta).ok()?;
    text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(": ")?.parse().ok())
}

fn milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(store: &Path, log: &Path, last: u64) -> MlflowRun {
        let settings = BTreeMap::from([("train.batch".to_owned(), "4".to_owned())]);
        let run = TrackedRun { name: "tiny: one", id: "abc", settings: &settings };
        MlflowRun::open(store, run, log, last).unwrap()
    }

    fn values(run: &MlflowRun, name: &str) -> Vec<(String, u64)> {
        let text = fs::read_to_string(run.folder.join("metrics").join(name)).unwrap();
        let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        fields.map(|it| (it[1].to_owned(), it[2].parse().unwrap())).collect()
    }

    #[test]
    fn metrics_are_whole_after_a_kill_and_a_resume() {
        let dir = tempfile::tempdir().unwrap();
        let (store, log) = (dir.path().join("mlruns"), dir.path().join("metrics.jsonl"));
        let mut run = open(&store, &log, 0);
        for step in 1..=3 {
            run.line(&json!({"step": step, "loss": 4.0 / f64::from(step)})).unwrap();
        }
        run.line(
            &json!({"step": 3, "ternary": {"all": {"minus": 0.25, "zero": 0.5, "plus": 0.25}}}),
        )
        .unwrap();
        run.flush().unwrap();
        assert_eq!(values(&run, "train/loss").len(), 3);
        assert_eq!(values(&run, "codes/all/zero"), [("0.5".to_owned(), 3)]);
        // Killed after step 3; the log has two steps and a checkpoint of the second.
        let lines = "{\"step\":1,\"loss\":4.0}\n{\"step\":2,\"loss\":null}\n{\"step\":3,\"lo";
        fs::write(&log, lines).unwrap();
        let mut run = open(&store, &log, 2);
        let expected = [("4.0".to_owned(), 1), ("NaN".to_owned(), 2)];
        assert_eq!(values(&run, "train/loss"), expected);
        run.line(&json!({"step": 3, "loss": 1.0})).unwrap();
        run.finish().unwrap();
        assert_eq!(values(&run, "train/loss").len(), 3);
        let meta = fs::read_to_string(run.folder.join("meta.yaml")).unwrap();
        assert!(
            meta.contains("\nstatus: 3\n") && meta.contains("run_name: \"tiny: one\""),
            "{meta}"
        );
        let setting = run.folder.join("params/train.batch");
        assert_eq!(fs::read_to_string(setting).unwrap(), "4");
    }

    #[test]
    fn a_resumed_run_keeps_the_time_it_began() {
        let dir = tempfile::tempdir().unwrap();
        let (store, log) = (dir.path().join("mlruns"), dir.path().join("metrics.jsonl"));
        let first = open(&store, &log, 0);
        let meta = first.folder.join("meta.yaml");
        let text = fs::read_to_string(&meta).unwrap();
        let began = kept_time(&meta, "start_time").unwrap();
        fs::write(&meta, text.replace(&began.to_string(), "1234")).unwrap();
        drop(first);
        let again = open(&store, &log, 0);
        assert_eq!(kept_time(&again.folder.join("meta.yaml"), "start_time"), Some(1234));
    }

    #[test]
    fn names_stay_inside_the_store() {
        assert_eq!(file_name("../../eval/a:b"), "eval/a_b");
        assert_eq!(number_of("tiny").len(), 18);
        assert_eq!(identifier("abc").len(), 32);
        assert!(address(Path::new("/a b/c")).unwrap().ends_with("/a%20b/c"));
    }
}
