//! How the trained numbers of a model are sharded over the ranks: who sums which gradients and who
//! keeps which moments.
//!
//! All trained tensors, one after the other, form one flat line. It is cut into buckets, and each
//! bucket into one part a rank:
//!
//! ```text
//! tensors  |---- q_proj ----|-- k_proj --|-- v_proj --| …
//! buckets  |=========== 0 ===========|=========== 1 ===========| …
//! owners   | rank 0 | rank 1 | rank 2 | rank 0 | rank 1 | rank 2 | …
//! ```
//!
//! [`ShardPlan::reduce_scatter`] sends every part to its owner, who adds in the order of the ranks;
//! [`ShardPlan::all_gather`] sends what the owner made of it back to all.

use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use super::comm::{Comm, Transport};

/// Least numbers in a bucket, which a rank sends in one go and holds twice beside the model. Both
/// copies then stay in a core's cache between being filled, sent and added.
const BUCKET: usize = 1 << 18;
/// Least numbers in a message: with many ranks buckets grow, so that latency does not count.
const MESSAGE: usize = 1 << 16;

/// The number format of gradients in transit. They are always added in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommDType {
    /// Unrounded.
    F32,
    /// Rounded to bf16: half the bytes.
    Bf16,
}

impl CommDType {
    /// Bytes of one number in transit.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Numbers in a bucket for a world of this size.
pub(crate) fn bucket_of(world_size: usize) -> usize {
    BUCKET.max(MESSAGE * world_size)
}

/// A part of a tensor that one rank owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Index of the tensor in the tensor table.
    pub tensor: usize,
    /// Its numbers, as a range of the flat tensor.
    pub range: Range<usize>,
}

/// Which rank owns which numbers.
#[derive(Clone, Debug)]
pub struct ShardPlan {
    comm: Comm,
    bucket: usize,
    /// Where each tensor begins on the line, and where the last one ends.
    starts: Vec<usize>,
}

impl ShardPlan {
    /// Shards tensors of these sizes; a frozen tensor has size 0.
    pub fn new(comm: &Comm, sizes: impl IntoIterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        for size in sizes {
            starts.push(starts[starts.len() - 1] + size);
        }
        Self { comm: comm.clone(), bucket: bucket_of(comm.world_size()), starts }
    }

    /// Numbers on the line.
    fn total(&self) -> usize {
        *self.starts.last().expect("a line has an end")
    }

    fn buckets(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (total, bucket) = (self.total(), self.bucket);
        (0..total).step_by(bucket).map(move |from| from..total.min(from + bucket))
    }

    /// The part of a bucket that `rank` owns; the last parts may be shorter than the others.
    fn part(&self, bucket: &Range<usize>, rank: usize) -> Range<usize> {
        // All parts of a bucket but the last ones are `length` long; those may be shorter, or
        // empty.
        let length = bucket.len().div_ceil(self.comm.world_size());
        let at = |rank: usize| bucket.end.min(bucket.start + rank * length);
        at(rank)..at(rank + 1)
    }

