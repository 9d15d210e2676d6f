//! GGUF files: one file with metadata, the embedding in a float type of choice, ternary blocks.

use std::path::Path;

use half::f16;

use super::{Counter, Progress, Source, Written, check_ternary, row_chunks};
use crate::blocks::i2_s::{self, I2sLayout};
use crate::blocks::{q6_k, q8_0, tq1_0, tq2_0};
use crate::gguf::architecture::{Architecture, describe, describe_ids, tensor_name};
use crate::gguf::{GgufWriter, Metadata, TensorKind, Value};
use crate::quant::WeightScale;
use crate::{FormatError, ModelSpec, Role, TensorEntry, tensor_table};

/// How ternary matrices are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ternary {
    /// bitnet.cpp's, 2 bits a weight and one f32 scale a matrix.
    I2S,
    /// llama.cpp's, 1.6875 bits a weight, an F16 scale a block of 256.
    Tq1,
    /// llama.cpp's, 2.0625 bits a weight, an F16 scale a block of 256.
    Tq2,
}

impl Ternary {
    pub(super) fn kind(self) -> TensorKind {
        match self {
            Self::I2S => TensorKind::I2S,
            Self::Tq1 => TensorKind::Tq1_0,
            Self::Tq2 => TensorKind::Tq2_0,
        }
    }

    /// Columns must be a multiple of this.
    fn block(self) -> usize {
        match self {
            Self::I2S => i2_s::BLOCK,
            Self::Tq1 | Self::Tq2 => tq2_0::BLOCK,
        }
    }

    /// `general.file_type`, `LLAMA_FTYPE_MOSTLY_…`.
    fn file_type(self) -> u32 {
        match self {
            Self::I2S => 40,
            Self::Tq1 => 36,
            Self::Tq2 => 37,
        }
    }
}

/// How the embedding, and a head of its own, are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// 32 bits.
    F32,
    /// 16 bits, what every reader takes.
    F16,
    /// 8.5 bits.
    Q8_0,
    /// 6.5625 bits.
    Q6K,
}

impl Table {
    /// The choices by the word for them.
    pub const WORDS: &[(&str, Self)] =
        &[("f32", Self::F32), ("f16", Self::F16), ("q8_0", Self::Q8_0), ("q6_k", Self::Q6K)];

    fn kind(self) -> TensorKind {
        match self {
            Self::F32 => TensorKind::F32,
            Self::F16 => TensorKind::F16,
            Self::Q8_0 => TensorKind::Q8_0,
            Self::Q6K => TensorKind::Q6K,
        }
    }

    /// Columns must be a multiple of this.
    fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Q8_0 => q8_0::BLOCK,
            Self::Q6K => q6_k::BLOCK,
        }
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => f32_bytes(values),
            Self::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Self::Q8_0 => q8_0::quantise(values),
            Self::Q6K => q6_k::quantise(values),
        }
    }

    /// The largest magnitude it holds.
    fn largest(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => f16::MAX.to_f32(),
            Self::Q8_0 => f16::MAX.to_f32() * 126.0,
            Self::Q6K => f16::MAX.to_f32() * 4000.0,
        }
    }
}

/// What to write.
#[derive(Clone, Debug)]
pub struct GgufForm {
    /// The matrices of the blocks.
    pub ternary: Ternary,
    /// Embedding and head.
    pub table: Table,
    /// `general.name`.
    pub name: String,
    /// What the file says of its tokenizer: all keys under `tokenizer`.
    pub tokenizer: Metadata,
}

