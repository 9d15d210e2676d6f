//! Dialogues: a short story, then questions about it with short answers. Every answer is a fact
//! that the story states; in training some questions are about something else, which nobody knows.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::item::{Probe, QuestionAnswer, Split, Story, keyed_rng};
use crate::outside::{held_out_question, trained_question};
use crate::question::Question;
use crate::sample::{SceneSize, pick};
use crate::short_answer::story_questions;
use crate::short_story::ShortStory;

/// Share of training dialogues that have no story.
const OUTSIDE_ALONE: f64 = 0.04;
/// Share of the others in which something is asked that the story is not about.
const OUTSIDE: f64 = 0.15;

const QUESTIONS_PER_DIALOGUE: std::ops::RangeInclusive<usize> = 2..=4;

/// How many entities of each kind the story has, and whether it has the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Difficulty {
    /// One person, one container, one thing: the answer is the last of its kind that is mentioned.
    OneOfEach,
    /// Three of each: the reader must also tell them apart.
    ThreeOfEach,
    /// Asked about the world outside: no story has the answer.
    Outside,
}

impl Difficulty {
    pub(crate) fn scene_size(self) -> SceneSize {
        match self {
            Self::OneOfEach | Self::Outside => (1, 1, 1),
            Self::ThreeOfEach => (3, 3, 3),
        }
    }

    /// Every fourth story is a difficult one, in training every second: the easy ones are learnt soon.
    pub(crate) fn of(split: Split, index: u64) -> Self {
        let every = if split == Split::Train { 2 } else { 4 };
        if index % every == every - 1 { Self::ThreeOfEach } else { Self::OneOfEach }
    }
}

/// A conversation about a short story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoryDialogue {
    /// How many entities of each kind the story has.
    pub difficulty: Difficulty,
    /// One paragraph of short sentences; empty where only the world outside is asked about.
    pub story: String,
    /// The questions, in order.
    pub turns: Vec<QuestionAnswer>,
}

impl StoryDialogue {
    fn outside(story: String, asked: QuestionAnswer) -> Self {
        Self { difficulty: Difficulty::Outside, story, turns: vec![asked] }
    }

    /// The user's message of that turn. The first one begins with the story.
    pub fn user_message(&self, turn: usize) -> String {
        let question = &self.turns[turn].question;
        let begins = turn == 0 && !self.story.is_empty();
        if begins { format!("{} {question}", self.story) } else { question.clone() }
    }

    /// One line of a chat file: `{"messages": …}`.
    pub fn to_json_line(&self) -> String {
        let messages = self.turns.iter().enumerate().flat_map(|(turn, it)| {
            [
                json!({"role": "user", "content": self.user_message(turn)}),
                json!({"role": "assistant", "content": it.answer}),
            ]
        });
        json!({"messages": messages.collect::<Vec<_>>()}).to_string()
    }
}

/// The dialogue of that index. Its story belongs to no other split.
pub fn dialogue(seed: u64, split: Split, index: u64) -> StoryDialogue {
    let purpose = match split {
        Split::Train => b"train lesson    ",
        Split::HeldOut => b"held-out lesson ",
    };
    let mut rng = keyed_rng(seed, purpose, index);
    let difficulty = Difficulty::of(split, index);
    let story = ShortStory::sample(&mut rng, difficulty.scene_size(), split);
    let mut questions = story_questions(&story, &mut rng);
    questions.truncate(rng.random_range(QUESTIONS_PER_DIALOGUE));
    let turn =
        |it: Question| QuestionAnswer { answer: it.short_answer(&story.end), question: it.text };
    let turns = questions.into_iter().map(turn).collect();
    let dialogue = StoryDialogue { difficulty, story: story.text, turns };
    match split {
        Split::Train => with_outside(dialogue, seed, index),
        Split::HeldOut => dialogue,
    }
}

/// The held-out question of that number about the world outside, of [`crate::OUTSIDE_QUESTIONS`]: in turns
/// on its own and after a held-out story.
pub fn outside_dialogue(seed: u64, number: usize) -> Option<StoryDialogue> {
    let asked = held_out_question(number)?;
    let story = || dialogue(seed, Split::HeldOut, number as u64).story;
    let story = if number.is_multiple_of(2) { String::new() } else { story() };
    Some(StoryDialogue::outside(story, asked))
}

/// Some dialogues have a question about the world outside, at any turn; a few have nothing else, as
/// when somebody only says hello.
fn with_outside(mut dialogue: StoryDialogue, seed: u64, index: u64) -> StoryDialogue {
    // A generator of its own: the stories stay what they are without these questions.
    let mut rng = keyed_rng(seed, b"outside question", index);
    let asked = trained_question(&mut rng);
    if rng.random_bool(OUTSIDE_ALONE) {
        return StoryDialogue::outside(String::new(), asked);
    }
    if rng.random_bool(OUTSIDE) {
        dialogue.turns.insert(rng.random_range(0..=dialogue.turns.len()), asked);
    }
    dialogue
}

/// Small scenes are the easy ones to learn the form from; large ones are like those of dialogues.
const PLAIN_SIZES: &[SceneSize] = &[(1, 1, 1), (1, 1, 1), (2, 2, 2), (3, 3, 3)];

/// A plain story: a short story, then every question about it with its full answer. The answers
/// repeat what was stated, so the text is dense in facts to look up.
pub(crate) fn plain_story(rng: &mut ChaCha8Rng, split: Split) -> Story {
    let size = pick(rng, PLAIN_SIZES);
    let story = ShortStory::sample(rng, size, split);
    let questions = story_questions(&story, rng);
    let probes = questions.iter().map(|question| Probe::new(&story.text, question)).collect();
    let statements = questions.iter().map(Question::with_statement);
    let text = statements.fold(story.text.clone(), |text, next| text + " " + &next);
    Story { text, probes }
}
