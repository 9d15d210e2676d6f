//! All trained numbers of a model as one line, cut into buckets and each bucket over the ranks:
//! how gradients are summed, and who keeps which moments.
//!
//! Rank `r` owns the `r`-th part of every bucket. Summing sends each part to its owner, who adds up
//! in the order of the ranks; then parts go back to all, of whatever the owner made of them.

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use super::{Exchange, Ranks};

/// Numbers of a bucket: what a rank sends in one go, and holds twice beside the model. Small enough
/// for both to stay in a core's cache between being filled, sent and added.
const BUCKET: usize = 1 << 18;
/// Numbers of a message at least: with many ranks, buckets grow so that latency does not count.
const MESSAGE: usize = 1 << 16;

/// How gradients travel. They are always added in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// As they are.
    F32,
    /// Rounded to bf16: half the bytes.
    Bf16,
}

impl Wire {
    /// Bytes of a number on its way.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Numbers of a bucket of so many ranks.
pub(crate) fn bucket_of(ranks: usize) -> usize {
    BUCKET.max(MESSAGE * ranks)
}

/// A part of a tensor that one rank owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The tensor, by its place in the table.
    pub tensor: usize,
    /// Which of its numbers.
    pub range: Range<usize>,
}

/// Who owns what.
#[derive(Clone, Debug)]
pub struct Cut {
    ranks: Ranks,
    bucket: usize,
    /// Where each tensor begins on the line, and where the last one ends.
    starts: Vec<usize>,
}

impl Cut {
    /// Cuts tensors of these sizes; one that is not trained has size 0.
    pub fn new(ranks: &Ranks, sizes: impl IntoIterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        for size in sizes {
            starts.push(starts[starts.len() - 1] + size);
        }
        Self { ranks: ranks.clone(), bucket: bucket_of(ranks.count()), starts }
    }

    /// Numbers in all.
    fn total(&self) -> usize {
        *self.starts.last().expect("a line has an end")
    }

    fn buckets(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (total, bucket) = (self.total(), self.bucket);
        (0..total).step_by(bucket).map(move |from| from..total.min(from + bucket))
    }

    /// The part of a bucket that `rank` owns; the last ones may be shorter than the others.
    fn part(&self, bucket: &Range<usize>, rank: usize) -> Range<usize> {
        let length = bucket.len().div_ceil(self.ranks.count());
        let at = |rank: usize| bucket.end.min(bucket.start + rank * length);
        at(rank)..at(rank + 1)
    }

    /// The pieces of tensors that lie in a part of the line.
    fn spans(&self, line: Range<usize>) -> impl Iterator<Item = Piece> + '_ {
        let first = self.starts.partition_point(|&start| start <= line.start).max(1) - 1;
        let tensors = first..self.starts.len() - 1;
        let until = line.end;
        let clipped = move |tensor: usize| {
            let (start, end) = (self.starts[tensor], self.starts[tensor + 1]);
            let range = line.start.max(start)..line.end.min(end);
            Piece { tensor, range: range.start - start..range.end.max(range.start) - start }
        };
        tensors
            .take_while(move |&tensor| self.starts[tensor] < until)
            .map(clipped)
            .filter(|piece| !piece.range.is_empty())
    }

    /// What this rank owns, in the order of the line.
    pub fn pieces(&self) -> Vec<Piece> {
        let own = |bucket: Range<usize>| self.part(&bucket, self.ranks.rank());
        self.buckets().flat_map(|bucket| self.spans(own(bucket)).collect::<Vec<_>>()).collect()
    }

    /// Adds up `tensors` over all ranks; each gets the sums of its own pieces. What a rank does not
    /// send is not rounded.
    pub fn sum(&self, tensors: &[Vec<f32>], wire: Wire) -> Vec<Vec<f32>> {
        match wire {
            Wire::F32 => self.sum_as(tensors, <[f32]>::copy_from_slice, add),
            Wire::Bf16 => self.sum_as(tensors, <[bf16]>::convert_from_f32_slice, |sum, part| {
                sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value.to_f32());
            }),
        }
    }

    fn sum_as<T: bytemuck::Pod>(
        &self,
        tensors: &[Vec<f32>],
        fill: impl Fn(&mut [T], &[f32]),
        add_sent: impl Fn(&mut [f32], &[T]),
    ) -> Vec<Vec<f32>> {
        let (count, rank) = (self.ranks.count(), self.ranks.rank());
        let mut pieces = Vec::new();
        let (mut send, mut receive) = (Vec::new(), Vec::new());
        for bucket in self.buckets() {
            let length = bucket.len().div_ceil(count);
            send.resize(count * length, T::zeroed());
            receive.resize(count * length, T::zeroed());
            let parts = send.chunks_exact_mut(length).enumerate();
            for (to, part) in parts.filter(|(to, _)| *to != rank) {
                self.fill(part, self.part(&bucket, to), tensors, &fill);
            }
            self.exchange()
                .all_to_all(bytemuck::cast_slice(&send), bytemuck::cast_slice_mut(&mut receive));
            let mut at = 0;
            for Piece { tensor, range } in self.spans(self.part(&bucket, rank)) {
                let place = at..at + range.len();
                let mut sum = vec![0.0; place.len()];
                for (from, part) in receive.chunks_exact(length).enumerate() {
                    if from == rank {
                        add(&mut sum, &tensors[tensor][range.clone()]);
                    } else {
                        add_sent(&mut sum, &part[place.clone()]);
                    }
                }
                at = place.end;
                pieces.push(sum);
            }
        }
        pieces
    }

    /// Writes what lies on a part of the line to the beginning of `part`.
    fn fill<T>(
        &self,
        part: &mut [T],
        line: Range<usize>,
        tensors: &[Vec<f32>],
        fill: impl Fn(&mut [T], &[f32]),
    ) {
        let mut at = 0;
        for Piece { tensor, range } in self.spans(line) {
            fill(&mut part[at..at + range.len()], &tensors[tensor][range.clone()]);
            at += range.len();
        }
    }

    /// Writes every rank's `pieces` to their places in everybody's `tensors`.
    pub fn spread(&self, pieces: &[Vec<f32>], tensors: &mut [Vec<f32>]) {
        self.each_bucket(pieces, |spans, mut values| {
            for Piece { tensor, range } in spans {
                let (own, rest) = values.split_at(range.len());
                tensors[tensor][range].copy_from_slice(own);
                values = rest;
            }
        });
    }

    /// Calls `take` with each tensor in turn, put together from every rank's `pieces`.
    pub fn collect(&self, pieces: &[Vec<f32>], mut take: impl FnMut(usize, Vec<f32>)) {
        let size = |tensor: usize| self.starts[tensor + 1] - self.starts[tensor];
        let mut open: (usize, Vec<f32>) = (0, Vec::new());
        self.each_bucket(pieces, |spans, mut values| {
            for Piece { tensor, range } in spans {
                let (own, rest) = values.split_at(range.len());
                open.0 = tensor;
                open.1.extend_from_slice(own);
                values = rest;
                if open.1.len() == size(tensor) {
                    take(open.0, std::mem::take(&mut open.1));
                }
            }
        });
    }

    /// Gathers bucket after bucket; `take` gets the pieces of each and their numbers in a row.
    fn each_bucket(&self, pieces: &[Vec<f32>], mut take: impl FnMut(Vec<Piece>, &[f32])) {
        let (count, rank) = (self.ranks.count(), self.ranks.rank());
        let mut pieces = pieces.iter();
        let (mut own, mut all) = (Vec::new(), Vec::new());
        for bucket in self.buckets() {
            let length = bucket.len().div_ceil(count);
            own.clear();
            for _ in self.spans(self.part(&bucket, rank)) {
                own.extend_from_slice(pieces.next().expect("as many pieces as are owned"));
            }
            own.resize(length, 0.0);
            all.resize(count * length, 0.0);
            self.exchange()
                .all_gather(bytemuck::cast_slice(&own), bytemuck::cast_slice_mut(&mut all));
            let spans = self.spans(bucket.clone()).collect();
            // Every part but the last ones is full, so that they follow each other without a gap.
            take(spans, &all[..bucket.len()]);
        }
    }

    fn exchange(&self) -> &dyn Exchange {
        self.ranks.exchange().expect("a model is cut over several ranks")
    }
}

