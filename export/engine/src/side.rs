//! Side adapters: `s·B·(A·x)` added to the output of a ternary product (`bitnet_format::adapter`).
//!
//! Both factors are held in BF16. `x` is the layer's input before it is quantised. For each token
//!
//! ```text
//! h[k]    = A[k,:]·x                                   the dot product of the kernel
//! out[j] += s·(…((0 + h[0]·B[j,0]) + h[1]·B[j,1]) + …)   in f32, k ascending, nothing fused
//! ```
//!
//! so a token's result is the same alone and among others, and with any number of threads.
#![expect(clippy::inline_always, reason = "the kernel's instruction set must reach every line")]

use std::ops::Range;

use bitnet_format::adapter::Adapter;
use bitnet_format::{DType, TensorEntry};
use bitnet_kernels::{DenseMatrix, SimdWork};
use half::bf16;

use crate::compute::KernelChoice;
use crate::linear::dense;
use crate::workspace::{Products, scratch_slice};

/// Outputs whose sums stay in registers.
const TILE: usize = 64;

/// What a multiply-add here costs next to one of the ternary product, roughly.
const COST: usize = 4;

/// The factors beside some matrices that lie one below the other, `[N, K]` together.
pub(crate) struct SideProduct {
    /// `A` of each adapted matrix, one below the other: `[n·r, K]`
    down: DenseMatrix,
    parts: Vec<AdaptedRows>,
    rank: usize,
    scale: f32,
    /// `N`
    rows: usize,
}

/// `B` of one matrix.
struct AdaptedRows {
    /// Which of the `N` outputs it adds to.
    rows: Range<usize>,
    /// Its transpose `[r, out]`, so that neighbouring outputs lie side by side.
    up: Vec<bf16>,
}

impl SideProduct {
    /// The factors of `entries`, matrices of `K` columns that lie one below the other; `None` where no
    /// one of them is adapted.
    ///
    /// # Panics
    /// If the adapter was opened for a model of another shape.
    pub(crate) fn of(entries: &[TensorEntry], adapter: &Adapter) -> Option<Self> {
        let columns = entries[0].shape[1];
        let (rank, scale) = (adapter.description().rank, adapter.description().scale());
        let (mut down, mut parts) = (DenseMatrix::empty(columns, DType::Bf16), Vec::new());
        let mut first = 0;
        for entry in entries {
            let rows = first..first + entry.shape[0];
            first = rows.end;
            let Some(factors) = adapter.of(entry) else { continue };
            let shape = (factors.a.len(), factors.b.len());
            assert_eq!(shape, (rank * columns, rows.len() * rank), "an adapter of this shape");
            down.push_rows(&factors.a);
            parts.push(AdaptedRows { rows, up: transposed(&factors.b, rank) });
        }
        (!parts.is_empty()).then_some(Self { down, parts, rank, scale, rows: first })
    }

    /// Number of values of all factors.
    pub(crate) fn parameters(&self) -> usize {
        let up: usize = self.parts.iter().map(|part| part.up.len()).sum();
        self.down.rows() * self.down.columns() + up
    }

    /// `x [T, K]`: adds to `out [T, N]`.
    pub(crate) fn add(
        &self,
        compute: KernelChoice,
        x: &[f32],
        products: &mut Products,
        out: &mut [f32],
    ) {
        let (width, tokens) = (self.down.rows(), out.len() / self.rows);
        let Products { low_rank, tiles, .. } = products;
        let hidden = scratch_slice(low_rank, tokens * width);
        dense(compute, &self.down, x, tiles, hidden);
        let hidden = &*hidden;
        if tokens == 1 {
            compute.threads.split(out, TILE, COST * TILE * self.rank, |tile, out| {
                compute.kernel.dispatch(Up { side: self, hidden, first: tile * TILE, out });
            });
        } else {
            compute.threads.split(out, self.rows, COST * self.rows * self.rank, |token, out| {
                let hidden = hidden[token * width..].chunks_exact(width);
                for (out, hidden) in out.chunks_exact_mut(self.rows).zip(hidden) {
                    compute.kernel.dispatch(Up { side: self, hidden, first: 0, out });
                }
            });
        }
    }
}

