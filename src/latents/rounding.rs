//! Random bits for stochastic rounding: a pure function of (seed, update, tensor, index), so neither
//! threads nor resuming change a bit.
//!
//! Blake3 keys a stream for each chunk of a tensor; within a chunk a mixer turns the place of an element
//! into its bits ([`RandomBits`]).

use bitnet_kernels::RandomBits;

/// The streams of one tensor in one update.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundingKey([u8; 32]);

impl RoundingKey {
    /// `update` counts the updates that a run has made, `tensor` is a place in the tensor table.
    pub(crate) fn new(seed: u64, update: u64, tensor: usize) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("bitnet-train stochastic rounding v1");
        for part in [seed, update, tensor as u64] {
            hasher.update(&part.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }

    pub(crate) fn chunk(self, chunk: usize) -> RandomBits {
        let hash = blake3::keyed_hash(&self.0, &(chunk as u64).to_le_bytes());
        let word = |at: usize| {
            let bytes = hash.as_bytes()[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes)
        };
        RandomBits::new(word(0), word(4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_frozen_uniform_and_differ_by_every_part_of_the_key() {
        let key = |seed, update, tensor, chunk| RoundingKey::new(seed, update, tensor).chunk(chunk);
        let draw = |key: RandomBits| (0..4096).map(|index| key.bits(index)).collect::<Vec<_>>();
        let first = draw(key(1, 2, 3, 4));
        assert_eq!(first, draw(key(1, 2, 3, 4)));
        for other in [key(0, 2, 3, 4), key(1, 0, 3, 4), key(1, 2, 0, 4), key(1, 2, 3, 0)] {
            let same = draw(other).iter().zip(&first).filter(|(a, b)| a == b).count();
            assert!(same < 8, "{same} of 4096 draws of 16 bits agree");
        }
        // Four standard deviations of a mean of uniform numbers.
        let mean = first.iter().map(|&bits| f64::from(bits)).sum::<f64>() / 4096.0 / 65536.0;
        assert!((mean - 0.5).abs() < 4.0 * (1.0f64 / 12.0 / 4096.0).sqrt(), "{mean}");
        let pairs = first.iter().zip(&first[1..]);
        let product = |(a, b): (&u32, &u32)| {
            (f64::from(*a) / 65536.0 - 0.5) * (f64::from(*b) / 65536.0 - 0.5)
        };
        let correlation = 12.0 * pairs.map(product).sum::<f64>() / 4095.0;
        assert!(correlation.abs() < 4.0 / 64.0, "{correlation}");
    }
}
