//! Which functions a model may call, as each kind of request names them.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{BodyFields, expected};
use crate::options::MOST_TOOLS;

/// A function that the model may call; the caller runs it.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    pub(crate) name: String,
    description: Option<String>,
    /// A JSON schema of an object.
    pub(crate) parameters: Value,
    /// Where the schema stands in the body.
    pub(crate) place: String,
}

/// Whether there must be a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// There is none.
    Never,
    /// The model decides.
    Auto,
    /// At least one of any function.
    Any,
    /// One of this function.
    Named(String),
}

/// The functions of a request.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) list: Vec<Tool>,
    pub(crate) choice: ToolChoice,
    /// Whether an answer may hold several calls.
    pub(crate) parallel: bool,
}

/// How a kind of request describes a function.
#[derive(Clone, Copy)]
enum ToolLayout {
    /// `{"type": "function", "function": {"name", "description", "parameters"}}`
    Chat,
    /// `{"type": "function", "name", "description", "parameters"}`
    Response,
    /// `{"name", "description", "input_schema"}`
    Message,
}

impl Tools {
    /// Reads `tools`, `tool_choice` and `parallel_tool_calls` of `/v1/chat/completions`.
    pub(crate) fn of_chat(fields: &mut BodyFields) -> Result<Self, ApiError> {
        Self::of_openai(fields, ToolLayout::Chat)
    }

    /// Reads the same of `/v1/responses`.
    pub(crate) fn of_response(fields: &mut BodyFields) -> Result<Self, ApiError> {
        Self::of_openai(fields, ToolLayout::Response)
    }

    /// Reads `tools` and `tool_choice` of `/v1/messages`.
    pub(crate) fn of_message(fields: &mut BodyFields) -> Result<Self, ApiError> {
        let list = read_list(fields, ToolLayout::Message)?;
        let Some(value) = fields.take("tool_choice") else {
            return Self { list, choice: ToolChoice::Auto, parallel: true }.checked(fields);
        };
        let mut choice = BodyFields::inside("tool_choice", value)?;
        let kind = choice.require("type")?;
        let single = choice.flag("disable_parallel_tool_use")?.unwrap_or(false);
        let name = choice.text("name")?;
        choice.finish()?;
        let choice = match (kind.as_str(), name) {
            (Some("none"), None) => ToolChoice::Never,
            (Some("auto"), None) => ToolChoice::Auto,
            (Some("any"), None) => ToolChoice::Any,
            (Some("tool"), Some(name)) => ToolChoice::Named(name),
            _ => {
                let wanted = "none, auto, any, or tool with a name";
                return Err(expected("tool_choice.type", wanted, &kind));
            }
        };
        Self { list, choice, parallel: !single }.checked(fields)
    }

    fn of_openai(fields: &mut BodyFields, layout: ToolLayout) -> Result<Self, ApiError> {
        let list = read_list(fields, layout)?;
        let choice = read_choice(fields, layout)?;
        let parallel = fields.flag("parallel_tool_calls")?.unwrap_or(true);
        Self { list, choice, parallel }.checked(fields)
    }

    /// The same if what is chosen can be called.
    fn checked(self, fields: &BodyFields) -> Result<Self, ApiError> {
        let is_named = |name: &String| self.list.iter().any(|tool| tool.name == *name);
        match &self.choice {
            ToolChoice::Named(name) if !is_named(name) => {
                Err(fields.error("tool_choice", "expected the name of one of the tools"))
            }
            ToolChoice::Any if self.list.is_empty() => {
                Err(fields.error("tool_choice", "expected only with tools"))
            }
            _ => Ok(self),
        }
    }

    /// As chat templates expect them in their variable `tools`.
    pub(crate) fn json(&self) -> Vec<Value> {
        let one = |tool: &Tool| {
            let mut function = json!({"name": tool.name});
            if let Some(description) = &tool.description {
                function["description"] = description.as_str().into();
            }
            function["parameters"] = tool.parameters.clone();
            json!({"type": "function", "function": function})
        };
        self.list.iter().map(one).collect()
    }
}

