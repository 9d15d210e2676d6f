//! The values of a stored model's tensors: read, or left where they lie in a mapped file.

use bitnet_format::matrix::Matrix;
use bitnet_format::{FormatError, StoredModel, TensorEntry};

use crate::latents::{FrozenWords, MappedFiles};

/// The values of a tensor.
pub(super) enum StoredValues {
    /// In memory.
    Read(Matrix),
    /// Floats in a file.
    Mapped(FrozenWords),
}

impl StoredValues {
    /// A tensor of a stored model: a matrix where it lies, if that is in BF16; else what is `read`.
    pub(super) fn find(
        files: &mut MappedFiles,
        model: &StoredModel,
        entry: &TensorEntry,
        read: impl FnOnce() -> Result<Matrix, FormatError>,
    ) -> Result<Self, FormatError> {
        let place = if entry.shape.len() == 2 { model.bf16_place(entry) } else { None };
        let Some(words) = place.and_then(|(path, bytes)| files.words(&path, bytes)) else {
            return Ok(Self::Read(read()?));
        };
        // An embedding is the largest matrix of most models; as floats it would take twice its file. One
        // that is not finite is read, for the error that names it.
        if !entry.is_ternary(model.spec()) && !words.any(|word| word & 0x7f80 == 0x7f80) {
            return Ok(Self::Mapped(words));
        }
        // Dequantised codes are BF16 too, but as latents they would lose their scale.
        match read()? {
            Matrix::Latent(_) => Ok(Self::Mapped(words)),
            codes => Ok(Self::Read(codes)),
        }
    }

    /// Whether they are ternary codes.
    pub(super) fn are_codes(&self) -> bool {
        matches!(self, Self::Read(matrix) if !matches!(matrix, Matrix::Latent(_)))
    }

    /// Whether all are zero, of what was read as floats too.
    pub(super) fn are_zero(&self) -> bool {
        match self {
            Self::Mapped(words) => !words.any(|word| word & 0x7fff != 0),
            Self::Read(Matrix::Latent(values)) => values.iter().all(|&value| value == 0.0),
            Self::Read(Matrix::Ternary { codes, .. }) => codes.iter().all(|&code| code == 0),
            Self::Read(Matrix::Grouped(matrix)) => matrix.codes().iter().all(|&code| code == 0),
        }
    }

    /// The matrix in memory.
    pub(super) fn into_matrix(self, entry: &TensorEntry) -> Matrix {
        match self {
            Self::Read(matrix) => matrix,
            Self::Mapped(words) => {
                let mut values = vec![0.0; entry.elements()];
                words.weights(0..values.len(), &mut values);
                Matrix::Latent(values)
            }
        }
    }
}
