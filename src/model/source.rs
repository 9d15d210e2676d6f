//! The initial tensors of a model: drawn at random, or read from a stored model.

use std::cell::RefCell;
use std::ops::Range;

use bitnet_format::matrix::Matrix;
use bitnet_format::{
    FormatError, ModelSpec, StoredModel, TensorEntry, TensorRole, TensorSource, TensorView,
};
use burn::tensor::Device;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use crate::model::{LanguageModel, LinearWeight};
use crate::random;

impl LanguageModel {
    /// A fresh model: matrices and embedding N(0, `initializer_range`), norms 1. Every tensor has
    /// a random stream of its own, keyed by seed and name.
    pub fn initial(spec: &ModelSpec, seed: u64, device: &Device) -> Self {
        let drawn: Result<Self, std::convert::Infallible> =
            Self::from_source(spec, device, |entry| {
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
        Self::from_source(model.spec(), device, |entry| dequantised(model, entry))
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
        if model.is_packed() {
            let path = model.weight_files().into_iter().next().unwrap_or_default();
            let what = "holds packed codes without the latent weights that training changes; \
                        expected a checkpoint or a BF16 master"
                .to_owned();
            return Err(FormatError::Container { path, what });
        }
        let (spec, mut kept) = (model.spec(), 0);
        let trained = Self::from_source(spec, device, |entry| {
            let matrix = model.matrix(entry)?;
            kept += usize::from(matches!(matrix, Matrix::Ternary { .. }));
            Ok::<_, FormatError>((matrix.into_latents(), linear_form(spec)))
        })?;
        Ok((trained, kept))
    }
}

/// The values of a tensor, and how the forward pass uses them.
pub(crate) fn dequantised(
    model: &StoredModel,
    entry: &TensorEntry,
) -> Result<(Vec<f32>, LinearWeight), FormatError> {
    Ok(match model.matrix(entry)? {
        Matrix::Latent(values) => (values, linear_form(model.spec())),
        Matrix::Ternary { codes, scale } => {
            (codes.into_iter().map(f32::from).collect(), LinearWeight::Frozen(scale))
        }
    })
}

fn linear_form(spec: &ModelSpec) -> LinearWeight {
    if spec.quantise { LinearWeight::Latent } else { LinearWeight::Dense }
}

fn draw(spec: &ModelSpec, entry: &TensorEntry, seed: u64) -> Vec<f32> {
    Stream::of(entry, seed).draw(spec, entry, entry.elements())
}

/// The random values of one tensor, in its order.
struct Stream {
    name: String,
    drawn: usize,
    random: ChaCha8Rng,
}

impl Stream {
    fn of(entry: &TensorEntry, seed: u64) -> Self {
        let random = random::keyed(seed, &entry.name, 0, 0);
        Self { name: entry.name.clone(), drawn: 0, random }
    }

    fn draw(&mut self, spec: &ModelSpec, entry: &TensorEntry, count: usize) -> Vec<f32> {
        self.drawn += count;
        let range = match entry.role {
            TensorRole::Norm => return vec![1.0; count],
            TensorRole::Embedding => spec.embedding_initializer_range,
            TensorRole::Linear(_) | TensorRole::Head => spec.initializer_range,
        };
        let normal = Normal::new(0.0, range as f32).expect("a spec's ranges are finite");
        normal.sample_iter(&mut self.random).take(count).collect()
    }
}

/// The values of [`LanguageModel::initial`] as a source to convert, never in memory as a whole.
pub struct FreshModel {
    spec: ModelSpec,
    seed: u64,
    /// The tensor that is being read, and how far: reading on draws nothing twice.
    stream: RefCell<Option<Stream>>,
}

impl FreshModel {
    /// A fresh model of this shape.
    pub fn new(spec: ModelSpec, seed: u64) -> Self {
        Self { spec, seed, stream: RefCell::new(None) }
    }

    /// Its shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }
}

impl TensorSource for FreshModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn read(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<TensorView, FormatError> {
        let width = entry.row_length();
        let (start, count) = (rows.start * width, rows.len() * width);
        let mut open = self.stream.borrow_mut();
        let here = open.take().filter(|open| open.name == entry.name && open.drawn == start);
        let mut stream = here.unwrap_or_else(|| {
            let mut stream = Stream::of(entry, self.seed);
            stream.draw(&self.spec, entry, start);
            stream
        });
        let values = stream.draw(&self.spec, entry, count);
        *open = Some(stream);
        Ok(TensorView::floats(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_format::tensor_table;

    #[test]
    fn a_fresh_model_read_in_parts_is_the_initial_one() {
        let spec: ModelSpec = toml::from_str(
            "hidden_size = 8\nintermediate_size = 12\nnum_hidden_layers = 1\n\
             num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 10",
        )
        .unwrap();
        let fresh = FreshModel::new(spec.clone(), 3);
        for entry in tensor_table(&spec) {
            let whole = draw(&spec, &entry, 3);
            let (rows, width) = (entry.shape[0], entry.elements() / entry.shape[0]);
            for range in [0..2, 2..rows, 1..4] {
                let part = fresh.rows(&entry, range.clone()).unwrap();
                assert_eq!(part, whole[range.start * width..range.end * width], "{}", entry.name);
            }
        }
    }
}
