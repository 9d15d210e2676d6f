//! `tokenizer_config.json`, which transformers and inference engines read along with
//! `tokenizer.json`. Written with every model folder; `control` reads it.

use serde_json::{Value, json};

use crate::chat::ChatTemplate;
use crate::error::TextError;
use crate::tokenizer::Tokenizer;

impl Tokenizer {
    /// The text of a `tokenizer_config.json` for this tokenizer; `context` is the model's. What the
    /// file beside the tokenizer said of other things stays.
    ///
    /// # Errors
    /// When the template does not work with this tokenizer.
    pub fn hf_config(
        &self,
        chat: Option<&ChatTemplate>,
        context: usize,
    ) -> Result<String, TextError> {
        let mut config = self.config().clone();
        let mut default = |key: &str, value: Value| {
            config.entry(key).or_insert(value);
        };
        default("tokenizer_class", json!("PreTrainedTokenizerFast"));
        default("clean_up_tokenization_spaces", json!(false));
        default("bos_token", json!(self.spelling_of(self.bos())));
        // A chat model stops at the end of its turn; a template that writes `eos_token` was trained
        // with this tokenizer's.
        let stops_at_turn = chat.is_some_and(|chat| !chat.reads("eos_token"));
        let turn_end = self.eot().filter(|_| stops_at_turn);
        default("eos_token", json!(self.spelling_of(turn_end.or(self.eos_token()))));
        if !self.adds_bos() && self.bos().is_some() {
            default("add_bos_token", json!(false));
        }
        config.insert("model_max_length".into(), json!(context));
        if let Some(chat) = chat {
            let source = chat.source_for(self)?;
            match config.get_mut("chat_template") {
                // Templates for other purposes stay in the list.
                Some(Value::Array(list)) => set_default(list, source),
                _ => drop(config.insert("chat_template".into(), source.into())),
            }
        }
        let text = serde_json::to_string_pretty(&config).expect("a JSON value always serialises");
        Ok(text + "\n")
    }

    fn spelling_of(&self, id: Option<u32>) -> Option<String> {
        id.and_then(|id| self.spelling(id))
    }
}

fn set_default(list: &mut Vec<Value>, source: String) {
    let entry = json!({"name": "default", "template": source});
    match list.iter_mut().find(|entry| entry["name"] == "default") {
        Some(old) => *old = entry,
        None => list.insert(0, entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::TOKENIZER_CONFIG_FILE;
    use crate::test_tokenizers::trained;
    use crate::{CHAT_TEMPLATE_FILE, Message, Role};
    use std::path::Path;

    const ASK: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}<|eot_id|>\
                       {% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";

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
        let jinja = ChatTemplate::jinja(Path::new("t.jinja"), ASK).unwrap();
        for chat in [ChatTemplate::b158(), ChatTemplate::b158_apart(), jinja] {
            let dir = folder(Some(&tokenizer.hf_config(Some(&chat), 128).unwrap()));
            let read = ChatTemplate::of_model(dir.path(), &tokenizer).unwrap();
            assert_eq!(read.identity(), chat.identity());
        }
        let config: Value = serde_json::from_str(&tokenizer.hf_config(None, 128).unwrap()).unwrap();
        assert_eq!(config["bos_token"], "<|begin_of_text|>");
        assert_eq!(config["eos_token"], "<|end_of_text|>");
        assert!(config.get("chat_template").is_none());
    }

    /// A bare `tokenizer.json` declares no EOS; what is exported must be what training wrote.
    #[test]
    fn a_template_that_writes_eos_writes_the_same_one_after_an_export() {
        let tokenizer = trained(300);
        let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}\
                      {% if add_generation_prompt %}[assistant]{% endif %}";
        let chat = ChatTemplate::jinja(Path::new("t.jinja"), source).unwrap();
        let dir = folder(Some(&tokenizer.hf_config(Some(&chat), 128).unwrap()));
        let path = dir.path().join("tokenizer.json");
        fs_err::write(&path, tokenizer.json()).unwrap();
        let exported = Tokenizer::from_file(&path).unwrap();
        let talk = vec![Message::new(Role::User, "a"), Message::new(Role::Assistant, "b")].into();
        let ids = |tokenizer: &Tokenizer| chat.encode(tokenizer, &talk).unwrap().ids;
        assert_eq!(ids(&exported), ids(&tokenizer));
        assert_eq!(ids(&tokenizer).last().copied(), tokenizer.eos());
    }

    #[test]
    fn a_folder_without_a_template_has_none_and_a_broken_one_is_named() {
        let tokenizer = trained(300);
        for config in [None, Some("{}"), Some("{\"chat_template\": null}")] {
            let dir = folder(config);
            assert!(ChatTemplate::stored(dir.path(), &tokenizer).unwrap().is_none());
        }
        for config in [
            "{",
            "[]",
            "{\"chat_template\": 3}",
            "{\"chat_template\": []}",
            "{\"chat_template\": \"{% for %}\"}",
        ] {
            let dir = folder(Some(config));
            let error = ChatTemplate::stored(dir.path(), &tokenizer).unwrap_err().to_string();
            assert!(error.contains(TOKENIZER_CONFIG_FILE), "{error}");
        }
    }

    #[test]
    fn a_list_has_a_default_and_a_file_of_its_own_comes_first() {
        let tokenizer = trained(300);
        let list = json!({"chat_template": [
            {"name": "tool_use", "template": "x"}, {"name": "default", "template": ASK}
        ]});
        let dir = folder(Some(&list.to_string()));
        let source = |dir: &tempfile::TempDir| {
            let chat = ChatTemplate::of_model(dir.path(), &tokenizer).unwrap();
            chat.source_for(&tokenizer).unwrap()
        };
        assert_eq!(source(&dir), ASK);
        let own = ASK.replace("[assistant]", "[model]");
        fs_err::write(dir.path().join(CHAT_TEMPLATE_FILE), &own).unwrap();
        assert_eq!(source(&dir), own);
    }

    #[test]
    fn what_other_files_declare_is_respected_and_kept() {
        let dir = folder(None);
        let path = dir.path().join("tokenizer.json");
        fs_err::write(&path, trained(300).json()).unwrap();
        let plain = Tokenizer::from_file(&path).unwrap();
        assert_eq!((plain.first(), plain.eos_token()), (plain.bos(), plain.eos()));
        fs_err::write(
            dir.path().join(TOKENIZER_CONFIG_FILE),
            "{\"add_bos_token\": false, \"eos_token\": {\"content\": \"<|eot_id|>\"}, \"legacy\": true}",
        )
        .unwrap();
        let tokenizer = Tokenizer::from_file(&path).unwrap();
        assert_eq!((tokenizer.first(), tokenizer.bos()), (None, plain.bos()));
        assert_eq!((tokenizer.eos_token(), tokenizer.eos()), (plain.eot(), plain.eos()));
        assert_eq!(tokenizer.encode_document("").unwrap(), [plain.eos().unwrap()]);
        let written = tokenizer.hf_config(Some(&ChatTemplate::b158()), 64).unwrap();
        let written: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(written["add_bos_token"], false);
        assert_eq!(written["legacy"], true);
        fs_err::write(
            dir.path().join("config.json"),
            format!("{{\"bos_token_id\": {}}}", plain.eot().unwrap()),
        )
        .unwrap();
        assert_eq!(Tokenizer::from_file(&path).unwrap().bos(), plain.eot());
    }
}
