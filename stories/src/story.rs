//! Stories as a pure function of seed, split, style and index.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::question::{Question, QuestionKind, questions};
use crate::sample::pick;
use crate::scenario::Scenario;
use crate::templates::{CLOSINGS, ENDS};
use crate::{dialogue, opening, renderer};

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

/// A text to be continued, and the only right continuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The story without its ending, a question, and the beginning of the answer.
    pub prompt: String,
    /// The continuation, with its leading space.
    pub answer: String,
}

const QUESTIONS_PER_STORY: std::ops::RangeInclusive<usize> = 2..=3;

/// The story of that index.
pub fn story(seed: u64, split: Split, style: StoryStyle, index: u64) -> Story {
    let mut rng = story_rng(seed, split, style, index);
    if style == StoryStyle::Plain {
        return dialogue::plain_story(&mut rng, split);
    }
    let scenario = Scenario::sample(&mut rng);
    let mut questions = questions(&scenario, &mut rng);
    questions.truncate(rng.random_range(QUESTIONS_PER_STORY));
    let body = render_body(&scenario, &mut rng);
    let probes = questions.iter().map(|question| Probe::new(&body, question)).collect();
    let ending = ending(style, &questions, &mut rng);
    Story { text: format!("{body}{ending}"), probes }
}

/// The purpose is part of the key, so no two splits and styles share a story. These keys predate
/// the names of today: changing one would change every story.
pub(crate) fn story_rng(seed: u64, split: Split, style: StoryStyle, index: u64) -> ChaCha8Rng {
    let purpose = match (split, style) {
        (Split::Train, StoryStyle::General) => b"train general   ",
        (Split::Train, StoryStyle::Hq) => b"train hq        ",
        (Split::Train, StoryStyle::Plain) => b"train plain     ",
        (Split::HeldOut, StoryStyle::General) => b"held-out general",
        (Split::HeldOut, StoryStyle::Hq) => b"held-out hq     ",
        (Split::HeldOut, StoryStyle::Plain) => b"held-out plain  ",
    };
    keyed_rng(seed, purpose, index)
}

/// The random generator of one item. Its key is `seed (8 bytes) | index (8) | purpose (16)`.
pub(crate) fn keyed_rng(seed: u64, purpose: &[u8; 16], index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&index.to_le_bytes());
    key[16..].copy_from_slice(purpose);
    ChaCha8Rng::from_seed(key)
}

fn render_body(scenario: &Scenario, rng: &mut ChaCha8Rng) -> String {
    let opening = opening::render(&scenario.start, rng);
    let middle = renderer::render(&scenario.start, &scenario.steps, rng);
    let closing = if rng.random_bool(0.4) { pick(rng, CLOSINGS) } else { "" };
    format!("{opening} {middle} {closing}").trim_end().to_owned()
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

/// What follows the body. General stories contain the same forms as the others, so that a model
/// has met them before a phase that trains on the others.
fn ending(style: StoryStyle, questions: &[Question], rng: &mut ChaCha8Rng) -> String {
    let shown = match style {
        StoryStyle::Hq | StoryStyle::Plain => questions.len(),
        StoryStyle::General if rng.random_bool(0.4) => 0,
        StoryStyle::General if rng.random_bool(0.5) => 1,
        StoryStyle::General => return outcome(questions, rng),
    };
    questions[..shown].iter().map(|question| format!(" {}", question.with_statement())).collect()
}

/// "In the end, the key was in the blue box."
fn outcome(questions: &[Question], rng: &mut ChaCha8Rng) -> String {
    let can_change = |it: &&Question| {
        matches!(it.kind, QuestionKind::Whereabouts | QuestionKind::Holder | QuestionKind::Place)
    };
    let Some(question) = questions.iter().find(can_change) else { return String::new() };
    let statement = question.statement();
    let statement = match statement.strip_prefix("The ") {
        Some(rest) => format!("the {rest}"),
        None => statement,
    };
    format!(" {}{statement}", pick(rng, ENDS))
}
