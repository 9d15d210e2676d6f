//! Scenarios: one of eight plots, each with random choices, and an aftermath, without which the
//! plot alone would predict the final scene.
//!
//! Plots act only through `builder`, which checks each event. Wording belongs to `renderer`.

use rand::RngExt;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;

use crate::builder::{Remark, ScenarioBuilder, Slots, Step, TimeShift};
use crate::event::StoryEvent;
use crate::sample::pick;
use crate::scene::{ContainerId, PersonId, Scene, Spot, ThingId};

/// What happens in a story, with the scene before and after it.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) start: Scene,
    pub(crate) steps: Vec<Step>,
    pub(crate) end: Scene,
}

const HERO: PersonId = PersonId(0);
const FRIEND: PersonId = PersonId(1);
const TREASURE: ThingId = ThingId(0);

/// A story with this many steps gets no aside, or only a one-step aftermath, so that it stays short.
const MAX_STEPS_BEFORE_ASIDE: usize = 7;
const MAX_STEPS_BEFORE_AFTERMATH: usize = 12;

const PLOTS: &[fn(&mut ScenarioBuilder)] =
    &[moved_away, present, lost, trade, game, tidy, borrow, errand];

impl Scenario {
    /// Samples a scene and plays one plot in it.
    pub(crate) fn sample(rng: &mut ChaCha8Rng) -> Self {
        let start = Scene::sample(rng);
        let plot = pick(rng, PLOTS);
        let mut builder = ScenarioBuilder::new(start.clone(), rng);
        plot(&mut builder);
        aftermath(&mut builder);
        Self { start, steps: builder.steps, end: builder.scene }
    }
}

/// The hero puts a treasure away; somebody moves it; the hero searches, asks and finds it.
fn moved_away(builder: &mut ScenarioBuilder) {
    let mover = builder.person_besides(&[HERO]).unwrap_or(FRIEND);
    let first = builder.container_besides(&[]);
    let second = builder.container_besides(&[first]);
    builder.remark(Remark::KeepSafe, HERO, of(TREASURE));
    builder.stow(HERO, TREASURE, first);
    let here = [first, second].map(|container| builder.scene.container(container).place);
    // The hero must not see the thing being moved.
    let away = builder.place_besides(&[here[0], here[1], builder.scene.person(mover).place]);
    builder.go(HERO, away);
    builder.shift_time(TimeShift::Meanwhile);
    if builder.rng.random_bool(0.5) {
        builder.remark(Remark::Wants, mover, of(TREASURE));
    }
    builder.fetch(mover, TREASURE);
    builder.stow(mover, TREASURE, second);
    builder.shift_time(TimeShift::Later);
    search_in_vain(builder, HERO, TREASURE, first);
    if builder.rng.random_bool(0.5) {
        builder.remark(Remark::Sad, HERO, Slots::default());
    }
    ask_where(builder, HERO, mover, TREASURE, second);
    builder.fetch(HERO, TREASURE);
    builder.remark(Remark::HasAgain, HERO, of(TREASURE));
}

/// The hero brings the friend a present, in the friend's colour where the scene has one.
fn present(builder: &mut ScenarioBuilder) {
    let liked = builder.scene.person(FRIEND).likes;
    let things = builder.scene.thing_ids();
    let fitting = |&thing: &ThingId| {
        builder.scene.thing(thing).colour == liked && !builder.scene.holds(FRIEND, thing)
    };
    let fit = things.clone().find(fitting);
    builder.remark(Remark::Present, HERO, with(FRIEND));
    if fit.is_some() {
        builder.remark(Remark::LikesColour, FRIEND, Slots::default());
    }
    let gift = fit.unwrap_or(TREASURE);
    builder.fetch(HERO, gift);
    builder.bring(HERO, gift, FRIEND);
    builder.remark(Remark::Thanks, FRIEND, with(HERO));
    builder.remark(Remark::Glad, FRIEND, Slots::default());
    aside(builder, HERO, &[gift]);
}

