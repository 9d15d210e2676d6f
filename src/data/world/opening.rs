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
    let day = pick(rng, DAYS);
    for (id, patterns) in (0..world.people.len()).zip([HERO, FRIEND, THIRD]) {
        let pattern = pick(rng, patterns).replace("{day}", day);
        sentences.push(capitalised(&introduced(world, PersonId(id), &pattern)));
    }
    sentences.push(containers(world, rng));
    sentences.extend(things(world));
    sentences.join(" ")
}

/// Fills a pattern; "she" and "her" in it are the hero, who is the subject so far.
fn introduced(world: &World, id: PersonId, pattern: &str) -> String {
    let person = world.person(id);
    let hero = world.person(PersonId(0)).gender;
    let slots = [
        ("{nature}", person.nature),
        ("{kind}", person.kind),
        ("{a}", person.name),
        ("{p}", world.place(person.place)),
        ("{he}", hero.subject()),
        ("{He}", &capitalised(hero.subject())),
        ("{His}", &capitalised(hero.possessive())),
    ];
    slots.iter().fold(pattern.to_owned(), |said, (slot, word)| said.replace(slot, word))
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
