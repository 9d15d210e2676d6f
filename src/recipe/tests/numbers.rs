//! Every key that takes a number, with numbers at and beyond the edges: a value is refused by a rule or
//! makes a run that can be planned, and nothing panics or takes long.

use super::*;
use crate::admission::{MemoryDemand, Settings, require_memory};
use crate::device;
use crate::estimate::{RankLayout, RankWorkload};
use crate::recipe::keys::KEYS;

const EDGES: &[&str] = &[
    "0",
    "-1",
    "1",
    "9223372036854775807",
    "-9223372036854775808",
    "4294967295",
    "4294967296",
    "1000000000000",
    "0.0",
    "-0.0",
    "0.5",
    "0.9999999999999999",
    "1e308",
    "-1e308",
    "1e-320",
    "1e-39",
    "1e20",
    "inf",
    "-inf",
    "nan",
];

/// The words that set a key, `phase.*` in both rates.
fn words(name: &str, value: &str) -> Vec<String> {
    let set = |key: &str| format!("{key}={value}");
    if let Some(key) = name.strip_prefix("phase.*.") {
        let rates = ["phase.main.learning_rate", "phase.main.weight_decay"];
        return rates.iter().map(|rate| set(&format!("{rate}.{key}"))).collect();
    }
    match name.strip_prefix("phase.") {
        Some(key) => vec![set(&format!("phase.main.{key}"))],
        None => vec![set(name)],
    }
}

/// What `plan` computes before it probes.
fn plan(recipe: &Recipe) {
    let steps = match recipe.train.length {
        Length::Steps(steps) => steps,
        Length::Tokens(tokens) => tokens,
        Length::Epochs(epochs) => (epochs * 1e9).ceil() as u64,
    };
    let Ok(schedule) = Schedule::new(recipe, steps.max(1)) else { return };
    for step in [1, steps / 2, steps].map(|step| step.max(1)) {
        let rates = schedule.at(step);
        assert!(rates.learning_rate.is_finite() && rates.weight_decay.is_finite(), "{recipe:?}");
    }
    assert_eq!(schedule.phase_range(recipe.phases.len() - 1).end, steps.max(1) + 1);
    let ModelSource::New { spec } = &recipe.model else { return };
    let Ok(spec) = spec.complete(512) else { return };
    for ranks in [1, 3] {
        let (load, layout) = (RankWorkload::of(recipe, ranks), RankLayout::of(recipe, ranks));
        let device = &device::cpu();
        let demand = MemoryDemand {
            spec: &spec,
            frozen: &[],
            load,
            ranks: layout,
            here: ranks,
            device,
            settings: Settings::Recipe,
        };
        let _ = require_memory(demand);
    }
}

#[test]
fn no_number_in_any_key_makes_a_recipe_panic() {
    let constant = "phase.main.learning_rate={ shape = \"constant\", value = 1e-3 }";
    let numeric = |takes: &str| {
        ["number", "minutes", "size", "deviations", "id"].iter().any(|word| takes.contains(word))
    };
    let mut tried = 0;
    for key in KEYS.iter().filter(|key| numeric(key.takes)) {
        for value in EDGES {
            for text in [EXAMPLE, SHORT] {
                let mut words = words(key.name, value);
                if key.name == "phase.*.value" {
                    words.insert(0, constant.to_owned());
                }
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                if let Ok(Plan::Single(recipe)) = RecipeFolder::new(text).load(&words) {
                    plan(&recipe);
                    toml::from_str::<toml::Table>(&recipe.resolved_toml()).unwrap();
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 200, "only {tried} recipes were valid");
}

#[test]
fn absurd_numbers_are_refused_with_the_expected_range() {
    for (word, expected) in [
        ("train.steps=9223372036854775807", "up to 1000000000000"),
        ("train.max_minutes=1e20", "minutes from 0"),
        ("checkpoint.every_minutes=inf", "minutes from 0"),
        ("dpo.beta=1e308", "0.000001 to 1000000"),
        ("optimizer.eps=1e-320", "1e-37 to 1e37"),
        ("optimizer.beta2=0.99999999999", "below 1"),
        ("sample.temperature=1e-39", "0.00001 to 100000"),
        ("optimizer.grad_clip=nan", "at least 0"),
    ] {
        let problems = RecipeFolder::new(SHORT).problems(&[word]);
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{word}: {problems:?}");
    }
}