fn read_list(fields: &mut BodyFields, layout: ToolLayout) -> Result<Vec<Tool>, ApiError> {
    let list = match fields.take("tools") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= MOST_TOOLS => list,
        Some(other) => {
            let wanted = format!("a list of at most {MOST_TOOLS} functions");
            return Err(expected("tools", &wanted, &other));
        }
    };
    let mut tools: Vec<Tool> = Vec::new();
    for (index, value) in list.into_iter().enumerate() {
        let name = format!("tools[{index}]");
        let tool = read_tool(BodyFields::inside(&name, value)?, layout)?;
        // An answer names a function by its name alone.
        if tools.iter().any(|other| other.name == tool.name) {
            let message = format!("there is another function {:?}", tool.name);
            return Err(ApiError::field(&name, message));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn read_tool(mut tool: BodyFields, layout: ToolLayout) -> Result<Tool, ApiError> {
    match (layout, tool.take("type")) {
        (ToolLayout::Message, None) => {}
        (ToolLayout::Message, Some(kind)) if kind == "custom" => {}
        (ToolLayout::Chat | ToolLayout::Response, Some(kind)) if kind == "function" => {}
        (_, kind) => {
            let wanted = "a function (no other tools run here)";
            return Err(expected(&tool.name("type"), wanted, &kind.unwrap_or_default()));
        }
    }
    match layout {
        ToolLayout::Chat => {
            let function = BodyFields::inside(&tool.name("function"), tool.require("function")?)?;
            tool.finish()?;
            read_function(function, "parameters")
        }
        ToolLayout::Response => read_function(tool, "parameters"),
        ToolLayout::Message => {
            tool.drop_notes(&["cache_control"]);
            read_function(tool, "input_schema")
        }
    }
}

/// Arguments always keep to the schema, so `strict` changes nothing.
fn read_function(mut function: BodyFields, schema: &str) -> Result<Tool, ApiError> {
    let name = function.require("name")?;
    let letters = |name: &&str| {
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || "_-".contains(letter);
        (1..=64).contains(&name.len()) && name.chars().all(allowed)
    };
    let wanted = "1 to 64 letters, digits, _ and -";
    let good = name.as_str().filter(letters);
    let good = good.ok_or_else(|| expected(&function.name("name"), wanted, &name))?.to_owned();
    let description = function.text("description")?;
    function.only("strict", &[true.into(), false.into()])?;
    let place = function.name(schema);
    let parameters = match function.take(schema) {
        // OpenAI: a function without parameters takes none.
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(given) => object_schema(given, &place)?,
    };
    function.finish()?;
    Ok(Tool { name: good, description, parameters, place })
}

/// A schema of an object; one that says no type gets this one.
fn object_schema(mut schema: Value, place: &str) -> Result<Value, ApiError> {
    let kind = schema.get("type").cloned();
    match (schema.as_object_mut(), kind) {
        (Some(map), None) => {
            map.insert("type".to_owned(), "object".into());
            Ok(schema)
        }
        (Some(_), Some(kind)) if kind == "object" => Ok(schema),
        _ => Err(expected(place, "a JSON schema with \"type\": \"object\"", &schema)),
    }
}

fn read_choice(fields: &mut BodyFields, layout: ToolLayout) -> Result<ToolChoice, ApiError> {
    let Some(value) = fields.take("tool_choice") else { return Ok(ToolChoice::Auto) };
    match value.as_str() {
        Some("none") => return Ok(ToolChoice::Never),
        Some("auto") => return Ok(ToolChoice::Auto),
        Some("required") => return Ok(ToolChoice::Any),
        _ => {}
    }
    let wanted = "none, auto, required, or a function with its name";
    // Made now, while the value is still here: it is taken apart below.
    let wrong = expected("tool_choice", wanted, &value);
    let Ok(mut choice) = BodyFields::inside("tool_choice", value) else { return Err(wrong) };
    if choice.take("type").is_none_or(|kind| kind != "function") {
        return Err(wrong);
    }
    let name = if let ToolLayout::Chat = layout {
        let function = choice.take("function").unwrap_or_default();
        let mut function = BodyFields::inside("tool_choice.function", function)?;
        let name = function.text("name")?;
        function.finish()?;
        name
    } else {
        choice.text("name")?
    };
    choice.finish()?;
    name.map(ToolChoice::Named).ok_or(wrong)
}
