//! Quantised and dequantised at once, with the straight-through gradient: a ternary embedding or head
//! and what a ternary head reads, for operations that multiply floats.
//!
//! ```text
//! w' = T · d        dw = dw'        T, d as in `group_codes`
//! x' = q / a        dx = dx'        q, a as in `bit_linear`
//! ```
//!
//! Memory: while a forward pass and its backward pass run there is one such copy of a head, `V · C`
//! floats, for each part of a micro-batch that is computed at the same time.

use bitnet_format::group::Group;
use burn::backend::{Dispatch, TensorMetadata};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;

use crate::ops::OpBackend;
use crate::ops::bit_linear::activation_codes;
use crate::ops::group_codes::{dequantised, group_codes, over_columns, quantised_rows};
use crate::ops::native::{NativeDispatch, NativeOp, floats, tensor};

/// The weights `[V, C]` that latents are quantised to.
pub fn fake_quantise_matrix(latents: Tensor<2>, group: Group, backend: OpBackend) -> Tensor<2> {
    if backend.is_native() {
        let op = NativeFakeQuantise { group, backend };
        return Tensor::from_dispatch(Dispatch::run1(latents.into_dispatch(), op));
    }
    let (codes, scales) = group_codes(latents.clone().detach(), group);
    let width = codes.dims()[1] / scales.dims()[1];
    through(codes * over_columns(scales, width), latents)
}

/// The values `[B, T, C]` that activations are quantised to.
pub fn fake_quantise_activations(x: Tensor<3>) -> Tensor<3> {
    let (codes, scale) = activation_codes(&x.clone().detach());
    through(codes / scale, x)
}

/// `values` with the gradient of `x`: the term that is added is exactly zero.
pub(super) fn through<const D: usize>(values: Tensor<D>, x: Tensor<D>) -> Tensor<D> {
    values.detach() + (x.clone() - x.detach())
}

#[derive(Clone, Copy, Debug)]
struct NativeFakeQuantise {
    group: Group,
    backend: OpBackend,
}

impl NativeOp<1> for NativeFakeQuantise {
    type Saved = ();

    fn forward(self, [latents]: [FlexTensor; 1]) -> (FlexTensor, ()) {
        let latents = latents.to_contiguous();
        let shape = latents.shape();
        let weights = quantised_rows(&[floats(&latents)], shape[1], self.group, self.backend);
        (tensor(dequantised(&weights, self.backend), shape), ())
    }

    fn backward((): (), dy: FlexTensor) -> [FlexTensor; 1] {
        [dy]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{cases, draw, gradient, leaf, with_gradients};
    use bitnet_format::grouped::GroupedTernary;
    use bitnet_format::quant::quantise_row;
    use bitnet_kernels::Operands;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(cases(24))]

        #[test]
        fn a_table_has_the_values_that_a_file_holds(
            rows in 1usize..40, groups in 1usize..4, of in 0usize..4, seed: u64,
        ) {
            let group = [Group::Row, Group::Columns(64), Group::Columns(128), Group::Matrix][of];
            let columns = groups * 128;
            let values = draw(seed, "w", rows * columns);
            let expected = match group {
                Group::Matrix => {
                    let whole = GroupedTernary::of_latents(rows * columns, Group::Row, &values);
                    whole.values()
                }
                _ => GroupedTernary::of_latents(columns, group, &values).values(),
            };
            let w = leaf(values, [rows, columns]);
            for backend in [OpBackend::native(Operands::F32), OpBackend::reference(Operands::F32)] {
                let y = fake_quantise_matrix(w.clone(), group, backend);
                let all = with_gradients(&y, seed, |grads| vec![gradient(&w, grads)]);
                prop_assert_eq!(&all[0], &expected);
                prop_assert_eq!(&all[1], &draw(seed, "upstream", rows * columns));
            }
        }
    }

    #[test]
    fn activations_are_their_codes_over_their_scale() {
        let values = draw(1, "x", 4 * 50);
        let x = leaf(values.clone(), [2, 2, 50]);
        let y = fake_quantise_activations(x.clone());
        let all = with_gradients(&y, 1, |grads| vec![gradient(&x, grads)]);
        assert_eq!(all[1], draw(1, "upstream", 200));
        let mut codes = vec![0; 50];
        for (row, found) in values.chunks(50).zip(all[0].chunks(50)) {
            let scale = quantise_row(row, &mut codes).multiplier();
            let expected: Vec<f32> = codes.iter().map(|&code| f32::from(code) / scale).collect();
            assert_eq!(found, expected);
        }
    }
}
