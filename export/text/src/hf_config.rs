//! `tokenizer_config.json`: what transformers and engines read beside a `tokenizer.json`. Written
//! with every model folder, read back for its chat template.

use std::path::Path;

use serde_json::{Value, json};

use crate::chat::ChatTemplate;
use crate::error::TextError;
use crate::file;
use crate::tokenizer::Tokenizer;

/// The file's name in a model folder.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

impl Tokenizer {
    /// The text of a `tokenizer_config.json` for this tokenizer; `context` is the model's.
    pub fn hf_config(&self, chat: Option<&ChatTemplate>, context: usize) -> String {
        let token = |id: Option<u32>| id.and_then(|id| self.spelling(id));
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": false,
            "bos_token": token(self.bos()),
            "eos_token": token(if chat.is_some() { self.eot().or(self.eos()) } else { self.eos() }),
        });
        if let Some(chat) = chat {
            config["chat_template"] = json!(chat.jinja_source());
        }
        let text = serde_json::to_string_pretty(&config).expect("a JSON value always serialises");
        text + "\n"
    }
}

impl ChatTemplate {
    /// The template of a model folder: what its `tokenizer_config.json` says, else 2B4T's own. The
    /// source of 2B4T's template stands for [`ChatTemplate::b158`], headers and contents apart.
    ///
    /// # Errors
    /// When the file does not parse or its template does not work.
    pub fn of_folder(folder: &Path) -> Result<Self, TextError> {
        let path = folder.join(TOKENIZER_CONFIG_FILE);
        if !path.exists() {
            return Ok(Self::b158());
        }
        let broken =
            |what: String| TextError::ChatTemplate { path: path.clone(), line: None, what };
        let config: Value = serde_json::from_slice(&file::read(&path)?)
            .map_err(|error| broken(error.to_string()))?;
        match config.get("chat_template") {
            None | Some(Value::Null) => Ok(Self::b158()),
            Some(Value::String(source)) if source == Self::b158().jinja_source() => {
                Ok(Self::b158())
            }
            Some(Value::String(source)) => Self::jinja(&path, source),
            Some(_) => Err(broken("chat_template is not text".to_owned())),
        }
    }
}
