//! Learns the merges of byte-pair encoding: the same ones as the `tokenizers` package, in a fraction
//! of its memory. A symbol of a word takes four bytes and a place of a pair four more.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use tokenizers::models::bpe::BPE;

/// Two neighbours, by the numbers of their tokens.
type Pair = (u32, u32);

/// What was learned.
pub(crate) struct LearnedMerges {
    /// The alphabet, then what the merges make.
    pub(crate) tokens: Vec<String>,
    /// Two tokens that become one, in the order in which they were learned.
    pub(crate) pairs: Vec<Pair>,
}

impl LearnedMerges {
    pub(crate) fn into_model(self) -> BPE {
        let token = |number: u32| self.tokens[number as usize].clone();
        let merges = self.pairs.iter().map(|&(a, b)| (token(a), token(b))).collect();
        let vocabulary = self.tokens.iter().cloned().zip(0..).collect();
        BPE::new(vocabulary, merges)
    }
}

/// Learns merges of `words` with their counts until there are `vocab_size` tokens or no pair is
/// left. The words are made of the letters of `alphabet`, which is sorted.
pub(crate) fn learn_merges(
    words: impl Iterator<Item = (Box<str>, u64)>,
    alphabet: &[char],
    vocab_size: usize,
) -> LearnedMerges {
    let mut learner = Learner::new(Words::new(words, alphabet), alphabet);
    let mut pairs = Vec::new();
    while learner.tokens.len() < vocab_size {
        let Some(top) = learner.most_frequent() else { break };
        pairs.push(top.pair());
        learner.merge(&top);
    }
    LearnedMerges { tokens: learner.tokens, pairs }
}

/// Words as runs of tokens in one list; a merge makes its words shorter in their places.
struct Words {
    symbols: Vec<u32>,
    /// Where each begins in the list, and how many tokens it has now.
    spans: Vec<(u32, u32)>,
    /// At most one a byte of text, which is bounded.
    counts: Vec<i32>,
}

impl Words {
    /// Words of a single letter have no pair and are left out.
    fn new(words: impl Iterator<Item = (Box<str>, u64)>, alphabet: &[char]) -> Self {
        let (mut symbols, mut spans, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (word, count) in words {
            let start = symbols.len();
            let place = |letter| alphabet.binary_search(&letter).ok().map(|place| place as u32);
            symbols.extend(word.chars().filter_map(place));
            if symbols.len() - start < 2 {
                symbols.truncate(start);
                continue;
            }
            spans.push((start as u32, (symbols.len() - start) as u32));
            counts.push(count as i32);
        }
        Self { symbols, spans, counts }
    }

    fn pairs(&self, word: usize) -> impl Iterator<Item = Pair> {
        let (start, length) = self.spans[word];
        let symbols = &self.symbols[start as usize..(start + length) as usize];
        symbols.windows(2).map(|pair| (pair[0], pair[1]))
    }

    /// Merges a pair in a word. `change` is told of neighbours that are no longer, by -1, and of new
    /// ones, by 1.
    fn merge(&mut self, word: usize, (a, b): Pair, new: u32, mut change: impl FnMut(Pair, i32)) {
        let (start, length) = self.spans[word];
        let symbols = &mut self.symbols[start as usize..(start + length) as usize];
        let (mut read, mut written) = (0, 0);
        while read < symbols.len() {
            if symbols[read] != a || symbols.get(read + 1) != Some(&b) {
                symbols[written] = symbols[read];
                (read, written) = (read + 1, written + 1);
                continue;
            }
            if let Some(before) = written.checked_sub(1) {
                change((symbols[before], a), -1);
                change((symbols[before], new), 1);
            }
            if let Some(&after) = symbols.get(read + 2) {
                change((b, after), -1);
                change((new, after), 1);
            }
            symbols[written] = new;
            (read, written) = (read + 2, written + 1);
        }
        self.spans[word].1 = written as u32;
    }
}

/// A pair as it was counted when it was put into the queue. The largest is the most frequent one,
/// of equally frequent ones that with the smallest numbers, as in `tokenizers`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    count: i32,
    pair: Reverse<Pair>,
    /// The words with it, in ascending order.
    places: Vec<u32>,
}

impl Candidate {
    fn pair(&self) -> Pair {
        self.pair.0
    }
}

struct Learner {
    words: Words,
    tokens: Vec<String>,
    /// The number of every token: two pairs may make the same one.
    numbers: HashMap<String, u32>,
    counts: HashMap<Pair, i32>,
    queue: BinaryHeap<Candidate>,
}

