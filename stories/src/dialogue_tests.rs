//! Properties of every dialogue and preference: the story states the answer, splits are disjoint,
//! and no answer can be guessed from its frequency.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::item::keyed_rng;
use crate::short_story::ShortStory;
use crate::*;

const COUNT: u64 = 2000;

fn dialogues(split: Split, count: u64) -> impl Iterator<Item = StoryDialogue> {
    (0..count).map(move |index| dialogue(3, split, index))
}

fn preferences(split: Split, count: u64) -> impl Iterator<Item = StoryPreference> {
    (0..count).map(move |index| preference(3, split, index))
}

/// Those of training, without what is asked about the world outside.
fn inside(count: u64) -> impl Iterator<Item = StoryDialogue> {
    let known = |turn: &QuestionAnswer| turn.answer != UNKNOWN;
    dialogues(Split::Train, count).filter(|it| !it.story.is_empty()).map(move |mut it| {
        it.turns.retain(known);
        it
    })
}

const UNKNOWN: &str = "I do not know.";

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty())
}

#[test]
fn a_lesson_and_a_preference_are_frozen() {
    let one = dialogue(7, Split::HeldOut, 3);
    let said: Vec<String> =
        one.turns.iter().map(|it| format!("{} {}", it.question, it.answer)).collect();
    assert_eq!(one.difficulty, Difficulty::ThreeOfEach);
    assert_eq!(
        one.story,
        "A brown stone was in the brown chest. Tom was in the shop. Finn was in the \
         school. A blue ball was in the yellow bucket. Leo was in the cellar. A green \
         doll was in the red bucket."
    );
    assert_eq!(
        said.join(" "),
        "What colour was the ball? It was blue. What was in the red bucket? The doll."
    );
    let one = dialogue(7, Split::HeldOut, 2);
    assert_eq!(one.difficulty, Difficulty::OneOfEach);
    assert_eq!(
        one.story,
        "Leo was in the kitchen. Leo had a grey kite. Leo put the kite in the white \
         bucket. Leo took the kite."
    );
    let one = preference(7, Split::HeldOut, 2);
    assert_eq!(one.question, "Where was Kate?");
    assert_eq!(
        [&*one.chosen, &one.rejected],
        ["In the tent.", "Kate was in the tent. The lamp was in the purple case."]
    );
    let plain = story(7, Split::HeldOut, StoryStyle::Plain, 2);
    assert_eq!(
        plain.text,
        "Rosa had a yellow ball. Rosa was in the cellar. Rosa went to the cave. Rosa put \
         the ball in the white basket. Where was the ball? The ball was in the white \
         basket. Where was Rosa? Rosa was in the cave."
    );
}

fn sentences(story: &str) -> impl DoubleEndedIterator<Item = &str> {
    story.split('.').map(str::trim).filter(|sentence| !sentence.is_empty())
}

/// Reads the story as a stranger would and answers from that.
#[test]
fn a_reader_who_takes_the_last_statement_answers_right() {
    for dialogue in dialogues(Split::HeldOut, COUNT) {
        for QuestionAnswer { question, answer } in &dialogue.turns {
            assert_eq!(&read(&dialogue.story, question), answer, "{} {question}", dialogue.story);
        }
    }
}

