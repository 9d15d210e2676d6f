//! Hugging Face folders: packed codes with their scales, or a BF16 master.

use std::path::Path;

use half::bf16;

use super::{ConversionProgress, Converted, Counter, check_ternary, no_progress};
use crate::blocks::quantise;
use crate::folder::{CONFIG_FILE, MODEL_FILE, scale_name};
use crate::group::Group;
use crate::grouped::GroupedTernary;
use crate::master::keep_codes;
use crate::matrix::Matrix;
use crate::packed::{PackedTernary, packed_grouped};
use crate::source::{FromValues, TensorSource, row_chunks};
use crate::writer::{TensorPlan, TensorWriter};
use crate::{DType, FormatError, HfConfig, ModelSpec, TensorEntry, WeightForm, tensor_table};

/// Writes a packed folder into the existing directory `dir`.
///
/// Matrices of the blocks become U8 `[N/4, K]` with an F32 `weight_scale [1]`: mean |w|, which
/// multiplies (`autobitlinear`), or its inverse, which divides (`bitlinear`), whichever `form`
/// says; the config says the same. With a scale for each row or group of columns `weight_scale` is
/// `[N, K / group]`, in F16 for groups, and always multiplies. Float embedding, head and norms are
/// rounded to BF16.
///
/// # Errors
/// A matrix whose rows do not fill bytes is refused by name before anything is written; so are
/// scales of groups that should divide.
pub fn write_packed_form(
    dir: &Path,
    source: &dyn TensorSource,
    form: WeightForm,
    mut progress: ConversionProgress,
) -> Result<Converted, FormatError> {
    let (path, spec) = (dir.join(MODEL_FILE), source.spec());
    check_packable(&path, spec)?;
    if spec.quantiser.group != Group::Matrix && form == WeightForm::PackedDividing {
        let what = "gives scales to groups of weights; only scales that multiply (autobitlinear) are \
                    written for them";
        return Err(FormatError::config(&path, "quantiser", what));
    }
    let table = tensor_table(spec);
    let mut writer = TensorWriter::create(&path, planned_packed(spec, &table))?;
    let mut counter = Counter::new(spec, &mut progress);
    let mut written = Converted::default();
    for entry in &table {
        if !entry.is_ternary(spec) {
            write_bf16(&mut writer, source, entry, &mut counter)?;
            continue;
        }
        if entry.group_width(spec).is_some() {
            let matrix = source.grouped(entry, 0..entry.shape[0])?;
            written.ternary += matrix.codes().len();
            write_groups(&mut writer, spec, entry, &matrix)?;
            counter.add(entry.elements())?;
            continue;
        }
        let (codes, scale) = source.matrix(entry)?.quantised();
        // One matrix at a time: the floats of the whole model need not fit into memory.
        let packed = PackedTernary::from_codes(entry.shape[0], entry.shape[1], &codes)
            .map_err(|error| FormatError::tensor(&path, &entry.name, error.to_string()))?;
        let stored = match form {
            WeightForm::PackedDividing => scale.inverse(),
            WeightForm::PackedMultiplying | WeightForm::Latent => scale.multiplier(),
        };
        writer.write_whole(&entry.name, packed.bytes())?;
        writer.write_whole(&scale_name(&entry.name), &stored.to_le_bytes())?;
        written.ternary += codes.len();
        counter.add(codes.len())?;
    }
    writer.finish()?;
    write_config(dir, spec, form)?;
    Ok(written)
}

fn write_groups(
    writer: &mut TensorWriter,
    spec: &ModelSpec,
    entry: &TensorEntry,
    matrix: &GroupedTernary,
) -> Result<(), FormatError> {
    let packed = packed_grouped(matrix.rows(), matrix.columns(), matrix.codes());
    writer.write_whole(&entry.name, &packed)?;
    let scales = quantise(scale_type(spec), matrix.scales());
    writer.write_whole(&scale_name(&entry.name), &scales)
}

/// How the scales of a packed folder are stored.
fn scale_type(spec: &ModelSpec) -> DType {
    match spec.quantiser.group {
        Group::Columns(_) => DType::F16,
        Group::Matrix | Group::Row => DType::F32,
    }
}

/// [`write_packed_form`] with scales that multiply, from functions that give float values.
///
/// # Errors
/// As there, and whatever `latents` reports.
pub fn write_packed(
    dir: &Path,
    spec: &ModelSpec,
    latents: impl FnMut(&TensorEntry) -> Result<Vec<f32>, FormatError>,
) -> Result<(), FormatError> {
    let source = FromValues::new(spec, latents);
    write_packed_form(dir, &source, WeightForm::PackedMultiplying, &mut no_progress)?;
    Ok(())
}

