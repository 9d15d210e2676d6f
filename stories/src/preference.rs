//! Preferences: two answers to a question, of which one is better. The better one is right and
//! short; the other is wrong, or right but rambling.

use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::dialogue::Difficulty;
use crate::item::{QuestionAnswer, Split, keyed_rng};
use crate::outside::trained_question;
use crate::question::Question;
use crate::short_answer::story_questions;
use crate::short_story::ShortStory;

/// One preference in so many, in training: not to know is better than to answer from the story.
const OUTSIDE_EVERY: u64 = 10;

/// How often the rejected answer is right but rambling.
const RAMBLING: f64 = 0.5;

/// A question about a short story with a chosen and a rejected answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoryPreference {
    /// One paragraph of short sentences.
    pub story: String,
    /// The question about it.
    pub question: String,
    /// The right, short answer.
    pub chosen: String,
    /// The worse answer.
    pub rejected: String,
}

impl StoryPreference {
    /// One line of a preference file: `{"prompt": …, "chosen": …, "rejected": …}`.
    pub fn to_json_line(&self) -> String {
        let prompt = format!("{} {}", self.story, self.question);
        json!({"prompt": prompt, "chosen": self.chosen, "rejected": self.rejected}).to_string()
    }
}

/// The preference of that index. Its story belongs to no other split and to no dialogue.
pub fn preference(seed: u64, split: Split, index: u64) -> StoryPreference {
    let purpose = match split {
        Split::Train => b"train prefer    ",
        Split::HeldOut => b"held-out prefer ",
    };
    let mut rng = keyed_rng(seed, purpose, index);
    let story = ShortStory::sample(&mut rng, Difficulty::of(split, index).scene_size(), split);
    let questions = story_questions(&story, &mut rng);
    let (question, others) = questions.split_first().expect("a short story states facts");
    let chosen = question.short_answer(&story.end);
    if index % OUTSIDE_EVERY == OUTSIDE_EVERY - 1 && split == Split::Train {
        // What the story says is the worse answer here: nobody asked for it.
        let QuestionAnswer { question, answer } = trained_question(&mut rng);
        return StoryPreference { story: story.text, question, chosen: answer, rejected: chosen };
    }
    let wrong = wrong_answer(&story, question, &mut rng);
    let rejected = match wrong {
        Some(wrong) if !rng.random_bool(RAMBLING) => wrong,
        _ => rambling_answer(question, others, &chosen, &mut rng),
    };
    StoryPreference { story: story.text, question: question.text.clone(), chosen, rejected }
}

/// A short answer that names something else from the story or, if the story has nothing of the
/// kind, from another story.
fn wrong_answer(story: &ShortStory, question: &Question, rng: &mut ChaCha8Rng) -> Option<String> {
    if let Some(distractor) = question.distractors(story).choose(rng) {
        return Some(question.short_answer_naming(&story.end, *distractor));
    }
    // From training stories in both splits: no held-out scene shows in training.
    let foreign = ShortStory::sample(rng, Difficulty::ThreeOfEach.scene_size(), Split::Train);
    let others = story_questions(&foreign, rng);
    let other = others.iter().find(|other| other.kind == question.kind)?;
    let answer = other.short_answer(&foreign.end);
    // The other story may happen to have the same answer, which is then right.
    (answer != question.short_answer(&story.end)).then_some(answer)
}

/// The right answer, short or in full, followed by facts that were not asked for.
fn rambling_answer(
    question: &Question,
    others: &[Question],
    chosen: &str,
    rng: &mut ChaCha8Rng,
) -> String {
    let first = if rng.random_bool(0.5) { chosen.to_owned() } else { question.statement() };
    let more = rng.random_range(1..=2);
    others.iter().take(more).fold(first, |text, other| text + " " + &other.statement())
}
