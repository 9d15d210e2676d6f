//! Properties of every long story: possible events, true answers, disjoint splits, a closed
//! vocabulary.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rand::SeedableRng;

use crate::builder::Step;
use crate::question::questions;
use crate::scenario::Scenario;
use crate::story::story_rng;
use crate::*;

const STYLES: [StoryStyle; 2] = [StoryStyle::General, StoryStyle::Hq];

fn scenario(seed: u64, split: Split, style: StoryStyle, index: u64) -> Scenario {
    Scenario::sample(&mut story_rng(seed, split, style, index))
}

fn stories(split: Split, count: u64) -> impl Iterator<Item = Story> {
    STYLES.into_iter().flat_map(move |style| (0..count).map(move |i| story(3, split, style, i)))
}

fn words(text: &str) -> impl Iterator<Item = String> {
    let trim = |word: &str| word.trim_matches(|c: char| !c.is_alphabetic()).to_lowercase();
    text.split_whitespace().map(trim).filter(|word| !word.is_empty())
}

#[test]
fn a_story_and_its_probe_are_frozen() {
    let first = story(7, Split::HeldOut, StoryStyle::Hq, 108);
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
}

#[test]
fn every_event_is_possible_and_every_note_true() {
    for style in STYLES {
        for index in 0..1000 {
            let scenario = scenario(5, Split::Train, style, index);
            let mut scene = scenario.start.clone();
            for step in &scenario.steps {
                match *step {
                    Step::Event(event) => {
                        assert_eq!(scene.apply(event), Ok(()), "story {index}: {event:?}");
                    }
                    Step::Remark(remark, slots) => {
                        assert!(remark.holds(&scene, slots), "story {index}: {remark:?}");
                    }
                    Step::TimeShift(_) => {}
                }
            }
            assert_eq!(scene, scenario.end, "story {index}");
        }
    }
}

#[test]
fn every_answer_is_a_fact_of_the_final_world() {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    for index in 0..2000 {
        let scenario = scenario(5, Split::HeldOut, StoryStyle::Hq, index);
        let facts = scenario.end.facts();
        let asked = questions(&scenario, &mut rng);
        assert!(!asked.is_empty(), "story {index} has nothing to ask");
        for question in asked {
            assert!(facts.contains(&question.fact), "story {index}: {}", question.statement());
        }
    }
}

#[test]
fn every_probe_continues_as_the_full_telling_does() {
    for index in 0..500 {
        let story = story(5, Split::HeldOut, StoryStyle::Hq, index);
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

/// Which of the forms of questions a probe ends with: its words that no scene chooses.
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
        let start = scenario(9, Split::HeldOut, StoryStyle::General, index).start;
        assert!(start.people.len() > 1 && start.containers.len() > 1 && start.things.len() > 1);
        for probe in story(9, Split::HeldOut, StoryStyle::General, index).probes {
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

/// Freezes all texts of the dataset: any change of a word or of a random draw shows here.
#[test]
fn the_dataset_is_frozen() {
    let mut hasher = blake3::Hasher::new();
    for split in [Split::Train, Split::HeldOut] {
        for index in 0..500 {
            let one = dialogue(3, split, index);
            let mut fields = vec![one.story];
            fields.extend(one.turns.into_iter().flat_map(|it| [it.question, it.answer]));
            let it = preference(3, split, index);
            fields.extend([it.story, it.question, it.chosen, it.rejected]);
            for style in [StoryStyle::General, StoryStyle::Hq, StoryStyle::Plain] {
                let it = story(3, split, style, index);
                fields.push(it.text);
                fields.extend(it.probes.into_iter().flat_map(|it| [it.prompt, it.answer]));
            }
            hasher.update(fields.join("\n").as_bytes());
        }
    }
    assert_eq!(&hasher.finalize().to_hex()[..16], "49784491816413f2");
}
