//! The endpoints and their fields as an OpenAPI document, for programs that make clients of one.

use serde_json::{Map, Value, json};

use crate::options::{
    MOST_CHOICES, MOST_LOGPROBS, MOST_MESSAGES, MOST_PROMPTS, MOST_STOPS, MOST_TOOLS,
};

/// Describes endpoints, each `METHOD /path`.
pub(crate) fn document(endpoints: &[String]) -> Value {
    let mut paths = Map::new();
    for endpoint in endpoints {
        let (method, path) = endpoint.split_once(' ').unwrap_or_default();
        // The router's star lets an id hold slashes; OpenAPI has no sign for that.
        let path = path.replace("{*id}", "{id}");
        paths.insert(path.clone(), json!({method.to_lowercase(): operation(&path)}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "bitnet serve", "version": env!("CARGO_PKG_VERSION")},
        // Either a key or none: which, the server's flags decide.
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": error()},
        },
    })
}

fn operation(path: &str) -> Value {
    let failed = json!({
        "description": "what is wrong",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    });
    let mut operation =
        json!({"responses": {"200": {"description": "the answer"}, "default": failed}});
    if path.ends_with("{id}") {
        let id =
            json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string"}});
        operation["parameters"] = json!([id]);
    }
    if let Some(schema) = body(path) {
        let content = json!({"application/json": {"schema": schema}});
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

fn error() -> Value {
    let text = json!({"type": "string"});
    let fields = json!({
        "message": text, "type": text, "code": text, "param": {"type": ["string", "null"]},
    });
    json!({"type": "object", "required": ["error"], "properties": {
        "error": {"type": "object", "properties": fields},
    }})
}

/// The body that an endpoint takes.
fn body(path: &str) -> Option<Value> {
    let messages = json!({"type": "array", "minItems": 1, "maxItems": MOST_MESSAGES});
    let text = json!({"type": "string"});
    let count = json!({"type": "integer", "minimum": 1});
    let (required, fields) = match path {
        "/v1/chat/completions" => (
            "messages",
            json!({
                "messages": messages, "max_tokens": count, "max_completion_tokens": count,
                "logprobs": {"type": "boolean"}, "response_format": {"type": "object"},
                "top_logprobs": {"type": "integer", "minimum": 0, "maximum": MOST_LOGPROBS},
            }),
        ),
        "/v1/completions" => (
            "prompt",
            json!({
                "prompt": {"type": ["string", "array"], "maxItems": MOST_PROMPTS},
                "max_tokens": count, "echo": {"type": "boolean"},
                "logprobs": {"type": "integer", "minimum": 0, "maximum": MOST_LOGPROBS},
            }),
        ),
        "/v1/responses" => (
            "input",
            json!({
                "input": {"type": ["string", "array"]}, "instructions": text,
                "max_output_tokens": count, "text": {"type": "object"},
            }),
        ),
        "/v1/messages" => (
            "messages",
            json!({
                "messages": messages, "system": {"type": ["string", "array"]}, "max_tokens": count,
                "stop_sequences": {"type": "array", "maxItems": MOST_STOPS},
            }),
        ),
        "/v1/messages/count_tokens" | "/apply-template" => {
            ("messages", json!({"messages": messages}))
        }
        "/tokenize" => {
            ("prompt", json!({"prompt": text, "add_special_tokens": {"type": "boolean"}}))
        }
        "/detokenize" => ("tokens", json!({"tokens": {"type": "array"}})),
        _ => return None,
    };
    let mut fields = fields;
    if ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"].contains(&path)
    {
        add_sampling(&mut fields, !["/v1/responses", "/v1/messages"].contains(&path));
    }
    if path.starts_with("/v1/") && path != "/v1/completions" || path == "/apply-template" {
        fields["tools"] = json!({"type": "array", "maxItems": MOST_TOOLS});
        fields["tool_choice"] = json!({"type": ["string", "object"]});
    }
    fields["model"] = text;
    let closed = json!(false);
    Some(
        json!({"type": "object", "required": [required], "properties": fields, "additionalProperties": closed}),
    )
}

/// The fields of how tokens are drawn; `all` with those of OpenAI's completions.
fn add_sampling(fields: &mut Value, all: bool) {
    let number =
        |least: f64, most: f64| json!({"type": "number", "minimum": least, "maximum": most});
    for (name, least, most) in [
        ("temperature", 0.0, 2.0),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("repetition_penalty", 0.01, 100.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
    ] {
        fields[name] = number(least, most);
    }
    fields["top_k"] = json!({"type": "integer", "minimum": 0});
    fields["seed"] = json!({"type": "integer"});
    fields["logit_bias"] = json!({"type": "object"});
    fields["stream"] = json!({"type": "boolean"});
    if all {
        fields["n"] = json!({"type": "integer", "minimum": 1, "maximum": MOST_CHOICES});
        fields["stop"] = json!({"type": ["string", "array"], "maxItems": MOST_STOPS});
        fields["stream_options"] = json!({"type": "object"});
        fields["user"] = json!({"type": "string"});
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_described_and_those_that_take_a_body_say_which() {
        let endpoints = crate::list_endpoints();
        let document = document(&endpoints);
        for endpoint in endpoints {
            let (method, path) = endpoint.split_once(' ').unwrap();
            let operation =
                &document["paths"][path.replace("{*id}", "{id}")][method.to_lowercase()];
            assert!(operation["responses"]["200"].is_object(), "{endpoint}");
            assert_eq!(operation["requestBody"].is_object(), method == "POST", "{endpoint}");
        }
    }
}
