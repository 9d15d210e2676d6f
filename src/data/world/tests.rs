//! What every story must keep: events that can happen, answers that are true, worlds that never
//! meet, a vocabulary that stays closed.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rand::SeedableRng;

use super::*;

const TELLINGS: [Telling; 2] = [Telling::General, Telling::Hq];

fn stories(split: Split, count: u64) -> impl Iterator<Item = Story> {
    TELLINGS
        .into_iter()
        .flat_map(move |telling| (0..count).map(move |i| story(3, split, telling, i)))
}

fn words(text: &str) -> impl Iterator<Item = String> {
    let trim = |word: &str| word.trim_matches(|c: char| !c.is_alphabetic()).to_lowercase();
    text.split_whitespace().map(trim).filter(|word| !word.is_empty())
}

#[test]
fn the_first_story_is_frozen() {
    let first = story(7, Split::HeldOut, Telling::General, 1);
    assert!(first.text.starts_with(
        "Leo was a clever boy. Leo had a friend named Mia, who was a brave girl. There was also a \
         little boy named Paul. There was a black trunk in the yard and a green trunk in the tent."
    ));
    assert_eq!(blake3_of_many_stories(), "396e8dc2915c7a77");
}

/// A digest of many stories: any change of a word or of a draw shows here.
fn blake3_of_many_stories() -> String {
    let mut hasher = blake3::Hasher::new();
    for story in stories(Split::Train, 500) {
        hasher.update(story.text.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

#[test]
fn every_event_is_possible_and_every_note_true() {
    for telling in TELLINGS {
        for index in 0..1000 {
            let episode = episode(5, Split::Train, telling, index);
            let mut world = episode.start.clone();
            for beat in &episode.beats {
                match *beat {
                    Beat::Event(event) => {
                        assert_eq!(world.apply(event), Ok(()), "story {index}: {event:?}");
                    }
                    Beat::Note(note, roles) => {
                        assert!(note.holds(&world, roles), "story {index}: {note:?}");
                    }
                    Beat::Turn(_) => {}
                }
            }
            assert_eq!(world, episode.end, "story {index}");
        }
    }
}

#[test]
fn every_answer_is_a_fact_of_the_final_world() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for index in 0..2000 {
        let episode = episode(5, Split::HeldOut, Telling::Hq, index);
        let facts = episode.end.facts();
        let asked = questions(&episode, &mut rng);
        assert!(!asked.is_empty(), "story {index} has nothing to ask");
        for question in asked {
            assert!(facts.contains(&question.fact), "story {index}: {}", question.statement());
        }
    }
}

#[test]
fn every_probe_continues_as_the_full_telling_does() {
    for index in 0..500 {
        let story = story(5, Split::HeldOut, Telling::Hq, index);
        for probe in &story.probes {
            let question = probe.prompt.rfind('?').unwrap();
            let stem = probe.prompt[question + 1..].trim_start();
            assert!(story.text.contains(&format!("{stem}{}", probe.answer)), "{}", probe.prompt);
        }
    }
}

#[test]
fn no_held_out_story_occurs_in_training() {
    let trained: HashSet<String> = stories(Split::Train, 10_000).map(|story| story.text).collect();
    assert!(trained.len() >= 19_990, "stories differ from each other");
    assert!(stories(Split::HeldOut, 500).all(|story| !trained.contains(&story.text)));
}

#[test]
fn the_vocabulary_is_closed() {
    let vocabulary: BTreeSet<String> =
        stories(Split::Train, 2500).flat_map(|s| words(&s.text).collect::<Vec<_>>()).collect();
    assert!((150..=400).contains(&vocabulary.len()), "{} words", vocabulary.len());
}

#[test]
fn no_answer_can_be_guessed_from_its_frequency() {
    let mut counts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for story in stories(Split::HeldOut, 2500) {
        for probe in story.probes {
            let question = probe.prompt.rsplit_once(". ").unwrap().1;
            let kind = question.split_whitespace().next().unwrap().to_owned();
            *counts.entry(kind).or_default().entry(probe.answer).or_default() += 1;
        }
    }
    for (kind, answers) in counts {
        let (most, total) = (answers.values().max().unwrap(), answers.values().sum::<usize>());
        assert!(most * 4 <= total, "{kind}: one answer makes {most} of {total}");
    }
}

#[test]
fn sentences_begin_with_a_capital_and_stories_end_with_a_full_stop() {
    for story in stories(Split::Train, 1000) {
        assert!(story.text.ends_with(['.', '!', '"']), "{}", story.text);
        for sentence in story.text.split(". ") {
            let first = sentence.chars().find(|c| c.is_alphabetic()).unwrap();
            assert!(first.is_uppercase(), "{sentence}");
        }
        assert!(!story.text.contains("  ") && !story.text.contains(" ."), "{}", story.text);
    }
}
