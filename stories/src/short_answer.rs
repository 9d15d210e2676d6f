//! Questions about a short story, their short answers, and distractors: wrong answers that name
//! something else in the story.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::question::{Question, QuestionKind, question};
use crate::renderer::capitalised;
use crate::scene::{Entity, Fact, Relation, Scene};
use crate::short_story::ShortStory;

/// All questions the story answers, in random order, except that every kind comes once before any
/// comes twice. No fact is asked for twice.
pub(crate) fn story_questions(story: &ShortStory, rng: &mut ChaCha8Rng) -> Vec<Question> {
    let facts = story.end.facts().into_iter();
    let mut all: Vec<Question> = facts.flat_map(|fact| questions_about(&story.end, fact)).collect();
    if story.start.things.len() == 1 {
        // If the one container is mentioned, the story names two colours: too easy a question.
        let mentioned = story.start.containers.iter().any(|it| story.text.contains(it.noun));
        all.retain(|question| !mentioned || question.kind != QuestionKind::Colour);
    }
    all.shuffle(rng);
    let mut kept: Vec<Question> = Vec::with_capacity(all.len());
    for question in all {
        if kept.iter().all(|other| other.fact != question.fact) {
            kept.push(question);
        }
    }
    interleave_kinds(kept)
}

/// Brings the first question of every kind before the second of any.
fn interleave_kinds(questions: Vec<Question>) -> Vec<Question> {
    let mut seen: Vec<QuestionKind> = Vec::with_capacity(questions.len());
    let mut ranked: Vec<(usize, Question)> = Vec::with_capacity(questions.len());
    for question in questions {
        let rank = seen.iter().filter(|&&kind| kind == question.kind).count();
        seen.push(question.kind);
        ranked.push((rank, question));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, question)| question).collect()
}

impl Question {
    /// "In the blue box.", "Tom had it.", "It was red.", "The key."
    pub(crate) fn short_answer(&self, scene: &Scene) -> String {
        self.short_answer_naming(scene, self.named)
    }

    /// The same form of answer, with another entity in it.
    pub(crate) fn short_answer_naming(&self, scene: &Scene, named: Entity) -> String {
        let what = match named {
            // In a short story the noun alone tells which thing is meant.
            Entity::Thing(thing) => scene.thing(thing).noun.to_owned(),
            other => scene.label(other),
        };
        match self.kind {
            QuestionKind::Whereabouts | QuestionKind::Place => format!("In the {what}."),
            QuestionKind::Holder => format!("{what} had it."),
            QuestionKind::Colour => format!("It was {what}."),
            QuestionKind::Possession | QuestionKind::Contents => format!("The {what}."),
            QuestionKind::Friend | QuestionKind::Liking => format!("{}.", capitalised(&what)),
        }
    }

    /// Other entities of the kind that was asked for, which the story names and which are wrong.
    pub(crate) fn distractors(&self, story: &ShortStory) -> Vec<Entity> {
        let facts = story.start.facts().into_iter().chain(story.end.facts());
        let stated = facts.filter(|fact| is_stated(*fact));
        let mut found: Vec<Entity> = Vec::new();
        for entity in stated.flat_map(|fact| [fact.subject, fact.object]) {
            if self.is_distractor(&story.end, entity) && !found.contains(&entity) {
                found.push(entity);
            }
        }
        found
    }

    fn is_distractor(&self, scene: &Scene, other: Entity) -> bool {
        let fits = match self.kind {
            QuestionKind::Whereabouts => matches!(other, Entity::Place(_) | Entity::Container(_)),
            QuestionKind::Place => matches!(other, Entity::Place(_)),
            QuestionKind::Holder | QuestionKind::Friend => matches!(other, Entity::Person(_)),
            QuestionKind::Colour | QuestionKind::Liking => matches!(other, Entity::Colour(_)),
            QuestionKind::Possession | QuestionKind::Contents => matches!(other, Entity::Thing(_)),
        };
        // A thing in a box in the garden is also in the garden.
        let also_right = match (self.kind, self.fact.subject) {
            (QuestionKind::Whereabouts, Entity::Thing(thing)) => {
                Some(Entity::Place(scene.place_of(thing)))
            }
            _ => None,
        };
        fits && other != self.named && Some(other) != also_right
    }
}

/// A short story states where people are, and where things are and their colours.
fn is_stated(fact: Fact) -> bool {
    match fact.subject {
        Entity::Person(_) => fact.relation == Relation::IsIn,
        Entity::Thing(_) => true,
        Entity::Container(_) | Entity::Place(_) | Entity::Colour(_) => false,
    }
}

/// The questions that a fact answers, from either side.
fn questions_about(scene: &Scene, fact: Fact) -> Vec<Question> {
    if !is_stated(fact) {
        return Vec::new();
    }
    question(scene, fact).into_iter().chain(reversed(scene, fact)).collect()
}

/// "What did Tom have?" and "What was in the blue box?", if there is only one answer.
fn reversed(scene: &Scene, fact: Fact) -> Option<Question> {
    let Entity::Thing(thing) = fact.subject else { return None };
    let is_answer =
        |other: &&Fact| other.object == fact.object && matches!(other.subject, Entity::Thing(_));
    if scene.facts().iter().filter(is_answer).count() > 1 {
        return None;
    }
    let object = scene.label(fact.object);
    let (kind, text, stem, tail) = match (fact.relation, fact.object) {
        (Relation::HeldBy, Entity::Person(_)) => (
            QuestionKind::Possession,
            format!("What did {object} have?"),
            format!("{object} had the"),
            ".".to_owned(),
        ),
        (Relation::IsIn, Entity::Container(_)) => (
            QuestionKind::Contents,
            format!("What was in the {object}?"),
            "The".to_owned(),
            format!(" was in the {object}."),
        ),
        _ => return None,
    };
    let answer = scene.thing(thing).noun.to_owned();
    Some(Question { kind, fact, named: fact.subject, text, stem, answer, tail })
}
