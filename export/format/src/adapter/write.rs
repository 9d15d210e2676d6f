//! Writes an adapter folder, a factor at a time.

use std::path::Path;

use super::config::to_json;
use super::{
    ADAPTER_CONFIG_FILE, ADAPTER_MODEL_FILE, AdapterDescription, HASH_KEY, KIND_KEY, LowRankFactor,
    VERSION_KEY,
};
use crate::blocks::quantise;
use crate::writer::{TensorPlan, TensorWriter};
use crate::{DType, FormatError, ModelSpec, TensorEntry};

/// Writes `adapter_config.json` and `adapter_model.safetensors` into the existing directory `dir`.
///
/// `adapted` are the matrices, of a model of this shape; `values` gives `A [r, in]` and `B [out,
/// r]` of each, row-major, and is asked once for each. They are stored as `dtype`: [`DType::F32`],
/// or [`DType::Bf16`], rounded to nearest.
///
/// # Errors
/// Whatever `values` or the disk reports.
///
/// # Panics
/// If `values` gives another number of values than the shape holds, or `dtype` is another type.
pub fn write_adapter(
    dir: &Path,
    description: &AdapterDescription,
    spec: &ModelSpec,
    adapted: &[TensorEntry],
    dtype: DType,
    mut values: impl FnMut(&TensorEntry, LowRankFactor) -> Result<Vec<f32>, FormatError>,
) -> Result<(), FormatError> {
    assert!(matches!(dtype, DType::F32 | DType::Bf16), "factors are stored as F32 or BF16");
    let mut plan = Vec::new();
    for (entry, factor) in factors(adapted) {
        let shape = factor.shape(entry, description.rank);
        plan.push(TensorPlan::new(factor.tensor_name(entry), dtype, &shape));
    }
    let mut facts = vec![(KIND_KEY, description.kind.name())];
    facts.extend(description.base_hash.as_deref().map(|hash| (HASH_KEY, hash)));
    facts.push((VERSION_KEY, env!("CARGO_PKG_VERSION")));
    let mut writer = TensorWriter::create_with(&dir.join(ADAPTER_MODEL_FILE), plan, &facts)?;
    for (entry, factor) in factors(adapted) {
        let values = values(entry, factor)?;
        let elements: usize = factor.shape(entry, description.rank).iter().product();
        assert_eq!(values.len(), elements, "one value for each element");
        writer.write_whole(&factor.tensor_name(entry), &quantise(dtype, &values))?;
    }
    writer.finish()?;
    // The config last: a folder without it is no adapter, so a torn one is not taken for one.
    let config = to_json(description, spec, adapted);
    Ok(fs_err::write(dir.join(ADAPTER_CONFIG_FILE), config)?)
}

fn factors(adapted: &[TensorEntry]) -> impl Iterator<Item = (&TensorEntry, LowRankFactor)> {
    adapted.iter().flat_map(|entry| LowRankFactor::BOTH.map(|factor| (entry, factor)))
}
