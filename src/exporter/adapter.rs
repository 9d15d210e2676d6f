//! A side adapter beside an export: its product is not part of the written model.

use std::path::{Path, PathBuf};

use bitnet_format::adapter::{Adapter, AdapterDescription, LowRankFactor, write_adapter};
use bitnet_format::staged::{OnExisting, StagedDir};
use bitnet_format::{DType, StoredModel, TensorEntry, model_hash};

use crate::error::TrainError;

/// Where an adapter is written beside the export at `out`: `out/x` and `out/x.gguf` have `out/x-adapter`.
pub fn adapter_path(out: &Path) -> PathBuf {
    let is_gguf = out.extension().is_some_and(|extension| extension == "gguf");
    let name = if is_gguf { out.file_stem() } else { out.file_name() };
    let mut name = name.unwrap_or_default().to_owned();
    name.push("-adapter");
    out.with_file_name(name)
}

/// Writes `adapter` beside the export at `out`, as an adapter of that export: its files have another
/// hash than those that it was trained on. Returns its folder.
///
/// # Errors
/// A folder that exists and is not to be replaced, a full disk.
pub fn write_adapter_beside(
    adapter: &Adapter,
    out: &Path,
    on_existing: OnExisting,
) -> Result<PathBuf, TrainError> {
    let written = StoredModel::open(out)?;
    let description = AdapterDescription {
        base_path: out.display().to_string(),
        base_hash: Some(model_hash(out, &written)?),
        ..adapter.description().clone()
    };
    let entries = adapter.entries(written.spec());
    let factors = |entry: &TensorEntry| adapter.of(entry).expect("an adapted matrix");
    // As the factors are stored: one in f32 keeps all of them from being rounded.
    let all_bf16 = entries.iter().all(|entry| factors(entry).dtype == DType::Bf16);
    let dtype = if all_bf16 { DType::Bf16 } else { DType::F32 };
    let target = adapter_path(out);
    let staged = StagedDir::beside(&target, on_existing)?;
    write_adapter(
        staged.path(),
        &description,
        written.spec(),
        &entries,
        dtype,
        |entry, factor| {
            Ok(match factor {
                LowRankFactor::A => factors(entry).a.clone(),
                LowRankFactor::B => factors(entry).b.clone(),
            })
        },
    )?;
    staged.publish()?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_has_its_place_beside_the_export() {
        for (out, adapter) in [
            ("out/x", "out/x-adapter"),
            ("x.gguf", "x-adapter"),
            ("out/gguf-i2_s", "out/gguf-i2_s-adapter"),
            ("out/v1.5", "out/v1.5-adapter"),
        ] {
            assert_eq!(adapter_path(Path::new(out)), Path::new(adapter));
        }
    }
}
