//! Stories as a pure function of seed, split, style and index.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::item::{Probe, Split, Story, StoryStyle, keyed_rng};
use crate::question::{Question, QuestionKind, questions};
use crate::sample::pick;
use crate::scenario::Scenario;
use crate::templates::{CLOSINGS, ENDS};
use crate::{dialogue, opening, renderer};

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

fn render_body(scenario: &Scenario, rng: &mut ChaCha8Rng) -> String {
    let opening = opening::render(&scenario.start, rng);
    let middle = renderer::render(&scenario.start, &scenario.steps, rng);
    let closing = if rng.random_bool(0.4) { pick(rng, CLOSINGS) } else { "" };
    format!("{opening} {middle} {closing}").trim_end().to_owned()
}

/// What follows the body. General stories contain the same forms as the others, so that a model
/// has met them before a phase that trains on the others.
fn ending(style: StoryStyle, questions: &[Question], rng: &mut ChaCha8Rng) -> String {
    // Of general stories 40 % end here, 30 % show one question and 30 % the outcome.
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
    // Inside a sentence an article loses its capital, a name does not.
    let statement = match statement.strip_prefix("The ") {
        Some(rest) => format!("the {rest}"),
        None => statement,
    };
    format!(" {}{statement}", pick(rng, ENDS))
}
