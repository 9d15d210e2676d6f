//! The `SentencePiece` kind of tokenizer, by GGUF's rules and by Hugging Face's.
//!
//! ```text
//! GGUF          scores    two pieces that make a token are joined, the best score first
//! Hugging Face  merges    two pieces that are a listed pair are joined, the first pair first
//! ```
//!
//! They give the same tokens when every way to cut a token in two is a listed pair.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::tokenizer_json::{Merge, Splitting, TokenizerJson};
use crate::vocabulary::{Merging, TokenKind, Vocabulary};

/// Stands for a space.
const SPACE: &str = "\u{2581}";

/// The byte that a token like `<0x0A>` stands for.
pub(crate) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The `tokenizer.json` of a vocabulary with scores; the caller adds the added tokens.
pub(crate) fn tokenizer_json(
    of: &Vocabulary,
    vocab: Map<String, Value>,
    scores: &[f32],
    space_prefix: bool,
) -> Value {
    let unknown = of.kinds.iter().position(|kind| *kind == TokenKind::Unknown);
    let unknown = unknown.map(|id| of.tokens[id].as_str());
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    // The layout of Llama 2's file: a mark before the text, marks for spaces, no words. Merging
    // then sees the whole text.
    let prepend = space_prefix.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let (bytes, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
    let decoders = [replace(SPACE, " "), bytes, fuse].into_iter();
    let decoders: Vec<_> = decoders.chain(space_prefix.then_some(strip)).collect();
    let normalizers: Vec<_> = prepend.into_iter().chain([replace(" ", SPACE)]).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": null,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": unknown,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": merges(of, scores)},
    })
}

/// All pairs that make a token, the best score first.
fn merges(of: &Vocabulary, scores: &[f32]) -> Vec<Value> {
    let normal = |id: &usize| of.kinds[*id] == TokenKind::Normal;
    let ids: HashMap<&str, usize> =
        (0..of.tokens.len()).filter(normal).map(|id| (of.tokens[id].as_str(), id)).collect();
    let mut pairs = Vec::new();
    for (&token, &id) in &ids {
        for (at, _) in token.char_indices().skip(1) {
            // Only pairs of normal tokens: a byte token or a control token is never joined.
            if let (Some(&left), Some(&right)) = (ids.get(&token[..at]), ids.get(&token[at..])) {
                pairs.push((id, left, right));
            }
        }
    }
    // The score decides. The rest makes the order the same each time: longer parts first.
    let length = |id: usize| of.tokens[id].len();
    pairs.sort_by(|a, b| {
        let rest = |&(id, left, right): &(usize, usize, usize)| {
            (id, Reverse(length(left)), Reverse(length(right)))
        };
        scores[b.0].total_cmp(&scores[a.0]).then_with(|| rest(a).cmp(&rest(b)))
    });
    pairs.into_iter().map(|(_, left, right)| json!([of.tokens[left], of.tokens[right]])).collect()
}

/// Scores and prefix of a Hugging Face tokenizer, or the field that GGUF cannot express.
pub(crate) fn describe(
    file: &TokenizerJson,
    splitting: &Splitting,
    tokens: &[String],
    kinds: &[TokenKind],
) -> Result<Merging, (&'static str, String)> {
    let space_prefix = space_prefix(splitting)?;
    let bytes = kinds.iter().filter(|kind| **kind == TokenKind::Byte).count();
    if bytes != 256 {
        let what = format!("has {bytes} byte tokens such as <0x0A>; expected all 256");
        return Err(("model.vocab", what));
    }
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut scores = vec![0.0; tokens.len()];
    let mut made = vec![false; tokens.len()];
    for (rank, merge) in file.model.merges.iter().enumerate() {
        let token = match merge {
            Merge::Pair(left, right) => format!("{left}{right}"),
            Merge::Line(line) => line.replacen(' ', "", 1),
        };
        let Some(&id) = ids.get(token.as_str()) else { continue };
        // The first merge that makes a token is its rank. Earlier is better, so the score falls.
        if !std::mem::replace(&mut made[id], true) {
            scores[id] = -(rank as f32);
        }
    }
    let unmade = |id: &usize| {
        kinds[*id] == TokenKind::Normal && !made[*id] && tokens[*id].chars().nth(1).is_some()
    };
    // GGUF joins whatever makes a token; the merges of Hugging Face only what is listed.
    match (0..tokens.len()).find(unmade) {
        Some(id) => {
            let what = format!("no merge makes {:?}; GGUF would join its parts", tokens[id]);
            Err(("model.merges", what))
        }
        None => Ok(Merging::SentencePiece { scores, space_prefix }),
    }
}

