//! The initial tensors of a model: new ones, or those of a stored model.

use std::ops::Range;

use bitnet_format::adapter::{Adapter, AdapterKind, LowRankFactor};
use bitnet_format::grouped::GroupedTernary;
use bitnet_format::matrix::Matrix;
use bitnet_format::{
    FormatError, ModelSpec, StoredModel, TensorEntry, TensorRole, TensorSource, tensor_table,
};
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::latents::{FrozenWords, LatentFormat, MappedFiles, MatrixStorage};
use crate::model::fresh::draw;
use crate::model::loaded::{LoadedTensor, LoadedValues};
use crate::model::low_rank::{LoadedFactors, factor_index, initial_factors};
use crate::model::stored_values::StoredValues;
use crate::model::{LanguageModel, LinearWeight, replace_values, values};

impl LanguageModel {
    /// A fresh model: matrices and embedding N(0, `initializer_range`), norms 1. Every tensor has
    /// a random stream of its own, keyed by seed and name.
    pub fn initial(spec: &ModelSpec, seed: u64, device: &Device) -> Self {
        Self::initial_with(spec, seed, device, None.into())
    }

    /// [`LanguageModel::initial`] with its matrices kept as `storage` says.
    pub fn initial_with(
        spec: &ModelSpec,
        seed: u64,
        device: &Device,
        storage: MatrixStorage<'_>,
    ) -> Self {
        let drawn: Result<Self, std::convert::Infallible> =
            Self::with_storage(spec, device, storage, |entry| {
                Ok((draw(spec, entry, seed), linear_form(spec)))
            });
        let Ok(model) = drawn;
        model
    }

    /// A stored model: latents (a checkpoint, a BF16 master), or codes that were quantised before
    /// (a packed folder, a GGUF file, or float matrices that hold only 0 and ±s).
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or holds NaN or infinity.
    pub fn read(model: &StoredModel, device: &Device) -> Result<Self, FormatError> {
        Self::read_noting_zeros(model, device).map(|(model, _)| model)
    }

    /// [`LanguageModel::read`], and the names of the tensors that are all zeros.
    ///
    /// # Errors
    /// As there.
    pub fn read_noting_zeros(
        model: &StoredModel,
        device: &Device,
    ) -> Result<(Self, Vec<String>), FormatError> {
        let mut zeros = Vec::new();
        let read = Self::from_source(model.spec(), device, |entry| {
            let (values, form) = dequantised(model, entry)?;
            // All zeros are normal for biases only.
            let is_suspect =
                entry.role != TensorRole::Bias && values.iter().all(|&value| value == 0.0);
            zeros.extend(is_suspect.then(|| entry.name.clone()));
            Ok::<_, FormatError>((values, form))
        })?;
        Ok((read, zeros))
    }

    /// A stored model, every matrix as latents; and how many of them were ternary already:
    /// these get latents that quantise to the same codes and scale.
    ///
    /// # Errors
    /// As [`LanguageModel::read`]; also when the model is packed, since it no
    /// longer has the latents that training changes.
    pub fn read_for_training(
        model: &StoredModel,
        device: &Device,
    ) -> Result<(Self, usize), FormatError> {
        let start = Self::read_to_start(model, model.spec(), device, None.into(), &mut |_, _| {})?;
        Ok((start.model, start.kept_codes))
    }

    /// [`LanguageModel::read_for_training`] as a model of `spec`. It may have more rows than the stored
    /// one: each is the mean of the stored rows. It may have sub-norms where that has none: their gains are
    /// 1, to be fitted. Its matrices may be ternary where the stored ones are dense; they are kept as
    /// `storage` says. `watch` gets the parameters that were read, and all.
    pub(crate) fn read_to_start(
        model: &StoredModel,
        spec: &ModelSpec,
        device: &Device,
        storage: MatrixStorage<'_>,
        watch: &mut dyn FnMut(usize, usize),
    ) -> Result<StartingModel, FormatError> {
        refuse_packed(model)?;
        let (mut kept_codes, mut all_zero, mut done) = (0, Vec::new(), 0);
        let mut files = MappedFiles::default();
        let trained = Self::from_loaded(spec, device, |index, entry| {
            let is_new = spec.sub_norms && !model.spec().sub_norms && is_sub_norm(entry);
            let read = || if is_new { Ok(ones(entry)) } else { grown(model, entry) };
            let stored = if storage.is_mapped(index) {
                StoredValues::find(&mut files, model, entry, read)?
            } else {
                StoredValues::Read(read()?)
            };
            kept_codes += usize::from(stored.are_codes());
            let is_suspect = entry.role != TensorRole::Bias && stored.are_zero();
            all_zero.extend(is_suspect.then(|| entry.name.clone()));
            done += entry.elements();
            watch(done, spec.parameters());
            let values = match stored {
                StoredValues::Mapped(words) => LoadedValues::frozen(entry, words),
                // Ternary values get latents with the stored scale for absmean: their own would be
                // smaller, by the share of zeros.
                StoredValues::Read(matrix) => {
                    LoadedValues::new(entry, matrix.into_latents(), storage.format(index))
                }
            };
            Ok::<_, FormatError>((values, linear_form(spec)))
        })?;
        Ok(StartingModel { model: trained, kept_codes, all_zero })
    }
}

