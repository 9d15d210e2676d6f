//! The requests about the rows of a task, with examples before each; as text or as a conversation.

use bitnet_text::{ChatTemplate, Conversation, Message, Role, Tokenizer};
use serde_json::{Value, json};

use crate::document::{RowDocument, documents};
use crate::error::EvalError;
use crate::prompt::{RowRequest, Shot, question, request, shot, shots};
use crate::task::Task;
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
            None => request(task, row, &before).map_err(wrong),
            Some(chat) => chat.request(messages(task, row, &before, chat).map_err(wrong)?),
        }
    };
    rows.iter().zip(chosen).enumerate().map(one).collect()
}

impl ChatPrompts<'_> {
    fn request(self, messages: Vec<Message>) -> Result<RowRequest, EvalError> {
        let ids = self.template.prompt(self.tokenizer, &Conversation::from(messages))?;
        Ok(RowRequest::Prompt { text: self.tokenizer.decode_with_special(&ids), ids })
    }
}

/// The description as the system's turn, examples and question as the user's and the assistant's.
fn messages(
    task: &Task,
    row: &RowDocument,
    shots: &[&Shot],
    chat: ChatPrompts,
) -> Result<Vec<Message>, String> {
    let system = Some(row.description.clone()).filter(|text| !text.is_empty());
    let mut all: Vec<Message> =
        system.into_iter().map(|text| Message::new(Role::System, text)).collect();
    let question = question(row)?;
    if !chat.fewshot_as_multiturn {
        let before: String = shots.iter().map(|shot| shot.text(task)).collect();
        all.push(Message::new(Role::User, before + question));
        return Ok(all);
    }
    for shot in shots {
        all.push(Message::new(Role::User, shot.question.clone()));
        if !shot.answer.is_empty() {
            all.push(Message::new(Role::Assistant, shot.answer.clone()));
        }
    }
    all.push(Message::new(Role::User, question));
    Ok(all)
}

/// A request as the harness logs it.
pub(crate) fn arguments(request: &RowRequest) -> Value {
    match request {
        RowRequest::Score(pairs) => json!(pairs),
        RowRequest::Rolling(text)
        | RowRequest::Generate(text)
        | RowRequest::Prompt { text, .. } => json!([[text]]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Selection;

    /// Contexts, continuations and drawn examples are the texts that the harness wrote for the same
    /// rows (`scripts/eval_prompts.py`).
    #[test]
    fn the_prompts_are_those_of_the_harness() {
        let cases: Value = serde_json::from_str(include_str!("../tests/prompts.json")).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 13);
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
            let theirs = case["asked"].as_array().unwrap();
            let all: Vec<usize> = (0..theirs.len()).collect();
            let documents = documents(&task, &data.rows, &all).unwrap();
            let requests = row_requests(&task, &data, &documents, None).unwrap();
            let asked: Vec<Value> = requests.iter().map(arguments).collect();
            assert_eq!(&asked, theirs, "{name}");
        }
    }
}
