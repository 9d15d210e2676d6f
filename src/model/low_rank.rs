//! Low-rank factors beside the matrices of a frozen model, `W = W0 + s·(B·A)`: what an `[adapter]` trains.
//!
//! They are parameters of their matrix's module and follow it in the parameter table. `W` is merged and
//! quantised in each forward pass; its dense gradient is never made (`ops::low_rank`).

use bitnet_format::adapter::{LowRankFactor, module_of};
use bitnet_format::{ModelSpec, TensorEntry, tensor_table};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand_distr::{Distribution, Normal};

use crate::host::to_host;
use crate::ops::FactorValues;
use crate::random;

/// `A` and `B` of one matrix.
#[derive(Module, Debug)]
pub struct LowRankFactors {
    /// `A [r, in]`
    pub a: Param<Tensor<2>>,
    /// `B [out, r]`
    pub b: Param<Tensor<2>>,
    #[module(skip)]
    scale: f32,
}

/// Values of factors that wait for their module.
#[derive(Clone, Debug)]
pub(crate) struct LoadedFactors {
    pub(crate) values: LowRankValues,
    pub(crate) scale: f32,
}

/// `A [r, in]` and `B [out, r]`, row-major.
pub(crate) type LowRankValues = [Vec<f32>; 2];

impl LoadedFactors {
    pub(crate) fn rank(&self, entry: &TensorEntry) -> usize {
        self.values[0].len() / entry.shape[1]
    }

    pub(crate) fn into_module(self, entry: &TensorEntry, device: &Device) -> LowRankFactors {
        let rank = self.rank(entry);
        let [a, b] = self.values;
        let param = |values, factor: LowRankFactor| {
            Param::from_data(TensorData::new(values, factor.shape(entry, rank)), device)
        };
        let (a, b) = (param(a, LowRankFactor::A), param(b, LowRankFactor::B));
        LowRankFactors { a, b, scale: self.scale }
    }
}

impl LowRankFactors {
    /// Their values, without any graph.
    pub(crate) fn values(&self) -> FactorValues {
        let values = |factor: &Param<Tensor<2>>| to_host(factor.val().inner());
        FactorValues { a: values(&self.a), b: values(&self.b), scale: self.scale }
    }

    /// `B·A` is multiplied by it.
    pub(crate) fn scale(&self) -> f32 {
        self.scale
    }
}

/// `A ~ N(0, 1 / in)` from a stream of its own, and `B = 0`: the model is the base's at step 0.
pub(crate) fn initial_factors(entry: &TensorEntry, rank: usize, seed: u64) -> LowRankValues {
    let [a, b] = LowRankFactor::BOTH.map(|factor| factor.shape(entry, rank));
    let deviation = (1.0 / entry.shape[1] as f64).sqrt() as f32;
    let normal = Normal::new(0.0, deviation).expect("a width is finite and above 0");
    let random = random::keyed(seed, &LowRankFactor::A.tensor_name(entry), 0, 0);
    [normal.sample_iter(random).take(a[0] * a[1]).collect(), vec![0.0; b[0] * b[1]]]
}

/// Every parameter of a model with factors of this rank beside the `adapted` matrices, in the order in
/// which its modules are visited: the tensor table, each adapted matrix followed by its `A` and `B`.
pub(crate) fn parameter_table(
    spec: &ModelSpec,
    adapted: &[TensorEntry],
    rank: usize,
) -> Vec<TensorEntry> {
    let mut table = Vec::new();
    for entry in tensor_table(spec) {
        if !adapted.contains(&entry) {
            table.push(entry);
            continue;
        }
        let factors = LowRankFactor::BOTH.map(|factor| factor_entry(&entry, factor, rank));
        table.push(entry);
        table.extend(factors);
    }
    table
}

fn factor_entry(entry: &TensorEntry, factor: LowRankFactor, rank: usize) -> TensorEntry {
    let word = match factor {
        LowRankFactor::A => "a",
        LowRankFactor::B => "b",
    };
    let name = format!("{}{FACTORS}{word}", module_of(entry));
    TensorEntry { name, shape: factor.shape(entry, rank).to_vec(), role: entry.role }
}

