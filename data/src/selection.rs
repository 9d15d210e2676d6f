//! Which rows of a set are used: long enough, on one side of a split, and each text once.

use serde::{Deserialize, Serialize};

use crate::held_out::HeldOutShare;

/// What a recipe says of the rows that a set uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowSelection {
    /// Whether rows that say the same as one before, but for white space, are left out.
    pub deduplicated: bool,
    /// One side of a split by hash, where only that is used.
    pub side: Option<SplitSide>,
    /// Characters of the shortest row.
    pub min_chars: u64,
    /// Characters of the longest row, if there is a limit.
    pub max_chars: Option<u64>,
}

/// A side of a split of rows by a hash of what they say.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitSide {
    /// The share of the rows that is held out.
    pub share: f64,
    /// Another seed holds out other rows.
    pub seed: u64,
    /// Whether the rows that are held out are used, instead of the others.
    pub held_out: bool,
}

/// What becomes of a row by its own text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowFate {
    Used,
    Filtered,
    /// It belongs to the other side.
    OtherSide,
}

impl RowSelection {
    /// Whether a row's text has to be looked at.
    pub(crate) fn is_needed(&self) -> bool {
        *self != Self::default()
    }

    pub(crate) fn fate(&self, text: &str) -> RowFate {
        let chars = text.chars().count() as u64;
        if chars < self.min_chars || self.max_chars.is_some_and(|most| chars > most) {
            return RowFate::Filtered;
        }
        let used = |side: &SplitSide| {
            HeldOutShare::new(side.share, side.seed).holds_out(text) == side.held_out
        };
        if self.side.as_ref().is_none_or(used) { RowFate::Used } else { RowFate::OtherSide }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_on_one_side_and_lengths_count_characters() {
        let side = |held_out| RowSelection {
            side: Some(SplitSide { share: 0.3, seed: 1, held_out }),
            ..RowSelection::default()
        };
        for n in 0..200 {
            let text = format!("row {n}");
            let sides = [false, true].map(|held_out| side(held_out).fate(&text) == RowFate::Used);
            assert_ne!(sides[0], sides[1], "{text}");
        }
        let lengths = RowSelection { min_chars: 2, max_chars: Some(3), ..RowSelection::default() };
        let used = ["é", "éé", "abc", "abcd"].map(|text| lengths.fate(text) == RowFate::Used);
        assert_eq!(used, [false, true, true, false]);
        assert!(lengths.is_needed() && !RowSelection::default().is_needed());
    }
}
