//! GGUF files: one file with metadata, the embedding in a float type of choice, ternary blocks.

use std::path::Path;

use half::f16;

use super::{ConversionProgress, Converted, Counter, check_ternary};
use crate::blocks::i2_s::{self, I2sLayout};
use crate::blocks::{q2_0, quantise, tq1_0, tq2_0};
use crate::gguf::architecture::{Architecture, describe, describe_ids};
use crate::gguf::tensor_names::tensor_name;
use crate::gguf::{GgufWriter, Metadata, Value, rope};
use crate::group::Group;
use crate::grouped::GroupedTernary;
use crate::quant::WeightScale;
use crate::source::{TensorSource, row_chunks};
use crate::writer::TensorPlan;
use crate::{DType, FormatError, ModelSpec, TensorEntry, TensorRole, tensor_table};

/// The types of embedding and head to choose from, by their names on the command line. Every
/// reader takes F16.
pub const EMBEDDING_TYPES: [(&str, DType); 5] = [
    ("f32", DType::F32),
    ("f16", DType::F16),
    ("bf16", DType::Bf16),
    ("q8_0", DType::Q8_0),
    ("q6_k", DType::Q6K),
];

/// `general.file_type`, `LLAMA_FTYPE_MOSTLY_…`.
fn file_type(ternary: DType) -> u32 {
    match ternary {
        DType::I2S => 40,
        DType::Tq1_0 => 36,
        DType::Tq2_0 => 37,
        DType::Q2_0 => 41,
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Bf16 => 32,
        other => panic!("{} is no type of matrices", other.name()),
    }
}

/// The largest magnitude that a float type holds.
fn largest(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::MAX.to_f32(),
        // The scale of a block is about the largest magnitude over 127 (here) or 4096 (below) and
        // is an f16; a little is left for its rounding.
        DType::Q8_0 => f16::MAX.to_f32() * 126.0,
        DType::Q6K => f16::MAX.to_f32() * 4000.0,
        _ => f32::MAX,
    }
}

/// What to write.
#[derive(Clone, Debug)]
pub struct GgufForm {
    /// The matrices of the blocks. Of a ternary model: [`DType::I2S`] (bitnet.cpp, 2 bits a
    /// weight), or of llama.cpp [`DType::Tq1_0`] (1.6875 bits), [`DType::Tq2_0`] (2.0625 bits) or
    /// [`DType::Q2_0`] (2.25 bits). Of a dense one: [`DType::Bf16`], [`DType::F16`] or
    /// [`DType::F32`].
    pub matrices: DType,
    /// Embedding and head, unless they are ternary: one of [`EMBEDDING_TYPES`].
    pub embedding: DType,
    /// `general.name`.
    pub name: String,
    /// The tokenizer: all keys under `tokenizer`.
    pub tokenizer: Metadata,
}

impl GgufForm {
    /// The type of a tensor in the file.
    fn dtype(&self, spec: &ModelSpec, entry: &TensorEntry) -> DType {
        type_of(spec, entry, self.matrices, self.embedding)
    }
}

/// The type of a tensor in a file; norms and biases are always F32.
fn type_of(spec: &ModelSpec, entry: &TensorEntry, matrices: DType, embedding: DType) -> DType {
    match entry.role {
        TensorRole::Norm | TensorRole::Bias => DType::F32,
        TensorRole::Embedding | TensorRole::Head if !entry.is_ternary(spec) => embedding,
        _ => matrices,
    }
}

/// Writes a GGUF file at `path`.
///
/// # Errors
/// [`check`]'s before anything is written; a scale or a value that the types cannot hold.
pub fn write_gguf(
    path: &Path,
    source: &dyn TensorSource,
    form: &GgufForm,
    mut progress: ConversionProgress,
) -> Result<Converted, FormatError> {
    let spec = source.spec();
    check(path, spec, form.matrices, form.embedding)?;
    let architecture = Architecture::of(path, spec)?;
    let table = tensor_table(spec);
    let mut plan: Vec<_> = table
        .iter()
        .map(|entry| TensorPlan::new(tensor_name(entry), form.dtype(spec, entry), &entry.shape))
        .collect();
    // Scaled frequencies are a tensor of their own in GGUF, after those of the model.
    let factors = rope::factors(spec);
    plan.extend(factors.iter().map(|all| TensorPlan::new(rope::FACTORS, DType::F32, &[all.len()])));
    let mut writer = GgufWriter::create(path, &metadata(spec, architecture, form), &plan)?;
    let mut counter = Counter::new(spec, &mut progress);
    let mut written = Converted::default();
    for entry in &table {
        if entry.group_width(spec).is_some() {
            write_groups(&mut writer, path, source, entry, architecture, form.matrices)?;
            written.ternary += entry.elements();
            counter.add(entry.elements())?;
        } else if entry.is_ternary(spec) {
            let (codes, scale) = source.matrix(entry)?.quantised();
            let codes = in_file_order(architecture, spec, entry, codes);
            writer.write(&ternary_bytes(path, entry, form.matrices, &codes, scale)?)?;
            written.ternary += codes.len();
            counter.add(codes.len())?;
        // llama.cpp's `llama` rotates neighbouring components, Hugging Face halves of a head: rows
        // of q and k are reordered, so that each program finds its pairs.
        } else if architecture.is_interleaved(entry) {
            write_interleaved(&mut writer, path, source, entry, form.dtype(spec, entry))?;
            counter.add(entry.elements())?;
        } else {
            write_floats(&mut writer, path, source, entry, form.dtype(spec, entry), &mut counter)?;
        }
        writer.end_tensor()?;
    }
    if let Some(factors) = factors {
        writer.write(&quantise(DType::F32, &factors))?;
        writer.end_tensor()?;
    }
    writer.finish()?;
    Ok(written)
}

