//! `IFEval`'s instructions: whether a text follows each (`ifeval/instructions.py`).

use fancy_regex::Regex;
use serde_json::Value;

use crate::english;
use crate::python::{self, strip};

/// A field that is missing or wrong, and what was expected.
type Wrong = (String, String);

/// How many of a row's instructions a text follows, strictly and loosely, each in the row's order.
///
/// # Errors
/// The field that is missing or of another kind, or an instruction that is not known.
pub(crate) fn followed(row: &Value, text: &str) -> Result<[Vec<bool>; 2], Wrong> {
    let wrong = |field: &str, what: &str| (field.to_owned(), what.to_owned());
    let list = row["instruction_id_list"].as_array();
    let ids = list.ok_or_else(|| wrong("instruction_id_list", "expected a list of names"))?;
    let mut found = [Vec::new(), Vec::new()];
    // Loose: an introduction, a last line or emphasis by stars may be in the way; one variant that
    // follows is enough.
    let variants = loose(text);
    for (at, id) in ids.iter().enumerate() {
        let id = id.as_str().ok_or_else(|| wrong("instruction_id_list", "expected names"))?;
        let instruction = Instruction { id, given: &row["kwargs"][at] };
        // An empty answer follows nothing, not even "no commas".
        let says = |text: &str| Ok(!strip(text).is_empty() && instruction.is_followed(text)?);
        found[0].push(says(text)?);
        let each: Vec<bool> = variants.iter().map(|it| says(it)).collect::<Result<_, Wrong>>()?;
        found[1].push(each.contains(&true));
    }
    Ok(found)
}

/// The text, without stars, and without its first or last line.
fn loose(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.split('\n').collect();
    let joined = |from: usize, to: usize| {
        let inner = lines.get(from..to.max(from)).unwrap_or_default();
        strip(&inner.join("\n")).to_owned()
    };
    let count = lines.len();
    let plain = [text.to_owned(), joined(1, count), joined(0, count - 1), joined(1, count - 1)];
    plain.iter().map(|text| text.replace('*', "")).chain(plain.clone()).collect()
}

struct Instruction<'a> {
    id: &'a str,
    given: &'a Value,
}

