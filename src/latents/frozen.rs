//! Weights that are never updated: those of a model under an adapter, and those that a recipe freezes.
//!
//! BF16 weights stay where they lie, in the mapped file of the model: the system reads a page when it is
//! used and may forget it when memory is short. Codes of a packed model lie in memory, four in a byte.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_format::FileBytes;
use bitnet_format::quant::WeightScale;
use rayon::prelude::*;

use super::codes;

/// How frozen weights are kept.
#[derive(Clone)]
pub(crate) enum FrozenWords {
    /// BF16, little-endian, some bytes of a mapped file.
    Mapped(Arc<FileBytes>, Range<usize>),
    /// Ternary codes with their scale.
    Ternary {
        /// [`codes::pack`]
        packed: Vec<u8>,
        /// What a code is multiplied by.
        scale: WeightScale,
    },
}

impl FrozenWords {
    /// Ternary codes, each in {-1, 0, +1}.
    pub(crate) fn ternary(codes: &[i8], scale: WeightScale) -> Self {
        Self::Ternary { packed: codes::pack(codes), scale }
    }

    /// Whether any word of a mapped matrix passes this test.
    pub(crate) fn any(&self, test: impl Fn(u16) -> bool + Sync) -> bool {
        let Self::Mapped(file, bytes) = self else { return false };
        let (words, _) = file[bytes.clone()].as_chunks();
        words.par_iter().any(|&word| test(u16::from_le_bytes(word)))
    }

    /// Some weights in row-major order.
    #[inline(always)]
    pub(super) fn weights(&self, range: Range<usize>, out: &mut [f32]) {
        match self {
            Self::Mapped(file, bytes) => {
                // Pairs of bytes: a tensor of a file need not be aligned for u16.
                let (words, _) = file[bytes.clone()].as_chunks();
                let value =
                    |&word: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(word)) << 16);
                out.iter_mut().zip(&words[range]).for_each(|(out, word)| *out = value(word));
            }
            Self::Ternary { packed, scale } => {
                let mut codes = vec![0; range.len()];
                codes::unpack(packed, range.start, &mut codes);
                let multiplier = scale.multiplier();
                out.iter_mut()
                    .zip(codes)
                    .for_each(|(out, code)| *out = f32::from(code) * multiplier);
            }
        }
    }

    /// Copies ternary codes from `first` on, where these are kept as codes.
    #[inline(always)]
    pub(super) fn copy_codes(&self, first: usize, out: &mut [i8]) -> bool {
        let Self::Ternary { packed, .. } = self else { return false };
        codes::unpack(packed, first, out);
        true
    }
}

impl std::fmt::Debug for FrozenWords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mapped(_, bytes) => write!(f, "bytes {bytes:?} of a mapped file"),
            Self::Ternary { scale, .. } => write!(f, "ternary codes of scale {scale:?}"),
        }
    }
}

/// Files that are mapped once, however many of their tensors are used.
#[derive(Default)]
pub(crate) struct MappedFiles(BTreeMap<PathBuf, Arc<FileBytes>>);

impl MappedFiles {
    /// The BF16 values in these bytes of a file; `None` where the file cannot be mapped.
    pub(crate) fn words(&mut self, path: &Path, bytes: Range<u64>) -> Option<FrozenWords> {
        if !self.0.contains_key(path) {
            self.0.insert(path.to_owned(), Arc::new(FileBytes::map(path).ok()?));
        }
        let file = self.0[path].clone();
        let bytes = bytes.start as usize..bytes.end as usize;
        // In a file that is too short, slicing would panic in the middle of a step.
        (bytes.end <= file.len()).then_some(FrozenWords::Mapped(file, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latents::{LatentFormat, Latents};
    use bitnet_kernels::Kernel;

    /// What the model reads of them.
    fn read(latents: &Latents) -> (Vec<f32>, f32) {
        let view = latents.read();
        (view.all(), view.scale(Kernel::Scalar).multiplier())
    }

    #[test]
    fn mapped_weights_are_those_in_memory() {
        let values: Vec<f32> = (0..77).map(|i| (i as f32 - 30.0) / 64.0).collect();
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes())
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        fs_err::write(&path, [&[1, 2, 3][..], &bytes].concat()).unwrap();
        let mut files = MappedFiles::default();
        let words = files.words(&path, 3..3 + bytes.len() as u64).unwrap();
        let kept = Latents::new(LatentFormat::Bf16, [7, 11], &values);
        assert_eq!(read(&Latents::frozen([7, 11], words)), read(&kept));
        assert!(files.words(&path, 3..9999).is_none());
        assert!(files.words(&dir.path().join("none"), 0..2).is_none());
    }

    #[test]
    fn codes_keep_their_scale() {
        let codes: Vec<i8> = (0..35).map(|i| (i * 7 % 3) as i8 - 1).collect();
        let scale = WeightScale::from_stored(0.3).unwrap();
        let latents = Latents::frozen([5, 7], FrozenWords::ternary(&codes, scale));
        let (weights, found) = read(&latents);
        assert_eq!(found.to_bits(), 0.3_f32.to_bits());
        let dequantised: Vec<f32> = codes.iter().map(|&code| f32::from(code) * 0.3).collect();
        assert_eq!(weights, dequantised);
        let mut row = [9; 7];
        assert!(latents.read().copy_codes(3, &mut row, Kernel::Scalar));
        assert_eq!(row, codes[21..28]);
    }
}
