//! What `IFEval` asks libraries of Python about a text: its language, its sentences, its words in
//! capitals. These three are close to langdetect and NLTK, not equal to them; everything else is
//! exact.

use fancy_regex::Regex;
use whatlang::Lang;

use crate::python;

/// The languages of `IFEval` that are told apart; Swahili is not.
const LANGUAGES: [(&str, Lang); 29] = [
    ("en", Lang::Eng),
    ("es", Lang::Spa),
    ("pt", Lang::Por),
    ("ar", Lang::Ara),
    ("hi", Lang::Hin),
    ("fr", Lang::Fra),
    ("ru", Lang::Rus),
    ("de", Lang::Deu),
    ("ja", Lang::Jpn),
    ("it", Lang::Ita),
    ("bn", Lang::Ben),
    ("uk", Lang::Ukr),
    ("th", Lang::Tha),
    ("ur", Lang::Urd),
    ("ta", Lang::Tam),
    ("te", Lang::Tel),
    ("bg", Lang::Bul),
    ("ko", Lang::Kor),
    ("pl", Lang::Pol),
    ("he", Lang::Heb),
    ("fa", Lang::Pes),
    ("vi", Lang::Vie),
    ("ne", Lang::Nep),
    ("kn", Lang::Kan),
    ("mr", Lang::Mar),
    ("gu", Lang::Guj),
    ("pa", Lang::Pan),
    ("ml", Lang::Mal),
    ("fi", Lang::Fin),
];

/// Words whose period ends no sentence.
const ABBREVIATIONS: [&str; 23] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "e.g", "i.e", "etc", "inc", "ltd",
    "co", "corp", "u.s", "a.m", "p.m", "ph.d", "gen", "rep", "sen",
];

/// Whether a text is in a language (`en`, `de`, …). A text whose language cannot be told counts as
/// right, as in the harness.
pub(crate) fn is_in(text: &str, code: &str) -> bool {
    let asked = LANGUAGES.iter().find(|(known, _)| *known == code);
    match (whatlang::detect_lang(text), asked) {
        (None, _) => true,
        (Some(found), Some((_, asked))) => found == *asked,
        (Some(_), None) => false,
    }
}

/// The number of sentences: `?` and `!` end one, and a period that no abbreviation has.
pub(crate) fn sentences(text: &str) -> usize {
    let words: Vec<&str> = text.split(python::is_space).filter(|word| !word.is_empty()).collect();
    let ends = |at: &usize| {
        let next = words.get(at + 1);
        next.is_none_or(|next| ends_sentence(words[*at], next))
    };
    (0..words.len()).filter(ends).count()
}

fn ends_sentence(word: &str, next: &str) -> bool {
    let word = word.trim_end_matches(['"', '\'', ')', ']', '”', '’', '*']);
    // Closing quotes and brackets were taken off: `"Go."` ends as `Go.` does.
    let Some(stem) = word.strip_suffix('.') else { return word.ends_with(['?', '!']) };
    if stem.ends_with('.') {
        // An ellipsis ends a sentence only where another one begins.
        return next.starts_with(char::is_uppercase);
    }
    let stem = stem.trim_start_matches(['"', '\'', '(', '[', '“', '‘', '*']);
    // `J. Smith` is one sentence.
    let is_initial = stem.chars().count() == 1 && stem.chars().all(char::is_alphabetic);
    !is_initial && !ABBREVIATIONS.contains(&stem.to_lowercase().as_str())
}

/// The number of words in capitals; `DON'T` is two, as NLTK cuts it.
pub(crate) fn words_in_capitals(text: &str) -> usize {
    let words = Regex::new(r"\w+(?:[./'’\-]+\w+)*").expect("a valid pattern");
    let two = Regex::new(r"(?:N'T|'(?:S|M|D|LL|RE|VE))$").expect("a valid pattern");
    let parts = |word: &str| 1 + usize::from(two.is_match(word).unwrap_or(false));
    let found = words.find_iter(text).flatten().map(|found| found.as_str());
    found.filter(|word| python::is_upper(word)).map(parts).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_no_abbreviation_does() {
        for (text, count) in [
            ("", 0),
            ("One. Two? Three!", 3),
            ("Mr. J. Smith met Dr. Who. \"Why?\" he asked.", 3),
            ("Well... maybe. It... Is (so.) Yes", 4),
            ("Version 1.5 is out\n\nand new", 1),
        ] {
            assert_eq!(sentences(text), count, "{text}");
        }
    }

    #[test]
    fn capitals_are_counted_by_word() {
        assert_eq!(words_in_capitals("I DON'T like THE U.S. well-KNOWN A-B 3D 12"), 7);
    }

    #[test]
    fn languages_are_told_apart() {
        let german =
            "Der schnelle braune Fuchs springt über den faulen Hund, und niemand weiß warum.";
        let english =
            "The quick brown fox jumps over the lazy dog, and nobody knows why it does so.";
        assert!(is_in(german, "de") && !is_in(german, "en"));
        assert!(is_in(english, "en") && is_in(&english.to_uppercase(), "en"));
        assert!(!is_in(english, "sw") && is_in("12", "en"));
    }
}
