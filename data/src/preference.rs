//! Parses rows of preferences: a prompt with a chosen and a rejected answer. Errors name the field.

use bitnet_text::{Message, Role};
use serde_json::Value;

use super::conversation::{LISTS, QUESTIONS, after_introduction, asked, first_of, list, said};
use super::fault::{FieldError, field_error, kind};
use super::reading::UnknownRole;
use super::turns::{Object, TurnRules, turns};

/// The keys of both answers, in the order in which they are looked for.
const SIDES: &[[&str; 2]] = &[
    ["chosen", "rejected"],
    ["chosen_response", "rejected_response"],
    ["chosen_messages", "rejected_messages"],
    ["response_j", "response_k"],
    ["accepted", "rejected"],
    ["preferred", "dispreferred"],
    ["better", "worse"],
    ["win", "lose"],
];
/// The keys of a list of answers with scores, of the text of one and of its score.
const SCORED: &[&str] = &["completions", "responses", "answers", "candidates"];
const SCORED_TEXTS: &[&str] = &["response", "text", "content", "completion", "answer"];
const SCORES: &[&str] = &["overall_score", "score", "rating", "fine-grained_score", "pm_score"];

/// A prompt with two answers to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreferenceExample {
    /// Such as `prompt, chosen, rejected`.
    pub shape: String,
    /// The messages before both answers; the last is the user's.
    pub prompt: Vec<Message>,
    /// The better answer: the assistant's turn where the sides part, and what follows it.
    pub chosen: Vec<Message>,
    /// The worse one.
    pub rejected: Vec<Message>,
}

impl PreferenceExample {
    /// Whether there is nothing to prefer: an answer is empty, or both say the same.
    pub fn is_tie(&self) -> bool {
        let empty = |side: &[Message]| side.iter().all(|turn| turn.content.trim().is_empty());
        say_the_same(&self.chosen, &self.rejected) || empty(&self.chosen) || empty(&self.rejected)
    }
}

/// Whether a row holds two answers, or a list of scored ones, whatever else is in it.
pub(super) fn has_two_answers(object: &Object) -> bool {
    let both = |keys: &[&str; 2]| keys.iter().all(|key| object.contains_key(*key));
    let scored = |key: &&str| {
        let list = object.get(*key).and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_object))
    };
    SIDES.iter().any(both) || SCORED.iter().any(scored)
}

/// A preference: a prompt and two answers, each text or a list of messages. The lists of `chosen`
/// and `rejected` may repeat the prompt, and must if there is none. Of a list of answers with
/// scores, the best stands against the worst.
///
/// # Errors
/// As [`super::conversation::conversation`]; also if the prompts differ.
pub fn preference(object: &Object, unknown: UnknownRole) -> Result<PreferenceExample, FieldError> {
    preference_by(object, &TurnRules::new(unknown))
}

pub(super) fn preference_by(
    object: &Object,
    rules: &TurnRules,
) -> Result<PreferenceExample, FieldError> {
    if object.get("label").is_some_and(Value::is_boolean) {
        let expected =
            "two answers to one prompt: a label on one answer is for KTO, which is not trained";
        return Err(field_error("label", expected, "one answer with a label"));
    }
    // A question before a list: rows of UltraFeedback have `prompt` beside `messages`.
    let asked_in = first_of(object, QUESTIONS).or_else(|| list(object).map(|(key, _)| key));
    let prompt = match asked_in {
        Some(key) if LISTS.contains(&key) => turns(key, &object[key], rules)?,
        Some(key) => dialogue_prompt(asked(object, key, rules)?),
        None => Vec::new(),
    };
    let (shape, [chosen, rejected]) = sides(object, rules)?;
    let [chosen_key, rejected_key] = shape;
    let chosen = whole(&prompt, chosen, chosen_key)?;
    let rejected = whole(&prompt, rejected, rejected_key)?;
    let (prompt, chosen, rejected) = parted(chosen, rejected, rejected_key)?;
    let last = prompt.last().map(|last| last.role);
    let prompt = after_introduction(object, prompt)?;
    let keys = [asked_in, Some(chosen_key), Some(rejected_key).filter(|key| *key != chosen_key)];
    let shape = keys.into_iter().flatten().collect::<Vec<_>>().join(", ");
    match last {
        Some(Role::User | Role::Tool) => Ok(PreferenceExample { shape, prompt, chosen, rejected }),
        Some(other) => Err(field_error("prompt", "the user's turn at its end", other.name())),
        None => Err(field_error("prompt", "what the user said", "nothing")),
    }
}

