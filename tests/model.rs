//! Models as training and evaluation use them: what a step, a cut batch or a stored checkpoint must
//! not change.

use bitnet_format::{TensorEntry, TensorRole, TensorSource, tensor_table};
use bitnet_kernels::Operands;
use bitnet_train::model::{
    LanguageModel, LinearWeight, SegmentStarts, WidthRatio, named_values, values,
};
use bitnet_train::ops::OpBackend;
use bitnet_train::train::{
    AdamW, AdamWSettings, CrossEntropy, GradAccumulator, LossReduction, MuonSettings, Skip,
    StepRates, StepSettings, TokenBatch, optimizer_step, sequence_log_probs,
};
use burn::tensor::{Device, Tensor};
use proptest::prelude::*;

use crate::golden::sets::{host, relative_distance};
use crate::parity::draw;

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let device = Device::flex().autodiff();
    let spec = toml::from_str(
        "hidden_size = 8\nintermediate_size = 8\nnum_hidden_layers = 1\nvocab_size = 8\n\
         num_attention_heads = 2\nnum_key_value_heads = 1",
    )
    .unwrap();
    let poisoned = LanguageModel::from_source(&spec, &device, |entry| {
        let value = if entry.name == "model.norm.weight" { f32::INFINITY } else { 0.5 };
        Ok::<_, ()>((vec![value; entry.elements()], LinearWeight::Latent))
    });
    let model = poisoned.unwrap();
    let before: Vec<_> = values(&model).into_iter().map(host).collect();
    let mut optimizer = AdamW::for_model(&spec, AdamWSettings::default(), &device);
    let batch = TokenBatch {
        tokens: vec![1, 2, 3],
        targets: vec![2, 3, 4],
        loss_mask: vec![1.0; 3],
        documents: SegmentStarts::whole_rows(1, 3),
    };
    let sum = GradAccumulator::of(&model, &CrossEntropy, &[batch], &device);
    let rates = StepRates { learning_rate: 0.1, weight_decay: 0.1 };
    let (after, report) =
        optimizer_step(sum, model, &mut optimizer, StepSettings::default(), rates);
    assert_eq!(report.skipped, Some(Skip::NotFinite));
    assert_eq!(optimizer.updates, 0);
    assert_eq!(values(&after).into_iter().map(host).collect::<Vec<_>>(), before);
}

#[test]
fn rates_go_with_the_width_where_that_is_asked_for() {
    let spec = toml::from_str(
        "hidden_size = 8\nintermediate_size = 8\nnum_hidden_layers = 1\nvocab_size = 8\n\
         num_attention_heads = 2\nnum_key_value_heads = 1",
    )
    .unwrap();
    let (table, device) = (tensor_table(&spec), Device::flex());
    let flat = |value: fn(usize) -> f32, entry: &TensorEntry| {
        let values: Vec<f32> = (0..entry.elements()).map(value).collect();
        Tensor::<1>::from_floats(values.as_slice(), &device)
    };
    let updated = |muon, width| {
        let settings = AdamWSettings { muon, width, ..AdamWSettings::default() };
        let mut optimizer = AdamW::for_model(&spec, settings, &device);
        let zeros = table.iter().map(|entry| flat(|_| 0.0, entry)).collect();
        let gradient = |entry| Some(flat(|i| (i * i % 7) as f32 - 1.5, entry));
        let gradients = table.iter().map(gradient).collect();
        let rates = StepRates { learning_rate: 0.5, weight_decay: 0.0 };
        let backend = OpBackend::native(Operands::F32);
        optimizer.update(zeros, gradients, 1.0, rates, backend).into_iter().map(host)
    };
    for (muon, of_matrices) in [(None, 0.25), (Some(MuonSettings::default()), 0.5)] {
        let plain = updated(muon, WidthRatio::default());
        let scaled = updated(muon, WidthRatio::new(2, 8));
        for ((entry, plain), scaled) in table.iter().zip(plain).zip(scaled) {
            let factor = match entry.role {
                TensorRole::Linear(_) => of_matrices,
                _ if entry.name == "model.norm.weight" => 0.25,
                _ => 1.0,
            };
            assert!(plain.iter().any(|value| value.abs() > 1e-3), "{}", entry.name);
            let expected: Vec<f32> = plain.into_iter().map(|value| value * factor).collect();
            assert_eq!(scaled, expected, "{}", entry.name);
        }
    }
}

