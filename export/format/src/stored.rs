//! A model on disk, whichever way it is stored: a Hugging Face folder or a GGUF file.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::blocks::i2_s::I2sLayout;
use crate::convert::Source;
use crate::folder::ModelFolder;
use crate::gguf::GgufModel;
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

    /// A float tensor, finite.
    ///
    /// # Errors
    /// When it holds what is no number.
    pub fn floats(&self, entry: &TensorEntry) -> Result<Vec<f32>, FormatError> {
        self.rows(entry, 0..entry.shape[0])
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
