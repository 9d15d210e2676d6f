//! BitNet b1.58 training: ternary weights, 8-bit activations, straight-through gradients, on Burn.
//!
//! The program `bitnet-train` is a thin layer over this library. A whole run is one call:
//!
//! ```no_run
//! use bitnet_train::distributed::Comm;
//! use bitnet_train::monitor::Silent;
//! use bitnet_train::platform::Signals;
//! use bitnet_train::recipe::{self, Plan};
//! use bitnet_train::run::{self, Resume, RunOptions};
//!
//! let overrides = ["train.steps=100".to_owned()];
//! let Plan::Single(recipe) = recipe::load("recipes/pretrain.toml".as_ref(), &overrides)? else {
//!     unreachable!("this recipe is one stage");
//! };
//! let options = RunOptions {
//!     out: "runs/mine".into(),
//!     resume: Resume::Auto,
//!     allow_change: Vec::new(),
//!     force: false,
//!     command: "my program".into(),
//!     signals: Signals::listen()?,
//!     comm: Comm::single(),
//! };
//! // A monitor of one's own sees every step, evaluation, sample and save.
//! let summary = run::run(&recipe, &options, &mut Silent)?;
//! println!("{} steps, loss {:?}", summary.steps, summary.last_loss);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Below that, a step is built from parts: [`model::LanguageModel`], [`train::GradAccumulator`] and
//! [`train::AdamW`]; `examples/train_from_code.rs` uses them directly. `ARCHITECTURE.md` has the
//! map of the modules. Shape letters: `B` batch, `T` time, `C` model width, `H` heads, `D` head width,
//! `F` feed-forward width, `V` vocabulary.

pub mod admission;
pub mod card_memory;
pub mod checkpoint;
pub mod data_files;
pub mod device;
pub mod distributed;
mod error;
pub mod estimate;
pub mod exporter;
mod host;
#[cfg(feature = "hub")]
pub mod hub;
pub mod latents;
mod leftovers;
pub mod model;
pub mod monitor;
pub mod ops;
pub mod output;
pub mod platform;
pub mod recipe;
pub mod run;
mod run_dir;
mod run_record;
pub mod scaling;
pub mod speed;
pub mod story_tasks;
pub mod train;

pub use bitnet_data as data;
pub use bitnet_data::random;
