//! The gate of the feed-forward half and its gradient.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_format::HiddenAct;
use bitnet_kernels::Work;
use burn::backend::TensorMetadata;
use burn_flex::{Flex, FlexTensor};

use crate::ops::Compute;
use crate::ops::autodiff::Saved;
use crate::ops::flex::{floats, in_rows, tensor, with_last};

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
    fn backward(self, dy: FlexTensor) -> [FlexTensor; 1] {
        let dy = dy.to_contiguous();
        let (values, dy) = (floats(&self.gate_up), floats(&dy));
        let shape = self.gate_up.shape();
        let width = shape[shape.num_dims() - 1] / 2;
        let mut dx = vec![0.0; values.len()];
        in_rows(&mut dx, 2 * width, |first, dx| {
            let values = &values[first * 2 * width..][..dx.len()];
            let dy = &dy[first * width..][..dx.len() / 2];
            self.compute.kernel.compiled(Backward { values, dy, act: self.act, width, dx });
        });
        [tensor(dx, shape)]
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
    values: &'a [f32],
    dy: &'a [f32],
    act: HiddenAct,
    width: usize,
    dx: &'a mut [f32],
}

impl Work for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { values, dy, act, width, dx } = self;
        let rows = dx.chunks_exact_mut(2 * width).zip(values.chunks_exact(2 * width));
        for ((dx, values), dy) in rows.zip(dy.chunks_exact(width)) {
            let ((gate, up), (dgate, dup)) = (values.split_at(width), dx.split_at_mut(width));
            let places = dgate.iter_mut().zip(dup).zip(dy);
            for (((dgate, dup), dy), (&gate, up)) in places.zip(gate.iter().zip(up)) {
                let (value, slope) = activation(act, gate);
                *dup = dy * value;
                *dgate = dy * up * slope;
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
