//! Tokenizer and chat template of a stored model: files beside a folder's weights, or keys of a
//! GGUF file.

use std::path::Path;

use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_format::gguf::{Array, GgufFile, Metadata, Value};

use crate::chat::ChatTemplate;
use crate::error::TextError;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::{SplitPattern, TokenKind, Vocabulary};

/// llama.cpp's name for byte-level BPE, the only kind supported.
const MODEL: &str = "gpt2";

/// Kinds that mean "no tokenizer".
const NONE: [&str; 2] = ["no_vocab", "none"];

const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

impl Tokenizer {
    /// The tokenizer stored with a model; `None` if there is none.
    ///
    /// # Errors
    /// When it is broken or of another kind.
    pub fn of_model(path: &Path) -> Result<Option<Self>, TextError> {
        if path.is_dir() {
            let file = path.join(TOKENIZER_FILE);
            return if file.exists() { Self::from_file(&file).map(Some) } else { Ok(None) };
        }
        let file = GgufFile::open(path)?;
        let vocabulary = Vocabulary::read(file.metadata())?;
        vocabulary.map(|vocabulary| Self::from_vocabulary(path, &vocabulary)).transpose()
    }
}

impl ChatTemplate {
    /// The template stored with a model, else that of 2B4T.
    ///
    /// # Errors
    /// When it does not work.
    pub fn of_model(path: &Path) -> Result<Self, TextError> {
        if path.is_dir() {
            return Self::of_folder(path);
        }
        let file = GgufFile::open(path)?;
        let Some(source) = file.metadata().optional_str(CHAT_TEMPLATE)? else {
            return Ok(Self::b158());
        };
        match Tokenizer::of_model(path)? {
            Some(tokenizer) if source == Self::b158().jinja_source_for(&tokenizer)? => {
                Ok(Self::b158())
            }
            _ => Self::jinja(path, source),
        }
    }

    /// Writes the template under its key.
    ///
    /// # Errors
    /// When the tokenizer has no token that ends a turn.
    pub fn describe(
        &self,
        tokenizer: &Tokenizer,
        metadata: &mut Metadata,
    ) -> Result<(), TextError> {
        metadata.insert(CHAT_TEMPLATE, Value::String(self.jinja_source_for(tokenizer)?));
        Ok(())
    }
}

impl Vocabulary {
    /// Writes all metadata keys.
    pub fn describe(&self, metadata: &mut Metadata) {
        let mut put = |key: &str, value: Value| {
            metadata.insert(format!("tokenizer.ggml.{key}"), value);
        };
        let text = |text: &str| Value::String(text.to_owned());
        put("model", text(MODEL));
        put("pre", text(self.split.name()));
        put("tokens", Value::Array(Array::String(self.tokens.clone())));
        put("scores", Value::Array(Array::F32(vec![0.0; self.tokens.len()])));
        let kinds = self.kinds.iter().map(|kind| kind.as_ggml()).collect();
        put("token_type", Value::Array(Array::I32(kinds)));
        put("merges", Value::Array(Array::String(self.merges.clone())));
        let ids = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("eot_token_id", self.eot),
            ("padding_token_id", self.padding),
        ];
        for (key, id) in ids {
            if let Some(id) = id {
                put(key, Value::U32(id));
            }
        }
        put("add_bos_token", Value::Bool(self.add_bos));
    }

    /// Reads the metadata keys; `None` if the file has no tokenizer.
    ///
    /// # Errors
    /// Names the key that is missing, of another type, or has an unsupported value.
    pub fn read(metadata: &Metadata) -> Result<Option<Self>, TextError> {
        let key = |key: &str| format!("tokenizer.ggml.{key}");
        let model = metadata.optional_str(&key("model"))?;
        if model.is_none_or(|model| NONE.contains(&model)) {
            return Ok(None);
        }
        let unknown = |name: &str, found: &str, expected: &str| {
            let what = format!("{found:?} is unknown; expected {expected}");
            TextError::from(metadata.error(&key(name), what))
        };
        if let Some(other) = model.filter(|model| *model != MODEL) {
            return Err(unknown("model", other, "\"gpt2\", byte-level pairs"));
        }
        let pre = metadata.str(&key("pre"))?;
        let split = SplitPattern::from_name(pre)
            .ok_or_else(|| unknown("pre", pre, "a pattern we know, such as \"llama-bpe\""))?;
        let tokens = metadata.strings(&key("tokens"))?.to_vec();
        let kinds = match metadata.optional_i32s(&key("token_type"))? {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(kinds) => {
                let known = |kind: &i32| {
                    let expected = "a number from 1 to 6";
                    TokenKind::from_ggml(*kind)
                        .ok_or_else(|| unknown("token_type", &kind.to_string(), expected))
                };
                kinds.iter().map(known).collect::<Result<_, _>>()?
            }
        };
        let id = |name: &str| metadata.optional_u32(&key(name));
        Ok(Some(Self {
            tokens,
            kinds,
            merges: metadata.strings(&key("merges"))?.to_vec(),
            split,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            eot: id("eot_token_id")?,
            padding: id("padding_token_id")?,
            add_bos: metadata.optional_bool(&key("add_bos_token"))?.unwrap_or(false),
        }))
    }
}
