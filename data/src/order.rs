//! The order of documents in an epoch: a permutation keyed by (seed, set, epoch). The shuffle is
//! implemented here, so that no release of a library changes the data order of a run.

use rand::Rng;

use crate::random;

/// A permutation of `0..count`.
pub(crate) fn permutation(seed: u64, set: &str, epoch: u64, count: usize) -> Vec<usize> {
    let mut rng = random::keyed(seed, &format!("order {set}"), epoch, 0);
    let mut order: Vec<usize> = (0..count).collect();
    // Fisher-Yates.
    for last in (1..count).rev() {
        order.swap(last, below(rng.next_u64(), last + 1));
    }
    order
}

/// Maps a uniform draw to `0..bound`; the bias is below `bound / 2^64`.
fn below(draw: u64, bound: usize) -> usize {
    // Multiply and shift instead of `%`: no division, and one draw for each element whatever it is.
    ((u128::from(draw) * bound as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_frozen() {
        assert_eq!(permutation(1, "general", 0, 8), [0, 1, 4, 2, 3, 5, 7, 6]);
        assert_eq!(permutation(1, "general", 0, 1), [0]);
        assert!(permutation(1, "general", 0, 0).is_empty());
    }

    #[test]
    fn every_part_of_the_key_changes_the_order() {
        let first = permutation(1, "a", 0, 50);
        assert_ne!(first, permutation(2, "a", 0, 50));
        assert_ne!(first, permutation(1, "b", 0, 50));
        assert_ne!(first, permutation(1, "a", 1, 50));
    }

    #[test]
    fn draws_fall_below_the_bound_and_reach_both_ends() {
        assert_eq!(below(0, 7), 0);
        assert_eq!(below(u64::MAX, 7), 6);
        assert_eq!(below(u64::MAX, 1), 0);
    }

    proptest::proptest! {
        #[test]
        fn every_document_comes_once(seed: u64, epoch: u64, count in 0..300_usize) {
            let mut order = permutation(seed, "set", epoch, count);
            order.sort_unstable();
            proptest::prop_assert!(order.into_iter().eq(0..count));
        }
    }
}
