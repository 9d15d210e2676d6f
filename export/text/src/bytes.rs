//! The byte-level alphabet: how GPT-2 style tokenizers spell the 256 bytes as printable letters.
//!
//! ```text
//! bytes    21–7E, A1–AC, AE–FF   themselves   a -> a
//!          00–20                 U+0100 on    space -> Ġ
//!          7F–A0                 U+0121 on
//!          AD                    U+0143
//! ```

/// The bytes of a byte-level token. A token with any other letter (an added token) is its own
/// UTF-8, as in the `tokenizers` library.
pub(crate) fn token_bytes(token: &str) -> Vec<u8> {
    let spelled: Option<Vec<u8>> = token.chars().map(letter_byte).collect();
    spelled.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Printable Latin-1 bytes are spelled as themselves; the others, in order, as U+0100 and on.
fn letter_byte(letter: char) -> Option<u8> {
    match u32::from(letter) {
        // The inverse of `bytes_to_unicode` in GPT-2's encoder. It spells no byte as a space or a
        // control sign, since the file of merges has spaces and line ends between tokens.
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn the_alphabet_is_the_one_of_the_library_and_covers_every_byte() {
        let mut bytes: Vec<u8> =
            ByteLevel::alphabet().into_iter().filter_map(letter_byte).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn known_letters_give_known_bytes() {
        assert_eq!(token_bytes("Ġthe"), b" the");
        assert_eq!(token_bytes("Ċ"), b"\n");
        assert_eq!(token_bytes("Ã©"), "é".as_bytes());
        assert_eq!(token_bytes("ġŁł¡Ń"), [0x7f, 0x9f, 0xa0, 0xa1, 0xad]);
    }

    #[test]
    fn a_token_with_a_foreign_letter_stands_for_itself() {
        assert_eq!(token_bytes("a 日"), "a 日".as_bytes());
    }
}
