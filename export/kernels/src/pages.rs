//! Where keys and values lie in pages of some tokens, which sequences that begin alike can share.
//!
//! ```text
//! one head in a page
//!   keys    block 0: [ k₀[0] … k₁₅[0] | k₀[1] … k₁₅[1] | … | k₀[D-1] … k₁₅[D-1] ]  block 1: …
//!   values  [ v₀[0] … v₀[D-1] pad ] [ v₁[0] … v₁[D-1] pad ] …
//! ```
//!
//! Keys lie transposed in blocks of sixteen tokens, so that a vector holds one element of sixteen
//! keys; values lie token after token, padded to whole vectors.

use std::ops::Range;
use std::sync::Arc;

/// Tokens of a block of keys, and values of a vector.
pub const LANES: usize = 16;

/// Tokens of a page. The values of a page stay in the first cache while all elements of an output pass
/// over them.
pub const PAGE: usize = 64;

/// Blocks of keys in a page.
const BLOCKS: usize = PAGE / LANES;

/// The part of a page that belongs to one head of this width, `D`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLayout {
    /// Width of the head, `D`.
    pub width: usize,
}

impl HeadLayout {
    /// `D`, padded to whole vectors.
    pub fn padded(self) -> usize {
        self.width.next_multiple_of(LANES)
    }

    /// Elements of the part.
    pub fn elements(self) -> usize {
        PAGE * (self.width + self.padded())
    }

    /// The keys of a block, `[D, 16]`.
    pub fn keys(self, block: usize) -> Range<usize> {
        block * LANES * self.width..(block + 1) * LANES * self.width
    }

    /// The values of some tokens, `[T, padded D]`.
    pub fn values(self, tokens: Range<usize>) -> Range<usize> {
        let first = PAGE * self.width;
        first + tokens.start * self.padded()..first + tokens.end * self.padded()
    }
}

/// Keys and values of one head.
#[derive(Clone, Copy, Debug)]
pub struct HeadView<'a, E> {
    /// Pages of [`PAGE`] tokens, oldest first.
    pub pages: &'a [Arc<Vec<E>>],
    /// Where the head's part begins in each of them.
    pub first: usize,
    /// What lies where in the part.
    pub layout: HeadLayout,
}

impl<'a, E> HeadView<'a, E> {
    /// The keys of a block, counted from the first token, `[D, 16]`.
    pub(crate) fn block(&self, block: usize) -> &'a [[E; LANES]] {
        let part = &self.pages[block / BLOCKS][self.first..];
        part[self.layout.keys(block % BLOCKS)].as_chunks().0
    }

    /// The values of a page, `[PAGE, padded D]`.
    pub(crate) fn values(&self, page: usize) -> &'a [E] {
        &self.pages[page][self.first..][self.layout.values(0..PAGE)]
    }
}
