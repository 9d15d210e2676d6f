//! Low-rank factors beside the matrices of a frozen model: what an `[adapter]` trains.
//!
//! They are parameters of their matrix's module and follow it in the parameter table. Those of a latent
//! adapter change the latents, `W = W0 + s·(B·A)`, which are merged and quantised in each forward pass;
//! those of a side adapter add `s·(x·Aᵀ)·Bᵀ` to the output (`ops::low_rank`).

use std::ops::Range;

use bitnet_format::adapter::{AdapterKind, LowRankFactor, module_of};
use bitnet_format::{ModelSpec, TensorEntry, tensor_table};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand_distr::{Distribution, Normal};

use crate::host::to_host;
use crate::ops::{FactorValues, LowRankJoin, OpBackend};
use crate::random;

/// `A` and `B` of one matrix.
#[derive(Module, Debug)]
pub struct LowRankFactors {
    /// `A [r, in]`
    pub a: Param<Tensor<2>>,
    /// `B [out, r]`
    pub b: Param<Tensor<2>>,
    #[module(skip)]
    kind: AdapterKind,
    #[module(skip)]
    scale: f32,
}

/// Values of factors that wait for their module.
#[derive(Clone, Debug)]
pub(crate) struct LoadedFactors {
    pub(crate) values: LowRankValues,
    pub(crate) kind: AdapterKind,
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
        LowRankFactors { a, b, kind: self.kind, scale: self.scale }
    }
}

impl LowRankFactors {
    /// Their values, without any graph, where they change the latents.
    pub(crate) fn to_merge(&self) -> Option<FactorValues> {
        // The merge is no part of the graph: `LowRankJoin` makes the gradients.
        let values = |factor: &Param<Tensor<2>>| to_host(factor.val().inner());
        (self.kind == AdapterKind::Latent).then(|| FactorValues {
            a: values(&self.a),
            b: values(&self.b),
            scale: self.scale,
        })
    }

    /// The operation that joins them to the columns `own` of an output.
    pub(crate) fn beside(&self, own: Range<usize>, backend: OpBackend) -> LowRankJoin {
        LowRankJoin { backend, kind: self.kind, own, scale: self.scale }
    }
}

/// `A ~ N(0, 1 / in)` from its own random stream, and `B = 0`: the model is the base's at step 0.
pub(crate) fn initial_factors(entry: &TensorEntry, rank: usize, seed: u64) -> LowRankValues {
    let [a, b] = LowRankFactor::BOTH.map(|factor| factor.shape(entry, rank));
    let deviation = (1.0 / entry.shape[1] as f64).sqrt() as f32;
    let normal = Normal::new(0.0, deviation).expect("a width is finite and above 0");
    // By A's own name: its values do not depend on which other matrices are adapted.
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
        // Before a bias, as modules visit `weight`, `adapter` and then `bias`.
        table.push(entry);
        table.extend(factors);
    }
    table
}

