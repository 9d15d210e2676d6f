//! Runs packed ternary models on a CPU: forward pass, KV cache, sampling, generation.
//!
//! The engine knows token ids and no text. It owns no thread: the caller brings a thread pool, and
//! neither its size nor the kernel changes a bit of the result. Every token's result is the same
//! whether it is computed alone, after a cache, or among others in one call.
//!
//! Shape letters: `T` tokens, `C` model width, `H` query heads, `D` head width, `F` feed-forward
//! width, `V` vocabulary. A matrix is `[out, in]`.
#![deny(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::float_cmp, reason = "tests state exact values"))]

mod attention;
mod batch;
mod block;
mod cache;
mod compute;
mod error;
mod feed_forward;
mod generate;
mod linear;
mod load;
mod model;
mod norm;
mod packed_linear;
mod random;
mod rope;
mod sampler;
mod sampler_settings;
mod score;
mod side;
mod threads;
mod workspace;

pub use batch::Sequence;
pub use bitnet_kernels::Kernel;
pub use cache::{CachePrecision, KvCache, KvPage};
pub use error::EngineError;
pub use generate::{FinishReason, GenerateRequest, Generated, generate};
pub use load::HeadPrecision;
pub use model::Model;
pub use sampler::{Sampler, most_likely};
pub use sampler_settings::SamplerSettings;
pub use score::{LogSoftmax, ScoreTarget, Scores, TargetScore, score, score_batch};
pub use threads::ThreadPool;
pub use workspace::Workspace;
