//! Which files of a data set are meant: as its README declares them, or else by their names, as the
//! `datasets` library chooses; or those that the hub converted to Parquet.

use std::collections::BTreeMap;
use std::path::Path;

use super::address::HubDataset;
use super::name_patterns::{FileSplits, splits_by_name};
use super::readme::{ReadmeConfig, readme_configs};
use crate::data::is_data_name;

const DEFAULT: &str = "default";

/// Files with the ending of data that hold none.
const NO_DATA: [&str; 4] =
    ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"];

/// The files of `names` that are meant; `None` where no file is one that is read here.
///
/// # Errors
/// Says which configurations or splits there are.
pub(super) fn chosen_files(
    names: &[String],
    readme: &str,
    dataset: &HubDataset,
) -> Result<Option<Vec<String>>, String> {
    let configs = readme_configs(readme)?;
    if configs.is_empty() && has_script(names, dataset) {
        return Ok(None);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_data(name)).collect();
    let splits = if configs.is_empty() {
        by_names(&names, dataset)?
    } else {
        declared(&names, &configs, dataset)?
    };
    of_split(of_one_kind(splits), dataset)
}

/// The files of the branch to which the hub converts data sets: `CONFIG/SPLIT/0000.parquet`.
pub(super) fn converted_files(
    names: &[String],
    dataset: &HubDataset,
) -> Result<Option<Vec<String>>, String> {
    let mut configs: BTreeMap<&str, FileSplits> = BTreeMap::new();
    for name in names.iter().filter(|name| name.ends_with(".parquet")) {
        if let [config, split, _] = name.split('/').collect::<Vec<_>>()[..] {
            let splits = configs.entry(config).or_default();
            splits.entry(split.to_owned()).or_default().push(name.clone());
        }
    }
    if configs.is_empty() {
        return Ok(None);
    }
    let known: Vec<&str> = configs.keys().copied().collect();
    let config = known[config_of(&known, None, dataset)?];
    of_split(configs.remove(config).unwrap_or_default(), dataset)
}

/// Whether a program of its own makes the rows, which nothing runs here; the files that it reads
/// are not the rows.
fn has_script(names: &[String], dataset: &HubDataset) -> bool {
    let own = dataset.repository.name.rsplit('/').next().unwrap_or_default();
    names.iter().any(|name| name.strip_suffix(".py") == Some(own))
}

fn is_data(name: &str) -> bool {
    let hidden = name.split('/').any(|part| part.starts_with('.') || part.starts_with("__"));
    let file = name.rsplit('/').next().unwrap_or(name);
    !hidden && !NO_DATA.contains(&file) && is_data_name(Path::new(file))
}

/// The splits where no README tells them. A configuration that is named is then a folder.
fn by_names(names: &[&str], dataset: &HubDataset) -> Result<FileSplits, String> {
    let Some(config) = dataset.config.as_deref().filter(|config| *config != DEFAULT) else {
        return Ok(splits_by_name(names));
    };
    let splits = below(names, &format!("{config}/"), splits_by_name);
    if splits.is_empty() && !names.is_empty() {
        let folders = names.iter().filter_map(|name| Some(name.split_once('/')?.0));
        let mut known: Vec<&str> = std::iter::once(DEFAULT).chain(folders).collect();
        known.dedup();
        return Err(unknown("config", &known, config));
    }
    Ok(splits)
}

/// The splits of a folder, of files that are then named from the top again.
fn below(
    names: &[&str],
    folder: &str,
    splits_of: impl FnOnce(&[&str]) -> FileSplits,
) -> FileSplits {
    let inside: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix(folder)).collect();
    let mut splits = splits_of(&inside);
    for name in splits.values_mut().flatten() {
        name.insert_str(0, folder);
    }
    splits
}

