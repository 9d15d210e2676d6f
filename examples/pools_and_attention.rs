//! Why training and engine have a thread pool and an attention each: what the other's would cost.
//!
//! `cargo run --release --example pools_and_attention -- [--threads N] [--repeats N]`. Both sides of a
//! ratio run alternately in this one process, on the shapes of bitnet-b1.58-2B-4T, so that noise of
//! the machine meets both. `spread` is the middle half of the repeats' ratios.
#![allow(clippy::print_stdout, reason = "results belong on stdout")]

use std::sync::Arc;
use std::time::Instant;

use bitnet_engine::ThreadPool;
use bitnet_format::packed::PackedTernary;
use bitnet_format::quant::WeightScale;
use bitnet_kernels::attention::{HeadLayout, HeadView, LANES, PAGE, QUERIES, QueryRow, attend};
use bitnet_kernels::{Activations, Kernel, Operands, ROWS_PER_PAIR, TernaryPanels, matmul};
use bitnet_train::ops::{AttentionShape, LazyMask, OpBackend, attention};
use bitnet_train::random;
use burn::tensor::{Device, Tensor, TensorData};
use clap::Parser;
use rand::RngExt;
use rayon::prelude::*;

/// `[N, K]` of one layer: q, k, v, o, gate, up, down.
const LAYER: [(usize, usize); 7] = [
    (2560, 2560),
    (640, 2560),
    (640, 2560),
    (2560, 2560),
    (6912, 2560),
    (6912, 2560),
    (2560, 6912),
];
const LAYERS: usize = 30;
const HEADS: usize = 20;
const KEY_HEADS: usize = 5;
const HEAD: usize = 128;
const LAYOUT: HeadLayout = HeadLayout { width: HEAD };
const CONTEXT: usize = 512;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 15)]
    repeats: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let engine = ThreadPool::new(args.threads)?;
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build()?;
    println!("{} threads, {} repeats", args.threads, args.repeats);
    for (what, width) in [("a decode step's products", 1), ("the same, a sixteenth as wide", 16)] {
        let products = Products::new(width, args.threads);
        let [mut left, mut right] = [products.places(), products.places()];
        compare(what, ["engine's pool", "rayon"], args.repeats, || {
            [
                timed(|| products.with_engine(&engine, &mut left)),
                timed(|| rayon.install(|| products.with_rayon(&mut right))),
            ]
        });
        assert_eq!(left, right, "threads change no bit");
    }
    let keys = Attention::new();
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    for rows in [1, CONTEXT] {
        let what = format!("attention of {rows} of {CONTEXT} tokens, a layer, one thread");
        compare(&what, ["engine's", "training's"], args.repeats, || {
            [timed(|| keys.with_engine(rows)), timed(|| one.install(|| keys.with_training()))]
        });
    }
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed().as_secs_f64()
}

