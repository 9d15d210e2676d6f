//! The engine from outside: equal bits, refused requests, generation.
#![allow(clippy::float_cmp, reason = "tests state exact values")]

mod adapter;
mod generation;
mod groups;
mod random_model;
mod requests;
mod same_bits;
