//! Clipping by the global norm of all gradients.

use burn::tensor::Tensor;

use crate::ops::{self, OpBackend};

/// L2 norm over all gradients together, summed in f64 over the tensors.
pub fn global_norm<'a>(
    gradients: impl IntoIterator<Item = &'a Tensor<1>>,
    backend: OpBackend,
) -> f64 {
    gradients.into_iter().map(|gradient| squares(gradient, backend)).sum::<f64>().sqrt()
}

/// The sum of the squares of one gradient.
pub(super) fn squares(gradient: &Tensor<1>, backend: OpBackend) -> f64 {
    f64::from(ops::sum_of_squares(gradient.clone(), backend).into_scalar::<f32>())
}

/// What gradients are multiplied by: `torch.nn.utils.clip_grad_norm_`, with its 1e-6.
pub(crate) fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// [`clip_factor`] of a norm `[1]`.
pub(super) fn clip_factor_on_device(norm: &Tensor<1>, limit: f64) -> Tensor<1> {
    if limit > 0.0 {
        norm.clone().add_scalar(1e-6).recip().mul_scalar(limit).clamp_max(1.0)
    } else {
        norm.ones_like()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_acts_only_above_the_limit() {
        assert!((clip_factor(2.0, 1.0) - 0.5).abs() < 1e-6);
        assert!((clip_factor(0.5, 1.0) - 1.0).abs() < f64::EPSILON);
        assert!((clip_factor(1e9, 0.0) - 1.0).abs() < f64::EPSILON);
    }
}
