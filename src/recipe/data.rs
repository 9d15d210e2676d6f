//! Where a run's text comes from and how it is packed into sequences.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::item::{Bound, Item, word};
use super::pattern::PathPattern;
use super::phase::Sets;
use super::section::Section;
use super::stage::StageKind;
use crate::data::{
    BadRows, FileOptions, LongDocuments, ReadingRules, RowSelection, TextSplit, TokenFiles,
    TokenType, UnknownRole,
};

/// The name of the set that `data.train` is.
pub const TRAIN: &str = "train";
/// The name of the one set that a list under `data.validation` is.
pub const VALIDATION: &str = "validation";
/// The sets of generated stories in a stage; a phase without weights trains on the first.
pub fn generated_sets(stage: StageKind) -> &'static [&'static str] {
    match stage {
        StageKind::Pretrain => &["general", "hq", "plain"],
        StageKind::Sft => &["questions"],
        StageKind::Dpo => &["preferences"],
    }
}

/// The key of a set to train on, as a message names it.
pub fn set_key(name: &str) -> String {
    if name == TRAIN { "data.train".into() } else { format!("data.sets.{name}") }
}

/// The key of a set to evaluate.
pub fn validation_key(name: &str) -> String {
    if name == VALIDATION { "data.validation".into() } else { format!("data.validation.{name}") }
}

/// Named sets of files.
pub type FileSets = BTreeMap<String, Vec<PathPattern>>;

/// What a run is trained and evaluated on.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// Where the text comes from.
    pub source: DataSource,
    /// Inputs, and targets, of a packed sequence.
    pub seq_len: usize,
    /// What happens to a document with more.
    pub long_rows: LongDocuments,
    /// How files are read.
    pub reading: ReadingRules,
    /// The share of the rows to train on that is held out and evaluated; 0 for none.
    pub validation_share: f64,
    /// Where tokenised text is kept, if not in the default folder.
    pub cache: Option<PathBuf>,
}

/// Where text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataSource {
    /// From files.
    Files {
        /// What phases draw from; `data.train` is the set [`TRAIN`].
        sets: FileSets,
        /// What is evaluated, each under its name; empty when nothing is.
        validation: FileSets,
    },
    /// Generated stories, validation included.
    Generate(Generate),
}

/// Generated stories: the sets of [`generated_sets`] and held-out text of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generate {
    /// Stories a set.
    pub stories: usize,
    /// Stories a set that are kept for validation.
    pub held_out: usize,
}

/// What a recipe calls each way with long documents.
const LONG_ROWS: &[(&str, LongDocuments)] = &[
    ("truncate", LongDocuments::Truncate),
    ("drop", LongDocuments::Drop),
    ("split", LongDocuments::Split),
];

/// What a recipe calls leaving out duplicates, or not.
const DEDUP_WORDS: &[(&str, bool)] = &[("none", false), ("exact", true)];

/// What a stage allows: a preference pair cannot be split.
fn long_rows_words(stage: StageKind) -> &'static [(&'static str, LongDocuments)] {
    if stage == StageKind::Dpo { &LONG_ROWS[..2] } else { LONG_ROWS }
}

fn default_long_rows(stage: StageKind) -> LongDocuments {
    if stage == StageKind::Pretrain { LongDocuments::Split } else { LongDocuments::Truncate }
}

