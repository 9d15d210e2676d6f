//! Everything that ends a run early, with the exit code that scripts rely on.

use std::io::ErrorKind;
use std::path::PathBuf;

use bitnet_engine::EngineError;
use bitnet_eval::EvalError;
use bitnet_format::FormatError;
use bitnet_format::Shown;
use bitnet_text::TextError;

use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::device::{NoBf16, NoDevice};
#[cfg(feature = "hub")]
use crate::hub::HubError;
use crate::platform::StopSignal;
use crate::recipe::RecipeError;

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe is not valid.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// Recipe, tokenizer and model contradict each other.
    #[error("{} [{field}]: {what}", .path.shown())]
    Contradiction {
        /// The recipe.
        path: PathBuf,
        /// The key at fault.
        field: String,
        /// What is wrong.
        what: String,
    },
    /// A data file is missing or broken.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A tokenizer is missing or broken.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A model file is missing or broken.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A checkpoint is broken or cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A packed model does not run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A benchmark cannot be asked, for a reason of its own.
    #[error(transparent)]
    Tasks(EvalError),
    /// The device is not in this build or not on this machine.
    #[error(transparent)]
    Device(#[from] NoDevice),
    /// The device does not compute with what the recipe asks for.
    #[error(transparent)]
    Bf16(#[from] NoBf16),
    /// A model or a data set of the hub cannot be had.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The run cannot fit into memory.
    #[error("{0}")]
    NoMemory(String),
    /// Checkpoints exist and none verifies.
    #[error("{}: no checkpoint verifies; nothing was changed. Start over with another --out", .dir.shown())]
    NothingVerifies {
        /// The run directory.
        dir: PathBuf,
    },
    /// The run directory was taken away while the run wrote there.
    #[error("{}: the run directory is gone ({error})", .dir.shown())]
    Vanished {
        /// The run directory.
        dir: PathBuf,
        /// How it was noticed.
        error: Box<TrainError>,
    },
    /// The run directory is in use or holds a run already.
    #[error("{0}")]
    Refused(String),
    /// The run on disk was made with other settings.
    #[error("{0}")]
    Drift(String),
    /// Loss or gradient norm stayed non-finite.
    #[error(
        "step {step}: loss or gradient norm was not finite {in_a_row} times in a row \
         ({total} in all); the last good checkpoint stands. Lower the learning rate"
    )]
    Diverged {
        /// The last step that was skipped.
        step: u64,
        /// Skipped steps in a row.
        in_a_row: u32,
        /// Skipped steps of the run.
        total: u32,
    },
    /// A gradient was not finite when parameters had been updated already.
    #[error(
        "step {step}: the gradient of {tensor} was not finite when other parameters had been updated \
         already (train.update = \"during\"); nothing was saved, and the last checkpoint stands. Lower \
         the learning rate"
    )]
    HalfUpdated {
        /// The step.
        step: u64,
        /// The first such tensor.
        tensor: String,
    },
    /// A preference run does not start from its reference.
    #[error(
        "step 1: the loss is {found}; expected {expected} (ln 2), since policy and reference are \
         the same model. Remove the reference-*.logp files of the data cache and start again"
    )]
    ReferenceDiffers {
        /// The loss of step 1.
        found: f32,
        /// What it must be.
        expected: f32,
    },
    /// A rank had an error that all ranks know of; this is the one that had it.
    #[error("{name}: {error}")]
    OnRank {
        /// Who it is.
        name: String,
        /// What it had.
        error: Box<TrainError>,
    },
    /// Another rank had an error and tells of it.
    #[error("{name} ended the run")]
    OtherRank {
        /// Who it is.
        name: String,
        /// Its exit code.
        code: u8,
        /// Whether its disk is full.
        full_disk: bool,
    },
    /// Ranks that must hold the same parameters do not.
    #[error(
        "step {step}: the ranks no longer hold the same parameters; nothing was saved. Continue \
         from the last checkpoint, and check the memory of the machines if it happens again"
    )]
    RanksDiffer {
        /// The step after which it was noticed.
        step: u64,
    },
    /// A machine has too few cores for its ranks.
    #[error(transparent)]
    TooManyThreads(#[from] crate::distributed::TooManyThreads),
    /// Several ranks were started and this build knows none.
    #[error(
        "{ranks} processes were started together by mpirun or a scheduler, and this build has no \
         MPI; expected a build with it (cargo build --release --features mpi) or a single process"
    )]
    NoMpi {
        /// How many.
        ranks: usize,
    },
    /// Several ranks were started and MPI finds one.
    #[error(
        "{ranks} processes were started together, and the MPI library of this build finds only this \
         one; expected the mpirun of the same MPI (ldd names the library), or srun with the right \
         --mpi (pmix for Open MPI)"
    )]
    OtherMpi {
        /// How many.
        ranks: usize,
    },
    /// A signal asked for a stop; the state was saved.
    #[error("{}; continue with --resume auto", .0.in_words())]
    Stopped(StopSignal),
    /// A signal stopped an export; nothing was written under its final name.
    #[error("stopped by a signal; nothing was written")]
    ExportStopped(StopSignal),
    /// A signal stopped the verification of an export that is complete.
    #[error("stopped by a signal; {} is complete, and was not verified", .path.shown())]
    VerificationStopped {
        /// What was exported.
        path: PathBuf,
        /// The signal.
        stop: StopSignal,
    },
}

