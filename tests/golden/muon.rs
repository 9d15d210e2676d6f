//! Muon without a model against `torch.optim.Muon` (`tests/fixtures/muon/make_muon.py`): twenty steps of
//! three matrices, the rates changed in the middle.

use std::path::Path;

use bitnet_format::tensors::TensorFile;
use bitnet_format::{ModelSpec, TensorEntry, tensor_table};
use bitnet_kernels::Operands;
use bitnet_train::latents::LeanSettings;
use bitnet_train::ops::OpBackend;
use bitnet_train::train::{AdamW, AdamWSettings, MuonSettings, StepRates};
use burn::tensor::{Device, Tensor};

use super::sets::{host, relative_distance};

const STEPS: usize = 20;
const SHAPE: &str = "hidden_size = 12\nintermediate_size = 20\nnum_hidden_layers = 1\n\
    num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 4\n";

/// The matrices after all steps, by name.
fn trained(file: &TensorFile, operands: Operands) -> Vec<(TensorEntry, Vec<f32>)> {
    let spec: ModelSpec = toml::from_str(SHAPE).unwrap();
    let (table, device) = (tensor_table(&spec), Device::flex());
    let muon = MuonSettings { rate_ratio: 1.0, ..MuonSettings::default() };
    let settings = AdamWSettings { muon: Some(muon), ..AdamWSettings::default() };
    let frozen = vec![false; table.len()];
    let mut optimizer =
        AdamW::with_lean(&table, settings, LeanSettings::default(), &frozen, &device);
    let flat = |values: Vec<f32>| Tensor::<1>::from_floats(values.as_slice(), &device);
    let stored = |entry: &TensorEntry, what: &str| {
        let name = format!("{}.{what}", kind(entry));
        let shape = file.info(&name).ok()?.shape.clone();
        Some(file.floats(&name, &shape).unwrap())
    };
    let zeros = |entry: &TensorEntry| vec![0.0; entry.elements()];
    let start = |entry: &TensorEntry| flat(stored(entry, "step0").unwrap_or_else(|| zeros(entry)));
    let mut values: Vec<_> = table.iter().map(start).collect();
    for step in 0..STEPS {
        let (learning_rate, weight_decay) = if step < 10 { (0.02, 0.1) } else { (0.005, 0.0) };
        let gradient = |entry: &TensorEntry| {
            let all = stored(entry, "gradients")?;
            Some(flat(all[step * entry.elements()..][..entry.elements()].to_vec()))
        };
        let gradients = table.iter().map(gradient).collect();
        let rates = StepRates { learning_rate, weight_decay };
        let backend = OpBackend::native(operands);
        values = optimizer.update(values, gradients, 1.0, rates, backend);
    }
    let found = table.into_iter().zip(values.into_iter().map(host));
    found.filter(|(entry, _)| stored(entry, "step0").is_some()).collect()
}

fn kind(entry: &TensorEntry) -> &str {
    entry.name.rsplit('.').nth(1).unwrap_or_default()
}

#[test]
fn golden_muon_unit() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/muon/muon.safetensors");
    let file = TensorFile::open(&path).unwrap();
    // torch orthogonalises in bf16, which five iterations of a steep polynomial amplify.
    for (operands, what, within) in [(Operands::F32, "f64", 2e-5), (Operands::Bf16, "bf16", 0.03)] {
        let found = trained(&file, operands);
        assert_eq!(found.len(), 3);
        for (entry, values) in found {
            let expected = file.floats(&format!("{}.{what}", kind(&entry)), &entry.shape).unwrap();
            let distance = relative_distance(&values, &expected);
            assert!(distance < within, "{} {operands:?}: {distance:e}", entry.name);
        }
    }
}