impl Data {
    /// The word for `long_rows` in a recipe.
    pub(super) fn long_rows_name(&self) -> &'static str {
        word(LONG_ROWS, self.long_rows)
    }

    /// The words of the keys that say how files are read, with their values.
    pub(super) fn reading_words(&self) -> [(&'static str, &'static str); 4] {
        let ReadingRules { files, unknown_role, selection, bad_rows, .. } = &self.reading;
        [
            ("text_split", word(TextSplit::WORDS, files.text_split)),
            ("on_unknown_role", word(UnknownRole::WORDS, *unknown_role)),
            ("dedup", word(DEDUP_WORDS, selection.deduplicated)),
            ("bad_rows", word(BadRows::WORDS, *bad_rows)),
        ]
    }

    /// What phases can name.
    pub(super) fn sets(&self, stage: StageKind) -> Sets {
        match &self.source {
            DataSource::Files { sets, .. } => Sets {
                names: sets.keys().cloned().collect(),
                default: sets.contains_key(TRAIN).then_some(TRAIN),
            },
            DataSource::Generate(_) => Sets {
                names: generated_sets(stage).iter().map(|&name| name.to_owned()).collect(),
                default: generated_sets(stage).first().copied(),
            },
        }
    }

    /// Whether there is anything to evaluate.
    pub fn has_validation(&self) -> bool {
        match &self.source {
            DataSource::Files { validation, .. } => {
                !validation.is_empty() || self.validation_share > 0.0
            }
            DataSource::Generate(_) => true,
        }
    }
}

/// Reads `[data]`; `base` is the folder that relative paths start from.
pub(super) fn read_data(root: &mut Section<'_>, stage: StageKind, base: &Path) -> Data {
    let mut table = root.section("data");
    let source = read_source(&mut table, base);
    let seq_len = table.required("seq_len", "tokens a row", Item::count);
    let long_rows = table.optional("long_rows", |item| item.choice(long_rows_words(stage)));
    let reading = read_reading(&mut table);
    let validation_share = table.value("validation_share", |item| item.number(Bound::BelowOne));
    if validation_share > 0.0 {
        check_share(&table, &source);
    }
    if reading.files.tokens.is_some() {
        check_tokens(&table, stage, &reading.selection, validation_share);
    }
    let cache = table.optional("cache", |item| item.path(base));
    table.finish();
    Data {
        source,
        seq_len: seq_len.unwrap_or(1),
        long_rows: long_rows.unwrap_or_else(|| default_long_rows(stage)),
        reading,
        validation_share,
        cache,
    }
}

/// Where rows stand in files, and what happens to those that cannot be used.
fn read_reading(table: &mut Section<'_>) -> ReadingRules {
    let columns = table.optional("columns", |item| {
        let named = item.named("a table such as { instruction = \"Question\" }")?;
        named.iter().map(|(name, item)| Some(((*name).to_owned(), item.word()?))).collect()
    });
    let files = FileOptions {
        field: table.optional("field", Item::word),
        columns: columns.unwrap_or_default(),
        text_split: table.value("text_split", |item| item.choice(TextSplit::WORDS)),
        tokens: table.item("tokens").map(|item| read_tokens(&item)),
    };
    let unknown_role = table.value("on_unknown_role", |item| item.choice(UnknownRole::WORDS));
    let bad_rows = table.value("bad_rows", |item| item.choice(BadRows::WORDS));
    let max_bad_share = table.value("max_bad_share", |item| item.number(Bound::BelowOne));
    let selection = RowSelection {
        deduplicated: table.value("dedup", |item| item.choice(DEDUP_WORDS)),
        side: None,
        min_chars: table.value("min_chars", |item| item.whole(0)),
        max_chars: table.optional("max_chars", |item| item.whole(1)),
    };
    ReadingRules { files, unknown_role, selection, bad_rows, max_bad_share }
}

fn read_tokens(item: &Item<'_>) -> TokenFiles {
    let Some(mut table) = Section::of(item, "a table such as { dtype = \"u16\" }") else {
        return TokenFiles::default();
    };
    let dtype = table.optional("dtype", |item| item.choice(TokenType::WORDS));
    let id = |item: &Item<'_>| item.whole_between(0, u32::MAX.into()).map(|id| id as u32);
    let document_separator = table.optional("document_separator", id);
    table.finish();
    TokenFiles { dtype, document_separator }
}

/// A share is held out of files, and only where no others are.
fn check_share(table: &Section<'_>, source: &DataSource) {
    let beside = match source {
        DataSource::Generate(_) => "generate",
        DataSource::Files { validation, .. } if !validation.is_empty() => "validation",
        DataSource::Files { .. } => return,
    };
    let message = format!("a share beside `{beside}`; expected one of them, got both");
    table.problem("validation_share", message);
}

