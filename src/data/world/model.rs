//! The state of a tiny world: who is where, what is where, and the facts that follow from it.
//!
//! What may happen to a world is in `events`, how one is drawn from a seed in `genesis`, and how
//! it is put into English in `narrator`; nothing here knows a sentence.

use super::names::Gender;

/// A person of one world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PersonId(pub usize);

/// A thing of one world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThingId(pub usize);

/// A container of one world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(pub usize);

/// A place of one world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceId(pub usize);

/// One who acts: a child or a talking animal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The name, unique in its world.
    pub name: &'static str,
    /// Which pronouns stand for the name.
    pub gender: Gender,
    /// Girl, boy or an animal.
    pub kind: &'static str,
    /// One adjective.
    pub nature: &'static str,
    /// Where the person is.
    pub place: PlaceId,
    /// The person's friend, if the world names one; friendship is mutual.
    pub friend: Option<PersonId>,
    /// The colour the person likes.
    pub likes: &'static str,
}

/// Something that can be held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thing {
    /// What it is.
    pub noun: &'static str,
    /// Its colour; noun and colour together are unique in a world.
    pub colour: &'static str,
    /// Where it is.
    pub spot: Spot,
}

/// Where a thing can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// In somebody's hands.
    With(PersonId),
    /// In a container.
    Inside(ContainerId),
    /// On the ground of a place.
    Lying(PlaceId),
}

/// Something that things can be put into. Containers stay where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// What it is.
    pub noun: &'static str,
    /// Its colour; noun and colour together are unique in a world.
    pub colour: &'static str,
    /// Where it stands.
    pub place: PlaceId,
    /// Whether it can be reached into.
    pub lid: Lid,
}

/// The lid of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lid {
    /// A basket has none and is never shut.
    Without,
    /// Open.
    Open,
    /// Shut: nothing goes in or out.
    Shut,
}

/// Whatever a fact can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entity {
    /// A person.
    Person(PersonId),
    /// A thing.
    Thing(ThingId),
    /// A container.
    Container(ContainerId),
    /// A place.
    Place(PlaceId),
    /// A colour, by its word.
    Colour(&'static str),
}

/// How the two entities of a fact belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relation {
    /// The subject is in the object (a container or a place).
    IsIn,
    /// The subject (a thing) is in the hands of the object (a person).
    HeldBy,
    /// The subject has the object's colour.
    HasColour,
    /// The subject's friend is the object.
    FriendIs,
    /// The subject likes the object (a colour).
    Likes,
}

/// One thing that is true of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fact {
    /// What the fact is about.
    pub subject: Entity,
    /// How the two belong together.
    pub relation: Relation,
    /// What is said of the subject.
    pub object: Entity,
}

/// The whole state of one tiny world. Ids index its lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// The people; the first is the hero, the second the hero's friend.
    pub people: Vec<Person>,
    /// The nouns of the places.
    pub places: Vec<&'static str>,
    /// The things.
    pub things: Vec<Thing>,
    /// The containers.
    pub containers: Vec<Container>,
}

impl World {
    /// The person of that id.
    pub fn person(&self, id: PersonId) -> &Person {
        &self.people[id.0]
    }

    /// The thing of that id.
    pub fn thing(&self, id: ThingId) -> &Thing {
        &self.things[id.0]
    }

    /// The container of that id.
    pub fn container(&self, id: ContainerId) -> &Container {
        &self.containers[id.0]
    }

    /// The noun of that place.
    pub fn place(&self, id: PlaceId) -> &'static str {
        self.places[id.0]
    }

    /// The place a thing is in, through whoever or whatever holds it.
    pub fn place_of(&self, thing: ThingId) -> PlaceId {
        match self.thing(thing).spot {
            Spot::With(person) => self.person(person).place,
            Spot::Inside(container) => self.container(container).place,
            Spot::Lying(place) => place,
        }
    }

    /// Whether the person has the thing.
    pub fn holds(&self, person: PersonId, thing: ThingId) -> bool {
        self.thing(thing).spot == Spot::With(person)
    }

    /// Whether no other thing of this world is called by the same noun.
    pub fn is_only_one(&self, thing: ThingId) -> bool {
        let noun = self.thing(thing).noun;
        self.things.iter().filter(|other| other.noun == noun).count() == 1
    }

    /// What an entity is called without an article: "Mia", "red ball", "garden", "blue".
    pub fn label(&self, entity: Entity) -> String {
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

    /// Everything that is true now, one entry per relation.
    pub fn facts(&self) -> Vec<Fact> {
        let people = (0..self.people.len()).map(PersonId).flat_map(|id| self.facts_of_person(id));
        let things = (0..self.things.len()).map(ThingId).flat_map(|id| self.facts_of_thing(id));
        let containers =
            (0..self.containers.len()).map(ContainerId).flat_map(|id| self.facts_of_container(id));
        people.chain(things).chain(containers).collect()
    }

    fn facts_of_person(&self, id: PersonId) -> Vec<Fact> {
        let (person, subject) = (self.person(id), Entity::Person(id));
        let friend = person.friend.map(|friend| (Relation::FriendIs, Entity::Person(friend)));
        let place = (Relation::IsIn, Entity::Place(person.place));
        let likes = (Relation::Likes, Entity::Colour(person.likes));
        let said = [Some(place), Some(likes), friend].into_iter().flatten();
        said.map(|(relation, object)| Fact { subject, relation, object }).collect()
    }

    fn facts_of_thing(&self, id: ThingId) -> [Fact; 2] {
        let (thing, subject) = (self.thing(id), Entity::Thing(id));
        let (relation, object) = match thing.spot {
            Spot::With(person) => (Relation::HeldBy, Entity::Person(person)),
            Spot::Inside(container) => (Relation::IsIn, Entity::Container(container)),
            Spot::Lying(place) => (Relation::IsIn, Entity::Place(place)),
        };
        [Fact { subject, relation, object }, coloured(subject, thing.colour)]
    }

    fn facts_of_container(&self, id: ContainerId) -> [Fact; 2] {
        let (container, subject) = (self.container(id), Entity::Container(id));
        let object = Entity::Place(container.place);
        [Fact { subject, relation: Relation::IsIn, object }, coloured(subject, container.colour)]
    }
}

const fn coloured(subject: Entity, colour: &'static str) -> Fact {
    Fact { subject, relation: Relation::HasColour, object: Entity::Colour(colour) }
}
