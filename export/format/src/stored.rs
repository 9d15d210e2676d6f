//! A model on disk, whichever way it is stored: a Hugging Face folder or a GGUF file.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::blocks::i2_s::I2sLayout;
use crate::convert::Source;
use crate::folder::ModelFolder;
use crate::gguf::{GgufModel, TensorKind};
use crate::matrix::Matrix;
use crate::packed::PackedTernary;
use crate::quant::WeightScale;
use crate::{FormatError, ModelSpec, TensorEntry, WeightForm};

/// An open model; config and tensors have been checked against each other.
#[derive(Debug)]
pub enum StoredModel {
    /// A checkpoint, a master or a packed folder.
    Folder(ModelFolder),
    /// A GGUF file.
    Gguf(GgufModel),
}

/// How the values of a float tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Blocks of 32 8-bit values with a scale ([`crate::blocks::q8_0`]).
    Q8_0,
    /// Blocks of 256 6-bit values with scales ([`crate::blocks::q6_k`]).
    Q6K,
}

impl StoredModel {
    /// Opens a folder or a GGUF file with I2_S tensors in their canonical layout.
    ///
    /// # Errors
    /// Whatever is wrong with the files.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        Self::open_as(path, I2sLayout::Blocks128)
    }

    /// Opens a folder or a GGUF file; `i2_s` is how its I2_S tensors are laid out.
    ///
    /// # Errors
    /// Whatever is wrong with the files.
    pub fn open_as(path: &Path, i2_s: I2sLayout) -> Result<Self, FormatError> {
        if path.is_dir() {
            Ok(Self::Folder(ModelFolder::open(path)?))
        } else {
            Ok(Self::Gguf(GgufModel::open(path, i2_s)?))
        }
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        match self {
            Self::Folder(folder) => folder.spec(),
            Self::Gguf(gguf) => gguf.spec(),
        }
    }

    /// Whether its matrices are stored as codes, so that the latents are gone.
    pub fn is_packed(&self) -> bool {
        match self {
            Self::Folder(folder) => folder.form() != WeightForm::Latent,
            Self::Gguf(_) => true,
        }
    }

    /// The files that hold the weights, in order of their names.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        match self {
            Self::Folder(folder) => folder.weight_files(),
            Self::Gguf(gguf) => vec![gguf.file().path().to_owned()],
        }
    }

    /// How a float tensor is stored.
    pub fn float_type(&self, entry: &TensorEntry) -> FloatType {
        match self {
            Self::Folder(folder) => folder.float_type(&entry.name),
            Self::Gguf(gguf) => match gguf.kind(entry) {
                TensorKind::F32 => FloatType::F32,
                TensorKind::F16 => FloatType::F16,
                TensorKind::Bf16 => FloatType::Bf16,
                TensorKind::Q8_0 => FloatType::Q8_0,
                TensorKind::Q6K => FloatType::Q6K,
                TensorKind::Tq1_0 | TensorKind::Tq2_0 | TensorKind::I2S => {
                    unreachable!("the types of a file's float tensors were checked")
                }
            },
        }
    }

    /// The bytes of some rows of a float tensor, as they are stored.
    ///
    /// # Errors
    /// Whatever reading reports.
    pub fn row_bytes(
        &self,
        entry: &TensorEntry,
        rows: Range<usize>,
    ) -> Result<Vec<u8>, FormatError> {
        match self {
            Self::Folder(folder) => folder.row_bytes(entry, rows),
            Self::Gguf(gguf) => gguf.row_bytes(entry, rows),
        }
    }

    /// A float tensor, finite.
    ///
    /// # Errors
    /// When it holds what is no number.
    pub fn floats(&self, entry: &TensorEntry) -> Result<Vec<f32>, FormatError> {
        self.rows(entry, 0..entry.shape[0])
    }

    /// An error that names a tensor of this model.
    pub fn fault(&self, entry: &TensorEntry, what: impl std::fmt::Display) -> FormatError {
        let path = match self {
            Self::Folder(folder) => folder.path_of(&entry.name),
            Self::Gguf(gguf) => gguf.file().path(),
        };
        FormatError::tensor(path, &entry.name, what.to_string())
    }

    /// A ternary matrix: its own codes and scale, or those of its latents.
    ///
    /// # Errors
    /// When its rows cannot be packed, or its bytes are no codes.
    pub fn ternary(
        &self,
        entry: &TensorEntry,
    ) -> Result<(PackedTernary, WeightScale), FormatError> {
        match self {
            Self::Folder(folder) if folder.form() == WeightForm::Latent => {
                let (codes, scale) = folder.matrix(entry)?.quantised();
                let packed = PackedTernary::from_codes(entry.shape[0], entry.shape[1], &codes);
                let path = folder.path_of(&entry.name);
                let broken = |what: String| FormatError::tensor(path, &entry.name, what);
                Ok((packed.map_err(|error| broken(error.to_string()))?, scale))
            }
            Self::Folder(folder) => folder.ternary(entry),
            Self::Gguf(gguf) => gguf.ternary(entry),
        }
    }
}

impl Source for StoredModel {
    fn spec(&self) -> &ModelSpec {
        self.spec()
    }

    fn matrix(&self, entry: &TensorEntry) -> Result<Matrix, FormatError> {
        match self {
            Self::Folder(folder) => folder.matrix(entry),
            Self::Gguf(_) if !entry.is_ternary(self.spec()) => {
                Ok(Matrix::Latent(self.floats(entry)?))
            }
            Self::Gguf(gguf) => {
                let (packed, scale) = gguf.ternary(entry)?;
                Ok(Matrix::Ternary { codes: packed.codes(), scale })
            }
        }
    }

    fn rows(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<Vec<f32>, FormatError> {
        match self {
            Self::Folder(folder) => folder.rows(entry, rows),
            Self::Gguf(gguf) => gguf.rows(entry, rows),
        }
    }
}
