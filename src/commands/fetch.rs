//! `bitnet-train data fetch`: the rows of tasks, from the hub into a folder where `bitnet eval` finds them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use bitnet_eval::{NeededSplit, REPORT, Selection, needed_splits};
use bitnet_format::FormatError;
use bitnet_format::Shown;
use bitnet_format::staged::{OnExisting, StagedDir, StagedFile};
use bitnet_train::platform::Signals;
use bitnet_train::recipe::DATASET_PREFIX;
use bitnet_train::story_tasks::is_generated;
use bitnet_train::train::TrainError;
use serde_json::json;

use super::data_flag::expanded;
use super::{print_json, print_line};
use crate::cli::FetchDataArgs;

pub(crate) fn run(args: &FetchDataArgs) -> Result<()> {
    let signals = Signals::listen().map_err(TrainError::from)?;
    let suite = args.suite.iter().flat_map(|_| REPORT.iter().map(|row| row.task.to_owned()));
    let names = args.tasks.iter().cloned().chain(suite).filter(|name| !is_generated(name));
    let selection = Selection::of(&names.collect::<Vec<_>>()).map_err(TrainError::from)?;
    let (mut fetched, mut here) = (0, 0);
    for split in needed_splits(&selection).map_err(TrainError::from)? {
        if split.is_below(&args.out).map_err(TrainError::from)? {
            here += 1;
            continue;
        }
        let files = expanded(&[address(&split)], &format!("--tasks {}", split.task), &signals)?;
        place(&files, &args.out.join(split.stem()))?;
        fetched += 1;
    }
    if args.json {
        print_json(
            &json!({"out": args.out.display().to_string(), "fetched": fetched, "here": here}),
        );
    } else {
        print_line(&format!("{}: {fetched} splits fetched, {here} were here", args.out.shown()));
    }
    Ok(())
}

/// What a recipe would name the split.
fn address(split: &NeededSplit) -> String {
    let config = split.config.iter().map(|config| format!(":{config}"));
    let parts = config.chain([format!("/{}", split.split)]);
    format!("{DATASET_PREFIX}{}{}", split.dataset, parts.collect::<String>())
}

/// Copies the files of a split to `STEM.jsonl`, `STEM.json` or `STEM/0000.parquet` and so on.
fn place(files: &[PathBuf], stem: &Path) -> Result<(), TrainError> {
    let end = |path: &PathBuf| path.extension().and_then(|end| end.to_str()).map(str::to_owned);
    let ends: Vec<Option<String>> = files.iter().map(end).collect();
    match (&ends[..], files) {
        ([Some(end)], [file]) if end == "jsonl" || end == "json" => {
            let mut rows = stem.as_os_str().to_owned();
            rows.push(format!(".{end}"));
            let staged = StagedFile::beside(Path::new(&rows), OnExisting::Refuse)?;
            fs_err::copy(file, staged.path())?;
            Ok(staged.publish()?)
        }
        (ends, files) if ends.iter().all(|end| end.as_deref() == Some("parquet")) => {
            let staged = StagedDir::beside(stem, OnExisting::Refuse)?;
            for (number, file) in files.iter().enumerate() {
                fs_err::copy(file, staged.path().join(format!("{number:04}.parquet")))?;
            }
            Ok(staged.publish()?)
        }
        _ => {
            let what = "is no file that tasks are read from; expected .parquet files, one .jsonl or \
                        one .json file. Convert it and put it there by hand";
            let path = files[0].clone();
            Err(FormatError::Container { path, what: what.to_owned() }.into())
        }
    }
}