impl TrainError {
    /// Whether the disk is full (or the user's share of it).
    pub fn is_full_disk(&self) -> bool {
        match self {
            Self::OnRank { error, .. } => return error.is_full_disk(),
            Self::OtherRank { full_disk, .. } => return *full_disk,
            _ => {}
        }
        let (Self::Io(io)
        | Self::Format(FormatError::Io(io))
        | Self::Checkpoint(
            CheckpointError::Io(io) | CheckpointError::Format(FormatError::Io(io)),
        )) = self
        else {
            return false;
        };
        is_full_disk(io)
    }

    /// Whether every rank of a run ends with this error, each by itself. With any other, a rank
    /// that ends has to end the others.
    pub fn is_shared(&self) -> bool {
        if let Self::Vanished { error, .. } = self {
            return error.is_shared();
        }
        matches!(
            self,
            Self::OnRank { .. }
                | Self::OtherRank { .. }
                | Self::RanksDiffer { .. }
                | Self::ReferenceDiffers { .. }
                | Self::Diverged { .. }
                | Self::HalfUpdated { .. }
                | Self::Stopped(_)
        )
    }

    /// The documented exit code (README).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Recipe(
                RecipeError::NoMatch { .. }
                | RecipeError::Folder { .. }
                | RecipeError::Unlistable { .. },
            )
            | Self::Text(_)
            | Self::Engine(_)
            | Self::NothingVerifies { .. }
            | Self::Checkpoint(CheckpointError::Broken { .. } | CheckpointError::Text(_)) => 4,
            Self::Recipe(_) | Self::Contradiction { .. } | Self::Drift(_) => 3,
            // In a recipe it is a contradiction.
            Self::Tasks(error) => {
                if error.is_usage() {
                    2
                } else {
                    4
                }
            }
            #[cfg(feature = "hub")]
            // A wrong name, as any other in a recipe.
            Self::Hub(HubError::Choice { .. }) => 3,
            #[cfg(feature = "hub")]
            Self::Hub(_) => 5,
            Self::Device(_) | Self::Bf16(_) | Self::TooManyThreads(_) | Self::NoMemory(_) => 5,
            Self::NoMpi { .. } | Self::OtherMpi { .. } | Self::Vanished { .. } => 5,
            Self::OnRank { error, .. } => error.exit_code(),
            Self::OtherRank { code, .. } => *code,
            Self::Data(error) => error.io_kind().map_or(4, code_of_io),
            Self::Io(error) | Self::Checkpoint(CheckpointError::Io(error)) => {
                code_of_io(error.kind())
            }
            Self::Format(error) | Self::Checkpoint(CheckpointError::Format(error)) => {
                code_of_format(error)
            }
            Self::Checkpoint(CheckpointError::NotFinite { .. })
            | Self::Diverged { .. }
            | Self::HalfUpdated { .. } => 6,
            Self::ReferenceDiffers { .. } | Self::RanksDiffer { .. } => 1,
            Self::Refused(_) => 7,
            Self::Stopped(stop)
            | Self::ExportStopped(stop)
            | Self::VerificationStopped { stop, .. } => stop.exit_code(),
        }
    }
}

impl From<EvalError> for TrainError {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Io(error) => Self::Io(error),
            EvalError::Format(error) => Self::Format(error),
            EvalError::Text(error) => Self::Text(error),
            EvalError::Engine(error) => Self::Engine(error),
            other => Self::Tasks(other),
        }
    }
}

fn code_of_format(error: &FormatError) -> u8 {
    match error {
        FormatError::Io(error) => code_of_io(error.kind()),
        FormatError::Exists { .. } | FormatError::Kept { .. } => 7,
        FormatError::Shape { .. } => 3,
        FormatError::Interrupted => 1,
        FormatError::Config { .. } | FormatError::Tensor { .. } | FormatError::Container { .. } => {
            4
        }
    }
}

/// Whether there was no room for what was to be written: on the disk, in a quota, by `ulimit -f`.
pub(crate) fn is_full_disk(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

/// A file that is not there or not text is bad input; a full disk or a forbidden path is not.
fn code_of_io(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::NotFound | ErrorKind::InvalidData | ErrorKind::UnexpectedEof => 4,
        _ => 5,
    }
}
