//! A linear layer on its way from floats to ternary (the warm-up of a conversion): each side is a blend of
//! what it was and what it becomes,
//!
//! ```text
//! x̃ = (1 − λ)·x + λ·q/a        w̃ = (1 − λ)·w + λ·T·m        y = x̃·w̃ᵀ
//! ```
//!
//! with the codes of `bit_linear` or the groups of `grouped_linear`; inputs that stay floats stay themselves. The straight-through estimator takes both blends for the identity,
//! whatever λ is: `dx = dy·w̃`, `dw = dyᵀ·x̃`. With λ = 1 it is the layer in transformers' order, which
//! dequantises first: its products round where those of `bit_linear` are exact.
//!
//! Floats are multiplied, on every device by its own product: it runs in few steps of a run.

use bitnet_format::group::ActivationForm;
use burn::tensor::Tensor;

use super::backend::{Lambda, OpBackend};
use super::bit_linear::weight_codes;
use super::fake_quantise::{fake_quantise_activations, fake_quantise_matrix, through};
use super::grouped_linear::LinearQuantiser;

/// The blend of `x` and what it is quantised to, which has the gradient of `x`.
pub fn blend<const D: usize>(lambda: Lambda, x: Tensor<D>, quantised: Tensor<D>) -> Tensor<D> {
    if lambda == Lambda::ONE {
        return quantised;
    }
    x.mul_scalar(1.0 - lambda.share()) + quantised.mul_scalar(lambda.share())
}

/// `x [B, T, in]`, latents `[out, in]` → `[B, T, out]`
pub fn blended_linear(
    x: Tensor<3>,
    latents: Tensor<2>,
    quantiser: LinearQuantiser,
    backend: OpBackend,
) -> Tensor<3> {
    let lambda = backend.lambda;
    let x = match quantiser.activations {
        ActivationForm::Int8 => blend(lambda, x.clone(), fake_quantise_activations(x)),
        ActivationForm::None => x,
    };
    let quantised = if quantiser.is_b158() {
        // Over the inverse, as transformers dequantises.
        let (codes, scale) = weight_codes(latents.clone().detach());
        through(codes / scale.recip(), latents.clone())
    } else {
        fake_quantise_matrix(latents.clone(), quantiser.group, backend)
    };
    x.matmul(blend(lambda, latents, quantised).transpose().unsqueeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_within, draw, gradient, host, leaf, with_gradients};
    use crate::ops::{bit_linear, grouped_linear};
    use bitnet_format::group::Group;
    use bitnet_kernels::Operands;

    const B158: LinearQuantiser =
        LinearQuantiser { group: Group::Matrix, activations: ActivationForm::Int8 };

    fn at(share: f32) -> OpBackend {
        OpBackend::native(Operands::F32).blending(Lambda::new(share))
    }

    /// Output and gradients of a layer of three rows over two tokens.
    fn run(layer: impl Fn(Tensor<3>, Tensor<2>) -> Tensor<3>) -> Vec<Vec<f32>> {
        let x = leaf(draw(1, "x", 2 * 128), [1, 2, 128]);
        let w = leaf(draw(2, "w", 3 * 128), [3, 128]);
        let y = layer(x.clone(), w.clone());
        with_gradients(&y, 5, |grads| vec![gradient(&x, grads), gradient(&w, grads)])
    }

    #[test]
    fn without_a_share_it_is_the_dense_layer_and_with_all_of_it_the_ternary_one() {
        let dense = run(|x, w| x.matmul(w.transpose().unsqueeze()));
        let ternary = run(|x, w| bit_linear(x, [w], OpBackend::reference(Operands::F32)));
        let blended = |share| run(move |x, w| blended_linear(x, w, B158, at(share)));
        assert_within(&blended(0.0), &dense, 1e-6, "λ = 0");
        assert_within(&blended(1.0), &ternary, 1e-5, "λ = 1");
        let apart = |other: &[Vec<f32>]| (blended(0.5)[0][0] - other[0][0]).abs();
        assert!(apart(&dense) > 1e-3 && apart(&ternary) > 1e-3, "half way it is neither");
    }

    #[test]
    fn with_all_of_a_share_it_is_the_layer_of_groups() {
        for group in [Group::Row, Group::Columns(64)] {
            for activations in [ActivationForm::Int8, ActivationForm::None] {
                let quantiser = LinearQuantiser { group, activations };
                let expected = run(|x, w| grouped_linear(x, [w], quantiser, at(1.0)));
                let found = run(|x, w| blended_linear(x, w, quantiser, at(1.0)));
                assert_within(&found, &expected, 1e-5, &format!("{quantiser:?}"));
            }
        }
    }

    /// For one input and one weight everything can be written down.
    #[test]
    fn a_blend_has_the_value_and_the_gradients_of_its_formula() {
        let (x, w) = (leaf(vec![0.5, 1.0], [1, 1, 2]), leaf(vec![0.3, -0.1], [1, 2]));
        let y = blended_linear(x.clone(), w.clone(), B158, at(0.25));
        // Activations: a = 127, codes 64 (63.5 to even) and 127. Weights: m = 0.2, codes 1 and 0.
        let mixed = [0.75 * 0.5 + 0.25 * 64.0 / 127.0, 1.0];
        let blend = [0.75 * 0.3 + 0.25 * 0.2, 0.75 * -0.1];
        let expected = mixed[0] * blend[0] + mixed[1] * blend[1];
        assert!((host(y.clone())[0] - expected).abs() < 1e-6);
        let mut grads = y.sum().backward();
        assert_within(
            &[gradient(&x, &mut grads), gradient(&w, &mut grads)],
            &[blend.to_vec(), mixed.to_vec()],
            1e-6,
            "gradients",
        );
    }
}
