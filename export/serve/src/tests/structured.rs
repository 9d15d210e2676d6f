//! Answers of an untrained model that must be JSON: every finished one parses and keeps to its
//! schema.

use serde_json::{Map, Value, json};

use super::client::TestServer;

/// Numbers from a seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn schema(&mut self, depth: u64) -> Value {
        match self.below(if depth == 0 { 5 } else { 7 }) {
            0 => json!({"type": "boolean"}),
            1 => json!({"type": "integer", "minimum": 0, "maximum": 99}),
            2 => json!({"enum": ["box", 3, null]}),
            3 => json!({"type": "string", "maxLength": 4}),
            4 => json!({"const": {"a": [1]}}),
            5 => {
                let least = self.below(3);
                json!({"type": "array", "items": self.schema(depth - 1), "minItems": least, "maxItems": least + 1})
            }
            _ => self.object(depth),
        }
    }

    pub(super) fn object(&mut self, depth: u64) -> Value {
        let names = ["key", "where", "é"];
        let count = 1 + self.below(3) as usize;
        let properties: Map<String, Value> = names[..count]
            .iter()
            .map(|name| ((*name).to_owned(), self.schema(depth - 1)))
            .collect();
        let required = &names[..=self.below(count as u64) as usize];
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    }
}

/// Whether a value is one of a schema as [`Dice`] makes them.
pub(super) fn holds(schema: &Value, value: &Value) -> bool {
    if let Some(options) = schema["enum"].as_array() {
        return options.contains(value);
    }
    if let Some(only) = schema.get("const") {
        return only == value;
    }
    match schema["type"].as_str().unwrap() {
        "boolean" => value.is_boolean(),
        "integer" => value.as_u64().is_some_and(|number| number <= 99),
        "string" => value.as_str().is_some_and(|text| text.chars().count() <= 4),
        "array" => value.as_array().is_some_and(|list| {
            let most = schema["maxItems"].as_u64().unwrap() as usize;
            let least = schema["minItems"].as_u64().unwrap() as usize;
            (least..=most).contains(&list.len())
                && list.iter().all(|it| holds(&schema["items"], it))
        }),
        _ => value.as_object().is_some_and(|map| {
            let known = |(name, value): (&String, &Value)| {
                schema["properties"].get(name).is_some_and(|schema| holds(schema, value))
            };
            let required = schema["required"].as_array().unwrap();
            map.iter().all(known)
                && required.iter().all(|name| map.contains_key(name.as_str().unwrap()))
        }),
    }
}

fn ask(server: &TestServer, format: &Value, seed: u64) -> (String, String) {
    let body = json!({
        "messages": [{"role": "user", "content": "where is the key?"}], "seed": seed,
        "max_tokens": 400, "response_format": format,
    });
    let choice = server.ok("/v1/chat/completions", &body)["choices"][0].clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&choice["message"]["content"]), text(&choice["finish_reason"]))
}

#[test]
fn every_finished_answer_to_a_random_schema_keeps_to_it() {
    let server = TestServer::with(1024, super::options());
    let (mut dice, mut finished) = (Dice(7), 0);
    for seed in 0..300 {
        let schema = dice.object(3);
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
        let (text, reason) = ask(&server, &format, seed);
        if reason == "stop" {
            finished += 1;
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(holds(&schema, &value), "{schema}\n{text}");
        }
    }
    assert!(finished > 200, "{finished} of 300 came to an end");
}

#[test]
fn an_answer_that_must_be_an_object_is_one() {
    let server = TestServer::with(2048, super::options());
    let mut finished = 0;
    for seed in 0..20 {
        let (text, reason) = ask(&server, &json!({"type": "json_object"}), seed);
        if reason == "stop" {
            finished += 1;
            assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
        } else {
            assert!(text.starts_with('{'), "{text}");
        }
    }
    assert!(finished > 0);
}
