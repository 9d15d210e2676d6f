//! How fast one core makes the backward products of a ternary layer in integers, next to bf16 and f32,
//! quantisation and packing included: the best of alternating runs in one process.
//!
//! `cargo run --release -p bitnet-kernels --example backward_speed [-- KERNEL]`
#![allow(clippy::print_stdout, reason = "results belong on stdout")]

use std::time::Instant;

use bitnet_format::quant::WeightScale;
use bitnet_kernels::{
    Int8Matrix, Kernel, MatrixA, MatrixB, OperandLayout, Operands, OutputGradient, RandomBits,
    Rounding, Scale, Size, TernaryPanels, float_product, input_gradient, weight_gradient,
};

const REPEATS: usize = 30;

/// Tokens of a block, inputs and outputs of a layer.
const SHAPES: [[usize; 3]; 6] = [
    [256, 256, 512],
    [256, 256, 1376],
    [256, 688, 256],
    [1024, 256, 1376],
    [512, 512, 2752],
    [512, 2560, 2560],
];

struct Layer {
    kernel: Kernel,
    width: usize,
    weights: Vec<i8>,
    activations: Vec<i8>,
    weight_scales: Vec<f32>,
    inverse_scales: Vec<f32>,
    dy: Vec<f32>,
}

impl Layer {
    fn new(kernel: Kernel, [tokens, width, out]: [usize; 3]) -> Self {
        Self {
            kernel,
            width,
            weights: (0..out * width).map(|i| (i * 7919 % 3) as i8 - 1).collect(),
            activations: (0..tokens * width).map(|i| (i * 31 % 255) as u8 as i8).collect(),
            weight_scales: vec![0.02; out],
            inverse_scales: vec![0.03; tokens],
            dy: (0..tokens * out).map(|i| (i * 7919 % 1013) as f32 / 1013.0 - 0.5).collect(),
        }
    }

    fn float(&self, operands: Operands, [dx, dw]: [&mut [f32]; 2]) -> [f64; 2] {
        let (out, tokens) = (self.weight_scales.len(), self.inverse_scales.len());
        let (values, stride, columns) = (&self.dy[..], out, self.width);
        let (layout, scale) = (OperandLayout::KInner, Scale::Each(&self.weight_scales));
        let a = MatrixA { values, layout, stride, first: 0, scale };
        let size = Size { rows: tokens, depth: out, columns };
        let (b, start) = (MatrixB::Codes(&self.weights), Instant::now());
        float_product(self.kernel, operands, size, a, b, false, dx);
        let input = start.elapsed().as_secs_f64();
        let (layout, scale) = (OperandLayout::KOuter, Scale::Each(&self.inverse_scales));
        let a = MatrixA { values, layout, stride, first: 0, scale };
        let size = Size { rows: out, depth: tokens, columns };
        let (b, start) = (MatrixB::Codes(&self.activations), Instant::now());
        float_product(self.kernel, operands, size, a, b, false, dw);
        [input, start.elapsed().as_secs_f64()]
    }

    fn integers(&self, [dx, dw]: [&mut [f32]; 2]) -> [f64; 2] {
        let (kernel, out) = (self.kernel, self.weight_scales.len());
        let rounding = Rounding::Stochastic(RandomBits::new(1, 2));
        let dy = OutputGradient { values: &self.dy, stride: out, rounding, place: 0 };
        let start = Instant::now();
        let one = vec![WeightScale::from_stored(1.0).expect("positive"); self.width];
        let mut panels = TernaryPanels::for_rows(out, one);
        panels.groups().for_each(|mut group| group.transpose(kernel, &self.weights));
        input_gradient(kernel, &panels, (dy, 0..out), &self.weight_scales, (false, dx));
        let (input, start) = (start.elapsed().as_secs_f64(), Instant::now());
        let mut matrix = Int8Matrix::for_transpose(self.width, self.inverse_scales.len());
        matrix.panel_groups(4).for_each(|group| group.transpose(kernel, &self.activations));
        weight_gradient(kernel, &matrix, (dy, 0..out), &self.inverse_scales, (false, dw));
        [input, start.elapsed().as_secs_f64()]
    }
}

/// The best times of both products in f32, bf16 and integers, in seconds.
fn best(layer: &Layer) -> [[f64; 2]; 3] {
    let mut dx = vec![0.0; layer.inverse_scales.len() * layer.width];
    let mut dw = vec![0.0; layer.weight_scales.len() * layer.width];
    let mut best = [[f64::INFINITY; 2]; 3];
    for _ in 0..REPEATS {
        let runs = [
            layer.float(Operands::F32, [&mut dx, &mut dw]),
            layer.float(Operands::Bf16, [&mut dx, &mut dw]),
            layer.integers([&mut dx, &mut dw]),
        ];
        for (best, run) in best.as_flattened_mut().iter_mut().zip(runs.as_flattened()) {
            *best = best.min(*run);
        }
    }
    best
}

fn main() {
    let wanted = std::env::args().nth(1);
    for kernel in Kernel::available() {
        let asked = wanted.as_deref().is_none_or(|name| name == kernel.name());
        if kernel == Kernel::Scalar || !asked {
            continue;
        }
        println!("{}: Gop/s in f32, bf16, integers; integers against bf16", kernel.name());
        for shape in SHAPES {
            let layer = Layer::new(kernel, shape);
            let [tokens, width, out] = shape;
            let operations = 2.0 * (tokens * width * out) as f64 / 1e9;
            let times = best(&layer);
            for (at, name) in ["dX", "dW"].into_iter().enumerate() {
                let [f32, bf16, int8] = times.map(|products| operations / products[at]);
                let ratio = int8 / bf16;
                println!(
                    "  {name} {tokens:>5} x {width:>4} -> {out:<5}{f32:7.0}{bf16:7.0}{int8:7.0}{ratio:7.2}"
                );
            }
        }
    }
}