/// The answer of a reader who knows what each verb does, and nothing else.
fn read(story: &str, question: &str) -> String {
    let mut spots: BTreeMap<String, String> = BTreeMap::new();
    let mut colours: BTreeMap<String, String> = BTreeMap::new();
    for sentence in sentences(story) {
        let words: Vec<&str> = words(sentence).collect();
        let (thing, spot) = match words[..] {
            ["A", colour, noun, "was", "in", "the", ..] => {
                colours.insert(noun.into(), colour.into());
                (noun, words[6..].join(" "))
            }
            [name, "had", "a", colour, noun] => {
                colours.insert(noun.into(), colour.into());
                (noun, name.to_owned())
            }
            [name, "was" | "went", "in" | "to", "the", place] => (name, place.to_owned()),
            [name, "took", "the", noun] | [_, "gave", "the", noun, "to", name] => {
                (noun, name.to_owned())
            }
            [_, "put" | "left", "the", noun, "in", "the", ..] => (noun, words[6..].join(" ")),
            _ => panic!("nobody can read: {sentence}"),
        };
        spots.insert(thing.to_owned(), spot);
    }
    let found =
        |spot: &str| spots.iter().find(|(_, at)| *at == spot).map_or("nothing", |(thing, _)| thing);
    match words(question).collect::<Vec<_>>()[..] {
        ["Where", "was", "the", noun] => format!("In the {}.", spots[noun]),
        ["Where", "was", name] => format!("In the {}.", spots[name]),
        ["Who", "had", "the", noun] => format!("{} had it.", spots[noun]),
        ["What", "colour", "was", "the", noun] => format!("It was {}.", colours[noun]),
        ["What", "did", name, "have"] => format!("The {}.", found(name)),
        ["What", "was", "in", "the", colour, noun] => {
            format!("The {}.", found(&format!("{colour} {noun}")))
        }
        _ => panic!("nobody can answer: {question}"),
    }
}

/// What a scene begins with decides its split, so that even small scenes never meet.
#[test]
fn no_world_that_is_held_out_occurs_in_training() {
    let scenes = |split| (0..2000).map(move |index| opening_of(3, split, index));
    let trained: HashSet<String> = scenes(Split::Train).collect();
    assert!(scenes(Split::HeldOut).all(|scene| !trained.contains(&scene)));
    let mut stories: HashSet<String> = dialogues(Split::Train, 10_000).map(|it| it.story).collect();
    stories.extend(preferences(Split::Train, 5_000).map(|it| it.story));
    let plain = |index| story(3, Split::Train, StoryStyle::Plain, index).text;
    let plain: Vec<String> = (0..10_000).map(plain).collect();
    for it in dialogues(Split::HeldOut, 500) {
        assert!(!stories.contains(&it.story), "{}", it.story);
        assert!(plain.iter().all(|text| !text.starts_with(&it.story)), "{}", it.story);
    }
    assert!(preferences(Split::HeldOut, 500).all(|it| !stories.contains(&it.story)));
}

/// What a small scene begins with.
fn opening_of(seed: u64, split: Split, index: u64) -> String {
    let mut rng = keyed_rng(seed, b"test of a world ", index);
    let start = ShortStory::sample(&mut rng, (1, 1, 1), split).start;
    format!("{start:?}")
}

#[test]
fn lessons_are_short_and_ask_of_everything() {
    let mut forms = BTreeMap::new();
    for dialogue in inside(COUNT) {
        let sentences = sentences(&dialogue.story).count();
        let expected = if dialogue.difficulty == Difficulty::OneOfEach { 2..=5 } else { 6..=10 };
        assert!(expected.contains(&sentences), "{}", dialogue.story);
        assert!((2..=4).contains(&dialogue.turns.len()), "{}", dialogue.story);
        let asked: BTreeSet<&str> = dialogue.turns.iter().map(|it| &*it.question).collect();
        assert_eq!(asked.len(), dialogue.turns.len(), "nothing is asked twice");
        for turn in &dialogue.turns {
            *forms.entry(form(&turn.question)).or_insert(0) += 1;
        }
    }
    assert_eq!(forms.len(), 6, "{forms:?}");
    assert!(forms.values().all(|&count| count > 300), "{forms:?}");
}

fn form(question: &str) -> &'static str {
    match question.split_whitespace().collect::<Vec<_>>()[..3] {
        ["Where", "was", "the"] => "where a thing was",
        ["Where", "was", _] => "where a person was",
        ["Who", "had", _] => "who had a thing",
        ["What", "did", _] => "what somebody had",
        ["What", "was", _] => "what was in a container",
        ["What", "colour", _] => "a colour",
        _ => panic!("no known form: {question}"),
    }
}

#[test]
fn no_answer_of_a_lesson_can_be_guessed_from_its_frequency() {
    let mut counts: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    for turn in dialogues(Split::HeldOut, COUNT).flat_map(|dialogue| dialogue.turns) {
        *counts.entry(form(&turn.question)).or_default().entry(turn.answer).or_default() += 1;
    }
    for (form, answers) in counts {
        let (most, total) = (answers.values().max().unwrap(), answers.values().sum::<usize>());
        assert!(most * 5 <= total, "{form}: one answer makes {most} of {total}");
    }
}

