//! Our own operations against the same in plain tensor operations, forward and backward, on
//! random shapes with tails.

use std::sync::Arc;

use bitnet_format::{HiddenAct, tensor_table};
use bitnet_kernels::{Kernel, Operands};
use bitnet_train::model::{
    Documents, LanguageModel, Weight, named_values, target_log_probs, values,
};
use bitnet_train::ops::reference::LazySight;
use bitnet_train::ops::{self, AttentionShape, Compute, Targets, reference};
use bitnet_train::random;
use bitnet_train::train::{
    AdamW, AdamWSettings, CrossEntropy, GradAccumulator, LossReduction, Skip, StepRates,
    StepSettings, TokenBatch, optimizer_step, sequence_log_probs,
};
use burn::tensor::{Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use rand_distr::{Distribution, Normal};

fn draw(seed: u64, purpose: &str, count: usize) -> Vec<f32> {
    let normal = Normal::new(0.0f32, 1.0).unwrap();
    normal.sample_iter(random::keyed(seed, purpose, 0, 0)).take(count).collect()
}

fn leaf<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff()).require_grad()
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().into_data().try_to_vec().unwrap()
}

/// Output, gradient of the first and of the second input under a random upstream gradient.
fn run<const D: usize>(
    operation: impl Fn(Tensor<3>, Tensor<D>) -> Tensor<3>,
    x: &Tensor<3>,
    w: &Tensor<D>,
    seed: u64,
) -> [Vec<f32>; 3] {
    let y = operation(x.clone(), w.clone());
    let upstream = draw(seed, "upstream", y.shape().num_elements());
    let upstream = Tensor::from_data(TensorData::new(upstream, y.dims()), &y.device());
    let mut grads = (y.clone() * upstream).sum().backward();
    let dx = x.grad_remove(&mut grads).unwrap();
    let dw = w.grad_remove(&mut grads).unwrap();
    [host(y), host(dx), host(dw)]
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    let square = |x: f64| x * x;
    let norm: f64 = expected.iter().map(|&b| square(f64::from(b))).sum();
    let distance: f64 =
        found.iter().zip(expected).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    // Sums of at most a few hundred f32 products, rounded in another order.
    assert!(distance.sqrt() <= 2e-6 * norm.sqrt().max(1e-3), "{what}: {distance} of {norm}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bit_linear_equals_its_reference(
        batch in 1usize..4, time in 1usize..40, width in 1usize..90, out in 1usize..70, seed: u64,
    ) {
        let x = leaf(draw(seed, "x", batch * time * width), [batch, time, width]);
        let w = leaf(draw(seed, "w", out * width), [out, width]);
        let found = run(|x, w| ops::bit_linear(x, [w], Compute::default()), &x, &w, seed);
        let expected = run(|x, w| reference::bit_linear(x, [w], Operands::F32), &x, &w, seed);
        prop_assert_eq!(&found[0], &expected[0], "integers first: the outputs have the same bits");
        assert_close(&found[1], &expected[1], "dx");
        assert_close(&found[2], &expected[2], "dw");
    }

    #[test]
    fn rms_norm_equals_its_reference(
        // Narrower rows leave a gradient that is the small rest of a cancellation.
        batch in 1usize..4, time in 1usize..140, width in 8usize..90, seed: u64,
    ) {
        let x = leaf(draw(seed, "x", batch * time * width), [batch, time, width]);
        let gain = leaf(draw(seed, "gain", width), [width]);
        let found = run(|x, gain| ops::rms_norm(x, gain, 1e-5, Compute::default()), &x, &gain, seed);
        let expected = run(|x, gain| reference::rms_norm(x, gain, 1e-5), &x, &gain, seed);
        for (part, name) in ["y", "dx", "dgain"].iter().enumerate() {
            assert_close(&found[part], &expected[part], name);
        }
    }
}

