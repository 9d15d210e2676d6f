//! The values of a tensor in the host's memory.

use burn::tensor::Tensor;

/// The values of an f32 tensor, row-major; not copied where nothing else holds them.
pub(crate) fn to_host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("the tensor is f32")
}
