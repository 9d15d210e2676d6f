//! The stage: a world on which a plot acts, and the beats that record what was done and felt.
//!
//! The compound acts (fetch a thing, stow it, meet somebody) live here; the plots made of them in
//! `plot`, and the wording of a beat in `narrator`.

use rand::RngExt;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;

use super::events::Event;
use super::model::{ContainerId, Lid, PersonId, PlaceId, Spot, ThingId, World};

/// One step of a story.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Something happens.
    Event(Event),
    /// Something is felt, wanted, seen or said; the world stays as it is.
    Note(Note, Roles),
    /// The story turns to another time.
    Turn(Turn),
}

/// Who and what a note speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Whose note it is: the subject.
    pub actor: Option<PersonId>,
    /// The other person.
    pub other: Option<PersonId>,
    /// The person spoken of.
    pub third: Option<PersonId>,
    /// The thing.
    pub thing: Option<ThingId>,
    /// The container.
    pub container: Option<ContainerId>,
    /// The place.
    pub place: Option<PlaceId>,
}

/// The kinds of notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// The actor loves the thing they hold.
    Treasures,
    /// The actor wants to keep the thing they hold safe.
    KeepSafe,
    /// The actor wants to give the other a present.
    Present,
    /// The actor likes a colour.
    LikesColour,
    /// The actor finds that the thing is not in the container.
    NotThere,
    /// The actor is sad.
    Sad,
    /// The actor is glad.
    Glad,
    /// The actor thanks the other.
    Thanks,
    /// The actor asks the other where the thing is.
    AskWhere,
    /// The actor says that the thing is in the container.
    TellContainer,
    /// The actor asks the other for the thing the other holds.
    AskFor,
    /// The actor agrees to what was asked.
    Agree,
    /// The actor notices that the thing is gone.
    Missed,
    /// The two want to play hide and seek with the thing.
    Game,
    /// The actor asks the other to bring the thing to the third.
    Errand,
    /// The actor wants to tidy up.
    Tidy,
    /// The two want to trade.
    Trade,
    /// The actor, who does not have the thing, wants it.
    Wants,
    /// The actor is glad to hold the thing again.
    HasAgain,
}

/// The turns of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// At the same time, elsewhere.
    Meanwhile,
    /// After a while.
    Later,
    /// At the end of the day.
    Evening,
}

/// A world in the hands of a plot.
pub(super) struct Stage<'a> {
    /// The world as it is now.
    pub world: World,
    /// What was done so far.
    pub beats: Vec<Beat>,
    /// The source of all choices.
    pub rng: &'a mut ChaCha8Rng,
}

impl<'a> Stage<'a> {
    /// An empty stage.
    pub(super) fn new(world: World, rng: &'a mut ChaCha8Rng) -> Self {
        Self { world, beats: Vec::new(), rng }
    }

    /// Lets an event happen and records it.
    pub(super) fn act(&mut self, event: Event) {
        self.world.apply(event).expect("a plot does only what its world allows");
        self.beats.push(Beat::Event(event));
    }

    /// Records a note of one person.
    pub(super) fn note(&mut self, note: Note, actor: PersonId, roles: Roles) {
        self.beats.push(Beat::Note(note, Roles { actor: Some(actor), ..roles }));
    }

    /// Records a turn of time.
    pub(super) fn turn(&mut self, turn: Turn) {
        self.beats.push(Beat::Turn(turn));
    }

    /// Goes to a place unless one is there.
    pub(super) fn go(&mut self, who: PersonId, place: PlaceId) {
        if self.world.person(who).place != place {
            self.act(Event::Go(who, place));
        }
    }

    /// Goes to where the other person is.
    pub(super) fn meet(&mut self, who: PersonId, other: PersonId) {
        self.go(who, self.world.person(other).place);
    }

    /// Goes to a container and opens it if it is shut.
    pub(super) fn reach(&mut self, who: PersonId, container: ContainerId) {
        self.go(who, self.world.container(container).place);
        self.rather_not_close(who, container);
        if self.world.container(container).lid == Lid::Shut {
            self.act(Event::Open(who, container));
        }
    }

    /// Nobody shuts what they want to reach into the next moment: takes such a step back.
    fn rather_not_close(&mut self, who: PersonId, container: ContainerId) {
        if self.beats.last() == Some(&Beat::Event(Event::Close(who, container))) {
            self.beats.pop();
            self.world.containers[container.0].lid = Lid::Open;
        }
    }

