//! PEFT's `adapter_config.json`, read and written.
//!
//! What decides the arithmetic is rank, alpha and the targets. A setting that would change it in
//! another way is refused rather than left out.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{AdapterDescription, LowRankFactor};
use crate::json::read_object;
use crate::tensors::TensorFile;
use crate::{FormatError, ModelSpec, TensorEntry, TensorRole, tensor_table};

/// What we read of an `adapter_config.json`.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    pub(super) rank: usize,
    /// Rank times scale, whichever way the file says it.
    pub(super) alpha: f32,
    pub(super) base_path: String,
    targets: Targets,
}

/// `target_modules`.
#[derive(Debug)]
enum Targets {
    /// Names of modules, or ends of their paths.
    Named(Vec<String>),
    /// A pattern: the matrices are those that the file holds.
    Pattern(String),
}

/// The largest rank: a matrix of this one is not small any more.
pub const LARGEST_RANK: u64 = 1 << 16;

/// Keys that must be absent, null or this, because anything else changes the arithmetic.
const ONLY: [(&str, &str); 12] = [
    ("bias", r#""none""#),
    ("fan_in_fan_out", "false"),
    ("lora_bias", "false"),
    ("use_dora", "false"),
    ("use_qalora", "false"),
    ("use_bdlora", "false"),
    ("rank_pattern", "{}"),
    ("alpha_pattern", "{}"),
    ("modules_to_save", "[]"),
    ("trainable_token_indices", "[]"),
    ("target_parameters", "[]"),
    ("alora_invocation_tokens", "[]"),
];

/// Settings of [`ONLY`]'s kind without a value that means nothing.
const ABSENT: [&str; 6] = [
    "layer_replication",
    "layers_to_transform",
    "layers_pattern",
    "kasa_config",
    "monteclora_config",
    "velora_config",
];

/// Ways to start an adapter that change the weights of its model.
const CHANGING_STARTS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl AdapterConfig {
    pub(super) fn read(path: &Path) -> Result<Self, FormatError> {
        let keys = read_object(path)?;
        Self::of_keys(&keys).map_err(|(field, what)| FormatError::config(path, field, what))
    }

    fn of_keys(keys: &Map<String, Value>) -> Result<Self, (&'static str, String)> {
        match present(keys, "peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            _ => return Err(("peft_type", expected(keys, "peft_type", "\"LORA\""))),
        }
        check_neutral(keys)?;
        let rank = present(keys, "r").and_then(Value::as_u64);
        let rank = rank.filter(|rank| (1..=LARGEST_RANK).contains(rank));
        let rank = rank.ok_or_else(|| ("r", expected(keys, "r", "a whole number from 1")))?;
        let alpha = present(keys, "lora_alpha").and_then(Value::as_f64).map(|alpha| alpha as f32);
        let alpha = alpha.filter(|alpha| alpha.is_finite());
        let alpha =
            alpha.ok_or_else(|| ("lora_alpha", expected(keys, "lora_alpha", "a number")))?;
        // Rank-stabilised: the scale is alpha / √r.
        let stabilised = present(keys, "use_rslora").and_then(Value::as_bool).unwrap_or(false);
        // Kept as an alpha whose `alpha / r` is that scale: `α / √r = (α · √r) / r`.
        let alpha = if stabilised { alpha * (rank as f32).sqrt() } else { alpha };
        let base_path = present(keys, "base_model_name_or_path").and_then(Value::as_str);
        Ok(Self {
            rank: rank as usize,
            alpha,
            base_path: base_path.unwrap_or_default().to_owned(),
            targets: targets(keys)?,
        })
    }

    /// The matrices of a model that the targets name.
    pub(super) fn adapted(
        &self,
        path: &Path,
        spec: &ModelSpec,
        file: &TensorFile,
    ) -> Result<Vec<TensorEntry>, FormatError> {
        let wrong = |what| FormatError::config(path, TARGETS, what);
        // A pattern is Python's regular expression; what it matched shows in the file.
        let pattern = match &self.targets {
            Targets::Named(names) => return matching_entries(spec, names).map_err(wrong),
            Targets::Pattern(pattern) => pattern,
        };
        let held = |entry: &TensorEntry| {
            LowRankFactor::BOTH.iter().any(|factor| file.contains(&factor.tensor_name(entry)))
        };
        let found: Vec<_> = linear_entries(spec).filter(held).collect();
        if found.is_empty() {
            let what = format!("is {pattern:?}, and the file holds {NO_MATRIX}");
            return Err(wrong(what));
        }
        Ok(found)
    }
}

const TARGETS: &str = "target_modules";
const NO_MATRIX: &str = "factors of no matrix of this model";

fn present<'a>(keys: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    keys.get(key).filter(|value| !value.is_null())
}