/// Whether a space is put before a text: by the normalizer of Llama 2, or by the newer `Metaspace`.
/// `Metaspace` puts none before a text that begins with one. GGUF cannot say that.
fn space_prefix(splitting: &Splitting) -> Result<bool, (&'static str, String)> {
    let normalizer = splitting.normalizer.as_ref().unwrap_or(&Value::Null);
    let pre = splitting.pre_tokenizer.as_ref().unwrap_or(&Value::Null);
    let parts = match normalizer.get("normalizers").and_then(Value::as_array) {
        Some(parts) => parts.as_slice(),
        None => std::slice::from_ref(normalizer),
    };
    let prepends = |part: &Value| part["type"] == "Prepend" && part["prepend"] == SPACE;
    let replaces = |part: &Value| {
        let from = &part["pattern"]["String"];
        part["type"] == "Replace" && from == " " && part["content"] == SPACE
    };
    let metaspace = pre["type"] == "Metaspace" && pre["replacement"] == SPACE;
    match (parts, pre) {
        ([one], Value::Null) if replaces(one) => Ok(false),
        ([one, two], Value::Null) if prepends(one) && replaces(two) => Ok(true),
        ([Value::Null], _) if metaspace && pre["split"] == false => {
            Ok(pre["prepend_scheme"] != "never")
        }
        ([Value::Null], _) => {
            Err(("pre_tokenizer", format!("GGUF has no name for {pre}; expected \"Metaspace\"")))
        }
        _ => Err(("normalizer", format!("GGUF has no name for {normalizer}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::test_tokenizers::{load, sentence_piece};
    use crate::tokenizer::Tokenizer;

    /// Letters, bytes, and tokens of several letters with their scores.
    fn scored(pieces: &[(&str, f32)]) -> Vocabulary {
        let mut tokens = vec![("<unk>".to_owned(), TokenKind::Unknown, 0.0)];
        tokens.extend(["<s>", "</s>"].map(|name| (name.to_owned(), TokenKind::Control, 0.0)));
        let byte = |byte: u8| (format!("<{byte:#04X}>"), TokenKind::Byte, 0.0);
        tokens.extend((0..=255).map(byte));
        let letters = ["a", "b", "c", SPACE].map(|letter| (letter, -100.0));
        let normal = letters.iter().chain(pieces);
        tokens.extend(normal.map(|&(token, score)| (token.to_owned(), TokenKind::Normal, score)));
        let scores = tokens.iter().map(|(_, _, score)| *score).collect();
        Vocabulary {
            kinds: tokens.iter().map(|(_, kind, _)| *kind).collect(),
            tokens: tokens.into_iter().map(|(token, ..)| token).collect(),
            merging: Merging::SentencePiece { scores, space_prefix: true },
            bos: Some(1),
            eos: Some(2),
            eot: None,
            padding: None,
            add_bos: true,
            assumed: None,
        }
    }

    /// As llama.cpp does it: of all neighbours that make a token, those with the best score are
    /// joined, the first of equals.
    fn joined(vocabulary: &Vocabulary, text: &str) -> Vec<u32> {
        let Merging::SentencePiece { scores, .. } = &vocabulary.merging else { unreachable!() };
        let id = |token: &str| vocabulary.tokens.iter().position(|other| other == token);
        let text = format!("{SPACE}{}", text.replace(' ', SPACE));
        let mut parts: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let made = |at: usize| id(&parts[at..at + 2].concat()).map(|id| (at, scores[id]));
            let pairs = (0..parts.len().saturating_sub(1)).filter_map(made);
            let best = pairs.reduce(|best, one| if one.1 > best.1 { one } else { best });
            let Some((at, _)) = best else { break };
            let right = parts.remove(at + 1);
            parts[at].push_str(&right);
        }
        parts.iter().map(|part| id(part).unwrap() as u32).collect()
    }

    #[test]
    fn scores_join_pieces_as_llama_cpp_does() {
        let vocabulary = scored(&[
            ("ab", -1.0),
            ("bc", -2.0),
            ("abc", -5.0),
            ("\u{2581}a", -3.0),
            ("\u{2581}ab", -4.0),
            ("\u{2581}\u{2581}", -6.0),
            ("cab", -7.0),
        ]);
        let tokenizer = Tokenizer::from_vocabulary(Path::new("m.gguf"), &vocabulary).unwrap();
        for number in 1..4_usize.pow(6) {
            let digits = (0..6).map(|place| number / 4_usize.pow(place) % 4);
            let text: String = digits.map(|digit| ['a', 'b', 'c', ' '][digit]).collect();
            assert_eq!(tokenizer.encode(&text).unwrap(), joined(&vocabulary, &text), "{text:?}");
        }
        let ids = tokenizer.encode("é").unwrap();
        assert_eq!(ids[1..], [3 + 0xc3, 3 + 0xa9], "a letter that is no token is its bytes");
        assert_eq!(tokenizer.decode(&ids), "é");
    }

    #[test]
    fn a_tokenizer_survives_the_way_through_a_file() {
        let mut file = sentence_piece();
        for metaspace in [false, true] {
            if metaspace {
                file["normalizer"] = Value::Null;
                file["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": SPACE,
                    "prepend_scheme": "first", "split": false});
            }
            let tokenizer = load(&file);
            let vocabulary = tokenizer.vocabulary(300).unwrap();
            let Merging::SentencePiece { scores, space_prefix } = &vocabulary.merging else {
                panic!("a SentencePiece tokenizer");
            };
            let made = tokenizer.token_id("\u{2581}a").unwrap() as usize;
            assert!(*space_prefix && scores[made] == 0.0 && scores.len() == 300);
            assert_eq!(
                vocabulary.kinds[..4],
                [TokenKind::Unknown, TokenKind::Control, TokenKind::Control, TokenKind::Byte]
            );
            let again = Tokenizer::from_vocabulary(Path::new("m.gguf"), &vocabulary).unwrap();
            // Only Metaspace puts no second space before a text that begins with one.
            let last = if metaspace { "a" } else { " a" };
            for text in ["a b  a", "日本 é\n", "", "<s> </s>", "zebra", last] {
                let ids = tokenizer.encode(text).unwrap();
                assert_eq!(again.encode(text).unwrap(), ids, "{text:?}");
                assert_eq!(again.decode(&ids), tokenizer.decode(&ids), "{text:?}");
            }
        }
    }

    #[test]
    fn what_scores_cannot_say_is_refused_by_field() {
        let error = |change: &dyn Fn(&mut Value)| {
            let mut file = sentence_piece();
            change(&mut file);
            load(&file).vocabulary(400).unwrap_err().to_string()
        };
        let told = error(&|file| file["model"]["merges"] = json!([]));
        assert!(told.starts_with("t.json [model.merges]: no merge makes"), "{told}");
        let told = error(&|file| file["normalizer"] = json!({"type": "NFKC"}));
        assert!(told.starts_with("t.json [normalizer]: GGUF has no name for"), "{told}");
        let told = error(&|file| {
            file["model"]["vocab"].as_object_mut().unwrap().remove("<0x00>");
        });
        assert!(told.contains("[model.vocab]: has 255 byte tokens"), "{told}");
    }
}
