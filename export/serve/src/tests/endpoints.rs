//! What each endpoint answers to a good request.

use serde_json::{Value, json};

use super::client::{TestServer, request};
use super::{model, options, tokenizer};
use crate::options::PromptBos;
use bitnet_engine::{GenerateRequest, SamplerSettings, ThreadPool, generate, score};

fn chat(more: Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "where is the key?"}],
        "max_tokens": 12, "temperature": 0,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The text that the engine alone makes of a prompt.
fn alone(prompt: &[u32], tokens: usize) -> String {
    let (model, tokenizer, pool) = (model(256), tokenizer(), ThreadPool::new(1).unwrap());
    let stop_ids = tokenizer.eos().into_iter().chain(tokenizer.eot()).collect();
    let request =
        GenerateRequest { sampler: SamplerSettings::greedy(), stop_ids, max_tokens: tokens };
    let go_on = |_| std::ops::ControlFlow::Continue(());
    let made = generate(&model, &mut model.new_cache(), prompt, &request, &pool, go_on).unwrap();
    tokenizer.decode(&made.tokens)
}

#[test]
fn a_chat_is_answered_with_the_text_of_the_engine_whole_or_streamed() {
    let server = TestServer::usual();
    let answer = server.ok("/v1/chat/completions", &chat(json!({})));
    let template = server.ok(
        "/apply-template",
        &json!({"messages": [{"role": "user", "content": "where is the key?"}]}),
    );
    let ids: Vec<u32> = serde_json::from_value(template["tokens"].clone()).unwrap();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text, alone(&ids, 12).trim_start());
    assert!(template["prompt"].as_str().unwrap().ends_with("Assistant:"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
    let reason = answer["choices"][0]["finish_reason"].as_str().unwrap();
    let asked = chat(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = server.stream("/v1/chat/completions", &asked);
    let (usage, events) = events.split_last().unwrap();
    assert_eq!(
        (&usage["choices"], &usage["usage"]["completion_tokens"]),
        (&json!([]), &answer["usage"]["completion_tokens"])
    );
    assert!(events.iter().all(|event| event.get("usage") == Some(&Value::Null)));
    let pieces = events.iter().map(|event| &event["choices"][0]);
    let said: String =
        pieces.clone().filter_map(|piece| piece["delta"]["content"].as_str()).collect();
    assert_eq!(said, text);
    assert_eq!(pieces.clone().next().unwrap()["delta"]["role"], "assistant");
    let reasons: Vec<_> = pieces.map(|piece| piece["finish_reason"].clone()).collect();
    let (last, before) = reasons.split_last().unwrap();
    assert!(before.iter().all(Value::is_null) && last == reason);
}

#[test]
fn parts_of_text_and_several_answers_with_their_log_probabilities_are_given() {
    let server = TestServer::usual();
    let parts = json!([{"type": "text", "text": "where is"}, {"type": "text", "text": "the key?"}]);
    let asked = chat(json!({
        "messages": [{"role": "system", "content": "box"}, {"role": "user", "content": parts}],
        "n": 3, "temperature": 1.0, "seed": 5, "logprobs": true, "top_logprobs": 2,
    }));
    let answer = server.ok("/v1/chat/completions", &asked);
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert_ne!(choices[0]["message"], choices[1]["message"], "each has its own random numbers");
    assert_eq!(answer["choices"], server.ok("/v1/chat/completions", &asked)["choices"], "one seed");
    let token = &choices[0]["logprobs"]["content"][0];
    assert!(token["logprob"].as_f64().unwrap() < 0.0 && token["bytes"].is_array());
    assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
    let prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached(&answer), 0, "nothing was known of it");
    let read = server.state.metrics.cached_tokens();
    assert_eq!(read, 5 * (prompt - 1), "the prompt was read once for all three, and never again");
    assert_eq!(cached(&server.ok("/v1/chat/completions", &asked)), prompt - 1);
}

#[test]
fn a_completion_stops_before_a_text_and_is_the_same_in_a_stream() {
    let server = TestServer::usual();
    let free = server
        .ok("/v1/completions", &json!({"prompt": "the key", "max_tokens": 20, "temperature": 0}));
    let text = free["choices"][0]["text"].as_str().unwrap().to_owned();
    let middle = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop: String = text[middle..].chars().take(2).collect();
    let asked = json!({"prompt": "the key", "max_tokens": 20, "temperature": 0, "stop": [stop]});
    let stopped = server.ok("/v1/completions", &asked);
    assert_eq!(stopped["choices"][0]["text"], text[..text.find(&stop).unwrap()]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let mut streamed = asked;
    streamed["stream"] = true.into();
    let events = server.stream("/v1/completions", &streamed);
    let said: String = events.iter().filter_map(|it| it["choices"][0]["text"].as_str()).collect();
    assert_eq!(said, stopped["choices"][0]["text"]);
}

#[test]
fn prompts_are_scored_as_lm_eval_asks_with_the_numbers_of_bitnet_score() {
    let server = TestServer::with(256, super::ServeOptions { bos: PromptBos::Never, ..options() });
    let prompts = json!([[20, 30, 40, 50, 60], [7, 8, 9]]);
    let asked = json!({
        "model": "tiny", "prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 1,
        "echo": true, "seed": 1234,
    });
    let answer = server.ok("/v1/completions", &asked);
    let (model, pool) = (model(256), ThreadPool::new(1).unwrap());
    for (index, ids) in [vec![20, 30, 40, 50, 60], vec![7, 8, 9]].into_iter().enumerate() {
        let choice = &answer["choices"][index];
        assert_eq!(choice["index"], index);
        let lists = &choice["logprobs"];
        let found: Vec<Option<f64>> =
            serde_json::from_value(lists["token_logprobs"].clone()).unwrap();
        assert_eq!(found.len(), ids.len() + 1, "the prompt and one token more");
        let scores = score(&model, &ids, &pool).unwrap();
        // Read from JSON too: the reader may be off by the last bit.
        let written = serde_json::to_string(&scores.logprobs).unwrap();
        let expected: Vec<Option<f64>> = serde_json::from_str(&written).unwrap();
        assert_eq!(found[..ids.len()], expected);
        let largest = |at: usize| {
            let top = lists["top_logprobs"][at].as_object().unwrap();
            top.values().map(|value| value.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max)
        };
        assert!(lists["top_logprobs"][0].is_null());
        for at in 1..ids.len() {
            let is_greedy = scores.argmax[at - 1] == ids[at];
            assert_eq!(found[at] == Some(largest(at)), is_greedy, "{at}");
        }
        assert_eq!(found[ids.len()], Some(largest(ids.len())), "the generated one is greedy");
    }
}

#[test]
fn a_beginning_that_was_scored_is_not_scored_again_and_has_the_same_numbers() {
    let start =
        || TestServer::with(256, super::ServeOptions { bos: PromptBos::Never, ..options() });
    let asked = |prompts: &[Vec<u32>]| json!({"prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true});
    let first: Vec<u32> = (1..60).collect();
    let prompts: Vec<Vec<u32>> = (0..4).map(|end| [&first[..], &[70 + end, 3]].concat()).collect();
    let server = start();
    // One may begin when another is about to compute no more than 16 tokens more of the beginning.
    for least in [3 * 42, 4 * 42] {
        let answer = server.ok("/v1/completions", &asked(&prompts));
        for (index, ids) in prompts.iter().enumerate() {
            let alone = start().ok("/v1/completions", &asked(std::slice::from_ref(ids)));
            assert_eq!(answer["choices"][index]["logprobs"], alone["choices"][0]["logprobs"]);
        }
        let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
        assert!(cached.as_u64().unwrap() >= least, "{cached} of {least}");
    }
}

#[test]
fn a_hidden_first_token_counts_in_the_scores_and_is_not_told() {
    let bos = tokenizer().bos().unwrap();
    let server = TestServer::with(256, super::ServeOptions { bos: PromptBos::Always, ..options() });
    let asked = json!({"prompt": [[20, 30, 40]], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true});
    let answer = server.ok("/v1/completions", &asked);
    let found: Vec<Option<f64>> =
        serde_json::from_value(answer["choices"][0]["logprobs"]["token_logprobs"].clone()).unwrap();
    let scores = score(&model(256), &[bos, 20, 30, 40], &ThreadPool::new(1).unwrap()).unwrap();
    assert_eq!(found.len(), 4);
    assert_eq!(found[..3], scores.logprobs[1..]);
}

#[test]
fn text_and_ids_are_turned_into_each_other() {
    let server = TestServer::usual();
    let tokenizer = tokenizer();
    let plain = json!({"prompt": "the key é <|eot_id|>", "add_special_tokens": false});
    let tokens = server.ok("/tokenize", &plain);
    let ids: Vec<u32> = serde_json::from_value(tokens["tokens"].clone()).unwrap();
    assert_eq!(ids, tokenizer.encode("the key é <|eot_id|>").unwrap());
    assert_eq!((&tokens["count"], &tokens["max_model_len"]), (&json!(ids.len()), &json!(256)));
    let text = server.ok("/detokenize", &json!({"tokens": ids}));
    assert_eq!(text["prompt"], "the key é <|eot_id|>");
    let info = server.get("/tokenizer_info").json();
    let end = info["eos_token"].as_str().unwrap();
    let ids = server.ok("/tokenize", &json!({"prompt": end, "add_special_tokens": false}));
    assert_eq!(ids["tokens"], json!([tokenizer.token_id(end).unwrap()]));
    assert!(info["chat_template"].is_string() && info.get("pad_token").is_some());
}

#[test]
fn the_server_tells_what_it_is_and_what_it_did() {
    let server = TestServer::usual();
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(server.get("/v1/models/tiny").json(), models["data"][0]);
    assert_eq!(server.get("/v1/models/a/b").error()["code"], "model_not_found");
    server.ok("/v1/chat/completions", &chat(json!({})));
    server.ok("/v1/chat/completions", &chat(json!({})));
    server.until("nothing runs", |state| {
        state.metrics.text("tiny").contains("\nbitnet_requests_running 0\n")
    });
    let metrics = server.get("/metrics").body;
    for line in [
        "bitnet_requests_total{route=\"/v1/chat/completions\",code=\"200\"} 2",
        "bitnet_requests_running 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    let hits =
        metrics.lines().find_map(|it| it.strip_prefix("bitnet_prefix_cache_hit_tokens_total "));
    assert!(hits.unwrap().parse::<usize>().unwrap() > 10);
    let page = server.get("/");
    assert!(page.head.contains("content-security-policy") && page.body.contains("<!doctype html>"));
    assert!(crate::list_endpoints().contains(&"POST /v1/completions".to_owned()));
}

#[test]
fn pages_of_listed_origins_are_let_in_and_preflights_answered() {
    let server = TestServer::with(
        256,
        super::ServeOptions { cors_origins: vec!["https://a.example".to_owned()], ..options() },
    );
    let ask = |method, origin: &str| {
        let headers = format!(
            "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
             Access-Control-Request-Headers: content-type\r\n"
        );
        server.raw(request(method, "/v1/models", &headers, "").as_bytes())
    };
    let preflight = ask("OPTIONS", "https://a.example");
    assert_eq!(preflight.status, 200);
    assert!(preflight.head.contains("access-control-allow-origin: https://a.example"));
    assert!(ask("GET", "https://a.example").head.contains("access-control-allow-origin"));
    assert_eq!(ask("GET", "https://b.example").status, 403);
    assert_eq!(ask("OPTIONS", "https://b.example").status, 403);
}
