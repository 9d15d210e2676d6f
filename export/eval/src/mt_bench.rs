//! MT-bench's questions of several turns, answered in a model's own chat template at FastChat's
//! temperatures.

use std::path::Path;

use bitnet_engine::SamplerSettings;
use bitnet_text::{ChatTemplate, Conversation, Message, Role};
use serde_json::Value;

use crate::benchmark::{AskedModel, stop_ids};
use crate::data::read_file;
use crate::error::EvalError;
use crate::generation::{PromptRequest, continue_prompts};
use crate::progress::ProgressCallback;
use crate::python;

/// Temperatures of FastChat by category.
const TEMPERATURES: [(&str, f32); 8] = [
    ("writing", 0.7),
    ("roleplay", 0.7),
    ("extraction", 0.0),
    ("math", 0.0),
    ("coding", 0.0),
    ("reasoning", 0.0),
    ("stem", 0.1),
    ("humanities", 0.1),
];
/// Of any other category.
const OTHER_TEMPERATURE: f32 = 0.7;

/// A question as FastChat's `question.jsonl` has it.
#[derive(Clone, Debug, PartialEq)]
pub struct MtQuestion {
    /// `question_id`, a number or a text.
    pub id: Value,
    /// Decides the temperature and the judge's prompt.
    pub category: String,
    /// What the user says, turn after turn; at least one.
    pub turns: Vec<String>,
}

/// Texts turn by turn, as a line of FastChat's `model_answer` and `reference_answer` has them in
/// its first choice.
#[derive(Clone, Debug, PartialEq)]
pub struct MtAnswer {
    /// `question_id`.
    pub id: Value,
    /// At least one.
    pub turns: Vec<String>,
}

impl MtQuestion {
    /// Reads `question.jsonl`.
    ///
    /// # Errors
    /// A row without an id, a category or turns.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, EvalError> {
        let file = read_file(path)?;
        let one = |(at, row): (usize, &Value)| {
            let wrong = |field: &str, what: &str| file.wrong(at, field, what);
            let category = row["category"].as_str();
            Ok(Self {
                id: id(row).ok_or_else(|| wrong("question_id", EXPECTED_ID))?,
                category: category.ok_or_else(|| wrong("category", "expected a text"))?.to_owned(),
                turns: texts(&row["turns"]).ok_or_else(|| wrong("turns", EXPECTED_TURNS))?,
            })
        };
        file.rows.iter().enumerate().map(one).collect()
    }

    /// How freely it is answered; 0 is greedy.
    pub fn temperature(&self) -> f32 {
        let known = TEMPERATURES.iter().find(|(category, _)| *category == self.category);
        known.map_or(OTHER_TEMPERATURE, |(_, temperature)| *temperature)
    }
}

impl MtAnswer {
    /// Reads lines of answers.
    ///
    /// # Errors
    /// A row without an id or without a first choice of turns.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, EvalError> {
        let file = read_file(path)?;
        let one = |(at, row): (usize, &Value)| {
            let wrong = |field: &str, what: &str| file.wrong(at, field, what);
            let id = id(row).ok_or_else(|| wrong("question_id", EXPECTED_ID))?;
            let turns = texts(&row["choices"][0]["turns"]);
            Ok(Self { id, turns: turns.ok_or_else(|| wrong("choices[0].turns", EXPECTED_TURNS))? })
        };
        file.rows.iter().enumerate().map(one).collect()
    }
}

const EXPECTED_ID: &str = "expected a number or a text";
const EXPECTED_TURNS: &str = "expected a list of at least one text";

