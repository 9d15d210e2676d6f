//! Where the documents of each sequence begin. A batch carries the start of each token's document
//! instead of a `[T, T]` mask, which is smaller by a factor of `T`; attention makes the mask itself.
//!
//! ```text
//! tokens      A A A B B C        one packed sequence of three documents
//! starts      0 0 0 3 3 5
//! positions   0 1 2 0 1 0        token index − start, for the rotary embedding
//! ```

use std::sync::Arc;

/// The start of each token's document, for a batch of sequences.
#[derive(Clone, Debug)]
pub struct SegmentStarts {
    /// Index in the sequence, `[B, T]`.
    starts: Arc<Vec<i32>>,
    batch: usize,
    time: usize,
}

impl SegmentStarts {
    /// Each sequence is one document.
    pub fn whole_rows(batch: usize, time: usize) -> Self {
        Self { starts: Arc::new(vec![0; batch * time]), batch, time }
    }

    /// From the start of each token's document, `[B, T]` row-major.
    ///
    /// # Panics
    /// When a document would start after its own token.
    pub fn new(batch: usize, time: usize, starts: Vec<i32>) -> Self {
        assert_eq!(starts.len(), batch * time, "one start for each token");
        let valid = |(i, &start): (usize, &i32)| start >= 0 && start as usize <= i % time;
        assert!(starts.iter().enumerate().all(valid), "a document starts at or before its tokens");
        Self { starts: Arc::new(starts), batch, time }
    }

    /// `[B, T]`
    pub fn dims(&self) -> [usize; 2] {
        [self.batch, self.time]
    }

    /// Position of each token in its document, `[B·T]`.
    pub(crate) fn positions(&self) -> Vec<i32> {
        let position = |(i, start): (usize, &i32)| (i % self.time) as i32 - start;
        self.starts.iter().enumerate().map(position).collect()
    }

    /// Tokens of each document, in the order of the rows.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        let mut lengths: Vec<usize> = Vec::new();
        for position in self.positions() {
            // A row begins with position 0 too, so no document runs on into the next.
            match lengths.last_mut().filter(|_| position > 0) {
                Some(length) => *length += 1,
                None => lengths.push(1),
            }
        }
        lengths
    }

    /// Start of each token's document, `[B, T]`.
    pub(crate) fn starts(&self) -> Arc<Vec<i32>> {
        Arc::clone(&self.starts)
    }
}
