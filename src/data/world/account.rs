//! The account: a short story of plain statements. Each sentence states one fact by full names or
//! one event that changes one; of two statements about the same, the later one counts.
//!
//! What can be asked about it is in `inquiry`; the long stories are told by `narrator`.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::events::Event;
use super::genesis::pick;
use super::model::{ContainerId, Entity, PersonId, PlaceId, Spot, ThingId, World};
use super::stage::{Beat, Stage};
use super::telling::Split;

/// Of 256 worlds so many are held out.
const HELD_OUT: u8 = 32;

/// How many things are done after the beginning.
const ACTS: &[usize] = &[0, 1, 1, 2];

/// A story and the worlds before and after it.
#[derive(Clone, Debug)]
pub(super) struct Account {
    /// The world that the first sentences state.
    pub start: World,
    /// The world after the last sentence.
    pub end: World,
    /// The story, one paragraph.
    pub text: String,
}

impl Account {
    /// Draws a world of that many people, containers and things, lets a little happen in it, and
    /// tells both. Small worlds are few enough to be drawn twice, so what it begins with decides
    /// which split a world belongs to.
    pub(super) fn generate(
        rng: &mut ChaCha8Rng,
        numbers: (usize, usize, usize),
        split: Split,
    ) -> Self {
        loop {
            let account = Self::of_size(rng, numbers);
            if is_held_out(&account.start) == (split == Split::HeldOut) {
                return account;
            }
        }
    }

    fn of_size(rng: &mut ChaCha8Rng, numbers: (usize, usize, usize)) -> Self {
        let mut start = World::of_size(rng, numbers);
        scatter(&mut start, rng);
        let mut sentences = statements(&start);
        sentences.shuffle(rng);
        let acts = pick(rng, ACTS);
        let mut stage = Stage::new(start.clone(), rng);
        for _ in 0..acts {
            act(&mut stage);
        }
        let (beats, end) = (stage.beats, stage.world);
        sentences.extend(happenings(&start, &beats));
        Self { start, end, text: sentences.join(" ") }
    }
}

/// Whether no story to train on begins with these statements.
fn is_held_out(start: &World) -> bool {
    let mut stated = statements(start);
    stated.sort();
    blake3::hash(stated.join(" ").as_bytes()).as_bytes()[0] < HELD_OUT
}

/// What happened, with the world followed along: where a thing is left depends on who left it.
fn happenings(start: &World, beats: &[Beat]) -> Vec<String> {
    let mut world = start.clone();
    let mut sentences = Vec::new();
    for beat in beats {
        let Beat::Event(event) = *beat else { continue };
        sentences.extend(told(&world, event));
        world.apply(event).expect("the stage has let it happen");
    }
    sentences
}

/// Lets people have some of the things, containers hold some, and some lie about, no two together:
/// in a story, most would be with somebody.
fn scatter(world: &mut World, rng: &mut ChaCha8Rng) {
    let people = (0..world.people.len()).map(PersonId).map(Spot::With);
    let containers = (0..world.containers.len()).map(ContainerId).map(Spot::Inside);
    let mut spots: Vec<Spot> = people.chain(containers).collect();
    if world.things.len() > 1 {
        spots.push(Spot::Lying(PlaceId(rng.random_range(0..world.places.len()))));
    }
    spots.shuffle(rng);
    for (thing, spot) in world.things.iter_mut().zip(spots) {
        thing.spot = spot;
    }
}

/// Where everybody is and everything: what an account begins with.
fn statements(world: &World) -> Vec<String> {
    let people = world
        .people
        .iter()
        .map(|person| format!("{} was in the {}.", person.name, world.place(person.place)));
    let things = (0..world.things.len()).map(|id| statement(world, ThingId(id)));
    people.chain(things).collect()
}

fn statement(world: &World, id: ThingId) -> String {
    let label = world.label(Entity::Thing(id));
    let inside = |what: &str| format!("A {label} was in the {what}.");
    match world.thing(id).spot {
        Spot::With(person) => format!("{} had a {label}.", world.person(person).name),
        Spot::Inside(container) => inside(&world.label(Entity::Container(container))),
        Spot::Lying(place) => inside(world.place(place)),
    }
}

/// Somebody goes somewhere, or something finds its way to another spot.
fn act(stage: &mut Stage) {
    let Some(who) = stage.person_besides(&[]) else { return };
    let thing = ThingId(stage.rng.random_range(0..stage.world.things.len()));
    if stage.rng.random_bool(0.3) {
        let place = stage.place_besides(&[stage.world.person(who).place]);
        return stage.go(who, place);
    }
    match stage.world.thing(thing).spot {
        Spot::With(holder) => pass_on(stage, holder, thing),
        Spot::Inside(_) | Spot::Lying(_) => stage.fetch(who, thing),
    }
}

fn pass_on(stage: &mut Stage, holder: PersonId, thing: ThingId) {
    match (stage.rng.random_range(0..4), stage.person_besides(&[holder])) {
        (0, Some(other)) => stage.bring(holder, thing, other),
        (1, Some(_)) => stage.act(Event::Leave(holder, thing)),
        _ => {
            let container = stage.container_besides(&[]);
            stage.stow(holder, thing, container);
        }
    }
}

/// The sentence about an event. Lids are not spoken of.
fn told(world: &World, event: Event) -> Option<String> {
    let name = |id| world.person(id).name;
    let noun = |id| world.thing(id).noun;
    let said = match event {
        Event::Go(_, place) => format!("went to the {}", world.place(place)),
        Event::Take(_, thing) => format!("took the {}", noun(thing)),
        Event::Put(_, thing, container) | Event::Hide(_, thing, container) => {
            format!("put the {} in the {}", noun(thing), world.label(Entity::Container(container)))
        }
        Event::Give(_, other, thing) => format!("gave the {} to {}", noun(thing), name(other)),
        Event::Leave(who, thing) | Event::Lose(who, thing) => {
            let place = world.place(world.person(who).place);
            format!("left the {} in the {place}", noun(thing))
        }
        Event::Open(..) | Event::Close(..) => return None,
    };
    Some(format!("{} {said}.", name(event.actor())))
}
