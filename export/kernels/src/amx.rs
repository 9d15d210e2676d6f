//! Kernels for CPUs with tiles of bytes (Intel AMX: Xeon since Sapphire Rapids). One instruction multiplies
//! sixteen tokens with sixteen rows over 64 columns; fewer than twelve tokens and everything else are `avx512`'s.
//!
//! ```text
//!                          B0: 16 quads x 16 rows   B1: the next 16 rows
//!                          4 columns of each row in a lane
//! A0: 16 tokens x 64 codes      C0  += A0 · B0           C1
//! A1: 16 tokens x 64 codes      C2                       C3          sums in i32, exact
//! ```
//!
//! Four tiles are loaded for four products, which is what the first cache can bring. An 8-bit panel is a
//! stack of such B already; ternary codes are unpacked into some, a block of columns at a time, which all
//! tokens of the call then meet.
#![expect(unsafe_code, reason = "functions of an instruction set are called")]

mod codes;
mod cpu;
mod grouped;
mod tiles;

use crate::avx512;
use crate::groups::{GroupTile, GroupedPair, TokenGroups};
use crate::layout::{BLOCK_CHUNKS, CHUNK, INT8_ROWS, Line, PairChunk, ROWS_PER_PAIR, TokenCodes};
use crate::reference::chunks_of;

use codes::{CODES, STEPS, unpack};
pub(crate) use cpu::{AMX_BF16, has, is_available};
pub(crate) use tiles::Tiles;
use tiles::{GROUP, QUADS, Sums};

/// Fewer tokens are faster without tiles, for which all codes are unpacked first.
pub(crate) const FEWEST_TOKENS: usize = 12;

/// `sums [t][row]` = `Σ u·q` over a pair of panels `[chunks]` and tokens `[t, chunks]`.
pub(crate) fn tile(
    held: &mut Option<Tiles>,
    pair: &[PairChunk],
    tokens: TokenCodes,
    sums: &mut [[i32; ROWS_PER_PAIR]],
) {
    assert!(is_available(), "this CPU has no AMX");
    tokens.check(sums.len(), pair.len());
    // What fills no tile comes first and begins the sums.
    let whole = pair.len() / BLOCK_CHUNKS * BLOCK_CHUNKS;
    let mut fresh = whole > 0 && whole == pair.len();
    if !fresh {
        avx512::tile(&pair[whole..], tokens.behind(0, whole), sums);
    }
    CODES.with_borrow_mut(|codes| {
        for (block, chunks) in pair[..whole].chunks(STEPS * BLOCK_CHUNKS).enumerate() {
            // SAFETY: AVX-512 is there where tiles are.
            unsafe { unpack::<false>(chunks, codes.each_mut().map(|codes| &mut codes[..])) };
            let panels = codes.each_ref().map(|codes| &codes[..4 * chunks.len()]);
            let tokens = tokens.behind(0, block * STEPS * BLOCK_CHUNKS);
            for (group, sums) in sums.chunks_mut(GROUP).enumerate() {
                let tiles = Tiles::recut(held, sums.len());
                let places = sums.as_flattened_mut();
                let sums = Sums { places, fresh, second: INT8_ROWS, stride: ROWS_PER_PAIR };
                tiles.products::<false>(tokens.behind(group * GROUP, 0), panels, sums);
            }
            fresh = false;
        }
    });
}

/// [`each_group`](crate::groups::each_group) of a pair of panels: the groups of a block of columns are unpacked together, and the
/// sums of a group go from the tiles to the results while they are in the first cache.
pub(crate) fn grouped(
    held: &mut Option<Tiles>,
    pair: GroupedPair,
    tokens: TokenGroups,
    tile: GroupTile,
) {
    assert!(is_available(), "this CPU has no AMX");
    // SAFETY: AVX-512 is there where tiles are.
    unsafe { grouped::products(held, pair, tokens, tile) }
}

/// `sums [panel][t][row]` = `Σ u·q` of one or two 8-bit panels `[quads]`, one after the other, with tokens
/// `[t, chunks]`.
pub(crate) fn int8_tiles(
    held: &mut Option<Tiles>,
    panels: &[Line],
    quads: usize,
    tokens: &[[i8; CHUNK]],
    sums: &mut [[i32; INT8_ROWS]],
) {
    let first = &panels[..quads];
    let count = sums.len() / (panels.len() / quads);
    // A second panel that is not there is the first once more, its sums in the same places.
    let (second, behind) = match &panels[quads..] {
        [] => (first, 0),
        second => (second, count * INT8_ROWS),
    };
    let width = chunks_of(first, tokens, count);
    let (tokens, whole) = (TokenCodes::dense(tokens, width), quads / QUADS * QUADS);
    let places = sums.as_flattened_mut();
    for at in (0..count).step_by(GROUP) {
        let tiles = Tiles::recut(held, GROUP.min(count - at));
        let mut add = |tokens, panels, fresh| {
            let places = &mut places[at * INT8_ROWS..];
            tiles.products::<false>(
                tokens,
                panels,
                Sums { places, fresh, second: behind, stride: INT8_ROWS },
            );
        };
        let tokens = tokens.behind(at, 0);
        if whole > 0 {
            add(tokens, [&first[..whole], &second[..whole]], true);
        }
        if whole < quads {
            // What fills no step, with zeros up to one.
            let mut codes = [[[0; CHUNK]; BLOCK_CHUNKS]; GROUP];
            for (token, codes) in codes[..tiles.tokens()].iter_mut().enumerate() {
                let rest = &tokens.of(token, width)[whole / BLOCK_CHUNKS..];
                codes[..rest.len()].copy_from_slice(rest);
            }
            let padded = [first, second].map(|panel| {
                let mut lines = [Line([0; 64]); QUADS];
                lines[..quads - whole].copy_from_slice(&panel[whole..]);
                lines
            });
            let codes = TokenCodes::dense(codes.as_flattened(), BLOCK_CHUNKS);
            add(codes, [&padded[0], &padded[1]], whole == 0);
        }
    }
}
