//! The splits of a data set by the names of its files, in the order in which the `datasets` library
//! tries them.

use std::collections::BTreeMap;

/// Splits, each with its files in the order of their names.
pub(super) type FileSplits = BTreeMap<String, Vec<String>>;

/// What stands for a split in names.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The splits of `names`, which count from the folder of the configuration.
pub(super) fn splits_by_name(names: &[&str]) -> FileSplits {
    let numbered = grouped(names, |name| numbered_split(name).into_iter().collect());
    let ways: [fn(&str) -> Vec<String>; 2] = [splits_of_folders, splits_of_file];
    let mut found = ways.iter().map(|way| grouped(names, way));
    if !numbered.is_empty() {
        return numbered;
    }
    // Only one way counts: in `train/test.jsonl` the folder says what the file is.
    found
        .find(|splits| !splits.is_empty())
        .unwrap_or_else(|| grouped(names, |_| vec!["train".to_owned()]))
}

fn grouped(names: &[&str], splits_of: impl Fn(&str) -> Vec<String>) -> FileSplits {
    let mut splits = FileSplits::new();
    for name in names {
        for split in splits_of(name) {
            splits.entry(split).or_default().push((*name).to_owned());
        }
    }
    splits
}

/// `data/SPLIT-00000-of-00002.parquet`
fn numbered_split(name: &str) -> Option<String> {
    let file = name.strip_prefix("data/").filter(|file| !file.contains('/'))?;
    let (number, count) = file.rsplit_once("-of-")?;
    let (split, number) = number.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_counted = is_number(number) && count.get(..5).is_some_and(is_number);
    (is_counted && !split.is_empty()).then(|| split.to_owned())
}

/// The splits that the folders of a file are named for.
fn splits_of_folders(name: &str) -> Vec<String> {
    let folders = name.rsplit_once('/').map_or("", |(folders, _)| folders);
    splits_where(|word| folders.split('/').any(|folder| has_word(folder, word, true)))
}

/// The splits that a file itself is named for.
fn splits_of_file(name: &str) -> Vec<String> {
    let file = name.rsplit('/').next().unwrap_or(name);
    splits_where(|word| has_word(file, word, false))
}

fn splits_where(has: impl Fn(&str) -> bool) -> Vec<String> {
    let named = WORDS.iter().filter(|(_, words)| words.iter().any(|word| has(word)));
    named.map(|(split, _)| (*split).to_owned()).collect()
}

/// Whether `word` stands in `name` between signs, digits and ends; at the end itself only where
/// `may_end`, since a file has an ending.
fn has_word(name: &str, word: &str, may_end: bool) -> bool {
    let is_sign = |c: char| matches!(c, '-' | '.' | '_' | ' ') || c.is_ascii_digit();
    name.match_indices(word).any(|(at, _)| {
        let after = name[at + word.len()..].chars().next();
        name[..at].chars().next_back().is_none_or(is_sign) && after.map_or(may_end, is_sign)
    })
}
