//! What can happen in a tiny world: the events, when they are possible, what they change.
//!
//! Why somebody does something is the business of `plot`; how it is told, that of `narrator`.

use super::model::{ContainerId, Lid, PersonId, PlaceId, Spot, ThingId, World};

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody goes to another place, with all they hold.
    Go(PersonId, PlaceId),
    /// Somebody opens a shut container.
    Open(PersonId, ContainerId),
    /// Somebody shuts an open container.
    Close(PersonId, ContainerId),
    /// Somebody takes a thing from the ground or out of an open container.
    Take(PersonId, ThingId),
    /// Somebody puts a thing into an open container.
    Put(PersonId, ThingId, ContainerId),
    /// As [`Event::Put`], so that somebody else shall not find it.
    Hide(PersonId, ThingId, ContainerId),
    /// Somebody gives a thing to somebody in the same place.
    Give(PersonId, PersonId, ThingId),
    /// Somebody puts a thing down on the ground.
    Leave(PersonId, ThingId),
    /// As [`Event::Leave`], but the loser does not notice.
    Lose(PersonId, ThingId),
}

/// Why an event cannot happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// One cannot go where one is.
    AlreadyThere,
    /// The container or the other person is in another place, or the thing is.
    OutOfReach,
    /// One cannot part with what one does not hold.
    NotHeld,
    /// The container is shut.
    Shut,
    /// There is no lid to move that way.
    LidCannot,
    /// One cannot give to oneself.
    Oneself,
}

impl Event {
    /// Who acts.
    pub const fn actor(self) -> PersonId {
        match self {
            Self::Go(who, _)
            | Self::Open(who, _)
            | Self::Close(who, _)
            | Self::Take(who, _)
            | Self::Put(who, _, _)
            | Self::Hide(who, _, _)
            | Self::Give(who, _, _)
            | Self::Leave(who, _)
            | Self::Lose(who, _) => who,
        }
    }
}

impl World {
    /// Whether an event is possible now.
    pub fn allows(&self, event: Event) -> Result<(), Refusal> {
        match event {
            Event::Go(who, to) => ensure(self.person(who).place != to, Refusal::AlreadyThere),
            Event::Open(who, container) => self.allows_lid(who, container, Lid::Shut),
            Event::Close(who, container) => self.allows_lid(who, container, Lid::Open),
            Event::Take(who, thing) => self.allows_take(who, thing),
            Event::Put(who, thing, into) | Event::Hide(who, thing, into) => {
                ensure(self.holds(who, thing), Refusal::NotHeld)?;
                self.allows_reach(who, into)
            }
            Event::Give(from, to, thing) => self.allows_give(from, to, thing),
            Event::Leave(who, thing) | Event::Lose(who, thing) => {
                ensure(self.holds(who, thing), Refusal::NotHeld)
            }
        }
    }

    /// Lets an event happen, or says why it cannot and changes nothing.
    pub fn apply(&mut self, event: Event) -> Result<(), Refusal> {
        self.allows(event)?;
        match event {
            Event::Go(who, to) => self.people[who.0].place = to,
            Event::Open(_, container) => self.containers[container.0].lid = Lid::Open,
            Event::Close(_, container) => self.containers[container.0].lid = Lid::Shut,
            Event::Take(who, thing) => self.things[thing.0].spot = Spot::With(who),
            Event::Put(_, thing, into) | Event::Hide(_, thing, into) => {
                self.things[thing.0].spot = Spot::Inside(into);
            }
            Event::Give(_, to, thing) => self.things[thing.0].spot = Spot::With(to),
            Event::Leave(who, thing) | Event::Lose(who, thing) => {
                self.things[thing.0].spot = Spot::Lying(self.person(who).place);
            }
        }
        Ok(())
    }

    fn allows_lid(&self, who: PersonId, which: ContainerId, lid: Lid) -> Result<(), Refusal> {
        let container = self.container(which);
        ensure(container.place == self.person(who).place, Refusal::OutOfReach)?;
        ensure(container.lid == lid, Refusal::LidCannot)
    }

    fn allows_reach(&self, who: PersonId, which: ContainerId) -> Result<(), Refusal> {
        let container = self.container(which);
        ensure(container.place == self.person(who).place, Refusal::OutOfReach)?;
        ensure(container.lid != Lid::Shut, Refusal::Shut)
    }

    fn allows_take(&self, who: PersonId, thing: ThingId) -> Result<(), Refusal> {
        match self.thing(thing).spot {
            Spot::With(_) => Err(Refusal::OutOfReach),
            Spot::Inside(container) => self.allows_reach(who, container),
            Spot::Lying(place) => ensure(place == self.person(who).place, Refusal::OutOfReach),
        }
    }

    fn allows_give(&self, from: PersonId, to: PersonId, thing: ThingId) -> Result<(), Refusal> {
        ensure(from != to, Refusal::Oneself)?;
        ensure(self.holds(from, thing), Refusal::NotHeld)?;
        ensure(self.person(from).place == self.person(to).place, Refusal::OutOfReach)
    }
}

const fn ensure(condition: bool, refusal: Refusal) -> Result<(), Refusal> {
    if condition { Ok(()) } else { Err(refusal) }
}
