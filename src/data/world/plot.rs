//! What happens in a story: a handful of plots, each with choices of its own, and an aftermath
//! that keeps the end state from following from the plot alone.
//!
//! Plots only act through `stage`, which refuses the impossible; wording lives in `narrator`.

use rand::RngExt;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;

use super::events::Event;
use super::genesis::pick;
use super::model::{ContainerId, PersonId, Spot, ThingId, World};
use super::stage::{Beat, Note, Roles, Stage, Turn};

/// A world before its story, what happens in it, and the world after.
#[derive(Clone, Debug)]
pub struct Episode {
    /// The world at the beginning.
    pub start: World,
    /// What happens.
    pub beats: Vec<Beat>,
    /// The world at the end.
    pub end: World,
}

const HERO: PersonId = PersonId(0);
const FRIEND: PersonId = PersonId(1);
const TREASURE: ThingId = ThingId(0);

/// As many beats may come before an aside, and before an aftermath of more than one step.
const ROOM_FOR_ASIDES: usize = 7;
const ROOM_FOR_AFTERMATH: usize = 12;

const PLOTS: &[fn(&mut Stage)] = &[moved_away, present, lost, trade, game, tidy, borrow, errand];

impl Episode {
    /// Draws a world and plays one plot in it.
    pub fn generate(rng: &mut ChaCha8Rng) -> Self {
        let start = World::generate(rng);
        let plot = pick(rng, PLOTS);
        let mut stage = Stage::new(start.clone(), rng);
        plot(&mut stage);
        aftermath(&mut stage);
        Self { start, beats: stage.beats, end: stage.world }
    }
}

/// The hero puts a treasure away; somebody moves it; the hero searches, asks and finds it.
fn moved_away(stage: &mut Stage) {
    let mover = stage.person_besides(&[HERO]).unwrap_or(FRIEND);
    let first = stage.container_besides(&[]);
    let second = stage.container_besides(&[first]);
    stage.note(Note::KeepSafe, HERO, of(TREASURE));
    stage.stow(HERO, TREASURE, first);
    let here = [first, second].map(|container| stage.world.container(container).place);
    let away = stage.place_besides(&[here[0], here[1], stage.world.person(mover).place]);
    stage.go(HERO, away);
    stage.turn(Turn::Meanwhile);
    if stage.rng.random_bool(0.5) {
        stage.note(Note::Wants, mover, of(TREASURE));
    }
    stage.fetch(mover, TREASURE);
    stage.stow(mover, TREASURE, second);
    stage.turn(Turn::Later);
    search_in_vain(stage, HERO, TREASURE, first);
    if stage.rng.random_bool(0.5) {
        stage.note(Note::Sad, HERO, Roles::default());
    }
    ask_where(stage, HERO, mover, TREASURE, second);
    stage.fetch(HERO, TREASURE);
    stage.note(Note::HasAgain, HERO, of(TREASURE));
}

/// The hero brings the friend a present, in the friend's colour where the world has one.
fn present(stage: &mut Stage) {
    let liked = stage.world.person(FRIEND).likes;
    let things = (0..stage.world.things.len()).map(ThingId);
    let fitting = |&thing: &ThingId| {
        stage.world.thing(thing).colour == liked && !stage.world.holds(FRIEND, thing)
    };
    let fit = things.clone().find(fitting);
    stage.note(Note::Present, HERO, with(FRIEND));
    if fit.is_some() {
        stage.note(Note::LikesColour, FRIEND, Roles::default());
    }
    let gift = fit.unwrap_or(TREASURE);
    stage.fetch(HERO, gift);
    stage.bring(HERO, gift, FRIEND);
    stage.note(Note::Thanks, FRIEND, with(HERO));
    stage.note(Note::Glad, FRIEND, Roles::default());
    aside(stage, HERO, &[gift]);
}

