//! The tiny world: an endless, seeded source of short stories whose facts are known.
//!
//! A world is drawn (`genesis`), something happens in it (`plot` on a `stage`, by the rules of
//! `events`), and the whole is told in simple English (`opening`, `narrator`, `recap`). Shorter and
//! plainer stories (`account`) are what conversations (`lesson`, `inquiry`) and preferences
//! (`preference`) are about. Reading and writing files, tokenising and batching do not live here.

mod account;
mod events;
mod genesis;
mod inquiry;
mod lesson;
#[cfg(test)]
mod lesson_tests;
mod model;
mod names;
mod narrator;
mod opening;
mod phrases;
mod plot;
mod preference;
mod recap;
mod reference;
mod stage;
mod telling;
#[cfg(test)]
mod tests;

pub use events::{Event, Refusal};
pub use lesson::{Cast, Exchange, Lesson, lesson};
pub use model::{
    Container, ContainerId, Entity, Fact, Lid, Person, PersonId, PlaceId, Relation, Spot, Thing,
    ThingId, World,
};
pub use names::Gender;
pub use plot::Episode;
pub use preference::{Preference, preference};
pub use recap::{Kind, Question, questions};
pub use stage::{Beat, Note, Roles, Turn};
pub use telling::{Probe, Split, Story, Telling, episode, story};
