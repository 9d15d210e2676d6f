//! Which model a file belongs to: one hash of the files that make a stored model.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::folder::CONFIG_FILE;
use crate::input::open_file;
use crate::{FormatError, StoredModel};

/// BLAKE3 over the files of the model at `path`, in hexadecimal: `config.json` and the files of
/// weights in order of their names, or the GGUF file.
///
/// Another stored form of the same model has another hash.
///
/// # Errors
/// A file that cannot be read.
pub fn model_hash(path: &Path, model: &StoredModel) -> Result<String, FormatError> {
    model_hash_watched(path, model, &mut |_, _| {})
}

/// [`model_hash`]; `watch` gets the bytes that were read, and all.
///
/// # Errors
/// As there.
pub fn model_hash_watched(
    path: &Path,
    model: &StoredModel,
    watch: &mut dyn FnMut(u64, u64),
) -> Result<String, FormatError> {
    let config = match model {
        StoredModel::Folder(_) => Some(path.join(CONFIG_FILE)),
        StoredModel::Gguf(_) => None,
    };
    let paths: Vec<PathBuf> = config.into_iter().chain(model.weight_files()).collect();
    let (mut files, mut total, mut done) = (Vec::new(), 0, 0);
    for path in paths {
        // All are opened before the first is hashed: a file that is missing is said at once and not
        // after gigabytes.
        total += fs_err::metadata(&path)?.len();
        files.push(open_file(&path)?);
    }
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; READ_AT_ONCE]);
    for mut file in files {
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            done += count as u64;
            watch(done, total);
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Bytes of a file that are hashed together.
const READ_AT_ONCE: usize = 1 << 20;
