//! What all native operations share: how they join Burn's dispatch and its autodiff graph, how rows
//! are split over threads, and how buffers are read and made.
//!
//! A native operation is a value that implements [`NativeOp`]. Burn routes each call by the backend
//! of its tensors:
//!
//! ```text
//! Dispatch::run2(x, gain, RmsNorm { .. })
//!   ├ Flex            → op.value([x, gain])                    no gradients
//!   └ Autodiff<Flex>  → op.forward([x, gain]) → (y, saved)     the graph keeps `saved` until
//!                       O::backward(saved, dy) → [dx, dgain]   the backward pass
//! ```
//!
//! Threads: parts of a micro-batch run at the same time, each on a thread of the pool. An operation that
//! is called there splits the rows of its result over this part's share of the threads
//! ([`with_threads`]), and stays on its own where that share is one. An operation that is called from
//! outside of the pool uses all threads. Each sum has one order, so no choice changes a bit.

use std::cell::Cell;
use std::fmt::Debug;
use std::marker::PhantomData;

pub(crate) use bitnet_kernels::unwritten;
use bitnet_kernels::{MatrixA, MatrixB, OperandLayout, Size, float_product};
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{Bytes, DType, Shape, Tensor};
use burn_flex::{Flex, FlexTensor, Layout};
use rayon::prelude::*;

use crate::ops::OpBackend;

/// An operation of `N` tensors on the CPU, with its settings as fields.
pub(crate) trait NativeOp<const N: usize>: Clone + Send + Debug + 'static {
    /// What the backward pass needs of the forward pass.
    type Saved: Clone + Send + Debug + 'static;

    /// The result, and what its backward pass needs.
    fn forward(self, inputs: [FlexTensor; N]) -> (FlexTensor, Self::Saved);

    /// The result alone.
    fn value(self, inputs: [FlexTensor; N]) -> FlexTensor {
        self.forward(inputs).0
    }

    /// The gradients of the inputs, from the gradient of the result.
    fn backward(saved: Self::Saved, dy: FlexTensor) -> [FlexTensor; N];
}

/// Calls a [`NativeOp`] on the tensors of whatever backend Burn finds in them. The macro takes no
/// arrays, hence one method for each number of inputs.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait NativeDispatch: Backend {
    fn run1<O: NativeOp<1>>(a: FloatTensor<Self>, op: O) -> FloatTensor<Self>;
    fn run2<O: NativeOp<2>>(a: FloatTensor<Self>, b: FloatTensor<Self>, op: O)
    -> FloatTensor<Self>;
    fn run3<O: NativeOp<3>>(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        op: O,
    ) -> FloatTensor<Self>;
    fn run4<O: NativeOp<4>>(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        op: O,
    ) -> FloatTensor<Self>;
}

impl NativeDispatch for Flex {
    fn run1<O: NativeOp<1>>(a: FlexTensor, op: O) -> FlexTensor {
        op.value([a])
    }

    fn run2<O: NativeOp<2>>(a: FlexTensor, b: FlexTensor, op: O) -> FlexTensor {
        op.value([a, b])
    }

    fn run3<O: NativeOp<3>>(a: FlexTensor, b: FlexTensor, c: FlexTensor, op: O) -> FlexTensor {
        op.value([a, b, c])
    }

    fn run4<O: NativeOp<4>>(
        a: FlexTensor,
        b: FlexTensor,
        c: FlexTensor,
        d: FlexTensor,
        op: O,
    ) -> FlexTensor {
        op.value([a, b, c, d])
    }
}

impl<C: CheckpointStrategy> NativeDispatch for Autodiff<Flex, C> {
    fn run1<O: NativeOp<1>>(a: FloatTensor<Self>, op: O) -> FloatTensor<Self> {
        tracked::<C, O, _>([a], op)
    }

    fn run2<O: NativeOp<2>>(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        op: O,
    ) -> FloatTensor<Self> {
        tracked::<C, O, _>([a, b], op)
    }

    fn run3<O: NativeOp<3>>(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        op: O,
    ) -> FloatTensor<Self> {
        tracked::<C, O, _>([a, b, c], op)
    }

    fn run4<O: NativeOp<4>>(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        op: O,
    ) -> FloatTensor<Self> {
        tracked::<C, O, _>([a, b, c, d], op)
    }
}

/// Runs an operation of an input and one to three matrices.
///
/// # Panics
/// With no matrix or more than three.
pub(crate) fn with_matrices<const N: usize, O>(
    x: Tensor<3>,
    all: [Tensor<2>; N],
    op: O,
) -> Tensor<3>
where
    O: NativeOp<2> + NativeOp<3> + NativeOp<4>,
{
    let x = x.into_dispatch();
    let mut all = all.into_iter().map(Tensor::into_dispatch);
    let y = match (all.next(), all.next(), all.next(), all.next()) {
        (Some(a), None, None, None) => Dispatch::run2(x, a, op),
        (Some(a), Some(b), None, None) => Dispatch::run3(x, a, b, op),
        (Some(a), Some(b), Some(c), None) => Dispatch::run4(x, a, b, c, op),
        _ => panic!("one to three matrices"),
    };
    Tensor::from_dispatch(y)
}

