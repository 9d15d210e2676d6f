//! How a call of a function is written by a model and read from it.
//!
//! A template that knows tools says itself how: between tags as Hermes and Qwen do, or as bare JSON
//! as Llama 3 does. For any other the functions are described in the system's message, calls are
//! those with tags, and results come back as the user's.

use bitnet_text::{ChatTemplate, Conversation, Message, Role};
use serde_json::Value;

use super::error::ApiError;
use super::tools::{Tool, ToolChoice, Tools};
use crate::grammar::{AnswerGrammar, Grammars};

/// A call is `open before_name NAME after_name ARGUMENTS close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToolForm {
    /// Text that stands nowhere but where a call begins.
    pub(crate) open: &'static str,
    pub(crate) before_name: &'static str,
    pub(crate) after_name: &'static str,
    close: &'static str,
    /// Whether an answer may hold several.
    repeats: bool,
}

const TAGGED: ToolForm = ToolForm {
    open: "<tool_call>",
    before_name: "\n{\"name\": \"",
    after_name: "\", \"arguments\": ",
    close: "}\n</tool_call>",
    repeats: true,
};

const BARE: ToolForm = ToolForm {
    open: "{\"name\": ",
    before_name: "\"",
    after_name: "\", \"parameters\": ",
    close: "}",
    repeats: false,
};

/// Before the descriptions of functions, one a line, in the system's message.
const DESCRIBED: &str = "You may call these functions:";
/// After the calls.
const ASKED: &str = "To call one, answer with its name and arguments as JSON between tags:\n<tool_call>\n\
    {\"name\": \"NAME\", \"arguments\": {\"ARGUMENT\": \"VALUE\"}}\n</tool_call>\n\
    The result follows between <tool_response> and </tool_response>.";

impl ToolForm {
    /// The form for a template, and whether the template writes it itself.
    fn of(template: &ChatTemplate) -> (Self, bool) {
        let knows = template.reads("tools") && template.reads("tool_calls");
        if knows && !template.reads(TAGGED.open) && template.reads("\"parameters\": ") {
            return (BARE, true);
        }
        (TAGGED, knows && template.reads(TAGGED.open))
    }

    /// A call as text.
    fn call(self, name: &str, arguments: &str) -> String {
        [self.open, self.before_name, name, self.after_name, arguments, self.close].concat()
    }

    /// The grammar of answers in Lark's notation; function `i` has the arguments `@arguments{i}`.
    fn lark(self, tools: &[&Tool], required: bool, parallel: bool) -> String {
        // Calls follow each other on lines of their own, as templates write them.
        let more = format!("( {} call )*", literal(&format!("\n{}", self.open)));
        let more = if parallel && self.repeats { &more } else { "" };
        let open = literal(self.open);
        let start = if required {
            // Where a call must be made nothing but the space of the answer may come before it.
            format!("start: FIRST call {more}\nFIRST: \" \"? {open}\n")
        } else {
            format!(
                // `lazy` ends the text at the first mark of a call; from there on the model is
                // bound to the form. Without a call the answer is any text.
                "start: end | first call {more}\nend: TEXT\nfirst[lazy]: TEXT {open}\n\
                 TEXT: /(.|\\n)*/\n"
            )
        };
        let mut calls = Vec::new();
        for (index, tool) in tools.iter().enumerate() {
            let head = [self.before_name, &tool.name, self.after_name].concat();
            calls.push(format!("{} @arguments{index}", literal(&head)));
        }
        format!("{start}call: ( {} ) {}\n", calls.join(" | "), literal(self.close))
    }
}

/// A string of Lark, which has the escapes of JSON.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// What answers must be where functions may be called, and how calls are found in them.
pub(crate) fn bind(
    template: &ChatTemplate,
    grammars: &Grammars,
    tools: &Tools,
) -> Result<Option<(ToolForm, AnswerGrammar)>, ApiError> {
    if tools.list.is_empty() || tools.choice == ToolChoice::Never {
        return Ok(None);
    }
    let (form, _) = ToolForm::of(template);
    let chosen = |tool: &&Tool| match &tools.choice {
        ToolChoice::Named(name) => tool.name == *name,
        _ => true,
    };
    let list: Vec<&Tool> = tools.list.iter().filter(chosen).collect();
    let required = tools.choice != ToolChoice::Auto;
    let schemas: Vec<Value> = list.iter().map(|tool| tool.parameters.clone()).collect();
    let grammar = grammars.calls(form.lark(&list, required, tools.parallel), schemas);
    let grammar = grammar.map_err(|what| {
        // The one at fault, if it is one alone.
        let fails = |tool: &&&Tool| grammars.json(tool.parameters.clone()).is_err();
        let place = list.iter().find(fails).map_or("tools", |tool| &tool.place);
        ApiError::field(place, format!("cannot be used: {what}"))
    })?;
    Ok(Some((form, grammar)))
}

