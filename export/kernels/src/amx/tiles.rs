//! Tile registers and the loop that multiplies in them.
#![expect(unsafe_code, reason = "tiles are reached by instructions alone")]

use std::arch::asm;

use super::cpu::is_available;
use crate::layout::{BLOCK_CHUNKS, CHUNK, INT8_ROWS, Line, TokenCodes};

/// Tokens of a tile.
const TOKENS: usize = 16;

/// Tokens that are multiplied together.
pub(super) const GROUP: usize = 2 * TOKENS;

/// Lines of a B tile: 64 columns.
pub(super) const QUADS: usize = 16;

/// How the registers are cut (`LDTILECFG`).
#[derive(Default)]
#[repr(C, align(64))]
struct TileShapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Tile registers of this thread, cut for some tokens; given back when dropped.
pub(crate) struct Tiles {
    tokens: usize,
}

/// Where the products of some tokens with two panels go.
pub(super) struct Sums<'a> {
    pub(super) places: &'a mut [i32],
    /// Whether they replace what is there; they are added to it else.
    pub(super) fresh: bool,
    /// Where those of the second panel begin.
    pub(super) second: usize,
    /// Places from one token to the next.
    pub(super) stride: usize,
}

impl Tiles {
    /// Those in use, if they are cut for as many tokens; new ones else.
    pub(super) fn recut(tiles: &mut Option<Self>, tokens: usize) -> &Self {
        if tiles.as_ref().is_none_or(|tiles| tiles.tokens != tokens) {
            *tiles = None; // given back before others are taken
        }
        tiles.get_or_insert_with(|| Self::for_tokens(tokens))
    }

    /// All of 16 rows.
    pub(crate) fn whole() -> Self {
        Self::for_tokens(GROUP)
    }

    /// Whether they are.
    pub(crate) fn are_whole(&self) -> bool {
        self.tokens == GROUP
    }

    fn for_tokens(tokens: usize) -> Self {
        assert!(is_available(), "this CPU has no AMX");
        assert!((1..=GROUP).contains(&tokens), "one or two tiles of tokens");
        // A second A that is not there has one row: an instruction takes as long as it has rows.
        let [a0, a1] = [tokens.min(TOKENS), tokens.saturating_sub(TOKENS).max(1)];
        let rows = [a0, a0, a1, a1, a0, a1, QUADS, QUADS].map(|rows| rows as u8);
        let mut shapes = TileShapes { palette: 1, ..TileShapes::default() };
        shapes.rows[..8].copy_from_slice(&rows);
        shapes.row_bytes[..8].fill(64);
        // SAFETY: the instructions are there, asserted above; 64 bytes are read.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
        Self { tokens }
    }

    /// How many tokens they are cut for.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// `Σ u·q` of tokens `[t, 4 · steps chunks]` and two panels `[16 · steps]`.
    pub(super) fn products<const SIGNED: bool>(
        &self,
        tokens: TokenCodes,
        panels: [&[Line]; 2],
        sums: Sums,
    ) {
        let steps = panels[0].len() / QUADS;
        tokens.check(self.tokens, BLOCK_CHUNKS * steps);
        assert!(panels.iter().all(|panel| panel.len() == QUADS * steps), "panels of whole steps");
        let Sums { places, fresh, second, stride } = sums;
        let needed = second + (self.tokens - 1) * stride + INT8_ROWS;
        assert!(places.len() >= needed, "a place for each product");
        assert!(steps > 0, "panels of some steps");
        let (codes, places) = (tokens.chunks.as_ptr(), places.as_mut_ptr());
        let mut nothing = [0i32; INT8_ROWS];
        // SAFETY: the tiles were cut for as many tokens as the checks above ask room for.
        unsafe {
            let (mut a1, mut c2, mut c3) = (codes, nothing.as_mut_ptr(), nothing.as_mut_ptr());
            if self.tokens > TOKENS {
                a1 = codes.add(TOKENS * tokens.stride);
                c2 = places.add(TOKENS * stride);
                c3 = c2.add(second);
            }
            macro_rules! multiply {
                ($multiply:literal) => {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "test {fresh:e}, {fresh:e}",
                        "jnz 2f",
                        "tileloadd tmm0, [{c0} + {sums}]",
                        "tileloadd tmm1, [{c1} + {sums}]",
                        "tileloadd tmm2, [{c2} + {sums}]",
                        "tileloadd tmm3, [{c3} + {sums}]",
                        ".p2align 6",
                        "2:",
                        "tileloadd tmm4, [{a0} + {codes}]",
                        "tileloadd tmm6, [{b0} + {line}]",
                        concat!($multiply, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm7, [{b1} + {line}]",
                        concat!($multiply, " tmm1, tmm4, tmm7"),
                        "tileloadd tmm5, [{a1} + {codes}]",
                        concat!($multiply, " tmm2, tmm5, tmm6"),
                        concat!($multiply, " tmm3, tmm5, tmm7"),
                        "add {a0}, 64",
                        "add {a1}, 64",
                        "add {b0}, 1024",
                        "add {b1}, 1024",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{c0} + {sums}], tmm0",
                        "tilestored [{c1} + {sums}], tmm1",
                        "tilestored [{c2} + {sums}], tmm2",
                        "tilestored [{c3} + {sums}], tmm3",
                        a0 = inout(reg) codes => _,
                        a1 = inout(reg) a1 => _,
                        b0 = inout(reg) panels[0].as_ptr() => _,
                        b1 = inout(reg) panels[1].as_ptr() => _,
                        c0 = in(reg) places,
                        c1 = in(reg) places.add(second),
                        c2 = in(reg) c2,
                        c3 = in(reg) c3,
                        steps = inout(reg) steps => _,
                        fresh = in(reg) u32::from(fresh),
                        codes = in(reg) tokens.stride * CHUNK,
                        sums = in(reg) 4 * stride,
                        line = in(reg) size_of::<Line>(),
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    )
                };
            }
            if SIGNED { multiply!("tdpbssd") } else { multiply!("tdpbsud") }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the instructions are there: the value could only be made with them.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
