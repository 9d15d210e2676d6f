//! Trains byte-level BPE tokenizers with the layout of Llama 3.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::iter::{ParallelBridge, ParallelIterator};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::sequence::Sequence as PostSequence;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::tokenizer::{
    AddedToken, Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    SplitDelimiterBehavior,
};

use crate::error::TextError;
use crate::limits::{MAX_TRAIN_BYTES, MAX_VOCAB, MIN_VOCAB, SPECIAL_TOKENS};
use crate::merges::learn_merges;
use crate::whitespace;

// Llama 3's pattern, which is that of OpenAI's cl100k: English endings; a word with one sign before
// it (its space, mostly); up to three digits; signs with the line ends after them; line ends;
// spaces but for the last before a word; other spaces.
pub(crate) const SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Trains a byte-level BPE tokenizer on `texts` and returns the bytes of its `tokenizer.json`.
///
/// The vocabulary is the 256 bytes, then merges, then [`SPECIAL_TOKENS`]: exactly `vocab_size`
/// tokens where the text has pairs enough to merge. A text that runs out of pairs (each of its
/// words is one token already) gives fewer; see `Tokenizer::vocab_size` of the result.
///
/// The same texts give the same bytes, in any order and on any number of threads. At most 2 GiB
/// of text can be counted; more is [`TextError::TrainTooLarge`].
pub fn train_bpe(
    texts: impl Iterator<Item = String> + Send,
    vocab_size: usize,
) -> Result<Vec<u8>, TextError> {
    if !(MIN_VOCAB..=MAX_VOCAB).contains(&vocab_size) {
        return Err(TextError::VocabSize { got: vocab_size });
    }
    let split = split()?;
    let words = count(&split, texts)?;
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let learned = learn_merges(words.into_iter(), &alphabet, vocab_size - SPECIAL_TOKENS.len());
    let mut model = learned.into_model();
    model.ignore_merges = true;
    assemble(model, split)
}

fn split() -> Result<Sequence, TextError> {
    let pattern = SplitPattern::Regex(SPLIT.to_owned());
    let words = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
    let words = words.map_err(failed)?;
    Ok(Sequence::new(vec![words.into(), ByteLevel::new(false, true, false).into()]))
}

/// Counts the words of all texts, up to the size the trainer can count.
fn count(
    split: &Sequence,
    texts: impl Iterator<Item = String> + Send,
) -> Result<HashMap<Box<str>, u64>, TextError> {
    let total = AtomicU64::new(0);
    // Counted as it streams: the size of the texts is not known before, and they are not kept.
    let counted = texts.flat_map(|text| pieces(text, PIECE)).take_while(|text| {
        let size = text.len() as u64;
        total.fetch_add(size, Ordering::Relaxed) + size <= MAX_TRAIN_BYTES
    });
    // One table for all threads: splitting takes nearly all of the time, and tables of their own
    // would each hold most of the words.
    let counts = Mutex::new(HashMap::<Box<str>, u64>::new());
    let add = |text: String| -> tokenizers::Result<()> {
        let words = words(split, &text)?;
        let mut counts = counts.lock().expect("no thread panics with it");
        for word in words {
            match counts.get_mut(word.as_str()) {
                Some(count) => *count += 1,
                None => drop(counts.insert(word.into_boxed_str(), 1)),
            }
        }
        Ok(())
    };
    counted.par_bridge().try_for_each(add).map_err(failed)?;
    if total.into_inner() > MAX_TRAIN_BYTES {
        return Err(TextError::TrainTooLarge);
    }
    Ok(counts.into_inner().expect("no thread panicked with it"))
}

fn words(split: &Sequence, text: &str) -> tokenizers::Result<Vec<String>> {
    whitespace::check(text)?;
    let mut pieces = PreTokenizedString::from(text);
    split.pre_tokenize(&mut pieces)?;
    let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Ok(pieces.into_iter().map(|(word, ..)| word.to_owned()).collect())
}

/// Splitting needs a hundred times the memory of its text.
const PIECE: usize = 64 << 10;

/// A long text in pieces that have its words: no word of [`SPLIT`] goes on with whitespace after a
/// letter or number.
fn pieces(text: String, size: usize) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut start = 0;
    while text.len() - start > size {
        let from = text.ceil_char_boundary(start + size);
        let mut places = text[from..].match_indices(char::is_whitespace).map(|(at, _)| from + at);
        let is_cut =
            |at: &usize| text[..*at].chars().next_back().is_some_and(char::is_alphanumeric);
        // Without a place the rest stays whole, whatever memory it takes: other pieces would have
        // other words.
        let Some(at) = places.find(is_cut) else { break };
        pieces.push(text[start..at].to_owned());
        start = at;
    }
    if start == 0 {
        return vec![text];
    }
    pieces.push(text[start..].to_owned());
    pieces
}

/// Adds the other parts of the file, as in the published Llama 3 tokenizer.
fn assemble(model: BPE, split: Sequence) -> Result<Vec<u8>, TextError> {
    let first = model.get_vocab_size() as u32;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer
        .with_pre_tokenizer(Some(split))
        .with_decoder(Some(ByteLevel::new(true, true, true)))
        .with_post_processor(Some(post_processor(first)?));
    // After the merges: their ids are then the last ones, and `first` is the id of BOS.
    let special = SPECIAL_TOKENS.map(|token| AddedToken::from(token, true));
    tokenizer.add_special_tokens(special).map_err(failed)?;
    Ok(tokenizer.to_string(false).map_err(failed)?.into_bytes())
}