/// The hero loses a treasure on the way; somebody finds it and brings it back or puts it away.
fn lost(builder: &mut ScenarioBuilder) {
    let finder = builder.person_besides(&[HERO]).unwrap_or(FRIEND);
    let taken = [HERO, finder].map(|person| builder.scene.person(person).place);
    let way = builder.place_besides(&taken);
    let goal = builder.place_besides(&[way, taken[0], taken[1]]);
    builder.remark(Remark::Treasures, HERO, of(TREASURE));
    builder.go(HERO, way);
    builder.act(StoryEvent::Lose(HERO, TREASURE));
    builder.go(HERO, goal);
    builder.remark(Remark::Missed, HERO, of(TREASURE));
    builder.remark(Remark::Sad, HERO, Slots::default());
    builder.shift_time(TimeShift::Meanwhile);
    builder.fetch(finder, TREASURE);
    if builder.rng.random_bool(0.5) {
        builder.bring(finder, TREASURE, HERO);
        builder.remark(Remark::Thanks, HERO, with(finder));
    } else {
        let container = builder.container_besides(&[]);
        builder.stow(finder, TREASURE, container);
        builder.shift_time(TimeShift::Later);
        ask_where(builder, HERO, finder, TREASURE, container);
        builder.fetch(HERO, TREASURE);
    }
    builder.remark(Remark::HasAgain, HERO, of(TREASURE));
}

/// Hero and friend trade what they have.
fn trade(builder: &mut ScenarioBuilder) {
    // Any but the treasure; long stories have at least two things.
    let other = ThingId(builder.rng.random_range(1..builder.scene.things.len()));
    let wanted = builder.scene.thing(other).colour == builder.scene.person(HERO).likes;
    if wanted {
        builder.remark(Remark::LikesColour, HERO, Slots::default());
    }
    builder.fetch(FRIEND, other);
    builder.meet(HERO, FRIEND);
    builder.remark(Remark::Trade, HERO, Slots { other: Some(FRIEND), ..of(TREASURE) });
    builder.act(StoryEvent::Give(HERO, FRIEND, TREASURE));
    builder.act(StoryEvent::Give(FRIEND, HERO, other));
    builder.remark(Remark::Glad, HERO, Slots::default());
    aside(builder, FRIEND, &[TREASURE, other]);
}

/// One hides a thing, the other looks in the wrong container first.
fn game(builder: &mut ScenarioBuilder) {
    let right = builder.container_besides(&[]);
    let wrong = builder.container_besides(&[right]);
    builder.meet(FRIEND, HERO);
    builder.remark(Remark::Game, HERO, with(FRIEND));
    builder.hide(HERO, TREASURE, right);
    search_in_vain(builder, FRIEND, TREASURE, wrong);
    builder.fetch(FRIEND, TREASURE);
    builder.remark(Remark::Glad, FRIEND, Slots::default());
    if builder.rng.random_bool(0.5) {
        let container = builder.container_besides(&[right]);
        builder.hide(FRIEND, TREASURE, container);
    } else {
        builder.bring(FRIEND, TREASURE, HERO);
    }
}

/// Everything is put away; then something is needed again.
fn tidy(builder: &mut ScenarioBuilder) {
    builder.remark(Remark::Tidy, HERO, Slots::default());
    let mut last = None;
    let other = ThingId(builder.scene.things.len() - 1);
    for thing in [TREASURE, other] {
        // Not back to where it was, else not to where the first thing went.
        let avoided = container_of(builder, thing).or(last);
        builder.fetch(HERO, thing);
        let container = builder.container_besides(avoided.as_slice());
        builder.stow(HERO, thing, container);
        last = Some(container);
    }
    let needed = if builder.rng.random_bool(0.5) { TREASURE } else { other };
    let place = builder.place_besides(&[builder.scene.person(HERO).place]);
    builder.go(HERO, place);
    builder.shift_time(TimeShift::Later);
    if let Spot::Inside(container) = builder.scene.thing(needed).spot {
        ask_where(builder, FRIEND, HERO, needed, container);
    }
    builder.fetch(FRIEND, needed);
}

/// The friend borrows the treasure and leaves it somewhere; the hero gets it back.
fn borrow(builder: &mut ScenarioBuilder) {
    builder.remark(Remark::Treasures, HERO, of(TREASURE));
    builder.fetch(FRIEND, TREASURE);
    builder.remark(Remark::Thanks, FRIEND, with(HERO));
    let place = builder.place_besides(&[builder.scene.person(FRIEND).place]);
    builder.go(FRIEND, place);
    aside(builder, FRIEND, &[TREASURE]);
    let container = builder.container_besides(&[]);
    builder.shift_time(TimeShift::Later);
    builder.stow(FRIEND, TREASURE, container);
    ask_where(builder, HERO, FRIEND, TREASURE, container);
    builder.fetch(HERO, TREASURE);
    builder.remark(Remark::HasAgain, HERO, of(TREASURE));
}

