//! Rotary angles of a batch: cosines and sines of its tokens' positions. The angles themselves are
//! `bitnet_format::rope`'s, as in the engine. Where they depend on the length of a sequence, it is that of
//! the token's own document, so that a row does not depend on those beside it.

use std::sync::Arc;

use bitnet_format::ModelSpec;
use bitnet_format::rope::RopeFrequencies;

use crate::model::SegmentStarts;

/// The heads of a model and the rotary frequencies of their components.
#[derive(Clone, Debug)]
pub(crate) struct RopeTable {
    frequencies: RopeFrequencies,
    /// Query heads, key heads, width of a head.
    heads: [usize; 3],
}

impl RopeTable {
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        let heads = [spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim];
        Self { frequencies: RopeFrequencies::of(spec), heads }
    }

    /// Query heads, key heads, width of a head.
    pub(crate) fn heads(&self) -> [usize; 3] {
        self.heads
    }

    /// Cosines and sines of all tokens of a batch, each `[B, T, D/2]`.
    pub(crate) fn cos_sin(&self, segments: &SegmentStarts) -> (Arc<Vec<f32>>, Arc<Vec<f32>>) {
        if self.frequencies.is_dynamic() {
            self.by_document(segments)
        } else {
            self.shared(segments)
        }
    }

    fn by_document(&self, segments: &SegmentStarts) -> (Arc<Vec<f32>>, Arc<Vec<f32>>) {
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        // Documents come in the order of the rows and leave no gap: their angles are `[B, T, D/2]`.
        for length in segments.lengths() {
            let frequencies = self.frequencies.for_length(length);
            for (cos, sin) in (0..length).flat_map(|position| frequencies.at(position)) {
                cosines.push(cos);
                sines.push(sin);
            }
        }
        (Arc::new(cosines), Arc::new(sines))
    }

    fn shared(&self, segments: &SegmentStarts) -> (Arc<Vec<f32>>, Arc<Vec<f32>>) {
        let (positions, pairs) = (&segments.positions(), self.frequencies.pairs());
        // Rows repeat positions, so each is computed once.
        let known = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let table: (Vec<f32>, Vec<f32>) =
            (0..known).flat_map(|position| self.frequencies.at(position)).unzip();
        let gather = |table: &[f32]| {
            let at = |&position: &i32| &table[position as usize * pairs..][..pairs];
            Arc::new(positions.iter().flat_map(at).copied().collect())
        };
        (gather(&table.0), gather(&table.1))
    }
}
