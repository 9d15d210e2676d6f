//! The items of the dataset and their random generators: leaf types that every kind of text uses.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::question::Question;

/// The style of a story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoryStyle {
    /// A story that sometimes ends with a statement of its outcome or a question and its answer.
    General,
    /// A story that always ends with questions and their answers.
    Hq,
    /// A short story in plain statements, followed by all questions about it and their answers.
    Plain,
}

/// What a story is for. No scene belongs to both splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Training.
    Train,
    /// Evaluation.
    HeldOut,
}

/// A story and probes about its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// The text, one paragraph.
    pub text: String,
    /// Questions about the end of the story, as text to be continued.
    pub probes: Vec<Probe>,
}

/// A question and its only right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuestionAnswer {
    /// "Where was the key?"
    pub question: String,
    /// "In the blue box."
    pub answer: String,
}

/// A text to be continued, and the only right continuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The story without its ending, a question, and the beginning of the answer.
    pub prompt: String,
    /// The continuation, with its leading space.
    pub answer: String,
}

impl Probe {
    /// The question after the body of a story.
    pub(crate) fn new(body: &str, question: &Question) -> Self {
        let prompt = format!("{body} {} {}", question.text, question.stem).trim_end().to_owned();
        // If the sentence goes on after the answer, the rest is not part of what is asked.
        let tail = if question.tail == "." { "." } else { "" };
        Self { prompt, answer: format!(" {}{tail}", question.answer) }
    }
}

/// The random generator of one item. Its key is `seed (8 bytes) | index (8) | purpose (16)`.
pub(crate) fn keyed_rng(seed: u64, purpose: &[u8; 16], index: u64) -> ChaCha8Rng {
    // All three fields fit into a key, so no hash is needed and no two items share one.
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&index.to_le_bytes());
    key[16..].copy_from_slice(purpose);
    ChaCha8Rng::from_seed(key)
}