/// Writes a BF16 master into the existing directory `dir`: latents rounded so that packing them
/// gives the codes of the source ([`crate::master`]), everything else to the nearest value.
///
/// Values that were quantised before stay 0 and ±s, with s rounded to BF16.
///
/// # Errors
/// Whatever the source or the disk reports.
pub fn write_master(
    dir: &Path,
    source: &dyn TensorSource,
    mut progress: ConversionProgress,
) -> Result<Converted, FormatError> {
    let (path, spec) = (dir.join(MODEL_FILE), source.spec());
    check_master(&path, spec)?;
    let table = tensor_table(spec);
    let plan =
        table.iter().map(|entry| TensorPlan::new(&entry.name, DType::Bf16, &entry.shape)).collect();
    let mut writer = TensorWriter::create(&path, plan)?;
    let mut counter = Counter::new(spec, &mut progress);
    let mut written = Converted::default();
    for entry in &table {
        if !entry.is_ternary(spec) {
            write_bf16(&mut writer, source, entry, &mut counter)?;
            continue;
        }
        let values = match source.matrix(entry)? {
            // Latents would have to be invented for codes; 0 and ±s are read as the same codes
            // again.
            Matrix::Ternary { codes, scale } => {
                let dequantised = |code| bf16::from_f32(f32::from(code) * scale.multiplier());
                codes.into_iter().map(dequantised).collect()
            }
            Matrix::Latent(latents) => {
                let master = keep_codes(&latents);
                written.adjusted += master.adjusted;
                if !master.lost.is_empty() {
                    written.lost.push((entry.name.clone(), master.lost.len()));
                }
                master.values
            }
            Matrix::Grouped(_) => unreachable!("refused above"),
        };
        // Not `write_bf16`: rounding to nearest again would undo what `keep_codes` moved.
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.write_whole(&entry.name, &bytes)?;
        written.ternary += values.len();
        counter.add(values.len())?;
    }
    writer.finish()?;
    write_config(dir, spec, WeightForm::Latent)?;
    Ok(written)
}

fn write_config(dir: &Path, spec: &ModelSpec, form: WeightForm) -> Result<(), FormatError> {
    let config = HfConfig { spec: spec.clone(), form };
    Ok(fs_err::write(dir.join(CONFIG_FILE), config.to_json("bfloat16"))?)
}

/// A float tensor to the nearest BF16 values, part by part.
fn write_bf16(
    writer: &mut TensorWriter,
    source: &dyn TensorSource,
    entry: &TensorEntry,
    counter: &mut Counter,
) -> Result<(), FormatError> {
    writer.start(&entry.name)?;
    for rows in row_chunks(entry) {
        let values = source.rows(entry, rows)?;
        writer.write(&quantise(DType::Bf16, &values))?;
        counter.add(values.len())?;
    }
    Ok(())
}

fn planned_packed(spec: &ModelSpec, table: &[TensorEntry]) -> Vec<TensorPlan> {
    let mut plan = Vec::new();
    for entry in table {
        if entry.is_ternary(spec) {
            plan.push(TensorPlan::new(
                &entry.name,
                DType::U8,
                &[entry.shape[0] / 4, entry.shape[1]],
            ));
            let groups =
                entry.group_width(spec).map(|width| vec![entry.shape[0], entry.shape[1] / width]);
            let shape = groups.unwrap_or_else(|| vec![1]);
            plan.push(TensorPlan::new(scale_name(&entry.name), scale_type(spec), &shape));
        } else {
            plan.push(TensorPlan::new(&entry.name, DType::Bf16, &entry.shape));
        }
    }
    plan
}

/// Refuses what a BF16 master cannot hold: latents whose scales belong to groups of weights.
///
/// # Errors
/// Names the key.
pub fn check_master(path: &Path, spec: &ModelSpec) -> Result<(), FormatError> {
    if !spec.quantise || spec.quantiser.group == Group::Matrix {
        return Ok(());
    }
    let what = "gives scales to groups of weights, whose latents are not written as a BF16 master; \
                expected hf-packed or a GGUF form";
    Err(FormatError::config(path, "quantiser", what))
}

/// Whether a packed folder can hold a model of this shape; `path` is for messages.
///
/// # Errors
/// Names the first tensor that does not fit.
pub fn check_packable(path: &Path, spec: &ModelSpec) -> Result<(), FormatError> {
    check_ternary(path, spec)?;
    let table = tensor_table(spec);
    let uneven = |entry: &&TensorEntry| entry.is_ternary(spec) && !entry.shape[0].is_multiple_of(4);
    match table.iter().find(uneven) {
        Some(entry) => {
            let what = format!("has {} rows; packing needs a multiple of 4", entry.shape[0]);
            Err(FormatError::tensor(path, &entry.name, what))
        }
        None => Ok(()),
    }
}
