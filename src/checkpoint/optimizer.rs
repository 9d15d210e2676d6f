//! `optimizer.safetensors`: the moments of every trained tensor, and the part of its latents that a BF16
//! model file does not hold.
//!
//! | tensor | type | for |
//! |---|---|---|
//! | `first.NAME`, `second.NAME` | F32 or BF16 `[shape]` | moments; of a matrix that Muon trains only the first, its momentum |
//! | the same | U8 `[shape]`, with `….scales` F32 `[blocks of 128]` | moments in eight bits |
//! | `low.NAME` | I8 `[elements]` | latents in bf16+8: 1/256 of a bf16 step |
//! | `codes.NAME`, `exponents.NAME` | I16 `[elements]`, I8 `[blocks of 256]` | latents in block16 |
//!
//! Each is written from where it lies, one after the other.

use std::borrow::Cow;
use std::path::Path;

use bitnet_format::tensors::TensorFile;
use bitnet_format::writer::{TensorPlan, TensorWriter, little_endian};
use bitnet_format::{DType, TensorEntry};
use burn::tensor::{Device, Tensor, TensorData};

use super::{CheckpointError, OPTIMIZER_FILE};
use crate::host::to_host;
use crate::latents::{Latents, LeanSettings, MOMENT_BLOCK, MomentFormat};
use crate::model::LanguageModel;
use crate::train::step::adamw::{AdamW, ChunkedState, MOMENTS};
use crate::train::step::moments::{Moment, MomentKind, decode};

/// One moment of a tensor as a file holds it.
#[derive(Clone, Debug)]
pub struct MomentData<'a> {
    bytes: Cow<'a, [u8]>,
    scales: Option<Cow<'a, [f32]>>,
}

impl<'a> MomentData<'a> {
    /// f32 values.
    pub(crate) fn floats(values: &'a [f32]) -> Self {
        Self { bytes: little_endian(values), scales: None }
    }

    fn of(moment: &'a Moment) -> Self {
        let (bytes, scales) = moment.stored();
        Self { bytes, scales: scales.map(Cow::Borrowed) }
    }
}

/// Takes a moment's kind, the place of its parameter in the tensor table, and the moment.
pub(crate) type WriteMoment<'a> =
    dyn FnMut(MomentKind, usize, MomentData) -> Result<(), CheckpointError> + 'a;

/// Moments of all parameters that are trained, wherever they are kept.
pub trait Moments {
    /// For each parameter how this moment of it is kept; `None`: it has none.
    fn formats(&self, kind: MomentKind) -> Vec<Option<MomentFormat>>;

    /// Calls `write` with each, one after the other.
    ///
    /// # Errors
    /// Those of `write`.
    fn each(&self, write: &mut WriteMoment) -> Result<(), CheckpointError>;
}

impl Moments for AdamW {
    fn formats(&self, kind: MomentKind) -> Vec<Option<MomentFormat>> {
        let format = |(frozen, chunked): (&bool, &Option<ChunkedState>)| match (frozen, chunked) {
            (true, _) => None,
            (false, None) => Some(MomentFormat::F32),
            (false, Some(state)) => state.moment(kind).map(|_| self.lean().moments),
        };
        self.frozen().iter().zip(&self.chunked).map(format).collect()
    }

