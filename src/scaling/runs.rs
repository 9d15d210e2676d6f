//! What finished runs measured, read from their directories.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Error, ErrorKind};
use std::path::{Path, PathBuf};

use bitnet_format::{HfConfig, Shown};
use serde_json::Value;
use toml::Table;

use super::ladder::WeightKind;
use super::law::LossPoint;
use crate::error::TrainError;
use crate::run_dir::{FINAL_DIR, METRICS_FILE, RESOLVED_FILE};

/// Keys of a resolved recipe whose values decide what a held-out loss means.
const COMPARED: [&[&str]; 5] = [
    &["tokenizer"],
    &["data", "validation"],
    &["data", "generate"],
    &["data", "seq_len"],
    &["data", "long_rows"],
];

/// A run that made its last step and was evaluated after it.
#[derive(Clone, Debug)]
pub struct MeasuredRun {
    /// Its directory.
    pub path: PathBuf,
    /// Ternary or dense.
    pub kind: WeightKind,
    /// Its seed.
    pub seed: u64,
    /// Size, tokens and loss.
    pub point: LossPoint,
    /// Keys of its recipe that must be alike.
    compared: Vec<Option<toml::Value>>,
}

/// The runs of some directories.
#[derive(Clone, Debug, Default)]
pub struct FoundRuns {
    /// By size, tokens, kind and seed.
    pub measured: Vec<MeasuredRun>,
    /// Directories of runs that have not made their last step.
    pub unfinished: Vec<PathBuf>,
}

/// Reads runs, or all runs right inside directories. `set` is the held-out set whose loss counts; needed
/// only where there are several.
///
/// # Errors
/// When a path holds no run, a file is broken, or two runs were evaluated on different things.
pub fn read_runs(paths: &[PathBuf], set: Option<&str>) -> Result<FoundRuns, TrainError> {
    let mut found = FoundRuns::default();
    for path in run_dirs(paths)? {
        match read_run(&path, set)? {
            Some(run) => found.measured.push(run),
            None => found.unfinished.push(path),
        }
    }
    // Both are whole numbers; f64 has no order to sort by.
    let order = |run: &MeasuredRun| {
        let LossPoint { parameters, tokens, .. } = run.point;
        (parameters as u64, tokens as u64, run.kind, run.seed)
    };
    found.measured.sort_by_key(order);
    require_comparable(&found.measured)?;
    Ok(found)
}

/// The run directories that `paths` name.
fn run_dirs(paths: &[PathBuf]) -> Result<Vec<PathBuf>, TrainError> {
    let mut dirs = Vec::new();
    for path in paths {
        let is_run = |path: &Path| path.join(METRICS_FILE).is_file();
        if is_run(path) {
            dirs.push(path.clone());
            continue;
        }
        let entries = fs_err::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
        let inside: Vec<_> =
            entries.iter().map(fs_err::DirEntry::path).filter(|path| is_run(path)).collect();
        if inside.is_empty() {
            let what = format!("no run; expected a directory with {METRICS_FILE}, or one of such");
            return Err(broken(path, &what).into());
        }
        dirs.extend(inside);
    }
    // A run may be named itself and through the directory that holds it.
    dirs.sort();
    dirs.dedup();
    Ok(dirs)
}

/// `None` where the last step is not made.
fn read_run(path: &Path, set: Option<&str>) -> Result<Option<MeasuredRun>, TrainError> {
    // `final/` is written after the last step.
    let config = path.join(FINAL_DIR).join("config.json");
    if !config.is_file() {
        return Ok(None);
    }
    let spec = HfConfig::read(&config)?.spec;
    let recipe = path.join(RESOLVED_FILE);
    let text = fs_err::read_to_string(&recipe)?;
    let recipe: Table = text.parse().map_err(|error| broken(&recipe, &format!("{error}")))?;
    let seed = recipe.get("seed").and_then(toml::Value::as_integer).unwrap_or_default() as u64;
    let (tokens, loss) = last_loss(&path.join(METRICS_FILE), set)?;
    let point = LossPoint { parameters: spec.parameters() as f64, tokens: tokens as f64, loss };
    let compared = COMPARED.iter().map(|key| value_at(&recipe, key)).collect();
    let kind = if spec.quantise { WeightKind::Ternary } else { WeightKind::Dense };
    Ok(Some(MeasuredRun { path: path.to_owned(), kind, seed, point, compared }))
}

fn value_at(table: &Table, key: &[&str]) -> Option<toml::Value> {
    let (first, rest) = key.split_first()?;
    let value = table.get(*first)?;
    if rest.is_empty() { Some(value.clone()) } else { value_at(value.as_table()?, rest) }
}

