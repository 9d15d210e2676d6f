//! Messages, the roles that write them, and conversations as token ids.

use serde_json::{Map, Value};

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions before the conversation.
    System,
    /// The person.
    User,
    /// The model; its messages are trained.
    Assistant,
    /// A tool that the model called.
    Tool,
}

impl Role {
    const ALL: [Self; 4] = [Self::System, Self::User, Self::Assistant, Self::Tool];

    /// The name in data files and templates: `system`, `user`, `assistant` or `tool`.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    /// The role with exactly this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who wrote it.
    pub role: Role,
    /// The text; may be empty.
    pub content: String,
    /// Whether an answer is trained. Turns of others never are.
    pub trained: bool,
    /// What a Jinja template sees beside `role` and `content`: `name`, `tool_calls`,
    /// `reasoning_content`. A `content` here, such as a list of parts, replaces the text.
    pub fields: Map<String, Value>,
}

impl Message {
    /// A message of text alone.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), trained: true, fields: Map::new() }
    }

    /// The message as a template sees it.
    pub(super) fn to_json(&self) -> Value {
        let mut json = Map::new();
        json.insert("role".into(), self.role.name().into());
        json.insert("content".into(), self.content.as_str().into());
        json.extend(self.fields.clone());
        Value::Object(json)
    }

    pub(super) fn is_trained(&self) -> bool {
        self.role == Role::Assistant && self.trained
    }
}

/// Messages, and the tools that the model may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The turns in their order.
    pub messages: Vec<Message>,
    /// Descriptions of tools, as a template's variable `tools`; empty for none.
    pub tools: Vec<Value>,
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, tools: Vec::new() }
    }
}

/// Token ids of a conversation with, for each id, whether it is trained as a target.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Dialogue {
    /// The tokens.
    pub ids: Vec<u32>,
    /// One flag for each token: `true` where it belongs to an answer.
    pub trained: Vec<bool>,
}

impl Dialogue {
    pub(super) fn push(&mut self, ids: impl IntoIterator<Item = u32>, trained: bool) {
        self.ids.extend(ids);
        self.trained.resize(self.ids.len(), trained);
    }
}

/// Strips whitespace as Python's `str.strip`, and so Jinja's `trim`, does: Unicode whitespace and
/// four ASCII separators.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_python_space)
}

pub(super) fn is_python_space(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '\u{1c}'..='\u{1f}')
}
