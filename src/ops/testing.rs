//! Helpers of the tests that compare a native operation with its reference.

use bitnet_kernels::Operands;
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use proptest::prelude::ProptestConfig;
use rand_distr::{Distribution, Normal};

use crate::ops::OpBackend;
use crate::random;

/// Both precisions of float products.
pub(crate) const PRECISIONS: [Operands; 3] = [Operands::F32, Operands::Bf16, Operands::Bf16Tiles];

/// How many draws of one shape are compared as one.
pub(crate) const DRAWS: u64 = 8;

/// `cases` random cases a run, or as many as `PROPTEST_CASES` asks for; nothing written to disk.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { cases };
    ProptestConfig { cases, failure_persistence: None, ..default }
}

/// Normally distributed numbers, the same for the same seed and purpose.
pub(crate) fn draw(seed: u64, purpose: &str, count: usize) -> Vec<f32> {
    let normal = Normal::new(0.0f32, 1.0).unwrap();
    normal.sample_iter(random::keyed(seed, purpose, 0, 0)).take(count).collect()
}

/// An input whose gradient is asked for.
pub(crate) fn leaf<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff()).require_grad()
}

pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().into_data().try_to_vec().unwrap()
}

/// The gradient of a leaf.
pub(crate) fn gradient<const D: usize>(leaf: &Tensor<D>, grads: &mut Gradients) -> Vec<f32> {
    host(leaf.grad_remove(grads).unwrap())
}

/// A result and the gradients of its inputs under a random gradient of the result.
pub(crate) fn with_gradients<const D: usize>(
    y: &Tensor<D>,
    seed: u64,
    gradients: impl Fn(&mut Gradients) -> Vec<Vec<f32>>,
) -> Vec<Vec<f32>> {
    let dy = draw(seed, "upstream", y.shape().num_elements());
    let dy = Tensor::from_data(TensorData::new(dy, y.dims()), &y.device());
    let mut grads = (y.clone() * dy).sum().backward();
    let mut all = vec![host(y.clone())];
    all.extend(gradients(&mut grads));
    all
}

/// How far results may be from the reference in f32: the same sums in another order, or operands
/// rounded to bf16, by one part in 256 at most.
pub(crate) fn tolerance(operands: Operands) -> f64 {
    match operands {
        Operands::F32 => 3e-6,
        Operands::Bf16 | Operands::Bf16Tiles => 1e-2,
    }
}

/// Asserts the relative L2 distance of each tensor.
pub(crate) fn assert_within(found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let square = |x: f64| x * x;
        let norm: f64 = expected.iter().map(|&b| square(f64::from(b))).sum();
        let pairs = found.iter().zip(expected);
        let distance: f64 = pairs.map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
        let error = distance.sqrt() / norm.sqrt().max(1e-2);
        assert!(error <= tolerance, "{what}, tensor {index}: {error:e}");
    }
}

/// The tensors of several draws of one shape, each tensor's draws one after the other. A tensor of
/// few elements may cancel to nearly nothing, and then what was rounded is large beside it; all
/// draws do not cancel at once.
pub(crate) fn of_draws(draws: u64, seed: u64, run: impl Fn(u64) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let mut all = run(seed);
    for draw in 1..draws {
        for (all, one) in all.iter_mut().zip(run(seed.wrapping_add(draw))) {
            all.extend(one);
        }
    }
    all
}

/// Compares native and reference operations in both precisions with the f32 reference, on several
/// draws; `run` is given the backend and the seed.
pub(crate) fn compare(
    what: &str,
    tolerance_factor: f64,
    seed: u64,
    run: impl Fn(OpBackend, u64) -> Vec<Vec<f32>>,
) {
    let results = |backend| of_draws(DRAWS, seed, |seed| run(backend, seed));
    let expected = results(OpBackend::reference(Operands::F32));
    for operands in PRECISIONS {
        for backend in [OpBackend::native(operands), OpBackend::reference(operands)] {
            let within = tolerance(operands) * tolerance_factor;
            assert_within(&results(backend), &expected, within, &format!("{what}, {backend:?}"));
        }
    }
}
