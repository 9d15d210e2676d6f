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
//! Matrices that an update needs whole ([`ShardPlan::with_whole`]) come first, as many at a time as there
//! are ranks, those of one size together. A bucket is a slice of each:
//!
//! ```text
//! rank 0   |== 0 ==|== 1 ==|==    q_proj
//! rank 1   |== 0 ==|== 1 ==|==    o_proj
//! ```
//!
//! [`ShardPlan::reduce_scatter`] sends every part to its owner, who adds in the order of the ranks;
//! [`ShardPlan::all_gather`] sends what the owner made of it back to all.

use std::cmp::Reverse;
use std::collections::BTreeMap;
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
    /// Numbers of each tensor.
    sizes: Vec<usize>,
    buckets: Vec<Bucket>,
    /// What this rank owns.
    own: Vec<Shard>,
}

/// What is sent in one go: one part a rank.
#[derive(Clone, Debug)]
struct Bucket {
    parts: Vec<Vec<Shard>>,
    /// Numbers of the longest part. Messages of one size for all ranks: a shorter part is padded.
    length: usize,
}

impl Bucket {
    fn new(parts: Vec<Vec<Shard>>) -> Self {
        let length = |part: &Vec<Shard>| part.iter().map(|shard| shard.range.len()).sum();
        Self { length: parts.iter().map(length).max().unwrap_or(0), parts }
    }
}

/// Tensors one after the other, from which parts are cut.
struct Line<T> {
    /// What is left of the tensor that the last cut went through.
    open: Option<Shard>,
    rest: T,
}

impl<T: Iterator<Item = Shard>> Line<T> {
    fn new(rest: T) -> Self {
        Self { open: None, rest }
    }

    /// The next numbers, `most` at most.
    fn take(&mut self, mut most: usize) -> Vec<Shard> {
        let mut part = Vec::new();
        while most > 0 {
            let Some(Shard { tensor, range }) = self.open.take().or_else(|| self.rest.next())
            else {
                break;
            };
            let cut = range.end.min(range.start + most);
            most -= cut - range.start;
            self.open = (cut < range.end).then_some(Shard { tensor, range: cut..range.end });
            part.push(Shard { tensor, range: range.start..cut });
        }
        part
    }
}

impl ShardPlan {
    /// Shards tensors of these sizes; a frozen tensor has size 0.
    pub fn new(comm: &Comm, sizes: impl IntoIterator<Item = usize>) -> Self {
        Self::with_whole(comm, sizes, |_| false)
    }

    /// The same, where each tensor that `is_whole` names by its index belongs to one rank.
    pub fn with_whole(
        comm: &Comm,
        sizes: impl IntoIterator<Item = usize>,
        is_whole: impl Fn(usize) -> bool,
    ) -> Self {
        Self::cut(comm, sizes.into_iter().collect(), bucket_of(comm.world_size()), is_whole)
    }

    fn cut(
        comm: &Comm,
        sizes: Vec<usize>,
        bucket: usize,
        is_whole: impl Fn(usize) -> bool,
    ) -> Self {
        let trained = sizes.iter().enumerate().filter(|(_, size)| **size > 0);
        let trained = trained.map(|(tensor, &size)| Shard { tensor, range: 0..size });
        let (mut whole, even): (Vec<_>, Vec<_>) = trained.partition(|it| is_whole(it.tensor));
        // Those that travel together are about as long, so that little is padded and the ranks'
        // shares are about equal.
        whole.sort_by_key(|shard| Reverse(shard.range.len()));
        let ranks = comm.world_size();
        let groups = whole.chunks(ranks).flat_map(|group| whole_buckets(group, bucket, ranks));
        let buckets: Vec<_> = groups.chain(even_buckets(even, bucket, ranks)).collect();
        let own = buckets.iter().flat_map(|bucket| bucket.parts[comm.rank()].iter().cloned());
        let own = own.fold(Vec::new(), joined);
        Self { comm: comm.clone(), sizes, buckets, own }
    }