fn id(row: &Value) -> Option<Value> {
    row.get("question_id").filter(|id| id.is_number() || id.is_string()).cloned()
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let items = value.as_array().filter(|items| !items.is_empty())?;
    items.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// Answers questions together, turn after turn; each answer is part of the next turn's prompt.
/// `progress` gets the answers done and those in all.
///
/// # Errors
/// A conversation that fills the model's context, [`EvalError::Interrupted`].
pub fn answer_questions(
    asked: AskedModel,
    questions: &[MtQuestion],
    max_tokens: usize,
    progress: ProgressCallback<'_>,
) -> Result<Vec<Vec<String>>, EvalError> {
    let AskedModel { model, tokenizer, chat, threads } = asked;
    let template = chat.ok_or_else(|| EvalError::setting("MT-bench", "needs a chat template"))?;
    let mut stops = stop_ids(model, tokenizer);
    stops.extend(template.stop_ids(tokenizer));
    let all: usize = questions.iter().map(|question| question.turns.len()).sum();
    let mut answers: Vec<Vec<String>> = vec![Vec::new(); questions.len()];
    let mut done = 0;
    for turn in 0..questions.iter().map(|question| question.turns.len()).max().unwrap_or(0) {
        let (mut at, mut prompts) = (Vec::new(), Vec::new());
        for (number, question) in questions.iter().enumerate() {
            if turn < question.turns.len() {
                at.push(number);
                prompts.push(prompt(asked, template, question, &answers[number], max_tokens)?);
            }
        }
        let mut told = |own, _| progress(done + own, all);
        let texts = continue_prompts(model, tokenizer, threads, &prompts, &stops, &mut told)?;
        done += texts.len();
        for (number, text) in at.into_iter().zip(texts) {
            answers[number].push(python::strip(&text).to_owned());
        }
    }
    Ok(answers)
}

/// The prompt for the answer after those that a question has already.
fn prompt(
    asked: AskedModel,
    template: &ChatTemplate,
    question: &MtQuestion,
    answers: &[String],
    max_tokens: usize,
) -> Result<PromptRequest, EvalError> {
    let turn = answers.len();
    let mut messages = Vec::new();
    for (asked, answer) in question.turns.iter().zip(answers) {
        messages.push(Message::new(Role::User, asked));
        messages.push(Message::new(Role::Assistant, answer));
    }
    messages.push(Message::new(Role::User, &question.turns[turn]));
    let prompt = template.prompt(asked.tokenizer, &Conversation::from(messages))?;
    let context = asked.model.spec().context_length();
    let room = context.saturating_sub(prompt.len());
    if room == 0 {
        let what = format!("turn {} takes all of the model's context of {context}", turn + 1);
        return Err(EvalError::setting(&format!("MT-bench question {}", question.id), what));
    }
    // Random numbers of its own for each turn, so that an answer depends on no other question.
    let sampler = SamplerSettings {
        temperature: question.temperature(),
        seed: turn as u64,
        ..SamplerSettings::default()
    };
    Ok(PromptRequest { prompt, until: Vec::new(), max_tokens: max_tokens.min(room), sampler })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::random_model;
    use bitnet_engine::ThreadPool;
    use serde_json::json;
    use std::ops::ControlFlow;

    fn question(id: u64, category: &str, turns: &[&str]) -> MtQuestion {
        let turns = turns.iter().map(ToString::to_string).collect();
        MtQuestion { id: json!(id), category: category.to_owned(), turns }
    }

    #[test]
    fn answers_depend_on_no_other_question_and_on_the_turn_before() {
        let ((model, tokenizer), chat) = (random_model(512), ChatTemplate::b158());
        let threads = ThreadPool::new(1).unwrap();
        let (chat, tokenizer) = (Some(&chat), &tokenizer);
        let asked = AskedModel { model: &model, tokenizer, chat, threads: &threads };
        let mut seen = Vec::new();
        let mut ask = |questions: &[MtQuestion]| {
            answer_questions(asked, questions, 6, &mut |done, all| {
                seen.push((done, all));
                ControlFlow::Continue(())
            })
        };
        let all = [
            question(81, "writing", &["where is the key", "and the box"]),
            question(101, "math", &["the key", "and now"]),
            question(7, "own", &["box"]),
        ];
        let together = ask(&all).unwrap();
        let counts: Vec<usize> = together.iter().map(Vec::len).collect();
        assert_eq!(counts, [2, 2, 1]);
        assert_eq!(seen.last(), Some(&(5, 5)));
        for (question, answers) in all.iter().zip(&together) {
            let alone = answer_questions(asked, std::slice::from_ref(question), 6, &mut |_, _| {
                ControlFlow::Continue(())
            });
            assert_eq!(&alone.unwrap()[0], answers);
        }
        let long = question(9, "math", &[&"the key ".repeat(600)]);
        let error = answer_questions(asked, &[long], 6, &mut |_, _| ControlFlow::Continue(()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("question 9: turn 1 takes all of the model's context"), "{error}");
    }

    #[test]
    fn temperatures_follow_the_category() {
        let of = |category| question(1, category, &["a"]).temperature();
        assert_eq!([of("writing"), of("math"), of("stem"), of("own")], [0.7, 0.0, 0.1, 0.7]);
    }

    #[test]
    fn files_of_fastchat_are_read_and_broken_rows_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("question.jsonl");
        let write = |text: &str| fs_err::write(&path, text).unwrap();
        write("{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"a\", \"b\"]}\n");
        assert_eq!(MtQuestion::read_all(&path).unwrap(), [question(81, "writing", &["a", "b"])]);
        write("{\"question_id\": 81, \"category\": \"writing\", \"turns\": []}\n");
        let error = MtQuestion::read_all(&path).unwrap_err().to_string();
        assert!(error.contains("question.jsonl:1 [turns]: expected a list"), "{error}");
        write("{\"question_id\": 1, \"choices\": [{\"index\": 0, \"turns\": [\"x\"]}]}\n");
        let answers = MtAnswer::read_all(&path).unwrap();
        assert_eq!((&answers[0].id, answers[0].turns[0].as_str()), (&json!(1), "x"));
        write("{\"question_id\": 1, \"choices\": []}\n");
        assert!(MtAnswer::read_all(&path).unwrap_err().to_string().contains("choices[0].turns"));
    }
}
