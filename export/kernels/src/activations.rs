//! Tokens as the ternary kernels read them: 8-bit codes, padded, with their sums and scales.
//!
//! The quantiser itself is defined in `bitnet_format::quant`; here it runs on many tokens.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::ops::Range;

use bitnet_format::quant::ActivationScale;

use crate::Kernel;
use crate::layout::{BLOCK_CHUNKS, CHUNK, LineBuffer, SimdWork, TokenCodes};

/// Quantised tokens `[T, K]`.
///
/// Invariant: columns beyond `K` hold the code 0, and each sum is that of its token's codes.
#[derive(Debug, Default)]
pub struct Activations {
    columns: usize,
    chunks: usize,
    /// `[T, chunks]`
    codes: LineBuffer<[i8; CHUNK]>,
    sums: Vec<i32>,
    /// Σ of each token's codes over 64 columns, `[T, chunks / 4]`, the last perhaps over fewer.
    block_sums: Vec<i32>,
    scales: Vec<ActivationScale>,
}

/// The place of one token among others.
#[derive(Debug)]
pub struct TokenSlot<'a> {
    columns: usize,
    codes: &'a mut [[i8; CHUNK]],
    block_sums: &'a mut [i32],
    sum: &'a mut i32,
    scale: &'a mut ActivationScale,
}

impl TokenSlot<'_> {
    /// Quantises one token `[K]`: see [`Activations::quantise`].
    pub fn quantise(&mut self, kernel: Kernel, row: &[f32]) {
        self.fill(kernel, |codes| kernel.quantise(row, codes));
    }

    fn fill(&mut self, kernel: Kernel, fill: impl FnOnce(&mut [i8]) -> ActivationScale) {
        let (codes, padding) = self.codes.as_flattened_mut().split_at_mut(self.columns);
        // Kernels run over whole chunks. A padded code of 0 adds nothing, whatever the weights
        // there are.
        padding.fill(0);
        *self.scale = fill(codes);
        kernel.dispatch(BlockSums { codes: self.codes, sums: &mut *self.block_sums });
        // Both kinds of sums come from one pass: groups need those of blocks, rows the whole.
        *self.sum = self.block_sums.iter().sum();
    }
}

/// The sums of a token's codes over blocks of 64 columns.
struct BlockSums<'a> {
    codes: &'a [[i8; CHUNK]],
    sums: &'a mut [i32],
}

impl SimdWork for BlockSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (sum, codes) in self.sums.iter_mut().zip(self.codes.chunks(BLOCK_CHUNKS)) {
            *sum = codes.as_flattened().iter().map(|&code| i32::from(code)).sum();
        }
    }
}

impl Activations {
    /// Quantises `x [T, K]`, each token for itself, bit for bit as
    /// [`bitnet_format::quant::quantise_row`] does.
    ///
    /// A NaN does not count for its token's scale and gets the code 0; an infinity makes all
    /// codes of its token 0.
    pub fn quantise(kernel: Kernel, x: &[f32], columns: usize) -> Self {
        let mut activations = Self::default();
        activations.requantise(kernel, x, columns);
        activations
    }

    /// [`Activations::quantise`] into the memory of these.
    pub fn requantise(&mut self, kernel: Kernel, x: &[f32], columns: usize) {
        self.each_token(kernel, x, columns, |row, codes| kernel.quantise(row, codes));
    }

    /// Tokens whose codes `[T, K]` are known, one scale each.
    pub fn from_codes(codes: &[i8], columns: usize, scales: &[ActivationScale]) -> Self {
        let (mut activations, mut next) = (Self::default(), scales.iter());
        activations.each_token(Kernel::Scalar, codes, columns, |source, codes| {
            codes.copy_from_slice(source);
            *next.next().expect("one scale for each token")
        });
        assert_eq!(activations.tokens(), scales.len(), "one scale for each token");
        activations
    }