/// Whether a GGUF file of these types can hold a model of this shape.
///
/// # Errors
/// Names the first tensor that does not fit, or the key that no architecture has.
pub fn check(
    path: &Path,
    spec: &ModelSpec,
    matrices: DType,
    embedding: DType,
) -> Result<(), FormatError> {
    if matrices.is_ternary() {
        check_ternary(path, spec)?;
    } else if spec.quantise {
        let what =
            format!("is a ternary model; {} is for dense ones (quantise = false)", matrices.name());
        return Err(FormatError::container(path, what));
    }
    let architecture = Architecture::of(path, spec)?;
    if !matrices.is_ternary() && architecture.has_sub_norms() {
        // Float matrices of that architecture are the latents of a ternary model elsewhere.
        let what = format!(
            "is true; {} holds dense models without sub-norms: expected hf-bf16",
            matrices.name()
        );
        return Err(FormatError::config(path, "sub_norms", what));
    }
    check_group(path, spec.quantiser.group, matrices)?;
    for entry in tensor_table(spec).iter().filter(|entry| entry.is_matrix()) {
        let dtype = type_of(spec, entry, matrices, embedding);
        let (columns, block) = (entry.shape[1], dtype.block());
        if !(columns as u64).is_multiple_of(block) {
            let name = dtype.name();
            let what = format!("has {columns} columns; {name} needs a multiple of {block}");
            return Err(FormatError::tensor(path, &entry.name, what));
        }
    }
    Ok(())
}

/// Whether blocks of a type can hold the scales of a model: each of its groups is made of whole
/// blocks.
fn check_group(path: &Path, group: Group, ternary: DType) -> Result<(), FormatError> {
    let holds = match (group, ternary) {
        (Group::Matrix, DType::Q2_0) => false,
        (Group::Matrix, _) => true,
        (_, DType::I2S) => false,
        (Group::Row, _) => true,
        (Group::Columns(width), _) => (width as u64).is_multiple_of(ternary.block()),
    };
    if holds {
        return Ok(());
    }
    let (name, expected) = match (group, ternary) {
        (Group::Matrix, _) => (ternary.name(), "I2_S, TQ1_0 or TQ2_0"),
        (Group::Columns(64 | 128), _) => (ternary.name(), "Q2_0"),
        _ => (ternary.name(), "Q2_0, TQ1_0 or TQ2_0"),
    };
    let what = format!("has the group {group}, which {name} does not hold; expected {expected}");
    Err(FormatError::config(path, "quantiser.group", what))
}

fn metadata(spec: &ModelSpec, architecture: Architecture, form: &GgufForm) -> Metadata {
    let mut metadata = Metadata::default();
    let text = |text: &str| Value::String(text.to_owned());
    metadata.insert("general.architecture", text(architecture.name()));
    metadata.insert("general.name", text(&form.name));
    metadata.insert("general.file_type", Value::U32(file_type(form.matrices)));
    metadata.insert("general.quantization_version", Value::U32(2));
    describe(&mut metadata, architecture, spec);
    for (key, value) in form.tokenizer.iter() {
        metadata.insert(key, value.clone());
    }
    // After the tokenizer's keys, which it replaces: the model's ids decide where it stops.
    describe_ids(&mut metadata, spec);
    metadata
}

/// A float matrix whose rows the file orders otherwise.
fn write_interleaved(
    writer: &mut GgufWriter,
    path: &Path,
    source: &dyn TensorSource,
    entry: &TensorEntry,
    dtype: DType,
) -> Result<(), FormatError> {
    let values = source.floats(entry)?;
    check_range(path, entry, dtype, &values)?;
    let spec = source.spec();
    for row in 0..entry.shape[0] {
        let ours = Architecture::Llama.source_row(entry, spec, row);
        let width = entry.shape[1];
        writer.write(&quantise(dtype, &values[ours * width..][..width]))?;
    }
    Ok(())
}

