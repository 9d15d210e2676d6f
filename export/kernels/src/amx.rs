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
#![expect(unsafe_code, reason = "tiles are reached by instructions alone")]

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid_count, _mm512_and_si512, _mm512_load_si512, _mm512_set1_epi8, _mm512_srli_epi16,
    _mm512_store_si512, _xgetbv,
};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

use crate::avx512;
use crate::groups::{GroupTile, GroupedPair, TokenGroups, add_group, each_group};
use crate::layout::{BLOCK_CHUNKS, CHUNK, INT8_ROWS, Line, PairChunk, ROWS_PER_PAIR, TokenCodes};
use crate::prefetch::Prefetch;
use crate::reference::chunks_of;

/// Tokens of a tile.
const TOKENS: usize = 16;

/// Tokens that are multiplied together.
const GROUP: usize = 2 * TOKENS;

/// Lines of a B tile: 64 columns.
const QUADS: usize = 16;

/// Fewer tokens are faster without tiles, for which all codes are unpacked first.
pub(crate) const FEWEST_TOKENS: usize = 12;

/// Steps of 64 columns whose codes are unpacked together: 16 KiB for 32 rows, a part of the first cache.
const STEPS: usize = 8;

/// Whether this CPU has the instructions, and the system gives this process their registers.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        avx512::is_available() && has(AMX_TILE | AMX_INT8) && saves_tiles() && may_use_tiles()
    })
}

// Bits of `CPUID.(EAX=7, ECX=0):EDX`.
pub(crate) const AMX_BF16: u32 = 1 << 22;
const AMX_TILE: u32 = 1 << 24;
const AMX_INT8: u32 = 1 << 25;

/// Whether this CPU says that it has all of these.
pub(crate) fn has(features: u32) -> bool {
    __cpuid_count(7, 0).edx & features == features
}

/// Whether the system keeps the registers of a thread that waits.
fn saves_tiles() -> bool {
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;
    // SAFETY: a CPU with AVX-512 that is in use has XGETBV.
    unsafe { extended_state() & TILE_STATE == TILE_STATE }
}

#[target_feature(enable = "xsave")]
fn extended_state() -> u64 {
    // SAFETY: register 0 is always there.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the tile registers, which it gives to processes that ask (`arch_prctl(2)`).
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let result: isize;
    // SAFETY: a system call that takes two numbers and touches no memory of ours.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

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
struct Sums<'a> {
    places: &'a mut [i32],
    /// Whether they replace what is there; they are added to it else.
    fresh: bool,
    /// Where those of the second panel begin.
    second: usize,
    /// Places from one token to the next.
    stride: usize,
}

