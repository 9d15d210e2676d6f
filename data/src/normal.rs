//! Texts without what hardly changes what they say: the forms in which they are compared.

/// White space as single spaces, none at the ends.
pub(super) fn spaced(text: &str) -> String {
    let mut spaced = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !spaced.is_empty() {
            spaced.push(' ');
        }
        spaced.push_str(word);
    }
    spaced
}

/// A hash of each word: a run of letters and digits, in small letters. Punctuation is left out.
pub(super) fn word_hashes(text: &str) -> Vec<u64> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(word_hash).collect()
}

/// FNV-1a over the small letters.
fn word_hash(word: &str) -> u64 {
    // FNV's offset and prime for 64 bits. Not keyed and not the standard library's hasher: hashes
    // of one text are equal in every process and version.
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    if word.is_ascii() {
        word.bytes().for_each(|byte| add(byte.to_ascii_lowercase()));
    } else {
        word.chars().flat_map(char::to_lowercase).for_each(|c| {
            c.encode_utf8(&mut [0; 4]).bytes().for_each(&mut add);
        });
    }
    hash
}

/// A hash of several words in their order.
pub(super) fn run_hash(words: &[u64]) -> u64 {
    // Mixed after each word, so that the order counts: `a b` is another run than `b a`.
    words.iter().fold(0, |hash, word| mixed(hash.wrapping_add(*word)))
}

/// Every bit of the result depends on every bit of the number: the finalizer of `SplitMix64`.
pub(super) const fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_case_and_punctuation_make_no_other_words() {
        assert_eq!(spaced("  a\t b\n\nc "), "a b c");
        assert_eq!(word_hashes("Où, THE\u{a0}end!"), word_hashes("où the end"));
        assert_ne!(word_hashes("a b"), word_hashes("b a"));
        assert_ne!(run_hash(&word_hashes("a b")), run_hash(&word_hashes("b a")));
        assert!(word_hashes(" .,- ").is_empty());
    }
}