    fn each(&self, write: &mut WriteMoment) -> Result<(), CheckpointError> {
        for (kind, tensors) in MOMENTS.into_iter().zip([&self.first, &self.second]) {
            for (index, chunked) in self.chunked.iter().enumerate() {
                match chunked {
                    _ if self.frozen()[index] => {}
                    Some(state) => {
                        let Some(moment) = state.moment(kind) else { continue };
                        write(kind, index, MomentData::of(moment))?;
                    }
                    None => {
                        let values = to_host(tensors[index].clone());
                        write(kind, index, MomentData::floats(&values))?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn moment_name(kind: MomentKind, entry: &TensorEntry) -> String {
    let kind = match kind {
        MomentKind::First => "first",
        MomentKind::Second => "second",
    };
    format!("{kind}.{}", entry.name)
}

fn scales_name(kind: MomentKind, entry: &TensorEntry) -> String {
    format!("{}.scales", moment_name(kind, entry))
}

pub(super) fn write(
    path: &Path,
    model: &LanguageModel,
    moments: &dyn Moments,
) -> Result<(), CheckpointError> {
    let table = model.table();
    // A safetensors header lists every tensor before the first byte of data: the plan first, from
    // formats alone, then the values one after the other, so that no second copy of the moments is
    // ever in memory.
    let mut plan = Vec::new();
    let formats = MOMENTS.map(|kind| (kind, moments.formats(kind)));
    for (index, entry) in table.iter().enumerate() {
        for (kind, formats) in &formats {
            let format = formats[index].into_iter();
            plan.extend(format.flat_map(|format| planned(*kind, entry, format)));
        }
    }
    for (name, part) in latent_parts(model) {
        plan.push(TensorPlan::new(name, part.0, &[part.1]));
    }
    let mut file = TensorWriter::create(path, plan)?;
    moments.each(&mut |kind, index, moment| {
        file.write_whole(&moment_name(kind, &table[index]), &moment.bytes)?;
        if let Some(scales) = moment.scales {
            file.write_floats(&scales_name(kind, &table[index]), &scales)?;
        }
        Ok(())
    })?;
    for (entry, latents) in outside(model) {
        for part in latents.read().parts() {
            file.write_whole(&format!("{}.{}", part.prefix, entry.name), &part.bytes)?;
        }
    }
    Ok(file.finish()?)
}

fn planned(kind: MomentKind, entry: &TensorEntry, format: MomentFormat) -> Vec<TensorPlan> {
    let dtype = match format {
        MomentFormat::F32 => DType::F32,
        MomentFormat::Bf16 => DType::Bf16,
        MomentFormat::EightBit => DType::U8,
    };
    let mut plan = vec![TensorPlan::new(moment_name(kind, entry), dtype, &entry.shape)];
    if format == MomentFormat::EightBit {
        let blocks = entry.elements().div_ceil(MOMENT_BLOCK);
        plan.push(TensorPlan::new(scales_name(kind, entry), DType::F32, &[blocks]));
    }
    plan
}

fn outside(model: &LanguageModel) -> impl Iterator<Item = (&TensorEntry, &Latents)> {
    let pairs = model.table().iter().zip(model.outside());
    pairs.filter_map(|(entry, latents)| Some((entry, latents.as_ref()?)))
}

/// The name, type and size of each part of latents.
fn latent_parts(model: &LanguageModel) -> Vec<(String, (DType, usize))> {
    let mut parts = Vec::new();
    for (entry, latents) in outside(model) {
        for part in latents.read().parts() {
            parts.push((format!("{}.{}", part.prefix, entry.name), (part.dtype, part.count)));
        }
    }
    parts
}

/// What lies in the `optimizer.safetensors` of a checkpoint.
#[derive(Debug)]
pub struct StoredMoments(TensorFile);

impl StoredMoments {
    /// Opens that of a checkpoint.
    ///
    /// # Errors
    /// When the file is missing or broken.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        Ok(Self(TensorFile::open(&dir.join(OPTIMIZER_FILE))?))
    }

    /// One moment, as f32. A parameter that was frozen up to now has none: it begins with zeros.
    ///
    /// # Errors
    /// When it has another shape, is not finite or lacks its scales, or only the other moment is there.
    pub(crate) fn read(
        &self,
        kind: MomentKind,
        entry: &TensorEntry,
    ) -> Result<Vec<f32>, CheckpointError> {
        // Both or none: where one alone is there, looking up the other by its name is the error.
        if MOMENTS.iter().all(|kind| !self.0.contains(&moment_name(*kind, entry))) {
            return Ok(vec![0.0; entry.elements()]);
        }
        let name = moment_name(kind, entry);
        if self.0.info(&name)?.dtype != DType::U8 {
            return Ok(self.0.finite_floats(&name, &entry.shape)?);
        }
        let codes = self.0.raw(&name, &entry.shape, DType::U8)?;
        let blocks = entry.elements().div_ceil(MOMENT_BLOCK);
        let scales = self.0.finite_floats(&scales_name(kind, entry), &[blocks])?;
        let mut values = vec![0.0; entry.elements()];
        decode(kind, &codes, &scales, &mut values);
        Ok(values)
    }

    /// Fills an optimizer of the parameters of this `table` with all of them.
    ///
    /// # Errors
    /// When one has another shape or is not finite, or only the other moment is there.
    pub fn read_all(
        &self,
        table: &[TensorEntry],
        optimizer: &mut AdamW,
        device: &Device,
    ) -> Result<(), CheckpointError> {
        for (index, entry) in table.iter().enumerate() {
            if optimizer.frozen()[index] {
                continue;
            }
            for kind in MOMENTS {
                if optimizer.has_moment(index, kind) {
                    set(optimizer, (index, kind), self.read(kind, entry)?, device);
                }
            }
        }
        Ok(())
    }

    /// Gives the latents of a model that was read from the same checkpoint the bits that its BF16 file
    /// lacks. Where the checkpoint keeps latents in another form there is nothing to add.
    ///
    /// # Errors
    /// When a part has another shape.
    pub(crate) fn complete(&self, model: &LanguageModel) -> Result<(), CheckpointError> {
        for (entry, latents) in outside(model) {
            let wanted: Vec<_> = latents
                .read()
                .parts()
                .iter()
                .map(|part| (part.prefix, part.dtype, part.count))
                .collect();
            let name = |prefix: &str| format!("{prefix}.{}", entry.name);
            if !wanted.iter().all(|(prefix, ..)| self.0.contains(&name(prefix))) {
                continue;
            }
            let read = |&(prefix, dtype, count): &(&str, DType, usize)| {
                self.0.raw(&name(prefix), &[count], dtype)
            };
            let bytes: Result<Vec<_>, _> = wanted.iter().map(read).collect();
            latents.set_parts(&bytes?);
        }
        Ok(())
    }
}

/// Gives an optimizer one moment of a parameter.
pub(crate) fn set(
    optimizer: &mut AdamW,
    (index, kind): (usize, MomentKind),
    values: Vec<f32>,
    device: &Device,
) {
    let LeanSettings { moments: format, .. } = optimizer.lean();
    if let Some(state) = &mut optimizer.chunked[index] {
        let moment = state.moment_mut(kind).expect("a moment that it has");
        *moment = Moment::of(format, kind, &values);
        return;
    }
    let tensors = match kind {
        MomentKind::First => &mut optimizer.first,
        MomentKind::Second => &mut optimizer.second,
    };
    let count = values.len();
    tensors[index] = Tensor::from_data(TensorData::new(values, [count]), device);
}
