//! Calls of functions by an untrained model: every complete one names a function of the request and
//! has arguments that keep to its schema, in each form, whole and streamed.

use serde_json::{Value, json};

use super::client::TestServer;
use super::options;
use super::other_forms::events;
use super::structured::{Dice, holds};

const CHAT: &str = "/v1/chat/completions";

fn asked(tools: &Value, choice: Value, seed: u64) -> Value {
    json!({
        "messages": [{"role": "user", "content": "where is the key?"}], "seed": seed,
        "max_tokens": 300, "tools": tools, "tool_choice": choice,
    })
}

fn tool(name: &str, schema: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "looks", "parameters": schema}})
}

fn look() -> Value {
    json!({"type": "object", "properties": {"at": {"enum": ["box", "bag"]}}, "required": ["at"],
        "additionalProperties": false})
}

/// Asserts that the calls of a choice are those of `schemas`; how many.
fn check(choice: &Value, schemas: &[(&str, Value)]) -> usize {
    let calls = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
    for call in &calls {
        let name = call["function"]["name"].as_str().unwrap();
        let schema = &schemas.iter().find(|(known, _)| *known == name).unwrap().1;
        let text = call["function"]["arguments"].as_str().unwrap();
        let arguments: Value = serde_json::from_str(text).unwrap();
        assert!(holds(schema, &arguments), "{schema}\n{text}");
        assert!(call["id"].as_str().unwrap().starts_with("call_"));
    }
    let reason = choice["finish_reason"].as_str().unwrap();
    assert!(reason == "length" || (reason == "tool_calls") != calls.is_empty(), "{choice}");
    calls.len()
}

#[test]
fn every_call_of_random_functions_parses_and_keeps_to_its_schema() {
    let server = TestServer::with(2048, options());
    let (mut dice, mut all) = (Dice(11), 0);
    for seed in 0..60 {
        let schemas = [("find", dice.object(2)), ("find-it", dice.object(2))];
        let tools: Vec<Value> = schemas.iter().map(|(name, schema)| tool(name, schema)).collect();
        let tools = json!(tools);
        let named = json!({"type": "function", "function": {"name": "find-it"}});
        for choice in [json!("required"), named.clone()] {
            let mut body = asked(&tools, choice.clone(), seed);
            body["parallel_tool_calls"] = (seed % 2 == 0).into();
            let answer = server.ok(CHAT, &body)["choices"][0].clone();
            let calls = check(&answer, &schemas);
            assert!(calls <= 1 || seed % 2 == 0, "{answer}");
            let is_named = || answer["message"]["tool_calls"][0]["function"]["name"] == "find-it";
            assert!(calls == 0 || choice != named || is_named());
            all += calls;
        }
    }
    assert!(all > 80, "{all} calls in 120 answers");
}

#[test]
fn a_model_that_may_call_talks_or_calls_and_one_that_may_not_talks() {
    let server = TestServer::with(1024, options());
    let tools = json!([tool("look", &look())]);
    let mut body = asked(&tools, json!("none"), 1);
    body["max_tokens"] = 20.into();
    let talk = server.ok(CHAT, &body)["choices"][0].clone();
    assert!(talk["message"].get("tool_calls").is_none() && talk["message"]["content"].is_string());
    for seed in 0..10 {
        let choice = server.ok(CHAT, &asked(&tools, json!("auto"), seed))["choices"][0].clone();
        check(&choice, &[("look", look())]);
    }
}