impl LanguageModel {
    /// A stored model that stays as it is, with the initial factors of an adapter. `watch` gets the
    /// parameters that were read, and all.
    ///
    /// # Errors
    /// For a latent adapter as [`LanguageModel::read_for_training`]; a side adapter takes codes too.
    pub(crate) fn read_adapted(
        model: &StoredModel,
        device: &Device,
        adapter: NewAdapter,
        watch: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, FormatError> {
        refuse_quantiser(model)?;
        if adapter.kind == AdapterKind::Latent {
            refuse_packed(model)?;
        }
        let (spec, mut done) = (model.spec(), 0);
        let mut files = MappedFiles::default();
        Self::with_factors(spec, device, adapter, |entry| {
            done += entry.elements();
            watch(done, spec.parameters());
            let read = || model.matrix(entry);
            if adapter.reads_codes(entry, spec) {
                return Ok(StoredValues::Read(read()?));
            }
            StoredValues::find(&mut files, model, entry, read)
        })
    }

    /// A stored model that stays as it is: BF16 matrices where they lie in their files, ternary ones as
    /// codes. On a device with memory of its own they are tensors.
    ///
    /// # Errors
    /// As [`LanguageModel::read`].
    pub(crate) fn read_frozen(
        model: &StoredModel,
        device: &Device,
        watch: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, FormatError> {
        if !crate::device::runs_native_ops(device) {
            return Self::read(model, device);
        }
        Self::read_adapted(model, device, NewAdapter::NONE, watch)
    }

    /// A model drawn at random that stays as it is, with the initial factors of an adapter.
    pub(crate) fn initial_adapted(spec: &ModelSpec, device: &Device, adapter: NewAdapter) -> Self {
        let drawn: Result<Self, std::convert::Infallible> =
            Self::with_factors(spec, device, adapter, |entry| {
                Ok(StoredValues::Read(Matrix::Latent(draw(spec, entry, adapter.seed))))
            });
        let Ok(model) = drawn;
        model
    }

    /// `source` gives a tensor's values.
    fn with_factors<E>(
        spec: &ModelSpec,
        device: &Device,
        adapter: NewAdapter,
        mut source: impl FnMut(&TensorEntry) -> Result<StoredValues, E>,
    ) -> Result<Self, E> {
        let NewAdapter { adapted, kind, rank, scale, seed } = adapter;
        let mut tensors = Vec::new();
        for entry in tensor_table(spec) {
            let stored = source(&entry)?;
            let values = frozen_values(&entry, stored, adapter.reads_codes(&entry, spec));
            let factors = adapted.contains(&entry).then(|| initial_factors(&entry, rank, seed));
            let adapter = factors.map(|values| LoadedFactors { values, kind, scale });
            // `linear_form` for codes too: the layer takes them as what its latents quantise to.
            tensors.push(LoadedTensor { entry, values, form: linear_form(spec), adapter });
        }
        Ok(Self::assemble(spec, tensors, device))
    }
}

/// The values of a tensor under an adapter: matrices as codes where only these are needed, else mapped
/// where they lie as BF16, else in bf16 where that holds them exactly, else in f32.
fn frozen_values(entry: &TensorEntry, stored: StoredValues, as_codes: bool) -> LoadedValues {
    match stored {
        StoredValues::Mapped(words) => LoadedValues::frozen(entry, words),
        StoredValues::Read(matrix) if as_codes => {
            let (codes, scale) = matrix.quantised();
            LoadedValues::frozen(entry, FrozenWords::ternary(&codes, scale))
        }
        StoredValues::Read(matrix) => {
            let values = matrix.into_latents();
            let format = smallest_exact(&values);
            LoadedValues::new(entry, values, Some(format))
        }
    }
}

/// The adapter that a model gets.
#[derive(Clone, Copy)]
pub(crate) struct NewAdapter<'a> {
    /// The matrices that it changes.
    pub(crate) adapted: &'a [TensorEntry],
    pub(crate) kind: AdapterKind,
    pub(crate) rank: usize,
    /// `B·A` is multiplied by it.
    pub(crate) scale: f32,
    pub(crate) seed: u64,
}

/// The model with the factors that an adapter's file holds.
pub(crate) fn set_factors(model: LanguageModel, adapter: &Adapter) -> LanguageModel {
    let device = model.device().inner();
    let mut values = values(&model);
    let tensor = |values: &[f32]| {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &device)
    };
    for (index, entry) in model.table().iter().enumerate() {
        if let Some(factors) = adapter.of(entry) {
            values[factor_index(index, LowRankFactor::A)] = tensor(&factors.a);
            values[factor_index(index, LowRankFactor::B)] = tensor(&factors.b);
        }
    }
    replace_values(model, values)
}

