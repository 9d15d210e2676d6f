//! The engine from outside: golden logits, equal bits, refused requests, generation.
#![allow(clippy::float_cmp, reason = "tests state exact values")]

mod generation;
mod golden;
mod random_model;
mod requests;
mod same_bits;
