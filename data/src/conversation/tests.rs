//! Rows of all shapes as conversations, and their mistakes.

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
    assert_eq!(of(vec![turn("user", Value::Null)]), "[messages.0.content] expected text, got null");
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
        ("input, output", json!({"input": "q", "output": "a"})),
        ("user, assistant", json!({"user": "q", "assistant": "a"})),
        ("inputs, targets", json!({"inputs": "q", "targets": "a"})),
        ("data", json!({"id": "1", "data": ["q", "a"]})),
        ("conversation", json!({"conversation": [{"human": "q", "assistant": "a"}]})),
        (
            "contents",
            json!({"contents": [{"role": "user", "parts": [{"text": "q"}]},
            {"role": "model", "parts": [{"text": "a"}]}]}),
        ),
        (
            "conversations",
            json!({"messages": [], "conversations": [
            {"from": "human", "value": "q"}, {"from": "gpt-4", "value": "a"}]}),
        ),
        (
            "messages",
            json!({"messages": [
            {"role": null, "content": null, "from": "human", "value": "q"},
            {"role": "assistant ", "content": {"type": "text", "text": "a"}}]}),
        ),
    ] {
        let parsed = conversation(&json_object(line.clone()), UnknownRole::Error).unwrap();
        assert_eq!(parsed.shape, shape, "{line}");
        assert_eq!(role_texts(&parsed.conversation.messages), [("user", "q"), ("assistant", "a")]);
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
fn a_turn_of_an_unknown_role_is_left_out_on_request() {
    let line = json!({"messages": [{"role": "narrator", "content": "x"},
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
    let kept = conversation(&json_object(line.clone()), UnknownRole::Drop).unwrap().conversation;
    assert_eq!(role_texts(&kept.messages), [("user", "q"), ("assistant", "a")]);
    assert!(wrong(line).contains("got \"narrator\""));
}
