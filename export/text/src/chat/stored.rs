//! Chat templates of stored models: `chat_template.jinja` and `tokenizer_config.json` of a folder,
//! a key of a GGUF file.

use std::path::{Path, PathBuf};

use bitnet_format::foreign::{FileRole, refuse, without_mark};
use bitnet_format::gguf::{GgufFile, Metadata, Value as GgufValue};
use bitnet_format::input::{LARGEST_TEXT, read_text};
use serde_json::Value;

use super::b158::{self, HeaderEncoding};
use super::{ChatTemplate, TemplateKind};
use crate::control::{self, TOKENIZER_CONFIG_FILE};
use crate::error::TextError;
use crate::tokenizer::Tokenizer;

/// The file's name in a model folder. It takes precedence over `tokenizer_config.json`.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

const GGUF_KEY: &str = "tokenizer.chat_template";

/// Begins a template in a GGUF whose tokenizer has no BOS. llama.cpp takes token 11 for the BOS of
/// such a file, a comma in GPT-2's order, and would write it wherever the template asks for
/// `bos_token`.
const WITHOUT_BOS: &str = "{% set bos_token = '' %}";

impl ChatTemplate {
    /// The template stored with a model, else [`ChatTemplate::b158`].
    ///
    /// # Errors
    /// When it does not work.
    pub fn of_model(path: &Path, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        Ok(Self::stored(path, tokenizer)?.unwrap_or_else(Self::b158))
    }

    /// The template stored with a folder or a GGUF file; `None` if there is none.
    ///
    /// # Errors
    /// When a file does not parse or the template does not work.
    pub fn stored(path: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>, TextError> {
        if !path.is_dir() {
            return Self::stored_in_gguf(&GgufFile::open(path)?, tokenizer);
        }
        let found = in_folder(path)?;
        found.map(|(file, source)| Self::from_source(&file, &source, tokenizer)).transpose()
    }

    /// The template of a GGUF file, from memory too ([`GgufFile::from_bytes`]), else
    /// [`ChatTemplate::b158`].
    ///
    /// # Errors
    /// When it does not work.
    pub fn of_gguf(file: &GgufFile, tokenizer: &Tokenizer) -> Result<Self, TextError> {
        Ok(Self::stored_in_gguf(file, tokenizer)?.unwrap_or_else(Self::b158))
    }

    fn stored_in_gguf(file: &GgufFile, tokenizer: &Tokenizer) -> Result<Option<Self>, TextError> {
        let source = file.metadata().optional_str(GGUF_KEY)?;
        // What `describe` put before it goes again, so that our own templates are recognised.
        let ours = |source: &str| source.strip_prefix(WITHOUT_BOS).unwrap_or(source).to_owned();
        source.map(|source| Self::from_source(file.path(), &ours(source), tokenizer)).transpose()
    }

    /// The Jinja template in a file.
    ///
    /// # Errors
    /// When the file cannot be read or the template does not work.
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        Self::jinja(path, &read_source(path)?)
    }

    /// The template of a source; those that [`ChatTemplate::source_for`] wrote are recognised.
    pub(super) fn from_source(
        path: &Path,
        source: &str,
        tokenizer: &Tokenizer,
    ) -> Result<Self, TextError> {
        match HeaderEncoding::of_source(source, &b158::turn_end_spelling(tokenizer)) {
            Some(form) => Ok(Self { kind: TemplateKind::B158(form) }),
            None => Self::jinja(path, source),
        }
    }

    /// The template to train with: the published one of 2B4T, whose prompt ends in a space that
    /// training never shows before an answer, becomes [`ChatTemplate::b158`].
    #[must_use]
    pub fn for_training(self) -> Self {
        match &self.kind {
            TemplateKind::Jinja(template) if b158::is_published(template.source()) => Self::b158(),
            _ => self,
        }
    }

    /// Writes the template under its key of a GGUF file.
    ///
    /// # Errors
    /// When the template does not work.
    pub fn describe(
        &self,
        tokenizer: &Tokenizer,
        metadata: &mut Metadata,
    ) -> Result<(), TextError> {
        let mut source = self.source_for(tokenizer)?;
        // Only where the template asks for it.
        if tokenizer.bos().is_none() && source.contains("bos_token") {
            source.insert_str(0, WITHOUT_BOS);
        }
        metadata.insert(GGUF_KEY, GgufValue::String(source));
        Ok(())
    }
}

/// A template in a file.
fn read_source(path: &Path) -> Result<String, TextError> {
    refuse(path, FileRole::Template)?;
    Ok(without_mark(&read_text(path, LARGEST_TEXT)?).to_owned())
}

/// The file that holds a folder's template, and the template.
fn in_folder(folder: &Path) -> Result<Option<(PathBuf, String)>, TextError> {
    let file = folder.join(CHAT_TEMPLATE_FILE);
    if file.exists() {
        let source = read_source(&file)?;
        return Ok(Some((file, source)));
    }
    let file = folder.join(TOKENIZER_CONFIG_FILE);
    let config = control::object(&file)?;
    // Older models have it here; newer versions of transformers write a file of its own.
    let Some(value) = config.get("chat_template") else { return Ok(None) };
    Ok(default_of(value).map_err(|what| broken(&file, what))?.map(|source| (file, source)))
}

/// The template of a `chat_template`: text, or the one named `default` of a list.
fn default_of(value: &Value) -> Result<Option<String>, &'static str> {
    let expected = "chat_template: expected text or a list of templates with names";
    match value {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(source.clone())),
        Value::Array(list) => {
            let is_default = |entry: &&Value| entry["name"] == "default";
            let entry = list.iter().find(is_default).ok_or(
                "chat_template: no template of the list is named default; expected one to be",
            )?;
            Ok(Some(entry["template"].as_str().ok_or(expected)?.to_owned()))
        }
        _ => Err(expected),
    }
}

fn broken(path: &Path, what: &str) -> TextError {
    TextError::ChatTemplate { path: path.to_owned(), line: None, what: what.to_owned() }
}
