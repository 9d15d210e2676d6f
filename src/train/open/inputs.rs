//! Opens what a recipe names beside its data: device, model folder, tokenizer, chat template,
//! architecture.

use std::path::{Path, PathBuf};

use bitnet_format::adapter::AdapterKind;
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_format::foreign::missing_tokenizer;
use bitnet_format::{FormatError, ModelSpec, StoredModel};
use bitnet_text::{ChatTemplate, Tokenizer};
use burn::tensor::Device;

use super::sources;
use crate::data_files::DataCaller;
use crate::device;
use crate::distributed::Hosts;
use crate::error::TrainError;
use crate::monitor::Monitor;
use crate::platform::Signals;
use crate::recipe::{
    ChatFormat, InitModel, ModelSource, Precision, Recipe, StageKind, TokenizerSource,
    quantiser_conflicts,
};

/// The device of a recipe, able to compute as it says; ranks of one machine have one each.
pub(crate) fn open_device(
    recipe: &Recipe,
    hosts: &Hosts,
    monitor: &mut dyn Monitor,
) -> Result<Device, TrainError> {
    let found = device::open_one_of(&recipe.device, hosts.local_rank(), hosts.local_world_size())?;
    if recipe.train.precision == Precision::Bf16 {
        device::require_bf16(&found, &recipe.device)?;
    }
    if let Some(part) = device::product_name(&found) {
        monitor.message(&format!("computing on {}: {part}", recipe.device));
    }
    Ok(found)
}

/// The folder that `model.init` names; a model of the hub is brought into the local cache first.
pub(crate) fn init_folder(
    recipe: &Recipe,
    signals: &Signals,
    monitor: &mut dyn Monitor,
) -> Result<Option<PathBuf>, TrainError> {
    match &recipe.model {
        ModelSource::New { .. } => Ok(None),
        ModelSource::Init(init) => {
            let named = ("model.init", &*init.path);
            model_folder(recipe, named, takes_codes(recipe), signals, monitor).map(Some)
        }
    }
}

