//! The share of the rows that is held out, by a hash of what they say.

use super::normal::spaced;

/// Holds out rows whose hash falls into a share. A row stays on its side when rows are added or
/// reordered, and equal texts are on one side.
#[derive(Clone, Copy, Debug)]
pub struct HeldOutShare {
    /// Hashes below this are held out.
    limit: u64,
    seed: u64,
}

impl HeldOutShare {
    /// Holds out about this share of the rows, from 0 to 1; each seed chooses others.
    pub fn new(share: f64, seed: u64) -> Self {
        Self { limit: (share * 2f64.powi(64)) as u64, seed }
    }

    /// Whether a text is held out.
    pub fn holds_out(&self, text: &str) -> bool {
        let mut hasher = blake3::Hasher::new_derive_key("bitnet-train held-out rows");
        hasher.update(&self.seed.to_le_bytes());
        // White space as duplicates have it: two rows that count as equal must not part here.
        hasher.update(spaced(text).as_bytes());
        let first: [u8; 8] = hasher.finalize().as_bytes()[..8].try_into().expect("32 bytes");
        u64::from_le_bytes(first) < self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_the_share_is_held_out_and_equal_texts_stay_together() {
        let share = HeldOutShare::new(0.1, 1);
        let held = |share: &HeldOutShare| {
            (0..20_000).filter(|n| share.holds_out(&format!("row {n}"))).collect::<Vec<_>>()
        };
        assert!((1_800..2_200).contains(&held(&share).len()), "{}", held(&share).len());
        assert_ne!(held(&share), held(&HeldOutShare::new(0.1, 2)));
        let nested = held(&HeldOutShare::new(0.2, 1));
        assert!(held(&share).iter().all(|row| nested.contains(row)));
        assert_eq!(share.holds_out("a  b\n"), share.holds_out("a b"));
        assert!(!HeldOutShare::new(0.0, 1).holds_out("a"));
    }
}
