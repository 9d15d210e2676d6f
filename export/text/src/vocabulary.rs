//! A byte-level BPE tokenizer as GGUF files store it: tokens by id, their kinds, merges, and the name
//! of the split pattern. `gguf` maps it to metadata keys.
//!
//! A GGUF file names its split pattern and does not describe it. Only patterns that llama.cpp knows
//! by name can be written; with any other it would silently produce different ids.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::TextError;
use crate::tokenizer::Tokenizer;
use crate::tokenizer_json::{self, Merge};
use crate::train::SPLIT;

/// A tokenizer as a GGUF file stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocabulary {
    /// Spelling by id: byte-level letters (`Ġthe`), or plain text for added tokens.
    pub tokens: Vec<String>,
    /// One for each token.
    pub kinds: Vec<TokenKind>,
    /// `left right`, highest priority first.
    pub merges: Vec<String>,
    /// How text becomes words before merging.
    pub split: SplitPattern,
    /// Begins a document.
    pub bos: Option<u32>,
    /// Ends a document.
    pub eos: Option<u32>,
    /// Ends a turn of a chat.
    pub eot: Option<u32>,
    /// Pads batches.
    pub padding: Option<u32>,
    /// Whether a text begins with `bos`.
    pub add_bos: bool,
}

/// What a token is, by ggml's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Made of bytes and merges.
    Normal,
    /// Never found in text: begins, ends, separates.
    Control,
    /// Matched in text as a whole.
    UserDefined,
    /// An unused id.
    Unused,
}

impl TokenKind {
    /// ggml's number.
    pub fn as_ggml(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
        }
    }

    /// The kind of ggml's number. Unknown (2) and byte (6) tokens occur in other tokenizers.
    pub fn from_ggml(number: i32) -> Option<Self> {
        let all = [Self::Normal, Self::Control, Self::UserDefined, Self::Unused];
        all.into_iter().find(|kind| kind.as_ggml() == number)
    }
}

/// How text is split into words, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitPattern {
    /// Llama 3's pattern; a word that is a token stays one, whatever the merges say.
    LlamaBpe,
    /// The same pattern; merges alone decide.
    Dbrx,
    /// GPT-2's pattern.
    Gpt2,
}

impl SplitPattern {
    const ALL: [Self; 3] = [Self::LlamaBpe, Self::Dbrx, Self::Gpt2];

    /// The value of `tokenizer.ggml.pre`.
    pub fn name(self) -> &'static str {
        match self {
            Self::LlamaBpe => "llama-bpe",
            Self::Dbrx => "dbrx",
            Self::Gpt2 => "gpt-2",
        }
    }

    /// The pattern of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pattern| pattern.name() == name)
    }

    fn ignores_merges(self) -> bool {
        self == Self::LlamaBpe
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    fn pre_tokenizer(self) -> Value {
        let bytes = |regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                   "use_regex": regex})
        };
        match self {
            Self::Gpt2 => bytes(true),
            Self::LlamaBpe | Self::Dbrx => json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated",
                 "invert": false},
                bytes(false),
            ]}),
        }
    }

    /// The pattern of a `pre_tokenizer`, when it is one of them.
    fn of(pre_tokenizer: &Value, ignore_merges: bool) -> Option<Self> {
        let parts = match pre_tokenizer.get("pretokenizers").and_then(Value::as_array) {
            Some(parts) => parts.as_slice(),
            None => std::slice::from_ref(pre_tokenizer),
        };
        let is = |part: &Value, kind: &str| part["type"] == kind;
        let bytes = |part: &Value, regex: bool| {
            let uses = part.get("use_regex").is_none_or(|uses| uses == true);
            is(part, "ByteLevel") && part["add_prefix_space"] == false && uses == regex
        };
        match parts {
            [one] if bytes(one, true) && !ignore_merges => Some(Self::Gpt2),
            [split, rest] if is(split, "Split") && bytes(rest, false) => {
                // Keeping the matches and removing the text between them give the same words.
                let cut = (&split["behavior"], &split["invert"]);
                let whole = cut == (&json!("Isolated"), &json!(false))
                    || cut == (&json!("Removed"), &json!(true));
                let llama = whole && split["pattern"]["Regex"] == SPLIT;
                llama.then_some(if ignore_merges { Self::LlamaBpe } else { Self::Dbrx })
            }
            _ => None,
        }
    }
}

