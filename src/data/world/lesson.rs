//! Conversations about short stories, as others ask for them: a pure function of seed, split and
//! index. Every answer is a fact that the story states.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::account::Account;
use super::genesis::pick;
use super::inquiry::{Inquiry, inquiries};
use super::telling::{Probe, Split, Story, keyed};

/// How many questions a conversation has.
const QUESTIONS: std::ops::RangeInclusive<usize> = 2..=4;

/// How many of a kind a story has, which decides what it takes to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cast {
    /// One person, one container and one thing: the answer is what the story says last of its kind.
    One,
    /// Three of each: one must also know which of them is meant.
    Three,
}

impl Cast {
    pub(super) fn numbers(self) -> (usize, usize, usize) {
        match self {
            Self::One => (1, 1, 1),
            Self::Three => (3, 3, 3),
        }
    }

    /// Every fourth story has three of a kind.
    pub(super) fn of(index: u64) -> Self {
        if index % 4 == 3 { Self::Three } else { Self::One }
    }
}

/// A conversation about a short story: every answer is a fact the story states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lesson {
    /// How many of a kind the story has.
    pub cast: Cast,
    /// The story, one paragraph of short sentences.
    pub story: String,
    /// What is asked about it, in order.
    pub exchanges: Vec<Exchange>,
}

/// A question and the one right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The question: "Where was the key?"
    pub question: String,
    /// The answer: "In the blue box."
    pub answer: String,
}

/// The conversation of that index. Its story is no other split's.
pub fn lesson(seed: u64, split: Split, index: u64) -> Lesson {
    let purpose = match split {
        Split::Train => b"train lesson    ",
        Split::HeldOut => b"held-out lesson ",
    };
    let mut rng = keyed(seed, purpose, index);
    let cast = Cast::of(index);
    let account = Account::generate(&mut rng, cast.numbers(), split);
    let mut asked = inquiries(&account, &mut rng);
    asked.truncate(rng.random_range(QUESTIONS));
    let exchange =
        |one: Inquiry| Exchange { answer: one.short(&account.end), question: one.question.asked };
    let exchanges = asked.into_iter().map(exchange).collect();
    Lesson { cast, exchanges, story: account.text }
}

/// How many people, containers and things a plain story has: the easy ones show a model what it is
/// about, the full ones are like those of the lessons.
const SIZES: &[(usize, usize, usize)] = &[(1, 1, 1), (1, 1, 1), (2, 2, 2), (3, 3, 3)];

/// The plain telling: an account, everything that can be asked about it, and the answers as full
/// sentences. All of it repeats what was stated, so it is dense in things to be looked up.
pub(super) fn recital(rng: &mut ChaCha8Rng, split: Split) -> Story {
    let size = pick(rng, SIZES);
    let account = Account::generate(rng, size, split);
    let asked = inquiries(&account, rng);
    let probes = asked.iter().map(|one| Probe::after(&account.text, &one.question)).collect();
    let exchanges = asked.iter().map(|one| one.question.exchange());
    let text = exchanges.fold(account.text.clone(), |said, exchange| said + " " + &exchange);
    Story { text, probes }
}
