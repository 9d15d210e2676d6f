//! The requests about the rows of a task, with examples before each; as text or as a conversation.

use bitnet_text::{ChatTemplate, Conversation, Message, Role, TextError, Tokenizer};
use serde_json::{Value, json};

use crate::document::{RowDocument, documents};
use crate::error::EvalError;
use crate::functions::ResultsFunction;
use crate::prompt::{ChatPrompt, RowRequest, Shot, questions, request, shot, shots};
use crate::task::{OutputType, Task};
use crate::task_data::TaskData;

/// Prompts as conversations, in a model's chat template.
#[derive(Clone, Copy, Debug)]
pub struct ChatPrompts<'a> {
    /// How turns become tokens.
    pub template: &'a ChatTemplate,
    /// The model's.
    pub tokenizer: &'a Tokenizer,
    /// Whether examples are turns of their own; otherwise they stand in the one turn of the user.
    pub fewshot_as_multiturn: bool,
}

/// The requests about each row, with its examples.
pub(crate) fn row_requests(
    task: &Task,
    data: &TaskData,
    rows: &[RowDocument],
    chat: Option<ChatPrompts>,
) -> Result<Vec<RowRequest>, EvalError> {
    // Without a split for examples the rows themselves are the pool.
    let pool = data.pool.as_ref().unwrap_or(&data.rows);
    let chosen = shots(task, &data.rows, rows.len(), pool)?;
    let mut used: Vec<usize> = chosen.iter().flatten().copied().collect();
    // Each example is rendered once, however many rows draw it.
    used.sort_unstable();
    used.dedup();
    let mut examples = Vec::with_capacity(used.len());
    for (at, example) in used.iter().zip(&documents(task, pool, &used)?) {
        examples.push(shot(example).map_err(|what| pool.wrong(*at, "example", what))?);
    }
    let example = |at: &usize| &examples[used.binary_search(at).expect("used")];
    let one = |(at, (row, chosen)): (usize, (&RowDocument, Vec<usize>))| {
        let before: Vec<&Shot> = chosen.iter().map(example).collect();
        let wrong = |what| data.rows.wrong(at, "prompt", what);
        match chat {
            // A whole text is scored as it is: there is no question to answer.
            Some(chat) if task.output != OutputType::LoglikelihoodRolling => {
                let asked = questions(task, row).map_err(wrong)?;
                chat.request(task, &turns(task, row, &before, chat), asked)
            }
            _ => request(task, row, &before).map_err(wrong),
        }
    };
    rows.iter().zip(chosen).enumerate().map(one).collect()
}

impl ChatPrompts<'_> {
    /// The questions of a row after the turns before them.
    fn request(
        self,
        task: &Task,
        (turns, shots): &(Vec<Message>, String),
        questions: Vec<(&str, Vec<&str>)>,
    ) -> Result<RowRequest, EvalError> {
        let mut prompts = Vec::with_capacity(questions.len());
        for (question, answers) in questions {
            let mut messages = turns.clone();
            messages.push(Message::new(Role::User, format!("{shots}{question}")));
            let answers: Vec<String> = answers.into_iter().map(str::to_owned).collect();
            prompts.push((self.ids(messages)?, answers));
        }
        if task.output == OutputType::GenerateUntil {
            return Ok(RowRequest::Prompt(self.prompt(prompts.remove(0).0)));
        }
        // A template may leave the space before an answer to the answer. Choices are scored after
        // the published prompt, which ends in that space.
        let space = self.tokenizer.encode(self.template.before_answer())?;
        let open = |ids: Vec<u32>| self.prompt([ids.as_slice(), &space].concat());
        let prompts = prompts.into_iter().map(|(ids, answers)| (open(ids), answers));
        Ok(RowRequest::ScoreAnswers(prompts.collect()))
    }

    fn prompt(self, ids: Vec<u32>) -> ChatPrompt {
        ChatPrompt { text: self.tokenizer.decode_with_special(&ids), ids }
    }

    fn ids(self, mut messages: Vec<Message>) -> Result<Vec<u32>, EvalError> {
        let made = self.template.prompt(self.tokenizer, &Conversation::from(messages.clone()));
        let has_system = messages[0].role == Role::System;
        if !has_system || !matches!(made, Err(TextError::ChatTemplate { .. })) {
            return Ok(made?);
        }
        // Some templates take no system's turn; the harness then leaves it out too.
        messages.remove(0);
        Ok(self.template.prompt(self.tokenizer, &Conversation::from(messages))?)
    }
}

/// The description as the system's turn, examples as the user's and the assistant's; and what stands
/// in the user's last turn before the question.
fn turns(
    task: &Task,
    row: &RowDocument,
    shots: &[&Shot],
    chat: ChatPrompts,
) -> (Vec<Message>, String) {
    let system = Some(row.description.clone()).filter(|text| !text.is_empty());
    let mut all: Vec<Message> =
        system.into_iter().map(|text| Message::new(Role::System, text)).collect();
    if !chat.fewshot_as_multiturn {
        return (all, shots.iter().map(|shot| shot.text(task)).collect());
    }
    for shot in shots {
        all.push(Message::new(Role::User, shot.question.clone()));
        if !shot.answer.is_empty() {
            all.push(Message::new(Role::Assistant, shot.answer.clone()));
        }
    }
    (all, String::new())
}