/// The other parts of a `tokenizer.json` that influence ids.
#[derive(serde::Deserialize)]
struct Rest {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    model: RestOfModel,
}

#[derive(serde::Deserialize)]
struct RestOfModel {
    #[serde(default)]
    ignore_merges: bool,
}

impl Tokenizer {
    /// This tokenizer for the GGUF file of a model with `rows` embedding rows. Ids beyond the
    /// tokenizer's own become unused `[PAD…]` tokens.
    ///
    /// # Errors
    /// When text is normalised or split in a way that GGUF has no name for, or when there are more
    /// tokens than rows.
    pub fn vocabulary(&self, rows: usize) -> Result<Vocabulary, TextError> {
        let file = tokenizer_json::parse(self.path(), self.json())?;
        let split = self.split_pattern()?;
        if self.vocab_size() > rows {
            let what = format!("has {} tokens; expected at most {rows}", self.vocab_size());
            return Err(self.inexpressible("model.vocab", what));
        }
        let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![TokenKind::Unused; rows];
        for (token, id) in file.model.vocab.0 {
            (tokens[id as usize], kinds[id as usize]) = (token, TokenKind::Normal);
        }
        for added in file.added_tokens {
            let kind = if added.special { TokenKind::Control } else { TokenKind::UserDefined };
            (tokens[added.id as usize], kinds[added.id as usize]) = (added.content, kind);
        }
        let merges = file.model.merges.into_iter().map(|merge| match merge {
            Merge::Pair(left, right) => format!("{left} {right}"),
            Merge::Line(line) => line,
        });
        Ok(Vocabulary {
            tokens,
            kinds,
            merges: merges.collect(),
            split,
            bos: self.bos(),
            eos: self.eos(),
            eot: self.eot(),
            padding: None,
            add_bos: self.bos().is_some(),
        })
    }

    fn split_pattern(&self) -> Result<SplitPattern, TextError> {
        let rest: Rest = serde_json::from_slice(self.json())
            .map_err(|error| self.inexpressible("pre_tokenizer", error.to_string()))?;
        if let Some(normalizer) = rest.normalizer.filter(|value| !value.is_null()) {
            let what = format!("GGUF has no name for {normalizer}; expected null");
            return Err(self.inexpressible("normalizer", what));
        }
        let pre = rest.pre_tokenizer.unwrap_or(Value::Null);
        SplitPattern::of(&pre, rest.model.ignore_merges).ok_or_else(|| {
            let known = SplitPattern::ALL.map(SplitPattern::name).join(", ");
            let what = format!("GGUF has no name for {pre}; expected that of {known}");
            self.inexpressible("pre_tokenizer", what)
        })
    }

    fn inexpressible(&self, field: &str, what: String) -> TextError {
        let (path, field) = (self.path().to_owned(), field.to_owned());
        TextError::Inexpressible { path, field, what }
    }

    /// The tokenizer that a GGUF file describes; `path` is for messages.
    ///
    /// # Errors
    /// All that can be wrong with a `tokenizer.json`, which is what it becomes.
    pub fn from_vocabulary(path: &Path, vocabulary: &Vocabulary) -> Result<Self, TextError> {
        let broken = |field: &str, what: String| TextError::Inexpressible {
            path: path.to_owned(),
            field: format!("tokenizer.ggml.{field}"),
            what,
        };
        let (tokens, kinds) = (&vocabulary.tokens, &vocabulary.kinds);
        if tokens.len() != kinds.len() {
            let what = format!("has {} entries; expected {}", kinds.len(), tokens.len());
            return Err(broken("token_type", what));
        }
        let ids = [vocabulary.bos, vocabulary.eos, vocabulary.eot, vocabulary.padding];
        if let Some(id) = ids.into_iter().flatten().find(|id| *id as usize >= tokens.len()) {
            let what = format!("an id is {id}; expected below {}", tokens.len());
            return Err(broken("bos_token_id", what));
        }
        let used = kinds.iter().rposition(|kind| *kind != TokenKind::Unused).map_or(0, |at| at + 1);
        let mut vocab = serde_json::Map::new();
        for (id, token) in tokens[..used].iter().enumerate() {
            if vocab.insert(token.clone(), json!(id)).is_some() {
                return Err(broken("tokens", format!("{token:?} appears twice")));
            }
        }
        let mut merges = Vec::with_capacity(vocabulary.merges.len());
        for (at, merge) in vocabulary.merges.iter().enumerate() {
            let pair = merge.split_once(' ').ok_or_else(|| {
                broken(&format!("merges[{at}]"), format!("{merge:?} is not two tokens"))
            })?;
            merges.push(json!([pair.0, pair.1]));
        }
        let json = vocabulary.tokenizer_json(used, vocab, merges).to_string();
        Self::from_bytes(path, json.as_bytes())
    }
}

