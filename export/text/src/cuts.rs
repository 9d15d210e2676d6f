//! Cuts a long text into pieces that give the ids of the whole.
//!
//! The `tokenizers` library holds a hundred bytes for every byte of a text that it encodes. So a
//! long text is encoded piece by piece. A cut is made only where it changes nothing:
//!
//! ```text
//! the tokenizer finds words    after a sign that ends its run, where a word ends in the whole text
//!                              and in both parts alike
//! the text is one long word    before a space that follows a letter, where no token goes on with a
//!                              space after a letter
//! ```
//!
//! Both are tried on the text around each cut before it is made.

use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    Tokenizer,
};

use crate::tokenizer_json::VocabEntries;

/// Where the texts of a tokenizer may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cuts {
    /// Between words.
    Words,
    /// Before a space. `taken`: the next piece begins after the space, which the tokenizer puts
    /// before every text.
    Spaces { taken: bool },
    /// Nowhere for certain.
    Nowhere,
}

/// Bytes of a piece, and of the text on either side on which a cut is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Pieces are about as long.
    pub(crate) piece: usize,
    /// No piece is longer.
    pub(crate) longest: usize,
    /// Text on either side of a cut.
    pub(crate) context: usize,
}

pub(crate) const SIZES: Sizes = Sizes { piece: 64 << 10, longest: 4 << 20, context: 256 };

/// Cuts that are tried for one piece before the text counts as one that cannot be cut.
const TRIES: usize = 64;

const SPACE: char = '\u{2581}';

impl Cuts {
    /// How the texts of this tokenizer may be cut.
    pub(crate) fn of(tokenizer: &Tokenizer, vocab: &VocabEntries) -> Self {
        // Tokens never cross the words that a pre-tokenizer finds, so a cut between words changes
        // no id.
        if words(tokenizer, "a b").is_some_and(|words| words.len() > 1) {
            return Self::Words;
        }
        let goes_on = |(token, _): &(String, u64)| {
            let letters = token.chars().zip(token.chars().skip(1));
            letters.into_iter().any(|(one, two)| one != SPACE && two == SPACE)
        };
        // Without words the tokenizer itself is asked: does "a b" have the ids of "a" and " b", or
        // of "a" and "b" (where it puts a space before every text)?
        let parts = |behind| Some([ids(tokenizer, "a")?, ids(tokenizer, behind)?].concat());
        match ids(tokenizer, "a b") {
            None => Self::Nowhere,
            Some(_) if vocab.0.iter().any(goes_on) => Self::Nowhere,
            whole if whole == parts(" b") => Self::Spaces { taken: false },
            whole if whole == parts("b") => Self::Spaces { taken: true },
            _ => Self::Nowhere,
        }
    }

    /// The next piece of `text`, which is not empty, ends at the first number; the next one
    /// begins at the second.
    pub(crate) fn next(
        self,
        tokenizer: &Tokenizer,
        text: &str,
        sizes: Sizes,
    ) -> Result<(usize, usize), String> {
        if text.len() <= sizes.piece {
            return Ok((text.len(), text.len()));
        }
        // Backwards from the wanted size first, then forwards: most texts have a place to cut
        // nearby.
        let middle = text.floor_char_boundary(sizes.piece);
        let back = text[..middle].char_indices().rev().map(|(at, _)| at);
        let limit = text.floor_char_boundary(sizes.longest);
        let forth = text[middle..limit].char_indices().map(|(at, _)| middle + at);
        let found = self.first(tokenizer, text, back, sizes);
        match found.or_else(|| self.first(tokenizer, text, forth, sizes)) {
            Some(at) => Ok((at, at + usize::from(self == Self::Spaces { taken: true }))),
            None if text.len() <= sizes.longest => Ok((text.len(), text.len())),
            None => Err(format!(
                "a word without end; expected at most {} bytes without a place to cut, got more",
                sizes.longest
            )),
        }
    }

    /// The first of some places where a cut changes nothing.
    fn first(
        self,
        tokenizer: &Tokenizer,
        text: &str,
        places: impl Iterator<Item = usize>,
        sizes: Sizes,
    ) -> Option<usize> {
        let mut likely = places.filter(|at| *at > 0 && self.is_likely(text, *at)).take(TRIES);
        likely.find(|at| self.holds(tokenizer, text, *at, sizes.context))
    }

    /// Whether the signs on both sides look like a place to cut.
    fn is_likely(self, text: &str, at: usize) -> bool {
        let (before, mut behind) = (text[..at].chars().next_back(), text[at..].chars());
        let (Some(before), Some(next)) = (before, behind.next()) else { return false };
        match self {
            Self::Words => {
                let ends_run = before.is_alphanumeric() && !next.is_alphanumeric();
                !before.is_whitespace() && (next.is_whitespace() || ends_run)
            }
            Self::Spaces { .. } => {
                // A run of spaces may be one token, which a cut inside of it would tear.
                let single = behind.next().is_some_and(|after| after != ' ' && after != SPACE);
                next == ' ' && single && before != SPACE && !before.is_whitespace()
            }
            Self::Nowhere => false,
        }
    }

