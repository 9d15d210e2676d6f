//! A synthetic dataset of short English stories, drawn from a seed without end, whose facts are
//! known: text for pretraining, dialogues for fine-tuning and answer pairs for preference training.
//!
//! A [`story`] is made in three steps. A scene (people, places, containers, things) is sampled; a
//! plot changes it by events that follow its rules; and the result is rendered in simple English.
//! Questions about the end of the story are answered from the final scene, so the right answer is
//! always known. A [`dialogue`] and a [`preference`] are about shorter stories in plain statements;
//! now and then they ask about the world outside, of which nothing is known.
//!
//! Every item is a pure function of seed, split and index. The texts are frozen by tests: a run
//! that used them can be repeated. Files, tokens and batches are not the concern of this crate.

#![forbid(unsafe_code)]

mod builder;
mod dialogue;
mod event;
mod item;
mod opening;
mod outside;
mod preference;
mod question;
mod references;
mod renderer;
mod sample;
mod scenario;
mod scene;
mod short_answer;
mod short_story;
mod story;
mod templates;
mod vocabulary;

#[cfg(test)]
mod dialogue_tests;
#[cfg(test)]
mod story_tests;

pub use dialogue::{Difficulty, StoryDialogue, dialogue, outside_dialogue};
pub use item::{Probe, QuestionAnswer, Split, Story, StoryStyle};
pub use outside::OUTSIDE_QUESTIONS;
pub use preference::{StoryPreference, preference};
pub use story::story;
