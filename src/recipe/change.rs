//! What differs between two recipes, and whether a resumed run may change it.

use std::collections::BTreeMap;

use super::settings::Recipe;

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its dotted key; settings of a phase are under the phase's name.
    pub key: String,
    /// What it was, as TOML, or `unset`.
    pub old: String,
    /// What it is now.
    pub new: String,
    /// Whether a run may go on with it.
    pub class: ChangeClass,
}

/// Whether a resumed run may have a changed setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeClass {
    /// It may: the steps stay the same, up to rounding.
    Safe,
    /// Only with `--allow-change`: training differs from here on.
    NeedsAllow,
    /// It may not: the checkpoint would not fit.
    Fatal,
}

/// The class of every setting by the beginning of its key, the first that fits; others need to be
/// allowed.
const CLASSES: &[(&str, ChangeClass)] = &[
    // What gives a checkpoint its meaning: shapes, token ids, random draws, what the state is of.
    ("stage", ChangeClass::Fatal),
    ("seed", ChangeClass::Fatal),
    ("model", ChangeClass::Fatal),
    ("adapter", ChangeClass::Fatal),
    ("ternary_warmup", ChangeClass::Fatal),
    ("tokenizer", ChangeClass::Fatal),
    ("train.precision", ChangeClass::Fatal),
    ("train.gradient_rounding", ChangeClass::Fatal),
    ("optimizer.kind", ChangeClass::Fatal),
    ("data.seq_len", ChangeClass::Fatal),
    // How a step is cut and kept in memory, and what is written, shown and kept beside it.
    ("name", ChangeClass::Safe),
    ("train.micro_batch", ChangeClass::Safe),
    ("train.gradient_copies", ChangeClass::Safe),
    ("train.recompute", ChangeClass::Safe),
    ("train.shard_optimizer", ChangeClass::Safe),
    ("train.reduce_precision", ChangeClass::NeedsAllow),
    ("train.max_minutes", ChangeClass::Safe),
    ("data.validation", ChangeClass::Safe),
    ("data.cache", ChangeClass::Safe),
    ("data.max_bad_share", ChangeClass::Safe),
    ("eval", ChangeClass::Safe),
    ("checkpoint", ChangeClass::Safe),
    ("sample", ChangeClass::Safe),
    ("export", ChangeClass::Safe),
    ("telemetry", ChangeClass::Safe),
    ("report", ChangeClass::Safe),
    // When a run gives up changes none of its steps; a spike that is skipped does.
    ("guard.max_skipped", ChangeClass::Safe),
    ("guard.max_skipped_in_a_row", ChangeClass::Safe),
];

impl Recipe {
    /// Every setting under its dotted key.
    pub fn settings(&self) -> BTreeMap<String, String> {
        settings(self)
    }

    /// Every setting in which `other` differs, in order of their keys. The recipes' own paths do not
    /// count.
    pub fn diff(&self, other: &Self) -> Vec<Change> {
        let (old, new) = (settings(self), settings(other));
        let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
        keys.sort();
        keys.dedup();
        let value = |settings: &BTreeMap<String, String>, key: &String| {
            settings.get(key).cloned().unwrap_or_else(|| "unset".into())
        };
        let change = |key: &String| Change {
            key: key.clone(),
            old: value(&old, key),
            new: value(&new, key),
            class: class(key),
        };
        keys.into_iter().map(change).filter(|change| change.old != change.new).collect()
    }
}

impl Change {
    /// Whether the run may go on when these keys are allowed; a key includes all below it.
    pub fn is_allowed(&self, keys: &[String]) -> bool {
        match self.class {
            ChangeClass::Safe => true,
            ChangeClass::NeedsAllow => keys.iter().any(|key| is_under(&self.key, key)),
            ChangeClass::Fatal => false,
        }
    }
}

fn class(key: &str) -> ChangeClass {
    let found = CLASSES.iter().find(|(beginning, _)| is_under(key, beginning));
    found.map_or(ChangeClass::NeedsAllow, |(_, class)| *class)
}

fn is_under(key: &str, beginning: &str) -> bool {
    // Up to a dot: `data.validation` is not the beginning of `data.validation_share`.
    let rest = key.strip_prefix(beginning);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Every setting of a complete recipe under its dotted key.
fn settings(recipe: &Recipe) -> BTreeMap<String, String> {
    let mut found = bitnet_report::flat_recipe(&recipe.table());
    // Phases stand under their names; their order is a setting of its own.
    let names: Vec<&str> = recipe.phases.iter().map(|phase| &*phase.name).collect();
    found.insert("phase".into(), names.join(", "));
    found
}