impl NewAdapter<'_> {
    /// Whether the codes of a matrix are all that is ever read: a side adapter leaves it as it is.
    fn reads_codes(&self, entry: &TensorEntry, spec: &ModelSpec) -> bool {
        self.kind == AdapterKind::Side && entry.is_ternary(spec)
    }

    /// No factors, beside weights that are never updated.
    const NONE: Self = Self { adapted: &[], kind: AdapterKind::Side, rank: 0, scale: 1.0, seed: 0 };
}

/// The format of the fewest bits that holds these values to the bit.
fn smallest_exact(values: &[f32]) -> LatentFormat {
    // The lower half of the bits is 0 in what bf16 holds; of a zero all 32 are.
    let is_bf16 = values.par_iter().all(|value| value.to_bits().trailing_zeros() >= 16);
    if is_bf16 { LatentFormat::Bf16 } else { LatentFormat::F32 }
}

/// A stored model that a run starts from.
pub(crate) struct StartingModel {
    pub(crate) model: LanguageModel,
    /// Matrices that held ternary values already.
    pub(crate) kept_codes: usize,
    /// Tensors that are all zeros.
    pub(crate) all_zero: Vec<String>,
}

/// Refuses models without latents.
fn refuse_packed(model: &StoredModel) -> Result<(), FormatError> {
    if !model.is_packed() {
        return Ok(());
    }
    let path = model.weight_files().into_iter().next().unwrap_or_default();
    let what = "holds packed codes without the latent weights that training changes; \
                expected a checkpoint or a BF16 master"
        .to_owned();
    Err(FormatError::Container { path, what })
}

/// Refuses a model under an adapter whose scales belong to groups of weights, whose embedding is ternary
/// or whose activations are floats.
fn refuse_quantiser(model: &StoredModel) -> Result<(), FormatError> {
    let spec = model.spec();
    if !spec.quantise || spec.has_b158_quantiser() {
        return Ok(());
    }
    let path = model.weight_files().into_iter().next().unwrap_or_default();
    let what = "is quantised in groups, with a ternary embedding or with float activations, which \
                adapters do not compute; expected one scale a matrix, a float embedding and 8-bit \
                activations";
    Err(FormatError::Container { path, what: what.to_owned() })
}

/// A stored tensor to train. Where scales belong to groups a [`TensorSource`] gives codes only, and
/// training needs the latents.
fn trainable(model: &StoredModel, entry: &TensorEntry) -> Result<Matrix, FormatError> {
    let spec = model.spec();
    if entry.group_width(spec).is_none() {
        return model.matrix(entry);
    }
    let latents = model.floats(entry)?;
    // The floats may be dequantised codes; these keep their scales.
    let codes = GroupedTernary::of_dequantised(entry.shape[1], spec.quantiser.group, &latents);
    Ok(codes.map_or(Matrix::Latent(latents), Matrix::Grouped))
}

fn is_sub_norm(entry: &TensorEntry) -> bool {
    entry.name.ends_with("_sub_norm.weight")
}

fn ones(entry: &TensorEntry) -> Matrix {
    Matrix::Latent(vec![1.0; entry.elements()])
}

/// A stored tensor with as many rows as `entry`; those after the stored ones are their mean.
fn grown(model: &StoredModel, entry: &TensorEntry) -> Result<Matrix, FormatError> {
    let stored = model.spec().vocab_size;
    let is_table = matches!(entry.role, TensorRole::Embedding | TensorRole::Head);
    if !is_table || entry.shape[0] <= stored {
        return trainable(model, entry);
    }
    let width = entry.row_length();
    let narrow = TensorEntry { shape: vec![stored, width], ..entry.clone() };
    let mut values = model.floats(&narrow)?;
    let mean = mean_row(&values, width);
    for _ in stored..entry.shape[0] {
        values.extend_from_slice(&mean);
    }
    Ok(Matrix::Latent(values))
}

