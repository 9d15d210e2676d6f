//! The model a run starts from: a new one of some shape, or weights that exist.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use bitnet_format::Shown;
use bitnet_format::group::{ActivationForm, EmbeddingForm, Quantiser};
use bitnet_format::{HiddenAct, ModelSpec, RopeScaling};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::conversion::Conversion;
use super::error::Location;
use super::item::{Bound, Item};
use super::parametrisation::Parametrisation;
use super::section::Section;
use super::tree::{self, TomlValue};

/// Placeholder for a vocabulary size that is not known yet: above every token id a config may name.
const UNKNOWN_VOCAB: usize = 1 << 28;

/// The model a run starts from.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSource {
    /// A new one.
    New {
        /// Its shape.
        spec: ModelTable,
    },
    /// Weights that exist.
    Init(InitModel),
}

impl ModelSource {
    /// Whether a stored model is given sub-norms.
    pub fn inserts_sub_norms(&self) -> bool {
        matches!(self, Self::Init(init) if init.conversion.insert_sub_norms)
    }
}

/// The stored model that a run starts from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InitModel {
    /// An absolute folder, or `hf:owner/name[@revision]`.
    pub path: String,
    /// What becomes of it before the first step.
    pub conversion: Conversion,
}

/// A model's shape, complete but perhaps for the size of its vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelTable {
    spec: ModelSpec,
    vocab_known: bool,
}

impl ModelTable {
    /// The size of the vocabulary, if the recipe or its config says.
    pub fn vocab_size(&self) -> Option<usize> {
        self.vocab_known.then_some(self.spec.vocab_size)
    }

    /// The sizes of its blocks; the vocabulary may be a placeholder.
    pub fn blocks(&self) -> &ModelSpec {
        &self.spec
    }

    /// The shape, with the tokenizer's `vocab_size` where the recipe named none.
    pub fn complete(&self, vocab_size: usize) -> Result<ModelSpec, String> {
        let mut spec = self.spec.clone();
        spec.vocab_size = self.vocab_size().unwrap_or(vocab_size);
        // Reading the table checks the shape again: only now is it known which token ids exist.
        let table = toml::Table::try_from(&spec).map_err(|error| error.to_string())?;
        table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
    }

    /// Every key as in `[model]`.
    pub(super) fn table(&self) -> toml::Table {
        let mut table = toml::Table::try_from(&self.spec).expect("a shape is a flat table");
        if !self.vocab_known {
            table.remove("vocab_size");
        }
        table
    }
}

