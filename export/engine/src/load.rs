//! From a stored model to a [`Model`]: tensors in the order of the one table, repacked for this
//! CPU as they are read.

use std::path::Path;
use std::vec::IntoIter;

use bitnet_format::source::row_chunks;
use bitnet_format::{FormatError, ModelSpec, StoredModel, TensorEntry, TensorSource, tensor_table};
use bitnet_kernels::{DenseMatrix, Int8Matrix, Kernel, TernaryPanels};

use crate::attention::Heads;
use crate::block::PackedBlock;
use crate::linear::EmbeddingOrHead;
use crate::norm::NormWeights;
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

    /// Loads a packed folder, a GGUF file, or latents, which are quantised on the way, and
    /// chooses the fastest kernel of this CPU.
    ///
    /// # Errors
    /// A dense model, or anything wrong with the files.
    pub fn load_with(path: &Path, precision: HeadPrecision) -> Result<Self, EngineError> {
        Self::from_stored(&StoredModel::open(path)?, path, precision)
    }

    /// Loads an open model, from memory too ([`StoredModel::from_gguf_bytes`],
    /// [`StoredModel::from_folder_bytes`]); `name` is for messages.
    ///
    /// # Errors
    /// A dense model, or anything wrong with its tensors.
    pub fn from_stored(
        stored: &StoredModel,
        name: &Path,
        precision: HeadPrecision,
    ) -> Result<Self, EngineError> {
        if !stored.spec().quantise {
            return Err(EngineError::Dense { path: name.to_owned() });
        }
        Ok(Self::assemble(stored, precision)?)
    }

    pub(crate) fn assemble(
        weights: &dyn TensorSource,
        precision: HeadPrecision,
    ) -> Result<Self, FormatError> {
        let spec = weights.spec().clone();
        let mut reader = Reader::new(weights);
        // A tied embedding is the head: one table serves both.
        let tied = spec.tie_word_embeddings;
        let embedding = reader.table(if tied { precision } else { HeadPrecision::File })?;
        let blocks =
            (0..spec.num_hidden_layers).map(|_| reader.block()).collect::<Result<_, _>>()?;
        let norm = reader.norm()?;
        let head = if tied { None } else { Some(reader.table(precision)?) };
        let rope = RopeFrequencies::new(spec.rope_theta, spec.head_dim);
        Ok(Self { spec, kernel: Kernel::detect(), rope, embedding, blocks, norm, head })
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

/// A dense matrix in the type that it is stored in; blocks are kept as they are.
fn dense(source: &dyn TensorSource, entry: &TensorEntry) -> Result<DenseMatrix, FormatError> {
    let dtype = source.read(entry, 0..1)?.dtype;
    let mut matrix = DenseMatrix::empty(entry.shape[1], dtype);
    matrix.reserve(entry.shape[0]);
    for rows in row_chunks(entry) {
        if dtype.is_block_quantised() {
            let pushed = matrix.push_blocks(&source.read(entry, rows)?.bytes());
            pushed.map_err(|error| source.error(entry, error.to_string()))?;
        } else {
            matrix.push_rows(&source.rows(entry, rows)?);
        }
    }
    Ok(matrix)
}

/// Walks the tensor table once; each call takes the next tensor.
struct Reader<'a> {
    weights: &'a dyn TensorSource,
    spec: &'a ModelSpec,
    entries: IntoIter<TensorEntry>,
}

impl<'a> Reader<'a> {
    fn new(weights: &'a dyn TensorSource) -> Self {
        let spec = weights.spec();
        Self { weights, spec, entries: tensor_table(spec).into_iter() }
    }

    fn next(&mut self) -> TensorEntry {
        self.entries.next().expect("the table lists every tensor of a block")
    }

    fn table(&mut self, precision: HeadPrecision) -> Result<EmbeddingOrHead, FormatError> {
        let entry = self.next();
        match precision {
            HeadPrecision::File => Ok(EmbeddingOrHead::File(dense(self.weights, &entry)?)),
            HeadPrecision::Int8 => {
                let mut matrix = Int8Matrix::new(entry.shape[0], entry.shape[1]);
                for rows in row_chunks(&entry) {
                    matrix.push_rows(&self.weights.rows(&entry, rows)?);
                }
                Ok(EmbeddingOrHead::Int8(matrix))
            }
        }
    }

    fn norm(&mut self) -> Result<NormWeights, FormatError> {
        let entry = self.next();
        let gain = self.weights.rows(&entry, 0..entry.shape[0])?;
        Ok(NormWeights::new(gain, self.spec.rms_norm_eps))
    }

    fn sub_norm(&mut self) -> Result<Option<NormWeights>, FormatError> {
        if self.spec.sub_norms { self.norm().map(Some) } else { Ok(None) }
    }

    /// The next `count` matrices, one below the other.
    fn ternary(&mut self, count: usize) -> Result<TernaryPanels, FormatError> {
        let matrices: Result<Vec<_>, _> =
            (0..count).map(|_| self.weights.ternary(&self.next())).collect();
        Ok(TernaryPanels::stack(&matrices?))
    }

    /// Fields are read in the order of the forward pass, which is the order of the table.
    fn block(&mut self) -> Result<PackedBlock, FormatError> {
        Ok(PackedBlock {
            heads: Heads::of(self.spec),
            hidden_act: self.spec.hidden_act,
            input_norm: self.norm()?,
            qkv: self.ternary(3)?,
            attn_sub_norm: self.sub_norm()?,
            output: self.ternary(1)?,
            post_attention_norm: self.norm()?,
            gate_up: self.ternary(2)?,
            ffn_sub_norm: self.sub_norm()?,
            down: self.ternary(1)?,
        })
    }
}