fn check_range(
    path: &Path,
    entry: &TensorEntry,
    dtype: DType,
    values: &[f32],
) -> Result<(), FormatError> {
    let Some(value) = values.iter().find(|value| value.abs() > largest(dtype)) else {
        return Ok(());
    };
    let what = format!("holds {value}, which {} does not hold", dtype.name());
    Err(FormatError::tensor(path, &entry.name, what))
}

fn in_file_order(
    architecture: Architecture,
    spec: &ModelSpec,
    entry: &TensorEntry,
    codes: Vec<i8>,
) -> Vec<i8> {
    let (rows, width) = (entry.shape[0], entry.shape[1]);
    let source = |row| architecture.source_row(entry, spec, row);
    if (0..rows).all(|row| source(row) == row) {
        return codes;
    }
    (0..rows).flat_map(|row| &codes[source(row) * width..][..width]).copied().collect()
}

fn ternary_bytes(
    path: &Path,
    entry: &TensorEntry,
    dtype: DType,
    codes: &[i8],
    scale: WeightScale,
) -> Result<Vec<u8>, FormatError> {
    if dtype == DType::I2S {
        return Ok(i2_s::pack(codes, scale, I2sLayout::Blocks128));
    }
    // The other ternary types keep an f16 scale in each block, where the model has f32: a scale
    // that f16 cannot hold is an error, not a zero.
    let half = f16::from_f32(scale.multiplier());
    if half == f16::ZERO || half.is_infinite() {
        let what = format!("has the scale {}, which F16 does not hold", scale.multiplier());
        return Err(FormatError::tensor(path, &entry.name, what));
    }
    Ok(if dtype == DType::Tq1_0 { tq1_0::pack(codes, half) } else { tq2_0::pack(codes, half) })
}

/// A matrix with groups, a block of the type after the other; a group of several blocks has its
/// scale in each of them.
fn write_groups(
    writer: &mut GgufWriter,
    path: &Path,
    source: &dyn TensorSource,
    entry: &TensorEntry,
    architecture: Architecture,
    dtype: DType,
) -> Result<(), FormatError> {
    let source_row = |row| architecture.source_row(entry, source.spec(), row);
    let in_order = (0..entry.shape[0]).all(|row| source_row(row) == row);
    // Reordered rows may come from anywhere, so the whole matrix is read; otherwise a few rows at a
    // time.
    let whole = if in_order { None } else { Some(source.grouped(entry, 0..entry.shape[0])?) };
    for rows in row_chunks(entry) {
        let matrix = match &whole {
            None => source.grouped(entry, rows)?,
            Some(whole) => whole.rows_in(rows.map(source_row)),
        };
        writer.write(&group_bytes(path, entry, dtype, &matrix)?)?;
    }
    Ok(())
}

fn group_bytes(
    path: &Path,
    entry: &TensorEntry,
    dtype: DType,
    matrix: &GroupedTernary,
) -> Result<Vec<u8>, FormatError> {
    let refused = |what: String| FormatError::tensor(path, &entry.name, what);
    if dtype != DType::Q2_0 && matrix.largest_code() > 1 {
        return Err(refused(format!("holds the code +2, which {} does not hold", dtype.name())));
    }
    let halves: Vec<f16> = matrix.scales().iter().map(|&scale| f16::from_f32(scale)).collect();
    // A scale that becomes 0 would turn its weights off; one that was 0 before has none.
    let lost =
        |(half, scale): (&f16, &f32)| half.is_infinite() || *half == f16::ZERO && *scale != 0.0;
    if let Some(at) = halves.iter().zip(matrix.scales()).position(lost) {
        let scale = matrix.scales()[at];
        return Err(refused(format!("has the scale {scale}, which F16 does not hold")));
    }
    let block = dtype.block() as usize;
    let blocks = matrix.width() / block;
    let scales: Vec<f16> =
        halves.iter().flat_map(|half| std::iter::repeat_n(*half, blocks)).collect();
    Ok(match dtype {
        DType::Tq1_0 => tq1_0::pack_groups(matrix.codes(), &scales),
        DType::Tq2_0 => tq2_0::pack_groups(matrix.codes(), &scales),
        _ => q2_0::pack(matrix.codes(), &scales, block),
    })
}

fn write_floats(
    writer: &mut GgufWriter,
    path: &Path,
    source: &dyn TensorSource,
    entry: &TensorEntry,
    dtype: DType,
    counter: &mut Counter,
) -> Result<(), FormatError> {
    for rows in row_chunks(entry) {
        let values = source.rows(entry, rows)?;
        check_range(path, entry, dtype, &values)?;
        writer.write(&quantise(dtype, &values))?;
        counter.add(values.len())?;
    }
    Ok(())
}
