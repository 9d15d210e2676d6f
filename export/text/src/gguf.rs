//! The tokenizer of a stored model: files beside a folder's weights, or keys of a GGUF file.

use std::path::Path;

use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_format::gguf::{Array, GgufFile, Metadata, Value};

use crate::error::TextError;
use crate::split_pattern::SplitPattern;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::{Merging, TokenKind, Vocabulary};

/// llama.cpp's names for byte-level BPE and for the `SentencePiece` kind.
const BYTE_LEVEL: &str = "gpt2";
const SENTENCE_PIECE: &str = "llama";

/// Kinds that mean "no tokenizer".
const NONE: [&str; 2] = ["no_vocab", "none"];

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
        Self::of_gguf(&GgufFile::open(path)?)
    }

    /// The tokenizer of a GGUF file, from memory too ([`GgufFile::from_bytes`]); `None` if there is
    /// none.
    ///
    /// # Errors
    /// When it is broken or of another kind.
    pub fn of_gguf(file: &GgufFile) -> Result<Option<Self>, TextError> {
        let vocabulary = Vocabulary::read(file.metadata())?;
        vocabulary.map(|vocabulary| Self::from_vocabulary(file.path(), &vocabulary)).transpose()
    }
}

impl Vocabulary {
    /// Writes all metadata keys.
    pub fn describe(&self, metadata: &mut Metadata) {
        let mut put = |name: &str, value: Value| metadata.insert(key(name), value);
        let text = |text: &str| Value::String(text.to_owned());
        let model = match &self.merging {
            Merging::ByteLevel { .. } => BYTE_LEVEL,
            Merging::SentencePiece { .. } => SENTENCE_PIECE,
        };
        put("model", text(model));
        let (scores, merges) = match &self.merging {
            Merging::ByteLevel { split, merges } => {
                put("pre", text(split.name()));
                (vec![0.0; self.tokens.len()], Some(merges))
            }
            Merging::SentencePiece { scores, space_prefix } => {
                put("pre", text("default"));
                put("add_space_prefix", Value::Bool(*space_prefix));
                (scores.clone(), None)
            }
        };
        put("tokens", Value::Array(Array::String(self.tokens.clone())));
        put("scores", Value::Array(Array::F32(scores)));
        let kinds = self.kinds.iter().map(|kind| kind.as_ggml()).collect();
        put("token_type", Value::Array(Array::I32(kinds)));
        if let Some(merges) = merges {
            put("merges", Value::Array(Array::String(merges.clone())));
        }
        let unknown = self.kinds.iter().position(|kind| *kind == TokenKind::Unknown);
        let ids = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("eot_token_id", self.eot),
            ("unknown_token_id", unknown.map(|id| id as u32)),
            ("padding_token_id", self.padding),
        ];
        for (name, id) in ids {
            if let Some(id) = id {
                put(name, Value::U32(id));
            }
        }
        put("add_bos_token", Value::Bool(self.add_bos));
    }

    /// Reads the metadata keys as llama.cpp does; `None` if the file has no tokenizer.
    ///
    /// # Errors
    /// Names the key that is missing, of another type, or has an unsupported value.
    pub fn read(metadata: &Metadata) -> Result<Option<Self>, TextError> {
        match metadata.optional_str(&key("model"))? {
            None => Ok(None),
            Some(none) if NONE.contains(&none) => Ok(None),
            Some(BYTE_LEVEL) => read_byte_level(metadata).map(Some),
            Some(SENTENCE_PIECE) => read_sentence_piece(metadata).map(Some),
            Some(other) => {
                let what = format!(
                    "{other:?} is not supported; expected {BYTE_LEVEL:?}, pairs of bytes, or \
                     {SENTENCE_PIECE:?}, SentencePiece"
                );
                Err(metadata.error(&key("model"), what).into())
            }
        }
    }
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn read_byte_level(metadata: &Metadata) -> Result<Vocabulary, TextError> {
    let tokens = metadata.strings(&key("tokens"))?;
    let (split, assumed) = match metadata.optional_str(&key("pre"))? {
        Some(name) => {
            // An unknown name is refused and not guessed: another pattern makes other ids of the
            // same text.
            let split = SplitPattern::from_name(name);
            (split.map_err(|what| metadata.error(&key("pre"), what))?, None)
        }
        None => assumed_split(tokens),
    };
    let merges = metadata.strings(&key("merges"))?.to_vec();
    let merging = Merging::ByteLevel { split, merges };
    Ok(Vocabulary { assumed, ..read_tokens(metadata, merging, split.adds_bos(), [None; 2])? })
}

/// The pattern of a file that names none: Llama 3's where the vocabulary has its control tokens
/// (Microsoft's own file of 2B4T is one), else what llama.cpp takes.
fn assumed_split(tokens: &[String]) -> (SplitPattern, Option<String>) {
    let llama = LLAMA_3.iter().all(|name| tokens.iter().any(|token| token == name));
    let name = if llama { "llama-bpe" } else { "default" };
    let split = SplitPattern::from_name(name).expect("the table has both names");
    (split, Some(format!("tokenizer.ggml.pre is missing; text is split as {name:?} says")))
}

const LLAMA_3: [&str; 2] = ["<|begin_of_text|>", "<|end_of_text|>"];