impl Learner {
    fn new(words: Words, alphabet: &[char]) -> Self {
        let tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
        let numbers = tokens.iter().cloned().zip(0..).collect();
        let (mut counts, mut uses) = (HashMap::new(), HashMap::<Pair, usize>::new());
        for word in 0..words.spans.len() {
            for pair in words.pairs(word) {
                *counts.entry(pair).or_default() += words.counts[word];
                *uses.entry(pair).or_default() += 1;
            }
        }
        // Counted first: lists that grow would take twice the memory.
        let room = |(pair, uses)| (pair, Vec::with_capacity(uses));
        let mut places: HashMap<Pair, Vec<u32>> = uses.into_iter().map(room).collect();
        for word in 0..words.spans.len() {
            for pair in words.pairs(word) {
                note_place(places.entry(pair).or_default(), word);
            }
        }
        let queue = BinaryHeap::with_capacity(places.len());
        let mut learner = Self { words, tokens, numbers, counts, queue };
        learner.enqueue(places);
        learner
    }

    fn enqueue(&mut self, places: HashMap<Pair, Vec<u32>>) {
        for (pair, places) in places {
            let count = self.counts[&pair];
            if count > 0 {
                self.queue.push(Candidate { count, pair: Reverse(pair), places });
            }
        }
    }

    /// The pair to merge next, with its places.
    fn most_frequent(&mut self) -> Option<Candidate> {
        loop {
            let mut top = self.queue.pop()?;
            let count = self.counts[&top.pair()];
            if top.count == count {
                return (count > 0).then_some(top);
            }
            // Merges of others took some of it since it was counted.
            top.count = count;
            self.queue.push(top);
        }
    }

    fn merge(&mut self, top: &Candidate) {
        let new = self.token_of(top.pair());
        let mut places: HashMap<Pair, Vec<u32>> = HashMap::new();
        for &word in &top.places {
            let word = word as usize;
            let count = self.words.counts[word];
            self.words.merge(word, top.pair(), new, |pair, change| {
                *self.counts.entry(pair).or_default() += change * count;
                if change > 0 {
                    note_place(places.entry(pair).or_default(), word);
                }
            });
        }
        places.values_mut().for_each(Vec::shrink_to_fit);
        self.enqueue(places);
    }

    fn token_of(&mut self, (a, b): Pair) -> u32 {
        let token = format!("{}{}", self.tokens[a as usize], self.tokens[b as usize]);
        let next = self.tokens.len() as u32;
        let number = *self.numbers.entry(token.clone()).or_insert(next);
        if number == next {
            self.tokens.push(token);
        }
        number
    }
}

/// Adds a word once. Words come in order, so that only the last may be the same.
fn note_place(places: &mut Vec<u32>, word: usize) {
    let word = word as u32;
    if places.last() != Some(&word) {
        places.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::models::bpe::BpeTrainer;
    use tokenizers::tokenizer::Trainer;

    /// What the package learns: the tokens with their numbers, and the merges.
    fn of_the_package(texts: &[String], letters: &[char], size: usize) -> serde_json::Value {
        let mut trainer = BpeTrainer::builder()
            .vocab_size(size)
            .show_progress(false)
            .initial_alphabet(letters.iter().copied().collect())
            .build();
        let words = |text: &str| Ok(text.split(' ').map(str::to_owned).collect());
        trainer.feed(texts.iter(), words).unwrap();
        let mut model = BPE::default();
        trainer.train(&mut model).unwrap();
        serde_json::to_value(model).unwrap()
    }

    fn of_ours(texts: &[String], letters: &[char], size: usize) -> serde_json::Value {
        let mut counts: HashMap<Box<str>, u64> = HashMap::new();
        for word in texts.iter().flat_map(|text| text.split(' ')) {
            *counts.entry(word.into()).or_default() += 1;
        }
        let learned = learn_merges(counts.into_iter(), letters, size);
        serde_json::to_value(learned.into_model()).unwrap()
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(300))]

        // Few letters, so that words repeat, pairs overlap and many are equally frequent.
        #[test]
        fn merges_are_those_of_the_package(
            texts in proptest::collection::vec("([abc]{1,9} ){1,30}[abcd]{1,6}", 1..8),
            size in 4_usize..60,
        ) {
            let letters = ['a', 'b', 'c', 'd'];
            let expected = of_the_package(&texts, &letters, size);
            assert_eq!(of_ours(&texts, &letters, size), expected);
        }
    }

    #[test]
    fn a_pair_of_equal_letters_is_merged_from_the_left() {
        let words = [("aaaaa".into(), 3), ("b".into(), 9)];
        let learned = learn_merges(words.into_iter(), &['a', 'b'], 9);
        // Of two pairs three times each, that with the smaller numbers.
        assert_eq!(learned.tokens, ["a", "b", "aa", "aaa", "aaaaa"]);
        assert_eq!(learned.pairs, [(0, 0), (2, 0), (2, 3)]);
    }
}
