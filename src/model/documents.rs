//! Where the documents of each row begin. Documents cross every boundary of this crate as the
//! start of each token's segment, never as a `[T, T]` mask; attention makes the mask itself.

use std::sync::Arc;

/// The segment structure of a batch of rows.
#[derive(Clone, Debug)]
pub struct Documents {
    /// For each token `[B, T]` the index in its row where its document begins.
    starts: Arc<Vec<i32>>,
    batch: usize,
    time: usize,
}

impl Documents {
    /// Every row is one document from its first token on.
    pub fn whole_rows(batch: usize, time: usize) -> Self {
        Self { starts: Arc::new(vec![0; batch * time]), batch, time }
    }

    /// From the start of each token's document, `[B, T]` row-major.
    ///
    /// # Panics
    /// When a document would start after its own token.
    pub fn from_starts(batch: usize, time: usize, starts: Vec<i32>) -> Self {
        assert_eq!(starts.len(), batch * time, "one start for each token");
        let sound = |(i, &start): (usize, &i32)| start >= 0 && start as usize <= i % time;
        assert!(starts.iter().enumerate().all(sound), "a document starts at or before its tokens");
        Self { starts: Arc::new(starts), batch, time }
    }

    /// `[B, T]`
    pub fn dims(&self) -> [usize; 2] {
        [self.batch, self.time]
    }

    /// Position of each token in its document, `[B·T]`.
    pub(crate) fn positions(&self) -> Vec<i32> {
        let place = |(i, start): (usize, &i32)| (i % self.time) as i32 - start;
        self.starts.iter().enumerate().map(place).collect()
    }

    /// Where each token's document begins in its row, `[B, T]`.
    pub(crate) fn starts(&self) -> Arc<Vec<i32>> {
        Arc::clone(&self.starts)
    }
}