fn expected(keys: &Map<String, Value>, key: &str, what: &str) -> String {
    match present(keys, key) {
        Some(value) => format!("is {value}; expected {what}"),
        None => format!("is missing; expected {what}"),
    }
}

fn check_neutral(keys: &Map<String, Value>) -> Result<(), (&'static str, String)> {
    for (key, only) in ONLY {
        let found = present(keys, key).map(Value::to_string);
        if let Some(found) = found.filter(|found| found != only && found != "false") {
            return Err((key, format!("is {found}, which is not followed; expected {only}")));
        }
    }
    for key in ABSENT {
        if let Some(found) = present(keys, key) {
            return Err((key, format!("is {found}, which is not followed; expected null")));
        }
    }
    let start = present(keys, "init_lora_weights").and_then(Value::as_str).unwrap_or_default();
    if CHANGING_STARTS.iter().any(|known| start.starts_with(known)) {
        let what = format!("is {start:?}, which changes the model's weights; expected true");
        return Err(("init_lora_weights", what));
    }
    Ok(())
}

fn targets(keys: &Map<String, Value>) -> Result<Targets, (&'static str, String)> {
    let wrong = || (TARGETS, expected(keys, TARGETS, "a list of names"));
    match present(keys, TARGETS).ok_or_else(wrong)? {
        Value::String(pattern) => Ok(Targets::Pattern(pattern.clone())),
        Value::Array(names) => {
            let names = names.iter().map(|name| name.as_str().map(str::to_owned));
            Ok(Targets::Named(names.collect::<Option<_>>().ok_or_else(wrong)?))
        }
        _ => Err(wrong()),
    }
}

/// The matrices of all blocks.
fn linear_entries(spec: &ModelSpec) -> impl Iterator<Item = TensorEntry> + use<> {
    let is_linear = |entry: &TensorEntry| matches!(entry.role, TensorRole::Linear(_));
    tensor_table(spec).into_iter().filter(is_linear)
}

/// The path of the module that a tensor belongs to: its name without `.weight`.
pub fn module_of(entry: &TensorEntry) -> &str {
    entry.name.strip_suffix(".weight").unwrap_or(&entry.name)
}

/// The name of a module inside its parent, such as `q_proj`.
fn leaf(entry: &TensorEntry) -> &str {
    module_of(entry).rsplit('.').next().unwrap_or_default()
}

/// The matrices of blocks that `targets` name, in the order of the table. As in PEFT, a target is
/// the path of a module or the end of one, such as `q_proj`.
///
/// # Errors
/// Says which target matches none, or that there is no target.
pub fn matching_entries(spec: &ModelSpec, targets: &[String]) -> Result<Vec<TensorEntry>, String> {
    let matches = |entry: &TensorEntry, target: &str| {
        let rest = module_of(entry).strip_suffix(target);
        rest.is_some_and(|rest| !target.is_empty() && (rest.is_empty() || rest.ends_with('.')))
    };
    let all: Vec<_> = linear_entries(spec).collect();
    let names = || all.iter().map(leaf).take(MATRICES).collect::<Vec<_>>().join(", ");
    if targets.is_empty() {
        return Err(format!("is empty; expected some of {}", names()));
    }
    for target in targets {
        if !all.iter().any(|entry| matches(entry, target)) {
            return Err(format!("{target:?} matches no matrix of a block; expected {}", names()));
        }
    }
    let named = |entry: &TensorEntry| targets.iter().any(|target| matches(entry, target));
    Ok(all.iter().filter(|entry| named(entry)).cloned().collect())
}

/// Matrices of a block.
const MATRICES: usize = 7;

/// The targets that match exactly these matrices: the name that all blocks share where all of them
/// are adapted, else the path.
fn names_of(spec: &ModelSpec, adapted: &[TensorEntry]) -> Vec<String> {
    let mut names = Vec::new();
    for entry in adapted {
        let count = adapted.iter().filter(|other| leaf(other) == leaf(entry)).count();
        // A leaf's name would adapt the other blocks too, where PEFT finds no factors for them.
        let everywhere = count == spec.num_hidden_layers;
        let name = if everywhere { leaf(entry) } else { module_of(entry) };
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// The text of an `adapter_config.json` that `LoraConfig.from_pretrained` reads.
pub(super) fn to_json(
    description: &AdapterDescription,
    spec: &ModelSpec,
    adapted: &[TensorEntry],
) -> String {
    let alpha = description.alpha;
    // PEFT's own files have an integer here.
    let whole = alpha.fract() == 0.0 && alpha.abs() < 1e9;
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": description.base_path,
        "r": description.rank,
        "lora_alpha": if whole { json!(alpha as i64) } else { json!(alpha) },
        "lora_dropout": 0.0,
        "target_modules": names_of(spec, adapted),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "use_rslora": false,
        "use_dora": false,
    });
    let text = serde_json::to_string_pretty(&config).expect("a JSON value always serialises");
    text + "\n"
}
