//! `BitLinear` with other quantisers: a scale for each row or for groups of columns (`bitnet_format::grouped`
//! has the definition), and inputs that are quantised or stay floats.
//!
//! ```text
//! T[o,i], d[o,g]                                                 weight codes, one scale a group
//! y[t,o] = Σ_g d[o,g] · ((1/a[t]) · Σ_{i in g} q[t,i] · T[o,i])   groups of columns, 8-bit inputs
//! y[t,o] = (Σ q[t,i] · T[o,i]) · d[o] / a[t]                      rows, 8-bit inputs
//! y[t,o] = Σ x[t,i] · (T[o,i] · d[o,g])                           inputs that stay floats
//! ```
//!
//! Sums within a group are exact; groups are added in f32 in ascending order, each operation rounded
//! once: the order of the kernels and of the engine, so the outputs have the engine's bits. Products of
//! float inputs are sums in an order of their own, of operands in the precision of the run.
//!
//! The straight-through estimator is that of `bit_linear`; without 8-bit inputs `x` takes the place of
//! `q / a`:
//!
//! ```text
//! dx[t] = dy[t] · (T∘d)        dw = Σ_t dyᵀ[t] · (q[t] / a[t])
//! ```

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bitnet_format::ModelSpec;
use bitnet_format::group::{ActivationForm, Group};
use bitnet_format::grouped::GroupedTernary;
use bitnet_kernels::{
    GroupPanels, MatrixA, MatrixB, OperandLayout, Operands, Scale, Size, TernaryPanels,
    grouped_product, matmul,
};
use burn::backend::TensorMetadata;
use burn::tensor::{Shape, Tensor};
use burn_flex::FlexTensor;

use crate::ops::OpBackend;
use crate::ops::bit_linear::{activation_codes, quantised_product};
use crate::ops::group_codes::{dequantised, group_codes, over_columns, quantised_rows};
use crate::ops::native::{NativeOp, floats, product, tensor, unwritten, with_last, with_matrices};

/// How the ternary layers of a model quantise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearQuantiser {
    /// The weights that share a scale.
    pub group: Group,
    /// Their inputs.
    pub activations: ActivationForm,
}

impl LinearQuantiser {
    /// The quantiser of a model.
    pub fn of(spec: &ModelSpec) -> Self {
        Self { group: spec.quantiser.group, activations: spec.activations }
    }

    /// Whether it is that of BitNet b1.58, which `bit_linear` computes.
    pub fn is_b158(self) -> bool {
        self == Self::default()
    }
}

/// Quantised linear layers with one input: `x [B, T, in]`, one to three matrices `[outᵢ, in]` of latents
/// → `[B, T, Σ outᵢ]`
///
/// # Panics
/// With no matrix or more than three; if a group does not divide the inputs.
pub fn grouped_linear<const N: usize>(
    x: Tensor<3>,
    latents: [Tensor<2>; N],
    quantiser: LinearQuantiser,
    backend: OpBackend,
) -> Tensor<3> {
    if !backend.is_native() {
        let (codes, scales) =
            latents.map(|latents| group_codes(latents, quantiser.group)).into_iter().unzip();
        let (codes, scales) = (Tensor::cat(codes, 0), Tensor::cat(scales, 0));
        return coded_product(x, codes, scales, quantiser, backend);
    }
    with_matrices(x, latents, NativeGroupedLinear { quantiser, backend })
}

/// The same of codes `[out, in]` that were packed before, with their scales `[out, groups]`.
pub fn frozen_grouped_linear(
    x: Tensor<3>,
    codes: Tensor<2>,
    scales: Tensor<2>,
    quantiser: LinearQuantiser,
) -> Tensor<3> {
    let backend = OpBackend::reference(Operands::F32);
    coded_product(x, codes, scales, quantiser, backend)
}

