//! The ids of a text word by word: a plain regular expression finds the words, and the ids of each are
//! remembered. Several times as fast as the library, which finds them with an engine that steps back
//! and builds every token anew, with its text and its place.
//!
//! Only for tokenizers whose words are known to be found alike: no normaliser, and one of the patterns
//! below. They end alike, in a look ahead that a plain expression does not have:
//!
//! ```text
//! … |\s+(?!\S)|\s+        spaces before a word: all but the last, which belongs to the word
//! … |\s+                  here: all, and the last is given back
//! ```

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use regex::Regex;
use tokenizers::Tokenizer;

use crate::split_pattern::{GPT2, QWEN2, splits_of};
use crate::tokenizer_json::AddedEntry;
use crate::train::SPLIT;

const LOOK_AHEAD: &str = r"|\s+(?!\S)|\s+";
/// Finds line ends together with the spaces before them, ahead of what is given back.
const LINE_ENDS: &str = r"|\s*[\r\n]+";

/// Words that a thread remembers, some five megabytes; then it begins anew.
const REMEMBERED: usize = 1 << 16;
/// Bytes of a word that is remembered: others hardly occur twice.
const SHORT: usize = 64;
/// Bytes of a word that is left to the library's own limits.
const LONG: usize = 64 << 10;
/// Added tokens that a text is searched for, at most.
const FEW: usize = 64;

/// Finds words and their ids.
#[derive(Clone)]
pub(crate) struct WordIds(Arc<Finder>);

struct Finder {
    /// Tells what this tokenizer's words are from those of others.
    number: u64,
    pattern: Regex,
    keeps_line_ends: bool,
    /// Tokens that the library finds in a text before any word.
    added: Vec<String>,
}

impl WordIds {
    /// `None` where only the library knows what the words are.
    pub(crate) fn of(tokenizer: &Tokenizer, added: &[AddedEntry]) -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if tokenizer.get_normalizer().is_some() {
            return None;
        }
        let splits = splits_of(&serde_json::to_value(tokenizer.get_pre_tokenizer()?).ok()?)?;
        let [pattern] = splits.as_slice() else { return None };
        if ![GPT2, QWEN2, SPLIT].contains(&pattern.as_str()) {
            return None;
        }
        let words = pattern.strip_suffix(LOOK_AHEAD)?;
        // Text that spells a special token stays text, that of others does not.
        let added = added.iter().filter(|token| !token.special);
        let added: Vec<_> = added.map(|token| token.content.clone()).take(FEW + 1).collect();
        (added.len() <= FEW).then_some(())?;
        Some(Self(Arc::new(Finder {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            pattern: Regex::new(&format!(r"{words}|\s+")).ok()?,
            keeps_line_ends: words.ends_with(LINE_ENDS),
            added,
        })))
    }

    /// The ids of a text; `None` where it is left to the library.
    pub(crate) fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Option<Vec<u32>> {
        let finder = &*self.0;
        if finder.added.iter().any(|token| text.contains(token)) {
            return None;
        }
        thread_local!(static KNOWN: RefCell<Option<KnownWords>> = const { RefCell::new(None) });
        KNOWN.with_borrow_mut(|known| {
            let KnownWords { pattern, words, .. } = KnownWords::of(known, finder);
            let mut ids = Vec::with_capacity(text.len() / 3);
            let mut at = 0;
            while at < text.len() {
                let end = finder.end_of_word(pattern, text, at);
                words.push_ids(tokenizer, &text[at..end], &mut ids)?;
                at = end;
            }
            Some(ids)
        })
    }
}

impl Finder {
    /// Where the word that begins at `at` ends.
    fn end_of_word(&self, pattern: &Regex, text: &str, at: usize) -> usize {
        match pattern.find_at(text, at) {
            // What lies between two matches is a word too.
            Some(found) if found.start() > at => found.start(),
            Some(found) => self.without_last_space(text, at, found.end()),
            None => text.len(),
        }
    }

    fn without_last_space(&self, text: &str, at: usize, end: usize) -> usize {
        let word = &text[at..end];
        let Some(last) = word.chars().next_back().filter(|last| last.is_whitespace()) else {
            return end;
        };
        let line_end = self.keeps_line_ends && matches!(last, '\r' | '\n');
        let is_given_back = end < text.len()
            && !line_end
            && word.len() > last.len_utf8()
            && word.chars().all(char::is_whitespace);
        if is_given_back { end - last.len_utf8() } else { end }
    }
}

/// What a thread knows of one tokenizer.
struct KnownWords {
    number: u64,
    /// A copy: a pattern lends its memory for searches quickly to one thread only.
    pattern: Regex,
    words: WordTable,
}

