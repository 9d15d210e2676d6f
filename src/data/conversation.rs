//! Parses lines of fine-tuning data: conversations, and prompts with a chosen and a rejected
//! answer. Errors name the field.

use std::path::PathBuf;

use bitnet_text::{Message, Role};
use serde_json::{Map, Value};

use super::document::SourceLocation;
use super::error::DataError;
use super::json_lines::kind;

/// A prompt with two answers to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreferenceExample {
    /// The messages before the answer; the last is the user's.
    pub prompt: Vec<Message>,
    /// The better answer.
    pub chosen: String,
    /// The worse one.
    pub rejected: String,
}

/// A wrong field of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Dotted path of the field.
    pub field: String,
    /// The expected value.
    pub expected: &'static str,
    /// The actual value.
    pub got: String,
}

impl FieldError {
    pub(crate) fn at(self, location: &SourceLocation) -> DataError {
        let Self { field, expected, got } = self;
        let path = PathBuf::from(&*location.source);
        DataError::Field { path, line: location.line, field, expected, got }
    }
}

type Object = Map<String, Value>;

/// A conversation in one of the three shapes in use: `messages` (role, content), `ShareGPT`'s
/// `conversations` (from, value), or Alpaca's `instruction`, `input` and `output`.
///
/// # Errors
/// If a role is unknown, if content is not text or is empty, or if the last turn is not the
/// assistant's.
pub fn conversation(object: &Object) -> Result<Vec<Message>, FieldError> {
    let (field, messages) = if let Some(list) = object.get("messages") {
        ("messages", turns("messages", list, OPENAI)?)
    } else if let Some(list) = object.get("conversations") {
        ("conversations", turns("conversations", list, SHARE_GPT)?)
    } else if object.contains_key("instruction") {
        ("output", alpaca(object)?)
    } else {
        let expected = "messages, conversations (ShareGPT) or instruction and output (Alpaca)";
        return Err(field_error("messages", expected, keys(object)));
    };
    match messages.last().map(|last| last.role) {
        Some(Role::Assistant) => Ok(messages),
        Some(other) => {
            let field = format!("{field}.{}", messages.len() - 1);
            Err(field_error(&field, "the assistant's turn at the end", other.name()))
        }
        None => Err(field_error(field, "at least one turn", "an empty list")),
    }
}

/// A preference: `prompt`, `chosen` and `rejected`, each text or a list of messages. The lists of
/// `chosen` and `rejected` may repeat the prompt, and must if there is no `prompt`.
///
/// # Errors
/// As [`conversation`]; also if the prompts differ or the answers do not.
pub fn preference(object: &Object) -> Result<PreferenceExample, FieldError> {
    let prompt = object.get("prompt").map(|value| messages_of("prompt", value, Role::User));
    let prompt = prompt.transpose()?;
    let (before_chosen, chosen) = answer(object, "chosen", prompt.as_deref())?;
    let (before_rejected, rejected) = answer(object, "rejected", prompt.as_deref())?;
    if before_chosen != before_rejected {
        let got = "another one than that of `chosen`";
        return Err(field_error("rejected", "the same prompt before both answers", got));
    }
    if chosen.trim() == rejected.trim() {
        return Err(field_error(
            "rejected",
            "an answer that differs from `chosen`",
            "the same text",
        ));
    }
    match before_chosen.last().map(|last| last.role) {
        Some(Role::User) => Ok(PreferenceExample { prompt: before_chosen, chosen, rejected }),
        Some(other) => Err(field_error("prompt", "the user's turn at its end", other.name())),
        None => Err(field_error("prompt", "what the user said", "nothing")),
    }
}

/// The prompt and the answer that `field` holds.
fn answer(
    object: &Object,
    field: &str,
    prompt: Option<&[Message]>,
) -> Result<(Vec<Message>, String), FieldError> {
    let value = object.get(field).unwrap_or(&Value::Null);
    let mut messages = messages_of(field, value, Role::Assistant)?;
    let last = messages.pop().filter(|last| last.role == Role::Assistant);
    let Some(last) = last else {
        return Err(field_error(field, "the assistant's answer at its end", "another turn"));
    };
    match prompt {
        None => Ok((messages, last.content)),
        Some(prompt) if messages.is_empty() || messages == prompt => {
            Ok((prompt.to_vec(), last.content))
        }
        Some(_) => {
            Err(field_error(field, "the turns of `prompt` before the answer", "other turns"))
        }
    }
}

