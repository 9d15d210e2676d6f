//! From a stored model to a [`Model`]: tensors in the order of the one table, repacked for this
//! CPU as they are read.

use std::iter::Peekable;
use std::path::Path;
use std::vec::IntoIter;

use bitnet_format::DType;
use bitnet_format::adapter::{Adapter, AdapterKind, MergedModel};
use bitnet_format::group::Group;
use bitnet_format::grouped::GroupedTernary;
use bitnet_format::source::row_chunks;
use bitnet_format::{
    FormatError, ModelSpec, StoredModel, TensorEntry, TensorRole, TensorSource, model_hash,
    tensor_table,
};
use bitnet_kernels::{DenseMatrix, GroupPanels, Int8Matrix, Kernel, TernaryPanels};

use crate::attention::Heads;
use crate::block::{MATRICES, PackedBlock};
use crate::linear::{EmbeddingOrHead, Panels, TernaryMatrix};
use crate::norm::NormWeights;
use crate::packed_linear::{LinearWeights, PackedLinear};
use crate::{EngineError, Model};
use bitnet_format::rope::RopeFrequencies;

impl Model {
    /// [`Model::load_with`] the head as the file holds it.
    ///
    /// # Errors
    /// As there.
    pub fn load(path: &Path) -> Result<Self, EngineError> {
        Self::load_with(path, HeadPrecision::File)
    }

    /// Loads a packed folder, a GGUF file, latents, which are quantised on the way, or a dense model,
    /// which runs in floats, and chooses the fastest kernel of this CPU.
    ///
    /// # Errors
    /// Anything wrong with the files.
    pub fn load_with(path: &Path, precision: HeadPrecision) -> Result<Self, EngineError> {
        Self::from_stored(&StoredModel::open(path)?, precision)
    }

    /// Loads an open model: a stored one, from memory too ([`StoredModel::from_gguf_bytes`],
    /// [`StoredModel::from_folder_bytes`]), or one with a latent adapter
    /// ([`MergedModel`]).
    ///
    /// # Errors
    /// Anything wrong with its tensors.
    pub fn from_stored(
        weights: &dyn TensorSource,
        precision: HeadPrecision,
    ) -> Result<Self, EngineError> {
        Ok(Self::assemble(weights, precision)?)
    }

    /// Loads the open model at `path` with an adapter, which was opened for its shape: a latent one merged,
    /// a side one beside the packed matrices. Whether a side adapter belongs to these files is for the
    /// caller to say.
    ///
    /// # Errors
    /// Anything wrong with its tensors, a latent adapter of another model.
    pub fn from_adapted(
        stored: &StoredModel,
        path: &Path,
        adapter: &Adapter,
        precision: HeadPrecision,
    ) -> Result<Self, EngineError> {
        match adapter.description().kind {
            AdapterKind::Latent => {
                let merged = MergedModel::new(stored, path, &model_hash(path, stored)?, adapter)?;
                Self::from_stored(&merged, precision)
            }
            AdapterKind::Side => Self::from_stored(stored, precision)?.with_adapter(adapter),
        }
    }

    /// The same model with a side adapter, which was opened for a model of this shape.
    ///
    /// # Errors
    /// A latent adapter: it changes the latents, which a packed model does not have.
    ///
    /// # Panics
    /// If the adapter was opened for another shape.
    pub fn with_adapter(mut self, adapter: &Adapter) -> Result<Self, EngineError> {
        if adapter.description().kind == AdapterKind::Latent {
            let path = adapter.path().to_owned();
            let what = "is a latent adapter, which is part of the matrices once it is merged; expected \
                        a side adapter";
            return Err(FormatError::Container { path, what: what.to_owned() }.into());
        }
        let is_linear = |entry: &TensorEntry| matches!(entry.role, TensorRole::Linear(_));
        let table: Vec<_> = tensor_table(&self.spec).into_iter().filter(is_linear).collect();
        for (block, entries) in self.blocks.iter_mut().zip(table.chunks(MATRICES)) {
            block.adapt(entries, adapter);
        }
        Ok(self)
    }

    pub(crate) fn assemble(
        weights: &dyn TensorSource,
        precision: HeadPrecision,
    ) -> Result<Self, FormatError> {
        let spec = weights.spec().clone();
        let mut reader = Reader::new(weights);
        // A tied embedding is the head: one table serves both.
        // The order of these calls is the order of the tensor table; `Reader::next` relies on it.
        let tied = spec.tie_word_embeddings;
        let embedding = reader.table(if tied { precision } else { HeadPrecision::File })?;
        let blocks =
            (0..spec.num_hidden_layers).map(|_| reader.block()).collect::<Result<_, _>>()?;
        let norm = reader.norm()?;
        let head = if tied { None } else { Some(reader.table(precision)?) };
        let rope = RopeFrequencies::of(&spec);
        let (kernel, all_zero) = (Kernel::detect(), reader.all_zero);
        Ok(Self { spec, kernel, rope, embedding, blocks, norm, head, all_zero })
    }
}

