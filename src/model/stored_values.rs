//! The values of a stored model's tensors: read, or left where they lie in a mapped file.

use bitnet_format::matrix::Matrix;
use bitnet_format::{FormatError, StoredModel, TensorEntry};

use crate::latents::{FrozenWords, MappedFiles};

/// The values of a tensor.
pub(super) enum StoredValues {
    /// In memory.
    Read(Matrix),
    /// Floats in a file.
    Mapped(FrozenWords),
}

impl StoredValues {
    /// A tensor of a stored model: a matrix where it lies, if that is in BF16; else what is `read`.
    pub(super) fn find(
        files: &mut MappedFiles,
        model: &StoredModel,
        entry: &TensorEntry,
        read: impl FnOnce() -> Result<Matrix, FormatError>,
    ) -> Result<Self, FormatError> {
        let place = if entry.shape.len() == 2 { model.bf16_place(entry) } else { None };
        let Some(words) = place.and_then(|(path, bytes)| files.words(&path, bytes)) else {
            return Ok(Self::Read(read()?));
        };
        // An embedding is the largest matrix of most models; as floats it would take twice its file. One
        // that is not finite is read, for the error that names it.
        if !entry.is_ternary(model.spec()) && !words.any(|word| word & 0x7f80 == 0x7f80) {
            return Ok(Self::Mapped(words));
        }
        // Dequantised codes are BF16 too, but as latents they would lose their scale.
        match read()? {
            Matrix::Latent(_) => Ok(Self::Mapped(words)),
            codes => Ok(Self::Read(codes)),
        }
    }

    /// Whether they are ternary codes.
    pub(super) fn are_codes(&self) -> bool {
        matches!(self, Self::Read(matrix) if !matches!(matrix, Matrix::Latent(_)))
    }

    /// Whether all are zero, of what was read as floats too.
    pub(super) fn are_zero(&self) -> bool {
        match self {
            Self::Mapped(words) => !words.any(|word| word & 0x7fff != 0),
            Self::Read(Matrix::Latent(values)) => values.iter().all(|&value| value == 0.0),
            Self::Read(Matrix::Ternary { codes, .. }) => codes.iter().all(|&code| code == 0),
            Self::Read(Matrix::Grouped(matrix)) => matrix.codes().iter().all(|&code| code == 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use bitnet_format::convert::hf;
    use bitnet_format::{ModelSpec, TensorSource, tensor_table};

    use super::*;
    use crate::latents::{LatentFormat, MatrixStorage};
    use crate::model::{FreshModel, LanguageModel};

    #[test]
    fn frozen_matrices_of_a_master_stay_in_its_file() {
        let shape = "hidden_size = 8\nintermediate_size = 12\nnum_hidden_layers = 1\n\
                     num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 10\n";
        let spec: ModelSpec = toml::from_str(shape).unwrap();
        let dir = tempfile::tempdir().unwrap();
        hf::write_master(dir.path(), &FreshModel::new(spec.clone(), 3), &mut |_, _| Ok(()))
            .unwrap();
        let stored = StoredModel::open(dir.path()).unwrap();
        let latents = Some(LatentFormat::Block16);
        // The embedding, which the table begins with.
        let storage = MatrixStorage { latents, frozen: &[true], mapped: true };
        let device = crate::device::cpu();
        let read = |storage| {
            LanguageModel::read_to_start(&stored, &spec, &device, storage, &mut |_, _| {}).unwrap()
        };
        let model = read(storage).model;
        let frozen: Vec<bool> =
            model.outside().iter().flatten().map(|latents| latents.read().is_frozen()).collect();
        assert!(frozen[0] && frozen[1..].iter().all(|frozen| !frozen), "{frozen:?}");
        let embedding = model.outside()[0].as_ref().unwrap().read().all();
        assert_eq!(embedding, stored.floats(&tensor_table(&spec)[0]).unwrap());
        let in_memory = read(MatrixStorage { mapped: false, ..storage }).model;
        assert!(!in_memory.outside()[0].as_ref().unwrap().read().is_frozen());
        assert_eq!(in_memory.outside()[0].as_ref().unwrap().read().all(), embedding);
    }
}
