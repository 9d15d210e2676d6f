//! The phases of a run: what it is trained on in which part, and how fast.

use std::collections::{BTreeMap, BTreeSet};

use super::item::{Bound, Item};
use super::rate::{Rate, read_rate};
use super::section::Section;
use super::stage::StageKind;

/// How far the shares of all phases may lie from 1 together.
const SHARE_TOLERANCE: f64 = 1e-5;

/// A part of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// What it is called; unique within the run.
    pub name: String,
    /// The part of all steps it holds, above 0.
    pub share: f64,
    /// Its learning rate.
    pub learning_rate: Rate,
    /// Its weight decay, of matrices only.
    pub weight_decay: Rate,
    /// The weight of each set; at least one is above 0.
    pub data: BTreeMap<String, f64>,
}

/// What phases can be trained on.
pub(super) struct Sets {
    /// The names of all sets.
    pub(super) names: BTreeSet<String>,
    /// The mix of a phase that names none; empty where it must name one.
    pub(super) default: BTreeMap<String, f64>,
}

/// Reads all `[[phase]]`; where there are none, one phase `main` is the run.
pub(super) fn read_phases(root: &mut Section<'_>, stage: StageKind, sets: &Sets) -> Vec<Phase> {
    let list = "[[phase]] tables";
    match root.item("phase") {
        None => vec![default_phase(root, stage, sets)],
        Some(item) => match item.list(list) {
            None => Vec::new(),
            Some(items) if items.is_empty() => {
                item.problem(format!("no phase; expected {list}, got an empty list"));
                Vec::new()
            }
            Some(items) => read_all(&item, &items, stage, sets),
        },
    }
}

fn default_phase(root: &Section<'_>, stage: StageKind, sets: &Sets) -> Phase {
    if sets.default.is_empty() && !sets.names.is_empty() {
        root.missing("phase", "[[phase]] tables with the weights of the named sets");
    }
    Phase {
        name: "main".into(),
        share: 1.0,
        learning_rate: stage.default_learning_rate(),
        weight_decay: stage.default_weight_decay(),
        data: sets.default.clone(),
    }
}

fn read_all(list: &Item<'_>, items: &[Item<'_>], stage: StageKind, sets: &Sets) -> Vec<Phase> {
    // The share of the only phase need not be said: it is all.
    let alone = items.len() == 1;
    let read = |item: &Item<'_>| read_phase(item, stage, sets, alone);
    let phases: Vec<Phase> = items.iter().filter_map(read).collect();
    // The shares of some phases say nothing about the sum of all.
    if phases.len() == items.len() {
        check_shares(list, &phases);
        check_names(items, &phases);
    }
    phases
}

fn read_phase(item: &Item<'_>, stage: StageKind, sets: &Sets, alone: bool) -> Option<Phase> {
    let mut table = Section::of(item, "a [[phase]] table")?;
    let name = table.required("name", "the phase's name", Item::word);
    let share = |item: &Item<'_>| item.number(Bound::Share);
    let share = if alone && !table.has("share") {
        // Asked for all the same: a message about an unknown key lists those that were asked for.
        table.item("share");
        Some(1.0)
    } else {
        table.required("share", "its part of all steps, such as 0.5", share)
    };
    let learning_rate = read_or(&mut table, "learning_rate", stage.default_learning_rate());
    let weight_decay = read_or(&mut table, "weight_decay", stage.default_weight_decay());
    let data = read_mix(&mut table, sets);
    table.finish();
    let (name, share, data) = (name?, share?, data?);
    Some(Phase { name, share, learning_rate, weight_decay, data })
}

fn read_or(table: &mut Section<'_>, key: &'static str, default: Rate) -> Rate {
    table.optional(key, read_rate).unwrap_or(default)
}

fn read_mix(table: &mut Section<'_>, sets: &Sets) -> Option<BTreeMap<String, f64>> {
    let expected = "weights over named sets, such as { general = 0.3, hq = 0.7 }";
    match table.item("data") {
        Some(item) => read_weights(&item, sets, expected),
        None if sets.default.is_empty() => {
            table.missing("data", expected);
            None
        }
        None => Some(sets.default.clone()),
    }
}

fn read_weights(item: &Item<'_>, sets: &Sets, expected: &str) -> Option<BTreeMap<String, f64>> {
    let mut mix = BTreeMap::new();
    for (name, item) in item.named(expected)? {
        if !sets.names.contains(name) {
            let known: Vec<_> = sets.names.iter().map(String::as_str).collect();
            let known = if known.is_empty() { "a set".into() } else { known.join(" or ") };
            item.problem(format!("no such set of data; expected {known}, got `{name}`"));
        }
        mix.insert(name.to_owned(), item.number(Bound::NonNegative)?);
    }
    let total: f64 = mix.values().sum();
    if !(total.is_finite() && total > 0.0) {
        item.problem(format!(
            "nothing to train on; expected a weight above 0, got a sum of {total}"
        ));
    }
    Some(mix)
}

fn check_shares(list: &Item<'_>, phases: &[Phase]) {
    let total: f64 = phases.iter().map(|phase| phase.share).sum();
    if (total - 1.0).abs() > SHARE_TOLERANCE {
        let message = "the shares do not add up; expected a sum of 1, got";
        list.problem(format!("{message} {total}"));
    }
}

fn check_names(items: &[Item<'_>], phases: &[Phase]) {
    let mut seen = BTreeSet::new();
    for (item, phase) in items.iter().zip(phases) {
        if !seen.insert(&phase.name) {
            let message = "a name used twice; expected one for each phase, got";
            item.problem(format!("{message} {:?}", phase.name));
        }
    }
}