impl KnownWords {
    /// What is known of this tokenizer; nothing at first, and again when it is too much.
    fn of<'a>(known: &'a mut Option<Self>, finder: &Finder) -> &'a mut Self {
        let is_known = known.as_ref().is_some_and(|known| {
            known.number == finder.number && known.words.places.len() < REMEMBERED
        });
        if !is_known {
            let (number, pattern) = (finder.number, finder.pattern.clone());
            *known = Some(Self { number, pattern, words: WordTable::default() });
        }
        known.as_mut().expect("it was just made")
    }
}

/// The ids of words that occurred.
#[derive(Default)]
struct WordTable {
    /// Where the ids of a word begin and end.
    places: HashMap<Box<str>, (u32, u32)>,
    ids: Vec<u32>,
}

impl WordTable {
    /// Adds the ids of a word; `None` where the library fails or may.
    fn push_ids(&mut self, tokenizer: &Tokenizer, word: &str, ids: &mut Vec<u32>) -> Option<()> {
        if let Some(&(from, to)) = self.places.get(word) {
            ids.extend_from_slice(&self.ids[from as usize..to as usize]);
            return Some(());
        }
        if word.len() > LONG {
            return None;
        }
        // Alone a word is one word too: nothing around it makes it longer or shorter.
        let found = tokenizer.encode_fast(word, false).ok()?;
        ids.extend_from_slice(found.get_ids());
        if word.len() <= SHORT && self.places.len() < REMEMBERED {
            let from = self.ids.len() as u32;
            self.ids.extend_from_slice(found.get_ids());
            self.places.insert(word.into(), (from, self.ids.len() as u32));
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split_pattern::SplitPattern;
    use crate::test_tokenizers::{load, sentence_piece, trained};
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::sync::LazyLock;

    /// One of every pattern that is known here.
    static KNOWN: LazyLock<Vec<crate::Tokenizer>> = LazyLock::new(|| {
        let file: Value = serde_json::from_slice(trained(400).json()).unwrap();
        let of = |pattern: &str| {
            let mut file = file.clone();
            file["pre_tokenizer"] = SplitPattern::from_name(pattern).unwrap().pre_tokenizer();
            load(&file)
        };
        ["gpt-2", "qwen2", "llama-bpe"].map(of).into()
    });

    fn of_the_library(tokenizer: &crate::Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode_in_pieces(text, crate::cuts::SIZES).unwrap()
    }

    proptest! {
        #[test]
        fn words_give_the_ids_of_the_library(
            parts in prop::collection::vec(
                prop_oneof![
                    4 => "[ \n\r\t]{1,4}",
                    2 => "[\u{3000}\u{a0}\u{2028} ]{1,3}",
                    4 => "['a-zA-Z]{1,6}",
                    1 => "[0-9]{1,5}",
                    2 => "[.,!_<|>-]{1,3}",
                    1 => "\\PC{1,4}",
                    1 => "[éßſ日語\u{301}👩]{1,3}",
                ],
                0..40,
            ),
        ) {
            let text = parts.concat();
            for tokenizer in KNOWN.iter() {
                let expected = of_the_library(tokenizer, &text);
                // Twice: computed, then remembered.
                for _ in 0..2 {
                    prop_assert_eq!(tokenizer.ids_by_word(&text), Some(expected.clone()));
                }
            }
        }
    }

    #[test]
    fn tokenizers_take_turns_on_one_thread_and_forget_when_they_know_too_many_words() {
        let text: String = (0..REMEMBERED + 9).map(|at| format!(" w{at}x")).collect();
        for tokenizer in KNOWN.iter().cycle().take(4) {
            assert_eq!(
                tokenizer.ids_by_word(&text[..600]).unwrap(),
                of_the_library(tokenizer, &text[..600])
            );
        }
        for _ in 0..2 {
            assert_eq!(KNOWN[0].ids_by_word(&text).unwrap(), of_the_library(&KNOWN[0], &text));
        }
    }

    #[test]
    fn what_only_the_library_knows_is_left_to_it() {
        assert_eq!(load(&sentence_piece()).ids_by_word("a b"), None);
        let mut file: Value = serde_json::from_slice(trained(400).json()).unwrap();
        let id = load(&file).vocab_size();
        let entry = json!({"id": id, "content": "<here>", "special": false, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false});
        file["added_tokens"].as_array_mut().unwrap().push(entry);
        let added = load(&file);
        assert_eq!(added.ids_by_word("go <here> now"), None);
        assert_eq!(added.encode("<here>").unwrap(), [id as u32]);
        assert!(added.ids_by_word("go there now").is_some());
        assert_eq!(KNOWN[0].ids_by_word(&"x".repeat(LONG + 1)), None);
        let pattern = SplitPattern::from_name("deepseek-llm").unwrap().pre_tokenizer();
        file["pre_tokenizer"] = pattern;
        assert_eq!(load(&file).ids_by_word("a b"), None);
        file["pre_tokenizer"] = Value::Null;
        assert_eq!(load(&file).ids_by_word("a b"), None);
    }
}
