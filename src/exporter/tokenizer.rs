//! Copies a model's tokenizer, chat template and generation settings into its export.

use std::path::Path;

use bitnet_format::ModelSpec;
use bitnet_format::Shown;
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_format::generation_config::{self, GENERATION_CONFIG_FILE};
use bitnet_format::gguf::{Metadata, Value};
use bitnet_text::{CHAT_TEMPLATE_FILE, ChatTemplate, TOKENIZER_CONFIG_FILE, Tokenizer};

use crate::error::TrainError;

/// Files of a folder that only transformers reads.
const COPIED: [&str; 2] = ["special_tokens_map.json", "added_tokens.json"];

/// Writes the files beside the weights of a folder; returns warnings for the user.
pub(super) fn for_folder(
    source: &Path,
    to: &Path,
    spec: &ModelSpec,
) -> Result<Vec<String>, TrainError> {
    let is_folder = source.is_dir();
    let keys = is_folder.then(|| generation_config::read(source)).transpose()?.unwrap_or_default();
    // Also without keys of its own: transformers finds the token that ends a text there.
    if !keys.is_empty() || !spec.eos_token_id.is_empty() {
        fs_err::write(to.join(GENERATION_CONFIG_FILE), generation_config::to_json(&keys, spec))?;
    }
    copy(source, to, &COPIED)?;
    let tokenizer = match Tokenizer::of_model(source) {
        Ok(Some(tokenizer)) => tokenizer,
        // A tokenizer of a kind that we do not read is copied all the same.
        Err(error) if is_folder => {
            copy(source, to, &[TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, CHAT_TEMPLATE_FILE])?;
            return Ok(vec![format!("{error}; copied as it is, and bitnet will refuse it")]);
        }
        Ok(None) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    tokenizer.fits(spec.vocab_size)?;
    let stored = ChatTemplate::stored(source, &tokenizer)?;
    let chat = if is_folder { stored } else { Some(stored.unwrap_or_else(ChatTemplate::b158)) };
    fs_err::write(to.join(TOKENIZER_FILE), tokenizer.json())?;
    let config = tokenizer.hf_config(chat.as_ref(), spec.context_length())?;
    fs_err::write(to.join(TOKENIZER_CONFIG_FILE), config)?;
    let Some(chat) = chat else { return Ok(Vec::new()) };
    // transformers prefers this file to the key in the config, so both get the same template.
    if source.join(CHAT_TEMPLATE_FILE).exists() {
        fs_err::write(to.join(CHAT_TEMPLATE_FILE), chat.source_for(&tokenizer)?)?;
    }
    Ok(chat.warnings(&tokenizer))
}

/// Copies the files of these names that are there.
fn copy(source: &Path, to: &Path, names: &[&str]) -> Result<(), TrainError> {
    for name in names.iter().filter(|name| source.join(name).exists()) {
        fs_err::copy(source.join(name), to.join(name))?;
    }
    Ok(())
}

/// The tokenizer as GGUF metadata, and warnings for the user.
pub(super) fn for_gguf(
    source: &Path,
    spec: &ModelSpec,
) -> Result<(Metadata, Vec<String>), TrainError> {
    let mut metadata = Metadata::default();
    let Some(tokenizer) = Tokenizer::of_model(source)? else {
        // llama.cpp's word for a file without a tokenizer.
        metadata.insert("tokenizer.ggml.model", Value::String("no_vocab".to_owned()));
        let remark = format!("no tokenizer: {} has none, so the file holds none", source.shown());
        return Ok((metadata, vec![remark]));
    };
    let vocabulary = tokenizer.vocabulary(spec.vocab_size)?;
    vocabulary.describe(&mut metadata);
    let chat = ChatTemplate::of_model(source, &tokenizer)?;
    chat.describe(&tokenizer, &mut metadata)?;
    let mut remarks: Vec<_> = tokenizer.assumed().map(str::to_owned).into_iter().collect();
    remarks.extend(chat.warnings(&tokenizer));
    Ok((metadata, remarks))
}
