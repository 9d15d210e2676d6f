//! `tokenizer_config.json`, which transformers and inference engines read along with
//! `tokenizer.json`. Written with every model folder; read for its chat template.

use std::path::Path;

use serde_json::{Value, json};

use crate::chat::ChatTemplate;
use crate::error::TextError;
use crate::tokenizer::Tokenizer;
use crate::tokenizer_json;

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
    /// The template in a folder's `tokenizer_config.json`, else that of 2B4T. The Jinja source of
    /// 2B4T's template is recognised and becomes [`ChatTemplate::b158`].
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
        let config: Value = serde_json::from_slice(&tokenizer_json::read(&path)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_tokenizers::trained;

    fn folder(config: Option<&str>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        if let Some(config) = config {
            fs_err::write(dir.path().join(TOKENIZER_CONFIG_FILE), config).unwrap();
        }
        dir
    }

    #[test]
    fn what_is_written_is_read_back_as_the_same_template() {
        let tokenizer = trained(300);
        let jinja = ChatTemplate::jinja(
            Path::new("t.jinja"),
            "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|eot_id|>{% endfor %}\
             {% if add_generation_prompt %}[assistant]{% endif %}",
        );
        for chat in [ChatTemplate::b158(), jinja.unwrap()] {
            let dir = folder(Some(&tokenizer.hf_config(Some(&chat), 128)));
            let read = ChatTemplate::of_folder(dir.path()).unwrap();
            assert_eq!(read.jinja_source(), chat.jinja_source());
            assert_eq!(read.identity(), chat.identity());
        }
        let config: Value = serde_json::from_str(&tokenizer.hf_config(None, 128)).unwrap();
        assert_eq!(config["bos_token"], "<|begin_of_text|>");
        assert_eq!(config["eos_token"], "<|end_of_text|>");
        assert!(config.get("chat_template").is_none());
    }

    #[test]
    fn a_folder_without_a_template_has_the_one_of_2b4t_and_a_broken_one_is_named() {
        let b158 = ChatTemplate::b158().identity();
        for config in [None, Some("{}"), Some("{\"chat_template\": null}")] {
            let dir = folder(config);
            assert_eq!(ChatTemplate::of_folder(dir.path()).unwrap().identity(), b158);
        }
        for config in ["{", "{\"chat_template\": 3}", "{\"chat_template\": \"{% for %}\"}"] {
            let dir = folder(Some(config));
            let error = ChatTemplate::of_folder(dir.path()).unwrap_err().to_string();
            assert!(error.contains(TOKENIZER_CONFIG_FILE), "{error}");
        }
    }
}
