//! The tiny world: an endless, seeded source of short stories whose facts are known.
//!
//! A world is drawn (`genesis`), something happens in it (`plot` on a `stage`, by the rules of
//! `events`), and the whole is told in simple English (`opening`, `narrator`, `recap`). Reading
//! and writing files, tokenising and batching do not live here.

mod events;
mod genesis;
mod model;
mod names;
mod narrator;
mod opening;
mod phrases;
mod plot;
mod recap;
mod reference;
mod stage;
mod telling;
#[cfg(test)]
mod tests;

pub use events::{Event, Refusal};
pub use model::{
    Container, ContainerId, Entity, Fact, Lid, Person, PersonId, PlaceId, Relation, Spot, Thing,
    ThingId, World,
};
pub use names::Gender;
pub use plot::Episode;
pub use recap::{Kind, Question, questions};
pub use stage::{Beat, Note, Roles, Turn};
pub use telling::{Probe, Split, Story, Telling, episode, story};
