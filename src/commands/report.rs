//! `bitnet-train report`, `watch`, `runs` and `diff`: what run directories say, as a page, a screen, a
//! table and a list of differing keys.

use std::io::{IsTerminal, stdin, stdout};
use std::path::{Path, PathBuf};

use anyhow::Result;
use bitnet_format::figures::size;
use bitnet_format::input::read_text;
use bitnet_format::output::OutputClaim;
use bitnet_format::staged::{OnExisting, write_file};
use bitnet_format::{FormatError, Shown};
use bitnet_report::{
    ReportError, RunFolder, RunRow, differences, find_runs, is_page, open_all, page, read_recipe,
    run_table, sort_rows,
};
use bitnet_train::platform::Signals;
use bitnet_train::train::TrainError;
use serde_json::json;

use super::{print_json, print_line, print_lines};
use crate::cli::{DiffArgs, ReportArgs, RunsArgs, WatchArgs};
use crate::failure::Usage;

/// A page is far smaller.
const MOST_BYTES: u64 = 1 << 28;

/// Writes the page of runs.
pub(crate) fn report(args: &ReportArgs) -> Result<()> {
    let runs = open_all(&args.runs).map_err(failed)?;
    // The default name is overwritten without asking, so only a page of ours may be.
    let is_ours = |path: &Path| read_text(path, MOST_BYTES).is_ok_and(|text| is_page(&text));
    let claim = OutputClaim::of(&args.out, OnExisting::Replace, &[], is_ours);
    let _claim = claim.map_err(TrainError::from)?;
    let page = page(&runs);
    write_file(&args.out, page.as_bytes(), OnExisting::Replace).map_err(TrainError::from)?;
    if args.json {
        let names: Vec<_> = runs.iter().map(|run| run.path.display().to_string()).collect();
        print_json(
            &json!({"out": args.out.display().to_string(), "bytes": page.len(), "runs": names}),
        );
        return Ok(());
    }
    let of = if runs.len() == 1 { "1 run".to_owned() } else { format!("{} runs", runs.len()) };
    print_line(&format!("{}: {of}, {}", args.out.shown(), size(page.len() as u64)));
    Ok(())
}

/// Follows runs on the terminal, until a key or a signal ends it.
pub(crate) fn watch(args: &WatchArgs) -> Result<()> {
    let runs = open_all(&args.runs).map_err(failed)?;
    if !(stdout().is_terminal() && stdin().is_terminal()) {
        let what = "watch needs a terminal; expected `runs` or `report` in a pipe".to_owned();
        return Err(Usage(what).into());
    }
    let signals = Signals::listen().map_err(TrainError::from)?;
    bitnet_report::watch(runs, &|| signals.stop().is_some()).map_err(failed)
}

/// Prints the table of runs. A run that cannot be read is named and left out.
pub(crate) fn runs(args: &RunsArgs) -> Result<()> {
    let paths = find_runs(&args.dir);
    if paths.is_empty() {
        // For its error, which says what was expected there.
        open_all(std::slice::from_ref(&args.dir)).map_err(failed)?;
    }
    let opened = paths.iter().filter_map(|path| {
        let note = |error| bitnet_train::output::note(&format!("note: {error}; left out"));
        RunFolder::open(path).map_err(note).ok()
    });
    let mut rows = run_table(&named_below(&args.dir, opened.collect()));
    if let Some(key) = &args.sort {
        sort_rows(&mut rows, key).map_err(failed)?;
    }
    if args.json {
        print_json(&json!({"runs": rows}));
    } else {
        print_lines(&columns(&rows));
    }
    Ok(())
}

/// Runs under their path below `dir`, so that no two have one name.
fn named_below(dir: &Path, mut runs: Vec<RunFolder>) -> Vec<RunFolder> {
    for run in &mut runs {
        if let Ok(below) = run.path.strip_prefix(dir)
            && below.file_name().is_some()
        {
            run.name = below.shown().to_string();
        }
    }
    runs
}

/// Rows with a heading, each column as wide as its widest cell; figures to the right.
fn columns(rows: &[RunRow]) -> Vec<String> {
    let heading = RunRow::HEADINGS.map(str::to_owned);
    let lines: Vec<[String; 8]> =
        std::iter::once(heading).chain(rows.iter().map(RunRow::cells)).collect();
    let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    let line = |line: &[String; 8]| {
        let cell = |(at, text): (usize, &String)| {
            let room = widths[at];
            // Steps, losses, tokens and time are figures; name, state and keys are words.
            if (2..7).contains(&at) { format!("{text:>room$}") } else { format!("{text:<room$}") }
        };
        let cells: Vec<String> = line.iter().enumerate().map(cell).collect();
        cells.join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect()
}

/// Prints the keys in which two recipes differ.
pub(crate) fn diff(args: &DiffArgs) -> Result<()> {
    let paths = [&args.one, &args.other];
    let [one, other] = paths.map(|path| read_recipe(&recipe_of(path)));
    let (one, other) = (one.map_err(failed)?, other.map_err(failed)?);
    let found = differences(&[&one, &other]);
    if args.json {
        let names = paths.map(|path| path.display().to_string());
        print_json(&json!({"recipes": names, "differences": found}));
        return Ok(());
    }
    if found.is_empty() {
        print_line("no key differs");
    }
    for it in found {
        let shown = |at: usize| it.values[at].as_deref().unwrap_or("–").to_owned();
        print_line(&format!("{}: {} → {}", it.key, shown(0), shown(1)));
    }
    Ok(())
}

/// The recipe of a run directory, or the file itself.
fn recipe_of(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("recipe.resolved.toml") } else { path.to_owned() }
}

/// With the exit code that its kind has elsewhere.
fn failed(error: ReportError) -> anyhow::Error {
    match error {
        ReportError::Usage(what) => Usage(what).into(),
        ReportError::Io(error) => TrainError::Io(error).into(),
        ReportError::Input { path, what } => {
            TrainError::Format(FormatError::Container { path, what }).into()
        }
    }
}
