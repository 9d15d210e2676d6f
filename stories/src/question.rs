//! Questions about the end of a story, answered from its final scene.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::builder::{Remark, Step};
use crate::scenario::Scenario;
use crate::scene::{Entity, Fact, PersonId, Relation, Scene, ThingId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuestionKind {
    /// In which container or place is a thing?
    Whereabouts,
    /// Who has a thing?
    Holder,
    /// In which place is a person?
    Place,
    /// What colour has a thing?
    Colour,
    /// Who is a person's friend?
    Friend,
    /// Which colour does a person like?
    Liking,
    /// Which thing does a person have?
    Possession,
    /// Which thing is in a container?
    Contents,
}

/// A question and its answer. The full answer is `stem answer tail`:
///
/// ```text
/// Where was the key?  The key was in the | blue box | .
/// Who had the key?                       | Mia      |  had the key.
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) kind: QuestionKind,
    /// The fact that answers it.
    pub(crate) fact: Fact,
    /// The side of the fact that the answer names.
    pub(crate) named: Entity,
    pub(crate) text: String,
    pub(crate) stem: String,
    pub(crate) answer: String,
    pub(crate) tail: String,
}

impl Question {
    /// The answer as a full sentence.
    pub(crate) fn statement(&self) -> String {
        let stem = &self.stem;
        let space = if stem.is_empty() { "" } else { " " };
        format!("{stem}{space}{}{}", self.answer, self.tail)
    }

    /// The question and its full answer.
    pub(crate) fn with_statement(&self) -> String {
        format!("{} {}", self.text, self.statement())
    }
}

/// The questions the scenario answers, in random order, but the first is about a thing if possible,
/// and those that need the whole story come before those the opening answers. Sometimes the third
/// is one of the later ones.
pub(crate) fn questions(scenario: &Scenario, rng: &mut ChaCha8Rng) -> Vec<Question> {
    let facts = scenario.end.facts();
    let stated = facts.into_iter().filter(|fact| is_stated(scenario, fact));
    let mut questions: Vec<_> = stated.filter_map(|fact| question(&scenario.end, fact)).collect();
    questions.shuffle(rng);
    // `false` comes first, and a stable sort keeps the random order within each half.
    questions.sort_by_key(|question| !moved(scenario, question));
    // People move more often than things; without this, most questions would be about them.
    if let Some(first) = questions.iter().position(is_about_a_thing) {
        questions[..=first].rotate_right(1);
    }
    if questions.len() > 3 && rng.random_bool(0.4) {
        let other = rng.random_range(3..questions.len());
        questions.swap(2, other);
    }
    distinct(questions)
}

/// Drops questions that repeat an answer: the text before them would give it away.
fn distinct(questions: Vec<Question>) -> Vec<Question> {
    let mut kept: Vec<Question> = Vec::with_capacity(questions.len());
    for question in questions {
        if kept.iter().all(|other| other.answer != question.answer) {
            kept.push(question);
        }
    }
    kept
}

fn is_about_a_thing(question: &Question) -> bool {
    matches!(question.kind, QuestionKind::Whereabouts | QuestionKind::Holder)
}

/// Whether the answer changed in the course of the story.
fn moved(scenario: &Scenario, question: &Question) -> bool {
    !scenario.start.facts().contains(&question.fact)
}

/// An opening states places, holders and colours; only a remark states a liking. With two people,
/// asking for a friend would be too easy.
fn is_stated(scenario: &Scenario, fact: &Fact) -> bool {
    match (fact.relation, fact.subject) {
        (Relation::Likes, Entity::Person(person)) => scenario.steps.iter().any(|step| {
            matches!(step, Step::Remark(Remark::LikesColour, slots) if slots.actor == Some(person))
        }),
        (Relation::FriendIs, _) => scenario.start.people.len() > 2,
        _ => true,
    }
}

/// The question whose answer names the object of the fact, if there is one.
pub(crate) fn question(scene: &Scene, fact: Fact) -> Option<Question> {
    let (kind, text, stem, tail) = match fact.subject {
        Entity::Thing(thing) => about_thing(scene, thing, fact.relation)?,
        Entity::Person(person) => about_person(scene, person, fact.relation)?,
        Entity::Container(_) | Entity::Place(_) | Entity::Colour(_) => return None,
    };
    let answer = scene.label(fact.object);
    Some(Question { kind, fact, named: fact.object, text, stem, answer, tail })
}

/// Kind, text, stem and tail.
type Parts = (QuestionKind, String, String, String);

fn about_thing(scene: &Scene, id: ThingId, relation: Relation) -> Option<Parts> {
    let (noun, unique) = (scene.thing(id).noun, scene.is_only_one(id));
    let label = if unique { noun.to_owned() } else { scene.label(Entity::Thing(id)) };
    let parts = match relation {
        Relation::IsIn => (
            QuestionKind::Whereabouts,
            format!("Where was the {label}?"),
            format!("The {label} was in the"),
            ".".to_owned(),
        ),
        Relation::HeldBy => (
            QuestionKind::Holder,
            format!("Who had the {label}?"),
            String::new(),
            format!(" had the {label}."),
        ),
        // Where two things share the noun, naming the thing would name its colour.
        Relation::HasColour if unique => (
            QuestionKind::Colour,
            format!("What colour was the {noun}?"),
            format!("The {noun} was"),
            ".".to_owned(),
        ),
        _ => return None,
    };
    Some(parts)
}

fn about_person(scene: &Scene, id: PersonId, relation: Relation) -> Option<Parts> {
    let name = scene.person(id).name;
    let (kind, text, stem) = match relation {
        Relation::IsIn => {
            (QuestionKind::Place, format!("Where was {name}?"), format!("{name} was in the"))
        }
        Relation::FriendIs => (
            QuestionKind::Friend,
            format!("Who was {name}'s friend?"),
            format!("{name}'s friend was"),
        ),
        Relation::Likes => (
            QuestionKind::Liking,
            format!("What colour did {name} like?"),
            format!("{name} liked the colour"),
        ),
        _ => return None,
    };
    Some((kind, text, stem, ".".to_owned()))
}