fn declared(
    names: &[&str],
    configs: &[ReadmeConfig],
    dataset: &HubDataset,
) -> Result<FileSplits, String> {
    let known: Vec<&str> = configs.iter().map(|config| &*config.name).collect();
    let default = configs.iter().position(|config| config.is_default);
    let config = &configs[config_of(&known, default, dataset)?];
    if config.splits.is_empty() {
        return Ok(below(names, &config.folder, splits_by_name));
    }
    let mut matching = Ok(FileSplits::new());
    let splits = below(names, &config.folder, |names| {
        matching = matching_files(names, &config.splits);
        matching.clone().unwrap_or_default()
    });
    matching.map(|_| splits)
}

fn matching_files(
    names: &[&str],
    patterns: &[(String, Vec<String>)],
) -> Result<FileSplits, String> {
    // As in a shell: `*` stays in a folder.
    let options =
        glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
    let mut splits = FileSplits::new();
    for (split, patterns) in patterns {
        let files = splits.entry(split.clone()).or_default();
        for text in patterns {
            let pattern = glob::Pattern::new(&with_whole_parts(text))
                .map_err(|error| format!("README.md: bad pattern {text:?}: {}", error.msg))?;
            for name in names.iter().filter(|name| pattern.matches_with(name, options)) {
                if !files.iter().any(|file| file == name) {
                    files.push((*name).to_owned());
                }
            }
        }
    }
    Ok(splits)
}

/// `**` as a part of its own, which the matcher demands: `data/**.jsonl` is `data/**/*.jsonl`.
fn with_whole_parts(pattern: &str) -> String {
    let part = |part: &str| match part.strip_prefix("**") {
        Some(rest) if !rest.is_empty() => format!("**/*{rest}"),
        _ => part.to_owned(),
    };
    pattern.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// The place of the configuration that is meant.
fn config_of(
    known: &[&str],
    default: Option<usize>,
    dataset: &HubDataset,
) -> Result<usize, String> {
    let place = |name: &str| known.iter().position(|known| *known == name);
    if let Some(named) = &dataset.config {
        return place(named).ok_or_else(|| unknown("config", known, named));
    }
    let only = (known.len() == 1).then_some(0);
    default.or(only).or_else(|| place(DEFAULT)).ok_or_else(|| {
        let known = known.join(", ");
        format!(
            "has several configs; expected one of them as {}:CONFIG: {known}",
            dataset.repository
        )
    })
}

fn of_split(mut splits: FileSplits, dataset: &HubDataset) -> Result<Option<Vec<String>>, String> {
    splits.retain(|_, files| !files.is_empty());
    if splits.is_empty() {
        return Ok(None);
    }
    let split = dataset.split.as_deref().unwrap_or("train");
    let known: Vec<&str> = splits.keys().map(String::as_str).collect();
    let missing = unknown("split", &known, split);
    splits.remove(split).map(Some).ok_or(missing)
}

fn unknown(what: &str, known: &[&str], got: &str) -> String {
    format!("has no such {what}; expected one of {}; got {got:?}", known.join(", "))
}

/// Only files of the kind that most files have: a few notes beside the data are not rows.
fn of_one_kind(mut splits: FileSplits) -> FileSplits {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in splits.values().flatten() {
        *counts.entry(kind(name)).or_default() += 1;
    }
    // Of kinds with as many files the one that the library prefers.
    let preferred = ["txt", "tsv", "csv", "json", "parquet"];
    let rank = |kind: &str| preferred.iter().position(|name| *name == kind);
    let most = counts.into_iter().max_by_key(|(kind, count)| (*count, rank(kind)));
    if let Some((most, _)) = most.map(|(kind, count)| (kind.to_owned(), count)) {
        for files in splits.values_mut() {
            files.retain(|name| kind(name) == most);
        }
    }
    splits
}

fn kind(name: &str) -> &str {
    let packed = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst"));
    match packed.unwrap_or(name).rsplit('.').next().unwrap_or_default() {
        "jsonl" | "ndjson" => "json",
        ending => ending,
    }
}
