//! The promise of a run, kept by the real program: kill it, stop it, damage its files, start it
//! twice, give it bad input.

mod bad_input;
mod commands;
mod devices;
mod exports;
mod kill;
mod lab;
mod signals;
mod stages;
mod storage;