fn mean_row(values: &[f32], width: usize) -> Vec<f32> {
    // In f64: each sum has as many terms as there are words.
    let mut sums = vec![0.0_f64; width];
    for row in values.chunks(width) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += f64::from(value);
        }
    }
    let rows = (values.len() / width).max(1) as f64;
    sums.into_iter().map(|sum| (sum / rows) as f32).collect()
}

/// The values of a tensor, and how the forward pass uses them.
pub(crate) fn dequantised(
    model: &StoredModel,
    entry: &TensorEntry,
) -> Result<(Vec<f32>, LinearWeight), FormatError> {
    let is_layer = matches!(entry.role, TensorRole::Linear(_));
    Ok(match model.matrix(entry)? {
        Matrix::Latent(values) => (values, linear_form(model.spec())),
        Matrix::Ternary { codes, scale } if is_layer => {
            (codes.into_iter().map(f32::from).collect(), LinearWeight::Frozen(scale))
        }
        // A ternary table is used as floats.
        Matrix::Ternary { codes, scale } => {
            let value = |code| f32::from(code) * scale.multiplier();
            (codes.into_iter().map(value).collect(), LinearWeight::Dense)
        }
        // Values for now: the layer splits them into codes and scales again (`split_groups`).
        Matrix::Grouped(matrix) if is_layer => (matrix.values(), LinearWeight::FrozenGroups),
        Matrix::Grouped(matrix) => (matrix.values(), LinearWeight::Dense),
    })
}

/// Some rows of an embedding or a head as the forward pass uses them: floats, or the values of ternary
/// weights.
pub(crate) fn table_rows(
    model: &StoredModel,
    entry: &TensorEntry,
    rows: Range<usize>,
) -> Result<Vec<f32>, FormatError> {
    if !entry.is_ternary(model.spec()) {
        return model.rows(entry, rows);
    }
    if entry.group_width(model.spec()).is_some() {
        return Ok(model.grouped(entry, rows)?.values());
    }
    // One scale for all: it is not known before all are read.
    let (codes, scale) = model.matrix(entry)?.quantised();
    let codes = &codes[rows.start * entry.shape[1]..rows.end * entry.shape[1]];
    Ok(codes.iter().map(|&code| f32::from(code) * scale.multiplier()).collect())
}

fn linear_form(spec: &ModelSpec) -> LinearWeight {
    if spec.quantise { LinearWeight::Latent } else { LinearWeight::Dense }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::FreshModel;
    use bitnet_format::convert::hf;

    #[test]
    fn rows_behind_the_stored_vocabulary_are_the_mean_of_the_stored_rows() {
        for tied in [true, false] {
            let spec: ModelSpec = toml::from_str(&format!(
                "hidden_size = 8\nintermediate_size = 12\nnum_hidden_layers = 1\n\
                 num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 10\n\
                 tie_word_embeddings = {tied}"
            ))
            .unwrap();
            let dir = tempfile::tempdir().unwrap();
            let fresh = FreshModel::new(spec.clone(), 3);
            hf::write_master(dir.path(), &fresh, &mut |_, _| Ok(())).unwrap();
            let stored = StoredModel::open(dir.path()).unwrap();
            let grown = ModelSpec { vocab_size: 12, ..spec };
            let device = crate::device::cpu();
            let start =
                LanguageModel::read_to_start(&stored, &grown, &device, None.into(), &mut |_, _| {})
                    .unwrap();
            assert_eq!(start.all_zero, Vec::<String>::new());
            let embedding = start.model.model.embed_tokens.weight.val().into_data();
            let values: Vec<f32> = embedding.iter::<f32>().collect();
            let old = stored.floats(&tensor_table(stored.spec())[0]).unwrap();
            assert_eq!(values[..80], old, "what was there stays to the bit");
            let mean = old.iter().step_by(8).map(|&x| f64::from(x)).sum::<f64>() / 10.0;
            assert_eq!((values[80], values[88], values.len()), (mean as f32, mean as f32, 96));
            let head = start.model.lm_head.map(|head| head.weight.val().dims());
            assert_eq!(head, (!tied).then_some([12, 8]));
        }
    }
}
