//! Parses rows of fine-tuning data: conversations. `preference` reads prompts with two answers; `turns`
//! the messages of both. Errors name the field.
//!
//! What a row says beside its turns is used, not dropped: a `system` text, an earlier `history` and
//! `tools`.

use bitnet_text::{Conversation, Message, Role};
use serde_json::Value;

pub use super::fault::FieldError;
use super::fault::{field_error, kind};
use super::reading::UnknownRole;
use super::turns::{Object, filled, present, text, turns};

/// The keys of a list of turns, in the order in which they are looked for.
pub(super) const LISTS: &[&str] =
    &["messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat"];
/// The keys of what the user says, where a row is one question and one answer.
pub(super) const QUESTIONS: &[&str] = &["instruction", "question", "prompt", "query"];
/// The keys of what stands behind the question: Alpaca's and Dolly's.
const CONTEXTS: &[&str] = &["input", "context"];
const ANSWERS: &[&str] = &["output", "response", "completion", "answer"];
const SYSTEMS: &[&str] = &["system", "system_prompt"];
const EXPECTED: &str = "messages, conversations (ShareGPT), or a question and its answer \
    (instruction and output, prompt and completion, question and answer, …)";

/// A conversation, and the key by which its shape was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedConversation {
    /// Such as `messages`, or `prompt, completion`.
    pub shape: String,
    /// What is trained.
    pub conversation: Conversation,
}

/// A conversation in one of the shapes in use: a list of messages under `messages` or `conversations`
/// (`ShareGPT`), or a question and its answer, such as Alpaca's `instruction`, `input` and `output`.
///
/// An answer without text or calls stays in the conversation and is not trained. What follows the last
/// answer is left out.
///
/// # Errors
/// If a role is unknown, if content is no text, if a question is empty, or if there is no answer.
pub fn conversation(
    object: &Object,
    unknown: UnknownRole,
) -> Result<ParsedConversation, FieldError> {
    let list = LISTS.iter().find_map(|key| Some((*key, present(object, key)?)));
    let (shape, field, mut messages) = match list {
        Some((key, list)) => (key.to_owned(), key, turns(key, list, unknown)?),
        None => question_and_answer(object, unknown)?,
    };
    let last = messages.iter().rposition(|message| message.role == Role::Assistant);
    let Some(last) = last else {
        let got = messages.last().map_or("an empty list", |last| last.role.name());
        let field = format!("{field}.{}", messages.len().saturating_sub(1));
        return Err(field_error(&field, "the assistant's turn at the end", got));
    };
    messages.truncate(last + 1);
    let messages = after_introduction(object, messages)?;
    let conversation = Conversation { messages, tools: tools(object)? };
    Ok(ParsedConversation { shape, conversation })
}

