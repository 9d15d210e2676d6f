//! Blocks that are computed again for the backward pass give the same bits as blocks that are kept.

use bitnet_kernels::Operands;
use bitnet_train::model::{ActivationMemory, LanguageModel, SegmentStarts};
use bitnet_train::ops::{DrawPlace, GradientFormat, GradientRounding, OpBackend};
use bitnet_train::random;
use bitnet_train::train::{
    CrossEntropy, DpoObjective, GradAccumulator, LossReduction, Objective, PairBatch, TokenBatch,
};
use burn::tensor::Device;
use rand::RngExt;

const VOCAB: usize = 90;
const TIME: usize = 24;

/// Every precision of a recipe.
fn precisions() -> [OpBackend; 3] {
    let place = DrawPlace { seed: 1, step: 2, ..DrawPlace::ORIGIN };
    let int8 = GradientFormat::Int8(GradientRounding::Stochastic(place));
    let bf16 = OpBackend::native(Operands::Bf16);
    [OpBackend::native(Operands::F32), bf16, bf16.with_gradients(int8)]
}

/// A model of three blocks; `extra` is added to its config.
fn model(extra: &str, backend: OpBackend) -> LanguageModel {
    let widths = if extra.contains("hidden_size") {
        ""
    } else {
        "hidden_size = 32\nintermediate_size = 52\n"
    };
    let spec = toml::from_str(&format!(
        "{widths}num_hidden_layers = 3\nvocab_size = {VOCAB}\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\ninitializer_range = 0.2\n{extra}"
    ))
    .unwrap();
    let model = LanguageModel::initial(&spec, 5, &Device::flex().autodiff());
    model.with_backend(backend)
}

/// Rows of three documents of random lengths each; a third of the tokens is not trained.
fn packed_rows(rows: usize, seed: u64) -> TokenBatch {
    let mut dice = random::keyed(seed, "rows", 0, 0);
    let mut ids = |end: usize| -> Vec<i32> {
        (0..rows * TIME).map(|_| dice.random_range(0..end as i32)).collect()
    };
    let (tokens, targets, kept) = (ids(VOCAB), ids(VOCAB), ids(3));
    let mut cuts = || {
        let mut cuts = [0, dice.random_range(1..TIME), dice.random_range(1..TIME)];
        cuts.sort_unstable();
        cuts
    };
    let cuts: Vec<_> = (0..rows).map(|_| cuts()).collect();
    let start = |row: usize, at: usize| *cuts[row].iter().rfind(|&&cut| cut <= at).unwrap() as i32;
    let starts = (0..rows * TIME).map(|i| start(i / TIME, i % TIME)).collect();
    TokenBatch {
        tokens,
        targets,
        loss_mask: kept.iter().map(|&one| f32::from(one > 0)).collect(),
        documents: SegmentStarts::new(rows, TIME, starts),
    }
}

/// The bits of a batch's loss and of every gradient.
fn bits(sum: GradAccumulator, reduction: LossReduction) -> (u32, Vec<Vec<u32>>) {
    let loss = sum.loss().to_bits();
    let gradients = sum.reduced_gradients(reduction).into_iter().map(|gradient| {
        let values: Vec<f32> = gradient.into_data().try_to_vec().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    });
    (loss, gradients.collect())
}

fn assert_same_bits<O: Objective>(
    model: &LanguageModel,
    objective: &O,
    micro_batches: &[Vec<O::Batch>],
    what: &str,
) {
    let device = Device::flex().autodiff();
    let of = |activations: ActivationMemory, reduction| {
        let model = model.clone().with_activations(activations);
        let sum = GradAccumulator::over(&model, objective, micro_batches, &device, &|| false);
        bits(sum.unwrap(), reduction)
    };
    for reduction in [LossReduction::Mean, LossReduction::Sum] {
        let (loss, gradients) = of(ActivationMemory::Kept, reduction);
        let (again, computed_again) = of(ActivationMemory::Recomputed, reduction);
        assert_eq!(loss, again, "{what}: loss bits");
        assert_eq!(gradients.len(), computed_again.len(), "{what}");
        for (number, pair) in gradients.iter().zip(&computed_again).enumerate() {
            assert!(pair.0.iter().any(|&bits| bits << 1 != 0), "{what}: gradient {number} is 0");
            assert!(pair.0 == pair.1, "{what}: bits of gradient {number}");
        }
    }
}

