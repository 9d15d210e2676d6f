//! Questions about the end of a story, with the answers the world gives: the recap of the high
//! quality telling, and the probes a trained model is checked with.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::model::{Entity, Fact, PersonId, Relation, World};
use super::plot::Episode;
use super::stage::{Beat, Note};

/// The kinds of questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// In which container or place is a thing?
    Whereabouts,
    /// Who has a thing?
    Holder,
    /// In which place is a person?
    Place,
    /// What colour has a thing?
    Colour,
    /// Who is somebody's friend?
    Friend,
    /// Which colour does somebody like?
    Liking,
    /// Which thing does somebody have?
    Possession,
    /// Which thing is in a container?
    Contents,
}

/// A question and its answer, in the pieces a text or a probe is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What is asked about.
    pub kind: Kind,
    /// The fact that answers it.
    pub fact: Fact,
    /// The question: "Where was the key?"
    pub asked: String,
    /// The answer up to the word that matters: "The key was in the"; may be empty.
    pub stem: String,
    /// What matters: "blue box".
    pub answer: String,
    /// What ends the answer: "." or " had the key."
    pub tail: String,
}

impl Question {
    /// The answer as a sentence.
    pub fn statement(&self) -> String {
        let stem = &self.stem;
        let space = if stem.is_empty() { "" } else { " " };
        format!("{stem}{space}{}{}", self.answer, self.tail)
    }

    /// The question and its answer.
    pub fn exchange(&self) -> String {
        format!("{} {}", self.asked, self.statement())
    }
}

/// All questions the episode answers, in random order, but the first is about a thing, and those
/// one must have followed the story for come before the rest. Now and then the third is one of the others.
pub fn questions(episode: &Episode, rng: &mut ChaCha8Rng) -> Vec<Question> {
    let facts = episode.end.facts();
    let told = facts.into_iter().filter(|fact| is_told(episode, fact));
    let mut questions: Vec<_> = told.filter_map(|fact| question(&episode.end, fact)).collect();
    questions.shuffle(rng);
    questions.sort_by_key(|question| !moved(episode, question));
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

/// No two questions with the same answer: the second would be answered by the first.
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
    matches!(question.kind, Kind::Whereabouts | Kind::Holder)
}

/// Whether what is asked about changed in the course of the story.
fn moved(episode: &Episode, question: &Question) -> bool {
    !episode.start.facts().contains(&question.fact)
}

/// Places, holders and colours are told in every opening; likings only by a note, and to be asked
/// who is whose friend is too easy where there are but two.
fn is_told(episode: &Episode, fact: &Fact) -> bool {
    match (fact.relation, fact.subject) {
        (Relation::Likes, Entity::Person(person)) => episode.beats.iter().any(|beat| {
            matches!(beat, Beat::Note(Note::LikesColour, roles) if roles.actor == Some(person))
        }),
        (Relation::FriendIs, _) => episode.start.people.len() > 2,
        _ => true,
    }
}

/// The question that a fact answers, if there is one.
pub(super) fn question(world: &World, fact: Fact) -> Option<Question> {
    let answer = world.label(fact.object);
    let (kind, asked, stem, tail) = match (fact.subject, fact.relation) {
        (Entity::Thing(_), relation) => of_thing(world, fact.subject, relation)?,
        (Entity::Person(person), relation) => of_person(world, person, relation)?,
        _ => return None,
    };
    Some(Question { kind, fact, asked, stem, answer, tail })
}

type Pieces = (Kind, String, String, String);

fn of_thing(world: &World, subject: Entity, relation: Relation) -> Option<Pieces> {
    let Entity::Thing(id) = subject else { return None };
    let (noun, alone) = (world.thing(id).noun, world.is_only_one(id));
    let label = if alone { noun.to_owned() } else { world.label(subject) };
    match relation {
        Relation::IsIn => Some((
            Kind::Whereabouts,
            format!("Where was the {label}?"),
            format!("The {label} was in the"),
            ".".to_owned(),
        )),
        Relation::HeldBy => Some((
            Kind::Holder,
            format!("Who had the {label}?"),
            String::new(),
            format!(" had the {label}."),
        )),
        Relation::HasColour if alone => Some((
            Kind::Colour,
            format!("What colour was the {noun}?"),
            format!("The {noun} was"),
            ".".to_owned(),
        )),
        _ => None,
    }
}

fn of_person(world: &World, person: PersonId, relation: Relation) -> Option<Pieces> {
    let name = world.person(person).name;
    let (kind, asked, stem) = match relation {
        Relation::IsIn => (Kind::Place, format!("Where was {name}?"), format!("{name} was in the")),
        Relation::FriendIs => {
            (Kind::Friend, format!("Who was {name}'s friend?"), format!("{name}'s friend was"))
        }
        Relation::Likes => (
            Kind::Liking,
            format!("What colour did {name} like?"),
            format!("{name} liked the colour"),
        ),
        _ => return None,
    };
    Some((kind, asked, stem, ".".to_owned()))
}
