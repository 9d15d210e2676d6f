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
fn a_story_and_its_probe_are_frozen() {
    let first = story(7, Split::HeldOut, Telling::Hq, 108);
    assert_eq!(
        first.text,
        "One morning, there was a quiet goat named Ben in the castle. His friend Jack, a \
         brave dog, was in the hall. Mia, a kind girl, was in the school. There was a pink \
         trunk in the shop and a white trunk in the hall. Ben had a black doll and Jack had \
         a blue doll. Ben walked to the hall. Jack said to Ben, \"Please bring the blue \
         doll to Mia.\" \"Yes, I will,\" said Ben. Jack gave the blue doll to Ben. Ben \
         walked to the school and gave it to Mia. \"You are so kind,\" said Mia. In the \
         evening, Mia walked to the shop, opened the pink trunk and put the blue doll into \
         it. She closed the pink trunk. Where was the blue doll? The blue doll was in the \
         pink trunk. Where was Ben? Ben was in the school. Where was Mia? Mia was in the \
         shop."
    );
    let asked = first.probes[0].prompt.rsplit_once(". ").unwrap().1;
    assert_eq!(
        (asked, first.probes[0].answer.as_str()),
        ("Where was the blue doll? The blue doll was in the", " pink trunk.")
    );
    assert_eq!(blake3_of_many_stories(), "e10dc8fccdfccb5b");
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

/// Which of the forms of questions a probe ends with: its words that no world chooses.
fn form(probe: &Probe) -> &'static str {
    let asked = probe.prompt.rsplit_once(['.', '!']).unwrap().1.trim();
    match asked.split_whitespace().collect::<Vec<_>>()[..3] {
        ["Where", "was", "the"] => "where a thing was",
        ["Where", "was", _] => "where a person was",
        ["Who", "had", _] => "who had a thing",
        ["Who", "was", _] => "who a friend was",
        ["What", "colour", "was"] => "a colour",
        ["What", "colour", "did"] => "a liking",
        _ => panic!("no known form: {asked}"),
    }
}

#[test]
fn no_answer_can_be_guessed_from_its_frequency() {
    let mut counts: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    for probe in stories(Split::HeldOut, 2500).flat_map(|story| story.probes) {
        *counts.entry(form(&probe)).or_default().entry(probe.answer).or_default() += 1;
    }
    assert_eq!(counts.len(), 6, "every form of question is asked");
    for (form, answers) in counts {
        let (most, total) = (answers.values().max().unwrap(), answers.values().sum::<usize>());
        assert!(most * 4 <= total, "{form}: one answer makes {most} of {total}");
    }
}

#[test]
fn the_answer_and_something_else_of_its_kind_are_in_the_story() {
    for index in 0..2000 {
        let start = episode(9, Split::HeldOut, Telling::General, index).start;
        assert!(start.people.len() > 1 && start.containers.len() > 1 && start.things.len() > 1);
        for probe in story(9, Split::HeldOut, Telling::General, index).probes {
            let answer = probe.answer.trim_end_matches('.');
            assert!(probe.prompt.contains(answer), "{answer} is not in: {}", probe.prompt);
        }
    }
}

#[test]
fn stories_are_short() {
    let lengths: Vec<usize> =
        stories(Split::Train, 1000).map(|story| words(&story.text).count()).collect();
    let mean = lengths.iter().sum::<usize>() / lengths.len();
    assert!((120..=170).contains(&mean), "{mean} words on average");
    assert!(lengths.iter().all(|length| (60..=280).contains(length)));
}

#[test]
fn no_sentence_is_put_together_wrongly() {
    let wrong = [" and opened it", "picked up it", " it it ", "the it", " a a ", "{", "}"];
    for story in stories(Split::Train, 5000) {
        let found = wrong.iter().find(|wrong| story.text.contains(**wrong));
        assert_eq!(found, None, "{}", story.text);
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