/// Prints the medians of both sides and of their ratio; the first call only warms up.
fn compare(what: &str, names: [&str; 2], repeats: usize, mut once: impl FnMut() -> [f64; 2]) {
    once();
    let times: Vec<[f64; 2]> = (0..repeats).map(|_| once()).collect();
    let sorted = |of: &dyn Fn(&[f64; 2]) -> f64| {
        let mut all: Vec<f64> = times.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let median = |side: usize| sorted(&|times| times[side])[repeats / 2] * 1e3;
    let ratios = sorted(&|times| times[1] / times[0]);
    println!(
        "{what}: {} {:.3} ms, {} {:.3} ms, ratio {:.2} (spread {:.2} to {:.2})",
        names[0],
        median(0),
        names[1],
        median(1),
        ratios[repeats / 2],
        ratios[repeats / 4],
        ratios[repeats * 3 / 4]
    );
}

/// The matrices of a model, one row of activations for each width, and how work is cut.
struct Products {
    kernel: Kernel,
    matrices: Vec<(TernaryPanels, Activations)>,
    threads: usize,
}

impl Products {
    fn new(narrower: usize, threads: usize) -> Self {
        let (kernel, mut draw) = (
            Kernel::available().pop().expect("the scalar one at least"),
            random::keyed(1, "products", 0, 0),
        );
        let mut matrix = |(rows, columns): (usize, usize)| {
            let (rows, columns) = (rows / narrower / 4 * 4, columns / narrower);
            let bytes = (0..rows / 4 * columns).map(|_| {
                let byte: u8 = draw.random();
                byte & !((byte >> 1) & 0x55) // no field holds 3
            });
            let packed = PackedTernary::from_bytes(rows, columns, bytes.collect()).unwrap();
            let scale = WeightScale::from_stored(0.02).unwrap();
            let x: Vec<f32> = (0..columns).map(|i| (i * 37 % 255) as f32 - 127.0).collect();
            (TernaryPanels::stack(&[(packed, scale)]), Activations::quantise(kernel, &x, columns))
        };
        let matrices = (0..LAYERS).flat_map(|_| LAYER).map(&mut matrix).collect();
        Self { kernel, matrices, threads }
    }

    /// A place for every result.
    fn places(&self) -> Vec<Vec<f32>> {
        self.matrices.iter().map(|(panels, _)| vec![0.0; panels.rows()]).collect()
    }

    fn rows(&self, index: usize, first: usize, out: &mut [f32]) {
        let (panels, x) = &self.matrices[index];
        matmul(self.kernel, panels, x, first..first + out.len(), out);
    }

    fn with_engine(&self, pool: &ThreadPool, out: &mut [Vec<f32>]) {
        for (index, out) in out.iter_mut().enumerate() {
            let cost = ROWS_PER_PAIR * self.matrices[index].0.columns();
            pool.split(out, ROWS_PER_PAIR, cost, |unit, out| {
                self.rows(index, unit * ROWS_PER_PAIR, out);
            });
        }
    }

    /// As many parts as the engine makes: four a thread.
    fn with_rayon(&self, out: &mut [Vec<f32>]) {
        for (index, out) in out.iter_mut().enumerate() {
            let part = out.len().div_ceil(4 * self.threads).next_multiple_of(ROWS_PER_PAIR);
            let parts = out.par_chunks_mut(part).enumerate();
            parts.for_each(|(number, out)| self.rows(index, number * part, out));
        }
    }
}

/// Keys, values and queries of one layer, in the layout of each side.
struct Attention {
    kernel: Kernel,
    /// Pages of keys and values, of all key heads.
    pages: Vec<Arc<Vec<f32>>>,
    queries: Vec<f32>,
    shape: AttentionShape,
    qkv: Tensor<3>,
}

impl Attention {
    fn new() -> Self {
        let mut draw = random::keyed(2, "attention", 0, 0);
        let mut floats = |count: usize| -> Vec<f32> {
            (0..count).map(|_| draw.random::<f32>() * 2.0 - 1.0).collect()
        };
        let angles = CONTEXT * HEAD / 2;
        let shape = AttentionShape {
            batch: 1,
            time: CONTEXT,
            heads: HEADS,
            kv_heads: KEY_HEADS,
            head_dim: HEAD,
            segment_starts: Arc::new(vec![0; CONTEXT]),
            cos: Arc::new(vec![1.0; angles]),
            sin: Arc::new(vec![0.0; angles]),
            mask: LazyMask::default(),
        };
        let qkv = TensorData::new(floats(CONTEXT * shape.stride()), [1, CONTEXT, shape.stride()]);
        Self {
            kernel: Kernel::available().pop().expect("the scalar one at least"),
            pages: (0..CONTEXT / PAGE)
                .map(|_| Arc::new(floats(KEY_HEADS * LAYOUT.elements())))
                .collect(),
            queries: floats(HEADS * CONTEXT * HEAD),
            shape,
            qkv: Tensor::from_data(qkv, &Device::flex()),
        }
    }

    /// The last `rows` tokens over the cache, as many rows of a key head together as one pass takes.
    fn with_engine(&self, rows: usize) -> Vec<f32> {
        assert!(CONTEXT.is_multiple_of(PAGE) && HEAD.is_multiple_of(LANES), "no padding");
        let (group, mut scratch) = (HEADS / KEY_HEADS, Vec::new());
        let mut out = vec![0.0; rows * HEADS * HEAD];
        let together = QUERIES / group * group;
        for (head, out) in out.chunks_mut(rows * group * HEAD).enumerate() {
            let view =
                HeadView { pages: &self.pages, first: head * LAYOUT.elements(), layout: LAYOUT };
            for (run, out) in out.chunks_mut(together * HEAD).enumerate() {
                let query = |row: usize| QueryRow {
                    query: &self.queries[(run * together + row) * HEAD..][..HEAD],
                    visible: CONTEXT - rows + (run * together + row) / group + 1,
                };
                let queries: Vec<_> = (0..out.len() / HEAD).map(query).collect();
                attend(self.kernel, &queries, view, &mut scratch, out);
            }
        }
        out
    }

    /// All tokens: training keeps no cache, so this is what even one new token costs it.
    fn with_training(&self) -> Vec<f32> {
        let backend = OpBackend::native(Operands::F32);
        attention(self.qkv.clone(), &self.shape, backend).into_data().try_to_vec().unwrap()
    }
}