impl Tiles {
    /// Those in use, if they are cut for as many tokens; new ones else.
    fn recut(tiles: &mut Option<Self>, tokens: usize) -> &Self {
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

    /// `Σ u·q` of tokens `[t, 4 · steps chunks]` and two panels `[16 · steps]`.
    fn products(&self, tokens: TokenCodes, panels: [&[Line]; 2], sums: Sums) {
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
                "2:",
                "tileloadd tmm4, [{a0} + {codes}]",
                "tileloadd tmm6, [{b0} + {line}]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b1} + {line}]",
                "tdpbsud tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{a1} + {codes}]",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
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
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the instructions are there: the value could only be made with them.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Two panels of `STEPS` steps.
type Codes = [[Line; QUADS * STEPS]; 2];

thread_local! {
    static CODES: RefCell<Codes> =
        const { RefCell::new([[const { Line([0; 64]) }; QUADS * STEPS]; 2]) };
}

/// `sums [t][row]` = `Σ u·q` over a pair of panels `[chunks]` and tokens `[t, chunks]`.
pub(crate) fn tile(pair: &[PairChunk], tokens: TokenCodes, sums: &mut [[i32; ROWS_PER_PAIR]]) {
    assert!(is_available(), "this CPU has no AMX");
    tokens.check(sums.len(), pair.len());
    // What fills no tile comes first and begins the sums.
    let whole = pair.len() / BLOCK_CHUNKS * BLOCK_CHUNKS;
    let mut fresh = whole > 0 && whole == pair.len();
    if !fresh {
        avx512::tile(&pair[whole..], tokens.behind(0, whole), sums);
    }
    let mut tiles = None;
    CODES.with_borrow_mut(|codes| {
        for (block, chunks) in pair[..whole].chunks(STEPS * BLOCK_CHUNKS).enumerate() {
            // SAFETY: AVX-512 is there where tiles are.
            unsafe { unpack(chunks, codes.each_mut().map(|codes| &mut codes[..])) };
            let panels = codes.each_ref().map(|codes| &codes[..4 * chunks.len()]);
            let tokens = tokens.behind(0, block * STEPS * BLOCK_CHUNKS);
            for (group, sums) in sums.chunks_mut(GROUP).enumerate() {
                let tiles = Tiles::recut(&mut tiles, sums.len());
                let places = sums.as_flattened_mut();
                let sums = Sums { places, fresh, second: INT8_ROWS, stride: ROWS_PER_PAIR };
                tiles.products(tokens.behind(group * GROUP, 0), panels, sums);
            }
            fresh = false;
        }
    });
}

/// [`each_group`] of a pair of panels: the groups of a block of columns are unpacked together, and the
/// sums of a group go from the tiles to the results while they are in the first cache.
pub(crate) fn grouped(pair: GroupedPair, tokens: TokenGroups, tile: GroupTile) {
    assert!(is_available(), "this CPU has no AMX");
    // SAFETY: AVX-512 is there where tiles are.
    unsafe { grouped_products(pair, tokens, tile) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn grouped_products(pair: GroupedPair, tokens: TokenGroups, tile: GroupTile) {
    let together = STEPS * BLOCK_CHUNKS / pair.chunks;
    if together == 0 {
        return each_group(pair, tokens, tile, self::tile);
    }
    let (out, lines) = (tile.out, together * GroupedPair::lines_of(pair.chunks));
    out.fill([0.0; ROWS_PER_PAIR]);
    let mut tiles = None;
    // Sums of two groups: those of one are added to the results while the tiles multiply the next, which
    // they only do where its instructions come first.
    let mut sums = [[[0; ROWS_PER_PAIR]; GROUP]; 2];
    let (mut turn, mut waiting) = (0, None::<Waiting>);
    CODES.with_borrow_mut(|codes| {
        for (block, lines) in pair.lines.chunks(lines).enumerate() {
            let groups = GroupedPair { lines, ..pair };
            for (group, (_, chunks)) in groups.groups().enumerate() {
                unpack(chunks, codes.each_mut().map(|codes| &mut codes[4 * pair.chunks * group..]));
            }
            for first in (0..out.len()).step_by(GROUP) {
                let some = first..out.len().min(first + GROUP);
                let tiles = Tiles::recut(&mut tiles, some.len());
                for (group, (scales, chunks)) in groups.groups().enumerate() {
                    let panels = codes
                        .each_ref()
                        .map(|codes| &codes[4 * pair.chunks * group..][..4 * chunks.len()]);
                    let tokens = tokens.behind(first, block * together + group);
                    let places = sums[turn].as_flattened_mut();
                    let places =
                        Sums { places, fresh: true, second: INT8_ROWS, stride: ROWS_PER_PAIR };
                    tiles.products(tokens.codes, panels, places);
                    let next = Waiting { tokens, scales, some: some.clone() };
                    if let Some(before) = waiting.replace(next) {
                        before.add(&sums[1 - turn], out);
                    }
                    turn = 1 - turn;
                }
            }
        }
    });
    if let Some(last) = waiting {
        last.add(&sums[1 - turn], out);
    }
}

/// A group whose products with some tokens are summed and not yet added to the results.
struct Waiting<'a> {
    /// From the first of these tokens and this group on.
    tokens: TokenGroups<'a>,
    scales: &'a Line,
    some: Range<usize>,
}

impl Waiting<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add(self, sums: &[[i32; ROWS_PER_PAIR]; GROUP], out: &mut [[f32; ROWS_PER_PAIR]]) {
        let out = &mut out[self.some];
        add_group(&sums[..out.len()], self.tokens, self.scales, out);
    }
}

/// `sums [panel][t][row]` = `Σ u·q` of one or two 8-bit panels `[quads]`, one after the other, with tokens
/// `[t, chunks]`.
pub(crate) fn int8_tiles(
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
    let (mut tiles, places) = (None, sums.as_flattened_mut());
    for at in (0..count).step_by(GROUP) {
        let tiles = Tiles::recut(&mut tiles, GROUP.min(count - at));
        let mut add = |tokens, panels, fresh| {
            let places = &mut places[at * INT8_ROWS..];
            tiles.products(
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
            for (token, codes) in codes[..tiles.tokens].iter_mut().enumerate() {
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

/// The codes of some chunks, a byte each, into two panels `[4 · chunks]`.
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack(chunks: &[PairChunk], panels: [&mut [Line]; 2]) {
    // The next block is read when all tokens have met this one: no CPU guesses that.
    let prefetch = Prefetch::chosen();
    for chunk in chunks {
        prefetch.after(chunk);
    }
    let field = _mm512_set1_epi8(3);
    for (panel, codes) in panels.into_iter().enumerate() {
        for (chunk, lines) in chunks.iter().zip(codes.as_chunks_mut::<4>().0) {
            let [l0, l1, l2, l3] = lines.each_mut().map(|line| line.0.as_mut_ptr().cast());
            // SAFETY: half a chunk is 64 bytes, as a line is, and both are aligned to as many.
            unsafe {
                let bytes = _mm512_load_si512(chunk.0[64 * panel..][..64].as_ptr().cast());
                // What a shift brings in from the byte above is masked away.
                _mm512_store_si512(l0, _mm512_and_si512(bytes, field));
                _mm512_store_si512(l1, _mm512_and_si512(_mm512_srli_epi16::<2>(bytes), field));
                _mm512_store_si512(l2, _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), field));
                _mm512_store_si512(l3, _mm512_and_si512(_mm512_srli_epi16::<6>(bytes), field));
            }
        }
    }
}