/// The conversation as the template can write it.
pub(crate) fn for_template(template: &ChatTemplate, conversation: &Conversation) -> Conversation {
    let (form, known) = ToolForm::of(template);
    if known {
        let messages = conversation.messages.iter().map(with_objects).collect();
        return Conversation { messages, tools: conversation.tools.clone() };
    }
    let mut messages: Vec<Message> = Vec::new();
    let mut after_result = false;
    for message in &conversation.messages {
        let is_result = message.role == Role::Tool;
        let written = without_calls(form, message);
        // Results of several calls are one turn: templates without tools want turns to alternate.
        match messages.last_mut().filter(|_| is_result && after_result) {
            Some(last) => last.content = [&last.content, "\n", &written.content].concat(),
            None => messages.push(written),
        }
        after_result = is_result;
    }
    describe(&mut messages, &conversation.tools);
    messages.into()
}

/// Templates want the arguments of calls as objects; clients send them as text.
fn with_objects(message: &Message) -> Message {
    let mut message = message.clone();
    let calls = message.fields.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let arguments = &mut call["function"]["arguments"];
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
        // Text that is no object was refused when it was read.
        *arguments = parsed.unwrap_or_default();
    }
    message
}

/// A message of text alone.
fn without_calls(form: ToolForm, message: &Message) -> Message {
    if message.role == Role::Tool {
        let text = format!("<tool_response>\n{}\n</tool_response>", message.content);
        return Message::new(Role::User, text);
    }
    let mut lines: Vec<String> = Vec::new();
    lines.extend((!message.content.is_empty()).then(|| message.content.clone()));
    let calls = message.fields.get("tool_calls").and_then(Value::as_array);
    for call in calls.into_iter().flatten() {
        let text = |field: &str| call["function"][field].as_str().unwrap_or_default();
        lines.push(form.call(text("name"), text("arguments")));
    }
    Message::new(message.role, lines.join("\n"))
}

fn describe(messages: &mut Vec<Message>, tools: &[Value]) {
    if tools.is_empty() {
        return;
    }
    let list: Vec<String> = tools.iter().map(|tool| tool["function"].to_string()).collect();
    let text = format!("{DESCRIBED}\n{}\n{ASKED}", list.join("\n"));
    match messages.first_mut().filter(|first| first.role == Role::System) {
        Some(system) => system.content = [&system.content, "\n\n", &text].concat(),
        None => messages.insert(0, Message::new(Role::System, text)),
    }
}

/// A form, and a call that is written so.
#[cfg(test)]
pub(crate) fn sample_call(name: &str, arguments: &str) -> (ToolForm, String) {
    (TAGGED, TAGGED.call(name, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked() -> Conversation {
        let mut call = Message::new(Role::Assistant, "");
        let function = json!({"name": "look", "arguments": "{\"at\":1}"});
        call.fields
            .insert("tool_calls".into(), json!([{"type": "function", "function": function}]));
        let messages = vec![
            Message::new(Role::User, "where?"),
            call,
            Message::new(Role::Tool, "box"),
            Message::new(Role::Tool, "bag"),
        ];
        let tool = json!({"type": "function", "function": {"name": "look"}});
        Conversation { messages, tools: vec![tool] }
    }

    #[test]
    fn a_template_that_knows_no_tools_is_told_of_them_in_text() {
        let written = for_template(&ChatTemplate::b158(), &asked());
        let texts: Vec<(Role, &str)> =
            written.messages.iter().map(|it| (it.role, it.content.as_str())).collect();
        assert_eq!(texts[0].0, Role::System);
        assert!(texts[0].1.starts_with("You may call these functions:\n{\"name\":\"look\"}\n"));
        let call = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\":1}}\n</tool_call>";
        assert_eq!(texts[2], (Role::Assistant, call));
        let results =
            "<tool_response>\nbox\n</tool_response>\n<tool_response>\nbag\n</tool_response>";
        assert_eq!(texts[3..], [(Role::User, results)]);
        assert!(written.tools.is_empty());
    }

    #[test]
    fn a_template_that_knows_tools_gets_them_and_says_how_calls_are_written() {
        let source = |call: &str| {
            format!(
                "{{% for t in tools or [] %}}{{{{ t }}}}{{% endfor %}}{{% for m in messages %}}\
                 {{{{ m.role }}}}: {{{{ m.content }}}}{{% for c in m.tool_calls or [] %}}{call}\
                 {{% endfor %}}\n{{% endfor %}}"
            )
        };
        for (call, form) in [("<tool_call>{{ c }}", TAGGED), ("{{ '\"parameters\": ' }}", BARE)] {
            let template = ChatTemplate::jinja("t.jinja".as_ref(), &source(call)).unwrap();
            assert_eq!(ToolForm::of(&template), (form, true));
            let written = for_template(&template, &asked());
            assert_eq!((written.messages.len(), written.tools.len()), (4, 1));
            let call = &written.messages[1].fields["tool_calls"][0];
            assert_eq!(call["function"]["arguments"], json!({"at": 1}));
        }
        let other = ChatTemplate::jinja("t.jinja".as_ref(), &source("[CALLS]{{ c }}")).unwrap();
        assert_eq!(ToolForm::of(&other), (TAGGED, false));
    }
}
