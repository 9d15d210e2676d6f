//! How close the kernels come to what the machine can do, on the shapes of bitnet-b1.58-2B-4T.
//!
//! `cargo run --release -p bitnet-kernels --example kernel_speed`. One pass is all 210 ternary
//! matrices of the model (521 MB at two bits, so from memory), or 512 tokens through a matrix. The
//! limits are measured in the same run. No threads wait for each other inside a pass.
#![allow(clippy::print_stdout, reason = "results belong on stdout")]

use std::time::Instant;

use bitnet_format::packed::PackedTernary;
use bitnet_format::quant::WeightScale;
use bitnet_kernels::limits::{int8_operations, memory_read};
use bitnet_kernels::{
    Activations, Int8Matrix, Kernel, Pages, TernaryPanels, huge_page_bytes, matmul,
};

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
const REPEATS: usize = 7;

fn panels(rows: usize, columns: usize, seed: &mut u64) -> TernaryPanels {
    let bytes = (0..rows / 4 * columns).map(|_| {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let byte = (*seed >> 56) as u8;
        byte & !((byte >> 1) & 0x55) // no field holds 3
    });
    let packed = PackedTernary::from_bytes(rows, columns, bytes.collect()).expect("no field is 3");
    let scale = WeightScale::from_stored(0.02).expect("a positive number");
    TernaryPanels::stack(&[(packed, scale)])
}

fn floats(count: usize, columns: usize) -> Vec<f32> {
    (0..count * columns).map(|i| (i * 37 % 255) as f32 - 127.0).collect()
}

fn tokens(kernel: Kernel, count: usize, columns: usize) -> Activations {
    Activations::quantise(kernel, &floats(count, columns), columns)
}

/// Seconds of the fastest of a few calls of `work(thread)` on all threads.
///
/// Each thread has a place for results, so that no page is touched first while the clock runs.
fn best(threads: usize, places: usize, work: impl Fn(usize, &mut [f32]) + Sync) -> f64 {
    let mut places: Vec<Vec<f32>> = (0..threads).map(|_| vec![1.0; places]).collect();
    let mut once = || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (thread, places) in places.iter_mut().enumerate() {
                let work = &work;
                scope.spawn(move || work(thread, places));
            }
        });
        start.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// The rows of one thread, in whole pairs of panels.
fn share(rows: usize, thread: usize, threads: usize) -> std::ops::Range<usize> {
    let pairs = rows.div_ceil(32);
    let at = |thread: usize| (pairs * thread / threads * 32).min(rows);
    at(thread)..at(thread + 1)
}

fn main() {
    let mut seed = 1;
    let matrices: Vec<TernaryPanels> = (0..LAYERS)
        .flat_map(|_| LAYER)
        .map(|(rows, columns)| panels(rows, columns, &mut seed))
        .collect();
    let bytes: usize = matrices.iter().map(|m| m.rows() * m.columns() / 4).sum();
    let mut head = Int8Matrix::new(128_256, 2560);
    let row: Vec<f32> = (0..2560).map(|i| (i * 31 % 101) as f32 - 50.0).collect();
    (0..head.rows()).for_each(|_| head.push_rows(&row));
    println!("{} MB ternary, {} MB head", bytes / 1_000_000, 128_256 * 2560 / 1_000_000);
    println!("{} MB on huge pages", huge_page_bytes().unwrap_or(0) / 1_000_000);
    for threads in [1, 2] {
        let read = |pages| memory_read(1 << 30, pages, threads) / 1e9;
        let (huge, small) = (read(Pages::Huge), read(Pages::Small));
        let peak = int8_operations(threads).unwrap_or(f64::NAN) / 1e9;
        println!(
            "{threads} threads: memory {huge:.1} GB/s huge pages, {small:.1} small; int8 {peak:.0} Gop/s"
        );
        for kernel in Kernel::available() {
            if kernel == Kernel::Scalar {
                continue;
            }
            let x = [tokens(kernel, 1, 2560), tokens(kernel, 1, 6912)];
            let seconds = best(threads, 6912, |thread, out| {
                for matrix in &matrices {
                    let x = &x[usize::from(matrix.columns() == 6912)];
                    let rows = share(matrix.rows(), thread, threads);
                    let count = rows.len();
                    matmul(kernel, matrix, x, rows, &mut out[..count]);
                }
            });
            let rate = bytes as f64 / seconds / 1e9;
            println!(
                "  {:<12} decode  {:6.1} passes/s {rate:6.1} GB/s = {:3.0} % of memory",
                kernel.name(),
                1.0 / seconds,
                100.0 * rate / huge
            );
            let one = [floats(1, 2560), floats(1, 6912)];
            let seconds = best(threads, 6912, |thread, out| {
                for matrix in &matrices {
                    let x = &one[usize::from(matrix.columns() == 6912)];
                    let rows = share(matrix.rows(), thread, threads);
                    let count = rows.len();
                    matrix.float_product(kernel, x, rows, &mut out[..count]);
                }
            });
            let rate = bytes as f64 / seconds / 1e9;
            println!(
                "  {:<12} floats  {:6.1} passes/s {rate:6.1} GB/s = {:3.0} % of memory",
                kernel.name(),
                1.0 / seconds,
                100.0 * rate / huge
            );
            let seconds = best(threads, head.rows(), |thread, out| {
                let rows = share(head.rows(), thread, threads);
                let count = rows.len();
                head.matmul(kernel, &x[0], rows, &mut out[..count]);
            });
            let rate = 128_256.0 * 2560.0 / seconds / 1e9;
            println!(
                "  {:<12} head    {:6.2} ms {rate:6.1} GB/s = {:3.0} % of memory",
                kernel.name(),
                1e3 * seconds,
                100.0 * rate / huge
            );
            for matrix in [&matrices[0], &matrices[4], &matrices[6]] {
                let x = tokens(kernel, 512, matrix.columns());
                let seconds = best(threads, 512 * matrix.rows(), |thread, out| {
                    let rows = share(matrix.rows(), thread, threads);
                    let count = 512 * rows.len();
                    matmul(kernel, matrix, &x, rows, &mut out[..count]);
                });
                let rate = 2.0 * 512.0 * (matrix.rows() * matrix.columns()) as f64 / seconds / 1e9;
                println!(
                    "  {:<12} prefill {:>4} x {:<4} {rate:6.0} Gop/s = {:3.0} % of the peak",
                    kernel.name(),
                    matrix.rows(),
                    matrix.columns(),
                    100.0 * rate / peak
                );
            }
            let (matrix, x) = (&matrices[0], floats(512, 2560));
            let seconds = best(threads, 512 * matrix.rows(), |thread, out| {
                let rows = share(matrix.rows(), thread, threads);
                let count = 512 * rows.len();
                matrix.float_product(kernel, &x, rows, &mut out[..count]);
            });
            println!(
                "  {:<12} floats  {:>4} x {:<4} {:6.0} Gop/s",
                kernel.name(),
                matrix.rows(),
                matrix.columns(),
                2.0 * 512.0 * (matrix.rows() * matrix.columns()) as f64 / seconds / 1e9
            );
        }
    }
}