/// The turns of both sides with their keys.
fn sides(
    object: &Object,
    rules: &TurnRules,
) -> Result<([&'static str; 2], [Vec<Message>; 2]), FieldError> {
    let has = |key: &&str| object.contains_key(*key);
    // A row with one key alone gives the error of that shape, which names what is missing.
    let both = SIDES.iter().find(|keys| keys.iter().all(&has));
    let keys = both.or_else(|| SIDES.iter().find(|keys| keys.iter().any(&has)));
    if let (None, Some(key)) = (keys, first_of(object, SCORED)) {
        return Ok(([key; 2], best_and_worst(key, &object[key])?));
    }
    let keys = *keys.unwrap_or(&SIDES[0]);
    let [chosen, rejected] = keys.map(|key| side(object, key, rules));
    Ok((keys, [chosen?, rejected?]))
}

fn side(object: &Object, key: &str, rules: &TurnRules) -> Result<Vec<Message>, FieldError> {
    match object.get(key).unwrap_or(&Value::Null) {
        Value::String(text) => Ok(dialogue(text).unwrap_or_else(|| vec![answer(text)])),
        Value::Array(_) | Value::Object(_) => said(object, key, Role::Assistant, rules),
        other => Err(field_error(key, "text or a list of messages", kind(other))),
    }
}

fn answer(text: &str) -> Message {
    Message::new(Role::Assistant, text)
}

/// The turns of a prompt that is a dialogue as text and ends where the assistant answers next.
fn dialogue_prompt(prompt: Vec<Message>) -> Vec<Message> {
    let [message] = &*prompt else { return prompt };
    let open = message.content.trim_end().strip_suffix("\n\nAssistant:");
    let Some(mut turns) = open.and_then(|open| dialogue(&format!("{open}\n\nAssistant:"))) else {
        return prompt;
    };
    turns.pop();
    turns
}

/// A dialogue as text: turns after `Human:` and `Assistant:`, each after a blank line.
fn dialogue(text: &str) -> Option<Vec<Message>> {
    let rest = text.trim_start().strip_prefix("Human:")?;
    let mut turns = Vec::new();
    for part in rest.split("\n\nHuman:") {
        let (asked, said) = part.split_once("\n\nAssistant:")?;
        turns.push(Message::new(Role::User, asked.trim()));
        turns.extend(said.split("\n\nAssistant:").map(|said| answer(said.trim())));
    }
    Some(turns)
}

/// The answers with the highest and the lowest score. Equal ones are a tie.
fn best_and_worst(key: &str, list: &Value) -> Result<[Vec<Message>; 2], FieldError> {
    let expected = "a list of two or more answers, each with a text and a score";
    let wrong = |got: &str| field_error(key, expected, got);
    let list = list.as_array().ok_or_else(|| wrong(kind(list)))?;
    let mut scored = Vec::with_capacity(list.len());
    for item in list {
        let item = item.as_object().ok_or_else(|| wrong(kind(item)))?;
        let text = SCORED_TEXTS.iter().find_map(|key| item.get(*key)?.as_str());
        let number = |value: &Value| value.as_f64().or_else(|| value.as_str()?.parse().ok());
        let score = SCORES.iter().find_map(|key| number(item.get(*key)?));
        // The first of an order is the best.
        let score = score.or_else(|| Some(-number(item.get("rank")?)?));
        // One that nobody scored says nothing.
        scored.extend(text.zip(score.filter(|score| score.is_finite())));
    }
    let order = |a: &&(&str, f64), b: &&(&str, f64)| a.1.total_cmp(&b.1);
    let (worst, best) = (scored.iter().min_by(order), scored.iter().max_by(order));
    let (Some(worst), Some(best)) = (worst, best) else { return Err(wrong("none with a score")) };
    // With equal scores the two would be the first and the last of the list, which nobody
    // preferred.
    let worst = if worst.1 < best.1 { worst } else { best };
    Ok([vec![answer(best.0)], vec![answer(worst.0)]])
}

/// All turns of a side: after the prompt, unless they repeat it.
fn whole(prompt: &[Message], side: Vec<Message>, key: &str) -> Result<Vec<Message>, FieldError> {
    let expected = "the turns of `prompt` before the answer";
    if side.last().is_none_or(|last| last.role != Role::Assistant) {
        return Err(field_error(key, "the assistant's answer at its end", "another turn"));
    }
    // A side that begins with the answer does not repeat the prompt.
    if side[0].role == Role::Assistant {
        return Ok([prompt, &side].concat());
    }
    if side.len() <= prompt.len() {
        return Err(field_error(key, expected, "fewer turns"));
    }
    // It may hold more than the prompt, such as the system's text before it.
    let repeats = side.windows(prompt.len().max(1)).any(|turns| say_the_same(turns, prompt));
    if prompt.is_empty() || repeats {
        return Ok(side);
    }
    Err(field_error(key, expected, "other turns"))
}

/// The prompt that both sides share, and what each says from the turn on in which they part.
type Parted = (Vec<Message>, Vec<Message>, Vec<Message>);

fn parted(
    mut chosen: Vec<Message>,
    mut rejected: Vec<Message>,
    key: &str,
) -> Result<Parted, FieldError> {
    let same = |(a, b): &(&Message, &Message)| is_same(a, b);
    let shared = chosen.iter().zip(&rejected).take_while(same).count();
    // At least one turn is left on each side, also where one says all that the other does.
    let shared = shared.min(chosen.len() - 1).min(rejected.len() - 1);
    if [&chosen, &rejected].iter().any(|side| side[shared].role != Role::Assistant) {
        let got = "another one than that of `chosen`";
        return Err(field_error(key, "the same prompt before both answers", got));
    }
    let rejected = rejected.split_off(shared);
    let answers = chosen.split_off(shared);
    Ok((chosen, answers, rejected))
}

fn is_same(a: &Message, b: &Message) -> bool {
    a.role == b.role && a.content.trim() == b.content.trim()
}

/// Whether two lists hold the same turns, whitespace around the texts aside.
fn say_the_same(a: &[Message], b: &[Message]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{json_object, role_texts};
    use serde_json::json;

    fn parsed(value: Value) -> PreferenceExample {
        preference(&json_object(value), UnknownRole::Error).unwrap()
    }

    fn all(one: &PreferenceExample) -> Vec<(&str, &str)> {
        [role_texts(&one.prompt), role_texts(&one.chosen), role_texts(&one.rejected)].concat()
    }

    #[test]
    fn a_prompt_may_stand_alone_or_before_both_answers() {
        let user = json!({"role": "user", "content": "q"});
        let said = |text: &str| json!({"role": "assistant", "content": text});
        let expected = [("user", "q"), ("assistant", "a"), ("assistant", "b")];
        for value in [
            json!({"prompt": "q", "chosen": "a", "rejected": "b"}),
            json!({"prompt": [user], "chosen": [said("a")], "rejected": said("b")}),
            json!({"chosen": [user, said("a")], "rejected": [user, said("b")]}),
            json!({"prompt": "q", "chosen": [user, said("a")], "rejected": [user, said("b")]}),
        ] {
            assert_eq!(all(&parsed(value)), expected);
        }
    }

    #[test]
    fn every_mistake_in_a_preference_is_named_by_its_field() {
        let wrong = |value: Value| {
            let FieldError { field, expected, got } =
                preference(&json_object(value), UnknownRole::Error).unwrap_err();
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
        assert_eq!(role_texts(&parsed(pair).prompt), expected);
    }

    #[test]
    fn a_prompt_may_say_more_before_the_answers_and_ties_are_reported() {
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        let side =
            |text: &str| json!([turn("system", "s"), turn("user", "q "), turn("assistant", text)]);
        let longer = json!({"prompt": "q", "chosen": side("a"), "rejected": side("b")});
        let parsed_longer = parsed(longer);
        assert_eq!(role_texts(&parsed_longer.prompt), [("system", "s"), ("user", "q ")]);
        assert!(!parsed_longer.is_tie());
        for (chosen, rejected) in [("a", "a "), ("a", ""), ("", "b")] {
            let line = json!({"prompt": "q", "chosen": chosen, "rejected": rejected});
            assert!(parsed(line).is_tie());
        }
    }

    #[test]
    fn a_prompt_may_be_a_dialogue_as_text_and_answers_may_have_ranks() {
        let prompt = "\n\nHuman: p\n\nAssistant: b\n\nHuman: q\n\nAssistant:";
        let expected = [
            ("user", "p"),
            ("assistant", "b"),
            ("user", "q"),
            ("assistant", "a"),
            ("assistant", "c"),
        ];
        for line in [
            json!({"prompt": prompt, "chosen": "a", "rejected": "c"}),
            json!({"prompt": prompt, "accepted": "a", "rejected": "c"}),
            json!({"prompt": prompt, "better": "a", "worse": "c"}),
            json!({"input": prompt, "answers": [{"answer": "c", "rank": 2}, {"answer": "a", "rank": 1}]}),
        ] {
            assert_eq!(all(&parsed(line.clone())), expected, "{line}");
        }
    }

    #[test]
    fn the_shapes_of_public_sets_say_the_same() {
        let said = |role: &str, text: &str| json!({"from": role, "value": text});
        let expected = [("user", "q"), ("assistant", "a"), ("assistant", "b")];
        for value in [
            json!({"question": "q", "response_j": "a", "response_k": "b"}),
            json!({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}),
            json!({"conversations": [said("human", "q")], "chosen": said("gpt", "a"), "rejected": said("gpt", "b")}),
            json!({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}),
            json!({"prompt": "q", "chosen_response": "a", "rejected_response": "b"}),
            json!({"instruction": "q", "completions": [
                {"response": "m", "overall_score": 2}, {"response": "b", "overall_score": "1"},
                {"response": "a", "overall_score": 3.5}, {"response": "x", "overall_score": null}]}),
        ] {
            assert_eq!(all(&parsed(value)), expected);
        }
        let tie = json!({"prompt": "q", "completions": [{"text": "a", "score": 1}, {"text": "b", "score": 1}]});
        assert!(parsed(tie).is_tie());
        let kto = json!({"prompt": "q", "completion": "a", "label": true});
        let error = preference(&json_object(kto), UnknownRole::Error).unwrap_err();
        assert!(error.field == "label" && error.expected.contains("KTO"));
    }

    #[test]
    fn sides_may_part_before_their_last_answer() {
        let turn = |role: &str, text: &str| json!({"role": role, "content": text});
        let side = |first: &str, last: &str| {
            json!([turn("assistant", first), turn("user", "r"), turn("assistant", last)])
        };
        let pair =
            parsed(json!({"prompt": "q", "chosen": side("a", "b"), "rejected": side("c", "d")}));
        assert_eq!(role_texts(&pair.prompt), [("user", "q")]);
        assert_eq!(
            role_texts(&pair.chosen),
            [("assistant", "a"), ("user", "r"), ("assistant", "b")]
        );
        let pair =
            parsed(json!({"prompt": "q", "chosen": side("a", "b"), "rejected": side("a", "d")}));
        assert_eq!((pair.prompt.len(), role_texts(&pair.rejected)), (3, vec![("assistant", "d")]));
    }
}