/// Tokens are documents of pretraining, and no text by which rows could be chosen.
fn check_tokens(table: &Section<'_>, stage: StageKind, rows: &RowSelection, share: f64) {
    if stage != StageKind::Pretrain {
        let message = "tokens without text; expected stage = \"pretrain\" beside them, got another";
        table.problem("tokens", message.to_owned());
    }
    if share > 0.0 || *rows != RowSelection::default() {
        let message = "rows chosen by their text beside tokens; expected no `dedup`, `min_chars`, \
                       `max_chars` or `validation_share`, got one";
        table.problem("tokens", message.to_owned());
    }
}

fn read_source(table: &mut Section<'_>, base: &Path) -> DataSource {
    let generate = table.item("generate");
    let train = table.item("train");
    let sets = table.item("sets");
    let validation = table.item("validation");
    let files = [&train, &sets, &validation];
    if let Some(generate) = generate {
        for item in files.into_iter().flatten() {
            let message = "files beside `generate`, which brings its own text";
            item.problem(format!("{message}; expected one or the other, got both"));
        }
        return DataSource::Generate(read_generate(&generate));
    }
    if train.is_none() && sets.is_none() {
        table.missing("train", "a list of files, or [data.sets], or generate = {}");
    }
    let validation = validation.map(|item| read_sets(&item, Some(VALIDATION), base));
    DataSource::Files {
        sets: read_train(train.as_ref(), sets.as_ref(), base),
        validation: validation.unwrap_or_default(),
    }
}

fn read_generate(item: &Item<'_>) -> Generate {
    let Some(mut table) = Section::of(item, "a table such as { stories = 20000 }") else {
        return Generate { stories: 1, held_out: 1 };
    };
    let stories = table.value("stories", Item::count);
    let held_out = table.value("held_out", Item::count);
    table.finish();
    Generate { stories, held_out }
}

fn read_train(train: Option<&Item<'_>>, sets: Option<&Item<'_>>, base: &Path) -> FileSets {
    let mut found = sets.map(|item| read_sets(item, None, base)).unwrap_or_default();
    if let Some(item) = train {
        let patterns = read_patterns(item, base).unwrap_or_default();
        if found.insert(TRAIN.into(), patterns).is_some() {
            let message = "a set called `train` beside `data.train`, which is that set";
            item.problem(format!("{message}; expected one of them, got both"));
        }
    }
    found
}

/// A table of named sets, or, where such a set has a `name`, a list of files.
fn read_sets(item: &Item<'_>, name: Option<&str>, base: &Path) -> FileSets {
    if let (Some(name), false) = (name, item.is_table()) {
        return BTreeMap::from([(name.into(), read_patterns(item, base).unwrap_or_default())]);
    }
    let named = item.named("a table of named lists of files").unwrap_or_default();
    if named.is_empty() {
        item.problem("no set; expected at least one named list of files, got none".into());
    }
    let read = |item: &Item<'_>| read_patterns(item, base).unwrap_or_default();
    named.iter().map(|(name, item)| ((*name).to_owned(), read(item))).collect()
}

/// A list of files, or a single one.
fn read_patterns(item: &Item<'_>, base: &Path) -> Option<Vec<PathPattern>> {
    if item.is_text() {
        return Some(vec![read_pattern(item, base)?]);
    }
    let items = item.list("a list of files or patterns, such as [\"text/*.jsonl\"]")?;
    if items.is_empty() {
        item.problem("no file; expected at least one file or pattern, got an empty list".into());
    }
    items.iter().map(|item| read_pattern(item, base)).collect()
}

fn read_pattern(item: &Item<'_>, base: &Path) -> Option<PathPattern> {
    let text = item.word()?;
    let pattern = PathPattern::new(&item.folder_of(&text, base), &text);
    pattern
        .map_err(|reason| {
            item.problem(format!(
                "bad pattern: {reason}; expected a file name or glob, got {text:?}"
            ));
        })
        .ok()
}
