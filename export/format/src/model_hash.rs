//! Which model a file belongs to: one hash of the files that make a stored model.

use std::path::{Path, PathBuf};

use crate::folder::CONFIG_FILE;
use crate::input::open_file;
use crate::{FormatError, StoredModel};

/// BLAKE3 over the files of the model at `path`, in hexadecimal: `config.json` and the files of weights
/// in order of their names, or the GGUF file.
///
/// Another stored form of the same model has another hash.
///
/// # Errors
/// A file that cannot be read.
pub fn model_hash(path: &Path, model: &StoredModel) -> Result<String, FormatError> {
    let config = match model {
        StoredModel::Folder(_) => Some(path.join(CONFIG_FILE)),
        StoredModel::Gguf(_) => None,
    };
    let files: Vec<PathBuf> = config.into_iter().chain(model.weight_files()).collect();
    let mut hasher = blake3::Hasher::new();
    for file in files {
        std::io::copy(&mut open_file(&file)?, &mut hasher)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}
