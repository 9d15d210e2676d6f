//! Copies a model's tokenizer and chat template into its export.

use std::path::Path;

use bitnet_format::ModelSpec;
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_format::gguf::{Metadata, Value};
use bitnet_text::{ChatTemplate, TOKENIZER_CONFIG_FILE, Tokenizer};

use crate::error::TrainError;

/// Copies the tokenizer files of a folder, or writes them from a GGUF file's metadata.
pub(super) fn for_folder(source: &Path, to: &Path, spec: &ModelSpec) -> Result<(), TrainError> {
    if source.is_dir() {
        // A tokenizer of a kind that we do not read is copied all the same.
        if let Ok(Some(tokenizer)) = Tokenizer::of_model(source) {
            tokenizer.fits(spec.vocab_size)?;
        }
        for name in [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE] {
            let beside = source.join(name);
            if beside.exists() {
                fs_err::copy(&beside, to.join(name))?;
            }
        }
        return Ok(());
    }
    let Some(tokenizer) = Tokenizer::of_model(source)? else { return Ok(()) };
    let chat = ChatTemplate::of_model(source)?;
    fs_err::write(to.join(TOKENIZER_FILE), tokenizer.json())?;
    let config = tokenizer.hf_config(Some(&chat), spec.max_position_embeddings);
    Ok(fs_err::write(to.join(TOKENIZER_CONFIG_FILE), config)?)
}

/// The tokenizer as GGUF metadata, and warnings for the user.
pub(super) fn for_gguf(
    source: &Path,
    spec: &ModelSpec,
) -> Result<(Metadata, Vec<String>), TrainError> {
    let mut metadata = Metadata::default();
    let Some(tokenizer) = Tokenizer::of_model(source)? else {
        metadata.insert("tokenizer.ggml.model", Value::String("no_vocab".to_owned()));
        let remark = format!("no tokenizer: {} has none, so the file holds none", source.display());
        return Ok((metadata, vec![remark]));
    };
    let vocabulary = tokenizer.vocabulary(spec.vocab_size)?;
    vocabulary.describe(&mut metadata);
    let chat = ChatTemplate::of_model(source)?.jinja_source_for(&tokenizer)?;
    metadata.insert("tokenizer.chat_template", Value::String(chat));
    Ok((metadata, tokenizer.assumed().map(str::to_owned).into_iter().collect()))
}