    /// Gets hold of a thing wherever it is, asking for it if somebody else has it.
    pub(super) fn fetch(&mut self, who: PersonId, thing: ThingId) {
        match self.world.thing(thing).spot {
            Spot::With(holder) if holder == who => {}
            Spot::With(holder) => self.ask_for(who, holder, thing),
            Spot::Inside(container) => {
                self.reach(who, container);
                self.act(Event::Take(who, thing));
            }
            Spot::Lying(place) => {
                self.go(who, place);
                self.act(Event::Take(who, thing));
            }
        }
    }

    fn ask_for(&mut self, who: PersonId, holder: PersonId, thing: ThingId) {
        self.meet(who, holder);
        let roles = Roles { other: Some(holder), thing: Some(thing), ..Roles::default() };
        self.note(Note::AskFor, who, roles);
        self.act(Event::Give(holder, who, thing));
    }

    /// Puts a thing one holds into a container, and sometimes shuts it.
    pub(super) fn stow(&mut self, who: PersonId, thing: ThingId, container: ContainerId) {
        self.reach(who, container);
        self.act(Event::Put(who, thing, container));
        self.maybe_close(who, container);
    }

    /// As [`Stage::stow`], but to hide it.
    pub(super) fn hide(&mut self, who: PersonId, thing: ThingId, container: ContainerId) {
        self.reach(who, container);
        self.act(Event::Hide(who, thing, container));
        self.maybe_close(who, container);
    }

    fn maybe_close(&mut self, who: PersonId, container: ContainerId) {
        if self.world.container(container).lid == Lid::Open && self.rng.random_bool(0.25) {
            self.act(Event::Close(who, container));
        }
    }

    /// Goes to the other person and gives them the thing.
    pub(super) fn bring(&mut self, who: PersonId, thing: ThingId, other: PersonId) {
        self.meet(who, other);
        self.act(Event::Give(who, other, thing));
    }

    /// Some place that is none of these.
    pub(super) fn place_besides(&mut self, avoided: &[PlaceId]) -> PlaceId {
        let places = (0..self.world.places.len()).map(PlaceId);
        let free = places.filter(|place| !avoided.contains(place));
        free.choose(self.rng).unwrap_or(PlaceId(0))
    }

    /// Some container that is none of these.
    pub(super) fn container_besides(&mut self, avoided: &[ContainerId]) -> ContainerId {
        let containers = (0..self.world.containers.len()).map(ContainerId);
        let free = containers.filter(|container| !avoided.contains(container));
        free.choose(self.rng).unwrap_or(ContainerId(0))
    }

    /// Some person who is none of these, if there is one.
    pub(super) fn person_besides(&mut self, avoided: &[PersonId]) -> Option<PersonId> {
        let people = (0..self.world.people.len()).map(PersonId);
        people.filter(|person| !avoided.contains(person)).choose(self.rng)
    }

    /// Whether one of the last few beats was about somebody.
    pub(super) fn was_just_told_of(&self, who: PersonId) -> bool {
        self.beats.iter().rev().take(3).any(|beat| match *beat {
            Beat::Event(Event::Give(from, to, _)) => from == who || to == who,
            Beat::Event(event) => event.actor() == who,
            Beat::Note(_, roles) => roles.actor == Some(who) || roles.other == Some(who),
            Beat::Turn(_) => false,
        })
    }

    /// Whether fewer beats than that have passed; stories are to stay short.
    pub(super) fn is_shorter_than(&self, beats: usize) -> bool {
        self.beats.len() < beats
    }
}

/// What tests check of every story.
#[cfg(test)]
impl Note {
    /// Whether what the note says is true of a world.
    pub(super) fn holds(self, world: &World, roles: Roles) -> bool {
        let actor = roles.actor.expect("every note has an actor");
        let at = world.person(actor).place;
        let meets = || roles.other.is_some_and(|other| world.person(other).place == at);
        let thing = || world.thing(roles.thing.expect("this note has a thing")).spot;
        match self {
            Self::Treasures | Self::KeepSafe | Self::HasAgain => thing() == Spot::With(actor),
            Self::Thanks | Self::AskWhere | Self::Errand => meets(),
            Self::AskFor => meets() && roles.other.is_some_and(|o| thing() == Spot::With(o)),
            Self::NotThere => roles.container.is_some_and(|id| {
                let container = world.container(id);
                container.place == at && container.lid != Lid::Shut && thing() != Spot::Inside(id)
            }),
            Self::TellContainer => roles.container.map(Spot::Inside) == Some(thing()),
            Self::Missed | Self::Wants => thing() != Spot::With(actor),
            Self::Trade => meets() && thing() == Spot::With(actor),
            _ => true,
        }
    }
}
