//! How fast one core makes the float products of a training step, packing included.
//!
//! `cargo run --release -p bitnet-kernels --example float_speed`: the gradients of some linear
//! layers over 1024 tokens, and of a head over 256. A kernel's name as argument: only that one.
#![allow(clippy::print_stdout, reason = "results belong on stdout")]

use std::time::Instant;

use bitnet_kernels::{
    Kernel, MatrixA, MatrixB, OperandLayout, Operands, Scale, Size, float_product,
};

const REPEATS: usize = 20;

/// What is multiplied, by its size and how both sides lie.
struct Case {
    name: &'static str,
    size: Size,
    a: OperandLayout,
    /// `None`: codes.
    b: Option<OperandLayout>,
}

const fn case(
    name: &'static str,
    [rows, depth, columns]: [usize; 3],
    a: OperandLayout,
    b: Option<OperandLayout>,
) -> Case {
    Case { name, size: Size { rows, depth, columns }, a, b }
}

const CASES: [Case; 8] = [
    case("dX of 256 -> 1376", [1024, 1376, 256], OperandLayout::KInner, None),
    case("dW of 256 -> 1376", [1376, 1024, 256], OperandLayout::KOuter, None),
    case("dX of 688 -> 256", [1024, 256, 688], OperandLayout::KInner, None),
    case("dW of 688 -> 256", [256, 1024, 688], OperandLayout::KOuter, None),
    case("dX of 512 -> 2752", [1024, 2752, 512], OperandLayout::KInner, None),
    case("logits of 4096", [4096, 256, 256], OperandLayout::KInner, Some(OperandLayout::KInner)),
    case("dH of 4096", [256, 4096, 256], OperandLayout::KOuter, Some(OperandLayout::KOuter)),
    case("dW of 4096", [4096, 256, 256], OperandLayout::KInner, Some(OperandLayout::KOuter)),
];

fn seconds(kernel: Kernel, operands: Operands, case: &Case) -> f64 {
    let Size { rows, depth, columns } = case.size;
    let noise = |count: usize| -> Vec<f32> {
        (0..count).map(|i| (i * 7919 % 1013) as f32 / 1013.0 - 0.5).collect()
    };
    let (values, floats) = (noise(rows * depth), noise(depth * columns));
    let codes: Vec<i8> = (0..depth * columns).map(|i| (i * 31 % 255) as u8 as i8).collect();
    let stride = if case.a == OperandLayout::KInner { depth } else { rows };
    let (layout, scale) = (case.a, Scale::All(1.0));
    let a = MatrixA { values: &values, layout, stride, first: 0, scale };
    let b = case.b.map_or(MatrixB::Codes(&codes), |layout| MatrixB::Floats(&floats, layout));
    let mut out = vec![0.0; rows * columns];
    let mut once = || {
        let start = Instant::now();
        float_product(kernel, operands, case.size, a, b, false, &mut out);
        start.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(|_| once()).fold(f64::INFINITY, f64::min)
}

fn main() {
    let wanted = std::env::args().nth(1);
    for kernel in Kernel::available() {
        let asked = wanted.as_deref().is_none_or(|name| name == kernel.name());
        if kernel == Kernel::Scalar || !asked {
            continue;
        }
        for operands in [Operands::F32, Operands::Bf16, Operands::Bf16Tiles] {
            println!("{} {operands:?}", kernel.name());
            for case in &CASES {
                let Size { rows, depth, columns } = case.size;
                let operations = 2.0 * (rows * depth * columns) as f64;
                let rate = operations / seconds(kernel, operands, case) / 1e9;
                println!("  {:<18} {rate:7.0} GFLOP/s", case.name);
            }
        }
    }
}
