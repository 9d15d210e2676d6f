//! The teacher of a run.

use std::path::PathBuf;

use bitnet_format::ModelSpec;

use super::stage::distill::relations::Relations;

/// A teacher that was found and fits the student; its weights are unread.
pub(crate) struct RunTeacher {
    /// Its folder or file.
    pub(crate) path: PathBuf,
    pub(crate) spec: ModelSpec,
    /// What is compared inside of the models, if anything is.
    pub(crate) relations: Option<Relations>,
}