fn post_processor(bos: u32) -> Result<PostSequence, TextError> {
    let name = SPECIAL_TOKENS[0];
    let template = TemplateProcessing::builder()
        .try_single(format!("{name} $A"))
        .map_err(failed)?
        .try_pair(format!("{name}:0 $A:0 {name}:1 $B:1"))
        .map_err(failed)?
        .special_tokens(vec![(name, bos)])
        .build()
        .map_err(failed)?;
    Ok(PostSequence::new(vec![ByteLevel::new(true, false, true).into(), template.into()]))
}

fn failed(error: impl Display) -> TextError {
    TextError::Train { what: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_tokenizers::{paragraphs, tokenizers_outside_the_repository, trained};
    use serde_json::{Value, json};

    fn parts(vocab_size: usize) -> Value {
        serde_json::from_slice(&train_bpe(paragraphs(), vocab_size).unwrap()).unwrap()
    }

    proptest::proptest! {
        #[test]
        fn pieces_have_the_words_of_the_whole(text in "([a-zé日]{0,4}[ .,'\n\r\t1]{0,3}){0,40}") {
            let (split, text) = (split().unwrap(), text);
            let whole = words(&split, &text).unwrap();
            let parts = pieces(text, 8);
            let parts: Vec<_> = parts.iter().flat_map(|part| words(&split, part).unwrap()).collect();
            assert_eq!(parts, whole);
        }
    }

    #[test]
    fn the_same_texts_give_the_same_bytes() {
        let first = train_bpe(paragraphs(), 450).unwrap();
        let again = train_bpe(paragraphs(), 450).unwrap();
        let mut turned: Vec<String> = paragraphs().collect();
        turned.reverse();
        assert!(first == again);
        assert!(first == train_bpe(turned.into_iter(), 450).unwrap());
    }

    #[test]
    fn the_vocabulary_is_bytes_then_merges_then_special_tokens() {
        let tokenizer = trained(400);
        assert_eq!(tokenizer.vocab_size(), 400);
        assert_eq!(tokenizer.token_id("!"), Some(0));
        assert_eq!(tokenizer.token_id("Ń"), Some(255));
        for (token, id) in SPECIAL_TOKENS.iter().zip(392..) {
            assert_eq!(tokenizer.token_id(token), Some(id));
        }
        let ends = (tokenizer.bos(), tokenizer.eos(), tokenizer.eot());
        assert_eq!(ends, (Some(392), Some(393), Some(399)));
    }

    #[test]
    fn a_text_without_pairs_left_gives_a_smaller_vocabulary() {
        let bytes = train_bpe(["aab".to_owned()].into_iter(), 1000).unwrap();
        let file: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(file["model"]["merges"], json!([["a", "a"], ["aa", "b"]]));
        assert_eq!(file["added_tokens"][0]["id"], 258);
        let nothing = |vocab_size| train_bpe(std::iter::empty(), vocab_size).unwrap();
        assert!(nothing(1000) == nothing(264));
    }

    #[test]
    fn the_longest_whitespace_allowed_does_not_end_the_splitting() {
        let text = " ".repeat(899_999) + "\u{3000}x y";
        assert!(whitespace::check(&text).is_ok());
        let mut pieces = PreTokenizedString::from(text.as_str());
        split().unwrap().pre_tokenize(&mut pieces).unwrap();
        let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let words: Vec<&str> = pieces.into_iter().skip(1).map(|(word, ..)| word).collect();
        assert_eq!(words, ["ãĢĢx", "Ġy"]);
    }

    #[test]
    fn longer_whitespace_is_an_error() {
        let text = train_bpe(std::iter::once(" ".repeat(900_001)), 300).unwrap_err().to_string();
        assert!(text.starts_with("tokenizer training failed: whitespace without end"), "{text}");
    }

    #[test]
    fn a_vocabulary_that_cannot_be_is_refused() {
        for got in [0, 263, MAX_VOCAB + 1, usize::MAX] {
            let text = train_bpe(std::iter::empty(), got).unwrap_err().to_string();
            assert_eq!(
                text,
                format!("[vocab_size]: out of range; expected 264 to 1048576, got {got}")
            );
        }
        assert!(train_bpe(std::iter::empty(), 264).is_ok());
    }

    #[test]
    fn outside_the_repository_everything_but_vocabulary_and_merges_is_as_published() {
        let Some(shared) = tokenizers_outside_the_repository() else { return };
        let bytes = fs_err::read(shared.join("bpe512/tokenizer.json")).unwrap();
        let mut published: Value = serde_json::from_slice(&bytes).unwrap();
        let mut ours = parts(512);
        assert_eq!(ours["model"]["vocab"].as_object().unwrap().len(), 504);
        for file in [&mut published, &mut ours] {
            file["model"]["vocab"] = Value::Null;
            file["model"]["merges"] = Value::Null;
        }
        // As text, so that the order of the keys is compared too.
        assert_eq!(ours.to_string(), published.to_string());
    }
}
