//! The opening of a story: everybody and everything that the story will need, and where it is.
//!
//! What happens afterwards is told by `narrator`.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::genesis::pick;
use super::model::{Entity, PersonId, Spot, ThingId, World};
use super::narrator::{capitalised, joined};
use super::phrases::{DAYS, FRIEND, HERO, THIRD};

/// Introduces the world as it is before anything happens.
pub(super) fn tell(world: &World, rng: &mut ChaCha8Rng) -> String {
    let mut sentences: Vec<String> = Vec::new();
    for (id, patterns) in (0..world.people.len()).zip([HERO, FRIEND, THIRD]) {
        sentences.push(introduced(world, PersonId(id), pick(rng, patterns)));
    }
    sentences.push(containers(world, rng));
    sentences.push(people(world, rng));
    sentences.extend(things(world));
    sentences.join(" ")
}

fn introduced(world: &World, id: PersonId, pattern: &str) -> String {
    let person = world.person(id);
    let hero = world.person(PersonId(0)).name;
    let said = pattern.replace("{nature}", person.nature).replace("{kind}", person.kind);
    said.replace("{a}", person.name).replace("{O}", hero)
}

fn containers(world: &World, rng: &mut ChaCha8Rng) -> String {
    let each = world.containers.iter().map(|it| (it.colour, it.noun, world.place(it.place)));
    if rng.random_bool(0.5) {
        let parts: Vec<_> =
            each.map(|(colour, noun, place)| format!("a {colour} {noun} in the {place}")).collect();
        format!("There was {}.", joined(&parts))
    } else {
        let parts: Vec<_> =
            each.map(|(colour, noun, place)| format!("in the {place} a {colour} {noun}")).collect();
        let parts = joined(&parts).replacen(" a ", " there was a ", 1);
        format!("{}.", capitalised(&parts))
    }
}

fn people(world: &World, rng: &mut ChaCha8Rng) -> String {
    let each = world.people.iter();
    let parts: Vec<_> =
        each.map(|it| format!("{} was in the {}", it.name, world.place(it.place))).collect();
    format!("{}{}.", pick(rng, DAYS), joined(&parts))
}

/// What people have in one sentence, what lies about in another.
fn things(world: &World) -> Vec<String> {
    let (mut held, mut free) = (Vec::new(), Vec::new());
    for (id, thing) in world.things.iter().enumerate() {
        let label = world.label(Entity::Thing(ThingId(id)));
        match thing.spot {
            Spot::With(person) => held.push(format!("{} had a {label}", world.person(person).name)),
            Spot::Inside(container) => {
                let container = world.label(Entity::Container(container));
                free.push(format!("a {label} was in the {container}"));
            }
            Spot::Lying(place) => {
                free.push(format!("a {label} was lying in the {}", world.place(place)));
            }
        }
    }
    let said = [held, free].into_iter().filter(|parts| !parts.is_empty());
    said.map(|parts| format!("{}.", capitalised(&joined(&parts)))).collect()
}
