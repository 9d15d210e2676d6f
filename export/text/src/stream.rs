//! Decodes ids one at a time, as a chat prints them. `tokenizer` decodes whole texts.
//!
//! A token is a run of bytes, not of characters, so a character may be split over several tokens:
//!
//! ```text
//! ids     127    102            64
//! bytes   0xC3 | 0xA9         | 0x61
//! pushed  ""     "é"            "a"
//! ```
//!
//! Bytes that may still begin a character are held back until the next id decides.

use crate::bytes::token_bytes;
use crate::tokenizer::Tokenizer;

/// Incremental decoding that never splits a UTF-8 character.
///
/// The concatenated pieces are what [`Tokenizer::decode`] gives for all the ids.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    pending: Pending,
}

#[derive(Debug)]
enum Pending {
    /// Byte-level: the bytes of a character that is not complete yet, three at most.
    Bytes(Vec<u8>),
    /// Any other decoder: ids that still shape the text, and how much of it was given out.
    Window { ids: Vec<u32>, sent: usize },
}

impl Tokenizer {
    /// Decodes ids one at a time.
    pub fn stream(&self) -> TextStream<'_> {
        let pending = if self.is_byte_level() {
            Pending::Bytes(Vec::new())
        } else {
            Pending::Window { ids: Vec::new(), sent: 0 }
        };
        TextStream { tokenizer: self, pending }
    }
}

impl TextStream<'_> {
    /// Takes the next id and gives the text that became certain, which may be empty.
    pub fn push(&mut self, id: u32) -> String {
        match &mut self.pending {
            Pending::Bytes(rest) => {
                let token = self.tokenizer.plain_token(id).unwrap_or_default();
                rest.extend(token_bytes(&token));
                take_certain(rest)
            }
            Pending::Window { ids, sent } => push_window(self.tokenizer, ids, sent, id),
        }
    }

    /// Gives the rest; bytes that make no character become U+FFFD.
    pub fn finish(self) -> String {
        match self.pending {
            Pending::Bytes(rest) => String::from_utf8_lossy(&rest).into_owned(),
            Pending::Window { ids, sent } => after(&self.tokenizer.decode(&ids), sent),
        }
    }
}

/// Takes from `bytes` all but the beginning of a character that may still be completed.
fn take_certain(bytes: &mut Vec<u8>) -> String {
    // Only the last chunk can be incomplete: an earlier one is followed by bytes that show it to
    // be invalid, so it becomes U+FFFD at once. `error_len` is `None` for "needs more bytes".
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let torn = std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none());
    let certain = if torn { bytes.len() - last.len() } else { bytes.len() };
    let text = String::from_utf8_lossy(&bytes[..certain]).into_owned();
    bytes.drain(..certain);
    text
}

/// Other decoders look at neighbours (a leading space is dropped, byte tokens are joined), so the
/// new text is what the new id adds to the text of a window that ends in it.
fn push_window(tokenizer: &Tokenizer, ids: &mut Vec<u32>, sent: &mut usize, id: u32) -> String {
    ids.push(id);
    let text = tokenizer.decode(ids);
    // Half a character at the end decodes as U+FFFD; what it becomes is known with the next id.
    if text.ends_with(char::REPLACEMENT_CHARACTER) {
        return String::new();
    }
    let new = after(&text, *sent);
    // Bytes, not letters: `after` cuts the next text at this place.
    *sent = text.len().max(*sent);
    // One token that is whole text by itself is context enough; half a character is not.
    let alone = tokenizer.decode(&[id]);
    if !alone.is_empty() && !alone.contains(char::REPLACEMENT_CHARACTER) {
        *ids = vec![id];
        *sent = alone.len();
    }
    new
}

fn after(text: &str, sent: usize) -> String {
    text.get(sent..).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_tokenizers::{
        load, sentence_piece, tokenizers_outside_the_repository, trained,
    };
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static TRAINED: LazyLock<Tokenizer> = LazyLock::new(|| trained(300));
    static PIECES: LazyLock<Tokenizer> = LazyLock::new(|| load(&sentence_piece()));

    fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.stream();
        let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
        pieces.push(stream.finish());
        pieces
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        // é is 0xc3 0xa9; printable bytes from 0x21 are numbered from 0, from 0xa1 on from 94.
        let ids = TRAINED.encode("\u{e9}").unwrap();
        let tokenizer = trained(264);
        assert_eq!(tokenizer.encode("aé").unwrap(), [64, 127, 102]);
        assert_eq!(pieces(&tokenizer, &[64, 127, 102]), ["a", "", "é", ""]);
        assert_eq!(pieces(&TRAINED, &ids).concat(), "é");
    }

    #[test]
    fn torn_bytes_become_replacement_characters_when_they_are_certain() {
        let tokenizer = trained(264);
        assert_eq!(pieces(&tokenizer, &[127, 64, 127]), ["", "\u{fffd}a", "", "\u{fffd}"]);
    }

    #[test]
    fn a_special_token_between_the_bytes_of_a_character_is_skipped() {
        assert_eq!(pieces(&trained(264), &[127, 263, 102]), ["", "", "é", ""]);
    }

    #[test]
    fn spaces_stay_where_they_are() {
        let ids = TRAINED.encode(" the  dog ").unwrap();
        assert_eq!(pieces(&TRAINED, &ids).concat(), " the  dog ");
        let ids = PIECES.encode("a  b c ").unwrap();
        assert_eq!(pieces(&PIECES, &ids), ["a", " ", " ", "b", " ", "c", " ", ""]);
    }

    #[test]
    fn byte_tokens_of_a_sentence_piece_tokenizer_are_joined() {
        let ids = PIECES.encode("aß日ö").unwrap();
        assert_eq!(pieces(&PIECES, &ids), ["a", "", "ß", "日", "", "ö", ""]);
    }

    #[test]
    fn outside_the_repository_golden_texts_stream_as_they_decode() {
        let Some(shared) = tokenizers_outside_the_repository() else { return };
        for name in ["bpe512", "dolma2"] {
            let tokenizer =
                Tokenizer::from_file(&shared.join(name).join("tokenizer.json")).unwrap();
            let rows = fs_err::read_to_string(shared.join(name).join("golden.jsonl")).unwrap();
            for row in rows.lines() {
                let row: serde_json::Value = serde_json::from_str(row).unwrap();
                let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
                assert_eq!(pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids));
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_streams_whole_and_untorn(text in any::<String>()) {
            for tokenizer in [&*TRAINED, &*PIECES] {
                let ids = tokenizer.encode(&text).unwrap();
                let pieces = pieces(tokenizer, &ids);
                prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids));
                let torn = pieces.iter().any(|p| p.contains(char::REPLACEMENT_CHARACTER));
                prop_assert_eq!(torn, text.contains(char::REPLACEMENT_CHARACTER));
            }
        }

        #[test]
        fn any_ids_stream_as_they_decode(ids in prop::collection::vec(0_u32..310, 0..60)) {
            prop_assert_eq!(pieces(&TRAINED, &ids).concat(), TRAINED.decode(&ids));
        }
    }
}