    fn each_token<X>(
        &mut self,
        kernel: Kernel,
        x: &[X],
        columns: usize,
        mut fill: impl FnMut(&[X], &mut [i8]) -> ActivationScale,
    ) {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "whole tokens of {columns} values");
        self.fill(kernel, [x.len() / columns, columns], |token, codes| {
            fill(&x[token * columns..][..columns], codes)
        });
    }

    /// Quantises each of `[tokens, columns]` by `fill`, which writes its codes and returns their scale.
    pub(crate) fn fill(
        &mut self,
        kernel: Kernel,
        shape: [usize; 2],
        mut fill: impl FnMut(usize, &mut [i8]) -> ActivationScale,
    ) {
        for (token, mut slot) in self.slots(shape).enumerate() {
            slot.fill(kernel, |codes| fill(token, codes));
        }
    }

    /// Makes room for `[tokens, columns]` and lends the place of each token, so that several threads can
    /// quantise them. All of them must be filled.
    pub fn slots(&mut self, [tokens, columns]: [usize; 2]) -> impl Iterator<Item = TokenSlot<'_>> {
        let chunks = columns.div_ceil(CHUNK);
        let blocks = chunks.div_ceil(BLOCK_CHUNKS);
        (self.columns, self.chunks) = (columns, chunks);
        self.codes.resize(tokens * chunks);
        self.block_sums.resize(tokens * blocks, 0);
        self.sums.resize(tokens, 0);
        self.scales.resize(tokens, ActivationScale::ONE);
        let codes = self.codes.chunks_exact_mut(chunks);
        let sums = self.block_sums.chunks_exact_mut(blocks).zip(&mut self.sums);
        let parts = codes.zip(sums).zip(&mut self.scales);
        parts.map(move |((codes, (block_sums, sum)), scale)| TokenSlot {
            columns,
            codes,
            block_sums,
            sum,
            scale,
        })
    }

    /// Tokens from their parts: codes `[T, chunks]` with zeros after the columns, their sums and scales.
    /// They meet matrices with one scale a row only.
    pub(crate) fn from_parts(
        columns: usize,
        codes: LineBuffer<[i8; CHUNK]>,
        sums: Vec<i32>,
        scales: Vec<ActivationScale>,
    ) -> Self {
        let chunks = columns.div_ceil(CHUNK);
        assert!(codes.len() == sums.len() * chunks && scales.len() == sums.len(), "whole tokens");
        Self { columns, chunks, codes, sums, block_sums: Vec::new(), scales }
    }

    /// Number of tokens, `T`.
    pub fn tokens(&self) -> usize {
        self.sums.len()
    }

    /// Number of columns, `K`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The codes of one token `[K]`.
    pub fn codes(&self, token: usize) -> &[i8] {
        &self.chunks_of(token..token + 1).as_flattened()[..self.columns]
    }

    /// The scale of one token.
    pub fn scale(&self, token: usize) -> ActivationScale {
        self.scales[token]
    }

    /// Σ of each token's codes: what the `+ 1` in `u = T + 1` adds to each product.
    pub(crate) fn sums(&self) -> &[i32] {
        &self.sums
    }

    /// [`Activations::sums`] of blocks of 64 columns, `[T, blocks]`.
    pub(crate) fn block_sums(&self) -> &[i32] {
        let blocks = self.tokens() * self.chunks.div_ceil(BLOCK_CHUNKS);
        assert_eq!(self.block_sums.len(), blocks, "activations with the sums of groups");
        &self.block_sums
    }

    /// The codes of some tokens.
    pub(crate) fn token_codes(&self, tokens: Range<usize>) -> TokenCodes<'_> {
        TokenCodes::dense(self.chunks_of(tokens), self.chunks)
    }

    /// The scale of each token.
    pub(crate) fn scales(&self) -> &[ActivationScale] {
        &self.scales
    }

    /// The padded codes of some tokens, `[count, chunks]`.
    pub(crate) fn chunks_of(&self, tokens: Range<usize>) -> &[[i8; CHUNK]] {
        &self.codes[tokens.start * self.chunks..tokens.end * self.chunks]
    }
}