#[test]
fn a_stream_brings_the_same_call_in_pieces() {
    let server = TestServer::with(1024, options());
    let mut body = asked(&json!([tool("look", &look())]), json!("required"), 3);
    body["parallel_tool_calls"] = false.into();
    let whole = server.ok(CHAT, &body)["choices"][0].clone();
    let expected = &whole["message"]["tool_calls"][0]["function"];
    assert_eq!(
        (&whole["finish_reason"], &whole["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    body["stream"] = true.into();
    let chunks = server.stream(CHAT, &body);
    let calls: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0))
        .collect();
    assert_eq!((&calls[0]["function"]["name"], &calls[0]["index"]), (&expected["name"], &json!(0)));
    let pieces = calls.iter().filter_map(|call| call["function"]["arguments"].as_str());
    assert_eq!(pieces.collect::<String>(), expected["arguments"].as_str().unwrap());
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    // The result goes back, and the model answers.
    let mut next = asked(&body["tools"].clone(), json!("none"), 3);
    let result = json!({"role": "tool", "tool_call_id": "call_1", "content": "a key"});
    let messages = next["messages"].as_array_mut().unwrap();
    messages.extend([whole["message"].clone(), result]);
    next["max_tokens"] = 4.into();
    assert!(server.ok(CHAT, &next)["choices"][0]["message"]["content"].is_string());
    let shown = json!({"messages": next["messages"], "tools": next["tools"]});
    let prompt = server.ok("/apply-template", &shown)["prompt"].as_str().unwrap().to_owned();
    assert!(prompt.contains("<tool_response>\na key\n</tool_response>"), "{prompt}");
    assert!(prompt.contains("You may call these functions:\n{\"name\":\"look\""), "{prompt}");
}

#[test]
fn anthropic_s_form_has_blocks_of_calls_and_of_results() {
    let server = TestServer::with(1024, options());
    let mut body = json!({
        "max_tokens": 300, "messages": [{"role": "user", "content": "where is the key?"}],
        "tools": [{"name": "look", "input_schema": look()}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true}, "temperature": 0,
    });
    let whole = server.ok("/v1/messages", &body);
    let call = whole["content"][0].clone();
    assert_eq!(
        (&call["type"], &call["name"], &whole["stop_reason"]),
        (&json!("tool_use"), &json!("look"), &json!("tool_use"))
    );
    assert!(holds(&look(), &call["input"]), "{call}");
    body["stream"] = true.into();
    let all = events(&server.post("/v1/messages", &body));
    let input: String =
        all.iter().filter_map(|(_, data)| data["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&input).unwrap(), call["input"]);
    let last = all.iter().find(|(name, _)| name == "message_delta").unwrap();
    assert_eq!(last.1["delta"]["stop_reason"], "tool_use");
    let result = json!([{"type": "tool_result", "tool_use_id": call["id"], "content": "a key"},
        {"type": "text", "text": "and?"}]);
    let mut next = body.clone();
    next["messages"].as_array_mut().unwrap().extend([
        json!({"role": "assistant", "content": whole["content"]}),
        json!({"role": "user", "content": result}),
    ]);
    (next["stream"], next["tool_choice"]) = (false.into(), json!({"type": "none"}));
    next["max_tokens"] = 3.into();
    assert_eq!(server.ok("/v1/messages", &next)["content"][0]["type"], "text");
}

#[test]
fn responses_have_items_of_calls_and_take_their_outputs() {
    let server = TestServer::with(1024, options());
    let mut body = json!({
        "max_output_tokens": 300, "input": "where is the key?", "temperature": 0,
        "tools": [{"type": "function", "name": "look", "parameters": look(), "strict": true}],
        "tool_choice": {"type": "function", "name": "look"}, "parallel_tool_calls": false,
    });
    let whole = server.ok("/v1/responses", &body);
    let call = whole["output"][0].clone();
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("look")));
    let arguments = call["arguments"].as_str().unwrap();
    assert!(holds(&look(), &serde_json::from_str(arguments).unwrap()));
    body["stream"] = true.into();
    let all = events(&server.post("/v1/responses", &body));
    let of = |kind: &str| {
        let these = all.iter().filter(|(name, _)| name == kind);
        these.map(|(_, data)| data.clone()).collect::<Vec<_>>()
    };
    let deltas = of("response.function_call_arguments.delta");
    let streamed: String = deltas.iter().filter_map(|data| data["delta"].as_str()).collect();
    assert_eq!(streamed, arguments);
    assert_eq!(of("response.output_item.done")[0]["item"]["arguments"], arguments);
    let output =
        json!({"type": "function_call_output", "call_id": call["call_id"], "output": "a key"});
    let next = json!({
        "input": [{"role": "user", "content": "where?"}, call, output], "tools": body["tools"],
        "tool_choice": "none", "max_output_tokens": 3,
    });
    assert_eq!(server.ok("/v1/responses", &next)["output"][0]["type"], "message");
}

#[test]
fn functions_and_calls_that_are_wrong_are_named() {
    let server = TestServer::usual();
    let good = tool("look", &look());
    let with = |change: Value| {
        let mut tool = good.clone();
        tool["function"].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!([tool])
    };
    for (param, tools, choice) in [
        ("tools", json!({}), json!("auto")),
        ("tools", json!(vec![good.clone(); 129]), json!("auto")),
        ("tools[0]", json!(["look"]), json!("auto")),
        ("tools[0].type", json!([{"type": "web_search"}]), json!("auto")),
        ("tools[1]", json!([good, good]), json!("auto")),
        ("tools[0].function.name", with(json!({"name": "a b"})), json!("auto")),
        (
            "tools[0].function.parameters",
            with(json!({"parameters": {"type": "array"}})),
            json!("auto"),
        ),
        (
            "tools[0].function.parameters",
            with(
                json!({"parameters": {"type": "object", "properties": {"a": {"type": "nothing"}}}}),
            ),
            json!("auto"),
        ),
        ("tools[0].function.x", with(json!({"x": 1})), json!("auto")),
        ("tool_choice", json!([good]), json!("maybe")),
        ("tool_choice", json!([good]), json!({"type": "function", "function": {"name": "run"}})),
        ("tool_choice", json!([]), json!("required")),
    ] {
        let reply = server.post(CHAT, &asked(&tools, choice, 1));
        assert_eq!((reply.status, &reply.error()["param"]), (400, &param.into()), "{}", reply.body);
    }
    let mut both = asked(&json!([good]), json!("auto"), 1);
    both["response_format"] = json!({"type": "json_object"});
    assert_eq!(server.post(CHAT, &both).error()["param"], "response_format");
    for (param, call) in [
        ("messages[0].tool_calls[0].type", json!({"type": "other"})),
        ("messages[0].tool_calls[0].function", json!({"type": "function"})),
        ("messages[0].tool_calls[0].function.name", json!({"type": "function", "function": {}})),
        (
            "messages[0].tool_calls[0].function.arguments",
            json!({"type": "function", "function": {"name": "look", "arguments": "[1]"}}),
        ),
    ] {
        let body = json!({"messages": [{"role": "assistant", "tool_calls": [call]}]});
        assert_eq!(server.post(CHAT, &body).error()["param"], param);
    }
}
