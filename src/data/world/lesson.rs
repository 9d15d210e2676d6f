//! Conversations about short stories, as others ask for them: a pure function of seed, split and
//! index. Every answer is a fact that the story states.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::account::Account;
use super::inquiry::{Inquiry, inquiries};
use super::telling::{Probe, Split, Story, keyed};

/// How many questions a conversation has.
const QUESTIONS: std::ops::RangeInclusive<usize> = 2..=4;

/// A conversation about a short story: every answer is a fact the story states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lesson {
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
    let account = Account::generate(&mut rng);
    let mut asked = inquiries(&account, &mut rng);
    asked.truncate(rng.random_range(QUESTIONS));
    let exchange =
        |one: Inquiry| Exchange { answer: one.short(&account.end), question: one.question.asked };
    Lesson { exchanges: asked.into_iter().map(exchange).collect(), story: account.text }
}

/// The plain telling: an account, everything that can be asked about it, and the answers as full
/// sentences. All of it repeats what was stated, so it is dense in things to be looked up.
pub(super) fn recital(rng: &mut ChaCha8Rng) -> Story {
    let account = Account::generate(rng);
    let asked = inquiries(&account, rng);
    let body = account.text;
    let probes = asked.iter().map(|one| Probe::after(&body, &one.question)).collect();
    let mut text = body.clone();
    for one in &asked {
        text = text + " " + &one.question.exchange();
    }
    Story { text, probes }
}
