//! The operations on Burn's CPU backend, on its raw buffers. A micro-batch that is one of several
//! runs on one thread of the pool; one that is alone is shared out over all of them, by rows of the
//! result. Every sum has one order, so neither changes a bit.

mod adamw;
mod attention;
mod gated;
mod linear;
mod loss;
mod norm;

use bitnet_format::HiddenAct;
use bitnet_kernels::{Left, Order, Right, Size, float_product};
use burn::tensor::{Bytes, DType, Shape};
use burn_flex::{Flex, FlexTensor, Layout};
use rayon::prelude::*;

pub(crate) use loss::logits_at_once;

use crate::ops::autodiff::Differentiable;
use crate::ops::{AttentionShape, Compute, Targets, TrainOps, Update};

impl TrainOps for Flex {
    fn rms_norm(x: FlexTensor, gain: FlexTensor, eps: f32, compute: Compute) -> FlexTensor {
        norm::forward(x, gain, eps, compute).0
    }

    fn bit_linear(x: FlexTensor, latents: FlexTensor, compute: Compute) -> FlexTensor {
        linear::forward(x, [latents], compute).0
    }

    fn bit_linear_pair(
        x: FlexTensor,
        first: FlexTensor,
        second: FlexTensor,
        compute: Compute,
    ) -> FlexTensor {
        linear::forward(x, [first, second], compute).0
    }

    fn bit_linear_triple(
        x: FlexTensor,
        first: FlexTensor,
        second: FlexTensor,
        third: FlexTensor,
        compute: Compute,
    ) -> FlexTensor {
        linear::forward(x, [first, second, third], compute).0
    }

    fn gated(gate_up: FlexTensor, act: HiddenAct, compute: Compute) -> FlexTensor {
        gated::forward(gate_up, act, compute).0
    }

    fn causal_attention(qkv: FlexTensor, shape: AttentionShape, compute: Compute) -> FlexTensor {
        attention::forward(qkv, shape, compute).0
    }

    fn cross_entropy(
        hidden: FlexTensor,
        head: FlexTensor,
        targets: Targets,
        compute: Compute,
    ) -> FlexTensor {
        loss::value(&hidden, &head, &targets, compute)
    }

    fn adamw(
        value: FlexTensor,
        gradient: FlexTensor,
        first: FlexTensor,
        second: FlexTensor,
        update: Update,
        compute: Compute,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        adamw::update([value, gradient, first, second], update, compute)
    }

    fn sum_of_squares(x: FlexTensor, compute: Compute) -> FlexTensor {
        adamw::sum_of_squares(&x, compute)
    }
}

impl Differentiable for Flex {
    type Norm = norm::SavedNorm;
    type Linear = linear::SavedLinear;
    type Gated = gated::SavedGated;
    type Attention = attention::SavedAttention;
    type Loss = loss::SavedLoss;

    fn rms_norm_forward(
        x: FlexTensor,
        gain: FlexTensor,
        eps: f32,
        compute: Compute,
    ) -> (FlexTensor, Self::Norm) {
        norm::forward(x, gain, eps, compute)
    }

    fn bit_linear_forward<const N: usize>(
        x: FlexTensor,
        latents: [FlexTensor; N],
        compute: Compute,
    ) -> (FlexTensor, Self::Linear) {
        linear::forward(x, latents, compute)
    }

    fn gated_forward(
        gate_up: FlexTensor,
        act: HiddenAct,
        compute: Compute,
    ) -> (FlexTensor, Self::Gated) {
        gated::forward(gate_up, act, compute)
    }

    fn attention_forward(
        qkv: FlexTensor,
        shape: AttentionShape,
        compute: Compute,
    ) -> (FlexTensor, Self::Attention) {
        attention::forward(qkv, shape, compute)
    }

    fn cross_entropy_forward(
        hidden: FlexTensor,
        head: FlexTensor,
        targets: Targets,
        compute: Compute,
    ) -> (FlexTensor, Self::Loss) {
        loss::forward(&hidden, &head, &targets, compute)
    }
}

/// Calls `work(first row, rows of out)` until all of `out [rows, width]` is covered: in one call
/// on a thread of the pool, where the others are busy with other work, else in one call a thread.
fn in_rows(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let mut nothing = vec![(); out.len() / width];
    in_rows_with(out, width, &mut nothing, |first, out, _| work(first, out));
}

/// As [`in_rows`], with something beside each row.
fn in_rows_with<E: Send>(
    out: &mut [f32],
    width: usize,
    beside: &mut [E],
    work: impl Fn(usize, &mut [f32], &mut [E]) + Sync,
) {
    // Whole strips of the products.
    const STRIP: usize = 8;
    let rows = out.len() / width;
    if rayon::current_thread_index().is_some() || rows <= STRIP {
        return work(0, out, beside);
    }
    let share = rows.div_ceil(rayon::current_num_threads()).next_multiple_of(STRIP);
    out.par_chunks_mut(share * width)
        .zip(beside.par_chunks_mut(share))
        .enumerate()
        .for_each(|(part, (out, beside))| work(part * share, out, beside));
}

/// `out [rows, columns]` = a float product, or that added to it.
fn product(compute: Compute, size: Size, left: Left, right: Right, add: bool, out: &mut [f32]) {
    in_rows(out, size.columns, |first, out| {
        let size = Size { rows: out.len() / size.columns, ..size };
        let left = match left.order {
            Order::Inner => Left { values: &left.values[first * left.stride..], ..left },
            Order::Outer => Left { first: left.first + first, ..left },
        };
        float_product(compute.kernel, compute.operands, size, left, right, add, out);
    });
}

/// The values of a contiguous f32 tensor.
fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("the tensor was made contiguous and is f32")
}

/// The values of an f32 tensor to be written over: its own where nobody else holds them.
fn into_floats(tensor: FlexTensor) -> Vec<f32> {
    let contiguous = tensor.to_contiguous();
    drop(tensor);
    contiguous.into_data().try_into_vec().expect("the tensor is f32")
}

fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims = shape.to_vec();
    *dims.last_mut().expect("a tensor of at least one dimension") = last;
    Shape::from(dims)
}