/// How the head is held, and the embedding when it is tied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadPrecision {
    /// As the file holds it.
    File,
    /// In 8 bits with a scale a row.
    Int8,
}

fn is_zero(values: &[f32]) -> bool {
    values.iter().all(|&value| value == 0.0)
}

/// A dense matrix in the type that it is stored in, and whether it is zero; blocks are kept as they
/// are.
fn dense(
    source: &dyn TensorSource,
    entry: &TensorEntry,
) -> Result<(DenseMatrix, bool), FormatError> {
    let dtype = source.read(entry, 0..1)?.dtype;
    let mut matrix = DenseMatrix::empty(entry.shape[1], dtype);
    matrix.reserve(entry.shape[0]);
    let zero = append(source, entry, dtype, &mut matrix)?;
    Ok((matrix, zero))
}

/// Appends a tensor's rows to a matrix of `dtype`; whether all of them are zero.
fn append(
    source: &dyn TensorSource,
    entry: &TensorEntry,
    dtype: DType,
    matrix: &mut DenseMatrix,
) -> Result<bool, FormatError> {
    let mut zero = true;
    for rows in row_chunks(entry) {
        if dtype.is_block_quantised() {
            let view = source.read(entry, rows)?;
            zero &= view.bytes().iter().all(|&byte| byte == 0);
            let pushed = matrix.push_blocks(&view.bytes());
            pushed.map_err(|error| source.error(entry, error.to_string()))?;
        } else {
            let values = source.rows(entry, rows)?;
            zero &= is_zero(&values);
            matrix.push_rows(&values);
        }
    }
    Ok(zero)
}

/// A table in 8 bits, and whether it is zero.
fn int8(source: &dyn TensorSource, entry: &TensorEntry) -> Result<(Int8Matrix, bool), FormatError> {
    let mut matrix = Int8Matrix::new(entry.shape[0], entry.shape[1]);
    let mut zero = true;
    for rows in row_chunks(entry) {
        let values = source.rows(entry, rows)?;
        zero &= is_zero(&values);
        matrix.push_rows(&values);
    }
    Ok((matrix, zero))
}

/// Refuses scales of rows that are not positive, and codes that only groups may have.
fn check_rows(
    source: &dyn TensorSource,
    entry: &TensorEntry,
    matrix: &GroupedTernary,
) -> Result<(), FormatError> {
    if let Some(scale) = matrix.scales().iter().find(|scale| **scale <= 0.0) {
        let what = format!("has the scale {scale}; expected positive finite numbers");
        return Err(source.error(entry, what));
    }
    if matrix.largest_code() > 1 {
        let what = "holds the code +2; expected -1, 0 and +1 in rows with one scale".to_owned();
        return Err(source.error(entry, what));
    }
    Ok(())
}