fn read_sentence_piece(metadata: &Metadata) -> Result<Vocabulary, TextError> {
    let scores = metadata.optional_f32s(&key("scores"))?;
    let scores = scores.ok_or_else(|| metadata.error(&key("scores"), "is missing"))?.to_vec();
    let space_prefix = metadata.optional_bool(&key("add_space_prefix"))?.unwrap_or(true);
    let merging = Merging::SentencePiece { scores, space_prefix };
    // llama.cpp's defaults for this kind: `<s>` is 1, `</s>` is 2, and BOS is put before a text.
    read_tokens(metadata, merging, true, [Some(1), Some(2)])
}

/// Reads what all kinds have. `adds_bos`, and the ids of BOS and EOS, are those of a file that does
/// not say.
fn read_tokens(
    metadata: &Metadata,
    merging: Merging,
    adds_bos: bool,
    [bos, eos]: [Option<u32>; 2],
) -> Result<Vocabulary, TextError> {
    let id = |name: &str| metadata.optional_u32(&key(name));
    let tokens = metadata.strings(&key("tokens"))?.to_vec();
    Ok(Vocabulary {
        kinds: read_kinds(metadata, tokens.len())?,
        tokens,
        merging,
        bos: id("bos_token_id")?.or(bos),
        eos: id("eos_token_id")?.or(eos),
        eot: id("eot_token_id")?,
        padding: id("padding_token_id")?,
        add_bos: metadata.optional_bool(&key("add_bos_token"))?.unwrap_or(adds_bos),
        assumed: None,
    })
}

fn read_kinds(metadata: &Metadata, tokens: usize) -> Result<Vec<TokenKind>, TextError> {
    let Some(kinds) = metadata.optional_i32s(&key("token_type"))? else {
        // llama.cpp takes tokens without a kind for normal ones.
        return Ok(vec![TokenKind::Normal; tokens]);
    };
    let known = |kind: &i32| {
        let what = || format!("{kind} is unknown; expected a number from 1 to 6");
        TokenKind::from_ggml(*kind).ok_or_else(|| metadata.error(&key("token_type"), what()).into())
    };
    kinds.iter().map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChatTemplate;
    use crate::test_tokenizers::{load, sentence_piece, trained};
    use bitnet_format::gguf::GgufWriter;

    /// The keys of a tokenizer without one of them, read again.
    fn without(tokenizer: &Tokenizer, left_out: &str) -> Result<Vocabulary, String> {
        let (mut all, mut rest) = (Metadata::new(), Metadata::new());
        tokenizer.vocabulary(400).unwrap().describe(&mut all);
        for (name, value) in all.iter().filter(|(name, _)| *name != key(left_out)) {
            rest.insert(name, value.clone());
        }
        let read = Vocabulary::read(&rest).map_err(|error| error.to_string());
        read.map(|vocabulary| vocabulary.expect("a tokenizer"))
    }

    fn split(vocabulary: &Vocabulary) -> &'static str {
        match &vocabulary.merging {
            Merging::ByteLevel { split, .. } => split.name(),
            Merging::SentencePiece { .. } => "none",
        }
    }

    #[test]
    fn a_file_in_memory_has_the_tokenizer_and_the_template_that_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let (tokenizer, mut metadata) = (trained(300), Metadata::new());
        tokenizer.vocabulary(300).unwrap().describe(&mut metadata);
        ChatTemplate::b158().describe(&tokenizer, &mut metadata).unwrap();
        GgufWriter::create(&path, &metadata, &[]).unwrap().finish().unwrap();
        let bytes = fs_err::read(&path).unwrap();
        drop(dir);
        let file = GgufFile::from_bytes(&path, bytes).unwrap();
        let found = Tokenizer::of_gguf(&file).unwrap().unwrap();
        let text = "Hello, wörld of 12 words";
        assert_eq!(found.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        let template = ChatTemplate::of_gguf(&file, &found).unwrap();
        let expected = ChatTemplate::b158().source_for(&tokenizer).unwrap();
        assert_eq!(template.source_for(&found).unwrap(), expected);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for tokenizer in [trained(300), load(&sentence_piece())] {
            let vocabulary = tokenizer.vocabulary(400).unwrap();
            assert_eq!(without(&tokenizer, "nothing").unwrap(), vocabulary);
        }
    }

    #[test]
    fn a_file_without_a_pattern_has_llamas_where_the_vocabulary_is_llamas() {
        let tokenizer = trained(300);
        let llama = without(&tokenizer, "pre").unwrap();
        assert_eq!((split(&llama), llama.add_bos), ("llama-bpe", true));
        assert!(llama.assumed.unwrap().contains("split as \"llama-bpe\" says"));
        let named = String::from_utf8(tokenizer.json().to_vec()).unwrap();
        let other = load(&serde_json::from_str(&named.replace("begin_of_text", "start")).unwrap());
        let other = without(&other, "pre").unwrap();
        assert_eq!(split(&other), "default");
        assert!(other.assumed.unwrap().contains("split as \"default\" says"));
    }

    #[test]
    fn what_a_file_does_not_say_is_as_llama_cpp_takes_it() {
        assert!(without(&trained(300), "add_bos_token").unwrap().add_bos);
        let pieces = load(&sentence_piece());
        for left_out in ["add_bos_token", "add_space_prefix", "bos_token_id", "eos_token_id"] {
            let vocabulary = without(&pieces, left_out).unwrap();
            assert_eq!(vocabulary, pieces.vocabulary(400).unwrap(), "{left_out}");
        }
        let error = without(&pieces, "scores").unwrap_err();
        assert!(error.contains("[tokenizer.ggml.scores]: is missing"), "{error}");
    }
}
