//! The tokenizer that a GGUF file describes, by way of a `tokenizer.json` that says the same.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::control::ControlTokens;
use crate::error::TextError;
use crate::pieces;
use crate::split_pattern::SplitPattern;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::{Merging, TokenKind, Vocabulary};

impl Tokenizer {
    /// The tokenizer that a GGUF file describes; `path` is for messages.
    ///
    /// # Errors
    /// All that can be wrong with a `tokenizer.json`, which is what it becomes.
    pub fn from_vocabulary(path: &Path, vocabulary: &Vocabulary) -> Result<Self, TextError> {
        let json = vocabulary.tokenizer_json().map_err(|(field, what)| {
            let field = format!("tokenizer.ggml.{field}");
            TextError::Inexpressible { path: path.to_owned(), field, what }
        })?;
        let tokenizer = Self::from_bytes(path, json.to_string().as_bytes())?;
        let named = tokenizer.control();
        let control = ControlTokens {
            bos: vocabulary.bos.or(named.bos),
            adds_bos: vocabulary.add_bos,
            eos_token: vocabulary.eos,
            document_end: named.document_end.or(vocabulary.eos),
            eot: vocabulary.eot.or(named.eot),
        };
        Ok(tokenizer.with_control(control).assuming(vocabulary.assumed.clone()))
    }
}

/// A key below `tokenizer.ggml` and what is wrong with it.
type Broken = (String, String);

impl Vocabulary {
    /// The `tokenizer.json` that says the same.
    fn tokenizer_json(&self) -> Result<Value, Broken> {
        self.check()?;
        // Unused ids at the end fill the embedding up (`[PAD7]`) and are no tokens; `to_vocabulary`
        // writes them. Unused ones in between stay: the library numbers added tokens without gaps.
        let used = self.kinds.iter().rposition(|kind| *kind != TokenKind::Unused);
        let used = used.map_or(0, |at| at + 1);
        let mut vocab = Map::new();
        for (id, token) in self.tokens[..used].iter().enumerate() {
            if vocab.insert(token.clone(), json!(id)).is_some() {
                return Err(("tokens".to_owned(), format!("{token:?} appears twice")));
            }
        }
        let mut file = match &self.merging {
            Merging::ByteLevel { split, merges } => byte_level(*split, vocab, pairs(merges)?),
            Merging::SentencePiece { scores, space_prefix } => {
                pieces::tokenizer_json(self, vocab, scores, *space_prefix)
            }
        };
        file["added_tokens"] = self.added_tokens(used);
        file["post_processor"] = self.post_processor();
        Ok(file)
    }

    fn check(&self) -> Result<(), Broken> {
        let count = self.tokens.len();
        let entries = |key: &str, got: usize| {
            let what = format!("has {got} entries; expected {count}");
            if got == count { Ok(()) } else { Err((key.to_owned(), what)) }
        };
        entries("token_type", self.kinds.len())?;
        if let Merging::SentencePiece { scores, .. } = &self.merging {
            entries("scores", scores.len())?;
        }
        for (key, id) in [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("eot_token_id", self.eot),
            ("padding_token_id", self.padding),
        ] {
            if let Some(id) = id.filter(|id| *id as usize >= count) {
                return Err((key.to_owned(), format!("is {id}; expected below {count}")));
            }
        }
        Ok(())
    }

    fn added_tokens(&self, used: usize) -> Value {
        let tokens = self.tokens[..used].iter().zip(&self.kinds).enumerate();
        let added = tokens.filter(|(_, (_, kind))| !kind.is_ordinary());
        let entry = |(id, (token, kind)): (usize, (&String, &TokenKind))| {
            // llama.cpp finds a user's token in any text, a control token only where a template
            // wrote it.
            let special = *kind != TokenKind::UserDefined;
            json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": special})
        };
        added.map(entry).collect()
    }