impl Instruction<'_> {
    fn is_followed(&self, text: &str) -> Result<bool, Wrong> {
        Ok(match self.id {
            // Keywords are patterns, as `re.search` takes them, and not escaped.
            "keywords:existence" => {
                self.texts("keywords")?.iter().try_fold(true, |all, word| {
                    Ok::<_, Wrong>(all && count(&format!("(?i){word}"), text)? > 0)
                })?
            }
            "keywords:frequency" => {
                let pattern = format!("(?i){}", strip(self.text("keyword")?));
                self.compared("relation", count(&pattern, text)?, self.number("frequency")?)?
            }
            "keywords:forbidden_words" => {
                self.texts("forbidden_words")?.iter().try_fold(true, |none, word| {
                    Ok::<_, Wrong>(none && count(&format!(r"(?i)\b{word}\b"), text)? == 0)
                })?
            }
            "keywords:letter_frequency" => {
                // Compared as a text: a letter such as `İ` becomes two in lower case and is never
                // found.
                let letter = strip(self.text("letter")?).to_lowercase();
                let text = text.to_lowercase();
                let found = text.chars().filter(|it| letter == it.to_string()).count();
                self.compared("let_relation", found, self.number("let_frequency")?)?
            }
            "language:response_language" => english::is_in(text, self.text("language")?),
            "punctuation:no_comma" => !text.contains(','),
            "combination:repeat_prompt" => {
                let begin = strip(self.text("prompt_to_repeat")?).to_lowercase();
                strip(text).to_lowercase().starts_with(&begin)
            }
            "combination:two_responses" => two_responses(text),
            "startend:end_checker" => {
                let end = strip(self.text("end_phrase")?).to_lowercase();
                // Quotes around an answer do not hide its end.
                strip(text).trim_matches('"').to_lowercase().ends_with(&end)
            }
            "startend:quotation" => {
                let text = strip(text);
                text.len() > 1 && text.starts_with('"') && text.ends_with('"')
            }
            id if id.starts_with("change_case:") => self.has_case(text)?,
            id if id.starts_with("length_constraints:") => self.has_length(text)?,
            _ => self.has_form(text)?,
        })
    }

    fn has_case(&self, text: &str) -> Result<bool, Wrong> {
        Ok(match self.id {
            "change_case:english_capital" => python::is_upper(text) && english::is_in(text, "en"),
            "change_case:english_lowercase" => python::is_lower(text) && english::is_in(text, "en"),
            "change_case:capital_word_frequency" => {
                let found = english::words_in_capitals(text);
                self.compared("capital_relation", found, self.number("capital_frequency")?)?
            }
            _ => return Err(self.unknown()),
        })
    }

    fn has_length(&self, text: &str) -> Result<bool, Wrong> {
        Ok(match self.id {
            "length_constraints:number_sentences" => {
                let found = english::sentences(text);
                self.compared("relation", found, self.number("num_sentences")?)?
            }
            "length_constraints:number_words" => {
                let found = count(r"\w+", text)?;
                self.compared("relation", found, self.number("num_words")?)?
            }
            "length_constraints:number_paragraphs" => {
                paragraphs(text)? == Some(self.number("num_paragraphs")?)
            }
            "length_constraints:nth_paragraph_first_word" => self.begins_paragraph(text)?,
            _ => return Err(self.unknown()),
        })
    }

    fn has_form(&self, text: &str) -> Result<bool, Wrong> {
        Ok(match self.id {
            "detectable_content:number_placeholders" => {
                count(r"\[.*?\]", text)? >= self.number("num_placeholders")?
            }
            "detectable_content:postscript" => {
                let pattern = match strip(self.text("postscript_marker")?) {
                    // The two markers of IFEval's own list have spaces allowed in them; others are
                    // taken as they are.
                    "P.P.S" => r"(?m)\s*p\.\s?p\.\s?s.*$".to_owned(),
                    "P.S." => r"(?m)\s*p\.\s?s\..*$".to_owned(),
                    other => format!(r"(?m)\s*{}.*$", other.to_lowercase()),
                };
                count(&pattern, &text.to_lowercase())? > 0
            }
            "detectable_format:number_bullet_lists" => {
                // `**bold**` at the beginning of a line is no bullet.
                let stars = count(r"(?m)^\s*\*[^\*].*$", text)?;
                stars + count(r"(?m)^\s*-.*$", text)? == self.number("num_bullets")?
            }
            "detectable_format:constrained_response" => {
                let options = ["My answer is yes.", "My answer is no.", "My answer is maybe."];
                options.iter().any(|option| text.contains(option))
            }
            "detectable_format:number_highlighted_sections" => {
                highlights(text)? >= self.number("num_highlights")?
            }
            "detectable_format:multiple_sections" => {
                let name = strip(self.text("section_spliter")?);
                let found = count(&format!(r"\s?{name}\s?\d+\s?"), text)?;
                found >= self.number("num_sections")?
            }
            "detectable_format:json_format" => is_json(text),
            "detectable_format:title" => all(r"<<[^\n]+>>", text)?.iter().any(|title| {
                !strip(title.trim_start_matches('<').trim_end_matches('>')).is_empty()
            }),
            _ => return Err(self.unknown()),
        })
    }

    /// The paragraph with a number begins with a word, and there are as many as asked.
    fn begins_paragraph(&self, text: &str) -> Result<bool, Wrong> {
        let parts: Vec<&str> = text.split("\n\n").collect();
        // As IFEval has it: the number is looked up among all parts, but only filled ones are
        // counted.
        let count = parts.iter().filter(|part| !strip(part).is_empty()).count();
        let at = self.number("nth_paragraph")?;
        let Some(paragraph) = parts.get(at.wrapping_sub(1)).filter(|_| at <= count) else {
            return Ok(false);
        };
        let word = strip(paragraph).split(python::is_space).next().unwrap_or_default();
        let word = word.trim_start_matches('\'').trim_start_matches('"');
        let ends = |letter: char| ".,?!'\"".contains(letter);
        let word = word.split(ends).next().unwrap_or_default().to_lowercase();
        let asked = self.text("first_word")?.to_lowercase();
        Ok(!word.is_empty() && count == self.number("num_paragraphs")? && word == asked)
    }

    fn compared(&self, relation: &str, found: usize, asked: usize) -> Result<bool, Wrong> {
        match self.text(relation)? {
            "less than" => Ok(found < asked),
            "at least" => Ok(found >= asked),
            _ => Err(self.wrong(relation, "expected \"less than\" or \"at least\"")),
        }
    }

    fn text(&self, name: &str) -> Result<&str, Wrong> {
        self.given[name].as_str().ok_or_else(|| self.wrong(name, "expected a text"))
    }

    fn texts(&self, name: &str) -> Result<Vec<&str>, Wrong> {
        let list = self.given[name].as_array();
        let texts: Option<Vec<&str>> = list.and_then(|it| it.iter().map(Value::as_str).collect());
        texts.ok_or_else(|| self.wrong(name, "expected a list of texts"))
    }

    /// Numbers that went through tables are floats.
    fn number(&self, name: &str) -> Result<usize, Wrong> {
        let number = self.given[name].as_f64().filter(|it| *it >= 0.0 && it.fract() == 0.0);
        let wrong = || self.wrong(name, "expected a whole number from 0");
        number.map(|it| it as usize).ok_or_else(wrong)
    }

    fn wrong(&self, name: &str, what: &str) -> Wrong {
        ("kwargs".to_owned(), format!("{} of {}: {what}", name, self.id))
    }

    fn unknown(&self) -> Wrong {
        ("instruction_id_list".to_owned(), format!("{:?} is not known", self.id))
    }
}