/// The folder of the model that a key names, or its file where `takes_files`.
pub(super) fn model_folder(
    recipe: &Recipe,
    (field, name): (&'static str, &str),
    takes_files: bool,
    signals: &Signals,
    monitor: &mut dyn Monitor,
) -> Result<PathBuf, TrainError> {
    if name.starts_with("hf:") {
        return fetch(recipe, (field, name), signals, monitor);
    }
    let path = Path::new(name);
    if takes_files && path.is_file() { Ok(path.to_owned()) } else { existing_folder(path, field) }
}

/// Whether the run may start from a model without latents, such as a GGUF file.
fn takes_codes(recipe: &Recipe) -> bool {
    recipe.adapter.as_ref().is_some_and(|adapter| adapter.kind == AdapterKind::Side)
}

/// The folder that `field` names, which must be there before its parts are looked for.
fn existing_folder(path: &Path, field: &str) -> Result<PathBuf, TrainError> {
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    let (got, hint) = if path.exists() {
        let hint = "a GGUF file and a packed folder hold no latent weights to train; \
                    adapter.kind = \"side\" trains beside their codes";
        ("a file", hint.to_owned())
    } else {
        let hint = format!(
            "name yours, as in '{field}=\"/my/model\"'; of the hub it is \"hf:owner/name\""
        );
        ("nothing", hint)
    };
    let what = format!(
        "no such model; expected a checkpoint or a Hugging Face folder, got {got}\nhint: {hint}"
    );
    Err(FormatError::Config { path: path.to_owned(), field: field.to_owned(), what }.into())
}

#[cfg(feature = "hub")]
fn fetch(
    recipe: &Recipe,
    (field, name): (&'static str, &str),
    signals: &Signals,
    monitor: &mut dyn Monitor,
) -> Result<PathBuf, TrainError> {
    use crate::hub::HubRepository;
    let model = HubRepository::model(name).expect("the name begins with hf:");
    let model = model.map_err(|what| contradiction(recipe, field, what))?;
    DataCaller { signals, monitor }.bring(|settings, caller| settings.model(&model, caller))
}

#[cfg(not(feature = "hub"))]
fn fetch(
    recipe: &Recipe,
    (field, _name): (&'static str, &str),
    _signals: &Signals,
    _monitor: &mut dyn Monitor,
) -> Result<PathBuf, TrainError> {
    let what = "needs a build with the feature hub (cargo build --release --features hub); \
                expected a local folder in this build"
        .to_owned();
    Err(contradiction(recipe, field, what))
}

/// The chat template: that of the recipe, else that of the model the run starts from.
pub(crate) fn open_chat(
    recipe: &Recipe,
    init: Option<&Path>,
    tokenizer: &Tokenizer,
    monitor: &mut dyn Monitor,
) -> Result<ChatTemplate, TrainError> {
    let stored = init.map(|folder| ChatTemplate::stored(folder, tokenizer)).transpose()?.flatten();
    let stored = stored.map(ChatTemplate::for_training);
    let chat = match &recipe.chat {
        ChatFormat::Model => stored.clone().unwrap_or_else(ChatTemplate::b158),
        ChatFormat::B158 => ChatTemplate::b158(),
        ChatFormat::B158Apart => ChatTemplate::b158_apart(),
        ChatFormat::Jinja(path) => ChatTemplate::from_file(path)?,
    };
    if recipe.stage == StageKind::Pretrain {
        return Ok(chat);
    }
    if stored.is_some_and(|stored| stored.identity() != chat.identity()) {
        monitor.message(
            "note: the model came with another chat template; the recipe's is trained and exported",
        );
    }
    for warning in chat.warnings(tokenizer) {
        monitor.message(&format!("warning: {warning}"));
    }
    Ok(chat)
}

/// What opening a run's tokenizer needs.
pub(crate) struct TokenizerRequest<'a> {
    pub(crate) recipe: &'a Recipe,
    /// The folder that `model.init` names.
    pub(crate) init: Option<&'a Path>,
    pub(crate) signals: &'a Signals,
}

impl TokenizerRequest<'_> {
    /// `kept` is the tokenizer of a checkpoint, which counts instead of training a new one.
    pub(crate) fn open(
        &self,
        kept: Option<&[u8]>,
        monitor: &mut dyn Monitor,
    ) -> Result<Tokenizer, TrainError> {
        let path = match (&self.recipe.tokenizer, kept) {
            (TokenizerSource::Train { .. }, Some(kept)) => {
                return Ok(Tokenizer::from_bytes(Path::new(TOKENIZER_FILE), kept)?);
            }
            (TokenizerSource::Train { vocab_size }, None) => {
                return self.train(*vocab_size, monitor);
            }
            (TokenizerSource::Path(path), _) => path.clone(),
            (TokenizerSource::FromInit, _) => {
                let Some(init) = self.init else {
                    let what = "is missing; expected path = \"…\" or train = { vocab_size = … }";
                    return Err(contradiction(self.recipe, "tokenizer", what.to_owned()));
                };
                let way_out = "name one in the recipe: tokenizer.path = \"…/tokenizer.json\"";
                let models_own = Tokenizer::of_model(init)?;
                return models_own.ok_or_else(|| missing_tokenizer(init, way_out).into());
            }
        };
        Ok(Tokenizer::from_file(&path)?)
    }

    fn train(&self, vocab_size: usize, monitor: &mut dyn Monitor) -> Result<Tokenizer, TrainError> {
        monitor.message(&format!("training a tokenizer of {vocab_size} entries"));
        // What the messages say is the same with any template.
        let encoding = sources::encoding(self.recipe.stage, &ChatTemplate::b158());
        let caller = &mut DataCaller { signals: self.signals, monitor };
        let json = sources::trained_tokenizer(self.recipe, &encoding, vocab_size, caller)?;
        Ok(Tokenizer::from_bytes(Path::new(TOKENIZER_FILE), &json)?)
    }
}

/// The architecture with what only tokenizer and chat template know filled in: the ids that begin
/// and end. `grow` may add rows for the tokenizer's tokens.
pub(crate) fn resolve_spec(
    recipe: &Recipe,
    init: Option<&Path>,
    tokenizer: &Tokenizer,
    chat: &ChatTemplate,
    grow: impl FnOnce(&mut ModelSpec),
) -> Result<ModelSpec, TrainError> {
    let mut spec = match (&recipe.model, init) {
        (ModelSource::New { spec }, _) => {
            let spec = spec.complete(tokenizer.vocab_size());
            let spec = spec.map_err(|what| contradiction(recipe, "model", what))?;
            let width = recipe.parametrisation.ratio(spec.hidden_size);
            ModelSpec { initializer_range: spec.initializer_range * width.deviation(), ..spec }
        }
        (ModelSource::Init(stored), init) => {
            let folder = init.expect("its folder was found");
            converted(recipe, stored, StoredModel::open(folder)?.spec())?
        }
    };
    if spec.bos_token_id.is_none() {
        spec.bos_token_id = tokenizer.bos();
    }
    if spec.eos_token_id.is_empty() {
        spec.eos_token_id = tokenizer.eos().into_iter().chain(tokenizer.eot()).collect();
    }
    if recipe.stage != StageKind::Pretrain {
        let stops = chat.stop_ids(tokenizer);
        let new = stops.into_iter().filter(|id| !spec.eos_token_id.contains(id));
        spec.eos_token_id.extend(new.collect::<Vec<_>>());
    }
    grow(&mut spec);
    refuse_conflicts(recipe, &spec)?;
    let (rows, needed) = (spec.vocab_size, tokenizer.vocab_size());
    if needed > rows {
        let what = format!("is {rows}; expected at least the tokenizer's {needed}");
        return Err(contradiction(recipe, "model.vocab_size", what));
    }
    let (seq_len, longest) = (recipe.data.seq_len, spec.context_length());
    if seq_len > longest {
        let what = format!(
            "is {seq_len}; expected at most the model's max_position_embeddings, {longest}"
        );
        return Err(contradiction(recipe, "data.seq_len", what));
    }
    Ok(spec)
}

/// The model of a recipe as far as it can be known without data or network.
pub(crate) fn known_spec(recipe: &Recipe) -> Result<Option<ModelSpec>, TrainError> {
    let table = match &recipe.model {
        ModelSource::New { spec } => spec,
        ModelSource::Init(init) => {
            let folder = Path::new(&init.path);
            let there = !init.path.starts_with("hf:") && folder.exists();
            let stored = there.then(|| StoredModel::open(folder)).transpose()?;
            let spec = stored.map(|stored| converted(recipe, init, stored.spec())).transpose()?;
            spec.iter().try_for_each(|spec| refuse_conflicts(recipe, spec))?;
            return Ok(spec);
        }
    };
    let entries = match &recipe.tokenizer {
        TokenizerSource::Train { vocab_size } => *vocab_size,
        TokenizerSource::Path(path) => Tokenizer::from_file(path)?.vocab_size(),
        TokenizerSource::FromInit => return Ok(None),
    };
    table.complete(entries).map(Some).map_err(|what| contradiction(recipe, "model", what))
}

/// The shape of the model that is trained, from the stored one's.
fn converted(
    recipe: &Recipe,
    init: &InitModel,
    stored: &ModelSpec,
) -> Result<ModelSpec, TrainError> {
    let spec = init.conversion.of(stored);
    spec.map_err(|(field, what)| contradiction(recipe, field, what))
}

/// Refuses what is not computed for the quantiser of the model that the recipe starts from.
fn refuse_conflicts(recipe: &Recipe, spec: &ModelSpec) -> Result<(), TrainError> {
    match quantiser_conflicts(recipe, spec).into_iter().next() {
        Some((field, what)) => Err(contradiction(recipe, field, what)),
        None => Ok(()),
    }
}

/// An error of the recipe that only what it names could show.
pub(crate) fn contradiction(recipe: &Recipe, field: &str, what: String) -> TrainError {
    TrainError::Contradiction { path: recipe.path.clone(), field: field.to_owned(), what }
}
