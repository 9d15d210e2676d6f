//! Where a model's first tensors come from: drawn, or read from a folder.

use bitnet_format::folder::ModelFolder;
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

    /// The model in a folder: latents (a checkpoint, a BF16 master) or packed codes.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or holds what is not a number.
    pub fn read(folder: &ModelFolder, device: &Device) -> Result<Self, FormatError> {
        let spec = folder.spec();
        Self::from_source(spec, device, |entry| {
            if folder.form() == WeightForm::Latent || !entry.is_ternary(spec) {
                return Ok((folder.floats(entry)?, linear_form(spec)));
            }
            let (packed, scale) = folder.ternary(entry)?;
            let codes = packed.codes().into_iter().map(f32::from).collect();
            Ok((codes, Weight::Frozen(scale)))
        })
    }
}

fn linear_form(spec: &ModelSpec) -> Weight {
    if spec.quantise { Weight::Latent } else { Weight::Dense }
}

fn draw(spec: &ModelSpec, entry: &TensorEntry, seed: u64) -> Vec<f32> {
    if entry.role == Role::Norm {
        return vec![1.0; entry.elements()];
    }
    let normal = Normal::new(0.0, spec.initializer_range as f32)
        .expect("a spec's initializer_range is positive and finite");
    let mut random = random::keyed(seed, &entry.name, 0, 0);
    normal.sample_iter(&mut random).take(entry.elements()).collect()
}
