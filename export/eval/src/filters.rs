//! What is done to a generated text before it is compared, and the comparison: the harness's
//! filters and its exact match, on Python's regular expressions.

use fancy_regex::Regex;

use crate::python::{self, PUNCTUATION};

/// One step of a filter.
#[derive(Clone, Debug)]
pub(crate) enum Filter {
    /// Every task asks once, so the first answer is the answer.
    TakeFirst,
    RemoveWhitespace,
    Lowercase,
    Uppercase,
    /// The match with this number (from the end where negative), or a text where none matches.
    Regex {
        regex: Regex,
        select: i64,
        fallback: String,
    },
    /// A text for a text, or a default.
    Map(Vec<(String, String)>, String),
}

/// A named chain of filters; each makes its own scores.
#[derive(Clone, Debug)]
pub(crate) struct FilterChain {
    pub(crate) name: String,
    pub(crate) steps: Vec<Filter>,
}

impl FilterChain {
    /// What tasks have that name no filter.
    pub(crate) fn none() -> Self {
        Self { name: "none".to_owned(), steps: vec![Filter::TakeFirst] }
    }

    pub(crate) fn apply(&self, text: &str) -> String {
        self.steps.iter().fold(text.to_owned(), |text, step| step.apply(text))
    }
}

impl Filter {
    fn apply(&self, text: String) -> String {
        match self {
            Self::TakeFirst => text,
            Self::RemoveWhitespace => python::strip(&text).to_owned(),
            Self::Lowercase => text.to_lowercase(),
            Self::Uppercase => text.to_uppercase(),
            Self::Regex { regex, select, fallback } => {
                extract(regex, *select, &text).unwrap_or_else(|| fallback.clone())
            }
            Self::Map(pairs, default) => {
                let found = pairs.iter().find(|(from, _)| *from == text);
                found.map_or(default, |(_, to)| to).clone()
            }
        }
    }
}

/// One of `re.findall`'s results: the whole match without groups, the group with one, the first
/// group that holds something with several.
fn extract(regex: &Regex, select: i64, text: &str) -> Option<String> {
    let mut all = Vec::new();
    for found in regex.captures_iter(text) {
        let found = found.ok()?;
        let group = |i: usize| found.get(i).map_or("", |it| it.as_str());
        all.push(match found.len() {
            1 => Some(group(0)),
            // `len` counts the whole match as group 0. A group that took no part is "" in Python
            // too.
            2 => Some(group(1)),
            groups => (1..groups).map(group).find(|it| !it.is_empty()),
        });
    }
    // Python's negative index. Beyond the list the harness would stop with an error; here the
    // answer counts as not found.
    let at = if select < 0 { all.len() as i64 + select } else { select };
    let chosen = *all.get(usize::try_from(at).ok()?)?;
    chosen.map(|text| python::strip(text).to_owned())
}

/// How `exact_match` reads two texts.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExactMatch {
    pub(crate) ignored: Vec<Regex>,
    pub(crate) ignore_case: bool,
    pub(crate) ignore_punctuation: bool,
    pub(crate) ignore_numbers: bool,
}

impl ExactMatch {
    pub(crate) fn equal(&self, a: &str, b: &str) -> bool {
        self.normalised(a) == self.normalised(b)
    }

    fn normalised(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // The order is the harness's: patterns, case, punctuation, digits. A pattern may need the
        // capitals or the signs that go afterwards.
        for regex in &self.ignored {
            text = regex.replace_all(&text, "").into_owned();
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        text.retain(|letter| {
            !(self.ignore_punctuation && PUNCTUATION.contains(letter)
                || self.ignore_numbers && letter.is_ascii_digit())
        });
        // The arrays of numpy that the harness compares forget zeros at the end.
        text.trim_end_matches('\0').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regex(pattern: &str, select: i64) -> Filter {
        let regex = Regex::new(pattern).unwrap();
        Filter::Regex { regex, select, fallback: "[invalid]".to_owned() }
    }

    #[test]
    fn numbers_of_gsm8k_are_extracted_as_the_harness_does() {
        let strict = regex("#### (\\-?[0-9\\.\\,]+)", 0);
        let flexible = regex("(-?[$0-9.,]{2,})|(-?[0-9]+)", -1);
        for (text, one, other) in [
            ("so 3 + 4 = 7\n#### 7", "7", "7"),
            ("#### 1,200.", "1,200.", "1,200."),
            ("it is $12 or -5", "[invalid]", "-5"),
            ("#### -3 and 4.", "-3", "4."),
            ("none", "[invalid]", "[invalid]"),
            ("costs 9", "[invalid]", "9"),
        ] {
            assert_eq!(strict.apply(text.to_owned()), one, "{text}");
            assert_eq!(flexible.apply(text.to_owned()), other, "{text}");
        }
    }

    #[test]
    fn chains_run_in_order_and_maps_have_a_default() {
        let map = Filter::Map(vec![("A".to_owned(), "yes".to_owned())], "no".to_owned());
        let steps = vec![Filter::RemoveWhitespace, Filter::Uppercase, map];
        let chain = FilterChain { name: "x".to_owned(), steps };
        assert_eq!((chain.apply(" a\n").as_str(), chain.apply("b").as_str()), ("yes", "no"));
        assert_eq!(FilterChain::none().apply(" A "), " A ");
    }

    #[test]
    fn exact_match_ignores_what_it_is_told_to() {
        let ignored = [",", "\\$", "(?s).*#### ", "\\.$"].map(|it| Regex::new(it).unwrap());
        let gsm8k = ExactMatch { ignored: ignored.into(), ignore_case: true, ..Default::default() };
        assert!(gsm8k.equal("1,200.", "a\nb = $5\n#### 1200"));
        assert!(!gsm8k.equal("12", "#### 1200"));
        let trivia =
            ExactMatch { ignore_case: true, ignore_punctuation: true, ..Default::default() };
        assert!(trivia.equal("St. Paul's", "st pauls") && !trivia.equal("a b", "ab"));
        assert!(ExactMatch { ignore_numbers: true, ..Default::default() }.equal("a1", "a"));
    }
}
