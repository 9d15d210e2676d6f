//! The parts of a page that set several runs side by side.

use super::cards::{facts, machine, said};
use crate::folder::RunFolder;
use crate::html::{escape, html_table};
use crate::recipe_keys::differences;

/// The facts of all runs, one column each.
pub(super) fn figures(runs: &[RunFolder]) -> String {
    let all: Vec<_> = runs.iter().map(facts).collect();
    let names = all[0].iter().map(|fact| fact.0).enumerate();
    let rows = names.map(|(at, name)| {
        // `facts` names the same facts in the same order for every run, unknown ones empty.
        let values = all.iter().map(|facts| facts[at].1.clone());
        std::iter::once(name.to_owned()).chain(values).collect::<Vec<String>>()
    });
    let states = runs.iter().map(|run| run.state.name().to_owned());
    let states = std::iter::once("state".to_owned()).chain(states).collect();
    let known = rows.filter(|row| row[1..].iter().any(|value| !value.is_empty()));
    let rows: Vec<_> = std::iter::once(states).chain(known).collect();
    html_table(&headings(runs), &rows, false)
}

/// The keys in which they differ.
pub(super) fn keys(runs: &[RunFolder]) -> String {
    let recipes: Vec<_> = runs.iter().map(|run| &run.recipe).collect();
    let rows = differences(&recipes).into_iter().map(|it| {
        let values = it.values.into_iter().map(|value| value.unwrap_or_else(|| "–".to_owned()));
        std::iter::once(it.key).chain(values).collect::<Vec<String>>()
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return "<p>none</p>".to_owned();
    }
    html_table(&headings(runs), &rows, false)
}

fn headings(runs: &[RunFolder]) -> Vec<&str> {
    std::iter::once("").chain(runs.iter().map(|run| &*run.name)).collect()
}

/// What each model said last.
pub(super) fn samples(runs: &[RunFolder]) -> String {
    let of = |run: &RunFolder| {
        let last = run.samples.last()?.step;
        let said: String =
            run.samples.iter().filter(|sample| sample.step == last).map(said).collect();
        Some(format!("<h3>{}, step {last}</h3>{said}", escape(&run.name)))
    };
    runs.iter().filter_map(of).collect()
}

/// Where and how each ran.
pub(super) fn machines(runs: &[RunFolder]) -> String {
    runs.iter().map(|run| format!("<h3>{}</h3>{}", escape(&run.name), machine(run))).collect()
}