impl Vocabulary {
    fn tokenizer_json(
        &self,
        used: usize,
        vocab: serde_json::Map<String, Value>,
        merges: Vec<Value>,
    ) -> Value {
        let added = self.tokens[..used].iter().zip(&self.kinds).enumerate();
        let added = added.filter(|(_, (_, kind))| **kind != TokenKind::Normal);
        let added: Vec<Value> = added
            .map(|(id, (token, kind))| {
                let special = *kind != TokenKind::UserDefined;
                json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false, "special": special})
            })
            .collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": null, "pre_tokenizer": self.split.pre_tokenizer(),
            "post_processor": self.post_processor(),
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                        "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                      "continuing_subword_prefix": null, "end_of_word_suffix": null,
                      "fuse_unk": false, "byte_fallback": false,
                      "ignore_merges": self.split.ignores_merges(),
                      "vocab": vocab, "merges": merges},
        })
    }

    fn post_processor(&self) -> Value {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false,
                           "use_regex": true});
        let (true, Some(bos)) = (self.add_bos, self.bos) else { return bytes };
        let token = &self.tokens[bos as usize];
        let special = |kind: u8| json!({"SpecialToken": {"id": token, "type_id": kind}});
        let text = |name: &str, kind: u8| json!({"Sequence": {"id": name, "type_id": kind}});
        let template = json!({
            "type": "TemplateProcessing",
            "single": [special(0), text("A", 0)],
            "pair": [special(0), text("A", 0), special(1), text("B", 1)],
            "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
        });
        json!({"type": "Sequence", "processors": [bytes, template]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_tokenizers::{tokenizers_outside_the_repository, trained};
    use proptest::prelude::*;

    fn back(tokenizer: &Tokenizer, rows: usize) -> Tokenizer {
        let vocabulary = tokenizer.vocabulary(rows).unwrap();
        assert_eq!((vocabulary.tokens.len(), vocabulary.kinds.len()), (rows, rows));
        Tokenizer::from_vocabulary(Path::new("m.gguf"), &vocabulary).unwrap()
    }

    fn same(ours: &Tokenizer, theirs: &Tokenizer, text: &str) {
        let ids = ours.encode(text).unwrap();
        assert_eq!(ids, theirs.encode(text).unwrap(), "{text:?}");
        assert_eq!(ours.decode(&ids), theirs.decode(&ids), "{text:?}");
    }

    const TEXTS: [&str; 6] = [
        "plain ASCII, it's 1234567!",
        "emoji 👩\u{200d}👩\u{200d}👧 naïve 日本語",
        "lines\r\nand\rand\n\n  spaces   \r\n ",
        "<|begin_of_text|> [PAD400] <|eot_id|>",
        "\0\u{1}\u{7f}\u{10ffff}",
        "",
    ];

    #[test]
    fn a_tokenizer_survives_the_way_through_a_file() {
        let tokenizer = trained(400);
        for rows in [400, 512] {
            let again = back(&tokenizer, rows);
            for text in TEXTS {
                same(&tokenizer, &again, text);
            }
            let ends = |t: &Tokenizer| (t.vocab_size(), t.bos(), t.eos(), t.eot());
            assert_eq!(ends(&tokenizer), ends(&again));
        }
        assert_eq!(tokenizer.vocabulary(400).unwrap().split, SplitPattern::LlamaBpe);
    }

    #[test]
    fn tokenizers_outside_the_repository_survive_it_too() {
        let Some(shared) = tokenizers_outside_the_repository() else { return };
        for (name, split) in [
            ("bpe4096", SplitPattern::LlamaBpe),
            ("bpe512", SplitPattern::LlamaBpe),
            ("gpt2", SplitPattern::Gpt2),
            ("dolma2", SplitPattern::Dbrx),
        ] {
            let folder = shared.join(name);
            let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json")).unwrap();
            assert_eq!(tokenizer.vocabulary(tokenizer.vocab_size()).unwrap().split, split);
            let again = back(&tokenizer, tokenizer.vocab_size() + 7);
            let golden = fs_err::read_to_string(folder.join("golden.jsonl")).unwrap();
            for line in golden.lines() {
                let row: Value = serde_json::from_str(line).unwrap();
                same(&tokenizer, &again, row["text"].as_str().unwrap());
            }
        }
    }

    #[test]
    fn what_gguf_has_no_name_for_is_refused_by_field() {
        let change = |field: &str, value: Value| {
            let mut file: Value = serde_json::from_slice(trained(300).json()).unwrap();
            file[field] = value;
            let tokenizer = Tokenizer::from_bytes(Path::new("t.json"), file.to_string().as_bytes());
            tokenizer.unwrap().vocabulary(300).unwrap_err().to_string()
        };
        let error = change("normalizer", json!({"type": "NFC"}));
        assert!(error.starts_with("t.json [normalizer]: GGUF has no name for"), "{error}");
        let whitespace = json!({"type": "Sequence", "pretokenizers": [{"type": "Whitespace"},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
        let error = change("pre_tokenizer", whitespace);
        assert!(error.starts_with("t.json [pre_tokenizer]: GGUF has no name for"), "{error}");
        let error = trained(300).vocabulary(299).unwrap_err().to_string();
        assert!(error.ends_with("[model.vocab]: has 300 tokens; expected at most 299"), "{error}");
    }

    #[test]
    fn broken_vocabularies_are_refused_by_key() {
        let good = trained(300).vocabulary(310).unwrap();
        let broken = |change: &dyn Fn(&mut Vocabulary), part: &str| {
            let mut vocabulary = good.clone();
            change(&mut vocabulary);
            let error = Tokenizer::from_vocabulary(Path::new("m.gguf"), &vocabulary).unwrap_err();
            let error = error.to_string();
            assert!(error.starts_with("m.gguf") && error.contains(part), "{error}");
        };
        broken(&|v| v.tokens[7] = "!".to_owned(), "[tokenizer.ggml.tokens]: \"!\" appears twice");
        broken(&|v| v.kinds.truncate(309), "[tokenizer.ggml.token_type]: has 309 entries");
        broken(&|v| v.merges[2] = "ab".to_owned(), "[tokenizer.ggml.merges[2]]: \"ab\" is not");
        broken(&|v| v.merges[2] = "ab cd".to_owned(), "merges");
        broken(&|v| v.bos = Some(310), "an id is 310; expected below 310");
        broken(&|v| v.kinds[0] = TokenKind::Control, "\"!\"");
    }

    proptest! {
        #[test]
        fn any_text_gives_the_same_ids(text: String) {
            use std::sync::OnceLock;
            static PAIR: OnceLock<(Tokenizer, Tokenizer)> = OnceLock::new();
            let (ours, theirs) = PAIR.get_or_init(|| {
                let tokenizer = trained(400);
                let again = back(&tokenizer, 420);
                (tokenizer, again)
            });
            same(ours, theirs, &text);
        }

        #[test]
        fn no_vocabulary_panics(
            tokens in prop::collection::vec("[ab ]{0,2}|<s>", 0..9),
            kinds in prop::collection::vec(0i32..7, 0..9),
            merges in prop::collection::vec("[ab ]{0,4}", 0..4),
            bos in prop::option::of(0u32..9),
        ) {
            let kinds: Vec<_> = kinds.into_iter().filter_map(TokenKind::from_ggml).collect();
            let split = SplitPattern::LlamaBpe;
            let (eos, eot, padding, add_bos) = (None, None, None, true);
            let vocabulary =
                Vocabulary { tokens, kinds, merges, split, bos, eos, eot, padding, add_bos };
            let _ = Tokenizer::from_vocabulary(Path::new("m.gguf"), &vocabulary);
        }
    }
}
