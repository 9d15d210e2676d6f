//! The inquiry: what can be asked about an account, the short answer to it, and what else of the
//! story could be mistaken for the answer.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::account::Account;
use super::model::{Entity, Fact, PersonId, Relation, World};
use super::narrator::capitalised;
use super::recap::{self, Kind, Question};

/// A question with all that can be said in reply.
#[derive(Clone, Debug)]
pub(super) struct Inquiry {
    /// The question, and the answer in the pieces of a full sentence.
    pub question: Question,
    /// What the answer names.
    pub named: Entity,
}

/// Everything that can be asked about an account, in random order, but no kind comes again before
/// every other has come; no fact is asked for twice.
pub(super) fn inquiries(account: &Account, rng: &mut ChaCha8Rng) -> Vec<Inquiry> {
    let mut all: Vec<Inquiry> =
        account.end.facts().into_iter().flat_map(|fact| about(&account.end, fact)).collect();
    if account.start.things.len() == 1 {
        // A box has a colour too: with one of each kind, no answer is to be one of two.
        let boxed = account.start.containers.iter().any(|it| account.text.contains(it.noun));
        all.retain(|inquiry| !boxed || inquiry.question.kind != Kind::Colour);
    }
    all.shuffle(rng);
    let mut kept: Vec<Inquiry> = Vec::with_capacity(all.len());
    for inquiry in all {
        if kept.iter().all(|other| other.question.fact != inquiry.question.fact) {
            kept.push(inquiry);
        }
    }
    take_turns(kept)
}

/// Brings the first question of every kind before the second of any.
fn take_turns(inquiries: Vec<Inquiry>) -> Vec<Inquiry> {
    let mut seen: Vec<Kind> = Vec::with_capacity(inquiries.len());
    let mut turns: Vec<(usize, Inquiry)> = Vec::with_capacity(inquiries.len());
    for inquiry in inquiries {
        let kind = inquiry.question.kind;
        turns.push((seen.iter().filter(|&&other| other == kind).count(), inquiry));
        seen.push(kind);
    }
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, inquiry)| inquiry).collect()
}

impl Inquiry {
    /// The short answer: "In the blue box.", "Tom had it.", "It was red.", "The key."
    pub(super) fn short(&self, world: &World) -> String {
        self.reply(world, self.named)
    }

    /// The short answer if the answer were another entity.
    pub(super) fn reply(&self, world: &World, named: Entity) -> String {
        let what = spoken(world, named);
        match self.question.kind {
            Kind::Whereabouts | Kind::Place => format!("In the {what}."),
            Kind::Holder => format!("{what} had it."),
            Kind::Colour => format!("It was {what}."),
            Kind::Possession | Kind::Contents => format!("The {what}."),
            Kind::Friend | Kind::Liking => format!("{}.", capitalised(&what)),
        }
    }

    /// Other things of the kind that was asked for, which the story names and which are wrong.
    pub(super) fn rivals(&self, account: &Account) -> Vec<Entity> {
        let (start, end) = (account.start.facts(), account.end.facts());
        let told = start.into_iter().chain(end).filter(|fact| is_told(*fact));
        let others = told.flat_map(|fact| [fact.subject, fact.object]);
        let mut rivals: Vec<Entity> = Vec::new();
        for other in others.filter(|&other| self.is_rival(&account.end, other)) {
            if !rivals.contains(&other) {
                rivals.push(other);
            }
        }
        rivals
    }

    fn is_rival(&self, world: &World, other: Entity) -> bool {
        let right = [Some(self.named), self.also_right(world)];
        let fits = match self.question.kind {
            Kind::Whereabouts => matches!(other, Entity::Place(_) | Entity::Container(_)),
            Kind::Place => matches!(other, Entity::Place(_)),
            Kind::Holder | Kind::Friend => matches!(other, Entity::Person(_)),
            Kind::Colour | Kind::Liking => matches!(other, Entity::Colour(_)),
            Kind::Possession | Kind::Contents => matches!(other, Entity::Thing(_)),
        };
        fits && !right.contains(&Some(other))
    }

    /// What is in a box in the garden is in the garden.
    fn also_right(&self, world: &World) -> Option<Entity> {
        match (self.question.kind, self.question.fact.subject) {
            (Kind::Whereabouts, Entity::Thing(thing)) => Some(Entity::Place(world.place_of(thing))),
            _ => None,
        }
    }
}

/// What an entity is called in an answer; the noun of a thing is enough in an account.
fn spoken(world: &World, entity: Entity) -> String {
    match entity {
        Entity::Thing(thing) => world.thing(thing).noun.to_owned(),
        other => world.label(other),
    }
}

/// Of all that is true of a world, an account states where people are, and of things where they
/// are and their colours.
fn is_told(fact: Fact) -> bool {
    match fact.subject {
        Entity::Person(_) => fact.relation == Relation::IsIn,
        Entity::Thing(_) => true,
        Entity::Container(_) | Entity::Place(_) | Entity::Colour(_) => false,
    }
}

/// The questions that a fact answers, from either side.
fn about(world: &World, fact: Fact) -> Vec<Inquiry> {
    if !is_told(fact) {
        return Vec::new();
    }
    let plain =
        recap::question(world, fact).map(|question| Inquiry { question, named: fact.object });
    plain.into_iter().chain(reversed(world, fact)).collect()
}

/// "What did Tom have?" and "What was in the blue box?", where there is one answer.
fn reversed(world: &World, fact: Fact) -> Option<Inquiry> {
    let same =
        |other: &&Fact| other.object == fact.object && matches!(other.subject, Entity::Thing(_));
    let Entity::Thing(thing) = fact.subject else { return None };
    if world.facts().iter().filter(same).count() > 1 {
        return None;
    }
    let answer = world.thing(thing).noun.to_owned();
    let question = match (fact.relation, fact.object) {
        (Relation::HeldBy, Entity::Person(person)) => possession(world, fact, person, answer),
        (Relation::IsIn, Entity::Container(_)) => contents(world, fact, answer),
        _ => return None,
    };
    Some(Inquiry { question, named: fact.subject })
}

fn possession(world: &World, fact: Fact, person: PersonId, answer: String) -> Question {
    let name = world.person(person).name;
    Question {
        kind: Kind::Possession,
        fact,
        asked: format!("What did {name} have?"),
        stem: format!("{name} had the"),
        answer,
        tail: ".".to_owned(),
    }
}

fn contents(world: &World, fact: Fact, answer: String) -> Question {
    let container = world.label(fact.object);
    Question {
        kind: Kind::Contents,
        fact,
        asked: format!("What was in the {container}?"),
        stem: "The".to_owned(),
        answer,
        tail: format!(" was in the {container}."),
    }
}