type Reader = fn(&Item<'_>) -> Option<toml::Value>;

/// The keys of a config, those without a default first.
const SHAPE: &[(&str, Reader)] = &[
    ("hidden_size", size),
    ("intermediate_size", size),
    ("num_hidden_layers", size),
    ("num_attention_heads", size),
    ("num_key_value_heads", size),
    ("head_dim", size),
    ("vocab_size", size),
    ("hidden_act", activation),
    ("rope_theta", amount),
    ("rope_scaling", rope_scaling),
    ("attention_bias", switch),
    ("qk_norm", switch),
    ("rms_norm_eps", amount),
    ("tie_word_embeddings", switch),
    ("max_position_embeddings", size),
    ("initializer_range", amount),
    ("embedding_initializer_range", amount),
    ("bos_token_id", token),
    ("eos_token_id", tokens),
    ("sub_norms", switch),
    ("quantise", switch),
    ("quantiser", quantiser),
    ("embedding", embedding),
    ("activations", inputs),
];
// Up to `num_key_value_heads`; a config without any of these is no shape.
const REQUIRED: usize = 5;

fn size(item: &Item<'_>) -> Option<toml::Value> {
    item.whole(1).map(|number| toml::Value::Integer(number as i64))
}

fn amount(item: &Item<'_>) -> Option<toml::Value> {
    item.number(Bound::Positive).map(toml::Value::Float)
}

fn switch(item: &Item<'_>) -> Option<toml::Value> {
    item.boolean().map(toml::Value::Boolean)
}

fn activation(item: &Item<'_>) -> Option<toml::Value> {
    let words = [("relu2", HiddenAct::Relu2), ("silu", HiddenAct::Silu)];
    toml::Value::try_from(item.choice(&words)?).ok()
}

fn embedding(item: &Item<'_>) -> Option<toml::Value> {
    let words = [("full", EmbeddingForm::Full), ("ternary", EmbeddingForm::Ternary)];
    toml::Value::try_from(item.choice(&words)?).ok()
}

fn inputs(item: &Item<'_>) -> Option<toml::Value> {
    let words = [("int8", ActivationForm::Int8), ("none", ActivationForm::None)];
    toml::Value::try_from(item.choice(&words)?).ok()
}

fn rope_scaling(item: &Item<'_>) -> Option<toml::Value> {
    let example = "{ rope_type = \"yarn\", factor = 4.0 }";
    flat_table::<RopeScaling>(item, "a scaling of positions", example)
}

fn quantiser(item: &Item<'_>) -> Option<toml::Value> {
    flat_table::<Quantiser>(item, "a quantiser", "{ weights = \"absmean\", group = 64 }")
}

/// A table of single values that is a `T`; `what` and `example` say what that is.
fn flat_table<T: DeserializeOwned + Serialize>(
    item: &Item<'_>,
    what: &str,
    example: &str,
) -> Option<toml::Value> {
    let expected = format!("a table such as {example}");
    let mut table = toml::Table::new();
    for (name, value) in item.named(&expected)? {
        let value = match &value.node.content {
            TomlValue::Integer(number) => toml::Value::Integer(*number),
            TomlValue::Float(number) => toml::Value::Float(*number),
            TomlValue::Boolean(choice) => toml::Value::Boolean(*choice),
            TomlValue::Text(text) => toml::Value::String(text.clone()),
            _ => return value.wrong("wrong type", "a number, true or false, or a word"),
        };
        table.insert(name.to_owned(), value);
    }
    // `T` checks itself. What it writes back holds its defaults, as the resolved recipe must.
    match toml::Value::Table(table).try_into::<T>() {
        Ok(found) => toml::Value::try_from(found).ok(),
        Err(error) => {
            let reason = error.message().to_owned();
            item.problem(format!("not {what}; expected {expected}, got: {reason}"));
            None
        }
    }
}

fn token(item: &Item<'_>) -> Option<toml::Value> {
    item.whole(0).map(|id| toml::Value::Integer(id as i64))
}

fn tokens(item: &Item<'_>) -> Option<toml::Value> {
    if matches!(item.node.content, TomlValue::Integer(_)) {
        return token(item);
    }
    let items = item.list("a token id or a list of them")?;
    items.iter().map(token).collect::<Option<Vec<_>>>().map(toml::Value::Array)
}

/// Reads `[model]`; relative paths start from the folder of the recipe.
pub(super) fn read_model(
    root: &mut Section<'_>,
    paths: Paths<'_>,
) -> (Option<ModelSource>, Parametrisation) {
    let mut table = root.section("model");
    let parametrisation = read_parametrisation(&mut table);
    let init = table.item("init");
    let config = table.item("config");
    // Either way every key is asked for: by a reader, or by what says why it may not stand here.
    let model = if let Some(init) = init {
        let conversion = read_conversion(&mut table);
        refuse_shape(&mut table, config.as_ref());
        let path = read_model_name(&init, paths.base);
        path.map(|path| ModelSource::Init(InitModel { path, conversion }))
    } else {
        refuse_conversion(&mut table);
        read_new(&mut table, config.as_ref(), paths).map(|spec| ModelSource::New { spec })
    };
    table.finish();
    (model, parametrisation)
}

fn read_parametrisation(table: &mut Section<'_>) -> Parametrisation {
    let words = [("standard", false), ("mup", true)];
    if table.value("parametrisation", |item| item.choice(&words)) {
        let base_width = table.value("base_width", |item| item.whole(1)) as usize;
        return Parametrisation::Mup { base_width };
    }
    if let Some(item) = table.item("base_width") {
        let message =
            "belongs to another parametrisation; expected \"mup\" beside it, got \"standard\"";
        item.problem(message.to_owned());
    }
    Parametrisation::Standard
}

/// A recipe's folder in two forms.
#[derive(Clone, Copy)]
pub(super) struct Paths<'a> {
    /// As the user named it, for messages.
    pub(super) shown: &'a Path,
    /// Absolute.
    pub(super) base: &'a Path,
}

/// A folder, absolute if `base` is, or the name of a model of the hub.
pub(super) fn read_model_name(item: &Item<'_>, base: &Path) -> Option<String> {
    let text = item.word()?;
    let Some(repository) = text.strip_prefix("hf:") else {
        return Some(item.folder_of(&text, base).join(text).display().to_string());
    };
    // Its form only. `hub` checks each part before it becomes part of a path or an address.
    let name = repository.split_once('@').map_or(repository, |(name, _)| name);
    match name.split('/').collect::<Vec<_>>()[..] {
        [owner, name] if !owner.is_empty() && !name.is_empty() => Some(text),
        _ => {
            item.problem(format!(
                "not a model; expected \"hf:owner/name[@revision]\", got {text:?}"
            ));
            None
        }
    }
}

/// Reads the keys that may stand beside `init`.
fn read_conversion(table: &mut Section<'_>) -> Conversion {
    let mut quantiser = toml::Table::new();
    for (key, read) in SHAPE.iter().filter(|(key, _)| Conversion::SHAPE_KEYS.contains(key)) {
        let value = table.optional(key, read);
        quantiser.extend(value.map(|value| ((*key).to_owned(), value)));
    }
    Conversion { quantiser, insert_sub_norms: table.value("insert_sub_norms", Item::boolean) }
}