/// The hero loses a treasure on the way; somebody finds it and brings it back or puts it away.
fn lost(stage: &mut Stage) {
    let finder = stage.person_besides(&[HERO]).unwrap_or(FRIEND);
    let taken = [HERO, finder].map(|person| stage.world.person(person).place);
    let way = stage.place_besides(&taken);
    let goal = stage.place_besides(&[way, taken[0], taken[1]]);
    stage.note(Note::Treasures, HERO, of(TREASURE));
    stage.go(HERO, way);
    stage.act(Event::Lose(HERO, TREASURE));
    stage.go(HERO, goal);
    stage.note(Note::Missed, HERO, of(TREASURE));
    stage.note(Note::Sad, HERO, Roles::default());
    stage.turn(Turn::Meanwhile);
    stage.fetch(finder, TREASURE);
    if stage.rng.random_bool(0.5) {
        stage.bring(finder, TREASURE, HERO);
        stage.note(Note::Thanks, HERO, with(finder));
    } else {
        let container = stage.container_besides(&[]);
        stage.stow(finder, TREASURE, container);
        stage.turn(Turn::Later);
        ask_where(stage, HERO, finder, TREASURE, container);
        stage.fetch(HERO, TREASURE);
    }
    stage.note(Note::HasAgain, HERO, of(TREASURE));
}

/// Hero and friend trade what they have.
fn trade(stage: &mut Stage) {
    let other = ThingId(stage.rng.random_range(1..stage.world.things.len()));
    let wanted = stage.world.thing(other).colour == stage.world.person(HERO).likes;
    if wanted {
        stage.note(Note::LikesColour, HERO, Roles::default());
    }
    stage.fetch(FRIEND, other);
    stage.meet(HERO, FRIEND);
    stage.note(Note::Trade, HERO, Roles { other: Some(FRIEND), ..of(TREASURE) });
    stage.act(Event::Give(HERO, FRIEND, TREASURE));
    stage.act(Event::Give(FRIEND, HERO, other));
    stage.note(Note::Glad, HERO, Roles::default());
    aside(stage, FRIEND, &[TREASURE, other]);
}

/// One hides a thing, the other looks in the wrong container first.
fn game(stage: &mut Stage) {
    let right = stage.container_besides(&[]);
    let wrong = stage.container_besides(&[right]);
    stage.meet(FRIEND, HERO);
    stage.note(Note::Game, HERO, with(FRIEND));
    stage.hide(HERO, TREASURE, right);
    search_in_vain(stage, FRIEND, TREASURE, wrong);
    stage.fetch(FRIEND, TREASURE);
    stage.note(Note::Glad, FRIEND, Roles::default());
    if stage.rng.random_bool(0.5) {
        let container = stage.container_besides(&[right]);
        stage.hide(FRIEND, TREASURE, container);
    } else {
        stage.bring(FRIEND, TREASURE, HERO);
    }
}

/// Everything is put away; then something is needed again.
fn tidy(stage: &mut Stage) {
    stage.note(Note::Tidy, HERO, Roles::default());
    let mut last = None;
    let other = ThingId(stage.world.things.len() - 1);
    for thing in [TREASURE, other] {
        // Not back to where it was, else not to where the first thing went.
        let avoided = container_of(stage, thing).or(last);
        stage.fetch(HERO, thing);
        let container = stage.container_besides(avoided.as_slice());
        stage.stow(HERO, thing, container);
        last = Some(container);
    }
    let needed = if stage.rng.random_bool(0.5) { TREASURE } else { other };
    let place = stage.place_besides(&[stage.world.person(HERO).place]);
    stage.go(HERO, place);
    stage.turn(Turn::Later);
    if let Spot::Inside(container) = stage.world.thing(needed).spot {
        ask_where(stage, FRIEND, HERO, needed, container);
    }
    stage.fetch(FRIEND, needed);
}

/// The friend borrows the treasure and leaves it somewhere; the hero gets it back.
fn borrow(stage: &mut Stage) {
    stage.note(Note::Treasures, HERO, of(TREASURE));
    stage.fetch(FRIEND, TREASURE);
    stage.note(Note::Thanks, FRIEND, with(HERO));
    let place = stage.place_besides(&[stage.world.person(FRIEND).place]);
    stage.go(FRIEND, place);
    aside(stage, FRIEND, &[TREASURE]);
    let container = stage.container_besides(&[]);
    stage.turn(Turn::Later);
    stage.stow(FRIEND, TREASURE, container);
    ask_where(stage, HERO, FRIEND, TREASURE, container);
    stage.fetch(HERO, TREASURE);
    stage.note(Note::HasAgain, HERO, of(TREASURE));
}