/// Adds to the outputs of one token from `first` on; `hidden [n·r]` is `A·x` of all parts.
struct Up<'a> {
    side: &'a SideProduct,
    hidden: &'a [f32],
    first: usize,
    out: &'a mut [f32],
}

impl SimdWork for Up<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { side, hidden, first, out } = self;
        let end = first + out.len();
        for (part, hidden) in side.parts.iter().zip(hidden.chunks_exact(side.rank)) {
            // A tile of outputs may begin in one matrix (q) and end in the next (k), or meet one
            // without factors.
            let here = part.rows.start.max(first)..part.rows.end.min(end);
            if !here.is_empty() {
                let places = &mut out[here.start - first..here.end - first];
                part.add_to(hidden, side.scale, here.start - part.rows.start, places);
            }
        }
    }
}

impl AdaptedRows {
    /// Adds to the outputs of this matrix from `first` on; `hidden [r]`.
    #[inline(always)]
    fn add_to(&self, hidden: &[f32], scale: f32, first: usize, out: &mut [f32]) {
        let (tiles, rest) = out.as_chunks_mut::<TILE>();
        let whole = tiles.len() * TILE;
        for (at, tile) in tiles.iter_mut().enumerate() {
            // The sum is complete before it is scaled and added: k ascending, whatever the tile or
            // thread.
            let mut sums = [0.0; TILE];
            self.sum(hidden, first + at * TILE, &mut sums);
            tile.iter_mut().zip(sums).for_each(|(out, sum)| *out += scale * sum);
        }
        let mut sums = [0.0; TILE];
        let sums = &mut sums[..rest.len()];
        self.sum(hidden, first + whole, sums);
        rest.iter_mut().zip(sums).for_each(|(out, sum)| *out += scale * *sum);
    }

    /// `sums[j] += Σ hidden[k]·B[first + j, k]`, k ascending.
    #[inline(always)]
    fn sum(&self, hidden: &[f32], first: usize, sums: &mut [f32]) {
        for (h, up) in hidden.iter().zip(self.up.chunks_exact(self.rows.len())) {
            let up = &up[first..][..sums.len()];
            sums.iter_mut().zip(up).for_each(|(sum, up)| *sum += h * finite_value(*up));
        }
    }
}