/// Walks the tensor table once; each call takes the next tensor.
struct Reader<'a> {
    weights: &'a dyn TensorSource,
    spec: &'a ModelSpec,
    entries: Peekable<IntoIter<TensorEntry>>,
    /// Tensors that are all zeros.
    all_zero: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(weights: &'a dyn TensorSource) -> Self {
        let spec = weights.spec();
        Self {
            weights,
            spec,
            entries: tensor_table(spec).into_iter().peekable(),
            all_zero: Vec::new(),
        }
    }

    fn next(&mut self) -> TensorEntry {
        self.entries.next().expect("the table lists every tensor of a block")
    }

    fn note_zero(&mut self, entry: &TensorEntry, is_zero: bool) {
        self.all_zero.extend(is_zero.then(|| entry.name.clone()));
    }

    fn table(&mut self, precision: HeadPrecision) -> Result<EmbeddingOrHead, FormatError> {
        let entry = self.next();
        if entry.is_ternary(self.spec) {
            return Ok(EmbeddingOrHead::Ternary(self.ternary(&[entry])?));
        }
        let (table, is_zero) = match precision {
            HeadPrecision::File => {
                let (matrix, is_zero) = dense(self.weights, &entry)?;
                (EmbeddingOrHead::File(matrix), is_zero)
            }
            HeadPrecision::Int8 => {
                let (matrix, is_zero) = int8(self.weights, &entry)?;
                (EmbeddingOrHead::Int8(matrix), is_zero)
            }
        };
        self.note_zero(&entry, is_zero);
        Ok(table)
    }

    fn norm(&mut self) -> Result<NormWeights, FormatError> {
        let entry = self.next();
        let gain = self.weights.rows(&entry, 0..entry.shape[0])?;
        self.note_zero(&entry, is_zero(&gain));
        Ok(NormWeights::new(gain, self.spec.rms_norm_eps))
    }

    fn sub_norm(&mut self) -> Result<Option<NormWeights>, FormatError> {
        if self.spec.sub_norms { self.norm().map(Some) } else { Ok(None) }
    }

    /// The next `count` matrices, one below the other.
    fn linear(&mut self, count: usize) -> Result<PackedLinear, FormatError> {
        let (mut entries, mut bias) = (Vec::with_capacity(count), Vec::new());
        for _ in 0..count {
            entries.push(self.next());
            // The table lists a bias right after its matrix. Biases of q, k and v are joined like
            // the matrices.
            if let Some(entry) = self.entries.next_if(|entry| entry.role == TensorRole::Bias) {
                let values = self.weights.floats(&entry)?;
                bias.extend(values);
            }
        }
        let weights = if self.spec.quantise {
            LinearWeights::Ternary(self.ternary(&entries)?)
        } else {
            self.floats(&entries)?
        };
        Ok(PackedLinear::new(weights, Some(bias).filter(|bias| !bias.is_empty())))
    }

    /// Ternary matrices of one width, one below the other.
    fn ternary(&mut self, entries: &[TensorEntry]) -> Result<TernaryMatrix, FormatError> {
        let panels = match self.spec.quantiser.group {
            Group::Matrix => Panels::Rows(self.whole(entries)?),
            Group::Row => Panels::Rows(self.rows(entries)?),
            Group::Columns(width) => Panels::Groups(self.groups(entries, width)?),
        };
        Ok(TernaryMatrix { panels, activations: self.spec.activations })
    }

    /// Matrices with one scale.
    fn whole(&mut self, entries: &[TensorEntry]) -> Result<TernaryPanels, FormatError> {
        if let [entry] = entries
            && !matches!(entry.role, TensorRole::Linear(_))
        {
            // An embedding may have any number of rows.
            let (codes, scale) = self.weights.matrix(entry)?.quantised();
            self.note_zero(entry, codes.iter().all(|&code| code == 0));
            return Ok(TernaryPanels::from_codes(entry.shape[1], &codes, scale));
        }
        let mut matrices = Vec::with_capacity(entries.len());
        for entry in entries {
            let matrix = self.weights.ternary(entry)?;
            self.note_zero(entry, matrix.0.is_zero());
            matrices.push(matrix);
        }
        Ok(TernaryPanels::stack(&matrices))
    }

    /// Matrices with a scale for each row.
    fn rows(&mut self, entries: &[TensorEntry]) -> Result<TernaryPanels, FormatError> {
        let mut parts = Vec::with_capacity(entries.len());
        for entry in entries {
            let matrix = self.weights.grouped(entry, 0..entry.shape[0])?;
            check_rows(self.weights, entry, &matrix)?;
            self.note_zero(entry, matrix.is_zero());
            parts.push(matrix);
        }
        Ok(TernaryPanels::of_rows(&parts))
    }

    /// Matrices with a scale for each group of columns, some rows at a time where rows can be had.
    fn groups(
        &mut self,
        entries: &[TensorEntry],
        width: usize,
    ) -> Result<GroupPanels, FormatError> {
        let rows = entries.iter().map(|entry| entry.shape[0]).sum();
        let mut panels = GroupPanels::zeros(rows, entries[0].shape[1], width);
        let mut first = 0;
        for entry in entries {
            let mut zero = true;
            for rows in row_chunks(entry) {
                let part = self.weights.grouped(entry, rows)?;
                if part.half_scales().is_none() {
                    let what = "has scales of groups that F16 does not hold".to_owned();
                    return Err(self.weights.error(entry, what));
                }
                zero &= part.is_zero();
                panels.write(first, &part);
                first += part.rows();
            }
            self.note_zero(entry, zero);
        }
        Ok(panels)
    }

    /// Matrices of one type stay in it; others become f32.
    fn floats(&mut self, entries: &[TensorEntry]) -> Result<LinearWeights, FormatError> {
        let types = entries.iter().map(|entry| Ok(self.weights.read(entry, 0..1)?.dtype));
        let types: Vec<DType> = types.collect::<Result<_, FormatError>>()?;
        let same = types.iter().all(|dtype| *dtype == types[0]);
        let dtype = if same { types[0] } else { DType::F32 };
        let mut matrix = DenseMatrix::empty(entries[0].shape[1], dtype);
        matrix.reserve(entries.iter().map(|entry| entry.shape[0]).sum());
        for entry in entries {
            let zero = append(self.weights, entry, dtype, &mut matrix)?;
            self.note_zero(entry, zero);
        }
        Ok(LinearWeights::Dense(matrix))
    }

    /// The norms of queries and keys, where the model has them.
    fn head_norms(&mut self) -> Result<Option<[NormWeights; 2]>, FormatError> {
        if self.spec.qk_norm { Ok(Some([self.norm()?, self.norm()?])) } else { Ok(None) }
    }

    /// Fields are read in the order of the forward pass, which is the order of the table.
    fn block(&mut self) -> Result<PackedBlock, FormatError> {
        Ok(PackedBlock {
            heads: Heads::of(self.spec),
            hidden_act: self.spec.hidden_act,
            input_norm: self.norm()?,
            qkv: self.linear(3)?,
            head_norms: self.head_norms()?,
            attn_sub_norm: self.sub_norm()?,
            output: self.linear(1)?,
            post_attention_norm: self.norm()?,
            gate_up: self.linear(2)?,
            ffn_sub_norm: self.sub_norm()?,
            down: self.linear(1)?,
        })
    }
}
