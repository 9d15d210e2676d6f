//! Scaling laws of one's own: a ladder of runs, the loss that each of them reached, and the curve
//! `L = E + A / N^alpha + B / D^beta` through them (Hoffmann et al. 2022, arXiv 2203.15556, approach 3).
//!
//! * `ladder`: sizes x tokens x seeds as settings of one base recipe
//! * `runs`: what finished runs measured
//! * `law`, `regression`, `bootstrap`: the curve, the fit, and how sure it is
//! * `scatter`, `svg`: the points and the curves drawn
//!
//! `N` counts all parameters, the embedding among them; `D` counts trained tokens; a loss is in nats a
//! token.

mod bootstrap;
mod ladder;
mod law;
mod regression;
mod runs;
mod scatter;
mod svg;

pub use bootstrap::{Bootstrap, Interval, bootstrap};
pub use ladder::{Ladder, LadderSize, Rung, WeightKind, parse_tokens};
pub use law::{LossPoint, ScalingLaw};
pub use runs::{FoundRuns, MeasuredRun, read_runs};
pub use scatter::scatter;
pub use svg::{Series, draw_svg};