/// The friend asks the hero to bring a thing to somebody.
fn errand(builder: &mut ScenarioBuilder) {
    let thing = ThingId(builder.rng.random_range(0..builder.scene.things.len()));
    // With nobody to bring it to, or somebody who has it, it becomes another plot.
    let Some(third) = builder.person_besides(&[HERO, FRIEND]) else {
        return present(builder);
    };
    if builder.scene.holds(third, thing) {
        return present(builder);
    }
    builder.meet(HERO, FRIEND);
    let slots = Slots { other: Some(HERO), third: Some(third), ..of(thing) };
    builder.remark(Remark::Errand, FRIEND, slots);
    builder.remark(Remark::Agree, HERO, Slots::default());
    if builder.scene.holds(FRIEND, thing) {
        builder.act(StoryEvent::Give(FRIEND, HERO, thing));
    }
    builder.fetch(HERO, thing);
    builder.bring(HERO, thing, third);
    builder.remark(Remark::Thanks, third, with(HERO));
    aside(builder, HERO, &[thing]);
}

fn search_in_vain(
    builder: &mut ScenarioBuilder,
    who: PersonId,
    thing: ThingId,
    container: ContainerId,
) {
    builder.reach(who, container);
    builder.remark(Remark::NotThere, who, Slots { container: Some(container), ..of(thing) });
}

fn ask_where(
    builder: &mut ScenarioBuilder,
    who: PersonId,
    other: PersonId,
    thing: ThingId,
    at: ContainerId,
) {
    builder.meet(who, other);
    builder.remark(Remark::AskWhere, who, Slots { other: Some(other), ..of(thing) });
    let slots = Slots { container: Some(at), other: Some(who), ..of(thing) };
    builder.remark(Remark::TellContainer, other, slots);
}

/// Somebody other than the busy person does something with some other thing.
fn aside(builder: &mut ScenarioBuilder, busy: PersonId, involved: &[ThingId]) {
    if !builder.is_shorter_than(MAX_STEPS_BEFORE_ASIDE) {
        return;
    }
    let Some(who) = builder.person_besides(&[busy]) else { return };
    let things = builder.scene.thing_ids();
    let free = things.filter(|&thing| {
        let held = matches!(builder.scene.thing(thing).spot, Spot::With(holder) if holder != who);
        !held && !involved.contains(&thing)
    });
    let Some(thing) = free.choose(builder.rng) else { return };
    // A person in one of the last steps cannot have done something else at the same time.
    builder.shift_time(if builder.acted_recently(who) {
        TimeShift::Later
    } else {
        TimeShift::Meanwhile
    });
    let origin = container_of(builder, thing);
    if !builder.scene.holds(who, thing) {
        builder.remark(Remark::Wants, who, of(thing));
    }
    builder.fetch(who, thing);
    match builder.person_besides(&[who]) {
        Some(other) if builder.rng.random_bool(0.25) => builder.bring(who, thing, other),
        _ => dispose(builder, who, thing, origin),
    }
}

/// Moves a held thing into a container or to another place, or leaves it in the person's hands. It
/// never goes back to the container it came from.
fn dispose(
    builder: &mut ScenarioBuilder,
    who: PersonId,
    thing: ThingId,
    origin: Option<ContainerId>,
) {
    match builder.rng.random_range(0..10) {
        0..5 => {
            let container = builder.container_besides(origin.as_slice());
            builder.stow(who, thing, container);
        }
        5..8 => {
            let place = builder.place_besides(&[builder.scene.person(who).place]);
            builder.go(who, place);
            builder.act(StoryEvent::Leave(who, thing));
        }
        _ => {}
    }
}

/// Disposes of one held thing; then somebody may leave.
fn aftermath(builder: &mut ScenarioBuilder) {
    builder.shift_time(TimeShift::Evening);
    if !builder.is_shorter_than(MAX_STEPS_BEFORE_AFTERMATH) {
        return somebody_leaves(builder);
    }
    let things = builder.scene.thing_ids();
    let held = things.filter_map(|thing| match builder.scene.thing(thing).spot {
        Spot::With(holder) => Some((holder, thing)),
        _ => None,
    });
    if let Some((holder, thing)) = held.choose(builder.rng) {
        dispose(builder, holder, thing, None);
    }
    if builder.rng.random_bool(0.35) {
        somebody_leaves(builder);
    }
}

fn somebody_leaves(builder: &mut ScenarioBuilder) {
    let who = builder.person_besides(&[]).expect("a scene has people");
    let place = builder.place_besides(&[builder.scene.person(who).place]);
    builder.go(who, place);
}

fn container_of(builder: &ScenarioBuilder, thing: ThingId) -> Option<ContainerId> {
    match builder.scene.thing(thing).spot {
        Spot::Inside(container) => Some(container),
        _ => None,
    }
}

fn of(thing: ThingId) -> Slots {
    Slots { thing: Some(thing), ..Slots::default() }
}

fn with(other: PersonId) -> Slots {
    Slots { other: Some(other), ..Slots::default() }
}
