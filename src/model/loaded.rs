//! Tensors on their way from a file into modules.

use bitnet_format::{ModelSpec, TensorEntry, TensorRole};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

use super::bit_linear::{BitLinear, LinearWeight};
use super::norm::RmsNorm;

/// A full-precision `[V, C]` matrix: the embedding, the head, or both.
#[derive(Module, Debug)]
pub struct Head {
    /// `[V, C]`
    pub weight: Param<Tensor<2>>,
}

/// A tensor that was read or drawn and waits for its module.
pub(crate) struct LoadedTensor {
    pub(crate) entry: TensorEntry,
    pub(crate) data: TensorData,
    pub(crate) form: LinearWeight,
}

/// The tensors of a model in table order, which is the order in which modules are built.
pub(crate) struct LoadedTensors<'a> {
    pub(crate) tensors: std::vec::IntoIter<LoadedTensor>,
    pub(crate) device: &'a Device,
}

impl LoadedTensors<'_> {
    /// The next tensor, whose role must be one that the module expects.
    fn next(&mut self, expected: impl Fn(TensorRole) -> bool) -> LoadedTensor {
        let next = self.tensors.next().expect("modules are built in the order of the tensor table");
        assert!(expected(next.entry.role), "{}", next.entry.name);
        next
    }

    pub(crate) fn head(&mut self) -> Head {
        let tensor = self.next(|role| matches!(role, TensorRole::Embedding | TensorRole::Head));
        Head { weight: Param::from_data(tensor.data, self.device) }
    }

    pub(crate) fn norm(&mut self, spec: &ModelSpec) -> RmsNorm {
        let tensor = self.next(|role| role == TensorRole::Norm);
        RmsNorm::new(Param::from_data(tensor.data, self.device), spec.rms_norm_eps)
    }

    pub(crate) fn linear(&mut self) -> BitLinear {
        let tensor = self.next(|role| matches!(role, TensorRole::Linear(_)));
        BitLinear::new(Param::from_data(tensor.data, self.device), tensor.form)
    }
}