/// Trained tokens and held-out loss of the last lines that have them.
fn last_loss(path: &Path, set: Option<&str>) -> Result<(u64, f64), TrainError> {
    let (mut tokens, mut losses) = (None, None);
    for (number, line) in (1..).zip(BufReader::new(fs_err::File::open(path)?).lines()) {
        let line: Value = serde_json::from_str(&line?).map_err(|error| {
            broken(&path.with_extension(format!("jsonl:{number}")), &error.to_string())
        })?;
        // The last lines count: a run that was resumed repeats steps further down in the file.
        tokens = line["tokens"].as_u64().or(tokens);
        let eval: Option<BTreeMap<String, Value>> =
            line.get("eval").and_then(|eval| serde_json::from_value(eval.clone()).ok());
        losses = eval.or(losses);
    }
    let losses = losses.unwrap_or_default();
    let name = chosen_set(path, &losses, set)?;
    let loss = losses[&name]["nll_per_token"].as_f64().filter(|loss| *loss > 0.0);
    let missing = |what: &str| broken(path, what);
    let loss = loss.ok_or_else(|| missing("[eval.nll_per_token]: expected a number above 0"))?;
    Ok((tokens.ok_or_else(|| missing("[tokens]: expected a line of a step, got none"))?, loss))
}

/// The held-out set that counts.
fn chosen_set(
    path: &Path,
    losses: &BTreeMap<String, Value>,
    set: Option<&str>,
) -> Result<String, TrainError> {
    let names: Vec<&str> = losses.keys().map(String::as_str).collect();
    match (set, &names[..]) {
        (_, []) => {
            Err(broken(path, "[eval]: expected an evaluation after the last step, got none"))
        }
        (Some(set), names) if names.contains(&set) => return Ok(set.to_owned()),
        (None, [one]) => return Ok((*one).to_owned()),
        (_, names) => {
            let what = format!("[eval]: expected --set {}", names.join(" or --set "));
            Err(broken(path, &what))
        }
    }
    .map_err(TrainError::from)
}

/// Refuses losses that mean different things.
fn require_comparable(runs: &[MeasuredRun]) -> Result<(), TrainError> {
    let Some(first) = runs.first() else { return Ok(()) };
    for run in runs {
        let differs = |at: &usize| run.compared[*at] != first.compared[*at];
        if let Some(at) = (0..COMPARED.len()).find(differs) {
            return Err(TrainError::Refused(format!(
                "{} and {} differ in {}, so their losses cannot be compared",
                first.path.shown(),
                run.path.shown(),
                COMPARED[at].join(".")
            )));
        }
    }
    Ok(())
}

fn broken(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("{}: {what}", path.shown()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"model_type":"bitnet","hidden_size":8,"intermediate_size":16,
        "num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"vocab_size":300,
        "hidden_act":"relu2","rope_theta":10000.0,"rms_norm_eps":1e-5,"tie_word_embeddings":true,
        "max_position_embeddings":64}"#;

    /// A run directory with these metrics.
    fn run(dir: &Path, name: &str, seq_len: u32, metrics: &str) {
        let path = dir.join(name);
        fs_err::create_dir_all(path.join(FINAL_DIR)).unwrap();
        fs_err::write(path.join(FINAL_DIR).join("config.json"), CONFIG).unwrap();
        let recipe = format!("seed = 4\n[data]\nseq_len = {seq_len}\n");
        fs_err::write(path.join(RESOLVED_FILE), recipe).unwrap();
        fs_err::write(path.join(METRICS_FILE), metrics).unwrap();
    }

    const STEPS: &str = "{\"step\":1,\"tokens\":64}\n{\"step\":1,\"eval\":{\"val\":{\"nll_per_token\":5.0}}}\n\
                         {\"event\":\"resume\",\"from_step\":1}\n{\"step\":2,\"tokens\":128}\n\
                         {\"step\":2,\"eval\":{\"val\":{\"nll_per_token\":4.5}}}\n";

    #[test]
    fn a_finished_run_has_the_loss_after_its_last_step() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), "one", 64, STEPS);
        run(dir.path(), "two", 64, STEPS);
        fs_err::remove_dir_all(dir.path().join("two").join(FINAL_DIR)).unwrap();
        let found = read_runs(&[dir.path().to_owned()], None).unwrap();
        assert_eq!(found.unfinished, [dir.path().join("two")]);
        let [one] = &found.measured[..] else { panic!("{found:?}") };
        assert_eq!((one.seed, one.point.tokens, one.point.loss), (4, 128.0, 4.5));
        assert!(one.kind == WeightKind::Dense && one.point.parameters > 2400.0);
    }

    #[test]
    fn runs_that_were_measured_differently_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), "one", 64, STEPS);
        run(dir.path(), "two", 32, STEPS);
        let error = read_runs(&[dir.path().to_owned()], None).unwrap_err();
        assert!(error.to_string().contains("data.seq_len"), "{error}");
        assert_eq!(error.exit_code(), 7);
    }

    #[test]
    fn missing_runs_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |paths: &[PathBuf], set| {
            let error = read_runs(paths, set).unwrap_err();
            assert_eq!(error.exit_code(), 4, "{error}");
            error.to_string()
        };
        let here = [dir.path().to_owned()];
        assert!(error(&here, None).contains("no run"));
        run(dir.path(), "one", 64, "{\"step\":1,\"tokens\":64}\nnonsense\n");
        assert!(error(&here, None).contains("metrics.jsonl:2"));
        run(dir.path(), "one", 64, "{\"step\":1,\"tokens\":64}\n");
        assert!(error(&here, None).contains("[eval]"));
        run(dir.path(), "one", 64, STEPS);
        assert!(error(&here, Some("hq")).contains("--set val"));
    }
}