/// Writes a GGUF file at `path`.
///
/// # Errors
/// [`check`]'s before anything is written; a scale or a value that the types cannot hold.
pub fn write_gguf(
    path: &Path,
    source: &dyn Source,
    form: &GgufForm,
    mut progress: Progress,
) -> Result<Written, FormatError> {
    let spec = source.spec();
    check(path, spec, form.ternary, form.table)?;
    let architecture = Architecture::of(path, spec)?;
    let table = tensor_table(spec);
    let kind = |entry: &TensorEntry| match entry.role {
        Role::Norm => TensorKind::F32,
        Role::Embedding | Role::Head => form.table.kind(),
        Role::Linear(_) => form.ternary.kind(),
    };
    let plan: Vec<_> =
        table.iter().map(|entry| (tensor_name(entry), entry.shape.clone(), kind(entry))).collect();
    let mut writer = GgufWriter::create(path, &metadata(spec, architecture, form), &plan)?;
    let mut counter = Counter::new(spec, &mut progress);
    let mut written = Written::default();
    for entry in &table {
        if entry.is_ternary(spec) {
            let (codes, scale) = source.matrix(entry)?.quantised();
            let codes = in_file_order(architecture, spec, entry, codes);
            writer.write(&ternary_bytes(path, entry, form.ternary, &codes, scale)?)?;
            written.ternary += codes.len();
            counter.add(codes.len())?;
        } else {
            write_floats(&mut writer, path, source, entry, form.table, &mut counter)?;
        }
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
    ternary: Ternary,
    table: Table,
) -> Result<(), FormatError> {
    check_ternary(path, spec)?;
    Architecture::of(path, spec)?;
    for entry in tensor_table(spec) {
        let (block, kind) = match entry.role {
            Role::Norm => continue,
            Role::Embedding | Role::Head => (table.block(), table.kind()),
            Role::Linear(_) => (ternary.block(), ternary.kind()),
        };
        if !entry.shape[1].is_multiple_of(block) {
            let (columns, kind) = (entry.shape[1], kind.name());
            let what = format!("has {columns} columns; {kind} needs a multiple of {block}");
            return Err(FormatError::tensor(path, &entry.name, what));
        }
    }
    Ok(())
}

fn metadata(spec: &ModelSpec, architecture: Architecture, form: &GgufForm) -> Metadata {
    let mut metadata = Metadata::default();
    let text = |text: &str| Value::String(text.to_owned());
    metadata.insert("general.architecture", text(architecture.name()));
    metadata.insert("general.name", text(&form.name));
    metadata.insert("general.file_type", Value::U32(form.ternary.file_type()));
    metadata.insert("general.quantization_version", Value::U32(2));
    describe(&mut metadata, architecture, spec);
    for (key, value) in form.tokenizer.iter() {
        metadata.insert(key, value.clone());
    }
    describe_ids(&mut metadata, spec);
    metadata
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
    form: Ternary,
    codes: &[i8],
    scale: WeightScale,
) -> Result<Vec<u8>, FormatError> {
    if form == Ternary::I2S {
        return Ok(i2_s::pack(codes, scale, I2sLayout::Blocks128));
    }
    let half = f16::from_f32(scale.multiplier());
    if half == f16::ZERO || half.is_infinite() {
        let what = format!("has the scale {}, which F16 does not hold", scale.multiplier());
        return Err(FormatError::tensor(path, &entry.name, what));
    }
    Ok(if form == Ternary::Tq1 { tq1_0::pack(codes, half) } else { tq2_0::pack(codes, half) })
}

fn write_floats(
    writer: &mut GgufWriter,
    path: &Path,
    source: &dyn Source,
    entry: &TensorEntry,
    table: Table,
    counter: &mut Counter,
) -> Result<(), FormatError> {
    let form = if entry.role == Role::Norm { Table::F32 } else { table };
    for rows in row_chunks(entry) {
        let values = source.rows(entry, rows)?;
        if let Some(value) = values.iter().find(|value| value.abs() > form.largest()) {
            let what = format!("holds {value}, which {} does not hold", form.kind().name());
            return Err(FormatError::tensor(path, &entry.name, what));
        }
        writer.write(&form.bytes(&values))?;
        counter.add(values.len())?;
    }
    Ok(())
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