/// Output and the gradients of all inputs under a random upstream gradient.
fn run_all<const D: usize>(
    y: &Tensor<D>,
    seed: u64,
    gradients: impl Fn(&mut burn::tensor::Gradients) -> Vec<Vec<f32>>,
) -> Vec<Vec<f32>> {
    let upstream = draw(seed, "upstream", y.shape().num_elements());
    let upstream = Tensor::from_data(TensorData::new(upstream, y.dims()), &y.device());
    let mut grads = (y.clone() * upstream).sum().backward();
    let mut all = vec![host(y.clone())];
    all.extend(gradients(&mut grads));
    all
}

/// How far results may be from the reference: f32 sums in another order, or bf16 operands, each
/// rounded to one part in 256 at most.
fn tolerance(operands: Operands) -> f64 {
    match operands {
        Operands::F32 => 3e-6,
        Operands::Bf16 => 1e-2,
    }
}

fn assert_within(found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (part, (found, expected)) in found.iter().zip(expected).enumerate() {
        let square = |x: f64| x * x;
        let norm: f64 = expected.iter().map(|&b| square(f64::from(b))).sum();
        let distance: f64 =
            found.iter().zip(expected).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
        let share = distance.sqrt() / norm.sqrt().max(1e-2);
        assert!(share <= tolerance, "{what}, part {part}: {share:e}");
    }
}

const BOTH: [Operands; 2] = [Operands::F32, Operands::Bf16];

