//! Matrices that lie outside of Burn's tensors ([`Latents`]), as the operations of a model read them:
//! rows of an embedding, or a whole matrix as a tensor. Each goes into the graph through an empty leaf,
//! whose gradient is the matrix's.

use std::sync::Arc;

use burn::backend::Dispatch;
use burn::tensor::{Shape, Tensor, TensorData};
use burn_flex::FlexTensor;

use crate::host::to_host;
use crate::latents::Latents;
use crate::ops::native::{NativeDispatch, NativeOp, floats, tensor};

/// The rows `ids [N]` of a matrix, `[N, in]`.
pub fn rows_outside(leaf: Tensor<2>, latents: &Latents, ids: Vec<i32>) -> Tensor<2> {
    let op = Rows { latents: latents.clone(), ids: Arc::new(ids) };
    Tensor::from_dispatch(Dispatch::run1(leaf.into_dispatch(), op))
}

/// A whole matrix in f32, `[out, in]`.
pub fn matrix_outside(leaf: Tensor<2>, latents: &Latents) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::run1(leaf.into_dispatch(), Whole(latents.clone())))
}

/// The gradient of an embedding of `words` rows, flat: that of its rows `ids [N]`, `upstream [N, C]`, added
/// to what it has from elsewhere.
pub fn embedding_gradient(
    sum: Option<Tensor<1>>,
    words: usize,
    ids: &[i32],
    upstream: Tensor<2>,
) -> Tensor<1> {
    let (width, device) = (upstream.dims()[1], upstream.device());
    let mut sum = sum.map_or_else(|| vec![0.0; words * width], to_host);
    add_rows(&mut sum, width, ids, &to_host(upstream));
    Tensor::from_data(TensorData::new(sum, [words * width]), &device)
}

/// Adds `rows [N, in]` to the rows `ids [N]` of `sum [out, in]`: each row's own terms first, in order,
/// then their sum to what is there, as two dense gradients would be added.
fn add_rows(sum: &mut [f32], width: usize, ids: &[i32], rows: &[f32]) {
    let mut by_id: Vec<usize> = (0..ids.len()).collect();
    by_id.sort_by_key(|&at| ids[at]);
    let mut own = vec![0.0; width];
    for group in by_id.chunk_by(|&a, &b| ids[a] == ids[b]) {
        own.fill(0.0);
        for &at in group {
            own.iter_mut().zip(&rows[at * width..]).for_each(|(own, row)| *own += row);
        }
        let place = &mut sum[ids[group[0]] as usize * width..][..width];
        place.iter_mut().zip(&own).for_each(|(sum, own)| *sum += own);
    }
}

#[derive(Clone, Debug)]
struct Rows {
    latents: Latents,
    ids: Arc<Vec<i32>>,
}

impl NativeOp<1> for Rows {
    type Saved = Self;

    fn forward(self, _: [FlexTensor; 1]) -> (FlexTensor, Self) {
        let view = self.latents.read();
        let width = view.shape()[1];
        let mut out = vec![0.0; self.ids.len() * width];
        for (out, &id) in out.chunks_exact_mut(width).zip(&*self.ids) {
            let row = id as usize;
            view.weights(row * width..(row + 1) * width, out);
        }
        drop(view);
        (tensor(out, Shape::from([self.ids.len(), width])), self)
    }

    fn backward(saved: Self, dy: FlexTensor) -> [FlexTensor; 1] {
        let [rows, width] = saved.latents.shape();
        let mut dense = vec![0.0; rows * width];
        add_rows(&mut dense, width, &saved.ids, floats(&dy.to_contiguous()));
        [tensor(dense, Shape::from([rows, width]))]
    }
}

#[derive(Clone, Debug)]
struct Whole(Latents);

impl NativeOp<1> for Whole {
    type Saved = ();

    fn forward(self, _: [FlexTensor; 1]) -> (FlexTensor, ()) {
        let view = self.0.read();
        (tensor(view.all(), Shape::from(view.shape())), ())
    }

    fn backward((): (), dy: FlexTensor) -> [FlexTensor; 1] {
        [dy]
    }
}
