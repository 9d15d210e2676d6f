//! Tokens as the ternary kernels read them: 8-bit codes, padded, with their sums and scales.
//!
//! The quantiser itself is defined in `bitnet_format::quant`; here it runs on many tokens.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use std::ops::Range;

use bitnet_format::quant::ActivationScale;

use crate::Kernel;
use crate::layout::{CHUNK, SimdWork};

/// Quantised tokens `[T, K]`.
///
/// Invariant: columns beyond `K` hold the code 0, and each sum is that of its token's codes.
#[derive(Debug, Default)]
pub struct Activations {
    columns: usize,
    chunks: usize,
    /// `[T, chunks]`
    codes: Vec<[i8; CHUNK]>,
    sums: Vec<i32>,
    scales: Vec<ActivationScale>,
}

/// The sum of some codes.
struct Sum<'a>(&'a [i8]);

impl SimdWork for Sum<'_> {
    type Output = i32;

    #[inline(always)]
    fn run(self) -> i32 {
        self.0.iter().map(|&code| i32::from(code)).sum()
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
        [tokens, columns]: [usize; 2],
        mut fill: impl FnMut(usize, &mut [i8]) -> ActivationScale,
    ) {
        let chunks = columns.div_ceil(CHUNK);
        (self.columns, self.chunks) = (columns, chunks);
        self.codes.resize(tokens * chunks, [0; CHUNK]);
        self.sums.clear();
        self.scales.clear();
        for (token, codes) in self.codes.chunks_exact_mut(chunks).enumerate() {
            let (codes, padding) = codes.as_flattened_mut().split_at_mut(columns);
            padding.fill(0);
            self.scales.push(fill(token, codes));
            self.sums.push(kernel.dispatch(Sum(codes)));
        }
    }

    /// Tokens from their parts: codes `[T, chunks]` with zeros behind the columns, their sums and scales.
    pub(crate) fn from_parts(
        columns: usize,
        codes: Vec<[i8; CHUNK]>,
        sums: Vec<i32>,
        scales: Vec<ActivationScale>,
    ) -> Self {
        let chunks = columns.div_ceil(CHUNK);
        assert!(codes.len() == sums.len() * chunks && scales.len() == sums.len(), "whole tokens");
        Self { columns, chunks, codes, sums, scales }
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

    /// The scale of each token.
    pub(crate) fn scales(&self) -> &[ActivationScale] {
        &self.scales
    }

    /// The padded codes of some tokens, `[count, chunks]`.
    pub(crate) fn chunks_of(&self, tokens: Range<usize>) -> &[[i8; CHUNK]] {
        &self.codes[tokens.start * self.chunks..tokens.end * self.chunks]
    }
}