/// Rows of documents of random lengths; the first row is one document.
fn shape_of(
    batch: usize,
    time: usize,
    [group, key_heads, half]: [usize; 3],
    seed: u64,
) -> AttentionShape {
    let lengths = draw(seed, "documents", batch * time);
    let mut starts = Vec::new();
    for row in 0..batch {
        let mut start = 0;
        for at in 0..time {
            if row > 0 && at > 0 && lengths[row * time + at] > 1.2 {
                start = at as i32;
            }
            starts.push(start);
        }
    }
    let angles: Vec<f32> = draw(seed, "angles", batch * time * half);
    let turn = |f: fn(f32) -> f32| Arc::new(angles.iter().map(|&angle| f(angle)).collect());
    AttentionShape {
        batch,
        time,
        heads: group * key_heads,
        key_heads,
        width: 2 * half,
        starts: Arc::new(starts),
        cosines: turn(f32::cos),
        sines: turn(f32::sin),
        sight: LazySight::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linears_with_one_input_equal_their_references(
        time in 1usize..40, width in 1usize..70, out in prop::array::uniform3(1usize..40), seed: u64,
    ) {
        let x = leaf(draw(seed, "x", time * width), [1, time, width]);
        let w = [0, 1, 2].map(|i| leaf(draw(seed + i, "w", out[i as usize] * width), [out[i as usize], width]));
        let of = |y: &Tensor<3>| run_all(y, seed, |grads| {
            let mut all = vec![host(x.grad_remove(grads).unwrap())];
            all.extend(w.iter().map(|w| host(w.grad_remove(grads).unwrap())));
            all
        });
        let expected = of(&reference::bit_linear(x.clone(), w.clone(), Operands::F32));
        for operands in BOTH {
            let found = of(&ops::bit_linear(x.clone(), w.clone(), Compute::of(operands)));
            prop_assert_eq!(&found[0], &expected[0], "integers: the outputs have the same bits");
            assert_within(&found, &expected, tolerance(operands), "linears");
            let elsewhere = of(&reference::bit_linear(x.clone(), w.clone(), operands));
            assert_within(&elsewhere, &expected, tolerance(operands), "linears elsewhere");
        }
    }

    #[test]
    fn the_gate_equals_its_reference(time in 1usize..40, width in 1usize..70, silu: bool, seed: u64) {
        let act = if silu { HiddenAct::Silu } else { HiddenAct::Relu2 };
        let x = leaf(draw(seed, "x", 2 * time * width), [1, time, 2 * width]);
        let of = |y: &Tensor<3>| {
            run_all(y, seed, |grads| vec![host(x.grad_remove(grads).unwrap())])
        };
        let expected = of(&reference::gated(x.clone(), act));
        let found = of(&ops::gated(x.clone(), act, Compute::default()));
        assert_within(&found, &expected, 1e-6, "gate");
    }

    #[test]
    fn attention_equals_its_reference(
        batch in 1usize..4, time in 1usize..150, group in 1usize..4, key_heads in 1usize..3,
        half in 1usize..20, seed: u64,
    ) {
        let shape = shape_of(batch, time, [group, key_heads, half], seed);
        let count = batch * time * shape.stride();
        let qkv = leaf(draw(seed, "qkv", count), [batch, time, shape.stride()]);
        let of = |y: &Tensor<3>| {
            run_all(y, seed, |grads| vec![host(qkv.grad_remove(grads).unwrap())])
        };
        let expected = of(&reference::attention(qkv.clone(), &shape, Operands::F32));
        for operands in BOTH {
            let found = of(&ops::attention(qkv.clone(), &shape, Compute::of(operands)));
            assert_within(&found, &expected, tolerance(operands), "attention");
            let elsewhere = of(&reference::attention(qkv.clone(), &shape, operands));
            assert_within(&elsewhere, &expected, tolerance(operands), "attention elsewhere");
        }
    }

    #[test]
    fn the_loss_equals_its_reference(
        time in 1usize..300, width in 1usize..50, vocab in 2usize..200, seed: u64,
    ) {
        check_loss(time, width, vocab, seed);
    }
}

/// The loss and its gradients over random hidden states, some of them not trained.
fn check_loss(time: usize, width: usize, vocab: usize, seed: u64) {
    let hidden = leaf(draw(seed, "hidden", time * width), [1, time, width]);
    let head = leaf(draw(seed, "head", vocab * width), [vocab, width]);
    let of_weight = |x: &f32| if *x < -0.5 { 0.0 } else { x.abs() };
    let weights: Vec<f32> = draw(seed, "weights", time).iter().map(of_weight).collect();
    let ids: Vec<i32> =
        draw(seed, "ids", time).iter().map(|x| (x.abs() * 1e4) as i32 % vocab as i32).collect();
    let of = |y: &Tensor<1>| {
        run_all(y, seed, |grads| {
            vec![host(hidden.grad_remove(grads).unwrap()), host(head.grad_remove(grads).unwrap())]
        })
    };
    let at = |values: &[i32]| -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, time]), &hidden.device())
    };
    let log_probs = target_log_probs(hidden.clone(), head.clone(), at(&ids));
    let weighted =
        Tensor::<2>::from_data(TensorData::new(weights.clone(), [1, time]), &hidden.device());
    let expected = of(&(log_probs * weighted).sum().neg());
    let targets = Targets { ids: Arc::new(ids), weights: Arc::new(weights) };
    for operands in BOTH {
        // Sums over more words differ by more.
        let within = tolerance(operands) * (1.0 + vocab as f64 / 1000.0);
        let (x, w) = (hidden.clone(), head.clone());
        let found = of(&ops::cross_entropy(x, w, targets.clone(), Compute::of(operands)));
        assert_within(&found, &expected, within, "loss");
        let (x, w) = (hidden.clone(), head.clone());
        let elsewhere = of(&reference::cross_entropy(x, w, &targets, operands));
        assert_within(&elsewhere, &expected, within, "loss elsewhere");
    }
}

/// Several blocks of words and chunks of tokens; then so many words that no exponential is kept.
#[test]
fn the_loss_over_a_large_vocabulary_equals_its_reference() {
    check_loss(700, 12, 1100, 1);
    check_loss(513, 6, 9000, 2);
}