#[test]
fn parameters_are_visited_in_the_order_of_the_tensor_table() {
    let untied = "hidden_size = 8\nintermediate_size = 12\nnum_hidden_layers = 2\nvocab_size = 8\n\
        num_attention_heads = 2\nnum_key_value_heads = 1\ntie_word_embeddings = false\n";
    for sub_norms in ["sub_norms = true", "sub_norms = false"] {
        let spec = toml::from_str(&format!("{untied}{sub_norms}")).unwrap();
        let model = LanguageModel::initial(&spec, 1, &Device::flex());
        let found = named_values(&model).into_iter().map(|(name, v)| (name, v.dims()[0]));
        let expected =
            tensor_table(&spec).into_iter().map(|entry| (entry.name.clone(), entry.elements()));
        assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}

/// A small model; vocabularies of any size are allowed.
fn small_model(hidden: usize, vocab: usize, device: &Device) -> LanguageModel {
    let spec = toml::from_str(&format!(
        "hidden_size = {hidden}\nintermediate_size = {}\nnum_hidden_layers = 2\n\
         vocab_size = {vocab}\nnum_attention_heads = 4\nnum_key_value_heads = 2\n\
         initializer_range = 0.2",
        hidden * 2 + 4
    ))
    .unwrap();
    LanguageModel::initial(&spec, 5, device)
}

fn random_rows(rows: usize, time: usize, vocab: usize, seed: u64) -> TokenBatch {
    let mut numbers = draw(seed, "rows", rows * time * 3).into_iter();
    let mut ids = || {
        (0..rows * time)
            .map(|_| (numbers.next().unwrap().abs() * 1e4) as i32 % vocab as i32)
            .collect()
    };
    TokenBatch {
        tokens: ids(),
        targets: ids(),
        loss_mask: (0..rows * time).map(|at| f32::from(at % 3 > 0)).collect(),
        documents: SegmentStarts::whole_rows(rows, time),
    }
}

fn rows_of(batch: &TokenBatch, rows: std::ops::Range<usize>) -> TokenBatch {
    let time = batch.documents.dims()[1];
    let of = rows.start * time..rows.end * time;
    TokenBatch {
        tokens: batch.tokens[of.clone()].to_vec(),
        targets: batch.targets[of.clone()].to_vec(),
        loss_mask: batch.loss_mask[of].to_vec(),
        documents: SegmentStarts::whole_rows(rows.len(), time),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Preference training compares log-probabilities computed in different batches.
    #[test]
    fn the_result_of_a_row_does_not_depend_on_the_rows_beside_it(
        hidden in prop::sample::select(vec![32usize, 64, 256]), vocab in 64usize..1100,
        time in prop::sample::select(vec![7usize, 32, 64, 96, 129]), rows in 2usize..9, seed: u64,
    ) {
        // Recorded for a backward pass or not, the arithmetic may differ in the last bit.
        for device in [Device::flex(), Device::flex().autodiff()] {
            let model = small_model(hidden, vocab, &device);
            let batch = random_rows(rows, time, vocab, seed);
            let together = sequence_log_probs(&model, &batch, &device);
            for (row, expected) in together.iter().enumerate() {
                let alone = rows_of(&batch, row..row + 1);
                let alone = sequence_log_probs(&model, &alone, &device);
                prop_assert_eq!(alone[0].to_bits(), expected.to_bits());
            }
        }
    }
}

#[test]
fn the_summed_loss_and_its_gradients_do_not_depend_on_how_a_batch_is_cut() {
    let device = Device::flex().autodiff();
    let (model, batch) = (small_model(64, 200, &device), random_rows(6, 24, 200, 3));
    let gradients = |sizes: usize| {
        let parts: Vec<TokenBatch> =
            (0..6).step_by(sizes).map(|row| rows_of(&batch, row..row + sizes)).collect();
        let sum = GradAccumulator::of(&model, &CrossEntropy, &parts, &device);
        (sum.loss(), sum.reduced_gradients(LossReduction::Sum))
    };
    let (loss, whole) = gradients(6);
    for sizes in [1, 2, 3] {
        let (cut_loss, cut) = gradients(sizes);
        assert!((cut_loss - loss).abs() <= 1e-6 * loss.abs(), "{cut_loss} {loss}");
        for (a, b) in cut.into_iter().zip(&whole) {
            // Sums of at most a few hundred f32 products, rounded in another order.
            let error = relative_distance(&host(a), &host(b.clone()));
            assert!(error <= 2e-6, "micro-batches of {sizes}: {error:e}");
        }
    }
}

/// A packed folder, and the same model as float matrices that hold only 0 and ±s.
fn packed_and_dequantised(dir: &std::path::Path) -> [bitnet_format::StoredModel; 2] {
    use bitnet_format::StoredModel;
    use bitnet_format::convert::hf::write_packed;
    use bitnet_format::writer::{TensorData as Floats, write_tensors};
    use bitnet_format::{HfConfig, WeightForm};
    let spec: bitnet_format::ModelSpec = toml::from_str(
        "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 2\nvocab_size = 40\n\
         num_attention_heads = 2\nnum_key_value_heads = 1",
    )
    .unwrap();
    let (packed, floats) = (dir.join("packed"), dir.join("floats"));
    fs_err::create_dir_all(&packed).unwrap();
    fs_err::create_dir_all(&floats).unwrap();
    write_packed(&packed, &spec, |entry| Ok(draw(7, &entry.name, entry.elements()))).unwrap();
    let folder = StoredModel::open(&packed).unwrap();
    let values: Vec<(String, Vec<usize>, Vec<f32>)> = tensor_table(&spec)
        .into_iter()
        .map(|entry| {
            let values = if entry.is_ternary(&spec) {
                let (codes, scale) = folder.ternary(&entry).unwrap();
                let value = |code: i8| f32::from(code) * scale.multiplier();
                codes.codes().into_iter().map(value).collect()
            } else {
                folder.floats(&entry).unwrap()
            };
            (entry.name, entry.shape, values)
        })
        .collect();
    let tensors =
        values.iter().map(|(name, shape, values)| (name.clone(), Floats::f32(shape, values)));
    write_tensors(&floats.join("model.safetensors"), tensors).unwrap();
    let config = HfConfig { spec, form: WeightForm::Latent };
    fs_err::write(floats.join("config.json"), config.to_json("float32")).unwrap();
    [folder, StoredModel::open(&floats).unwrap()]
}

#[test]
fn a_checkpoint_that_was_dequantised_keeps_its_codes_and_scales() {
    let dir = tempfile::tempdir().unwrap();
    let [packed, floats] = packed_and_dequantised(dir.path());
    let device = Device::flex();
    let batch = random_rows(2, 12, 40, 9);
    let of = |model: &LanguageModel| sequence_log_probs(model, &batch, &device);
    let expected = of(&LanguageModel::read(&packed, &device).unwrap());
    assert_eq!(of(&LanguageModel::read(&floats, &device).unwrap()), expected);
    let (trainable, kept) = LanguageModel::read_for_training(&floats, &device).unwrap();
    assert_eq!(kept, 14, "seven matrices a layer");
    // The latents are made so that absmean gives the scale back to an ulp.
    for (found, expected) in of(&trainable).iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-3 * expected.abs(), "{found} {expected}");
    }
    let refused = LanguageModel::read_for_training(&packed, &device).unwrap_err().to_string();
    assert!(refused.contains("without the latent weights"), "{refused}");
}