    fn post_processor(&self) -> Value {
        let byte_level = matches!(self.merging, Merging::ByteLevel { .. });
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false,
                           "use_regex": true});
        // This crate takes the post-processor out again (`library`); it is written for others that
        // read the file.
        let (true, Some(bos)) = (self.add_bos, self.bos) else {
            return if byte_level { bytes } else { Value::Null };
        };
        let token = &self.tokens[bos as usize];
        let special = |kind: u8| json!({"SpecialToken": {"id": token, "type_id": kind}});
        let text = |name: &str, kind: u8| json!({"Sequence": {"id": name, "type_id": kind}});
        let template = json!({
            "type": "TemplateProcessing",
            "single": [special(0), text("A", 0)],
            "pair": [special(0), text("A", 0), special(1), text("B", 1)],
            "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
        });
        if !byte_level {
            return template;
        }
        json!({"type": "Sequence", "processors": [bytes, template]})
    }
}

/// `left right` lines as pairs.
fn pairs(merges: &[String]) -> Result<Vec<Value>, Broken> {
    let pair = |(at, merge): (usize, &String)| {
        // A token may begin with a space of its own, never with none.
        let space = merge.char_indices().skip(1).find(|(_, letter)| *letter == ' ');
        let (left, right) = space
            .map(|(at, _)| (&merge[..at], &merge[at + 1..]))
            .ok_or_else(|| (format!("merges[{at}]"), format!("{merge:?} is not two tokens")))?;
        Ok(json!([left, right]))
    };
    merges.iter().enumerate().map(pair).collect()
}

fn byte_level(split: SplitPattern, vocab: Map<String, Value>, merges: Vec<Value>) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": null,
        "normalizer": null, "pre_tokenizer": split.pre_tokenizer(), "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": split.ignores_merges(),
                  "vocab": vocab, "merges": merges},
    })
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

    fn split(tokenizer: &Tokenizer, rows: usize) -> &'static str {
        match tokenizer.vocabulary(rows).unwrap().merging {
            Merging::ByteLevel { split, .. } => split.name(),
            Merging::SentencePiece { .. } => "none",
        }
    }

    fn merges(vocabulary: &mut Vocabulary) -> &mut Vec<String> {
        match &mut vocabulary.merging {
            Merging::ByteLevel { merges, .. } => merges,
            Merging::SentencePiece { .. } => unreachable!("a byte-level tokenizer"),
        }
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
        assert_eq!(split(&tokenizer, 400), "llama-bpe");
    }

    #[test]
    fn tokenizers_outside_the_repository_survive_it_too() {
        let Some(shared) = tokenizers_outside_the_repository() else { return };
        for (name, expected) in [
            ("bpe4096", "llama-bpe"),
            ("bpe512", "llama-bpe"),
            ("gpt2", "gpt-2"),
            ("dolma2", "dbrx"),
        ] {
            let folder = shared.join(name);
            let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json")).unwrap();
            assert_eq!(split(&tokenizer, tokenizer.vocab_size()), expected);
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
        assert!(
            error.ends_with(
                "[model.vocab]: has 300 tokens; expected at most 299, the model's vocab_size"
            ),
            "{error}"
        );
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
        broken(&|v| merges(v)[2] = "ab".to_owned(), "[tokenizer.ggml.merges[2]]: \"ab\" is not");
        broken(&|v| merges(v)[2] = "ab cd".to_owned(), "merges");
        broken(&|v| v.bos = Some(310), "[tokenizer.ggml.bos_token_id]: is 310; expected below 310");
        broken(&|v| v.eos = Some(311), "[tokenizer.ggml.eos_token_id]: is 311; expected below 310");
        broken(&|v| v.eot = Some(312), "[tokenizer.ggml.eot_token_id]: is 312; expected below 310");
        let padding = "[tokenizer.ggml.padding_token_id]: is 400; expected below 310";
        broken(&|v| v.padding = Some(400), padding);
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
            let split = SplitPattern::from_name("llama-bpe").unwrap();
            let (eos, eot, padding, add_bos) = (None, None, None, true);
            let scores = vec![0.0; tokens.len()];
            for merging in [
                Merging::ByteLevel { split, merges },
                Merging::SentencePiece { scores, space_prefix: true },
            ] {
                let (tokens, kinds, assumed) = (tokens.clone(), kinds.clone(), None);
                let vocabulary = Vocabulary {
                    tokens, kinds, merging, bos, eos, eot, padding, add_bos, assumed,
                };
                let _ = Tokenizer::from_vocabulary(Path::new("m.gguf"), &vocabulary);
            }
        }
    }
}
