//! What an answer must be: text, any JSON object, or JSON that a schema describes.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{BodyFields, expected};
use super::state::AppState;
use crate::grammar::AnswerGrammar;

/// Reads `response_format` of `/v1/chat/completions`.
pub(crate) fn read_response_format(
    state: &AppState,
    fields: &mut BodyFields,
) -> Result<Option<AnswerGrammar>, ApiError> {
    let name = "response_format";
    let Some(value) = fields.take(name) else { return Ok(None) };
    let mut format = BodyFields::inside(name, value)?;
    let kind = format.require("type")?;
    if kind != "json_schema" {
        format.finish()?;
        return without_schema(state, name, &kind);
    }
    let place = format.name("json_schema");
    let described = BodyFields::inside(&place, format.require("json_schema")?)?;
    format.finish()?;
    with_schema(state, described).map(Some)
}

/// Reads `text.format` of `/v1/responses`.
pub(crate) fn read_text_format(
    state: &AppState,
    fields: &mut BodyFields,
) -> Result<Option<AnswerGrammar>, ApiError> {
    let Some(value) = fields.take("text") else { return Ok(None) };
    let mut text = BodyFields::inside("text", value)?;
    text.only("verbosity", &["medium".into()])?;
    let format = text.take("format");
    text.finish()?;
    let Some(format) = format else { return Ok(None) };
    let mut format = BodyFields::inside("text.format", format)?;
    let kind = format.require("type")?;
    if kind == "json_schema" {
        return with_schema(state, format).map(Some);
    }
    format.finish()?;
    without_schema(state, "text.format", &kind)
}

fn without_schema(
    state: &AppState,
    name: &str,
    kind: &Value,
) -> Result<Option<AnswerGrammar>, ApiError> {
    match kind.as_str() {
        Some("text") => Ok(None),
        Some("json_object") => grammar(state, name, json!({"type": "object"})).map(Some),
        _ => Err(expected(&format!("{name}.type"), "text, json_object or json_schema", kind)),
    }
}

/// Reads the fields around a schema. Answers always keep to it, so `strict` changes nothing.
fn with_schema(state: &AppState, mut described: BodyFields) -> Result<AnswerGrammar, ApiError> {
    described.drop_notes(&["name", "description"]);
    described.only("strict", &[true.into(), false.into()])?;
    let (schema, place) = (described.require("schema")?, described.name("schema"));
    described.finish()?;
    if !schema.is_object() {
        return Err(expected(&place, "a JSON schema, an object", &schema));
    }
    grammar(state, &place, schema)
}

fn grammar(state: &AppState, place: &str, schema: Value) -> Result<AnswerGrammar, ApiError> {
    let grammar = state.grammars.json(schema);
    grammar.map_err(|what| ApiError::field(place, format!("cannot be used: {what}")))
}
