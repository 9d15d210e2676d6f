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

#[cfg(test)]
mod tests {
    use super::super::model::{Container, Person, PlaceId, Thing};
    use super::super::names::Gender;
    use super::*;

    const MIA: PersonId = PersonId(0);
    const TOM: PersonId = PersonId(1);
    const KEY: ThingId = ThingId(0);
    const CUP: ThingId = ThingId(1);
    const BOX: ContainerId = ContainerId(0);
    const GARDEN: PlaceId = PlaceId(0);
    const BARN: PlaceId = PlaceId(1);

    fn person(name: &'static str, gender: Gender, place: PlaceId) -> Person {
        Person { name, gender, kind: "fox", nature: "kind", place, friend: None, likes: "red" }
    }

    /// Mia has a key in the garden; Tom is in the barn, where a cup is in a shut box.
    fn world() -> World {
        World {
            people: vec![person("Mia", Gender::She, GARDEN), person("Tom", Gender::He, BARN)],
            places: vec!["garden", "barn"],
            things: vec![
                Thing { noun: "key", colour: "red", spot: Spot::With(MIA) },
                Thing { noun: "cup", colour: "grey", spot: Spot::Inside(BOX) },
            ],
            containers: vec![Container {
                noun: "box",
                colour: "blue",
                place: BARN,
                lid: Lid::Shut,
            }],
        }
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let refused = [
            (Event::Go(MIA, GARDEN), Refusal::AlreadyThere),
            (Event::Open(MIA, BOX), Refusal::OutOfReach),
            (Event::Close(TOM, BOX), Refusal::LidCannot),
            (Event::Take(TOM, CUP), Refusal::Shut),
            (Event::Take(TOM, KEY), Refusal::OutOfReach),
            (Event::Put(TOM, KEY, BOX), Refusal::NotHeld),
            (Event::Put(MIA, KEY, BOX), Refusal::OutOfReach),
            (Event::Give(MIA, TOM, KEY), Refusal::OutOfReach),
            (Event::Give(TOM, MIA, KEY), Refusal::NotHeld),
            (Event::Give(MIA, MIA, KEY), Refusal::Oneself),
            (Event::Leave(TOM, CUP), Refusal::NotHeld),
        ];
        for (event, refusal) in refused {
            let mut world = world();
            assert_eq!(world.apply(event), Err(refusal), "{event:?}");
            assert_eq!(world, self::world(), "{event:?}");
        }
    }

    #[test]
    fn a_thing_goes_where_the_events_take_it() {
        let mut world = world();
        let steps = [
            (Event::Go(MIA, BARN), KEY, Spot::With(MIA)),
            (Event::Give(MIA, TOM, KEY), KEY, Spot::With(TOM)),
            (Event::Open(TOM, BOX), CUP, Spot::Inside(BOX)),
            (Event::Put(TOM, KEY, BOX), KEY, Spot::Inside(BOX)),
            (Event::Take(MIA, CUP), CUP, Spot::With(MIA)),
            (Event::Go(MIA, GARDEN), CUP, Spot::With(MIA)),
            (Event::Lose(MIA, CUP), CUP, Spot::Lying(GARDEN)),
        ];
        for (event, thing, spot) in steps {
            assert_eq!(world.apply(event), Ok(()), "{event:?}");
            assert_eq!(world.thing(thing).spot, spot, "{event:?}");
        }
        assert_eq!(world.place_of(KEY), BARN);
    }
}
