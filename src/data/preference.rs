//! Parses lines of preferences: a prompt with a chosen and a rejected answer. Errors name the field.

use bitnet_text::{Message, Role};
use serde_json::Value;

use super::conversation::{
    FieldError, OPENAI, Object, after_introduction, field_error, filled, text, turns,
};
use super::json_lines::kind;

/// A prompt with two answers to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreferenceExample {
    /// The messages before the answer; the last is the user's.
    pub prompt: Vec<Message>,
    /// The better answer.
    pub chosen: Message,
    /// The worse one.
    pub rejected: Message,
}

impl PreferenceExample {
    /// Whether there is nothing to prefer: an answer is empty, or both say the same.
    pub fn is_tie(&self) -> bool {
        let [chosen, rejected] = [&self.chosen, &self.rejected].map(|one| one.content.trim());
        chosen == rejected || chosen.is_empty() || rejected.is_empty()
    }
}

/// A preference: `prompt`, `chosen` and `rejected`, each text or a list of messages. The lists of
/// `chosen` and `rejected` may repeat the prompt, and must if there is no `prompt`.
///
/// # Errors
/// As [`super::conversation::conversation`]; also if the prompts differ.
pub fn preference(object: &Object) -> Result<PreferenceExample, FieldError> {
    let prompt = object.get("prompt").map(|value| messages_of("prompt", value, Role::User));
    let prompt = prompt.transpose()?;
    let (before_chosen, chosen) = answer(object, "chosen", prompt.as_deref())?;
    let (before_rejected, rejected) = answer(object, "rejected", prompt.as_deref())?;
    if !say_the_same(&before_chosen, &before_rejected) {
        let got = "another one than that of `chosen`";
        return Err(field_error("rejected", "the same prompt before both answers", got));
    }
    let last = before_chosen.last().map(|last| last.role);
    let prompt = after_introduction(object, before_chosen)?;
    match last {
        Some(Role::User | Role::Tool) => Ok(PreferenceExample { prompt, chosen, rejected }),
        Some(other) => Err(field_error("prompt", "the user's turn at its end", other.name())),
        None => Err(field_error("prompt", "what the user said", "nothing")),
    }
}

/// The prompt and the answer that `field` holds.
fn answer(
    object: &Object,
    field: &str,
    prompt: Option<&[Message]>,
) -> Result<(Vec<Message>, Message), FieldError> {
    let value = object.get(field).unwrap_or(&Value::Null);
    let mut messages = messages_of(field, value, Role::Assistant)?;
    let last = messages.pop().filter(|last| last.role == Role::Assistant);
    let Some(last) = last else {
        return Err(field_error(field, "the assistant's answer at its end", "another turn"));
    };
    match prompt {
        None => Ok((messages, last)),
        Some(prompt) if messages.is_empty() => Ok((prompt.to_vec(), last)),
        // The list may hold more than the prompt, such as the system's text before it.
        Some(prompt) if messages.len() >= prompt.len() => {
            let more = messages.len() - prompt.len();
            if say_the_same(&messages[more..], prompt) {
                Ok((messages, last))
            } else {
                Err(field_error(field, "the turns of `prompt` before the answer", "other turns"))
            }
        }
        Some(_) => {
            Err(field_error(field, "the turns of `prompt` before the answer", "fewer turns"))
        }
    }
}

/// Whether two lists hold the same turns, whitespace around the texts aside.
fn say_the_same(a: &[Message], b: &[Message]) -> bool {
    let same =
        |(a, b): (&Message, &Message)| a.role == b.role && a.content.trim() == b.content.trim();
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// The messages of a value: text of `role`, one message, or a list of messages.
fn messages_of(field: &str, value: &Value, role: Role) -> Result<Vec<Message>, FieldError> {
    match value {
        Value::String(_) if role == Role::Assistant => {
            Ok(vec![Message::new(role, text(field, value)?)])
        }
        Value::String(_) => Ok(vec![Message::new(role, filled(field, value)?)]),
        Value::Object(_) => turns(field, &Value::Array(vec![value.clone()]), OPENAI),
        Value::Array(_) => turns(field, value, OPENAI),
        other => Err(field_error(field, "text or a list of messages", kind(other))),
    }
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

    #[test]
    fn a_prompt_may_stand_alone_or_before_both_answers() {
        let user = json!({"role": "user", "content": "q"});
        let said = |text: &str| json!({"role": "assistant", "content": text});
        let expected = PreferenceExample {
            prompt: vec![Message::new(Role::User, "q")],
            chosen: Message::new(Role::Assistant, "a"),
            rejected: Message::new(Role::Assistant, "b"),
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

    #[test]
    fn what_stands_beside_the_prompt_comes_before_it() {
        let pair = json!({"system": "s", "history": [["a", "b"]], "prompt": "c",
                          "chosen": "d", "rejected": "e"});
        let expected = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")];
        assert_eq!(plain(&preference(&object(pair)).unwrap().prompt), expected);
    }

    #[test]
    fn a_prompt_may_say_more_before_the_answers_and_ties_are_told() {
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        let side =
            |text: &str| json!([turn("system", "s"), turn("user", "q "), turn("assistant", text)]);
        let longer = json!({"prompt": "q", "chosen": side("a"), "rejected": side("b")});
        let parsed = preference(&object(longer)).unwrap();
        assert_eq!(plain(&parsed.prompt), [("system", "s"), ("user", "q ")]);
        assert!(!parsed.is_tie());
        for (chosen, rejected) in [("a", "a "), ("a", ""), ("", "b")] {
            let line = json!({"prompt": "q", "chosen": chosen, "rejected": rejected});
            assert!(preference(&object(line)).unwrap().is_tie());
        }
    }
}