/// The place of a factor in the table of all parameters, where its matrix is at `matrix`.
pub(crate) fn factor_index(matrix: usize, factor: LowRankFactor) -> usize {
    matrix
        + match factor {
            LowRankFactor::A => 1,
            LowRankFactor::B => 2,
        }
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
    use bitnet_format::{DType, FormatError, StoredModel, TensorSource, WeightForm, model_hash};
    use burn::tensor::Int;

    const IDS: [u32; 8] = [1, 5, 2, 7, 3, 3, 9, 0];

    fn hidden(model: &LanguageModel) -> Vec<f32> {
        let ids = TensorData::new(IDS.map(u32::cast_signed).to_vec(), [1, 8]);
        let tokens = Tensor::<2, Int>::from_data(ids, &model.device());
        let states = model.forward(tokens, &SegmentStarts::whole_rows(1, 8));
        states.into_data().try_into_vec().unwrap()
    }

    const RANK: usize = 3;

    /// A base that is stored, and an adapter of it.
    struct Lab {
        dir: tempfile::TempDir,
        spec: ModelSpec,
        description: AdapterDescription,
        adapted: Vec<TensorEntry>,
    }

    impl Lab {
        fn new(kind: AdapterKind, targets: &[&str]) -> Self {
            let spec: ModelSpec = toml::from_str(
                "hidden_size = 24\nintermediate_size = 40\nnum_hidden_layers = 2\nvocab_size = 10\n\
                 num_attention_heads = 2\nnum_key_value_heads = 1",
            )
            .unwrap();
            let dir = tempfile::tempdir().unwrap();
            let fresh = FreshModel::new(spec.clone(), 3);
            hf::write_master(dir.path(), &fresh, &mut |_, _| Ok(())).unwrap();
            let hash = model_hash(dir.path(), &StoredModel::open(dir.path()).unwrap()).unwrap();
            let targets: Vec<_> = targets.iter().map(|&target| target.to_owned()).collect();
            let adapted = matching_entries(&spec, &targets).unwrap();
            let (rank, alpha, base_path) = (RANK, 1.5, String::new());
            let description =
                AdapterDescription { kind, rank, alpha, base_path, base_hash: Some(hash) };
            Self { dir, spec, description, adapted }
        }

        fn base(&self) -> StoredModel {
            StoredModel::open(self.dir.path()).unwrap()
        }

        /// The model of step 0.
        fn initial(&self, base: &StoredModel) -> LanguageModel {
            let AdapterDescription { kind, rank, .. } = self.description;
            let scale = self.description.scale();
            let new = NewAdapter { adapted: &self.adapted, kind, rank, scale, seed: 5 };
            let device = crate::device::cpu();
            LanguageModel::read_adapted(base, &device, new, &mut |_, _| {}).unwrap()
        }

        /// An adapter as a run might leave it; BF16 holds its values.
        fn trained(&self) -> Adapter {
            let random = |entry: &TensorEntry, factor: LowRankFactor| {
                let count = factor.shape(entry, RANK).iter().product::<usize>();
                Ok((0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 512.0).collect())
            };
            let path = self.dir.path().join("adapter");
            fs_err::create_dir(&path).unwrap();
            let (spec, dtype) = (&self.spec, DType::F32);
            write_adapter(&path, &self.description, spec, &self.adapted, dtype, random).unwrap();
            Adapter::open(&path, &self.spec).unwrap()
        }
    }

    /// A model of these targets, as the run trains it and as an export merges it.
    fn compare(targets: &[&str]) {
        let lab = Lab::new(AdapterKind::Latent, targets);
        let (base, device) = (lab.base(), crate::device::cpu());
        let model = lab.initial(&base);
        let names: Vec<_> = named_values(&model).into_iter().map(|(name, _)| name).collect();
        let table: Vec<_> = model.table().iter().map(|entry| entry.name.clone()).collect();
        assert_eq!(names, table, "the table is in the order of the modules");

        let plain = LanguageModel::read(&base, &device).unwrap();
        assert_eq!(hidden(&model), hidden(&plain), "B = 0 changes nothing");
        let adapter = lab.trained();
        let model = set_factors(model, &adapter);
        let hash = lab.description.base_hash.clone().unwrap();
        let merged = MergedModel::new(&base, lab.dir.path(), &hash, &adapter).unwrap();
        let exported = LanguageModel::from_source(&lab.spec, &device, |entry| {
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
    fn a_side_adapter_adds_what_the_engine_adds() {
        for targets in [&["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"][..], &["k_proj"]] {
            let lab = Lab::new(AdapterKind::Side, targets);
            let base = lab.base();
            let packed = lab.dir.path().join("packed");
            fs_err::create_dir(&packed).unwrap();
            hf::write_packed_form(
                &packed,
                &base,
                WeightForm::PackedMultiplying,
                &mut |_, _| Ok(()),
            )
            .unwrap();
            let packed = StoredModel::open(&packed).unwrap();
            let plain = hidden(&LanguageModel::read(&base, &crate::device::cpu()).unwrap());
            let adapter = lab.trained();
            let engine = bitnet_engine::Model::load(lab.dir.path()).unwrap();
            let engine = engine.with_adapter(&adapter).unwrap();
            let pool = bitnet_engine::ThreadPool::new(1).unwrap();
            let mut workspace = bitnet_engine::Workspace::new(&pool);
            let logits =
                engine.forward_all(&mut workspace, &mut engine.new_cache(), &IDS).unwrap().to_vec();
            // From a master and from codes: the bits are the same.
            for base in [&base, &packed] {
                let model = lab.initial(base);
                assert_eq!(hidden(&model), plain, "B = 0 changes nothing");
                let model = set_factors(model, &adapter);
                let states = hidden(&model);
                assert_ne!(states, plain);
                let width = lab.spec.hidden_size;
                let states = Tensor::from_data(
                    TensorData::new(states, [IDS.len(), width]),
                    &crate::device::cpu(),
                );
                let found = to_host(crate::model::token_logits(states, model.head()));
                for (found, expected) in found.iter().zip(&logits) {
                    assert!((found - expected).abs() < 2e-3, "{found} is not {expected}");
                }
            }
        }
    }

    #[test]
    fn an_adapted_model_is_the_merged_one_to_the_bit() {
        compare(&["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
        compare(&["v_proj", "layers.1.mlp.up_proj"]);
    }
}