/// A request of a task as the harness logs it.
pub(crate) fn arguments(task: &Task, request: &RowRequest) -> Value {
    let beside = task.process_results.and_then(ResultsFunction::scored_beside);
    match request {
        RowRequest::Score(pairs) => json!(pairs),
        RowRequest::ScoreAnswers(prompts) => {
            let pairs = prompts.iter().flat_map(|(prompt, answers)| {
                answers.iter().map(|answer| json!([prompt.text, answer]))
            });
            pairs.collect()
        }
        RowRequest::Rolling(text)
        | RowRequest::Generate(text)
        | RowRequest::Prompt(ChatPrompt { text, .. }) => match beside {
            Some(after) => json!([[text], [text, after]]),
            None => json!([[text]]),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{BosPolicy, RequestEncoder};
    use crate::fixtures::random_model;
    use crate::registry::Selection;
    use crate::task_file;
    use std::path::Path;

    /// Contexts, continuations and drawn examples are the texts that the harness wrote for the same
    /// rows (`scripts/eval_prompts.py`).
    #[test]
    fn the_prompts_are_those_of_the_harness() {
        let cases: Value = serde_json::from_str(include_str!("../tests/prompts.json")).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 13);
        let (_, tokenizer) = random_model(64);
        let source = "{{ bos_token }}{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content ~ '\\n' }}\
                      {% endfor %}{{ '<assistant> ' if add_generation_prompt }}";
        let template = ChatTemplate::jinja(Path::new("t.jinja"), source).unwrap();
        for case in cases {
            let dir = tempfile::tempdir().unwrap();
            let name = case["task"].as_str().unwrap();
            let task = Selection::of(&[name.to_owned()]).unwrap().tasks.remove(0);
            let task = task.with_num_fewshot(case["shots"].as_u64().unwrap() as usize);
            let folder = dir.path().join(&task.dataset_path);
            fs_err::create_dir_all(&folder).unwrap();
            for (split, rows) in case["splits"].as_object().unwrap() {
                fs_err::write(folder.join(format!("{split}.json")), rows.to_string()).unwrap();
            }
            let data = TaskData::read(&task, dir.path()).unwrap();
            let asked = |key: &str, chat: Option<ChatPrompts>| {
                let count = case[key].as_array().unwrap().len();
                let all: Vec<usize> = (0..count).collect();
                let documents = documents(&task, &data.rows, &all).unwrap();
                let requests = row_requests(&task, &data, &documents, chat).unwrap();
                let asked: Vec<Value> = requests.iter().map(|it| arguments(&task, it)).collect();
                assert_eq!(case[key], Value::from(asked), "{name}: {key}");
            };
            asked("asked", None);
            let chat = |fewshot_as_multiturn| {
                Some(ChatPrompts {
                    template: &template,
                    tokenizer: &tokenizer,
                    fewshot_as_multiturn,
                })
            };
            asked("chats", chat(false));
            asked("turns", chat(true));
        }
    }

    fn chat_messages(template: &ChatTemplate, tokenizer: &Tokenizer) -> Result<String, EvalError> {
        let chat = ChatPrompts { template, tokenizer, fewshot_as_multiturn: false };
        let messages = [(Role::System, "Answer."), (Role::User, "Who?")];
        let messages = messages.map(|(role, text)| Message::new(role, text)).to_vec();
        Ok(tokenizer.decode_with_special(&chat.ids(messages)?))
    }

    #[test]
    fn a_template_without_a_systems_turn_gets_none() {
        let (_, tokenizer) = random_model(64);
        let source = "{{ raise_exception('no system') if messages[0].role == 'system' }}\
                      {% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
        let refuses = ChatTemplate::jinja(Path::new("t.jinja"), source).unwrap();
        let made = chat_messages(&refuses, &tokenizer).unwrap();
        assert!(made.ends_with("<user>Who?") && !made.contains("Answer."), "{made}");
        let takes = source.split_once("}}").unwrap().1;
        let takes = ChatTemplate::jinja(Path::new("t.jinja"), takes).unwrap();
        let made = chat_messages(&takes, &tokenizer).unwrap();
        assert!(made.ends_with("<system>Answer.<user>Who?"), "{made}");
    }

    /// The published prompt of 2B4T ends in a space; this crate's ends before it.
    #[test]
    fn choices_follow_the_published_prompt_of_2b4t() {
        let (_, tokenizer) = random_model(64);
        let config = json!({"task": "t", "output_type": "multiple_choice", "test_split": "test",
            "doc_to_text": "q", "doc_to_target": "a", "doc_to_choice": "c"});
        let task = task_file::task(Path::new("t.yaml"), config.as_object().unwrap().clone());
        let (task, template) = (task.unwrap(), ChatTemplate::b158());
        let chat =
            ChatPrompts { template: &template, tokenizer: &tokenizer, fewshot_as_multiturn: false };
        let turns = (Vec::new(), "before ".to_owned());
        let made = chat.request(&task, &turns, vec![("where?", vec!["box", "key"])]).unwrap();
        let RowRequest::ScoreAnswers(prompts) = &made else { panic!("scored") };
        let prompt = &prompts[0].0;
        assert!(
            prompt.text.ends_with("User: before where?<|eot_id|>Assistant: "),
            "{}",
            prompt.text
        );
        let encoder =
            RequestEncoder { tokenizer: &tokenizer, bos: BosPolicy::Auto, max_length: 64 };
        let pairs = encoder.answers(&prompt.ids, &["box", "key"]).unwrap();
        assert!(tokenizer.decode_with_special(&pairs[0].context).ends_with("Assistant:"));
        assert_eq!(tokenizer.decode(&pairs[0].continuation), " box");
        assert_eq!(tokenizer.decode(&pairs[1].continuation), " key");
    }
}