/// The products of `x [B, T, in]` with codes `[out, in]` and scales `[out, groups]`.
fn coded_product(
    x: Tensor<3>,
    codes: Tensor<2>,
    scales: Tensor<2>,
    quantiser: LinearQuantiser,
    backend: OpBackend,
) -> Tensor<3> {
    let [out, groups] = scales.dims();
    let width = codes.dims()[1] / groups;
    let matmul = |x: Tensor<3>, w: Tensor<2>| backend.matmul(x, w.transpose().unsqueeze());
    if quantiser.activations == ActivationForm::None {
        // Float inputs: there is no integer sum to keep exact, so weights are dequantised and
        // multiplied.
        return matmul(x, codes * over_columns(scales, width));
    }
    let (activations, scale) = activation_codes(&x);
    let scales = scales.transpose(); // [groups, out]
    if !matches!(quantiser.group, Group::Columns(_)) {
        // The order of `ActivationScale::rescale`.
        return matmul(activations, codes) * scales.unsqueeze() / scale;
    }
    // Group after group in ascending order, `d · (step · s)` as the kernels do it; a single product
    // over all columns would have other roundings.
    let step = scale.recip();
    let of_group = |group: usize| {
        let x = activations.clone().narrow(2, group * width, width);
        let sums = matmul(x, codes.clone().narrow(1, group * width, width));
        sums * step.clone() * scales.clone().narrow(0, group, 1).reshape([1, 1, out])
    };
    (1..groups).fold(of_group(0), |sum, group| sum + of_group(group))
}

#[derive(Clone, Copy, Debug)]
struct NativeGroupedLinear {
    quantiser: LinearQuantiser,
    backend: OpBackend,
}

/// Codes of one byte and their scales, and the input as it was multiplied.
#[derive(Clone, Debug)]
struct SavedGroupedLinear {
    input: MultipliedInput,
    /// Codes and scales of all matrices, one below the other.
    weights: Arc<GroupedTernary>,
    /// Rows of each matrix.
    heights: Vec<usize>,
    /// Shape of the input, `[.., in]`.
    shape: Shape,
    backend: OpBackend,
}

/// The input of a layer, `[M, in]`.
#[derive(Clone, Debug)]
enum MultipliedInput {
    /// 8-bit codes, and `1 / a` of each token.
    Codes(Arc<Vec<i8>>, Arc<Vec<f32>>),
    Floats(FlexTensor),
}

/// The inputs are `x` and then the matrices.
impl<const N: usize> NativeOp<N> for NativeGroupedLinear {
    type Saved = SavedGroupedLinear;

    fn forward(self, inputs: [FlexTensor; N]) -> (FlexTensor, SavedGroupedLinear) {
        let inputs = inputs.map(|tensor| tensor.to_contiguous());
        let (x, latents) = inputs.split_first().expect("an input before the matrices");
        let (shape, backend) = (x.shape(), self.backend);
        let width = shape[shape.num_dims() - 1];
        let matrices: Vec<_> = latents.iter().map(floats).collect();
        let weights = quantised_rows(&matrices, width, self.quantiser.group, backend);
        let (y, input) = self.multiply(x, &weights);
        let heights = matrices.iter().map(|matrix| matrix.len() / width).collect();
        let y = tensor(y, with_last(&shape, weights.rows()));
        (y, SavedGroupedLinear { input, weights: Arc::new(weights), heights, shape, backend })
    }

    fn backward(saved: SavedGroupedLinear, dy: FlexTensor) -> [FlexTensor; N] {
        let dy = dy.to_contiguous();
        let dy = floats(&dy);
        let (mut first, width) = (0, saved.weights.columns());
        let mut all = vec![tensor(saved.input_gradient(dy), saved.shape.clone())];
        for &height in &saved.heights {
            let gradient = saved.weight_gradient(dy, first..first + height);
            all.push(tensor(gradient, Shape::from([height, width])));
            first += height;
        }
        all.try_into().expect("a gradient for each input")
    }
}

impl NativeGroupedLinear {
    /// Outputs `[M, Σ out]`, and the input as it was multiplied.
    fn multiply(self, x: &FlexTensor, weights: &GroupedTernary) -> (Vec<f32>, MultipliedInput) {
        let Self { quantiser, backend } = self;
        let (kernel, rows, width) = (backend.kernel, weights.rows(), weights.columns());
        let (values, sizes) = (floats(x), [width, rows]);
        let found = match (quantiser.activations, quantiser.group) {
            (ActivationForm::None, _) => {
                let mut y = unwritten(values.len() / width * rows);
                let size = Size { rows: values.len() / width, depth: width, columns: rows };
                let a = MatrixA {
                    values,
                    layout: OperandLayout::KInner,
                    stride: width,
                    first: 0,
                    scale: Scale::All(1.0),
                };
                let b = dequantised(weights, backend);
                let b = MatrixB::Floats(&b, OperandLayout::KInner);
                product(backend, size, a, b, false, &mut y);
                return (y, MultipliedInput::Floats(x.clone()));
            }
            (ActivationForm::Int8, Group::Columns(_)) => {
                let mut panels = GroupPanels::zeros(rows, width, weights.width());
                panels.write(0, weights);
                quantised_product(kernel, values, sizes, |x, y| {
                    grouped_product(kernel, &panels, x, 0..rows, y);
                })
            }
            (ActivationForm::Int8, Group::Row | Group::Matrix) => {
                let panels = TernaryPanels::of_rows(std::slice::from_ref(weights));
                quantised_product(kernel, values, sizes, |x, y| {
                    matmul(kernel, &panels, x, 0..rows, y);
                })
            }
        };
        (found.y, MultipliedInput::Codes(found.codes, found.inverse_scales))
    }
}

