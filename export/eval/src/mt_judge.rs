//! What a judge is asked about an answer of MT-bench, from FastChat's own `judge_prompts.jsonl`, and
//! the rating in what it says. One answer is graded at a time, not two against each other.

use std::path::Path;

use fancy_regex::Regex;
use serde_json::{Number, Value};

use crate::data::read_file;
use crate::error::EvalError;
use crate::mt_bench::MtQuestion;

/// Categories whose answers are compared with a reference (`NEED_REF_CATS` of FastChat).
const WITH_REFERENCE: [&str; 3] = ["math", "reasoning", "coding"];
/// The prompts for the first turn and for both, without and with a reference.
const NAMES: [[&str; 2]; 2] =
    [["single-v1", "single-v1-multi-turn"], ["single-math-v1", "single-math-v1-multi-turn"]];

/// The prompts of a judge.
#[derive(Clone, Debug)]
pub struct JudgePrompts {
    all: Vec<JudgePrompt>,
}

#[derive(Clone, Debug)]
struct JudgePrompt {
    name: &'static str,
    system: String,
    template: String,
}

/// What a judge is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgeRequest {
    /// The name of the prompt.
    pub prompt: &'static str,
    /// The system's message.
    pub system: String,
    /// The user's.
    pub user: String,
}

impl MtQuestion {
    /// Whether a judge sees a reference beside the answer.
    pub fn has_reference(&self) -> bool {
        WITH_REFERENCE.contains(&self.category.as_str())
    }
}

impl JudgePrompts {
    /// Reads `judge_prompts.jsonl`; prompts for pairs of answers in it are passed over.
    ///
    /// # Errors
    /// A prompt that is missing, asks for no `[[rating]]` or has no text.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let file = read_file(path)?;
        let mut all = Vec::new();
        for name in NAMES.as_flattened() {
            let found = file.rows.iter().position(|row| row["name"] == *name);
            let missing = || file.wrong(0, "name", format!("no prompt of the file is {name:?}"));
            let at = found.ok_or_else(missing)?;
            let row = &file.rows[at];
            if row["output_format"] != "[[rating]]" {
                return Err(file.wrong(at, "output_format", "expected [[rating]]"));
            }
            let text = |field: &str| {
                let text = row[field].as_str().map(str::to_owned);
                text.ok_or_else(|| file.wrong(at, field, "expected a text"))
            };
            let template = text("prompt_template")?;
            all.push(JudgePrompt { name, system: text("system_prompt")?, template });
        }
        Ok(Self { all })
    }

    /// What is asked about the answer of a turn, from 1; `reference` has a text for each turn.
    ///
    /// # Errors
    /// A reference that is missing, a prompt with a field that is not known.
    pub fn request(
        &self,
        question: &MtQuestion,
        answers: &[String],
        reference: Option<&[String]>,
        turn: usize,
    ) -> Result<JudgeRequest, EvalError> {
        let refuse =
            |what: String| EvalError::setting(&format!("MT-bench question {}", question.id), what);
        let name = NAMES[usize::from(question.has_reference())][usize::from(turn > 1)];
        let prompt = self.all.iter().find(|prompt| prompt.name == name).expect("read");
        let mut fields = vec![
            ("question", question.turns[0].as_str()),
            ("answer", answers[0].as_str()),
            ("question_1", question.turns[0].as_str()),
            ("answer_1", answers[0].as_str()),
        ];
        if turn > 1 {
            fields.extend([("question_2", &*question.turns[1]), ("answer_2", &*answers[1])]);
        }
        if question.has_reference() {
            let missing =
                || refuse("has no reference answer; name a file with --references".into());
            let reference = reference.ok_or_else(missing)?;
            fields.push(("ref_answer_1", &reference[0]));
            fields.extend(reference.get(1).map(|text| ("ref_answer_2", text.as_str())));
        }
        let user = filled(&prompt.template, &fields)
            .map_err(|what| refuse(format!("prompt {name:?}: {what}")))?;
        Ok(JudgeRequest { prompt: name, system: prompt.system.clone(), user })
    }
}

/// `template.format(**fields)`: a text that is put in is not looked through again.
fn filled(template: &str, fields: &[(&str, &str)]) -> Result<String, String> {
    let (mut made, mut rest) = (String::new(), template);
    while let Some(at) = rest.find(['{', '}']) {
        made += &rest[..at];
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            made += brace;
            rest = after;
            continue;
        }
        let field = rest.split_once('}').filter(|_| brace == "{");
        let (name, after) = field.ok_or("has a brace without its other one")?;
        let value = fields.iter().find(|(known, _)| *known == name);
        made += value.ok_or_else(|| format!("has a field {{{name}}} that is not known"))?.1;
        rest = after;
    }
    Ok(made + rest)
}