    /// The shards of this rank, in the order of the line.
    pub fn shards(&self) -> &[Shard] {
        &self.own
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
        let mut shards =
            self.own.iter().map(|shard| vec![0.0; shard.range.len()]).collect::<Vec<_>>();
        let mut places = Places::default();
        let (mut send, mut receive) = (Vec::new(), Vec::new());
        for Bucket { parts, length } in &self.buckets {
            let length = *length;
            send.resize(ranks * length, T::zeroed());
            receive.resize(ranks * length, T::zeroed());
            // A short part is padded with whatever the buffer held before; the receiver reads only
            // what lies on the line.
            let messages = send.chunks_exact_mut(length).zip(parts).enumerate();
            for (_, (message, part)) in messages.filter(|(to, _)| *to != rank) {
                fill_message(message, part, tensors, &fill);
            }
            self.transport()
                .all_to_all(bytemuck::cast_slice(&send), bytemuck::cast_slice_mut(&mut receive));
            let mut at = 0;
            for Shard { tensor, range } in &parts[rank] {
                let place = at..at + range.len();
                let (shard, own) = places.next(&self.own, range.len());
                let sum = &mut shards[shard][own];
                // Rank 0's terms first, then rank 1's, …: the transport may deliver in any order,
                // the sum may not. The own terms take their turn like the others, unrounded.
                for (from, part) in receive.chunks_exact(length).enumerate() {
                    if from == rank {
                        add(sum, &tensors[*tensor][range.clone()]);
                    } else {
                        add_sent(sum, &part[place.clone()]);
                    }
                }
                at = place.end;
            }
        }
        shards
    }

    /// Writes the `shards` of every rank to their places in `tensors`, on all ranks.
    pub fn all_gather(&self, shards: &[Vec<f32>], tensors: &mut [Vec<f32>]) {
        let take = |Shard { tensor, range }: &Shard, values: &[f32]| {
            tensors[*tensor][range.clone()].copy_from_slice(values);
        };
        self.each_shard(shards, |_| true, take);
    }

    /// Calls `take` with each tensor in turn that is `wanted`, assembled from the `shards` of every rank;
    /// those of other tensors may be empty.
    pub fn gather(
        &self,
        shards: &[Vec<f32>],
        wanted: impl Fn(usize) -> bool,
        mut take: impl FnMut(usize, Vec<f32>),
    ) {
        // Tensors are handed out one by one, so no more of them are whole in memory than travel
        // together.
        let mut open: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        self.each_shard(shards, wanted, |shard, values| {
            let found = open.entry(shard.tensor).or_default();
            found.extend_from_slice(values);
            if found.len() == self.sizes[shard.tensor] {
                take(shard.tensor, open.remove(&shard.tensor).expect("it is open"));
            }
        });
    }

    /// Gathers bucket after bucket; `take` gets each shard and its numbers, in order.
    fn each_shard(
        &self,
        shards: &[Vec<f32>],
        wanted: impl Fn(usize) -> bool,
        mut take: impl FnMut(&Shard, &[f32]),
    ) {
        let (ranks, rank) = (self.comm.world_size(), self.comm.rank());
        let mut places = Places::default();
        let (mut own, mut all) = (Vec::new(), Vec::new());
        for Bucket { parts, length } in &self.buckets {
            let places = parts[rank].iter().map(|part| places.next(&self.own, part.range.len()));
            let places: Vec<_> = places.collect();
            if !parts.iter().flatten().any(|shard| wanted(shard.tensor)) {
                continue;
            }
            own.clear();
            for (shard, range) in places {
                own.extend_from_slice(&shards[shard][range]);
            }
            own.resize(*length, 0.0);
            all.resize(ranks * length, 0.0);
            self.transport()
                .all_gather(bytemuck::cast_slice(&own), bytemuck::cast_slice_mut(&mut all));
            for (part, mut values) in parts.iter().zip(all.chunks_exact(*length)) {
                for shard in part {
                    let (found, rest) = values.split_at(shard.range.len());
                    take(shard, found);
                    values = rest;
                }
            }
        }
    }

    fn transport(&self) -> &dyn Transport {
        self.comm.transport().expect("a model is sharded over several ranks")
    }
}

