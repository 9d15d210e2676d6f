//! One optimizer step: sum the gradients of micro-batches (`accumulate`), check loss and norm
//! (`guard`), clip and update (`update`, `adamw`), report (`report`).

pub(crate) mod accumulate;
pub(crate) mod adamw;
pub(crate) mod guard;
pub(crate) mod report;
pub(crate) mod update;
