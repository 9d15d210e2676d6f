//! Where a run's text comes from and how it is packed into sequences.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::item::{Bound, Item, word};
use super::pattern::PathPattern;
use super::phase::Sets;
use super::reading::read_reading;
use super::section::Section;
use super::stage::StageKind;
use crate::data::{LongDocuments, ReadingRules, RowSelection};

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

/// What the rows held out of a set are evaluated as: the one set of a recipe without names under its
/// usual name, every other under its own.
pub fn held_out_name(set: &str) -> &str {
    if set == TRAIN { VALIDATION } else { set }
}

/// Named sets of files.
pub type FileSets = BTreeMap<String, FileSet>;

/// The files of a set, and what it says of them itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileSet {
    /// Files, patterns and folders.
    pub files: Vec<PathPattern>,
    /// How they are read and which rows are used, where that is not as `[data]` says.
    pub reading: Option<ReadingRules>,
    /// Its weight in phases that name none.
    pub weight: Option<f64>,
    /// How often it is read at most.
    pub max_epochs: Option<u64>,
}

impl From<Vec<PathPattern>> for FileSet {
    fn from(files: Vec<PathPattern>) -> Self {
        Self { files, ..Self::default() }
    }
}

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
#[derive(Clone, Debug, PartialEq)]
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

    /// What phases can name.
    pub(super) fn sets(&self, stage: StageKind) -> Sets {
        let (names, default): (Vec<String>, _) = match &self.source {
            DataSource::Files { sets, .. } => (sets.keys().cloned().collect(), default_mix(sets)),
            DataSource::Generate(_) => {
                let names = generated_sets(stage).iter().map(|&name| name.to_owned());
                (names.clone().collect(), names.take(1).map(|name| (name, 1.0)).collect())
            }
        };
        Sets { names: names.into_iter().collect(), default }
    }

    /// How often sets are read at most, those that say so.
    pub fn max_epochs(&self) -> BTreeMap<String, u64> {
        let DataSource::Files { sets, .. } = &self.source else { return BTreeMap::new() };
        let limit = |(name, set): (&String, &FileSet)| Some((name.clone(), set.max_epochs?));
        sets.iter().filter_map(limit).collect()
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

/// The mix of phases that name none: sets by their own weights, else `data.train`.
fn default_mix(sets: &FileSets) -> BTreeMap<String, f64> {
    // All sets have a weight here, or none: `read_train` refuses a mixture.
    let weights = sets.iter().filter_map(|(name, set)| Some((name.clone(), set.weight?)));
    let weights: BTreeMap<_, _> = weights.collect();
    if !weights.is_empty() {
        return weights;
    }
    sets.contains_key(TRAIN).then(|| (TRAIN.to_owned(), 1.0)).into_iter().collect()
}

/// Reads `[data]`; `base` is the folder that relative paths start from.
pub(super) fn read_data(root: &mut Section<'_>, stage: StageKind, base: &Path) -> Data {
    let mut table = root.section("data");
    // Before the sets: what a set does not say of its files holds as `[data]` says it.
    let reading = read_reading(&mut table, None);
    let validation_share = table.value("validation_share", |item| item.number(Bound::BelowOne));
    let reader = SetReader { base, reading: &reading, stage, validation_share };
    let source = read_source(&mut table, &reader);
    let seq_len = table.required("seq_len", "tokens a row", Item::count);
    let long_rows = table.optional("long_rows", |item| item.choice(long_rows_words(stage)));
    if validation_share > 0.0 {
        check_share(&table, &source);
    }
    check_tokens(&table, stage, &reading, validation_share);
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
fn check_tokens(table: &Section<'_>, stage: StageKind, reading: &ReadingRules, share: f64) {
    if reading.files.tokens.is_none() {
        return;
    }
    if stage != StageKind::Pretrain {
        let message = "tokens without text; expected stage = \"pretrain\" beside them, got another";
        table.problem("tokens", message.to_owned());
    }
    if share > 0.0 || reading.selection != RowSelection::default() {
        let message = "rows chosen by their text beside tokens; expected no `dedup`, filter or \
                       `validation_share`, got one";
        table.problem("tokens", message.to_owned());
    }
}

/// What a set is read with.
struct SetReader<'a> {
    /// The folder that relative paths start from.
    base: &'a Path,
    /// The rules of `[data]`.
    reading: &'a ReadingRules,
    stage: StageKind,
    validation_share: f64,
}

fn read_source(table: &mut Section<'_>, reader: &SetReader<'_>) -> DataSource {
    // All four are asked for, whichever are there, so that all four are known keys.
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
    let validation = validation.map(|item| reader.sets(&item, Some(VALIDATION)));
    DataSource::Files {
        sets: read_train(train.as_ref(), sets.as_ref(), reader),
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

fn read_train(
    train: Option<&Item<'_>>,
    sets: Option<&Item<'_>>,
    reader: &SetReader<'_>,
) -> FileSets {
    let mut found = sets.map(|item| reader.sets(item, None)).unwrap_or_default();
    if let Some(item) = train {
        let patterns = read_patterns(item, reader.base).unwrap_or_default();
        if found.insert(TRAIN.into(), patterns.into()).is_some() {
            let message = "a set called `train` beside `data.train`, which is that set";
            item.problem(format!("{message}; expected one of them, got both"));
        }
    }
    let weighted = found.values().filter(|set| set.weight.is_some()).count();
    if let Some(item) = sets.filter(|_| weighted > 0 && weighted < found.len()) {
        let message = "a weight for some sets; expected one for every set, `data.train` under \
                       [data.sets] too, or for none";
        item.problem(format!("{message}, got {weighted} for {} sets", found.len()));
    }
    found
}

impl SetReader<'_> {
    /// A table of named sets, or, where such a set has a `name`, a list of files.
    fn sets(&self, item: &Item<'_>, name: Option<&str>) -> FileSets {
        if let (Some(name), false) = (name, item.is_table()) {
            let files = read_patterns(item, self.base).unwrap_or_default();
            return BTreeMap::from([(name.into(), files.into())]);
        }
        let named =
            item.named("a table of named sets: lists of files, or tables").unwrap_or_default();
        if named.is_empty() {
            item.problem("no set; expected at least one named list of files, got none".into());
        }
        // Only what is evaluated has a usual name; sets without one are those of `data.sets`.
        let is_mixed = name.is_none();
        let read = |item: &Item<'_>| {
            if item.is_table() {
                self.set(item, is_mixed)
            } else {
                read_patterns(item, self.base).unwrap_or_default().into()
            }
        };
        named.iter().map(|(name, item)| ((*name).to_owned(), read(item))).collect()
    }

    /// A set that says itself how its files are read. Only what is trained on is mixed.
    fn set(&self, item: &Item<'_>, is_mixed: bool) -> FileSet {
        let Some(mut table) = Section::of(item, "a table with files") else {
            return FileSet::default();
        };
        let files =
            table.required("files", "a list of files", |item| read_patterns(item, self.base));
        let reading = read_reading(&mut table, Some(self.reading));
        // Only of what is trained on is a share held out.
        let share = if is_mixed { self.validation_share } else { 0.0 };
        check_tokens(&table, self.stage, &reading, share);
        let mut set = FileSet { reading: Some(reading), ..files.unwrap_or_default().into() };
        if is_mixed {
            set.weight = table.optional("weight", |item| item.number(Bound::NonNegative));
            set.max_epochs = table.optional("max_epochs", |item| item.whole(1));
        }
        table.finish();
        set
    }
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