/// The value of a finite BF16: the conversion of the library asks for NaN first.
#[inline(always)]
fn finite_value(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// `[out, r]` → `[r, out]`, rounded to BF16.
fn transposed(b: &[f32], rank: usize) -> Vec<bf16> {
    let column = |k: usize| b.iter().skip(k).step_by(rank).map(|&value| bf16::from_f32(value));
    (0..rank).flat_map(column).collect()
}

impl std::fmt::Debug for SideProduct {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SideProduct of rank {} beside {} matrices", self.rank, self.parts.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ThreadPool;
    use bitnet_format::adapter::{
        AdapterDescription, AdapterKind, LowRankFactor, matching_entries, write_adapter,
    };
    use bitnet_format::{ModelSpec, tensor_table};
    use bitnet_kernels::Kernel;
    use proptest::prelude::*;

    /// Values in [-1, 1) that BF16 holds, different for each seed.
    fn values(seed: u64, count: usize) -> Vec<f32> {
        let mut x = seed | 1;
        let mut draw = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bf16::from_f32((x >> 40) as f32 / (1u64 << 23) as f32 - 1.0).to_f32()
        };
        (0..count).map(|_| draw()).collect()
    }

    fn spec(heads: usize, ffn: usize) -> ModelSpec {
        toml::from_str(&format!(
            "hidden_size = {}\nintermediate_size = {ffn}\nnum_hidden_layers = 1\nhead_dim = 6\n\
             num_attention_heads = {}\nnum_key_value_heads = {heads}\nvocab_size = 8\n",
            7 * heads + ffn % 5,
            2 * heads,
        ))
        .unwrap()
    }

    fn adapter(spec: &ModelSpec, targets: &[&str], rank: usize, seed: u64) -> Adapter {
        let dir = tempfile::tempdir().unwrap();
        let (kind, base_path) = (AdapterKind::Side, String::new());
        let description = AdapterDescription { kind, rank, alpha: 1.5, base_path, base_hash: None };
        let targets: Vec<_> = targets.iter().map(|&word| word.to_owned()).collect();
        let adapted = matching_entries(spec, &targets).unwrap();
        let mut number = seed;
        let of = |entry: &TensorEntry, factor: LowRankFactor| {
            number += 1;
            Ok(values(number, factor.shape(entry, rank).iter().product()))
        };
        write_adapter(dir.path(), &description, spec, &adapted, DType::Bf16, of).unwrap();
        Adapter::open(dir.path(), spec).unwrap()
    }

    /// What is added to output `j` of a matrix in exact arithmetic, and the sum of the magnitudes.
    fn exact(adapter: &Adapter, entry: &TensorEntry, x: &[f32], j: usize) -> (f64, f64) {
        let Some(factors) = adapter.of(entry) else { return (0.0, 0.0) };
        let rank = adapter.description().rank;
        let (mut sum, mut size) = (0.0, 0.0);
        for (k, a) in factors.a.chunks_exact(x.len()).enumerate() {
            for (a, x) in a.iter().zip(x) {
                let term = f64::from(*a) * f64::from(*x) * f64::from(factors.b[j * rank + k]);
                sum += term;
                size += term.abs();
            }
        }
        let scale = f64::from(adapter.description().scale());
        (scale * sum, scale * size)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn the_low_rank_product_is_added_to_its_own_outputs(
            heads in 1usize..9, ffn in 1usize..90, rank in 1usize..20, tokens in 1usize..70,
            which in 1usize..8, seed in 0u64..1000,
        ) {
            let spec = spec(heads, ffn);
            let words = ["q_proj", "k_proj", "v_proj"];
            let chosen: Vec<_> = (0..3).filter(|i| which >> i & 1 == 1).map(|i| words[i]).collect();
            let adapter = adapter(&spec, &chosen, rank, seed);
            let table = tensor_table(&spec);
            let entries: Vec<_> = table.into_iter().skip(2).take(3).collect();
            let side = SideProduct::of(&entries, &adapter).unwrap();
            let x = values(seed + 500, tokens * spec.hidden_size);
            let before = values(seed + 700, tokens * side.rows);
            let mut out = before.clone();
            let pool = ThreadPool::new(2).unwrap();
            let compute = KernelChoice { kernel: Kernel::detect(), threads: &pool };
            side.add(compute, &x, &mut Products::default(), &mut out);
            let columns = spec.hidden_size;
            for (token, x) in x.chunks(columns).enumerate() {
                let mut at = token * side.rows;
                for entry in &entries {
                    for j in 0..entry.shape[0] {
                        let (sum, size) = exact(&adapter, entry, x, j);
                        // One rounding for each term of both sums, at most.
                        let terms = (columns + rank + 3) as f64;
                        let bound = terms * f64::from(f32::EPSILON) * (size + 1.0);
                        let found = f64::from(out[at]) - f64::from(before[at]);
                        prop_assert!((found - sum).abs() <= bound, "{found} for {sum}");
                        at += 1;
                    }
                }
            }
        }
    }

    #[test]
    fn matrices_without_an_adapter_have_none_beside_them() {
        let spec = spec(2, 12);
        let adapter = adapter(&spec, &["down_proj"], 2, 1);
        let table = tensor_table(&spec);
        assert!(SideProduct::of(&table[2..5], &adapter).is_none());
    }
}
