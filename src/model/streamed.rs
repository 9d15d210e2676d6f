//! A forward pass that holds one block of a stored model at a time: read, used and dropped. Export
//! verification runs models this way that would not fit into memory as a whole.

use std::ops::Range;

use bitnet_format::{FormatError, StoredModel, TensorEntry, TensorRole, tensor_table};
use bitnet_kernels::Operands;
use burn::tensor::{Device, Tensor, TensorData};

use super::attention::AttentionContext;
use super::rope::RopeTable;
use super::source::{dequantised, table_rows};
use super::{
    Block, LoadedTensor, LoadedTensors, LoadedValues, RmsNorm, SegmentStarts, head_reads_codes,
    token_logits,
};
use crate::host::to_host;
use crate::ops::{OpBackend, fake_quantise_activations};

/// Rows of the head that are multiplied together.
const HEAD_ROWS: usize = 8192;

/// Hidden states `[B · T, C]` after the last norm. Logits are computed for some positions at a time:
/// 2,048 positions of a vocabulary of 128,256 would take 1 GB.
pub struct HiddenStates<'a> {
    model: &'a StoredModel,
    head: TensorEntry,
    hidden: Tensor<2>,
}

/// Runs groups of rows of token ids `[B, T]` up to the last norm; each row is a document of its own,
/// and a group's rows are of one length. Every block is read once. `going_on` is asked before each.
///
/// # Errors
/// Whatever reading the model reports, and what `going_on` returns.
pub fn streamed_hidden<'a>(
    model: &'a StoredModel,
    groups: &[Vec<Vec<u32>>],
    device: &Device,
    going_on: &dyn Fn() -> Result<(), FormatError>,
) -> Result<Vec<HiddenStates<'a>>, FormatError> {
    let table = tensor_table(model.spec());
    let mut passes = Vec::new();
    for rows in groups {
        let documents = SegmentStarts::whole_rows(rows.len(), rows[0].len());
        let context = AttentionContext::new(&documents, &RopeTable::new(model.spec()));
        passes.push((embed(model, &table[0], rows, device)?, context));
    }
    let backend = OpBackend::of(device, Operands::F32);
    // Layers outside, groups inside: each block is read from disk once for all groups.
    for layer in 0..model.spec().num_hidden_layers {
        going_on()?;
        let block = block(model, &table, layer, device)?;
        for (x, context) in &mut passes {
            *x = block.forward(x.clone(), context, backend);
        }
    }
    // The norms of blocks come before the final one.
    let norm =
        table.iter().rfind(|entry| entry.role == TensorRole::Norm).expect("a model has norms");
    let norm = read_norm(model, norm, device)?;
    // A tied head is the embedding, which the table begins with.
    let head = table.last().filter(|entry| entry.role == TensorRole::Head).unwrap_or(&table[0]);
    let hidden_of = |x: Tensor<3>| {
        let hidden = norm.forward(x, backend);
        let reads_codes = head_reads_codes(model.spec());
        let hidden = if reads_codes { fake_quantise_activations(hidden) } else { hidden };
        HiddenStates { model, head: head.clone(), hidden: hidden.flatten(0, 1) }
    };
    Ok(passes.into_iter().map(|(x, _)| hidden_of(x)).collect())
}

impl HiddenStates<'_> {
    /// Logits `[N, V]` of `positions` of the `B · T`. Reads the head once, `HEAD_ROWS` rows at a
    /// time.
    ///
    /// # Errors
    /// Whatever reading the model reports.
    pub fn logits(&self, positions: Range<usize>) -> Result<Vec<f32>, FormatError> {
        let (vocab, width) = (self.head.shape[0], self.head.shape[1]);
        let hidden = self.hidden.clone().narrow(0, positions.start, positions.len());
        let mut logits = vec![0.0; positions.len() * vocab];
        for first in (0..vocab).step_by(HEAD_ROWS) {
            let rows = first..vocab.min(first + HEAD_ROWS);
            let data = table_rows(self.model, &self.head, rows.clone())?;
            let data = TensorData::new(data, [rows.len(), width]);
            let part = token_logits(hidden.clone(), Tensor::from_data(data, &hidden.device()));
            let part = to_host(part);
            // `part [N, rows]` becomes columns of `logits [N, V]`.
            for (all, part) in logits.chunks_exact_mut(vocab).zip(part.chunks_exact(rows.len())) {
                all[rows.clone()].copy_from_slice(part);
            }
        }
        Ok(logits)
    }
}

fn embed(
    model: &StoredModel,
    entry: &TensorEntry,
    rows: &[Vec<u32>],
    device: &Device,
) -> Result<Tensor<3>, FormatError> {
    let (words, width, spec) = (entry.shape[0], entry.shape[1], model.spec());
    let has_one_scale = entry.is_ternary(spec) && entry.group_width(spec).is_none();
    // One scale for the table costs a pass over all of it: once, and not for each token.
    let whole = has_one_scale.then(|| table_rows(model, entry, 0..words)).transpose()?;
    let mut values = Vec::new();
    for id in rows.iter().flatten().map(|&id| id as usize) {
        match &whole {
            Some(table) => values.extend_from_slice(&table[id * width..][..width]),
            None => values.extend(table_rows(model, entry, id..id + 1)?),
        }
    }
    let shape = [rows.len(), rows[0].len(), width];
    Ok(Tensor::from_data(TensorData::new(values, shape), device))
}

fn block(
    model: &StoredModel,
    table: &[TensorEntry],
    layer: usize,
    device: &Device,
) -> Result<Block, FormatError> {
    let prefix = format!("model.layers.{layer}.");
    let entries = table.iter().filter(|entry| entry.name.starts_with(&prefix));
    let tensors: Result<Vec<_>, _> = entries.map(|entry| load(model, entry)).collect();
    let mut parts = LoadedTensors::new(tensors?, model.spec(), device);
    Ok(Block::assemble(model.spec(), &mut parts))
}

fn read_norm(
    model: &StoredModel,
    entry: &TensorEntry,
    device: &Device,
) -> Result<RmsNorm, FormatError> {
    let tensors = vec![load(model, entry)?];
    Ok(LoadedTensors::new(tensors, model.spec(), device).norm())
}

fn load(model: &StoredModel, entry: &TensorEntry) -> Result<LoadedTensor, FormatError> {
    let (values, form) = dequantised(model, entry)?;
    let values = LoadedValues::new(entry, values, None);
    Ok(LoadedTensor { entry: entry.clone(), values, form, adapter: None })
}