/// Joins an operation to the autodiff graph, where any of its inputs is part of one.
fn tracked<C: CheckpointStrategy, O: NativeOp<N>, const N: usize>(
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
    op: O,
) -> FloatTensor<Autodiff<Flex, C>> {
    let mut nodes = Vec::with_capacity(N);
    let values = inputs.map(|input| {
        let (value, node) = input.into_parts();
        nodes.push(node);
        value
    });
    let mut nodes = nodes.into_iter();
    let nodes = std::array::from_fn(|_| nodes.next().expect("each input has a node"));
    match BackwardStep::<O>(PhantomData).prepare::<C>(nodes).compute_bound().stateful() {
        // Only a graph needs what the backward pass saves; inference takes the other arm and keeps
        // nothing.
        OpsKind::Tracked(prep) => {
            let (y, saved) = op.forward(values);
            prep.finish(saved, y)
        }
        OpsKind::UnTracked(prep) => prep.finish(op.value(values)),
    }
}

/// The backward pass of any native operation, as Burn's autodiff calls it.
#[derive(Debug)]
struct BackwardStep<O>(PhantomData<fn() -> O>);

impl<O: NativeOp<N>, const N: usize> Backward<Flex, N> for BackwardStep<O> {
    type State = O::Saved;

    fn backward(self, ops: Ops<O::Saved, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<Flex>(&ops.node);
        for (parent, gradient) in ops.parents.into_iter().zip(O::backward(ops.state, dy)) {
            if let Some(node) = parent {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}

thread_local! {
    /// Threads that the operations of the part share which this thread of the pool works on.
    static SHARE: Cell<usize> = const { Cell::new(1) };
}

/// Runs a part of a micro-batch on this thread of the pool; its operations use `threads` threads.
pub(crate) fn with_threads<R>(threads: usize, part: impl FnOnce() -> R) -> R {
    // A thread that waits for others may run another part meanwhile, to its end.
    let before = SHARE.replace(threads);
    let result = part();
    SHARE.set(before);
    result
}

/// Threads that an operation uses which is called here.
pub(super) fn threads_here() -> usize {
    let in_pool = rayon::current_thread_index().is_some();
    if in_pool { SHARE.get() } else { rayon::current_num_threads() }
}

/// Zeros. All threads that the operation has clear a large vector, where one would keep the others waiting.
/// What is written as a whole is [`unwritten`] before.
pub(crate) fn zeros<T: Copy + Default + Send + Sync>(count: usize) -> Vec<T> {
    const LARGE: usize = 1 << 17;
    if count < LARGE || threads_here() == 1 {
        return vec![T::default(); count];
    }
    rayon::iter::repeat_n(T::default(), count).collect()
}

/// Calls `work(first row, rows of out)` until all of `out [rows, width]` is covered, in one call for each
/// thread that the operation uses.
pub(crate) fn in_rows(out: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let mut nothing = vec![(); out.len() / width];
    in_rows_with(out, width, &mut nothing, |first, out, _| work(first, out));
}

/// As [`in_rows`], with an element of `extra` for each row.
pub(crate) fn in_rows_with<E: Send>(
    out: &mut [f32],
    width: usize,
    extra: &mut [E],
    work: impl Fn(usize, &mut [f32], &mut [E]) + Sync,
) {
    // The float products pack strips of eight rows; a thread's share should hold whole ones.
    const STRIP: usize = 8;
    let rows = out.len() / width;
    let threads = threads_here();
    if threads == 1 || rows <= STRIP {
        return work(0, out, extra);
    }
    // Each row is computed alone and in one order, so where shares begin changes no bit.
    let share = rows.div_ceil(threads).next_multiple_of(STRIP);
    out.par_chunks_mut(share * width)
        .zip(extra.par_chunks_mut(share))
        .enumerate()
        .for_each(|(chunk, (out, extra))| work(chunk * share, out, extra));
}

/// Runs `work` on each task: one after the other, or on several threads where the operation has them.
pub(crate) fn for_each_task<T: Send>(tasks: Vec<T>, work: impl Fn(T) + Sync + Send) {
    if threads_here() == 1 {
        tasks.into_iter().for_each(work);
    } else {
        tasks.into_par_iter().for_each(work);
    }
}

/// `out [rows, columns]` = a float product, or `out` plus that product where `add`.
pub(crate) fn product(
    backend: OpBackend,
    size: Size,
    a: MatrixA,
    b: MatrixB,
    add: bool,
    out: &mut [f32],
) {
    in_rows(out, size.columns, |first, out| {
        let size = Size { rows: out.len() / size.columns, ..size };
        let a = match a.layout {
            OperandLayout::KInner => MatrixA { values: &a.values[first * a.stride..], ..a },
            // Rows of the product are columns of `A [K, M]` here: only the offset moves.
            OperandLayout::KOuter => MatrixA { first: a.first + first, ..a },
        };
        float_product(backend.kernel, backend.operands, size, a, b, add, out);
    });
}

/// The values of a contiguous f32 tensor.
pub(crate) fn floats(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("the tensor was made contiguous and is f32")
}

/// The values of an f32 tensor, to be overwritten: in place where nothing else holds them.
pub(crate) fn into_floats(tensor: FlexTensor) -> Vec<f32> {
    let contiguous = tensor.to_contiguous();
    drop(tensor);
    contiguous.into_data().try_into_vec().expect("the tensor is f32")
}

/// A tensor of these values, which are not copied.
pub(crate) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

/// A tensor outside of any graph.
pub(crate) fn untracked<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.is_autodiff() { tensor.inner() } else { tensor }
}

/// `shape` with another last dimension.
pub(crate) fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims = shape.to_vec();
    *dims.last_mut().expect("a tensor of at least one dimension") = last;
    Shape::from(dims)
}