/// The messages of a value: text of `role`, one message, or a list of messages.
fn messages_of(field: &str, value: &Value, role: Role) -> Result<Vec<Message>, FieldError> {
    match value {
        Value::String(_) => Ok(vec![Message { role, content: content(field, value)? }]),
        Value::Object(_) => turns(field, &Value::Array(vec![value.clone()]), OPENAI),
        Value::Array(_) => turns(field, value, OPENAI),
        other => Err(field_error(field, "text or a list of messages", kind(other))),
    }
}

/// The keys of a message, and the names of its roles.
#[derive(Clone, Copy)]
struct MessageKeys {
    role: &'static str,
    content: &'static str,
    words: &'static [(&'static str, Role)],
    expected: &'static str,
}

const OPENAI: MessageKeys = MessageKeys {
    role: "role",
    content: "content",
    words: &[("system", Role::System), ("user", Role::User), ("assistant", Role::Assistant)],
    expected: "\"system\", \"user\" or \"assistant\"",
};
const SHARE_GPT: MessageKeys = MessageKeys {
    role: "from",
    content: "value",
    words: &[
        ("system", Role::System),
        ("human", Role::User),
        ("user", Role::User),
        ("gpt", Role::Assistant),
        ("chatgpt", Role::Assistant),
        ("assistant", Role::Assistant),
    ],
    expected: "\"system\", \"human\" or \"gpt\"",
};

fn turns(field: &str, list: &Value, keys: MessageKeys) -> Result<Vec<Message>, FieldError> {
    let Value::Array(list) = list else {
        return Err(field_error(field, "a list of messages", kind(list)));
    };
    if list.is_empty() {
        return Err(field_error(field, "at least one message", "an empty list"));
    }
    list.iter().enumerate().map(|(at, turn)| message(field, at, turn, keys)).collect()
}

fn message(field: &str, at: usize, turn: &Value, keys: MessageKeys) -> Result<Message, FieldError> {
    let Value::Object(turn) = turn else {
        return Err(field_error(&format!("{field}.{at}"), "a message", kind(turn)));
    };
    let place = |key: &str| format!("{field}.{at}.{key}");
    let role = turn.get(keys.role).unwrap_or(&Value::Null);
    let word = role.as_str().unwrap_or_default();
    let Some((_, role)) = keys.words.iter().find(|(known, _)| *known == word) else {
        let got = if word.is_empty() { kind(role).to_owned() } else { format!("{word:?}") };
        return Err(field_error(&place(keys.role), keys.expected, got));
    };
    if at > 0 && *role == Role::System {
        return Err(field_error(
            &place(keys.role),
            "\"system\" in the first message only",
            "it here",
        ));
    }
    let value = turn.get(keys.content).unwrap_or(&Value::Null);
    Ok(Message { role: *role, content: content(&place(keys.content), value)? })
}

fn content(field: &str, value: &Value) -> Result<String, FieldError> {
    match value {
        Value::String(text) if text.trim().is_empty() => {
            Err(field_error(field, "text", "an empty string"))
        }
        Value::String(text) => Ok(text.clone()),
        other => Err(field_error(field, "text", kind(other))),
    }
}

fn alpaca(object: &Object) -> Result<Vec<Message>, FieldError> {
    let field = |name: &str| content(name, object.get(name).unwrap_or(&Value::Null));
    let mut instruction = field("instruction")?;
    let input = object.get("input").filter(|input| **input != Value::Null && *input != "");
    if let Some(input) = input {
        instruction = format!("{instruction}\n\n{}", content("input", input)?);
    }
    let mut messages = Vec::with_capacity(3);
    if object.get("system").is_some_and(|system| *system != Value::Null && *system != "") {
        messages.push(Message { role: Role::System, content: field("system")? });
    }
    messages.push(Message { role: Role::User, content: instruction });
    messages.push(Message { role: Role::Assistant, content: field("output")? });
    Ok(messages)
}

fn keys(object: &Object) -> String {
    let keys: Vec<_> = object.keys().take(8).map(|key| format!("{key:?}")).collect();
    if keys.is_empty() { "an empty object".to_owned() } else { keys.join(", ") }
}

