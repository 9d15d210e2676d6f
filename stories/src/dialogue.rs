//! Dialogues: a short story, then questions about it with short answers. Every answer is a fact
//! that the story states.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::item::{Probe, Split, Story, keyed_rng};
use crate::question::Question;
use crate::sample::{SceneSize, pick};
use crate::short_answer::story_questions;
use crate::short_story::ShortStory;

const QUESTIONS_PER_DIALOGUE: std::ops::RangeInclusive<usize> = 2..=4;

/// How many entities of each kind the story has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Difficulty {
    /// One person, one container, one thing: the answer is the last of its kind that is mentioned.
    OneOfEach,
    /// Three of each: the reader must also tell them apart.
    ThreeOfEach,
}

impl Difficulty {
    pub(crate) fn scene_size(self) -> SceneSize {
        match self {
            Self::OneOfEach => (1, 1, 1),
            Self::ThreeOfEach => (3, 3, 3),
        }
    }

    /// Every fourth story is a difficult one.
    pub(crate) fn of(index: u64) -> Self {
        if index % 4 == 3 { Self::ThreeOfEach } else { Self::OneOfEach }
    }
}

/// A conversation about a short story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoryDialogue {
    /// How many entities of each kind the story has.
    pub difficulty: Difficulty,
    /// One paragraph of short sentences.
    pub story: String,
    /// The questions, in order.
    pub turns: Vec<QuestionAnswer>,
}

/// A question and its only right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuestionAnswer {
    /// "Where was the key?"
    pub question: String,
    /// "In the blue box."
    pub answer: String,
}

impl StoryDialogue {
    /// The user's message of that turn. The first one begins with the story.
    pub fn user_message(&self, turn: usize) -> String {
        let question = &self.turns[turn].question;
        if turn == 0 { format!("{} {question}", self.story) } else { question.clone() }
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
    let difficulty = Difficulty::of(index);
    let story = ShortStory::sample(&mut rng, difficulty.scene_size(), split);
    let mut questions = story_questions(&story, &mut rng);
    questions.truncate(rng.random_range(QUESTIONS_PER_DIALOGUE));
    let turn =
        |it: Question| QuestionAnswer { answer: it.short_answer(&story.end), question: it.text };
    let turns = questions.into_iter().map(turn).collect();
    StoryDialogue { difficulty, story: story.text, turns }
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
