//! Progress of a task for its caller, who may end it.

use std::ops::ControlFlow;

use crate::error::EvalError;

/// Gets what is done and what there is to do; `Break` ends the task.
pub type ProgressCallback<'a> = &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>;

/// Tells how far a task is.
///
/// # Errors
/// [`EvalError::Interrupted`] where the task is to end.
pub(crate) fn tell(
    progress: ProgressCallback<'_>,
    done: usize,
    all: usize,
) -> Result<(), EvalError> {
    match progress(done, all) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(EvalError::Interrupted),
    }
}
