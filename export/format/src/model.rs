//! A model on disk: a Hugging Face folder or a GGUF file.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::blocks::i2_s::I2sLayout;
use crate::folder::ModelFolder;
use crate::foreign::{FileRole, missing_model, refuse};
use crate::gguf::{GgufFile, GgufModel};
use crate::grouped::GroupedTernary;
use crate::{FormatError, ModelSpec, TensorEntry, TensorSource, TensorView, WeightForm};

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
            return Ok(Self::Folder(ModelFolder::open(path)?));
        }
        if !path.exists() {
            return Err(missing_model(path));
        }
        // A file of another program gets a word of its own, before the GGUF reader says "no magic
        // number".
        refuse(path, FileRole::Model)?;
        Ok(Self::Gguf(GgufModel::open(path, i2_s)?))
    }

    /// A GGUF file in memory, its I2_S tensors in their canonical layout; `name` is for messages.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub fn from_gguf_bytes(name: &Path, bytes: Vec<u8>) -> Result<Self, FormatError> {
        let file = GgufFile::from_bytes(name, bytes)?;
        Ok(Self::Gguf(GgufModel::of_file(file, I2sLayout::Blocks128)?))
    }

    /// A folder's `config.json` and `model.safetensors` in memory; `name` is for messages.
    ///
    /// # Errors
    /// Whatever is wrong with them.
    pub fn from_folder_bytes(
        name: &Path,
        config: &[u8],
        tensors: Vec<u8>,
    ) -> Result<Self, FormatError> {
        Ok(Self::Folder(ModelFolder::from_bytes(name, config, tensors)?))
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        self.source().spec()
    }

    /// Whether its matrices are stored as codes, so that the latents are gone.
    pub fn is_packed(&self) -> bool {
        match self {
            Self::Folder(folder) => folder.form() != WeightForm::Latent,
            Self::Gguf(gguf) => gguf.spec().quantise,
        }
    }

    /// The files that hold the weights, in order of their names.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        match self {
            Self::Folder(folder) => folder.weight_files(),
            Self::Gguf(gguf) => vec![gguf.file().path().to_owned()],
        }
    }

    /// Files beside the weights whose names say that they are weights of this model, and that are
    /// not read: no index lists them.
    pub fn unread_files(&self) -> Vec<PathBuf> {
        match self {
            Self::Folder(folder) => folder.unread_files(),
            Self::Gguf(_) => Vec::new(),
        }
    }

    /// The file that holds a tensor of this shape as plain BF16 values, and which of its bytes they are.
    pub fn bf16_place(&self, entry: &TensorEntry) -> Option<(PathBuf, Range<u64>)> {
        match self {
            Self::Folder(folder) => folder.bf16_place(entry),
            Self::Gguf(_) => None,
        }
    }

    fn source(&self) -> &dyn TensorSource {
        match self {
            Self::Folder(folder) => folder,
            Self::Gguf(gguf) => gguf,
        }
    }
}

impl TensorSource for StoredModel {
    fn spec(&self) -> &ModelSpec {
        self.source().spec()
    }

    fn read(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<TensorView, FormatError> {
        self.source().read(entry, rows)
    }

    fn grouped(
        &self,
        entry: &TensorEntry,
        rows: Range<usize>,
    ) -> Result<GroupedTernary, FormatError> {
        self.source().grouped(entry, rows)
    }

    fn error(&self, entry: &TensorEntry, what: String) -> FormatError {
        self.source().error(entry, what)
    }
}