impl SavedGroupedLinear {
    fn tokens(&self) -> usize {
        self.shape.num_elements() / self.weights.columns()
    }

    /// The gradient of the input, `[M, in]`.
    fn input_gradient(&self, dy: &[f32]) -> Vec<f32> {
        let (out, columns) = (self.weights.rows(), self.weights.columns());
        let mut dx = unwritten(self.tokens() * columns);
        let size = Size { rows: self.tokens(), depth: out, columns };
        let values: Cow<[f32]>;
        // One scale a row goes into `dy`, which leaves B in exact codes. Scales of groups change
        // along both axes, so there B is dequantised.
        let (scale, b) = if self.weights.width() == columns {
            (Scale::Each(self.weights.scales()), MatrixB::Codes(self.weights.codes()))
        } else {
            values = dequantised(&self.weights, self.backend).into();
            (Scale::All(1.0), MatrixB::Floats(&values, OperandLayout::KOuter))
        };
        let a = MatrixA { values: dy, layout: OperandLayout::KInner, stride: out, first: 0, scale };
        product(self.backend, size, a, b, false, &mut dx);
        dx
    }

    /// The gradient of some rows of the stacked matrices, `[rows, in]`.
    fn weight_gradient(&self, dy: &[f32], rows: Range<usize>) -> Vec<f32> {
        let (out, columns) = (self.weights.rows(), self.weights.columns());
        let mut dw = unwritten(rows.len() * columns);
        let size = Size { rows: rows.len(), depth: self.tokens(), columns };
        let (scale, b) = match &self.input {
            MultipliedInput::Codes(codes, inverse) => (Scale::Each(inverse), MatrixB::Codes(codes)),
            MultipliedInput::Floats(x) => {
                (Scale::All(1.0), MatrixB::Floats(floats(x), OperandLayout::KOuter))
            }
        };
        let (layout, first) = (OperandLayout::KOuter, rows.start);
        let a = MatrixA { values: dy, layout, stride: out, first, scale };
        product(self.backend, size, a, b, false, &mut dw);
        dw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::to_host;
    use crate::ops::testing::{PRECISIONS, cases, compare, draw, gradient, leaf, with_gradients};
    use bitnet_kernels::Kernel;
    use proptest::prelude::*;

    const COLUMNS: [Group; 3] = [Group::Columns(64), Group::Columns(128), Group::Columns(256)];

    /// Layers of these heights with one input: outputs and all gradients.
    fn run<const N: usize>(
        [batch, time, width]: [usize; 3],
        heights: [usize; N],
        quantiser: LinearQuantiser,
        (backend, seed): (OpBackend, u64),
    ) -> Vec<Vec<f32>> {
        let x = leaf(draw(seed, "x", batch * time * width), [batch, time, width]);
        let w = std::array::from_fn(|i| {
            let seed = seed.wrapping_add(i as u64);
            // Magnitudes that differ from group to group.
            let grown = |(at, w): (usize, f32)| w * (0.02 + (at % width) as f32 / width as f32);
            let values = draw(seed, "w", heights[i] * width).into_iter().enumerate().map(grown);
            leaf(values.collect(), [heights[i], width])
        });
        let y = grouped_linear::<N>(x.clone(), w.clone(), quantiser, backend);
        with_gradients(&y, seed, |grads| {
            let mut all = vec![gradient(&x, grads)];
            all.extend(w.iter().map(|w| gradient(w, grads)));
            all
        })
    }

    fn check<const N: usize>(
        shape: [usize; 3],
        heights: [usize; N],
        quantiser: LinearQuantiser,
        seed: u64,
    ) {
        let of = |backend, seed| run(shape, heights, quantiser, (backend, seed));
        compare(&format!("{quantiser:?}"), 1.0, seed, of);
        if quantiser.activations == ActivationForm::None {
            return;
        }
        let exact = of(OpBackend::reference(Operands::F32), seed).swap_remove(0);
        for operands in PRECISIONS {
            let found = of(OpBackend::native(operands), seed).swap_remove(0);
            assert_eq!(found, exact, "exact sums within groups, one order over them");
        }
    }

    proptest! {
        #![proptest_config(cases(16))]

        #[test]
        fn groups_of_columns_equal_their_reference(
            batch in 1usize..4, time in 1usize..40, of in 0usize..3, groups in 1usize..4,
            heights in [1usize..70, 1usize..70, 1usize..70], is_float: bool, seed: u64,
        ) {
            let activations = if is_float { ActivationForm::None } else { ActivationForm::Int8 };
            let group = COLUMNS[of];
            let width = groups * group.width(0).unwrap();
            let quantiser = LinearQuantiser { group, activations };
            check([batch, time, width], heights, quantiser, seed);
        }

        #[test]
        fn rows_and_matrices_equal_their_reference(
            batch in 1usize..4, time in 1usize..40, width in 1usize..90,
            heights in [1usize..70, 1usize..70], is_row: bool, is_float: bool, seed: u64,
        ) {
            let group = if is_row { Group::Row } else { Group::Matrix };
            let activations = if is_float { ActivationForm::None } else { ActivationForm::Int8 };
            check([batch, time, width], heights, LinearQuantiser { group, activations }, seed);
        }
    }

    #[test]
    fn a_matrix_with_one_scale_is_the_layer_of_b158() {
        let x = leaf(draw(1, "x", 5 * 70), [1, 5, 70]);
        let w = leaf(draw(1, "w", 9 * 70), [9, 70]);
        let backend = OpBackend::native(Operands::F32);
        let of = |y: Tensor<3>| {
            with_gradients(&y, 2, |grads| vec![gradient(&x, grads), gradient(&w, grads)])
        };
        let found = of(grouped_linear(x.clone(), [w.clone()], LinearQuantiser::default(), backend));
        assert_eq!(found, of(crate::ops::bit_linear(x.clone(), [w.clone()], backend)));
    }

    #[test]
    fn frozen_codes_give_the_outputs_of_their_latents() {
        for group in [Group::Row, Group::Columns(64)] {
            let quantiser = LinearQuantiser { group, ..LinearQuantiser::default() };
            let x = leaf(draw(1, "x", 5 * 128), [1, 5, 128]);
            let w = draw(1, "w", 9 * 128);
            let codes = GroupedTernary::of_latents(128, group, &w);
            let values = codes.codes().iter().map(|&code| f32::from(code)).collect();
            let scales = leaf(codes.scales().to_vec(), [9, 128 / codes.width()]);
            let frozen =
                frozen_grouped_linear(x.clone(), leaf(values, [9, 128]), scales, quantiser);
            let native = OpBackend::native(Operands::F32);
            let y = grouped_linear(x, [leaf(w, [9, 128])], quantiser, native);
            assert_eq!(to_host(y.inner()), to_host(frozen.inner()), "{group}");
        }
    }

    #[test]
    fn threads_and_kernels_change_no_bit() {
        for activations in [ActivationForm::Int8, ActivationForm::None] {
            let quantiser = LinearQuantiser { group: Group::Columns(64), activations };
            for operands in PRECISIONS {
                let of = |backend| run([2, 50, 128], [40, 33], quantiser, (backend, 3));
                let expected = of(OpBackend::native(operands));
                for (kernel, threads) in
                    Kernel::available().into_iter().flat_map(|kernel| [(kernel, 1), (kernel, 3)])
                {
                    let pool =
                        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut backend = OpBackend::native(operands);
                    backend.kernel = kernel;
                    assert!(pool.install(|| of(backend)) == expected, "{kernel:?} {threads}");
                }
            }
        }
    }

    #[test]
    fn an_input_that_is_not_a_number_is_seen() {
        for activations in [ActivationForm::Int8, ActivationForm::None] {
            let quantiser = LinearQuantiser { group: Group::Columns(64), activations };
            let mut values = vec![1.0; 3 * 64];
            values[70] = f32::NAN;
            let (x, w) = (leaf(values, [1, 3, 64]), leaf(draw(1, "w", 320), [5, 64]));
            let native = OpBackend::native(Operands::F32);
            let y = to_host(grouped_linear(x, [w], quantiser, native).inner());
            let seen: Vec<bool> = y.chunks(5).map(|y| y.iter().any(|y| y.is_nan())).collect();
            assert_eq!(seen, [false, true, false]);
        }
    }
}
