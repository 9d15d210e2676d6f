//! The gate of the feed-forward half, `y = act(gate) · up`, with squared ReLU (arXiv 2504.12285, §2)
//! or `SiLU` (arXiv 2002.05202).
//!
//! One product makes gate and up, so a token's row holds both:
//!
//! ```text
//! [ gate 0 … gate F-1 | up 0 … up F-1 ]  →  [ y 0 … y F-1 ]
//! ```
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_format::HiddenAct;
use bitnet_kernels::SimdWork;
use burn::backend::{Dispatch, TensorMetadata};
use burn::tensor::{Tensor, activation};
use burn_flex::FlexTensor;

use crate::ops::OpBackend;
use crate::ops::native::{
    NativeDispatch, NativeOp, floats, in_rows, into_floats, tensor, unwritten, with_last,
};

/// `act(gate) · up`: `gate_up [B, T, 2F]`, gate first → `[B, T, F]`
pub fn gated(gate_up: Tensor<3>, act: HiddenAct, backend: OpBackend) -> Tensor<3> {
    if !backend.is_native() {
        return reference(gate_up, act);
    }
    let op = NativeGate { act, backend };
    Tensor::from_dispatch(Dispatch::run1(gate_up.into_dispatch(), op))
}

fn reference(gate_up: Tensor<3>, act: HiddenAct) -> Tensor<3> {
    let width = gate_up.dims()[2] / 2;
    let (gate, up) = (gate_up.clone().narrow(2, 0, width), gate_up.narrow(2, width, width));
    let gate = match act {
        HiddenAct::Relu2 => activation::relu(gate).square(),
        HiddenAct::Silu => activation::silu(gate),
    };
    gate * up
}

#[derive(Clone, Debug)]
struct NativeGate {
    act: HiddenAct,
    backend: OpBackend,
}

/// The input: activation and derivative are cheaper to compute again than to keep.
#[derive(Clone, Debug)]
struct SavedGate {
    gate_up: FlexTensor,
    op: NativeGate,
}

impl NativeOp<1> for NativeGate {
    type Saved = SavedGate;

    fn forward(self, [gate_up]: [FlexTensor; 1]) -> (FlexTensor, SavedGate) {
        let gate_up = gate_up.to_contiguous();
        let shape = gate_up.shape();
        let width = shape[shape.num_dims() - 1] / 2;
        let values = floats(&gate_up);
        let mut y = unwritten(values.len() / 2);
        in_rows(&mut y, width, |first, y| {
            // Rows of the input are twice as wide as those of the result.
            let gate_up = &values[first * 2 * width..][..2 * y.len()];
            self.backend.kernel.dispatch(Forward { gate_up, act: self.act, width, y });
        });
        let y = tensor(y, with_last(&shape, width));
        (y, SavedGate { gate_up, op: self })
    }

    /// Writes the gradient over the saved input.
    fn backward(saved: SavedGate, dy: FlexTensor) -> [FlexTensor; 1] {
        let SavedGate { gate_up, op } = saved;
        let (dy, shape) = (dy.to_contiguous(), gate_up.shape());
        let (dy, width) = (floats(&dy), shape[shape.num_dims() - 1] / 2);
        let mut gate_up = into_floats(gate_up);
        in_rows(&mut gate_up, 2 * width, |first, gate_up| {
            let dy = &dy[first * width..][..gate_up.len() / 2];
            op.backend.kernel.dispatch(BackwardRows { gate_up, dy, act: op.act, width });
        });
        [tensor(gate_up, shape)]
    }
}

struct Forward<'a> {
    gate_up: &'a [f32],
    act: HiddenAct,
    width: usize,
    y: &'a mut [f32],
}

impl SimdWork for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { gate_up, act, width, y } = self;
        for (y, gate_up) in y.chunks_exact_mut(width).zip(gate_up.chunks_exact(2 * width)) {
            let (gate, up) = gate_up.split_at(width);
            for ((y, &gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = act.value(gate) * up;
            }
        }
    }
}

struct BackwardRows<'a> {
    gate_up: &'a mut [f32],
    dy: &'a [f32],
    act: HiddenAct,
    width: usize,
}

impl SimdWork for BackwardRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { gate_up, dy, act, width } = self;
        for (gate_up, dy) in gate_up.chunks_exact_mut(2 * width).zip(dy.chunks_exact(width)) {
            let (gate, up) = gate_up.split_at_mut(width);
            for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
                let (value, derivative) = act.value_and_derivative(*gate);
                // Gate first: its gradient needs `up` as it was.
                *gate = dy * *up * derivative;
                *up = dy * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_within, cases, draw, gradient, leaf, with_gradients};
    use bitnet_kernels::Operands;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(cases(24))]

        #[test]
        fn the_gate_equals_its_reference(
            time in 1usize..40, width in 1usize..70, silu: bool, seed: u64,
        ) {
            let act = if silu { HiddenAct::Silu } else { HiddenAct::Relu2 };
            let x = leaf(draw(seed, "x", 2 * time * width), [1, time, 2 * width]);
            let [expected, found] = [OpBackend::reference, OpBackend::native].map(|backend| {
                let y = gated(x.clone(), act, backend(Operands::F32));
                with_gradients(&y, seed, |grads| vec![gradient(&x, grads)])
            });
            assert_within(&found, &expected, 1e-6, "gate");
        }
    }
}