#[test]
fn recomputed_blocks_give_the_same_bits_in_every_shape_of_model() {
    let shapes = [
        "tie_word_embeddings = true",
        "tie_word_embeddings = false",
        "tie_word_embeddings = false\nsub_norms = false\nhidden_act = \"silu\"",
        "tie_word_embeddings = true\nquantise = false",
        "quantiser = { group = \"row\" }\nembedding = \"ternary\"",
        "embedding = \"ternary\"\nactivations = \"none\"\ntie_word_embeddings = false",
        "head_dim = 16\nhidden_size = 64\nintermediate_size = 128\nquantiser = { group = 64 }\n\
         embedding = \"ternary\"",
    ];
    for shape in shapes {
        for backend in precisions() {
            let (model, what) = (model(shape, backend), format!("{shape} {backend:?}"));
            let batches = [vec![packed_rows(3, 1)]];
            assert_same_bits(&model, &CrossEntropy, &batches, &what);
        }
    }
}

#[test]
fn recomputed_blocks_give_the_same_bits_in_several_micro_batches_of_several_parts() {
    for tied in ["tie_word_embeddings = true", "tie_word_embeddings = false"] {
        let model = model(tied, precisions()[2]);
        let batches: Vec<Vec<TokenBatch>> = (0..3)
            .map(|n| vec![packed_rows(2, 3 * n), packed_rows(2, 3 * n + 1), packed_rows(1, n)])
            .collect();
        assert_same_bits(&model, &CrossEntropy, &batches, tied);
    }
}

#[test]
fn recomputed_blocks_give_the_same_bits_for_preferences() {
    let model = model("tie_word_embeddings = true", precisions()[2]);
    let pairs = |seed: u64| PairBatch {
        rows: packed_rows(4, seed),
        reference: vec![-60.0, -59.0, -61.0, -60.5],
    };
    let batches = [vec![pairs(1), pairs(2)], vec![pairs(3)]];
    assert_same_bits(&model, &DpoObjective { beta: 0.1 }, &batches, "pairs");
}

#[test]
fn recomputed_blocks_let_a_loss_that_is_not_finite_through() {
    let model = model("tie_word_embeddings = true", precisions()[0]);
    let mut batch = packed_rows(1, 1);
    batch.loss_mask[3] = f32::NAN;
    let model = model.with_activations(ActivationMemory::Recomputed);
    let device = Device::flex().autodiff();
    let sum = GradAccumulator::of(&model, &CrossEntropy, &[batch], &device);
    assert!(sum.loss().is_nan());
    let (_, gradients) = bits(sum, LossReduction::Sum);
    assert!(gradients.iter().flatten().any(|&bits| f32::from_bits(bits).is_nan()));
}

#[test]
fn random_bits_of_8_bit_gradients_do_not_depend_on_how_a_batch_is_cut() {
    let model = model("tie_word_embeddings = true", precisions()[2]);
    let rows: Vec<TokenBatch> = (0..4).map(|seed| packed_rows(1, seed)).collect();
    let join = |rows: &[TokenBatch]| TokenBatch {
        tokens: rows.iter().flat_map(|row| row.tokens.clone()).collect(),
        targets: rows.iter().flat_map(|row| row.targets.clone()).collect(),
        loss_mask: rows.iter().flat_map(|row| row.loss_mask.clone()).collect(),
        documents: SegmentStarts::whole_rows(rows.len(), TIME),
    };
    let gradients = |batches: &[Vec<TokenBatch>]| -> Vec<f32> {
        let device = Device::flex().autodiff();
        let sum = GradAccumulator::over(&model, &CrossEntropy, batches, &device, &|| false);
        let gradients = sum.unwrap().reduced_gradients(LossReduction::Mean);
        gradients.iter().flat_map(|g| g.to_data().try_to_vec::<f32>().unwrap()).collect()
    };
    let cut = |sizes: &[&[usize]]| -> Vec<Vec<TokenBatch>> {
        let mut rest = &rows[..];
        let mut part = |&size: &usize| {
            let (here, after) = rest.split_at(size);
            rest = after;
            join(here)
        };
        sizes.iter().map(|parts| parts.iter().map(&mut part).collect()).collect()
    };
    let whole = gradients(&cut(&[&[4]]));
    let norm = whole.iter().map(|g| g * g).sum::<f32>().sqrt();
    for sizes in [&[&[2usize, 2][..]][..], &[&[1, 3]], &[&[1], &[1, 1], &[1]]] {
        let found = gradients(&cut(sizes));
        let distance = whole.iter().zip(&found).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
        // Other bits would move it by a part in a hundred; the order of sums, by one in a million.
        assert!(distance < 1e-5 * norm, "{sizes:?}: {}", distance / norm);
    }
}
