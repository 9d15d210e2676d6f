//! Where a model's first tensors come from: drawn, or read from a folder.

use bitnet_format::folder::ModelFolder;
use bitnet_format::matrix::Matrix;
use bitnet_format::{FormatError, ModelSpec, Role, TensorEntry, WeightForm};
use burn::tensor::Device;
use rand_distr::{Distribution, Normal};

use crate::model::{LanguageModel, Weight};
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

    /// The model in a folder as it is meant: latents (a checkpoint, a BF16 master), or codes that
    /// were quantised before (a packed folder, or float matrices that hold only 0 and ±s).
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or holds what is not a number.
    pub fn read(folder: &ModelFolder, device: &Device) -> Result<Self, FormatError> {
        let spec = folder.spec();
        Self::from_source(spec, device, |entry| {
            Ok(match folder.matrix(entry)? {
                Matrix::Latent(values) => (values, linear_form(spec)),
                Matrix::Ternary { codes, scale } => {
                    (codes.into_iter().map(f32::from).collect(), Weight::Frozen(scale))
                }
            })
        })
    }

    /// The model in a folder, every matrix as latents; and how many of them were ternary already:
    /// these get latents that quantise to the same codes and scale.
    ///
    /// # Errors
    /// As [`LanguageModel::read`]; also when the folder is packed, since what training changes, the
    /// latents, is gone from it.
    pub fn read_for_training(
        folder: &ModelFolder,
        device: &Device,
    ) -> Result<(Self, usize), FormatError> {
        if folder.form() != WeightForm::Latent {
            let path = folder.weight_files().into_iter().next().unwrap_or_default();
            let what = "holds packed codes without the latent weights that training changes; \
                        expected a checkpoint or a BF16 master"
                .to_owned();
            return Err(FormatError::Container { path, what });
        }
        let (spec, mut kept) = (folder.spec(), 0);
        let model = Self::from_source(spec, device, |entry| {
            let matrix = folder.matrix(entry)?;
            kept += usize::from(matches!(matrix, Matrix::Ternary { .. }));
            Ok::<_, FormatError>((matrix.into_latents(), linear_form(spec)))
        })?;
        Ok((model, kept))
    }
}

fn linear_form(spec: &ModelSpec) -> Weight {
    if spec.quantise { Weight::Latent } else { Weight::Dense }
}

fn draw(spec: &ModelSpec, entry: &TensorEntry, seed: u64) -> Vec<f32> {
    if entry.role == Role::Norm {
        return vec![1.0; entry.elements()];
    }
    let range = match entry.role {
        Role::Embedding => spec.embedding_initializer_range,
        _ => spec.initializer_range,
    };
    let normal =
        Normal::new(0.0, range as f32).expect("a spec's initializer_range is positive and finite");
    let mut random = random::keyed(seed, &entry.name, 0, 0);
    normal.sample_iter(&mut random).take(entry.elements()).collect()
}
