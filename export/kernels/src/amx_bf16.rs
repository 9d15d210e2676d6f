//! Float products in bf16 for CPUs with tiles (Intel AMX): sixteen rows of a strip, sixteen columns of a
//! panel and 32 places of the reduction in one instruction, in the order of [`crate::Operands::Bf16Tiles`].
//!
//! A word holds two places, so a line of a strip and a step of a panel are rows of tiles as they lie:
//!
//! ```text
//!                    B0 B1 B2: 16 steps x 16 columns of a panel that is 48 wide
//! A: 16 rows x 16 words      C0 C1 C2  += A · B
//! ```
#![expect(unsafe_code, reason = "tiles are reached by instructions alone")]

use std::arch::asm;
use std::sync::OnceLock;

use crate::amx::{self, Tiles};
use crate::gemm::{LINE, PANEL, TILE_ROWS, Tile};

/// Whether this CPU has the instructions, and the system gives this process their registers.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| amx::is_available() && amx::has(amx::AMX_BF16))
}

/// Adds a strip's products with a panel to `sums`, a row every `stride`.
pub(crate) fn float_tile(tile: Tile, tiles: &Tiles, sums: &mut [f32], stride: usize) {
    let Tile { strip, panel, width, fresh, .. } = tile;
    assert!(is_available() && tile.format.in_tiles(), "words for the tiles of this CPU");
    assert!(tiles.are_whole(), "tiles of sixteen rows");
    let lines = strip.len() / (LINE * TILE_ROWS);
    assert!(lines > 0 && strip.len() == lines * LINE * TILE_ROWS);
    assert!(panel.len() == lines * LINE * width, "a panel as deep as the strip");
    assert!(sums.len() >= (TILE_ROWS - 1) * stride + width, "a place for each product");
    let fresh = u32::from(fresh);
    // SAFETY: strip, panel and sums are as long as asserted above, and the tiles are cut for them.
    unsafe {
        if width == PANEL {
            let sums = (sums.as_mut_ptr(), stride, fresh);
            three_tiles(strip.as_ptr(), panel.as_ptr(), lines, sums);
        } else {
            for column in (0..width).step_by(LINE) {
                let panel = panel[column..].as_ptr();
                let sums = (sums[column..].as_mut_ptr(), stride, fresh);
                one_tile(strip.as_ptr(), (panel, width), lines, sums);
            }
        }
    }
}

/// # Safety
/// Tiles of 16 x 64 bytes, some `lines` of a strip, as many of a panel of 48 columns, and places for their
/// products, which begin at 0 where they are `fresh`.
unsafe fn three_tiles(
    strip: *const u32,
    panel: *const u32,
    lines: usize,
    (sums, stride, fresh): (*mut f32, usize, u32),
) {
    // SAFETY: says the caller.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "test {fresh:e}, {fresh:e}",
            "jnz 2f",
            "tileloadd tmm0, [{c} + {sums}]",
            "tileloadd tmm1, [{c} + {sums} + 64]",
            "tileloadd tmm2, [{c} + {sums} + 128]",
            "2:",
            "tileloadd tmm3, [{a} + {line}]",
            "tileloadd tmm4, [{b} + {step}]",
            "tdpbf16ps tmm0, tmm3, tmm4",
            "tileloadd tmm5, [{b} + {step} + 64]",
            "tdpbf16ps tmm1, tmm3, tmm5",
            "tileloadd tmm6, [{b} + {step} + 128]",
            "tdpbf16ps tmm2, tmm3, tmm6",
            "add {a}, 1024",
            "add {b}, 3072",
            "dec {lines}",
            "jnz 2b",
            "tilestored [{c} + {sums}], tmm0",
            "tilestored [{c} + {sums} + 64], tmm1",
            "tilestored [{c} + {sums} + 128], tmm2",
            a = inout(reg) strip => _,
            b = inout(reg) panel => _,
            c = in(reg) sums,
            lines = inout(reg) lines => _,
            fresh = in(reg) fresh,
            line = in(reg) 4 * LINE,
            step = in(reg) 4 * PANEL,
            sums = in(reg) 4 * stride,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _,
            options(nostack),
        );
    }
}

/// # Safety
/// As [`three_tiles`], 16 columns of a panel of any width.
unsafe fn one_tile(
    strip: *const u32,
    (panel, width): (*const u32, usize),
    lines: usize,
    (sums, stride, fresh): (*mut f32, usize, u32),
) {
    // SAFETY: says the caller.
    unsafe {
        asm!(
            "tilezero tmm0",
            "test {fresh:e}, {fresh:e}",
            "jnz 2f",
            "tileloadd tmm0, [{c} + {sums}]",
            "2:",
            "tileloadd tmm3, [{a} + {line}]",
            "tileloadd tmm4, [{b} + {step}]",
            "tdpbf16ps tmm0, tmm3, tmm4",
            "add {a}, 1024",
            "add {b}, {panel}",
            "dec {lines}",
            "jnz 2b",
            "tilestored [{c} + {sums}], tmm0",
            a = inout(reg) strip => _,
            b = inout(reg) panel => _,
            c = in(reg) sums,
            lines = inout(reg) lines => _,
            fresh = in(reg) fresh,
            line = in(reg) 4 * LINE,
            step = in(reg) 4 * width,
            panel = in(reg) 4 * width * LINE,
            sums = in(reg) 4 * stride,
            out("tmm0") _, out("tmm3") _, out("tmm4") _,
            options(nostack),
        );
    }
}
