//! Tensors on their way from a file into modules.

use std::sync::Arc;

use bitnet_format::group::Group;
use bitnet_format::grouped::GroupedTernary;
use bitnet_format::{ModelSpec, TensorEntry, TensorRole};
use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::bit_linear::{BitLinear, LinearWeight};
use super::low_rank::LoadedFactors;
use super::norm::RmsNorm;
use crate::latents::{FrozenWords, LatentFormat, Latents};
use crate::ops::{self, LinearQuantiser, OpBackend};

/// A `[V, C]` matrix, full-precision in most models: the embedding, the head, or both.
#[derive(Module, Debug)]
pub struct Head {
    /// `[V, C]`; empty where the matrix lies outside.
    pub weight: Param<Tensor<2>>,
    #[module(skip)]
    outside: Option<Latents>,
    /// What shares a scale, where it holds the latents of ternary weights.
    #[module(skip)]
    ternary: Option<Group>,
}

impl Head {
    /// The matrix, where it is not a tensor.
    pub(crate) fn outside(&self) -> Option<&Latents> {
        self.outside.as_ref()
    }

    /// The matrix as a tensor, that of its ternary weights where it has them.
    pub(crate) fn matrix(&self, backend: OpBackend) -> Tensor<2> {
        match &self.outside {
            Some(latents) => ops::matrix_outside(self.weight.val(), latents),
            None => self.operand(backend),
        }
    }

    /// The same, but the leaf alone of a matrix that lies outside.
    pub(crate) fn operand(&self, backend: OpBackend) -> Tensor<2> {
        self.quantised(self.weight.val(), backend)
    }

    /// What latents are used as: rows are quantised each for itself, unless all share a scale.
    fn quantised(&self, latents: Tensor<2>, backend: OpBackend) -> Tensor<2> {
        match self.ternary {
            Some(group) => {
                let quantised = ops::fake_quantise_matrix(latents.clone(), group, backend);
                ops::blend(backend.lambda, latents, quantised)
            }
            None => latents,
        }
    }

    /// Its rows, `V`.
    pub(crate) fn count(&self) -> usize {
        match &self.outside {
            Some(latents) => latents.shape()[0],
            None => self.weight.val().dims()[0],
        }
    }

    /// The rows `ids [N]`, `[N, C]`.
    pub(crate) fn rows(&self, ids: Tensor<1, Int>, backend: OpBackend) -> Tensor<2> {
        match (&self.outside, self.ternary) {
            // Latents outside mean b1.58's quantiser or none: the embedding is floats.
            (Some(latents), _) => ops::rows_outside(self.weight.val(), latents, host_ids(ids)),
            // One scale for all rows is known from the whole matrix only.
            (None, Some(Group::Matrix)) => self.operand(backend).select(0, ids),
            (None, _) => self.quantised(self.weight.val().select(0, ids), backend),
        }
    }
}

/// Token ids on the host.
pub(crate) fn host_ids(ids: Tensor<1, Int>) -> Vec<i32> {
    ids.into_data().iter::<i32>().collect()
}

/// A tensor that was read or drawn and waits for its module.
pub(crate) struct LoadedTensor {
    pub(crate) entry: TensorEntry,
    pub(crate) values: LoadedValues,
    pub(crate) form: LinearWeight,
    /// Factors that are trained in its place.
    pub(crate) adapter: Option<LoadedFactors>,
}

/// The values of a tensor, for a Burn tensor or beside it.
pub(crate) enum LoadedValues {
    Tensor(TensorData),
    Outside(Latents),
}

impl LoadedValues {
    /// Keeps a tensor's values as `latents` says; norms and biases are always f32.
    pub(crate) fn new(
        entry: &TensorEntry,
        values: Vec<f32>,
        latents: Option<LatentFormat>,
    ) -> Self {
        match (latents, entry.shape.as_slice()) {
            (Some(format), &[rows, columns]) => {
                Self::Outside(Latents::new(format, [rows, columns], &values))
            }
            _ => Self::Tensor(TensorData::new(values, entry.shape.clone())),
        }
    }

    /// A matrix that is never updated.
    pub(crate) fn frozen(entry: &TensorEntry, words: FrozenWords) -> Self {
        Self::Outside(Latents::frozen([entry.shape[0], entry.shape[1]], words))
    }