/// `re.findall` of a pattern without groups that count.
fn all<'t>(pattern: &str, text: &'t str) -> Result<Vec<&'t str>, Wrong> {
    let wrong = |error| ("kwargs".to_owned(), format!("pattern {pattern:?}: {error}"));
    let regex = Regex::new(pattern).map_err(wrong)?;
    regex.find_iter(text).map(|found| Ok(found.map_err(wrong)?.as_str())).collect()
}

fn count(pattern: &str, text: &str) -> Result<usize, Wrong> {
    Ok(all(pattern, text)?.len())
}

fn two_responses(text: &str) -> bool {
    let parts: Vec<&str> = text.split("******").map(strip).collect();
    // Nothing before the first or after the last separator is fine; nothing between two is not.
    let inner = parts.get(1..parts.len() - 1).unwrap_or_default();
    let answers: Vec<&&str> = parts.iter().filter(|part| !part.is_empty()).collect();
    !inner.contains(&"") && answers.len() == 2 && answers[0] != answers[1]
}

/// Parts between lines of three stars; `None` if one within is empty.
fn paragraphs(text: &str) -> Result<Option<usize>, Wrong> {
    let regex = Regex::new(r"\s?\*\*\*\s?").expect("a valid pattern");
    let parts: Vec<&str> = regex.split(text).flatten().map(strip).collect();
    let inner = parts.get(1..parts.len() - 1).unwrap_or_default();
    let filled = parts.iter().filter(|part| !part.is_empty()).count();
    Ok((!inner.contains(&"")).then_some(filled))
}

fn highlights(text: &str) -> Result<usize, Wrong> {
    let single = all(r"\*[^\n\*]*\*", text)?;
    let double = all(r"\*\*[^\n\*]*\*\*", text)?;
    let filled = |text: &&str| !strip(text.trim_matches('*')).is_empty();
    Ok(single.iter().filter(|it| filled(it)).count()
        + double.iter().filter(|it| filled(it)).count())
}

fn is_json(text: &str) -> bool {
    let mut text = strip(text);
    // A chain of `removeprefix`: each is tried on what the one before left.
    for begin in ["```json", "```Json", "```JSON", "```"] {
        text = text.strip_prefix(begin).unwrap_or(text);
    }
    text = strip(text.strip_suffix("```").unwrap_or(text));
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What the harness's checkers say of these (`scripts/eval_golden.py`).
    #[test]
    fn texts_follow_what_the_harness_says_they_follow() {
        let cases: Value = serde_json::from_str(include_str!("../tests/golden.json")).unwrap();
        let cases = cases["instructions"].as_array().unwrap();
        assert!(cases.len() >= 60);
        for case in cases {
            let row = json!({"instruction_id_list": [case["id"]], "kwargs": [case["kwargs"]]});
            let found = followed(&row, case["text"].as_str().unwrap());
            let [strict, loose] = found.unwrap_or_else(|error| panic!("{case}: {error:?}"));
            assert_eq!(json!([strict[0], loose[0]]), case["followed"], "{case}");
        }
    }

    #[test]
    fn a_field_that_a_row_lacks_is_named() {
        let row = |id: &str| json!({"instruction_id_list": [id], "kwargs": [{}]});
        let error = followed(&row("keywords:existence"), "a").unwrap_err();
        assert_eq!(error.1, "keywords of keywords:existence: expected a list of texts");
        let error = followed(&row("keywords:other"), "a").unwrap_err();
        assert_eq!(error.0, "instruction_id_list");
        assert_eq!(followed(&json!({}), "a").unwrap_err().0, "instruction_id_list");
    }
}