fn field_error(field: &str, expected: &'static str, got: impl Into<String>) -> FieldError {
    FieldError { field: field.to_owned(), expected, got: got.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        let Value::Object(object) = value else { panic!("an object") };
        object
    }

    fn plain(messages: &[Message]) -> Vec<(&str, &str)> {
        messages.iter().map(|one| (one.role.name(), one.content.as_str())).collect()
    }

    fn wrong(value: Value) -> String {
        let FieldError { field, expected, got } = conversation(&object(value)).unwrap_err();
        format!("[{field}] expected {expected}, got {got}")
    }

    #[test]
    fn three_shapes_say_the_same() {
        let expected = [("user", "Add.\n\n1, 2"), ("assistant", "3")];
        for value in [
            json!({"messages": [{"role": "user", "content": "Add.\n\n1, 2"},
                                {"role": "assistant", "content": "3"}]}),
            json!({"conversations": [{"from": "human", "value": "Add.\n\n1, 2"},
                                     {"from": "gpt", "value": "3"}]}),
            json!({"instruction": "Add.", "input": "1, 2", "output": "3"}),
        ] {
            assert_eq!(plain(&conversation(&object(value)).unwrap()), expected);
        }
        let short = json!({"instruction": "Hi", "input": "", "output": "Ho", "system": "Be."});
        assert_eq!(
            plain(&conversation(&object(short)).unwrap()),
            [("system", "Be."), ("user", "Hi"), ("assistant", "Ho")]
        );
    }

    #[test]
    fn every_mistake_in_a_conversation_is_named_by_its_field() {
        let turn = |role: &str, content: Value| json!({"role": role, "content": content});
        let of = |turns: Vec<Value>| wrong(json!({"messages": turns}));
        assert_eq!(
            of(vec![turn("robot", json!("x"))]),
            "[messages.0.role] expected \"system\", \"user\" or \"assistant\", got \"robot\""
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
            of(vec![turn("user", json!("x")), turn("system", json!("y"))]),
            "[messages.1.role] expected \"system\" in the first message only, got it here"
        );
        assert_eq!(
            wrong(json!({"messages": "x"})),
            "[messages] expected a list of messages, got a string"
        );
        assert_eq!(
            wrong(json!({"text": "x"})),
            "[messages] expected messages, conversations (ShareGPT) or instruction and output \
             (Alpaca), got \"text\""
        );
        assert_eq!(wrong(json!({"instruction": "x"})), "[output] expected text, got null");
        assert_eq!(
            wrong(json!({"conversations": [{"from": "bot", "value": "x"}]})),
            "[conversations.0.from] expected \"system\", \"human\" or \"gpt\", got \"bot\""
        );
    }

    #[test]
    fn a_prompt_may_stand_alone_or_before_both_answers() {
        let user = json!({"role": "user", "content": "q"});
        let said = |text: &str| json!({"role": "assistant", "content": text});
        let expected = PreferenceExample {
            prompt: vec![Message { role: Role::User, content: "q".into() }],
            chosen: "a".into(),
            rejected: "b".into(),
        };
        for value in [
            json!({"prompt": "q", "chosen": "a", "rejected": "b"}),
            json!({"prompt": [user], "chosen": [said("a")], "rejected": said("b")}),
            json!({"chosen": [user, said("a")], "rejected": [user, said("b")]}),
            json!({"prompt": "q", "chosen": [user, said("a")], "rejected": [user, said("b")]}),
        ] {
            assert_eq!(preference(&object(value)).unwrap(), expected);
        }
    }

    #[test]
    fn every_mistake_in_a_preference_is_named_by_its_field() {
        let wrong = |value: Value| {
            let FieldError { field, expected, got } = preference(&object(value)).unwrap_err();
            format!("[{field}] expected {expected}, got {got}")
        };
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        assert_eq!(
            wrong(json!({"prompt": "q", "chosen": "a", "rejected": "a "})),
            "[rejected] expected an answer that differs from `chosen`, got the same text"
        );
        assert_eq!(
            wrong(json!({"chosen": [turn("user", "q"), turn("assistant", "a")],
                         "rejected": [turn("user", "other"), turn("assistant", "b")]})),
            "[rejected] expected the same prompt before both answers, got another one than that \
             of `chosen`"
        );
        assert_eq!(
            wrong(json!({"prompt": [turn("user", "q"), turn("assistant", "x")],
                         "chosen": "a", "rejected": "b"})),
            "[prompt] expected the user's turn at its end, got assistant"
        );
        assert_eq!(
            wrong(json!({"prompt": "q", "chosen": [turn("user", "a")], "rejected": "b"})),
            "[chosen] expected the assistant's answer at its end, got another turn"
        );
        assert_eq!(
            wrong(json!({"prompt": "q", "chosen": "a"})),
            "[rejected] expected text or a list of messages, got null"
        );
        assert_eq!(
            wrong(json!({"chosen": "a", "rejected": "b"})),
            "[prompt] expected what the user said, got nothing"
        );
    }
}
