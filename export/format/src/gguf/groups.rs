//! What the types of a file's tensors say of a model's quantiser: GGUF has no key for it.

use std::path::Path;

use half::f16;

use super::tensor_names::tensor_name;
use super::{GgufFile, Metadata};
use crate::blocks::grouped;
use crate::group::{EmbeddingForm, Group, Quantiser};
use crate::{DType, FormatError, ModelSpec, TensorEntry, TensorRole, tensor_table};

/// Blocks of a tensor that are looked at for scales that differ.
const SAMPLED_BLOCKS: u64 = 1024;

/// Refuses weights that were turned: activations would have to be turned with them.
pub(super) fn refuse_rotation(metadata: &Metadata) -> Result<(), FormatError> {
    let rotated = metadata.iter().map(|(key, _)| key).find(|key| key.contains("hadamard"));
    rotated.map_or(Ok(()), |key| {
        let what = "says that the weights were turned by a Hadamard matrix, which is not computed \
                    here; expected a model without it";
        Err(metadata.error(key, what))
    })
}

/// The model with the quantiser that the types of its tensors imply.
///
/// # Errors
/// Matrices with groups of different sizes; a group that does not divide a width.
pub(super) fn with_quantiser(file: &GgufFile, spec: ModelSpec) -> Result<ModelSpec, FormatError> {
    let table = tensor_table(&spec);
    let dtype = |entry: &TensorEntry| file.tensor(&tensor_name(entry)).map(|info| info.dtype);
    let is_linear = |entry: &&TensorEntry| matches!(entry.role, TensorRole::Linear(_));
    // Matrices of the blocks decide; embedding and head may be floats in any file.
    let mut group = Group::Matrix;
    for entry in table.iter().filter(is_linear) {
        if let Some(found) = dtype(entry).and_then(group_of) {
            if group != Group::Matrix && group != found {
                let what = format!("has groups of {found} weights; other matrices have {group}");
                return Err(FormatError::tensor(file.path(), &tensor_name(entry), what));
            }
            group = found;
        }
    }
    if group == Group::Matrix && scales_differ(file, &table)? {
        group = Group::Columns(256);
    }
    let is_table =
        |entry: &&TensorEntry| matches!(entry.role, TensorRole::Embedding | TensorRole::Head);
    let in_groups =
        |entry: &TensorEntry| dtype(entry).is_some_and(|dtype| holds_groups(dtype, group));
    let is_ternary = table.iter().filter(is_table).all(in_groups);
    let embedding = if is_ternary { EmbeddingForm::Ternary } else { EmbeddingForm::Full };
    let quantiser = Quantiser { group, ..Quantiser::default() };
    checked(file.path(), ModelSpec { quantiser, embedding, ..spec })
}

/// The group that a type has, whatever its tensor holds.
fn group_of(dtype: DType) -> Option<Group> {
    match dtype {
        DType::Q2_0 => Some(Group::Columns(64)),
        DType::Q2_0Of128 | DType::Pq2_0 | DType::Ptq1_0 => Some(Group::Columns(128)),
        _ => None,
    }
}

/// Whether a type holds codes with a scale for each group of that size.
pub(super) fn holds_groups(dtype: DType, group: Group) -> bool {
    matches!(group, Group::Columns(width) if dtype.is_grouped() && dtype.block() == width as u64)
}

/// Whether blocks of TQ1_0 or TQ2_0 have scales of their own: those of a matrix with one scale
/// agree, but for blocks of zeros.
fn scales_differ(file: &GgufFile, table: &[TensorEntry]) -> Result<bool, FormatError> {
    for entry in table {
        let Some(info) = file.tensor(&tensor_name(entry)) else { continue };
        if !matches!(info.dtype, DType::Tq1_0 | DType::Tq2_0) {
            continue;
        }
        let block = info.dtype.block();
        let elements = (entry.elements() as u64).min(SAMPLED_BLOCKS * block);
        let Some(len) = info.dtype.bytes_of(elements, block) else { continue };
        let bytes = file.part(info, 0..(len as usize).min(info.len()))?;
        let Ok((_, scales)) = grouped(info.dtype, &bytes, elements as usize) else { continue };
        let mut some = scales.iter().filter(|scale| **scale != f16::ZERO);
        // A block of zeros has the scale 0 in files of one scale too.
        let first = some.next();
        if some.any(|scale| Some(scale) != first) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Passes through the rules between the keys of a config.
fn checked(path: &Path, spec: ModelSpec) -> Result<ModelSpec, FormatError> {
    let keys = serde_json::to_value(&spec).expect("a model's keys are plain");
    serde_json::from_value(keys).map_err(|error| FormatError::container(path, error.to_string()))
}
