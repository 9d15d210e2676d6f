//! The stories as others ask for them: a pure function of seed, split, telling and index.
//!
//! How the parts of a story come about is in the other files of this room; here they are put
//! together.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::genesis::pick;
use super::phrases::{CLOSINGS, ENDS};
use super::plot::Episode;
use super::recap::{Kind, Question, questions};
use super::{lesson, narrator, opening};

/// How a story is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Telling {
    /// A plain story, which sometimes ends with what came of it.
    General,
    /// A story that always ends with questions and their answers.
    Hq,
    /// A short story in plain statements, and all that can be asked about it with the answers.
    Plain,
}

/// What a story is for. No world belongs to both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// To be trained on.
    Train,
    /// To be checked with.
    HeldOut,
}

/// A story and what can be asked after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// The text, one paragraph.
    pub text: String,
    /// Questions about the end of the story, in the form of text to be continued.
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

/// How many questions are asked about a story.
const QUESTIONS: std::ops::RangeInclusive<usize> = 2..=3;

/// The story of that index.
pub fn story(seed: u64, split: Split, telling: Telling, index: u64) -> Story {
    let mut rng = source(seed, split, telling, index);
    if telling == Telling::Plain {
        return lesson::recital(&mut rng, split);
    }
    let episode = Episode::generate(&mut rng);
    let mut asked = questions(&episode, &mut rng);
    asked.truncate(rng.random_range(QUESTIONS));
    let body = body(&episode, &mut rng);
    let probes = asked.iter().map(|question| Probe::after(&body, question)).collect();
    let ending = ending(telling, &asked, &mut rng);
    Story { text: format!("{body}{ending}"), probes }
}

/// The episode that the story of that index tells.
pub fn episode(seed: u64, split: Split, telling: Telling, index: u64) -> Episode {
    Episode::generate(&mut source(seed, split, telling, index))
}

/// A key of its own for every story: the purpose is part of the key, so splits never meet.
fn source(seed: u64, split: Split, telling: Telling, index: u64) -> ChaCha8Rng {
    let purpose = match (split, telling) {
        (Split::Train, Telling::General) => b"train general   ",
        (Split::Train, Telling::Hq) => b"train hq        ",
        (Split::Train, Telling::Plain) => b"train plain     ",
        (Split::HeldOut, Telling::General) => b"held-out general",
        (Split::HeldOut, Telling::Hq) => b"held-out hq     ",
        (Split::HeldOut, Telling::Plain) => b"held-out plain  ",
    };
    keyed(seed, purpose, index)
}

/// The source of all draws for one purpose and index.
pub(super) fn keyed(seed: u64, purpose: &[u8; 16], index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&index.to_le_bytes());
    key[16..].copy_from_slice(purpose);
    ChaCha8Rng::from_seed(key)
}

fn body(episode: &Episode, rng: &mut ChaCha8Rng) -> String {
    let opening = opening::tell(&episode.start, rng);
    let middle = narrator::tell(&episode.start, &episode.beats, rng);
    let closing = if rng.random_bool(0.4) { pick(rng, CLOSINGS) } else { "" };
    format!("{opening} {middle} {closing}").trim_end().to_owned()
}

impl Probe {
    /// The question after the body of a story.
    pub(super) fn after(body: &str, question: &Question) -> Self {
        let prompt = format!("{body} {} {}", question.asked, question.stem).trim_end().to_owned();
        // Where the sentence goes on, what follows the answer is no part of what is asked.
        let tail = if question.tail == "." { "." } else { "" };
        Self { prompt, answer: format!(" {}{tail}", question.answer) }
    }
}

/// What follows the body. Plain stories share the forms of the others, so that a model has met
/// them before it is trained on the others.
fn ending(telling: Telling, asked: &[Question], rng: &mut ChaCha8Rng) -> String {
    let exchanges = match telling {
        Telling::Hq | Telling::Plain => asked.len(),
        Telling::General if rng.random_bool(0.4) => 0,
        Telling::General if rng.random_bool(0.5) => 1,
        Telling::General => return outcome(asked, rng),
    };
    let exchanges = asked[..exchanges].iter().map(Question::exchange);
    exchanges.fold(String::new(), |said, exchange| said + " " + &exchange)
}

/// "In the end, the key was in the blue box."
fn outcome(asked: &[Question], rng: &mut ChaCha8Rng) -> String {
    let can_change =
        |it: &&Question| matches!(it.kind, Kind::Whereabouts | Kind::Holder | Kind::Place);
    let Some(question) = asked.iter().find(can_change) else { return String::new() };
    let statement = question.statement();
    let statement =
        statement.strip_prefix("The ").map_or(statement.clone(), |rest| format!("the {rest}"));
    format!(" {}{statement}", pick(rng, ENDS))
}
