//! The promise of a run, kept by the real program: kill it, stop it, damage its files, start it
//! twice, give it bad input.

mod adapter_training;
mod adapters;
mod bad_input;
mod commands;
mod conversion;
mod data_files;
mod devices;
mod distillation;
mod exports;
mod finish;
mod full_log;
mod groups;
mod int8;
pub(crate) mod kill;
pub(crate) mod lab;
mod lean;
mod messages;
mod report;
mod signals;
pub(crate) mod stages;
mod storage;
mod surroundings;
mod sweep;
mod tasks;
mod wrong_rows;
