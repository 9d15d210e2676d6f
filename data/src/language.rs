//! The language of a text, as its letters and their triples tell.

use serde::{Serialize, Serializer};
use whatlang::Lang;

/// Text that is looked at; more would not tell more.
const LOOKED_AT: usize = 4096;

/// The languages that are told apart, by their codes of two letters (ISO 639-1).
const CODES: [(&str, Lang); 70] = [
    ("eo", Lang::Epo),
    ("en", Lang::Eng),
    ("ru", Lang::Rus),
    ("zh", Lang::Cmn),
    ("es", Lang::Spa),
    ("pt", Lang::Por),
    ("it", Lang::Ita),
    ("bn", Lang::Ben),
    ("fr", Lang::Fra),
    ("de", Lang::Deu),
    ("uk", Lang::Ukr),
    ("ka", Lang::Kat),
    ("ar", Lang::Ara),
    ("hi", Lang::Hin),
    ("ja", Lang::Jpn),
    ("he", Lang::Heb),
    ("yi", Lang::Yid),
    ("pl", Lang::Pol),
    ("am", Lang::Amh),
    ("jv", Lang::Jav),
    ("ko", Lang::Kor),
    ("nb", Lang::Nob),
    ("da", Lang::Dan),
    ("sv", Lang::Swe),
    ("fi", Lang::Fin),
    ("tr", Lang::Tur),
    ("nl", Lang::Nld),
    ("hu", Lang::Hun),
    ("cs", Lang::Ces),
    ("el", Lang::Ell),
    ("bg", Lang::Bul),
    ("be", Lang::Bel),
    ("mr", Lang::Mar),
    ("kn", Lang::Kan),
    ("ro", Lang::Ron),
    ("sl", Lang::Slv),
    ("hr", Lang::Hrv),
    ("sr", Lang::Srp),
    ("mk", Lang::Mkd),
    ("lt", Lang::Lit),
    ("lv", Lang::Lav),
    ("et", Lang::Est),
    ("ta", Lang::Tam),
    ("vi", Lang::Vie),
    ("ur", Lang::Urd),
    ("th", Lang::Tha),
    ("gu", Lang::Guj),
    ("uz", Lang::Uzb),
    ("pa", Lang::Pan),
    ("az", Lang::Aze),
    ("id", Lang::Ind),
    ("te", Lang::Tel),
    ("fa", Lang::Pes),
    ("ml", Lang::Mal),
    ("or", Lang::Ori),
    ("my", Lang::Mya),
    ("ne", Lang::Nep),
    ("si", Lang::Sin),
    ("km", Lang::Khm),
    ("tk", Lang::Tuk),
    ("ak", Lang::Aka),
    ("zu", Lang::Zul),
    ("sn", Lang::Sna),
    ("af", Lang::Afr),
    ("la", Lang::Lat),
    ("sk", Lang::Slk),
    ("ca", Lang::Cat),
    ("tl", Lang::Tgl),
    ("hy", Lang::Hye),
    ("cy", Lang::Cym),
];

/// A language that can be recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextLanguage(Lang);

impl TextLanguage {
    /// The language of a code of two letters, such as `en`, or of three, such as `eng`.
    pub fn from_code(code: &str) -> Option<Self> {
        let two = CODES.iter().find(|(known, _)| *known == code).map(|(_, language)| *language);
        two.or_else(|| Lang::from_code(code)).map(Self)
    }

    /// Its code of two letters.
    pub fn code(self) -> &'static str {
        let known = CODES.iter().find(|(_, language)| *language == self.0);
        known.map_or_else(|| self.0.code(), |(code, _)| code)
    }

    /// What the beginning of a text is in; `None` where that cannot be told.
    pub(crate) fn of(text: &str) -> Option<Self> {
        whatlang::detect_lang(&text[..text.floor_char_boundary(LOOKED_AT)]).map(Self)
    }
}

impl Serialize for TextLanguage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_has_a_code_and_its_texts_are_recognised() {
        for language in Lang::all() {
            let code = TextLanguage(*language).code();
            assert_eq!(
                (code.len(), TextLanguage::from_code(code)),
                (2, Some(TextLanguage(*language)))
            );
        }
        assert_eq!(TextLanguage::from_code("eng"), TextLanguage::from_code("en"));
        assert_eq!(TextLanguage::from_code("klingon"), None);
        let code = |text: &str| TextLanguage::of(text).map(TextLanguage::code);
        assert_eq!(code("The quick brown fox jumps over the lazy dog and runs away."), Some("en"));
        assert_eq!(code("Der schnelle braune Fuchs springt über den faulen Hund."), Some("de"));
        assert_eq!(code(&"Привет, как дела? ".repeat(1000)), Some("ru"));
        assert_eq!(code("1 2 3"), None);
    }
}