/// A new model has what a stored one is given.
fn refuse_conversion(table: &mut Section<'_>) {
    for key in Conversion::OWN_KEYS {
        if let Some(item) = table.item(key) {
            let message = "changes a stored model; expected model.init beside it, got none";
            item.problem(message.to_owned());
        }
    }
}

/// Weights bring their own shape, but for what a conversion changes.
fn refuse_shape(table: &mut Section<'_>, config: Option<&Item<'_>>) {
    let shape = SHAPE.iter().filter(|(key, _)| !Conversion::SHAPE_KEYS.contains(key));
    let shape: Vec<_> = shape.filter_map(|(key, _)| table.item(key)).collect();
    for item in shape.iter().chain(config) {
        let message = "a shape beside `model.init`, which brings its own";
        item.problem(format!("{message}; expected one or the other, got both"));
    }
}

/// A shape, read in part.
#[derive(Default)]
struct ModelKeys {
    values: toml::Table,
    /// Where each key is, and its dotted name there.
    written: Vec<(&'static str, Location, String)>,
    wrong: bool,
}

impl ModelKeys {
    /// Adds every key of `table` that is part of a shape, over what is there.
    fn read(&mut self, table: &mut Section<'_>) {
        for (key, read) in SHAPE {
            let Some(item) = table.item(key) else { continue };
            // The recipe is read after the config, so its place takes that of the config's key.
            self.written.retain(|(name, ..)| name != key);
            self.written.push((key, item.node.place.clone(), item.key.clone()));
            match read(&item) {
                Some(value) => drop(self.values.insert((*key).into(), value)),
                // It has its message; a shape without it would bring another, about a key that is
                // missing.
                None => self.wrong = true,
            }
        }
    }

    /// Adds every key of the config that `item` names.
    fn read_config(&mut self, item: &Item<'_>, paths: Paths<'_>) -> Option<()> {
        let name = item.word()?;
        let folder = item.folder_of(&name, paths.base);
        // A config that was found from the working directory is shown as it was typed there.
        let shown =
            if folder == paths.base { paths.shown.join(&name) } else { PathBuf::from(&name) };
        let text = tree::read_text(&folder.join(&name)).map_err(|reason| {
            let what = format!("cannot read {}", shown.shown());
            item.problem(format!("{what}; expected a TOML file, got: {reason}"));
        });
        let parsed = tree::parse(&shown, &text.ok()?);
        let tree = parsed.map_err(|problems| item.problems.extend(problems)).ok()?;
        let mut section = Section::root(&tree, item.problems);
        self.read(&mut section);
        section.finish();
        Some(())
    }

    /// The shape, if its keys fit together.
    fn build(mut self, table: &Section<'_>) -> Option<ModelTable> {
        // With a stand-in for the vocabulary the other sizes can be checked now, at their lines.
        let vocab_known = self.values.contains_key("vocab_size");
        let vocab_size = toml::Value::Integer(UNKNOWN_VOCAB as i64);
        self.values.entry("vocab_size").or_insert(vocab_size);
        match self.values.clone().try_into() {
            Ok(spec) => Some(ModelTable { spec, vocab_known }),
            Err(error) => {
                self.blame(table, error.message());
                None
            }
        }
    }

    /// Adds a contradiction at the first key it names.
    fn blame(&self, table: &Section<'_>, reason: &str) {
        let message = format!("not a model; expected sizes that fit together, got: {reason}");
        // The one named first, and of two names at one place the longer: `quantise` is the
        // beginning of `quantiser`, `initializer_range` lies within `embedding_initializer_range`.
        let named = self.written.iter().filter_map(|key| Some((reason.find(key.0)?, key)));
        match named.min_by_key(|(at, key)| (*at, Reverse(key.0.len()))) {
            Some((_, (_, place, key))) => table.problem_at(place.clone(), key.clone(), message),
            None => table.problem("", message),
        }
    }
}

fn read_new(
    table: &mut Section<'_>,
    config: Option<&Item<'_>>,
    paths: Paths<'_>,
) -> Option<ModelTable> {
    let mut shape = ModelKeys::default();
    // The keys beside an unreadable config are read on, for their own mistakes.
    let readable = config.is_none_or(|item| shape.read_config(item, paths).is_some());
    shape.read(table);
    if config.is_none() && shape.written.is_empty() {
        table.missing("config", "`config` (a new model of that shape) or `init` (its weights)");
        return None;
    }
    if !readable || shape.wrong {
        return None;
    }
    let absent = |key: &&str| !shape.values.contains_key(*key);
    let missing: Vec<_> = SHAPE[..REQUIRED].iter().map(|(key, _)| *key).filter(absent).collect();
    for key in &missing {
        table.missing(key, "a whole number, here or in the config");
    }
    if missing.is_empty() { shape.build(table) } else { None }
}
