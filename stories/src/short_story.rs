//! Short stories in plain statements. Each sentence states one fact by full names, or one event
//! that changes one; of two statements about the same thing, the later counts.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::builder::{ScenarioBuilder, Step};
use crate::event::StoryEvent;
use crate::item::Split;
use crate::sample::{SceneSize, pick};
use crate::scene::{ContainerId, Entity, PersonId, PlaceId, Scene, Spot, ThingId};

/// The number of scenes in 256 that are held out.
const HELD_OUT: u8 = 32;

/// The number of actions after the beginning.
const ACTS: &[usize] = &[0, 1, 1, 2];

/// A short story with the scenes before and after it.
#[derive(Clone, Debug)]
pub(crate) struct ShortStory {
    /// The first sentences state this scene.
    pub(crate) start: Scene,
    pub(crate) end: Scene,
    pub(crate) text: String,
}

impl ShortStory {
    /// Samples a scene of that size and up to two actions in it.
    ///
    /// Small scenes are so few that the same one is drawn more than once. A hash of the scene
    /// therefore decides its split, and scenes of the other split are drawn again.
    pub(crate) fn sample(rng: &mut ChaCha8Rng, size: SceneSize, split: Split) -> Self {
        loop {
            let story = Self::sample_any_split(rng, size);
            if is_held_out(&story.start) == (split == Split::HeldOut) {
                return story;
            }
        }
    }

    fn sample_any_split(rng: &mut ChaCha8Rng, size: SceneSize) -> Self {
        let mut start = Scene::of_size(rng, size);
        scatter(&mut start, rng);
        let mut sentences = statements(&start);
        sentences.shuffle(rng);
        let acts = pick(rng, ACTS);
        let mut builder = ScenarioBuilder::new(start.clone(), rng);
        for _ in 0..acts {
            act(&mut builder);
        }
        let (steps, end) = (builder.steps, builder.scene);
        sentences.extend(event_sentences(&start, &steps));
        Self { start, end, text: sentences.join(" ") }
    }
}

fn is_held_out(start: &Scene) -> bool {
    let mut sentences = statements(start);
    // Sorted, since the same facts in another order are the same scene.
    sentences.sort();
    blake3::hash(sentences.join(" ").as_bytes()).as_bytes()[0] < HELD_OUT
}

/// One sentence per event. The scene is replayed, because the place where a thing is left depends
/// on where the person is.
fn event_sentences(start: &Scene, steps: &[Step]) -> Vec<String> {
    let mut scene = start.clone();
    let mut sentences = Vec::new();
    for step in steps {
        let Step::Event(event) = *step else { continue };
        sentences.extend(event_sentence(&scene, event));
        scene.apply(event).expect("the builder applied it too");
    }
    sentences
}

/// Spreads the things over people, containers and the ground, no two in one spot. In the scene of a
/// long story, most things are with a person.
fn scatter(scene: &mut Scene, rng: &mut ChaCha8Rng) {
    let people = (0..scene.people.len()).map(PersonId).map(Spot::With);
    let containers = (0..scene.containers.len()).map(ContainerId).map(Spot::Inside);
    let mut spots: Vec<Spot> = people.chain(containers).collect();
    // In the smallest scenes nothing lies on the ground; `pass_on` keeps to that.
    if scene.things.len() > 1 {
        spots.push(Spot::Lying(PlaceId(rng.random_range(0..scene.places.len()))));
    }
    spots.shuffle(rng);
    for (thing, spot) in scene.things.iter_mut().zip(spots) {
        thing.spot = spot;
    }
}

/// Where every person and every thing is: the beginning of a short story.
fn statements(scene: &Scene) -> Vec<String> {
    let people = scene
        .people
        .iter()
        .map(|person| format!("{} was in the {}.", person.name, scene.place(person.place)));
    let things = (0..scene.things.len()).map(|id| statement(scene, ThingId(id)));
    people.chain(things).collect()
}

fn statement(scene: &Scene, id: ThingId) -> String {
    let label = scene.label(Entity::Thing(id));
    let inside = |what: &str| format!("A {label} was in the {what}.");
    match scene.thing(id).spot {
        Spot::With(person) => format!("{} had a {label}.", scene.person(person).name),
        Spot::Inside(container) => inside(&scene.label(Entity::Container(container))),
        Spot::Lying(place) => inside(scene.place(place)),
    }
}

/// A person goes to another place, or a thing changes its spot.
fn act(builder: &mut ScenarioBuilder) {
    let Some(who) = builder.person_besides(&[]) else { return };
    let thing = ThingId(builder.rng.random_range(0..builder.scene.things.len()));
    if builder.rng.random_bool(0.3) {
        let place = builder.place_besides(&[builder.scene.person(who).place]);
        return builder.go(who, place);
    }
    match builder.scene.thing(thing).spot {
        Spot::With(holder) => pass_on(builder, holder, thing),
        Spot::Inside(_) | Spot::Lying(_) => builder.fetch(who, thing),
    }
}

fn pass_on(builder: &mut ScenarioBuilder, holder: PersonId, thing: ThingId) {
    match (builder.rng.random_range(0..4), builder.person_besides(&[holder])) {
        (0, Some(other)) => builder.bring(holder, thing, other),
        (1, Some(_)) => builder.act(StoryEvent::Leave(holder, thing)),
        _ => {
            let container = builder.container_besides(&[]);
            builder.stow(holder, thing, container);
        }
    }
}

/// The sentence for an event. Opening and closing are not mentioned.
fn event_sentence(scene: &Scene, event: StoryEvent) -> Option<String> {
    let name = |id| scene.person(id).name;
    let noun = |id| scene.thing(id).noun;
    let action = match event {
        StoryEvent::Go(_, place) => format!("went to the {}", scene.place(place)),
        StoryEvent::Take(_, thing) => format!("took the {}", noun(thing)),
        StoryEvent::Put(_, thing, container) | StoryEvent::Hide(_, thing, container) => {
            format!("put the {} in the {}", noun(thing), scene.label(Entity::Container(container)))
        }
        StoryEvent::Give(_, other, thing) => format!("gave the {} to {}", noun(thing), name(other)),
        StoryEvent::Leave(who, thing) | StoryEvent::Lose(who, thing) => {
            let place = scene.place(scene.person(who).place);
            format!("left the {} in the {place}", noun(thing))
        }
        StoryEvent::Open(..) | StoryEvent::Close(..) => return None,
    };
    Some(format!("{} {action}.", name(event.actor())))
}
