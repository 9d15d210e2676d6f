//! What the run directories of bitnet-train say: a page ([`page()`]), a table of runs
//! ([`run_table`]), the recipe keys in which they differ ([`differences`]) and a screen that
//! follows them ([`watch()`]). Everything is read from files; no process is contacted.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod chart;
mod curve;
mod error;
mod facts;
mod folder;
mod history;
mod html;
mod page;
mod panels;
mod recipe_keys;
mod run_table;
mod samples;
mod state;
mod ticks;
mod watch;

#[cfg(test)]
mod fixtures;

pub use curve::Curve;
pub use error::ReportError;
pub use folder::{RunFolder, find_runs, open_all};
pub use history::RunHistory;
pub use page::{is_page, page};
pub use recipe_keys::{KeyDifference, differences, differing_keys, flat_recipe, read_recipe};
pub use run_table::{RunRow, run_table, sort_rows};
pub use samples::SampleText;
pub use state::RunState;
pub use watch::{WatchScreen, watch};