    /// The shards that lie in a part of the line.
    fn spans(&self, line: Range<usize>) -> impl Iterator<Item = Shard> + '_ {
        // The last tensor that begins at or before the part. Frozen tensors have size 0 and are
        // skipped below.
        let first = self.starts.partition_point(|&start| start <= line.start).max(1) - 1;
        let tensors = first..self.starts.len() - 1;
        let until = line.end;
        let clipped = move |tensor: usize| {
            let (start, end) = (self.starts[tensor], self.starts[tensor + 1]);
            let range = line.start.max(start)..line.end.min(end);
            Shard { tensor, range: range.start - start..range.end.max(range.start) - start }
        };
        tensors
            .take_while(move |&tensor| self.starts[tensor] < until)
            .map(clipped)
            .filter(|shard| !shard.range.is_empty())
    }

    /// The shards of this rank, in the order of the line.
    pub fn shards(&self) -> Vec<Shard> {
        let own = |bucket: Range<usize>| self.part(&bucket, self.comm.rank());
        self.buckets().flat_map(|bucket| self.spans(own(bucket)).collect::<Vec<_>>()).collect()
    }

    /// Adds `tensors` over all ranks; each rank gets the sums of its own shards. A rank's own terms
    /// are not sent and so never rounded.
    pub fn reduce_scatter(&self, tensors: &[Vec<f32>], dtype: CommDType) -> Vec<Vec<f32>> {
        match dtype {
            CommDType::F32 => self.reduce_scatter_as(tensors, <[f32]>::copy_from_slice, add),
            CommDType::Bf16 => {
                self.reduce_scatter_as(tensors, <[bf16]>::convert_from_f32_slice, |sum, part| {
                    sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value.to_f32());
                })
            }
        }
    }

    fn reduce_scatter_as<T: bytemuck::Pod>(
        &self,
        tensors: &[Vec<f32>],
        fill: impl Fn(&mut [T], &[f32]),
        add_sent: impl Fn(&mut [f32], &[T]),
    ) -> Vec<Vec<f32>> {
        let (ranks, rank) = (self.comm.world_size(), self.comm.rank());
        let mut shards = Vec::new();
        let (mut send, mut receive) = (Vec::new(), Vec::new());
        for bucket in self.buckets() {
            let length = bucket.len().div_ceil(ranks);
            send.resize(ranks * length, T::zeroed());
            receive.resize(ranks * length, T::zeroed());
            // Messages of one size for all ranks: a short part is padded with whatever the buffer
            // held before, and the receiver reads only what lies on the line.
            let parts = send.chunks_exact_mut(length).enumerate();
            for (to, part) in parts.filter(|(to, _)| *to != rank) {
                self.fill(part, self.part(&bucket, to), tensors, &fill);
            }
            self.transport()
                .all_to_all(bytemuck::cast_slice(&send), bytemuck::cast_slice_mut(&mut receive));
            let mut at = 0;
            for Shard { tensor, range } in self.spans(self.part(&bucket, rank)) {
                let place = at..at + range.len();
                let mut sum = vec![0.0; place.len()];
                // Rank 0's terms first, then rank 1's, …: the transport may deliver in any order,
                // the sum may not. The own terms take their turn like the others, unrounded.
                for (from, part) in receive.chunks_exact(length).enumerate() {
                    if from == rank {
                        add(&mut sum, &tensors[tensor][range.clone()]);
                    } else {
                        add_sent(&mut sum, &part[place.clone()]);
                    }
                }
                at = place.end;
                shards.push(sum);
            }
        }
        shards
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
        for Shard { tensor, range } in self.spans(line) {
            fill(&mut part[at..at + range.len()], &tensors[tensor][range.clone()]);
            at += range.len();
        }
    }

    /// Writes the `shards` of every rank to their places in `tensors`, on all ranks.
    pub fn all_gather(&self, shards: &[Vec<f32>], tensors: &mut [Vec<f32>]) {
        self.each_bucket(shards, |spans, mut values| {
            for Shard { tensor, range } in spans {
                let (own, rest) = values.split_at(range.len());
                tensors[tensor][range].copy_from_slice(own);
                values = rest;
            }
        });
    }

    /// Calls `take` with each tensor in turn, assembled from the `shards` of every rank.
    pub fn gather(&self, shards: &[Vec<f32>], mut take: impl FnMut(usize, Vec<f32>)) {
        let size = |tensor: usize| self.starts[tensor + 1] - self.starts[tensor];
        let mut open: (usize, Vec<f32>) = (0, Vec::new());
        self.each_bucket(shards, |spans, mut values| {
            for Shard { tensor, range } in spans {
                let (own, rest) = values.split_at(range.len());
                open.0 = tensor;
                open.1.extend_from_slice(own);
                values = rest;
                // Tensors are handed out one by one, so no more than one of them is whole in
                // memory.
                if open.1.len() == size(tensor) {
                    take(open.0, std::mem::take(&mut open.1));
                }
            }
        });
    }

    /// Gathers bucket after bucket; `take` gets the shards of a bucket and their numbers, in order.
    fn each_bucket(&self, shards: &[Vec<f32>], mut take: impl FnMut(Vec<Shard>, &[f32])) {
        let (ranks, rank) = (self.comm.world_size(), self.comm.rank());
        let mut shards = shards.iter();
        let (mut own, mut all) = (Vec::new(), Vec::new());
        for bucket in self.buckets() {
            let length = bucket.len().div_ceil(ranks);
            own.clear();
            for _ in self.spans(self.part(&bucket, rank)) {
                own.extend_from_slice(shards.next().expect("one for each owned shard"));
            }
            own.resize(length, 0.0);
            all.resize(ranks * length, 0.0);
            self.transport()
                .all_gather(bytemuck::cast_slice(&own), bytemuck::cast_slice_mut(&mut all));
            let spans = self.spans(bucket.clone()).collect();
            // Only the last parts may be short, so the numbers follow each other without a gap.
            take(spans, &all[..bucket.len()]);
        }
    }

    fn transport(&self) -> &dyn Transport {
        self.comm.transport().expect("a model is sharded over several ranks")
    }
}

fn add(sums: &mut [f32], values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

#[cfg(test)]
mod tests {
    use super::super::threads::in_threads;
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
        fn reduce_scatter_and_all_gather_sum_in_rank_order(
            sizes in prop::collection::vec(0..40_usize, 1..7),
            count in 2..6_usize,
            bucket in 1..50_usize,
            dtype in prop::sample::select(vec![CommDType::F32, CommDType::Bf16]),
        ) {
            let found = in_threads(count, |comm| {
                let plan = ShardPlan { bucket, ..ShardPlan::new(&comm, sizes.iter().copied()) };
                let sums = plan.reduce_scatter(&tensors(&sizes, comm.rank()), dtype);
                let mut gathered = sizes.iter().map(|&size| vec![0.0; size]).collect::<Vec<_>>();
                plan.all_gather(&sums, &mut gathered);
                let mut collected = vec![Vec::new(); sizes.len()];
                plan.gather(&sums, |tensor, values| collected[tensor] = values);
                (plan.shards(), sums, gathered, collected)
            });
            let sent = |value: f32| if dtype == CommDType::F32 { value } else { bf16::from_f32(value).to_f32() };
            let given: Vec<_> = (0..count).map(|rank| tensors(&sizes, rank)).collect();
            let mut expected = sizes.iter().map(|&size| vec![0.0; size]).collect::<Vec<_>>();
            let mut owned = 0;
            for (owner, (shards, sums, ..)) in found.iter().enumerate() {
                for (Shard { tensor, range }, sum) in shards.iter().zip(sums) {
                    for at in range.clone() {
                        let value = |rank: usize| given[rank][*tensor][at];
                        let received = |rank| if rank == owner { value(rank) } else { sent(value(rank)) };
                        expected[*tensor][at] = (0..count).fold(0.0, |sum, rank| sum + received(rank));
                    }
                    prop_assert_eq!(&expected[*tensor][range.clone()], sum.as_slice());
                    owned += sum.len();
                }
                prop_assert_eq!(shards.len(), sums.len());
            }
            for (_, _, gathered, collected) in found {
                prop_assert_eq!(&gathered, &expected);
                prop_assert_eq!(&collected, &expected);
            }
            prop_assert_eq!(owned, sizes.iter().sum::<usize>());
        }
    }
}