/// The field of a layer that holds its factors, as a part of their names.
const FACTORS: &str = ".adapter.";

/// Whether an entry of the parameter table is a factor.
pub(crate) fn is_factor(entry: &TensorEntry) -> bool {
    entry.name.contains(FACTORS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        FreshModel, LanguageModel, LinearWeight, NewAdapter, SegmentStarts, named_values,
        set_factors, values,
    };
    use bitnet_format::adapter::{
        Adapter, AdapterDescription, AdapterKind, MergedModel, matching_entries, write_adapter,
    };
    use bitnet_format::convert::hf;
    use bitnet_format::{DType, FormatError, StoredModel, TensorSource, model_hash};
    use burn::tensor::Int;

    fn hidden(model: &LanguageModel) -> Vec<f32> {
        let ids = TensorData::new(vec![1, 5, 2, 7, 3, 3, 9, 0], [1, 8]);
        let tokens = Tensor::<2, Int>::from_data(ids, &model.device());
        let states = model.forward(tokens, &SegmentStarts::whole_rows(1, 8));
        states.into_data().try_into_vec().unwrap()
    }

    /// A model of these targets, as the run trains it and as an export merges it.
    fn compare(targets: &[&str]) {
        let spec: ModelSpec = toml::from_str(
            "hidden_size = 24\nintermediate_size = 40\nnum_hidden_layers = 2\nvocab_size = 10\n\
             num_attention_heads = 2\nnum_key_value_heads = 1",
        )
        .unwrap();
        let (base_dir, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let fresh = FreshModel::new(spec.clone(), 3);
        hf::write_master(base_dir.path(), &fresh, &mut |_, _| Ok(())).unwrap();
        let base = StoredModel::open(base_dir.path()).unwrap();
        let hash = model_hash(base_dir.path(), &base).unwrap();
        let targets: Vec<_> = targets.iter().map(|&target| target.to_owned()).collect();
        let adapted = matching_entries(&spec, &targets).unwrap();
        let description = AdapterDescription {
            kind: AdapterKind::Latent,
            rank: 3,
            alpha: 1.5,
            base_path: String::new(),
            base_hash: Some(hash.clone()),
        };
        let device = crate::device::cpu();
        let (scale, seed) = (description.scale(), 5);
        let new = NewAdapter { adapted: &adapted, rank: 3, scale, seed };
        let model = LanguageModel::read_adapted(&base, &device, new, &mut |_, _| {}).unwrap();
        let names: Vec<_> = named_values(&model).into_iter().map(|(name, _)| name).collect();
        let table: Vec<_> = model.table().iter().map(|entry| entry.name.clone()).collect();
        assert_eq!(names, table, "the table is in the order of the modules");

        let plain = LanguageModel::read(&base, &device).unwrap();
        assert_eq!(hidden(&model), hidden(&plain), "B = 0 changes nothing");
        let random = |entry: &TensorEntry, factor: LowRankFactor| {
            let count = factor.shape(entry, 3).iter().product::<usize>();
            Ok((0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 700.0).collect())
        };
        write_adapter(dir.path(), &description, &spec, &adapted, DType::F32, random).unwrap();
        let adapter = Adapter::open(dir.path(), &spec).unwrap();
        let model = set_factors(model, &adapter);
        let merged = MergedModel::new(&base, base_dir.path(), &hash, &adapter).unwrap();
        let exported = LanguageModel::from_source(&spec, &device, |entry| {
            Ok::<_, FormatError>((merged.floats(entry)?, LinearWeight::Latent))
        });
        assert_eq!(hidden(&model), hidden(&exported.unwrap()), "training sees what is exported");
        assert_ne!(hidden(&model), hidden(&plain));
        let values = values(&model);
        for (index, entry) in model.table().iter().enumerate() {
            if entry.shape.len() == 2 && !is_factor(entry) {
                let expected = merged.floats(entry).unwrap();
                assert_eq!(model.latents(index, &values), expected, "{}", entry.name);
            }
        }
    }

    #[test]
    fn an_adapted_model_is_the_merged_one_to_the_bit() {
        compare(&["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
        compare(&["v_proj", "layers.1.mlp.up_proj"]);
    }
}
