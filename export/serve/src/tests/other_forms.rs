//! The forms of other clients: Anthropic's messages, OpenAI's responses.

use serde_json::{Value, json};

use super::client::{Reply, TestServer};
use super::tokenizer;

/// Names and data of the events of a stream.
pub(super) fn events(reply: &Reply) -> Vec<(String, Value)> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let blocks = reply.body.split("\n\n").filter(|block| !block.trim().is_empty());
    let event = |block: &str| {
        let line = |key| block.lines().find_map(|line: &str| line.strip_prefix(key)).unwrap();
        (line("event: ").to_owned(), serde_json::from_str(line("data: ")).unwrap())
    };
    blocks.map(event).collect()
}

#[test]
fn a_message_of_anthropic_s_form_is_answered_whole_streamed_and_counted() {
    let server = TestServer::usual();
    let mut body = json!({
        "model": "tiny", "max_tokens": 12, "temperature": 0, "system": [{"type": "text", "text": "box"}],
        "messages": [{"role": "user", "content": "where is the key?"}],
    });
    let whole = server.ok("/v1/messages", &body);
    assert_eq!((&whole["type"], &whole["role"]), (&json!("message"), &json!("assistant")));
    let mut counted = body.clone();
    for name in ["max_tokens", "temperature"] {
        counted.as_object_mut().unwrap().remove(name);
    }
    let count = server.ok("/v1/messages/count_tokens", &counted)["input_tokens"].as_u64().unwrap();
    let usage = &whole["usage"];
    let told = usage["input_tokens"].as_u64().unwrap()
        + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(told, count);
    // An answer that was begun is gone on from: its text lies behind the prompt.
    let begun = json!({"role": "assistant", "content": "the key"});
    counted["messages"].as_array_mut().unwrap().push(begun);
    let longer = server.ok("/v1/messages/count_tokens", &counted)["input_tokens"].as_u64().unwrap();
    assert_eq!(longer, count + tokenizer().encode(" the key").unwrap().len() as u64);
    body["stream"] = true.into();
    let all = events(&server.post("/v1/messages", &body));
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..2], ["message_start", "content_block_start"]);
    assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    assert!(all.iter().all(|(name, data)| data["type"] == *name));
    let said: String = all.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(said, whole["content"][0]["text"].as_str().unwrap());
    let stop: String = said.chars().skip(2).take(3).collect();
    body["stop_sequences"] = json!(["zzz", stop]);
    body["stream"] = false.into();
    let stopped = server.ok("/v1/messages", &body);
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &json!(stop))
    );
    for (param, value) in
        [("tools[0].type", json!([{"type": "bash"}])), ("thinking", json!({"type": "enabled"}))]
    {
        let mut wrong = body.clone();
        wrong[param.split('[').next().unwrap()] = value;
        assert_eq!(server.post("/v1/messages", &wrong).error()["param"], param);
    }
    body.as_object_mut().unwrap().remove("max_tokens");
    assert_eq!(server.post("/v1/messages", &body).error()["param"], "max_tokens");
}

#[test]
fn a_response_is_given_whole_and_in_numbered_events() {
    let server = TestServer::usual();
    let mut body = json!({
        "input": "where is the key?", "instructions": "box", "max_output_tokens": 12, "temperature": 0,
    });
    let whole = server.ok("/v1/responses", &body);
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap().to_owned();
    let chat = json!({"messages": [{"role": "system", "content": "box"},
        {"role": "user", "content": "where is the key?"}], "max_tokens": 12, "temperature": 0});
    let chat = server.ok("/v1/chat/completions", &chat);
    assert_eq!(text, chat["choices"][0]["message"]["content"].as_str().unwrap());
    body["stream"] = true.into();
    let all = events(&server.post("/v1/responses", &body));
    assert!(all.iter().zip(0..).all(|((_, data), number)| data["sequence_number"] == number));
    let said: String = all.iter().filter_map(|(_, data)| data["delta"].as_str()).collect();
    assert_eq!(said, text);
    let (last, data) = all.last().unwrap();
    let incomplete = whole["status"] == "incomplete";
    assert_eq!(last == "response.incomplete", incomplete);
    assert_eq!(data["response"]["output"][0]["content"], whole["output"][0]["content"]);
    let again = json!({
        "input": [{"role": "user", "content": "hi"}, whole["output"][0], {"role": "user", "content": "and?"}],
        "max_output_tokens": 3, "text": {"format": {"type": "json_object"}},
        "metadata": {"run": "7"}, "instructions": null,
    });
    let json = server.ok("/v1/responses", &again);
    // What was asked for is repeated; the rest has its neutral value.
    let repeated =
        [&whole["instructions"], &json["instructions"], &json["metadata"], &json["text"]];
    let expected = [&json!("box"), &Value::Null, &again["metadata"], &again["text"]];
    assert_eq!(repeated, expected);
    assert!(json["output"][0]["content"][0]["text"].as_str().unwrap().starts_with('{'));
    for (param, value) in [
        ("previous_response_id", json!("resp_1")),
        ("store", json!(true)),
        ("tools[0].type", json!([{"type": "web_search"}])),
        ("text.format.type", json!({"format": {"type": "xml"}})),
    ] {
        let mut wrong = body.clone();
        wrong[param.split(['.', '[']).next().unwrap()] = value;
        assert_eq!(server.post("/v1/responses", &wrong).error()["param"], param);
    }
}
