//! Messages, the roles that write them, and conversations as token ids.

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions before the conversation.
    System,
    /// The person.
    User,
    /// The model; its messages are trained.
    Assistant,
}

impl Role {
    /// The name in data files and templates: `system`, `user` or `assistant`.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }

    /// The role with exactly this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::System, Self::User, Self::Assistant].into_iter().find(|role| role.name() == name)
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who wrote it.
    pub role: Role,
    /// The text; may be empty. Surrounding whitespace is dropped when it is encoded.
    pub content: String,
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
    text.trim_matches(|letter: char| {
        letter.is_whitespace() || matches!(letter, '\u{1c}'..='\u{1f}')
    })
}
