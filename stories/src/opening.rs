//! The opening of a long story: introduces every person, container and thing, with its place.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::renderer::{capitalised, joined};
use crate::sample::pick;
use crate::scene::{Entity, PersonId, Scene, Spot, ThingId};
use crate::templates::{DAYS, FRIEND, HERO, THIRD};

pub(crate) fn render(scene: &Scene, rng: &mut ChaCha8Rng) -> String {
    let mut sentences: Vec<String> = Vec::new();
    let day = pick(rng, DAYS);
    for (id, patterns) in (0..scene.people.len()).zip([HERO, FRIEND, THIRD]) {
        let pattern = pick(rng, patterns).replace("{day}", day);
        sentences.push(capitalised(&introduction(scene, PersonId(id), &pattern)));
    }
    sentences.push(containers(scene, rng));
    sentences.extend(things(scene));
    sentences.join(" ")
}

/// Fills a pattern. Its pronouns stand for the hero, who is the subject so far.
fn introduction(scene: &Scene, id: PersonId, pattern: &str) -> String {
    let person = scene.person(id);
    let hero = scene.person(PersonId(0)).gender;
    let slots = [
        ("{nature}", person.nature),
        ("{kind}", person.kind),
        ("{a}", person.name),
        ("{p}", scene.place(person.place)),
        ("{he}", hero.subject()),
        ("{He}", &capitalised(hero.subject())),
        ("{His}", &capitalised(hero.possessive())),
    ];
    slots.iter().fold(pattern.to_owned(), |text, (slot, word)| text.replace(slot, word))
}

fn containers(scene: &Scene, rng: &mut ChaCha8Rng) -> String {
    let each = scene.containers.iter().map(|it| (it.colour, it.noun, scene.place(it.place)));
    if rng.random_bool(0.5) {
        let parts: Vec<_> =
            each.map(|(colour, noun, place)| format!("a {colour} {noun} in the {place}")).collect();
        format!("There was {}.", joined(&parts))
    } else {
        let parts: Vec<_> =
            each.map(|(colour, noun, place)| format!("in the {place} a {colour} {noun}")).collect();
        // One verb for the whole list, in its first part.
        let parts = joined(&parts).replacen(" a ", " there was a ", 1);
        format!("{}.", capitalised(&parts))
    }
}

/// Held things in one sentence, all others in another.
fn things(scene: &Scene) -> Vec<String> {
    let (mut held, mut free) = (Vec::new(), Vec::new());
    for (id, thing) in scene.things.iter().enumerate() {
        let label = scene.label(Entity::Thing(ThingId(id)));
        match thing.spot {
            Spot::With(person) => held.push(format!("{} had a {label}", scene.person(person).name)),
            Spot::Inside(container) => {
                let container = scene.label(Entity::Container(container));
                free.push(format!("a {label} was in the {container}"));
            }
            Spot::Lying(place) => {
                free.push(format!("a {label} was lying in the {}", scene.place(place)));
            }
        }
    }
    let sentences = [held, free].into_iter().filter(|parts| !parts.is_empty());
    sentences.map(|parts| format!("{}.", capitalised(&joined(&parts)))).collect()
}
