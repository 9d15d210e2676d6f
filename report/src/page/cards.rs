//! The parts of a page besides the charts, for one run.

use std::collections::BTreeMap;

use bitnet_format::figures::grouped;
use serde_json::Value as Json;

use crate::facts::{best_validation, duration, recent_speed, remaining, shown, steps};
use crate::folder::RunFolder;
use crate::html::{escape, html_table};
use crate::recipe_keys::{at, flat_recipe};
use crate::samples::SampleText;
use crate::state::RunState;

/// Steps of which samples are shown.
const SAMPLED_STEPS: usize = 12;
/// Events that are listed.
const EVENTS: usize = 50;

/// What a run is and where it ended, at a glance.
pub(super) fn summary(run: &RunFolder) -> String {
    let tile = |(name, value): &(&str, String)| {
        format!("<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value))
    };
    let tiles: String =
        facts(run).iter().filter(|(_, value)| !value.is_empty()).map(tile).collect();
    format!("<dl class=card>{tiles}</dl>\n")
}

/// Name and value of each fact of the card; empty where it is not known.
pub(super) fn facts(run: &RunFolder) -> Vec<(&'static str, String)> {
    let history = &run.history;
    let best = best_validation(history);
    let best = best.map(|(step, loss)| format!("{} at step {}", shown(Some(loss)), grouped(step)));
    let tokens = history.last("tokens").map(|tokens| grouped(tokens as u64));
    let speed = recent_speed(history).map(|speed| format!("{} tokens/s", shown(Some(speed))));
    vec![
        ("stage", text(run, &["stage"])),
        ("model", model(run)),
        ("data", data(run)),
        ("steps", steps(run)),
        ("tokens", tokens.unwrap_or_default()),
        ("time of training", history.last("seconds").map(duration).unwrap_or_default()),
        ("time left", left(run)),
        ("speed", speed.unwrap_or_default()),
        ("last loss", history.last("loss").map(|loss| shown(Some(loss))).unwrap_or_default()),
        ("best held-out loss", best.unwrap_or_default()),
        ("tasks", tasks(run)),
        ("exports", run.exports.join(", ")),
        ("skipped steps", skipped(run)),
    ]
}

/// For a run that is still going.
fn left(run: &RunFolder) -> String {
    let seconds = remaining(run).filter(|_| run.state == RunState::Running);
    seconds.map(duration).unwrap_or_default()
}

fn text(run: &RunFolder, path: &[&str]) -> String {
    at(&run.recipe, path).map(plain).unwrap_or_default()
}

fn plain(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Where it starts, or its shape.
fn model(run: &RunFolder) -> String {
    let init = text(run, &["model", "init"]);
    let number = |key: &str| text(run, &["model", key]);
    let (layers, width) = (number("num_hidden_layers"), number("hidden_size"));
    let shape = format!("{layers} layers, {width} wide");
    let known = !layers.is_empty() && !width.is_empty();
    let of = run.record["parameters"].as_u64().map(|all| format!("{} parameters", grouped(all)));
    let parts = [of, (!init.is_empty()).then_some(init), known.then_some(shape)];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn data(run: &RunFolder) -> String {
    let generated = at(&run.recipe, &["data", "generate"]).map(|_| "generated stories".to_owned());
    let train = at(&run.recipe, &["data", "train"]).map(plain);
    let length = text(run, &["data", "seq_len"]);
    let rows = (!length.is_empty()).then(|| format!("{length} tokens a row"));
    [generated.or(train), rows].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn tasks(run: &RunFolder) -> String {
    let scores = run.history.below("tasks/").filter_map(|(name, curve)| {
        let name = name.strip_suffix("/acc")?;
        Some(format!("{name} {}", shown(curve.last())))
    });
    scores.collect::<Vec<_>>().join(", ")
}

fn skipped(run: &RunFolder) -> String {
    match run.history.skipped.len() {
        0 => String::new(),
        some => grouped(some as u64),
    }
}

/// Held-out loss and tasks at every evaluation, newest first.
pub(super) fn evaluation(run: &RunFolder) -> String {
    let figures = run.history.below("eval/").chain(run.history.below("tasks/"));
    // The number of rows is the same in every line.
    let figures: Vec<_> = figures.filter(|(name, _)| !name.ends_with("/rows")).collect();
    if figures.is_empty() {
        return String::new();
    }
    let mut rows: BTreeMap<u64, Vec<String>> = BTreeMap::new();
    for (column, (_, curve)) in figures.iter().enumerate() {
        for &(step, value) in curve.points() {
            let empty = || vec![String::new(); figures.len()];
            rows.entry(step).or_insert_with(empty)[column] = shown(Some(value));
        }
    }
    let names = figures.iter().map(|(name, _)| name.replace(['/', '_'], " "));
    let headings: Vec<String> = std::iter::once("step".to_owned()).chain(names).collect();
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    // Newest first, so what is cut off a long run is its beginning.
    let rows = rows.into_iter().rev().take(200);
    let rows: Vec<Vec<String>> =
        rows.map(|(step, row)| std::iter::once(grouped(step)).chain(row).collect()).collect();
    html_table(&headings, &rows, true)
}

/// What the model said, newest first; of many steps some, the first and the last among them.
pub(super) fn samples(run: &RunFolder) -> String {
    let mut by_step: BTreeMap<u64, Vec<&SampleText>> = BTreeMap::new();
    for sample in &run.samples {
        by_step.entry(sample.step).or_default().push(sample);
    }
    let steps: Vec<u64> = by_step.keys().copied().collect();
    // Evenly spread: `at` = 0 is the first step, the largest is the last.
    let shown = |at: usize| steps[at * (steps.len() - 1) / (SAMPLED_STEPS - 1).max(1)];
    let chosen: Vec<u64> = match steps.len() {
        0..=SAMPLED_STEPS => steps.clone(),
        _ => (0..SAMPLED_STEPS).map(shown).collect(),
    };
    let of_step = |step: &u64| {
        let said: String = by_step[step].iter().map(|sample| said(sample)).collect();
        format!("<h3>step {}</h3>{said}\n", grouped(*step))
    };
    chosen.iter().rev().map(of_step).collect()
}

pub(super) fn said(sample: &SampleText) -> String {
    format!("<p class=said><b>{}</b>{}</p>", escape(&sample.prompt), escape(&sample.text))
}

/// Resumes and skipped steps.
pub(super) fn events(run: &RunFolder) -> String {
    let history = &run.history;
    let events = history.events.iter().map(|(step, event)| (*step, event.clone()));
    let skipped = history.skipped.iter().map(|step| (*step, "skipped".to_owned()));
    let mut all: Vec<(u64, String)> = events.chain(skipped).collect();
    all.sort();
    let more = all.len().saturating_sub(EVENTS);
    let line = |(step, event): &(u64, String)| vec![grouped(*step), event.clone()];
    let rows: Vec<_> = all.iter().take(EVENTS).map(line).collect();
    let more =
        if more > 0 { format!("<p>and {} more</p>", grouped(more as u64)) } else { String::new() };
    if rows.is_empty() { more } else { html_table(&["step", "event"], &rows, false) + &more }
}

/// Every key with its value.
pub(super) fn recipe(run: &RunFolder) -> String {
    let rows: Vec<_> =
        flat_recipe(&run.recipe).into_iter().map(|(key, value)| vec![key, value]).collect();
    if rows.is_empty() {
        return String::new();
    }
    let table = html_table(&[], &rows, false);
    format!("<details open><summary>{} keys, as resolved</summary>{table}</details>", rows.len())
}

/// Where and how it ran.
pub(super) fn machine(run: &RunFolder) -> String {
    let machine = run.record["machine"].as_object();
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let facts =
        machine.into_iter().flatten().map(|(key, value)| vec![key.replace('_', " "), text(value)]);
    let directory = vec!["directory".to_owned(), run.path.display().to_string()];
    let table =
        html_table(&[], &std::iter::once(directory).chain(facts).collect::<Vec<_>>(), false);
    let commands = run.commands.iter().map(|line| format!("<pre>{}</pre>", escape(line)));
    table + &commands.collect::<String>()
}
