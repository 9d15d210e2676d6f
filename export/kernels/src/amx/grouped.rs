//! Products with scales of groups in tiles. The groups of a block of columns are unpacked together; the
//! sums of some go from the tiles to the results while these multiply the next:
//!
//! ```text
//! tiles     g0 g1 │ g2 g3 │ g4 g5 │ …          products of 32 tokens, sums in the first cache
//! vectors         │ g0 g1 │ g2 g3 │ …          acc ← acc + d · (a · s), each rounded, in this order
//! ```

use super::codes::{CODES, STEPS, unpack};
use super::tiles::{GROUP, Sums, Tiles};
use crate::groups::{GroupTile, GroupedPair, TokenGroups, widened};
use crate::layout::{BLOCK_CHUNKS, CHUNK, INT8_ROWS, Line, OnLines, ROWS_PER_PAIR};

/// Groups whose sums are added to the results together.
const ADDED: usize = 2;

/// The sums of some groups, in the order of the groups.
type GroupSums = [[[i32; ROWS_PER_PAIR]; GROUP]; ADDED];

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn products(
    held: &mut Option<Tiles>,
    pair: GroupedPair,
    tokens: TokenGroups,
    tile: GroupTile,
) {
    let together = STEPS * BLOCK_CHUNKS / pair.chunks;
    assert!(together > 0, "groups of at most {} columns", STEPS * BLOCK_CHUNKS * CHUNK);
    let (out, lines) = (tile.out, together * GroupedPair::lines_of(pair.chunks));
    out.fill([0.0; ROWS_PER_PAIR]);
    // Twice: those of some groups are added to the results while the tiles multiply the next, which they
    // only do where its instructions come first.
    let mut sums: OnLines<[GroupSums; 2]> = OnLines([[[[0; ROWS_PER_PAIR]; GROUP]; ADDED]; 2]);
    let (mut turn, mut waiting) = (0, None::<Waiting>);
    CODES.with_borrow_mut(|codes| {
        for (block, lines) in pair.lines.chunks(lines).enumerate() {
            let groups = GroupedPair { lines, ..pair };
            for (group, (_, chunks)) in groups.groups().enumerate() {
                let codes = codes.each_mut().map(|codes| &mut codes[4 * pair.chunks * group..]);
                unpack::<true>(chunks, codes);
            }
            let count = lines.len() / GroupedPair::lines_of(pair.chunks);
            for first in (0..out.len()).step_by(GROUP) {
                let some = first..out.len().min(first + GROUP);
                let tiles = Tiles::recut(held, some.len());
                for group in (0..count).step_by(ADDED) {
                    let added = ADDED.min(count - group);
                    for (group, sums) in (group..group + added).zip(&mut sums.0[turn]) {
                        let panels = codes
                            .each_ref()
                            .map(|codes| &codes[4 * pair.chunks * group..][..4 * pair.chunks]);
                        let tokens = tokens.behind(first, block * together + group);
                        let (places, stride) = (sums.as_flattened_mut(), ROWS_PER_PAIR);
                        let places = Sums { places, fresh: true, second: INT8_ROWS, stride };
                        tiles.products::<true>(tokens.codes, panels, places);
                    }
                    let scales = [0, added - 1].map(|part| groups.scales(group + part));
                    let steps = &tokens.steps[some.clone()];
                    let next = Waiting { steps, scales, added, first };
                    if let Some(before) = waiting.replace(next) {
                        before.add(&sums.0[1 - turn], out);
                    }
                    turn = 1 - turn;
                }
            }
        }
    });
    if let Some(last) = waiting {
        last.add(&sums.0[1 - turn], out);
    }
}

/// One or two groups whose products with some tokens are summed and not yet added to the results.
struct Waiting<'a> {
    steps: &'a [f32],
    scales: [&'a Line; ADDED],
    /// How many groups.
    added: usize,
    /// The first of the tokens.
    first: usize,
}

impl Waiting<'_> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add(self, sums: &GroupSums, out: &mut [[f32; ROWS_PER_PAIR]]) {
        let (out, steps) = (&mut out[self.first..][..self.steps.len()], self.steps);
        let [one, two] = sums.each_ref().map(|sums| &sums[..]);
        if self.added == 1 {
            add_groups([one], steps, [self.scales[0]], out);
        } else {
            add_groups([one, two], steps, self.scales, out);
        }
    }
}

/// [`add_group`](crate::groups::add_group) of `N` groups, one after the other; these sums need no offset.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_groups<const N: usize>(
    sums: [&[[i32; ROWS_PER_PAIR]]; N],
    steps: &[f32],
    scales: [&Line; N],
    out: &mut [[f32; ROWS_PER_PAIR]],
) {
    let scales = scales.map(widened);
    for (token, (out, &step)) in out.iter_mut().zip(steps).enumerate() {
        let sums = sums.map(|sums| &sums[token]);
        for (row, out) in out.iter_mut().enumerate() {
            for (sums, scales) in sums.iter().zip(&scales) {
                *out += scales[row] * (step * sums[row] as f32);
            }
        }
    }
}