    /// Keeps the codes of dequantised values and returns their scales.
    fn split_groups(&mut self, entry: &TensorEntry, group: Group) -> Arc<[f32]> {
        let Self::Tensor(data) = self else { unreachable!("frozen groups are a tensor") };
        let values = data.as_slice().expect("values that were read are f32");
        let found = GroupedTernary::of_floats(entry.shape[1], group, values);
        let codes: Vec<f32> = found.codes().iter().map(|&code| f32::from(code)).collect();
        *data = TensorData::new(codes, entry.shape.clone());
        found.scales().into()
    }

    /// A parameter of rank 2, and the latents that it stands for.
    fn matrix(self, device: &Device) -> (Param<Tensor<2>>, Option<Latents>) {
        match self {
            Self::Tensor(data) => (Param::from_data(data, device), None),
            Self::Outside(latents) => {
                // An empty leaf keeps the matrix's place in the graph and among the parameters.
                let empty = TensorData::new(Vec::<f32>::new(), [0, 0]);
                (Param::from_data(empty, device), Some(latents))
            }
        }
    }
}

/// The tensors of a model in table order, which is the order in which modules are built.
pub(crate) struct LoadedTensors<'a> {
    tensors: std::iter::Peekable<std::vec::IntoIter<LoadedTensor>>,
    device: &'a Device,
    spec: &'a ModelSpec,
    /// Linear layers that were made.
    linears: u64,
}

impl<'a> LoadedTensors<'a> {
    pub(crate) fn new(tensors: Vec<LoadedTensor>, spec: &'a ModelSpec, device: &'a Device) -> Self {
        Self { tensors: tensors.into_iter().peekable(), device, spec, linears: 0 }
    }

    /// The next tensor, whose role must be one that the module expects.
    fn next(&mut self, expected: impl Fn(TensorRole) -> bool) -> LoadedTensor {
        let next = self.tensors.next().expect("modules are built in the order of the tensor table");
        assert!(expected(next.entry.role), "{}", next.entry.name);
        next
    }

    pub(crate) fn head(&mut self) -> Head {
        let tensor = self.next(|role| matches!(role, TensorRole::Embedding | TensorRole::Head));
        let is_latent = tensor.form == LinearWeight::Latent && tensor.entry.is_ternary(self.spec);
        let ternary = is_latent.then_some(self.spec.quantiser.group);
        let (weight, outside) = tensor.values.matrix(self.device);
        Head { weight, outside, ternary }
    }

    pub(crate) fn norm(&mut self) -> RmsNorm {
        let tensor = self.next(|role| role == TensorRole::Norm);
        let LoadedValues::Tensor(data) = tensor.values else {
            unreachable!("norms are tensors");
        };
        RmsNorm::new(Param::from_data(data, self.device), self.spec.rms_norm_eps)
    }

    /// The next tensor, if it is a bias.
    fn bias(&mut self) -> Option<Param<Tensor<1>>> {
        let tensor = self.tensors.next_if(|next| next.entry.role == TensorRole::Bias)?;
        let LoadedValues::Tensor(data) = tensor.values else {
            unreachable!("biases are tensors");
        };
        Some(Param::from_data(data, self.device))
    }

    pub(crate) fn linear(&mut self) -> BitLinear {
        let tensor = self.next(|role| matches!(role, TensorRole::Linear(_)));
        let LoadedTensor { entry, mut values, form, adapter } = tensor;
        let quantiser = LinearQuantiser::of(self.spec);
        let scales: Arc<[f32]> = match form {
            LinearWeight::FrozenGroups => values.split_groups(&entry, quantiser.group),
            _ => Arc::default(),
        };
        // In table order, so a resumed run draws the same random bits for the layer's gradients.
        let number = self.linears;
        self.linears += 1;
        let layer = match values.matrix(self.device) {
            // Only frozen matrices have adapters, and these lie outside.
            (weight, None) => BitLinear::new(weight, form),
            (leaf, Some(latents)) => {
                let adapter = adapter.map(|factors| factors.into_module(&entry, self.device));
                BitLinear::outside(leaf, form, latents, adapter)
            }
        };
        // The bias, if there is one, stands behind its matrix in the table.
        layer.numbered(number).quantised_by(quantiser, scales).with_bias(self.bias())
    }
}
