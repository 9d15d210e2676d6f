//! Dispatch to an instruction set: chosen once at run time (`self_test`), then passed along as a value.
//!
//! A new instruction set is a file with the functions of `reference`, a variant here and a line in
//! each match.

use bitnet_format::quant::ActivationScale;
use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
use crate::amx;
#[cfg(target_arch = "x86_64")]
use crate::amx_bf16;
#[cfg(target_arch = "x86_64")]
use crate::avx_vnni;
#[cfg(target_arch = "x86_64")]
use crate::avx2;
#[cfg(target_arch = "x86_64")]
use crate::avx512;
use crate::float_codes::{self, RowValues, TokenFloats};
#[cfg(target_arch = "x86_64")]
use crate::float_codes_x86;
use crate::gemm::{Operands, Tile, WordFormat, scalar_tile};
use crate::groups::{GroupTile, GroupedPair, TokenGroups, each_group};
use crate::layout::{
    CHUNK, INT8_ROWS, Line, PairChunk, ROWS_PER_PAIR, RescaleTerms, SimdWork, TokenCodes,
};
#[cfg(target_arch = "aarch64")]
use crate::neon;
use crate::pack::{PackWork, PortablePack};
#[cfg(target_arch = "x86_64")]
use crate::prefetch;
use crate::reference;

/// What a thread holds from one tile to the next: to cut registers takes as long as some products.
#[derive(Default)]
pub(crate) struct HeldTiles {
    /// Tile registers, as the last product needed them.
    #[cfg(target_arch = "x86_64")]
    tiles: Option<amx::Tiles>,
}

/// An instruction set. All of them give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kernel {
    /// Plain Rust: the reference for the others, and the fallback everywhere.
    Scalar,
    /// 256-bit integer instructions, on every x86-64 CPU since about 2015. Using it on a CPU
    /// without them panics.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 256-bit dot products of bytes (AVX-VNNI). Using it on a CPU without them panics.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// 512-bit dot products of bytes (VNNI). Using it on a CPU without them panics.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// Products of whole tiles of bytes (AMX) where several tokens meet a matrix, and those of
    /// [`Kernel::Avx512Vnni`] elsewhere. Using it on a CPU without them panics.
    #[cfg(target_arch = "x86_64")]
    AmxInt8,
    /// 128-bit dot products of bytes (`sdot`). Using it on a CPU without them panics.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
}