/// The friend asks the hero to bring a thing to somebody.
fn errand(stage: &mut Stage) {
    let thing = ThingId(stage.rng.random_range(0..stage.world.things.len()));
    let Some(third) = stage.person_besides(&[HERO, FRIEND]) else {
        return present(stage);
    };
    if stage.world.holds(third, thing) {
        return present(stage);
    }
    stage.meet(HERO, FRIEND);
    let roles = Roles { other: Some(HERO), third: Some(third), ..of(thing) };
    stage.note(Note::Errand, FRIEND, roles);
    stage.note(Note::Agree, HERO, Roles::default());
    if stage.world.holds(FRIEND, thing) {
        stage.act(Event::Give(FRIEND, HERO, thing));
    }
    stage.fetch(HERO, thing);
    stage.bring(HERO, thing, third);
    stage.note(Note::Thanks, third, with(HERO));
    aside(stage, HERO, &[thing]);
}

fn search_in_vain(stage: &mut Stage, who: PersonId, thing: ThingId, container: ContainerId) {
    stage.reach(who, container);
    stage.note(Note::NotThere, who, Roles { container: Some(container), ..of(thing) });
}

fn ask_where(stage: &mut Stage, who: PersonId, other: PersonId, thing: ThingId, at: ContainerId) {
    stage.meet(who, other);
    stage.note(Note::AskWhere, who, Roles { other: Some(other), ..of(thing) });
    let roles = Roles { container: Some(at), other: Some(who), ..of(thing) };
    stage.note(Note::TellContainer, other, roles);
}

/// Somebody other than the busy person does something with some other thing.
fn aside(stage: &mut Stage, busy: PersonId, spoken_of: &[ThingId]) {
    if !stage.is_shorter_than(ROOM_FOR_ASIDES) {
        return;
    }
    let Some(who) = stage.person_besides(&[busy]) else { return };
    let things = (0..stage.world.things.len()).map(ThingId);
    let free = things.filter(|&thing| {
        let held = matches!(stage.world.thing(thing).spot, Spot::With(holder) if holder != who);
        !held && !spoken_of.contains(&thing)
    });
    let Some(thing) = free.choose(stage.rng) else { return };
    // Whoever has just been told of cannot have been doing something else meanwhile.
    stage.turn(if stage.was_just_told_of(who) { Turn::Later } else { Turn::Meanwhile });
    let origin = container_of(stage, thing);
    if !stage.world.holds(who, thing) {
        stage.note(Note::Wants, who, of(thing));
    }
    stage.fetch(who, thing);
    match stage.person_besides(&[who]) {
        Some(other) if stage.rng.random_bool(0.25) => stage.bring(who, thing, other),
        _ => dispose(stage, who, thing, origin),
    }
}

/// What becomes of a thing in somebody's hands: it goes into a container or to another place, or
/// it stays. It does not go back to where it was taken from.
fn dispose(stage: &mut Stage, who: PersonId, thing: ThingId, origin: Option<ContainerId>) {
    match stage.rng.random_range(0..10) {
        0..5 => {
            let container = stage.container_besides(origin.as_slice());
            stage.stow(who, thing, container);
        }
        5..8 => {
            let place = stage.place_besides(&[stage.world.person(who).place]);
            stage.go(who, place);
            stage.act(Event::Leave(who, thing));
        }
        _ => {}
    }
}

/// One thing in somebody's hands finds its end, and somebody may leave.
fn aftermath(stage: &mut Stage) {
    stage.turn(Turn::Evening);
    if !stage.is_shorter_than(ROOM_FOR_AFTERMATH) {
        return somebody_leaves(stage);
    }
    let things = (0..stage.world.things.len()).map(ThingId);
    let held = things.filter_map(|thing| match stage.world.thing(thing).spot {
        Spot::With(holder) => Some((holder, thing)),
        _ => None,
    });
    if let Some((holder, thing)) = held.choose(stage.rng) {
        dispose(stage, holder, thing, None);
    }
    if stage.rng.random_bool(0.35) {
        somebody_leaves(stage);
    }
}

fn somebody_leaves(stage: &mut Stage) {
    let who = stage.person_besides(&[]).expect("a world has people");
    let place = stage.place_besides(&[stage.world.person(who).place]);
    stage.go(who, place);
}

fn container_of(stage: &Stage, thing: ThingId) -> Option<ContainerId> {
    match stage.world.thing(thing).spot {
        Spot::Inside(container) => Some(container),
        _ => None,
    }
}

fn of(thing: ThingId) -> Roles {
    Roles { thing: Some(thing), ..Roles::default() }
}

fn with(other: PersonId) -> Roles {
    Roles { other: Some(other), ..Roles::default() }
}