#[test]
fn lessons_use_no_word_that_stories_do_not() {
    let told = |style| (0..3000).map(move |index| story(3, Split::Train, style, index).text);
    let stories: BTreeSet<String> = told(StoryStyle::General)
        .chain(told(StoryStyle::Hq))
        .flat_map(|text| words(&text).map(str::to_lowercase).collect::<Vec<_>>())
        .collect();
    let mut said: BTreeSet<String> = BTreeSet::new();
    for dialogue in inside(COUNT) {
        said.extend(words(&dialogue.story).map(str::to_lowercase));
        for turn in &dialogue.turns {
            said.extend(words(&turn.question).map(str::to_lowercase));
            said.extend(words(&turn.answer).map(str::to_lowercase));
        }
    }
    for it in preferences(Split::Train, COUNT) {
        said.extend(words(&it.rejected).map(str::to_lowercase));
    }
    let new: Vec<&String> = said.difference(&stories).collect();
    assert!(new.is_empty(), "{new:?}");
}

#[test]
fn some_of_what_training_asks_nobody_knows_and_nothing_held_out() {
    let known = |it: &QuestionAnswer| it.answer != UNKNOWN;
    assert!(dialogues(Split::HeldOut, COUNT).all(|it| it.turns.iter().all(known)));
    assert!(preferences(Split::HeldOut, COUNT).all(|it| it.chosen != UNKNOWN));
    let unknown = |it: &StoryDialogue| it.turns.iter().position(|turn| !known(turn));
    let places: BTreeSet<_> =
        dialogues(Split::Train, COUNT).filter_map(|it| unknown(&it)).collect();
    assert_eq!(places, (0..=4).collect());
    let alone = dialogues(Split::Train, COUNT).filter(|it| it.story.is_empty()).count();
    assert!((50..=110).contains(&alone), "{alone} of {COUNT}");
    let one = dialogues(Split::Train, COUNT).find(|it| it.story.is_empty()).unwrap();
    assert_eq!((one.user_message(0), one.turns.len()), (one.turns[0].question.clone(), 1));
    let asked: Vec<_> = (0..).map_while(|number| outside_dialogue(3, number)).collect();
    assert_eq!(asked.len(), OUTSIDE_QUESTIONS);
    assert!(asked.iter().all(|it| it.difficulty == Difficulty::Outside && !known(&it.turns[0])));
    let told = asked.iter().filter(|it| it.user_message(0).starts_with(&it.story));
    assert_eq!(told.filter(|it| !it.story.is_empty()).count(), OUTSIDE_QUESTIONS / 2);
    let rejected: Vec<_> =
        preferences(Split::Train, COUNT).filter(|it| it.chosen == UNKNOWN).collect();
    assert_eq!(rejected.len() as u64, COUNT / 10);
    assert!(rejected.iter().all(|it| it.rejected != UNKNOWN && !it.story.is_empty()));
}

#[test]
fn the_chosen_answer_is_right_and_the_rejected_is_wrong_or_longer() {
    let (mut wrong, mut longer) = (0, 0);
    for it in preferences(Split::HeldOut, COUNT) {
        assert_eq!(it.chosen, read(&it.story, &it.question), "{}", it.story);
        assert_ne!(it.chosen, it.rejected);
        if it.rejected.matches('.').count() == 1 {
            wrong += 1;
        } else {
            longer += 1;
        }
    }
    assert!(wrong * 3 > longer && longer * 3 > wrong, "{wrong} wrong, {longer} longer");
}

#[test]
fn the_plain_telling_states_what_it_asks() {
    for index in 0..500 {
        let plain = story(5, Split::HeldOut, StoryStyle::Plain, index);
        assert!(plain.probes.len() > 1, "{}", plain.text);
        for probe in &plain.probes {
            let question = probe.prompt.rfind('?').unwrap();
            let stem = probe.prompt[question + 1..].trim_start();
            assert!(plain.text.contains(&format!("{stem}{}", probe.answer)), "{}", probe.prompt);
        }
    }
}