/// Parts of whole tensors, one a rank, that travel slice by slice.
fn whole_buckets(group: &[Shard], bucket: usize, ranks: usize) -> Vec<Bucket> {
    let mut lines: Vec<_> = group.iter().map(|it| Line::new([it.clone()].into_iter())).collect();
    let slice = bucket.div_ceil(ranks);
    let longest = group.iter().map(|shard| shard.range.len()).max().unwrap_or(0);
    let mut one = || {
        let mut parts: Vec<_> = lines.iter_mut().map(|line| line.take(slice)).collect();
        parts.resize(ranks, Vec::new());
        Bucket::new(parts)
    };
    (0..longest.div_ceil(slice)).map(|_| one()).collect()
}

/// Buckets of which each rank has an equal part, whatever tensors lie there.
fn even_buckets(tensors: Vec<Shard>, bucket: usize, ranks: usize) -> Vec<Bucket> {
    let total: usize = tensors.iter().map(|shard| shard.range.len()).sum();
    let mut line = Line::new(tensors.into_iter());
    let mut one = |from: usize| {
        let size = bucket.min(total - from);
        // The last parts may be shorter than the others, or empty.
        let length = size.div_ceil(ranks);
        let part = |rank: usize| line.take(length.min(size.saturating_sub(rank * length)));
        Bucket::new((0..ranks).map(part).collect())
    };
    (0..total).step_by(bucket).map(&mut one).collect()
}

/// Adds a shard, to the last one if it goes on there.
fn joined(mut shards: Vec<Shard>, next: Shard) -> Vec<Shard> {
    match shards.last_mut() {
        Some(last) if last.tensor == next.tensor && last.range.end == next.range.start => {
            last.range.end = next.range.end;
        }
        _ => shards.push(next),
    }
    shards
}

/// Goes through the numbers of a rank's shards in order.
#[derive(Default)]
struct Places {
    shard: usize,
    from: usize,
}

impl Places {
    /// Where the next `count` numbers are: in which of the shards, all in one, and at which place.
    fn next(&mut self, own: &[Shard], count: usize) -> (usize, Range<usize>) {
        if own[self.shard].range.len() == self.from {
            *self = Self { shard: self.shard + 1, from: 0 };
        }
        self.from += count;
        (self.shard, self.from - count..self.from)
    }
}

/// Writes the numbers of a part to the beginning of a message.
fn fill_message<T>(
    message: &mut [T],
    part: &[Shard],
    tensors: &[Vec<f32>],
    fill: &impl Fn(&mut [T], &[f32]),
) {
    let mut at = 0;
    for Shard { tensor, range } in part {
        fill(&mut message[at..at + range.len()], &tensors[*tensor][range.clone()]);
        at += range.len();
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
            whole in prop::collection::vec(prop::bool::ANY, 7),
            dtype in prop::sample::select(vec![CommDType::F32, CommDType::Bf16]),
        ) {
            let found = in_threads(count, |comm| {
                let plan = ShardPlan::cut(&comm, sizes.clone(), bucket, |tensor| whole[tensor]);
                let sums = plan.reduce_scatter(&tensors(&sizes, comm.rank()), dtype);
                let mut gathered = sizes.iter().map(|&size| vec![0.0; size]).collect::<Vec<_>>();
                plan.all_gather(&sums, &mut gathered);
                let mut collected = vec![Vec::new(); sizes.len()];
                plan.gather(&sums, |_| true, |tensor, values| collected[tensor] = values);
                // Those that nobody wants need no numbers.
                let mut sums_of_even = sums.clone();
                for (sum, shard) in sums_of_even.iter_mut().zip(plan.shards()) {
                    if whole[shard.tensor] { sum.clear() }
                }
                let even = |tensor: usize| !whole[tensor];
                plan.gather(&sums_of_even, even, |tensor, values| assert_eq!(collected[tensor], values));
                (plan.shards().to_vec(), sums, gathered, collected)
            });
            let sent = |value: f32| if dtype == CommDType::F32 { value } else { bf16::from_f32(value).to_f32() };
            let given: Vec<_> = (0..count).map(|rank| tensors(&sizes, rank)).collect();
            let mut expected = sizes.iter().map(|&size| vec![0.0; size]).collect::<Vec<_>>();
            let mut owned = 0;
            for (owner, (shards, sums, ..)) in found.iter().enumerate() {
                for (Shard { tensor, range }, sum) in shards.iter().zip(sums) {
                    prop_assert!(!whole[*tensor] || *range == (0..sizes[*tensor]), "{tensor} is cut");
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
