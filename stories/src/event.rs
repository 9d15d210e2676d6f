//! Events of a story: when each is possible, and how it changes the scene.
//!
//! Plots (`scenario`) choose the events; `renderer` puts them into words.

use crate::scene::{ContainerId, Lid, PersonId, PlaceId, Scene, Spot, ThingId};

/// Something that happens. The first field is the person who acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoryEvent {
    /// To another place, with everything the person holds.
    Go(PersonId, PlaceId),
    Open(PersonId, ContainerId),
    Close(PersonId, ContainerId),
    /// From the ground or out of an open container.
    Take(PersonId, ThingId),
    /// Into an open container.
    Put(PersonId, ThingId, ContainerId),
    /// As `Put`, so that others do not find it.
    Hide(PersonId, ThingId, ContainerId),
    /// To a person in the same place.
    Give(PersonId, PersonId, ThingId),
    /// On the ground.
    Leave(PersonId, ThingId),
    /// As `Leave`, but the person does not notice.
    Lose(PersonId, ThingId),
}

/// Why an event cannot happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventError {
    AlreadyThere,
    /// The container, thing or other person is in another place.
    OutOfReach,
    NotHeld,
    Shut,
    /// The lid is already that way, or there is none.
    NoSuchLid,
    /// A gift to oneself.
    Oneself,
}

impl StoryEvent {
    pub(crate) const fn actor(self) -> PersonId {
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

impl Scene {
    /// Whether an event is possible now.
    pub(crate) fn allows(&self, event: StoryEvent) -> Result<(), EventError> {
        match event {
            StoryEvent::Go(who, to) => {
                ensure(self.person(who).place != to, EventError::AlreadyThere)
            }
            StoryEvent::Open(who, container) => self.allows_lid(who, container, Lid::Shut),
            StoryEvent::Close(who, container) => self.allows_lid(who, container, Lid::Open),
            StoryEvent::Take(who, thing) => self.allows_take(who, thing),
            StoryEvent::Put(who, thing, into) | StoryEvent::Hide(who, thing, into) => {
                ensure(self.holds(who, thing), EventError::NotHeld)?;
                self.allows_reach(who, into)
            }
            StoryEvent::Give(from, to, thing) => self.allows_give(from, to, thing),
            StoryEvent::Leave(who, thing) | StoryEvent::Lose(who, thing) => {
                ensure(self.holds(who, thing), EventError::NotHeld)
            }
        }
    }

    /// Applies an event, or says why it is impossible and changes nothing.
    pub(crate) fn apply(&mut self, event: StoryEvent) -> Result<(), EventError> {
        self.allows(event)?;
        match event {
            // What a person holds comes along: its spot is the person.
            StoryEvent::Go(who, to) => self.people[who.0].place = to,
            StoryEvent::Open(_, container) => self.containers[container.0].lid = Lid::Open,
            StoryEvent::Close(_, container) => self.containers[container.0].lid = Lid::Shut,
            StoryEvent::Take(who, thing) => self.things[thing.0].spot = Spot::With(who),
            StoryEvent::Put(_, thing, into) | StoryEvent::Hide(_, thing, into) => {
                self.things[thing.0].spot = Spot::Inside(into);
            }
            StoryEvent::Give(_, to, thing) => self.things[thing.0].spot = Spot::With(to),
            StoryEvent::Leave(who, thing) | StoryEvent::Lose(who, thing) => {
                self.things[thing.0].spot = Spot::Lying(self.person(who).place);
            }
        }
        Ok(())
    }

    fn allows_lid(&self, who: PersonId, which: ContainerId, lid: Lid) -> Result<(), EventError> {
        let container = self.container(which);
        ensure(container.place == self.person(who).place, EventError::OutOfReach)?;
        ensure(container.lid == lid, EventError::NoSuchLid)
    }

    fn allows_reach(&self, who: PersonId, which: ContainerId) -> Result<(), EventError> {
        let container = self.container(which);
        ensure(container.place == self.person(who).place, EventError::OutOfReach)?;
        ensure(container.lid != Lid::Shut, EventError::Shut)
    }

    fn allows_take(&self, who: PersonId, thing: ThingId) -> Result<(), EventError> {
        match self.thing(thing).spot {
            Spot::With(_) => Err(EventError::OutOfReach),
            Spot::Inside(container) => self.allows_reach(who, container),
            Spot::Lying(place) => ensure(place == self.person(who).place, EventError::OutOfReach),
        }
    }

    fn allows_give(&self, from: PersonId, to: PersonId, thing: ThingId) -> Result<(), EventError> {
        ensure(from != to, EventError::Oneself)?;
        ensure(self.holds(from, thing), EventError::NotHeld)?;
        ensure(self.person(from).place == self.person(to).place, EventError::OutOfReach)
    }
}

const fn ensure(condition: bool, error: EventError) -> Result<(), EventError> {
    if condition { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Container, Person, PlaceId, Thing};
    use crate::vocabulary::Gender;

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
    fn scene() -> Scene {
        Scene {
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
    fn an_impossible_event_is_refused_and_changes_nothing() {
        let refused = [
            (StoryEvent::Go(MIA, GARDEN), EventError::AlreadyThere),
            (StoryEvent::Open(MIA, BOX), EventError::OutOfReach),
            (StoryEvent::Close(TOM, BOX), EventError::NoSuchLid),
            (StoryEvent::Take(TOM, CUP), EventError::Shut),
            (StoryEvent::Take(TOM, KEY), EventError::OutOfReach),
            (StoryEvent::Put(TOM, KEY, BOX), EventError::NotHeld),
            (StoryEvent::Put(MIA, KEY, BOX), EventError::OutOfReach),
            (StoryEvent::Give(MIA, TOM, KEY), EventError::OutOfReach),
            (StoryEvent::Give(TOM, MIA, KEY), EventError::NotHeld),
            (StoryEvent::Give(MIA, MIA, KEY), EventError::Oneself),
            (StoryEvent::Leave(TOM, CUP), EventError::NotHeld),
        ];
        for (event, error) in refused {
            let mut scene = scene();
            assert_eq!(scene.apply(event), Err(error), "{event:?}");
            assert_eq!(scene, self::scene(), "{event:?}");
        }
    }

    #[test]
    fn events_move_things() {
        let mut scene = scene();
        let steps = [
            (StoryEvent::Go(MIA, BARN), KEY, Spot::With(MIA)),
            (StoryEvent::Give(MIA, TOM, KEY), KEY, Spot::With(TOM)),
            (StoryEvent::Open(TOM, BOX), CUP, Spot::Inside(BOX)),
            (StoryEvent::Put(TOM, KEY, BOX), KEY, Spot::Inside(BOX)),
            (StoryEvent::Take(MIA, CUP), CUP, Spot::With(MIA)),
            (StoryEvent::Go(MIA, GARDEN), CUP, Spot::With(MIA)),
            (StoryEvent::Lose(MIA, CUP), CUP, Spot::Lying(GARDEN)),
        ];
        for (event, thing, spot) in steps {
            assert_eq!(scene.apply(event), Ok(()), "{event:?}");
            assert_eq!(scene.thing(thing).spot, spot, "{event:?}");
        }
        assert_eq!(scene.place_of(KEY), BARN);
    }
}