#[test]
fn threads_and_kernels_change_no_bit_of_a_gradient() {
    let shape = shape_of(3, 70, [2, 2, 8], 1);
    let x = leaf(draw(1, "x", 3 * 70 * 64), [3, 70, 64]);
    let w = [64, 32, 32].map(|out| leaf(draw(out as u64, "w", out * 64), [out, 64]));
    let head = leaf(draw(2, "head", 90 * 64), [90, 64]);
    let targets = Targets { ids: Arc::new(vec![5; 210]), weights: Arc::new(vec![1.0; 210]) };
    let gradients = |compute: Compute| {
        let qkv = ops::bit_linear(x.clone(), w.clone(), compute);
        let mixed = ops::attention(qkv, &shape, compute);
        let loss = ops::cross_entropy(mixed, head.clone(), targets.clone(), compute);
        let mut grads = loss.backward();
        let mut all = vec![host(x.grad_remove(&mut grads).unwrap())];
        all.extend(w.iter().map(|w| host(w.grad_remove(&mut grads).unwrap())));
        all.push(host(head.grad_remove(&mut grads).unwrap()));
        all
    };
    for operands in BOTH {
        let expected = gradients(Compute::of(operands));
        for kernel in Kernel::available() {
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let inside = pool.install(|| gradients(Compute { kernel, operands }));
                assert!(inside == expected, "{kernel:?} {operands:?} {threads} threads");
            }
        }
    }
}

#[test]
fn a_value_that_is_not_finite_reaches_the_output() {
    let x = leaf(vec![1.0, f32::NAN, 2.0, 3.0], [1, 2, 2]);
    let w = leaf(vec![1.0, -1.0], [1, 2]);
    let y = host(ops::bit_linear(x, [w], Compute::default()));
    assert!(y[0].is_nan() && y[1].is_finite());
}

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
        Ok::<_, ()>((vec![value; entry.elements()], Weight::Latent))
    });
    let model = poisoned.unwrap();
    let before: Vec<_> = values(&model).into_iter().map(host).collect();
    let mut optimizer = AdamW::for_model(&spec, AdamWSettings::default(), &device);
    let batch = TokenBatch {
        tokens: vec![1, 2, 3],
        targets: vec![2, 3, 4],
        loss_mask: vec![1.0; 3],
        documents: Documents::whole_rows(1, 3),
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

#[test]
fn zero_rows_give_zero_and_finite_gradients() {
    let x = leaf(vec![0.0; 6], [1, 2, 3]);
    let w = leaf(vec![0.0; 6], [2, 3]);
    for values in run(|x, w| ops::bit_linear(x, [w], Compute::default()), &x, &w, 1) {
        assert!(values.iter().all(|value| value.is_finite()));
    }
}

/// A model of some shape with a vocabulary that is no multiple of anything.
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
        documents: Documents::whole_rows(rows, time),
    }
}

fn rows_of(batch: &TokenBatch, rows: std::ops::Range<usize>) -> TokenBatch {
    let time = batch.documents.dims()[1];
    let of = rows.start * time..rows.end * time;
    TokenBatch {
        tokens: batch.tokens[of.clone()].to_vec(),
        targets: batch.targets[of.clone()].to_vec(),
        loss_mask: batch.loss_mask[of].to_vec(),
        documents: Documents::whole_rows(rows.len(), time),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// Preference training compares log-probabilities computed in different batches.
    #[test]
    fn what_a_row_gives_does_not_depend_on_the_rows_beside_it(
        hidden in prop::sample::select(vec![32usize, 64, 256]), vocab in 64usize..1100,
        time in prop::sample::select(vec![7usize, 32, 64, 96, 129]), rows in 2usize..9, seed: u64,
    ) {
        // Recorded for a backward pass or not, the arithmetic may differ in the last bit.
        for device in [Device::flex(), Device::flex().autodiff()] {
            let model = small_model(hidden, vocab, &device);
            let batch = random_rows(rows, time, vocab, seed);
            let together = host(sequence_log_probs(&model, &batch, &device));
            for (row, expected) in together.iter().enumerate() {
                let alone = rows_of(&batch, row..row + 1);
                let alone = host(sequence_log_probs(&model, &alone, &device));
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
            assert_close(&host(a), &host(b.clone()), &format!("micro-batches of {sizes}"));
        }
    }
}

/// A packed folder, and the same model as float matrices that hold only 0 and ±s.
fn packed_and_dequantised(dir: &std::path::Path) -> [bitnet_format::StoredModel; 2] {
    use bitnet_format::StoredModel;
    use bitnet_format::convert::hf::write_packed;
    use bitnet_format::tensors::{TensorData as Floats, write_tensors};
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
    let of = |model: &LanguageModel| host(sequence_log_probs(model, &batch, &device));
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
