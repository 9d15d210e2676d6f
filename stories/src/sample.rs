//! Samples the scene at the beginning of a story: people, places, containers and things.

use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::scene::{Container, ContainerId, Lid, Person, PersonId, PlaceId, Scene, Spot, Thing};
use crate::vocabulary::{
    ANIMALS, COLOURS, CONTAINERS, FRUIT_COLOURS, Gender, NAMES, NATURES, PLACES, THINGS,
};

const PLACES_IN_A_SCENE: usize = 4;

/// The number of people, of containers and of things.
pub(crate) type SceneSize = (usize, usize, usize);

/// Few of each, so that the opening of a story stays short.
const SIZES: &[SceneSize] = &[(2, 2, 2), (2, 2, 3), (2, 3, 2), (3, 2, 2), (3, 2, 3)];

impl Scene {
    /// Samples the scene of a long story: two or three people, each in a place of their own, two or
    /// three containers, and two or three things of which the hero has the first.
    pub(crate) fn sample(rng: &mut ChaCha8Rng) -> Self {
        let places = places(rng);
        let size = pick(rng, SIZES);
        Self::populate(rng, places, size)
    }

    /// Samples a scene of that size (up to three people, four containers and four things) in which
    /// no two things share a noun.
    pub(crate) fn of_size(rng: &mut ChaCha8Rng, size: SceneSize) -> Self {
        loop {
            let places = places(rng);
            let scene = Self::populate(rng, places, size);
            if scene.thing_ids().all(|id| scene.is_only_one(id)) {
                return scene;
            }
        }
    }

    fn populate(
        rng: &mut ChaCha8Rng,
        places: Vec<&'static str>,
        (of_people, of_containers, of_things): SceneSize,
    ) -> Self {
        let mut people = people(rng, of_people);
        if of_people == 1 {
            // The friend would be the second person, who is not there.
            people[0].friend = None;
        }
        let containers = containers(rng, of_containers);
        let things = things(rng, of_things, of_people, of_containers);
        let mut scene = Self { people, places, things, containers };
        scene.align_likings(rng);
        scene
    }

    /// Lets most people like the colour of a thing in the scene; other likings never matter.
    fn align_likings(&mut self, rng: &mut ChaCha8Rng) {
        for person in &mut self.people {
            if rng.random_bool(0.6) {
                person.likes = self.things[rng.random_range(0..self.things.len())].colour;
            }
        }
    }
}

fn places(rng: &mut ChaCha8Rng) -> Vec<&'static str> {
    PLACES.sample(rng, PLACES_IN_A_SCENE).copied().collect()
}

fn people(rng: &mut ChaCha8Rng, number: usize) -> Vec<Person> {
    let names: Vec<_> = NAMES.sample(rng, number).copied().collect();
    let mut places: Vec<usize> = (0..PLACES_IN_A_SCENE).collect();
    places.shuffle(rng);
    names
        .iter()
        .zip(places)
        .enumerate()
        .map(|(id, (name, at))| person(rng, id, *name, at))
        .collect()
}

fn person(
    rng: &mut ChaCha8Rng,
    id: usize,
    (name, gender): (&'static str, Gender),
    place: usize,
) -> Person {
    let child = match gender {
        Gender::She => "girl",
        Gender::He => "boy",
    };
    let kind = if rng.random_bool(0.5) { child } else { pick(rng, ANIMALS) };
    // Hero and friend have each other; the third has nobody.
    let friend = [Some(PersonId(1)), Some(PersonId(0)), None][id];
    let (nature, likes) = (pick(rng, NATURES), pick(rng, COLOURS));
    Person { name, gender, kind, nature, place: PlaceId(place), friend, likes }
}

/// Containers of different colours, often with the same noun: then only the colour tells them apart.
fn containers(rng: &mut ChaCha8Rng, number: usize) -> Vec<Container> {
    let colours: Vec<_> = COLOURS.sample(rng, number).copied().collect();
    let shared = rng.random_bool(0.4).then(|| pick(rng, CONTAINERS));
    let mut places: Vec<usize> = (0..PLACES_IN_A_SCENE).collect();
    places.shuffle(rng);
    let draw = |(colour, place)| {
        let (noun, lid) = shared.unwrap_or_else(|| pick(rng, CONTAINERS));
        let lid = if lid { Lid::Shut } else { Lid::Without };
        Container { noun, colour, place: PlaceId(place), lid }
    };
    colours.into_iter().zip(places).map(draw).collect()
}

/// Two or three things. The second sometimes shares the noun of the first, never the colour.
fn things(rng: &mut ChaCha8Rng, number: usize, people: usize, containers: usize) -> Vec<Thing> {
    let mut nouns: Vec<_> = THINGS.sample(rng, number).copied().collect();
    if rng.random_bool(0.25) && number > 1 {
        nouns[1] = nouns[0];
    }
    let mut colours: Vec<&str> = Vec::new();
    for &(_, fruit) in &nouns {
        // All colours differ, so noun and colour together name one thing.
        colours.push(fresh_colour(rng, fruit, &colours));
    }
    let spots = spots(rng, people, containers, nouns.len());
    let parts = nouns.into_iter().zip(colours).zip(spots);
    parts.map(|(((noun, _), colour), spot)| Thing { noun, colour, spot }).collect()
}

/// Where the things are: the first with the hero, no two in the same spot.
fn spots(rng: &mut ChaCha8Rng, people: usize, containers: usize, number: usize) -> Vec<Spot> {
    let mut spots = vec![Spot::With(PersonId(0))];
    if rng.random_bool(0.6) {
        // Where there is only one thing, this spot is left over and nobody reads it.
        spots.push(Spot::With(PersonId(1)));
    }
    while spots.len() < number {
        let spot = free_spot(rng, people, containers);
        if !spots.contains(&spot) {
            spots.push(spot);
        }
    }
    spots
}

fn fresh_colour(rng: &mut ChaCha8Rng, fruit: bool, taken: &[&'static str]) -> &'static str {
    let palette = if fruit { &COLOURS[..FRUIT_COLOURS] } else { COLOURS };
    let free: Vec<_> = palette.iter().filter(|colour| !taken.contains(colour)).copied().collect();
    pick(rng, &free)
}

fn free_spot(rng: &mut ChaCha8Rng, people: usize, containers: usize) -> Spot {
    match rng.random_range(0..3) {
        0 if people > 2 => Spot::With(PersonId(2)),
        // Without a third person their turn is a container's.
        0 | 1 => Spot::Inside(ContainerId(rng.random_range(0..containers))),
        _ => Spot::Lying(PlaceId(rng.random_range(0..PLACES_IN_A_SCENE))),
    }
}

/// One entry of a table that is never empty.
pub(crate) fn pick<T: Copy>(rng: &mut ChaCha8Rng, table: &[T]) -> T {
    *table.choose(rng).expect("tables have entries")
}