/// The rating that a judge gives, `[[5]]` or else `[5]`; `None` where it gives none.
pub fn judged_rating(judgment: &str) -> Option<Number> {
    let found = [r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]"].iter().find_map(|pattern| {
        let regex = Regex::new(pattern).expect("a valid pattern");
        let text = regex.captures(judgment).ok()??.get(1)?.as_str().to_owned();
        Some(text)
    })?;
    // `5.` is a number for Python and none in JSON.
    let value = match found.parse::<u64>() {
        Ok(whole) => Value::from(whole),
        Err(_) => Value::from(found.parse::<f64>().ok()?),
    };
    value.as_number().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn prompts(change: impl Fn(&mut Value)) -> Result<JudgePrompts, EvalError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("judge_prompts.jsonl");
        let texts = [
            "Q {question} A {answer} {{x}}",
            "{question_1}|{answer_1}|{question_2}|{answer_2}",
            "{question} R {ref_answer_1} A {answer}",
            "{ref_answer_1}|{ref_answer_2}|{question_2}|{answer_2}",
        ];
        let rows = NAMES.as_flattened().iter().zip(texts).map(|(name, text)| {
            let mut row = json!({"name": name, "type": "single", "system_prompt": "Judge.",
                "prompt_template": text, "output_format": "[[rating]]"});
            change(&mut row);
            row.to_string()
        });
        fs_err::write(&path, rows.collect::<Vec<_>>().join("\n")).unwrap();
        JudgePrompts::read(&path)
    }

    fn question(category: &str) -> MtQuestion {
        let turns = vec!["one {answer}".to_owned(), "two".to_owned()];
        MtQuestion { id: json!(81), category: category.to_owned(), turns }
    }

    #[test]
    fn a_judge_sees_question_answer_and_reference() {
        let prompts = prompts(|_| ()).unwrap();
        let answers = ["a".to_owned(), "b".to_owned()];
        let reference = ["r".to_owned(), "s".to_owned()];
        let user = |category: &str, turn| {
            let made = prompts.request(&question(category), &answers, Some(&reference), turn);
            let made = made.unwrap();
            assert_eq!(made.system, "Judge.");
            (made.prompt, made.user)
        };
        assert_eq!(user("writing", 1), ("single-v1", "Q one {answer} A a {x}".to_owned()));
        let both = ("single-v1-multi-turn", "one {answer}|a|two|b".to_owned());
        assert_eq!(user("writing", 2), both);
        assert_eq!(user("math", 1), ("single-math-v1", "one {answer} R r A a".to_owned()));
        assert_eq!(user("coding", 2), ("single-math-v1-multi-turn", "r|s|two|b".to_owned()));
        let error = prompts.request(&question("math"), &answers, None, 1).unwrap_err().to_string();
        assert!(error.contains("MT-bench question 81: has no reference answer"), "{error}");
    }

    #[test]
    fn prompts_that_cannot_be_used_are_named() {
        let error = |change: &dyn Fn(&mut Value)| prompts(change).unwrap_err().to_string();
        let renamed = error(&|row| row["name"] = "other".into());
        assert!(renamed.contains("no prompt of the file is \"single-v1\""), "{renamed}");
        let pair = error(&|row| row["output_format"] = "[[A]]".into());
        assert!(pair.contains(":1 [output_format]: expected [[rating]]"), "{pair}");
        let unknown = prompts(|row| row["prompt_template"] = "{other}".into()).unwrap();
        let answers = ["a".to_owned()];
        let made = unknown.request(&question("stem"), &answers, None, 1).unwrap_err();
        assert!(made.to_string().contains("has a field {other} that is not known"), "{made}");
        assert!(filled("a } b", &[]).is_err() && filled("a { b", &[]).is_err());
    }

    #[test]
    fn ratings_are_found_as_fastchat_finds_them() {
        for (judgment, rating) in [
            ("Good. Rating: [[7]]", Some(json!(7))),
            ("[[8.5]] and [[2]]", Some(json!(8.5))),
            ("Rating: [9]", Some(json!(9))),
            ("[3] but [[4]]", Some(json!(4))),
            ("[[5.]]", Some(json!(5.0))),
            ("Rating: 10", None),
            ("[[ten]]", None),
        ] {
            assert_eq!(judged_rating(judgment).map(Value::from), rating, "{judgment}");
        }
    }
}
