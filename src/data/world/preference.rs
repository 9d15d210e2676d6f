//! Pairs of answers of which one is better: right and short, against wrong or rambling.

use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::account::Account;
use super::inquiry::{Inquiry, inquiries};
use super::lesson::Cast;
use super::telling::{Split, keyed};

/// How often the worse answer is right but long.
const RAMBLING: f64 = 0.5;

/// A question with the right, short answer and one that is worse: wrong, or right but rambling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    /// The story, one paragraph of short sentences.
    pub story: String,
    /// The question about it.
    pub question: String,
    /// The right answer, in short.
    pub chosen: String,
    /// The worse answer.
    pub rejected: String,
}

/// The preference of that index. Its story is no other split's and no lesson's.
pub fn preference(seed: u64, split: Split, index: u64) -> Preference {
    let purpose = match split {
        Split::Train => b"train prefer    ",
        Split::HeldOut => b"held-out prefer ",
    };
    let mut rng = keyed(seed, purpose, index);
    let account = Account::generate(&mut rng, Cast::of(index).numbers(), split);
    let asked = inquiries(&account, &mut rng);
    let (one, others) = asked.split_first().expect("an account states facts");
    let chosen = one.short(&account.end);
    let wrong = wrong(&account, one, &mut rng);
    let rejected = match wrong {
        Some(wrong) if !rng.random_bool(RAMBLING) => wrong,
        _ => rambling(one, others, &chosen, &mut rng),
    };
    Preference { story: account.text, question: one.question.asked.clone(), chosen, rejected }
}

/// A short answer that names something else: of the story, or, where it has nothing of the kind, of
/// another world.
fn wrong(account: &Account, one: &Inquiry, rng: &mut ChaCha8Rng) -> Option<String> {
    if let Some(rival) = one.rivals(account).choose(rng) {
        return Some(one.reply(&account.end, *rival));
    }
    let foreign = Account::generate(rng, Cast::Three.numbers(), Split::Train);
    let kind = one.question.kind;
    let others = inquiries(&foreign, rng);
    let other = others.iter().find(|other| other.question.kind == kind)?.short(&foreign.end);
    (other != one.short(&account.end)).then_some(other)
}

/// The right answer, in short or in full, and things nobody asked for.
fn rambling(one: &Inquiry, others: &[Inquiry], chosen: &str, rng: &mut ChaCha8Rng) -> String {
    let first = if rng.random_bool(0.5) { chosen.to_owned() } else { one.question.statement() };
    let more = rng.random_range(1..=2);
    others.iter().take(more).fold(first, |said, other| said + " " + &other.question.statement())
}