/// Whether a row holds a list of turns, or a question with its answer.
pub(super) fn has_turns(object: &Object) -> bool {
    let has = |keys: &[&'static str]| first_of(object, keys).is_some();
    has(LISTS) || has(QUESTIONS) && has(ANSWERS)
}

/// The first of some keys that the row has with a value.
pub(super) fn first_of(object: &Object, keys: &[&'static str]) -> Option<&'static str> {
    keys.iter().copied().find(|key| present(object, key).is_some())
}

/// A row of one question and one answer: its shape, the key of the answer, and the turns.
fn question_and_answer(
    object: &Object,
    unknown: UnknownRole,
) -> Result<(String, &'static str, Vec<Message>), FieldError> {
    let Some(question) = first_of(object, QUESTIONS) else {
        return Err(field_error("messages", EXPECTED, keys(object)));
    };
    let answer = first_of(object, ANSWERS);
    let answer = answer.or_else(|| ANSWERS.iter().copied().find(|key| object.contains_key(*key)));
    let answer = answer.unwrap_or("output");
    let mut messages = asked(object, question, unknown)?;
    messages.extend(said(object, answer, Role::Assistant, unknown)?);
    Ok((format!("{question}, {answer}"), answer, messages))
}

/// What the user says, with what stands behind it.
pub(super) fn asked(
    object: &Object,
    question: &'static str,
    unknown: UnknownRole,
) -> Result<Vec<Message>, FieldError> {
    let mut messages = said(object, question, Role::User, unknown)?;
    let context = first_of(object, CONTEXTS).filter(|key| object[*key] != "");
    if let (Some(key), [message]) = (context, messages.as_mut_slice()) {
        message.content = format!("{}\n\n{}", message.content, filled(key, &object[key])?);
    }
    Ok(messages)
}

/// The messages of a value: text of `role`, one message, or a list of messages.
pub(super) fn said(
    object: &Object,
    field: &str,
    role: Role,
    unknown: UnknownRole,
) -> Result<Vec<Message>, FieldError> {
    match object.get(field).unwrap_or(&Value::Null) {
        list @ Value::Array(_) => turns(field, list, unknown),
        turn @ Value::Object(_) => turns(field, &Value::Array(vec![turn.clone()]), unknown),
        value if role == Role::Assistant => {
            let mut answer = Message::new(role, text(field, value)?);
            answer.trained = !answer.content.trim().is_empty();
            Ok(vec![answer])
        }
        value => Ok(vec![Message::new(role, filled(field, value)?)]),
    }
}

/// The turns after what the line has before them: a `system` text and an earlier `history`.
pub(super) fn after_introduction(
    object: &Object,
    messages: Vec<Message>,
) -> Result<Vec<Message>, FieldError> {
    let mut all = Vec::with_capacity(messages.len() + 1);
    let begins_with_system = messages.first().is_some_and(|first| first.role == Role::System);
    if let Some(key) = first_of(object, SYSTEMS) {
        let text = text(key, &object[key])?;
        let repeats = begins_with_system && messages[0].content.trim() == text.trim();
        if begins_with_system && !repeats && !text.trim().is_empty() {
            let got = "another text than that of the first turn";
            return Err(field_error(key, "one text of the system", got));
        }
        if !begins_with_system && !text.trim().is_empty() {
            all.push(Message::new(Role::System, text));
        }
    }
    let history = history(object)?;
    if !history.is_empty() && begins_with_system {
        let got = "it before a turn of the system";
        return Err(field_error("history", "the turns before those of the line", got));
    }
    all.extend(history);
    all.extend(messages);
    Ok(all)
}

/// Earlier turns as pairs of question and answer.
fn history(object: &Object) -> Result<Vec<Message>, FieldError> {
    let expected = "a list of pairs of question and answer";
    let Some(value) = present(object, "history") else { return Ok(Vec::new()) };
    let Value::Array(pairs) = value else {
        return Err(field_error("history", expected, kind(value)));
    };
    let mut turns = Vec::with_capacity(2 * pairs.len());
    for (at, pair) in pairs.iter().enumerate() {
        let Some([question, answer]) = pair.as_array().map(Vec::as_slice) else {
            return Err(field_error(&format!("history.{at}"), expected, kind(pair)));
        };
        for (side, value, role) in [(0, question, Role::User), (1, answer, Role::Assistant)] {
            turns.push(Message::new(role, filled(&format!("history.{at}.{side}"), value)?));
        }
    }
    Ok(turns)
}

/// The tools that a template may describe: a list, or its JSON as text.
fn tools(object: &Object) -> Result<Vec<Value>, FieldError> {
    let expected = "a list of tools";
    match present(object, "tools") {
        None => Ok(Vec::new()),
        Some(Value::Array(tools)) => Ok(tools.clone()),
        Some(Value::String(json)) if json.trim().is_empty() => Ok(Vec::new()),
        Some(Value::String(json)) => serde_json::from_str(json)
            .map_err(|error| field_error("tools", expected, error.to_string())),
        Some(other) => Err(field_error("tools", expected, kind(other))),
    }
}

fn keys(object: &Object) -> String {
    let keys: Vec<_> = object.keys().take(8).map(|key| format!("{key:?}")).collect();
    if keys.is_empty() { "an empty object".to_owned() } else { keys.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{json_object, role_texts};
    use serde_json::json;

    fn parsed(value: Value) -> Result<Conversation, FieldError> {
        conversation(&json_object(value), UnknownRole::Error).map(|parsed| parsed.conversation)
    }

    fn wrong(value: Value) -> String {
        let FieldError { field, expected, got } = parsed(value).unwrap_err();
        format!("[{field}] expected {expected}, got {got}")
    }

    #[test]
    fn three_shapes_say_the_same() {
        let expected = [("user", "Add.\n\n1, 2"), ("assistant", "3")];
        let parsed = |value: Value| parsed(value).unwrap().messages;
        for value in [
            json!({"messages": [{"role": "user", "content": "Add.\n\n1, 2"},
                                {"role": "assistant", "content": "3"}]}),
            json!({"conversations": [{"from": "human", "value": "Add.\n\n1, 2"},
                                     {"from": "gpt", "value": "3"}]}),
            json!({"instruction": "Add.", "input": "1, 2", "output": "3"}),
        ] {
            assert_eq!(role_texts(&parsed(value)), expected);
        }
        let short = json!({"instruction": "Hi", "input": "", "output": "Ho", "system": "Be."});
        assert_eq!(
            role_texts(&parsed(short)),
            [("system", "Be."), ("user", "Hi"), ("assistant", "Ho")]
        );
    }

    #[test]
    fn every_mistake_in_a_conversation_is_named_by_its_field() {
        let turn = |role: &str, content: Value| json!({"role": role, "content": content});
        let of = |turns: Vec<Value>| wrong(json!({"messages": turns}));
        assert_eq!(
            of(vec![turn("robot", json!("x"))]),
            "[messages.0.role] expected \"system\", \"user\", \"assistant\" or \"tool\", or what \
             ShareGPT calls them, got \"robot\""
        );
        assert_eq!(
            of(vec![turn("user", Value::Null)]),
            "[messages.0.content] expected text, got null"
        );
        assert_eq!(
            of(vec![turn("user", json!(" \n"))]),
            "[messages.0.content] expected text, got an empty string"
        );
        assert_eq!(of(vec![]), "[messages] expected at least one message, got an empty list");
        assert_eq!(
            of(vec![turn("user", json!("x"))]),
            "[messages.0] expected the assistant's turn at the end, got user"
        );
        assert_eq!(of(vec![json!(3)]), "[messages.0] expected a message, got a number");
        assert_eq!(
            wrong(json!({"messages": "x"})),
            "[messages] expected a list of messages, got a string"
        );
        assert_eq!(
            wrong(json!({"text": "x"})),
            "[messages] expected messages, conversations (ShareGPT), or a question and its answer \
             (instruction and output, prompt and completion, question and answer, …), got \"text\""
        );
        assert_eq!(wrong(json!({"instruction": "x"})), "[output] expected text, got null");
        assert_eq!(
            wrong(json!({"conversations": [{"from": 3, "value": "x"}]})),
            "[conversations.0.from] expected \"system\", \"user\", \"assistant\" or \"tool\", or \
             what ShareGPT calls them, got a number"
        );
    }

    #[test]
    fn what_stands_beside_the_turns_is_used() {
        let line = json!({
            "system": "Be brief.", "history": [["a", "b"]], "instruction": "c", "output": "d"
        });
        let all = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")];
        let parsed = parsed(line).unwrap();
        assert_eq!(role_texts(&parsed.messages)[..4], all);
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        let two = json!({"system": "s", "messages": [turn("system", "t"), turn("user", "u"),
                         turn("assistant", "a")]});
        assert_eq!(
            wrong(two),
            "[system] expected one text of the system, got another text than that of the first turn"
        );
    }

    #[test]
    fn turns_say_whether_they_are_trained() {
        let answer = |more: Value| {
            let mut turn = json!({"role": "assistant", "content": "a"});
            turn.as_object_mut().unwrap().extend(json_object(more));
            let line = json!({"messages": [{"role": "user", "content": "u"}, turn]});
            parsed(line).map(|parsed| parsed.messages[1].clone())
        };
        for (more, trained) in [
            (json!({}), true),
            (json!({"weight": 0}), false),
            (json!({"weight": 1.0}), true),
            (json!({"train": false}), false),
            (json!({"weight": null, "train": true}), true),
            (json!({"content": " "}), false),
            (json!({"content": null, "tool_calls": [{}]}), true),
        ] {
            assert_eq!(answer(more.clone()).unwrap().trained, trained, "{more}");
        }
        let error = answer(json!({"weight": 0.5})).unwrap_err();
        assert_eq!((error.field.as_str(), error.got.as_str()), ("messages.1.weight", "0.5"));
    }

    #[test]
    fn parts_and_other_fields_reach_the_template() {
        let line = json!({"tools": [{"name": "clock"}], "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}], "name": "n"},
            {"role": "assistant", "content": "c", "reasoning_content": "r"}
        ]});
        let Conversation { messages, tools } = parsed(line).unwrap();
        assert_eq!(tools, [json!({"name": "clock"})]);
        assert_eq!(messages[0].content, "ab");
        assert!(messages[0].fields["content"].is_array() && messages[0].fields["name"] == "n");
        assert_eq!(messages[1].fields["reasoning_content"], "r");
        let image = json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]});
        assert_eq!(
            wrong(image),
            "[messages.0.content.0] expected a part of type \"text\", got \"image\""
        );
    }

    #[test]
    fn the_shapes_of_public_sets_say_the_same() {
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        for (shape, line) in [
            ("messages", json!({"messages": [turn("User", "q"), turn("Assistant", "a")]})),
            (
                "messages",
                json!({"messages": [{"from": "human", "text": "q"}, {"from": "bard", "value": "a"}]}),
            ),
            (
                "conversations",
                json!({"messages": null, "conversations": [turn("user", "q"), turn("model", "a")]}),
            ),
            (
                "messages",
                json!({"messages": [turn("user", "q"), turn("assistant", "a"), turn("user", "!")]}),
            ),
            (
                "messages",
                json!({"messages": json!([turn("user", "q"), turn("assistant", "a")]).to_string()}),
            ),
            (
                "prompt, completion",
                json!({"prompt": [turn("user", "q")], "completion": [turn("assistant", "a")]}),
            ),
            ("prompt, response", json!({"prompt": "q", "response": "a"})),
            ("instruction, response", json!({"instruction": "q", "context": "", "response": "a"})),
            ("question, answer", json!({"question": "q", "answer": "a", "id": 3})),
        ] {
            let parsed = conversation(&json_object(line.clone()), UnknownRole::Error).unwrap();
            assert_eq!(parsed.shape, shape, "{line}");
            assert_eq!(
                role_texts(&parsed.conversation.messages),
                [("user", "q"), ("assistant", "a")]
            );
        }
        let orca = json!({"system_prompt": "s", "question": "q", "response": 4});
        let all = [("system", "s"), ("user", "q"), ("assistant", "4")];
        assert_eq!(role_texts(&parsed(orca).unwrap().messages), all);
    }

    #[test]
    fn calls_and_thoughts_of_share_gpt_reach_the_template() {
        let line = json!({"tools": "[]", "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": "{\"name\": \"clock\", \"arguments\": {}}"},
            {"from": "observation", "value": "seven"},
            {"from": "gpt", "value": [{"type": "reasoning", "value": "r"}, {"type": "text", "value": "a"}]}
        ]});
        let messages = parsed(line).unwrap().messages;
        assert_eq!(messages[1].fields["tool_calls"][0]["function"]["name"], "clock");
        assert!(messages[1].trained && messages[2].role == Role::Tool);
        assert_eq!(
            (&*messages[3].content, &messages[3].fields["reasoning_content"]),
            ("a", &json!("r"))
        );
    }

    #[test]
    fn a_turn_of_an_unknown_role_is_left_out_where_that_is_asked_for() {
        let line = json!({"messages": [{"role": "narrator", "content": "x"},
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
        let kept =
            conversation(&json_object(line.clone()), UnknownRole::Drop).unwrap().conversation;
        assert_eq!(role_texts(&kept.messages), [("user", "q"), ("assistant", "a")]);
        assert!(wrong(line).contains("got \"narrator\""));
    }
}
