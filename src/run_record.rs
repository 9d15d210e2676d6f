//! `run.json`: what a run directory says of itself. It makes the directory ours, names the run whose
//! checkpoints lie there, the processes whose half-written files may lie there, and what of the
//! finished model has been published.

use std::collections::BTreeMap;
use std::path::Path;

use bitnet_format::staged::{OnExisting, write_file};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::platform;

/// Its name.
pub(crate) const RECORD_FILE: &str = "run.json";
/// Far above what we write; a larger file is not ours.
const MAX_BYTES: u64 = 1 << 20;

/// The contents of `run.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// The run whose checkpoints lie here; empty before the first step.
    #[serde(default)]
    pub(crate) run_id: String,
    /// Processes that wrote here since the last cleaning.
    #[serde(default)]
    pub(crate) writers: Vec<u32>,
    /// What was published of the trained model.
    #[serde(default)]
    pub(crate) published: Published,
    /// What trains, and where; none before the first step.
    // Flattened, so that `steps` and the others are keys of the file itself. `None` where
    // one of them is not there.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) facts: Option<RunFacts>,
}

/// What trains and where, for those who look at a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunFacts {
    /// Steps of the whole run.
    pub(crate) steps: u64,
    /// Parameters of the model.
    pub(crate) parameters: u64,
    /// What it runs on, by name.
    pub(crate) machine: BTreeMap<String, String>,
}

impl RunFacts {
    /// The facts of a run on this machine.
    pub(crate) fn here(steps: u64, parameters: u64, device: &str, ranks: usize) -> Self {
        let facts = [
            ("cpu", platform::cpu_name().unwrap_or_default()),
            ("cores", platform::cores().len().to_string()),
            ("device", device.to_owned()),
            ("processes", ranks.to_string()),
            ("system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        // No cores are listed where the system does not tell.
        let known = facts.into_iter().filter(|(_, fact)| !fact.is_empty() && fact != "0");
        let machine = known.map(|(name, fact)| (name.to_owned(), fact)).collect();
        Self { steps, parameters, machine }
    }
}

/// What of a trained model has been published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Published {
    /// The run and the step that the final folder is of; without one, it is of nothing.
    pub(crate) of: Option<(String, u64)>,
    /// Names of the formats that were exported from it and verified.
    pub(crate) exports: Vec<String>,
}

impl Published {
    /// What there is of the model of this step.
    pub(crate) fn of_step(self, run_id: &str, step: u64) -> Self {
        if self.of.as_ref().is_some_and(|of| (of.0.as_str(), of.1) == (run_id, step)) {
            return self;
        }
        Self::default()
    }
}

impl RunRecord {
    /// The record of a directory; `None` if there is none, or it cannot be read.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        let path = dir.join(RECORD_FILE);
        let meta = path.metadata().ok()?;
        // A broken record counts as none: then the other contents decide whether the directory
        // is ours.
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return None;
        }
        serde_json::from_slice(&fs_err::read(path).ok()?).ok()
    }

    /// Replaces that of a directory.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), TrainError> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain fields become JSON");
        text.push(b'\n');
        Ok(write_file(&dir.join(RECORD_FILE), &text, OnExisting::Replace)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_belongs_to_one_step_of_one_run() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(RunRecord::read(dir.path()), None);
        let published = Published { of: Some(("a".into(), 7)), exports: vec!["hf-packed".into()] };
        let record = RunRecord {
            run_id: "a".into(),
            writers: vec![3],
            published,
            facts: Some(RunFacts::here(9, 100, "flex", 1)),
        };
        assert!(RunRecord::default().facts.is_none());
        record.write(dir.path()).unwrap();
        assert_eq!(RunRecord::read(dir.path()), Some(record.clone()));
        assert_eq!(record.published.clone().of_step("a", 7), record.published);
        for (run, step) in [("a", 8), ("b", 7)] {
            assert_eq!(record.published.clone().of_step(run, step), Published::default());
        }
        fs_err::write(dir.path().join(RECORD_FILE), "{").unwrap();
        assert_eq!(RunRecord::read(dir.path()), None);
    }
}