impl Kernel {
    /// All kernels this CPU runs, slowest first.
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        prefetch::choose();
        [
            Some(Self::Scalar),
            #[cfg(target_arch = "x86_64")]
            avx2::is_available().then_some(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            avx_vnni::is_available().then_some(Self::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            avx512::is_available().then_some(Self::Avx512Vnni),
            #[cfg(target_arch = "x86_64")]
            amx::is_available().then_some(Self::AmxInt8),
            #[cfg(target_arch = "aarch64")]
            neon::is_available().then_some(Self::NeonDotprod),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The available kernel of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|kernel| kernel.name() == name)
    }

    /// `"scalar"`, `"avx2"`, `"avx-vnni"`, `"avx512-vnni"`, `"amx-int8"`, `"neon-dotprod"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8 => "amx-int8",
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => "neon-dotprod",
        }
    }

    /// Tokens that should meet a matrix together where there are many: whole tiles, and as many of them as
    /// make up for what is done once for all.
    pub fn tokens_together(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8 => 64, // all codes are unpacked before
            _ => 8,
        }
    }

    /// `Σ w·x` of two vectors of one length, in f32: 32 interleaved lanes, each product rounded
    /// before it is added, the rest into the first lanes, then halves added to halves.
    pub fn dot(self, w: &[f32], x: &[f32]) -> f32 {
        match self {
            Self::Scalar => reference::dot(w, x),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => reference::dot(w, x),
            #[cfg(target_arch = "x86_64")]
            // One order of sums on all of x86-64, so AVX-512 runs the 256-bit code too.
            Self::Avx2 | Self::AvxVnni | Self::Avx512Vnni | Self::AmxInt8 => avx2::dot(w, x),
        }
    }

    /// [`Kernel::dot`] with weights in BF16, which convert to f32 exactly.
    pub fn dot_bf16(self, w: &[bf16], x: &[f32]) -> f32 {
        match self {
            Self::Scalar => reference::dot(w, x),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => reference::dot(w, x),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni | Self::Avx512Vnni | Self::AmxInt8 => avx2::dot_bf16(w, x),
        }
    }

    /// [`Kernel::dot`] with weights in F16, which convert to f32 exactly.
    pub fn dot_f16(self, w: &[f16], x: &[f32]) -> f32 {
        match self {
            Self::Scalar => reference::dot(w, x),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => reference::dot(w, x),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni | Self::Avx512Vnni | Self::AmxInt8 => avx2::dot_f16(w, x),
        }
    }

    /// `sums [t][row]` = `Σ u·q` over a pair of panels `[chunks]` and tokens `[t, chunks]`.
    pub(crate) fn tile(
        self,
        held: &mut HeldTiles,
        pair: &[PairChunk],
        tokens: TokenCodes,
        sums: &mut [[i32; ROWS_PER_PAIR]],
    ) {
        let _ = &held;
        match self {
            Self::Scalar => reference::tile(pair, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::tile(pair, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => avx_vnni::tile(pair, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => avx512::tile(pair, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8 if sums.len() >= amx::FEWEST_TOKENS => {
                amx::tile(&mut held.tiles, pair, tokens, sums);
            }
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8 => avx512::tile(pair, tokens, sums),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => neon::tile(pair, tokens, sums),
        }
    }

    /// The products of a pair of panels with groups, `acc += d · (a · s)` a group ([`each_group`]).
    pub(crate) fn grouped(
        self,
        held: &mut HeldTiles,
        pair: GroupedPair,
        tokens: TokenGroups,
        tile: GroupTile,
    ) {
        let _ = &held;
        match self {
            Self::Scalar => each_group(pair, tokens, tile, reference::tile),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::grouped(pair, tokens, tile),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => avx_vnni::grouped(pair, tokens, tile),
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8 if tile.sums.len() >= amx::FEWEST_TOKENS => {
                amx::grouped(&mut held.tiles, pair, tokens, tile);
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni | Self::AmxInt8 => avx512::grouped(pair, tokens, tile),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => neon::grouped(pair, tokens, tile),
        }
    }

    /// `sums [t][row]` = `Σ T·x` over a block of a pair of panels and float tokens ([`float_codes`]).
    pub(crate) fn code_sums(
        self,
        block: &[PairChunk],
        tokens: TokenFloats,
        sums: &mut [RowValues],
    ) {
        match self {
            Self::Scalar => float_codes::reference(block, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni => float_codes_x86::sums_avx2(block, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni | Self::AmxInt8 => float_codes_x86::sums_avx512(block, tokens, sums),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => float_codes::reference(block, tokens, sums),
        }
    }

    /// `sums [panel][t][row]` = `Σ u·q` of one or two 8-bit panels `[quads]`, one after the other, with
    /// tokens `[t, chunks]`.
    pub(crate) fn int8_tiles(
        self,
        held: &mut HeldTiles,
        panels: &[Line],
        quads: usize,
        tokens: &[[i8; CHUNK]],
        sums: &mut [[i32; INT8_ROWS]],
    ) {
        let _ = &held;
        let count = sums.len() * quads / panels.len();
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::AmxInt8 if count >= amx::FEWEST_TOKENS => {
                amx::int8_tiles(&mut held.tiles, panels, quads, tokens, sums);
            }
            _ => {
                let parts = panels.chunks_exact(quads).zip(sums.chunks_exact_mut(count));
                parts.for_each(|(panel, sums)| self.int8_tile(panel, tokens, sums));
            }
        }
    }

    /// `sums [t][row]` = `Σ u·q` of the 16 rows of an 8-bit panel `[K/4]` with tokens `[t, chunks]`.
    fn int8_tile(self, panel: &[Line], tokens: &[[i8; CHUNK]], sums: &mut [[i32; INT8_ROWS]]) {
        match self {
            Self::Scalar => reference::int8_tile(panel, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::int8_tile(panel, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => avx_vnni::int8_tile(panel, tokens, sums),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni | Self::AmxInt8 => avx512::int8_tile(panel, tokens, sums),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => neon::int8_tile(panel, tokens, sums),
        }
    }

    /// `out` = `(sums - offset) · weights / scale`, in this order, for each token.
    pub(crate) fn rescale<const R: usize>(
        self,
        sums: &[[i32; R]],
        terms: RescaleTerms,
        out: &mut [f32],
    ) {
        match self {
            Self::Scalar => terms.each_token(sums, out, reference::rescale),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni => avx2::rescale(sums, terms, out),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => terms.each_token(sums, out, reference::rescale),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni | Self::AmxInt8 => avx512::rescale(sums, terms, out),
        }
    }

    /// Whether a word of two bf16 is one instruction's operand, and the sums have this order.
    pub(crate) fn multiplies_pairs(self, operands: Operands) -> bool {
        match (self, operands) {
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512Vnni | Self::AmxInt8, Operands::Bf16) => avx512::has_bf16(),
            #[cfg(target_arch = "x86_64")]
            (Self::AmxInt8, Operands::Bf16Tiles) => amx_bf16::is_available(),
            _ => false,
        }
    }

    /// Whether products in [`Operands::Bf16Tiles`] are much faster than others in bf16.
    pub fn has_bf16_tiles(self) -> bool {
        self.multiplies_pairs(Operands::Bf16Tiles)
    }

    /// Gets ready for some [`Kernel::float_tile`] with such words.
    pub(crate) fn float_tiles(self, format: WordFormat) -> HeldTiles {
        let _ = format;
        HeldTiles {
            #[cfg(target_arch = "x86_64")]
            tiles: (self == Self::AmxInt8 && format.in_tiles()).then(amx::Tiles::whole),
        }
    }

    /// Adds a strip's products with a panel to `sums`, a row every `stride`.
    pub(crate) fn float_tile(self, ready: &HeldTiles, tile: Tile, sums: &mut [f32], stride: usize) {
        let _ = ready;
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = &ready.tiles {
            return amx_bf16::float_tile(tile, tiles, sums, stride);
        }
        match self {
            Self::Scalar => scalar_tile(tile, sums, stride),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni => avx2::float_tile(tile, sums, stride),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni | Self::AmxInt8 => avx512::float_tile(tile, sums, stride),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => scalar_tile(tile, sums, stride),
        }
    }

    /// Runs `work`, compiled with this kernel's instructions. The result has the same bits.
    pub fn dispatch<W: SimdWork>(self, work: W) -> W::Output {
        match self {
            Self::Scalar => work.run(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni => avx2::dispatch(work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni | Self::AmxInt8 => avx512::dispatch(work),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => work.run(),
        }
    }

    /// Packs operands of float products, with an instruction for pairs of bf16 where there is one.
    pub(crate) fn packed<W: PackWork>(self, work: W) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni | Self::AmxInt8 if avx512::has_bf16() => avx512::packed(work),
            _ => self.dispatch(PortablePack(work)),
        }
    }

    /// One token's codes and scale.
    pub(crate) fn quantise(self, row: &[f32], codes: &mut [i8]) -> ActivationScale {
        match self {
            Self::Scalar => bitnet_format::quant::quantise_row(row, codes),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => bitnet_format::quant::quantise_row(row, codes),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 | Self::AvxVnni | Self::Avx512Vnni | Self::AmxInt8 => {
                avx2::quantise(row, codes)
            }
        }
    }
}
