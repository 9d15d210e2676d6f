//! The gate of the feed-forward half and its gradient.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_format::HiddenAct;
use bitnet_kernels::Work;
use burn::backend::TensorMetadata;
use burn_flex::{Flex, FlexTensor};

use crate::ops::Compute;
use crate::ops::autodiff::Saved;
use crate::ops::flex::{floats, in_rows, into_floats, tensor, with_last};

/// What the gate keeps: its input.
#[derive(Clone, Debug)]
pub(crate) struct SavedGated {
    gate_up: FlexTensor,
    act: HiddenAct,
    compute: Compute,
}

pub(crate) fn forward(
    gate_up: FlexTensor,
    act: HiddenAct,
    compute: Compute,
) -> (FlexTensor, SavedGated) {
    let gate_up = gate_up.to_contiguous();
    let shape = gate_up.shape();
    let width = shape[shape.num_dims() - 1] / 2;
    let values = floats(&gate_up);
    let mut y = vec![0.0; values.len() / 2];
    in_rows(&mut y, width, |first, y| {
        let values = &values[first * 2 * width..][..2 * y.len()];
        compute.kernel.compiled(Forward { values, act, width, y });
    });
    let y = tensor(y, with_last(&shape, width));
    (y, SavedGated { gate_up, act, compute })
}

impl Saved<Flex, 1> for SavedGated {
    /// The gradient takes the place of the input, which nobody needs any more.
    fn backward(self, dy: FlexTensor) -> [FlexTensor; 1] {
        let Self { gate_up, act, compute } = self;
        let (dy, shape) = (dy.to_contiguous(), gate_up.shape());
        let (dy, width) = (floats(&dy), shape[shape.num_dims() - 1] / 2);
        let mut gate_up = into_floats(gate_up);
        in_rows(&mut gate_up, 2 * width, |first, gate_up| {
            let dy = &dy[first * width..][..gate_up.len() / 2];
            compute.kernel.compiled(Backward { gate_up, dy, act, width });
        });
        [tensor(gate_up, shape)]
    }
}

struct Forward<'a> {
    values: &'a [f32],
    act: HiddenAct,
    width: usize,
    y: &'a mut [f32],
}

impl Work for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { values, act, width, y } = self;
        for (y, values) in y.chunks_exact_mut(width).zip(values.chunks_exact(2 * width)) {
            let (gate, up) = values.split_at(width);
            for ((y, &gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = activation(act, gate).0 * up;
            }
        }
    }
}

struct Backward<'a> {
    gate_up: &'a mut [f32],
    dy: &'a [f32],
    act: HiddenAct,
    width: usize,
}

impl Work for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { gate_up, dy, act, width } = self;
        for (gate_up, dy) in gate_up.chunks_exact_mut(2 * width).zip(dy.chunks_exact(width)) {
            let (gate, up) = gate_up.split_at_mut(width);
            for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
                let (value, slope) = activation(act, *gate);
                *gate = dy * *up * slope;
                *up = dy * value;
            }
        }
    }
}

/// The activation and its slope.
#[inline(always)]
fn activation(act: HiddenAct, x: f32) -> (f32, f32) {
    match act {
        HiddenAct::Relu2 => {
            // Keeps NaN, which `max` would drop.
            let positive = if x < 0.0 { 0.0 } else { x };
            (positive * positive, 2.0 * positive)
        }
        HiddenAct::Silu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
        }
    }
}
