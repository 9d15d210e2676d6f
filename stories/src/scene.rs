//! A scene: who and what is where at one moment, and the facts that follow from it.
//!
//! `sample` draws a scene from a seed, `event` changes it, `renderer` puts it into English.

use crate::vocabulary::Gender;

// Ids index the lists of one scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PersonId(pub(crate) usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThingId(pub(crate) usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContainerId(pub(crate) usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlaceId(pub(crate) usize);

/// A child or a talking animal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    /// Unique in the scene.
    pub(crate) name: &'static str,
    pub(crate) gender: Gender,
    /// Girl, boy or an animal.
    pub(crate) kind: &'static str,
    /// One adjective.
    pub(crate) nature: &'static str,
    pub(crate) place: PlaceId,
    /// Friendship is mutual.
    pub(crate) friend: Option<PersonId>,
    /// The colour the person likes.
    pub(crate) likes: &'static str,
}

/// Something that can be held. Noun and colour together are unique in a scene.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Thing {
    pub(crate) noun: &'static str,
    pub(crate) colour: &'static str,
    pub(crate) spot: Spot,
}

/// Where a thing can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    /// In somebody's hands.
    With(PersonId),
    Inside(ContainerId),
    /// On the ground of a place.
    Lying(PlaceId),
}

/// Something that things can be put into. Containers stay where they are; noun and colour together
/// are unique in a scene.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) noun: &'static str,
    pub(crate) colour: &'static str,
    pub(crate) place: PlaceId,
    pub(crate) lid: Lid,
}

/// The lid of a container. A basket has none and is always open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lid {
    Without,
    Open,
    /// Nothing goes in or out.
    Shut,
}

/// What a fact can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entity {
    Person(PersonId),
    Thing(ThingId),
    Container(ContainerId),
    Place(PlaceId),
    Colour(&'static str),
}

/// How the subject of a fact relates to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// The object is a container or a place.
    IsIn,
    /// A thing is in the hands of a person.
    HeldBy,
    HasColour,
    FriendIs,
    /// The object is a colour.
    Likes,
}

/// A true statement about a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) subject: Entity,
    pub(crate) relation: Relation,
    pub(crate) object: Entity,
}

/// The whole state of a story at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scene {
    /// The first is the hero, the second the hero's friend.
    pub(crate) people: Vec<Person>,
    /// The nouns of the places.
    pub(crate) places: Vec<&'static str>,
    pub(crate) things: Vec<Thing>,
    pub(crate) containers: Vec<Container>,
}

impl Scene {
    pub(crate) fn person(&self, id: PersonId) -> &Person {
        &self.people[id.0]
    }

    pub(crate) fn thing(&self, id: ThingId) -> &Thing {
        &self.things[id.0]
    }

    pub(crate) fn container(&self, id: ContainerId) -> &Container {
        &self.containers[id.0]
    }

    pub(crate) fn place(&self, id: PlaceId) -> &'static str {
        self.places[id.0]
    }

    pub(crate) fn thing_ids(&self) -> impl Iterator<Item = ThingId> + Clone + use<> {
        (0..self.things.len()).map(ThingId)
    }

    /// The place a thing is in, directly or through what holds it.
    pub(crate) fn place_of(&self, thing: ThingId) -> PlaceId {
        match self.thing(thing).spot {
            Spot::With(person) => self.person(person).place,
            Spot::Inside(container) => self.container(container).place,
            Spot::Lying(place) => place,
        }
    }

    pub(crate) fn holds(&self, person: PersonId, thing: ThingId) -> bool {
        self.thing(thing).spot == Spot::With(person)
    }

    /// Whether the noun alone tells which thing is meant.
    pub(crate) fn is_only_one(&self, thing: ThingId) -> bool {
        let noun = self.thing(thing).noun;
        self.things.iter().filter(|other| other.noun == noun).count() == 1
    }

    /// What an entity is called without an article: "Mia", "red ball", "garden", "blue".
    pub(crate) fn label(&self, entity: Entity) -> String {
        match entity {
            Entity::Person(id) => self.person(id).name.to_owned(),
            Entity::Thing(id) => format!("{} {}", self.thing(id).colour, self.thing(id).noun),
            Entity::Container(id) => {
                format!("{} {}", self.container(id).colour, self.container(id).noun)
            }
            Entity::Place(id) => self.place(id).to_owned(),
            Entity::Colour(word) => word.to_owned(),
        }
    }

    /// What is true now of people and things, one entry per relation.
    pub(crate) fn facts(&self) -> Vec<Fact> {
        let people = (0..self.people.len()).map(PersonId).flat_map(|id| self.facts_of_person(id));
        people.chain(self.thing_ids().flat_map(|id| self.facts_of_thing(id))).collect()
    }

    fn facts_of_person(&self, id: PersonId) -> impl Iterator<Item = Fact> {
        let (person, subject) = (self.person(id), Entity::Person(id));
        let friend = person.friend.map(|friend| (Relation::FriendIs, Entity::Person(friend)));
        let place = (Relation::IsIn, Entity::Place(person.place));
        let likes = (Relation::Likes, Entity::Colour(person.likes));
        let known = [Some(place), Some(likes), friend].into_iter().flatten();
        known.map(move |(relation, object)| Fact { subject, relation, object })
    }

    fn facts_of_thing(&self, id: ThingId) -> [Fact; 2] {
        let (thing, subject) = (self.thing(id), Entity::Thing(id));
        let (relation, object) = match thing.spot {
            Spot::With(person) => (Relation::HeldBy, Entity::Person(person)),
            Spot::Inside(container) => (Relation::IsIn, Entity::Container(container)),
            Spot::Lying(place) => (Relation::IsIn, Entity::Place(place)),
        };
        let colour = Entity::Colour(thing.colour);
        [
            Fact { subject, relation, object },
            Fact { subject, relation: Relation::HasColour, object: colour },
        ]
    }
}
