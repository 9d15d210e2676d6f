//! The rotary angles of one pass: cosines and sines of its tokens' positions. The angles themselves
//! are `bitnet_format::rope`'s, as in training. Where they depend on the length of a sequence, it is that
//! of all tokens that one call adds, however they are cut into passes.

use std::ops::Range;

use bitnet_format::rope::{RopeFrequencies, rotate};

/// Cosine and sine for the positions of a pass, each `[T, D/2]`.
#[derive(Debug, Default)]
pub(crate) struct RotaryCache {
    pairs: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl RotaryCache {
    /// Computes runs of positions, each in a sequence of some length; memory is used again.
    pub(crate) fn set(
        &mut self,
        rope: &RopeFrequencies,
        runs: impl Iterator<Item = (Range<usize>, usize)>,
    ) {
        self.pairs = rope.pairs();
        self.cosines.clear();
        self.sines.clear();
        for (positions, length) in runs {
            // Dynamic scaling depends on the length of the whole sequence; other kinds return the
            // same table.
            let rope = rope.for_length(length);
            for (cos, sin) in positions.flat_map(|position| rope.at(position)) {
                self.cosines.push(cos);
                self.sines.push(sin);
            }
        }
    }

    /// Rotates the heads of one token of the pass, `[heads, D]`.
    pub(crate) fn rotate(&self, token: usize, heads: &mut [f32]) {
        let here = token * self.pairs..(token + 1) * self.pairs;
        let (cosines, sines) = (&self.cosines[here.clone()], &self.sines[here]);
        heads.chunks_exact_mut(2 * self.pairs).for_each(|head| rotate(head, cosines, sines, 1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_rotates_by_its_own_position() {
        let rope = RopeFrequencies::new(10_000.0, 4);
        let mut cache = RotaryCache::default();
        cache.set(&rope, [(5..7, 9), (7..8, 8)].into_iter());
        let (mut found, mut expected) = ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]);
        cache.rotate(2, &mut found);
        let (cosines, sines): (Vec<f32>, Vec<f32>) = rope.at(7).unzip();
        rotate(&mut expected, &cosines, &sines, 1.0);
        assert_eq!(found, expected);
        cache.set(&rope, std::iter::once((0..1, 1)));
        let mut head = [1.0, 2.0, 3.0, 4.0];
        cache.rotate(0, &mut head);
        assert_eq!(head, [1.0, 2.0, 3.0, 4.0], "position 0 rotates nothing");
    }
}