fn add(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

#[cfg(test)]
mod tests {
    use super::super::in_threads;
    use super::*;
    use proptest::prelude::*;

    /// Tensors of these sizes, whole numbers that tell tensor, place and rank.
    fn tensors(sizes: &[usize], rank: usize) -> Vec<Vec<f32>> {
        let value = |tensor, at| (100 * tensor + at) as f32 * (rank + 1) as f32;
        let tensor =
            |(tensor, &size): (usize, &usize)| (0..size).map(|at| value(tensor, at)).collect();
        sizes.iter().enumerate().map(tensor).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn sums_reach_their_owners_and_come_back_to_all(
            sizes in prop::collection::vec(0..40_usize, 1..7),
            count in 2..6_usize,
            bucket in 1..50_usize,
            wire in prop::sample::select(vec![Wire::F32, Wire::Bf16]),
        ) {
            let found = in_threads(count, |ranks| {
                let cut = Cut { bucket, ..Cut::new(&ranks, sizes.iter().copied()) };
                let sums = cut.sum(&tensors(&sizes, ranks.rank()), wire);
                let mut spread = sizes.iter().map(|&size| vec![0.0; size]).collect::<Vec<_>>();
                cut.spread(&sums, &mut spread);
                let mut collected = vec![Vec::new(); sizes.len()];
                cut.collect(&sums, |tensor, values| collected[tensor] = values);
                (cut.pieces(), sums, spread, collected)
            });
            let sent = |value: f32| if wire == Wire::F32 { value } else { bf16::from_f32(value).to_f32() };
            let given: Vec<_> = (0..count).map(|rank| tensors(&sizes, rank)).collect();
            let mut expected = sizes.iter().map(|&size| vec![0.0; size]).collect::<Vec<_>>();
            let mut owned = 0;
            for (owner, (pieces, sums, ..)) in found.iter().enumerate() {
                for (Piece { tensor, range }, sum) in pieces.iter().zip(sums) {
                    for at in range.clone() {
                        let value = |rank: usize| given[rank][*tensor][at];
                        let heard = |rank| if rank == owner { value(rank) } else { sent(value(rank)) };
                        expected[*tensor][at] = (0..count).fold(0.0, |sum, rank| sum + heard(rank));
                    }
                    prop_assert_eq!(&expected[*tensor][range.clone()], sum.as_slice());
                    owned += sum.len();
                }
                prop_assert_eq!(pieces.len(), sums.len());
            }
            for (_, _, spread, collected) in found {
                prop_assert_eq!(&spread, &expected);
                prop_assert_eq!(&collected, &expected);
            }
            prop_assert_eq!(owned, sizes.iter().sum::<usize>());
        }
    }
}