    /// Whether the text around a cut has the same words and ids with it.
    fn holds(self, tokenizer: &Tokenizer, text: &str, at: usize, context: usize) -> bool {
        // Trying out beats reasoning: patterns and normalisers are the file's own and may do
        // anything.
        let from = text.floor_char_boundary(at.saturating_sub(context));
        let to = text.floor_char_boundary((at + context).min(text.len()));
        let (left, whole) = (&text[from..at], &text[from..to]);
        // The space at the cut is what the tokenizer puts before the next piece by itself.
        let skipped = usize::from(self == Self::Spaces { taken: true });
        let parts = |of: &dyn Fn(&str) -> Option<Vec<u32>>| {
            Some([of(left)?, of(&text[at + skipped..to])?].concat())
        };
        let same_ids = ids(tokenizer, whole) == parts(&|part| ids(tokenizer, part));
        same_ids && (self != Self::Words || same_words(tokenizer, left, &text[at..to], whole))
    }
}

fn same_words(tokenizer: &Tokenizer, left: &str, right: &str, whole: &str) -> bool {
    let (Some(mut both), Some(behind)) = (words(tokenizer, left), words(tokenizer, right)) else {
        return false;
    };
    // With where words end: equal words could still lie elsewhere.
    both.extend(behind.into_iter().map(|(word, end)| (word, left.len() + end)));
    words(tokenizer, whole) == Some(both)
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Option<Vec<u32>> {
    tokenizer.encode_fast(text, false).ok().map(|encoding| encoding.get_ids().to_vec())
}

/// The words of a text and where they end; `None` where the tokenizer looks for none.
fn words(tokenizer: &Tokenizer, text: &str) -> Option<Vec<(String, usize)>> {
    let splitter = tokenizer.get_pre_tokenizer()?;
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut normalized).ok()?;
    }
    let mut pieces = PreTokenizedString::from(normalized);
    splitter.pre_tokenize(&mut pieces).ok()?;
    let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Some(splits.into_iter().map(|(word, (_, end), _)| (word.to_owned(), end)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split_pattern::SplitPattern;
    use crate::test_tokenizers::{load, sentence_piece, trained};
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::sync::LazyLock;

    const SMALL: Sizes = Sizes { piece: 16, longest: 4096, context: 12 };

    /// One tokenizer of every pattern, and those that take the text as one word.
    static ALL: LazyLock<Vec<crate::Tokenizer>> = LazyLock::new(|| {
        let file: Value = serde_json::from_slice(trained(400).json()).unwrap();
        let of = |pattern: SplitPattern| {
            let mut file = file.clone();
            file["pre_tokenizer"] = pattern.pre_tokenizer();
            load(&file)
        };
        let mut all: Vec<_> = SplitPattern::all().map(of).collect();
        let mut pieces = sentence_piece();
        all.push(load(&pieces));
        let replace = pieces["normalizer"]["normalizers"][1].take();
        pieces["normalizer"] = replace;
        all.push(load(&pieces));
        pieces["normalizer"] = Value::Null;
        pieces["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "\u{2581}",
            "prepend_scheme": "first", "split": false});
        all.push(load(&pieces));
        all
    });

    fn text() -> impl Strategy<Value = String> {
        const PARTS: [&str; 28] = [
            "a",
            "the",
            "Dog",
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            ".",
            ",",
            "'s",
            "'LL",
            "1",
            "2024",
            "é",
            "ß",
            "日",
            "語",
            "。",
            "\u{301}",
            "\u{3000}",
            "-",
            "/",
            "<sentinel:7>",
            "한",
            "👩",
            "_",
            "(",
        ];
        prop::collection::vec(prop::sample::select(&PARTS[..]), 0..120).prop_map(|all| all.concat())
    }

    #[test]
    fn each_kind_of_tokenizer_is_known() {
        let cuts = |tokenizer: &crate::Tokenizer| tokenizer.cuts();
        let kinds: Vec<_> = ALL.iter().rev().take(4).map(cuts).collect();
        let (taken, kept) = (Cuts::Spaces { taken: true }, Cuts::Spaces { taken: false });
        assert_eq!(kinds, [kept, kept, taken, Cuts::Words]);
        let mut pieces = sentence_piece();
        let id = pieces["model"]["vocab"].as_object().unwrap().len();
        pieces["model"]["vocab"]["a\u{2581}"] = json!(id);
        assert_eq!(load(&pieces).cuts(), Cuts::Nowhere);
    }

    #[test]
    fn a_long_text_is_cut_and_a_word_without_end_is_an_error() {
        let tokenizer = &ALL[0];
        let text = "The dog sleeps. ".repeat(20_000);
        let whole = Sizes { piece: usize::MAX, ..SIZES };
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(ids, tokenizer.encode_in_pieces(&text, whole).unwrap());
        let ends = tokenizer.encode_with_ranges(&text).unwrap();
        assert_eq!(ends.last().map(|(_, range)| range.end), Some(text.len()));
        assert!(ends.windows(2).all(|two| two[0].1.end < two[1].1.end));
        assert_eq!(ends.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), ids);
        let error = tokenizer.encode_in_pieces(&"x".repeat(5000), SMALL).unwrap_err().to_string();
        assert!(error.contains("a word without end; expected at most 4096 bytes"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn pieces_give_the_ids_of_the_whole(text in text()) {
            let whole = Sizes { piece: usize::MAX, ..SMALL };
            for tokenizer in ALL.iter() {
                let expected = tokenizer.encode_in_pieces(&text, whole).unwrap();
                prop_assert_eq!(tokenizer.encode_in_pieces(&text, SMALL).unwrap(), expected);
            }
        }
    }
}
