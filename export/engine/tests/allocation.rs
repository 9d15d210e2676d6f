//! Decoding a token takes no memory from the system's allocator.

use bitnet_engine::{
    CachePrecision, GenerateRequest, HeadPrecision, KvCache, Model, SamplerSettings, ThreadPool,
    Workspace, generate,
};
use bitnet_format::adapter::{
    Adapter, AdapterDescription, AdapterKind, matching_entries, write_adapter,
};
use bitnet_format::{DType, ModelSpec};

fn model() -> Model {
    let spec: ModelSpec = toml::from_str(
        "hidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 3\n\
        num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 300\n\
        max_position_embeddings = 256\n",
    )
    .unwrap();
    Model::random(&spec, HeadPrecision::Int8)
}

/// The same with a side adapter of two matrices.
fn adapted() -> Model {
    let (model, dir) = (model(), tempfile::tempdir().unwrap());
    let (kind, base_path) = (AdapterKind::Side, String::new());
    let description = AdapterDescription { kind, rank: 4, alpha: 4.0, base_path, base_hash: None };
    let targets = ["v_proj", "down_proj"].map(str::to_owned);
    let entries = matching_entries(model.spec(), &targets).unwrap();
    write_adapter(
        dir.path(),
        &description,
        model.spec(),
        &entries,
        DType::Bf16,
        |entry, factor| Ok(vec![0.01; factor.shape(entry, 4).iter().product()]),
    )
    .unwrap();
    let adapter = Adapter::open(dir.path(), model.spec()).unwrap();
    model.with_adapter(&adapter).unwrap()
}

#[test]
fn a_token_after_the_first_allocates_nothing() {
    let threads = ThreadPool::new(1).unwrap();
    let cases = [
        (model(), CachePrecision::F32),
        (model(), CachePrecision::F16),
        (adapted(), CachePrecision::F32),
    ];
    for (model, precision) in cases {
        let mut cache = KvCache::with_precision(model.spec(), precision);
        cache.reserve(100);
        let mut workspace = Workspace::new(&threads);
        model.forward(&mut workspace, &mut cache, &[1, 2, 3]).unwrap();
        model.forward(&mut workspace, &mut cache, &[4]).unwrap();
        let counted = allocation_counter::measure(|| {
            for id in 5..90 {
                model.forward(&mut workspace, &mut cache, &[id]).unwrap();
            }
        });
        // Scores of attention grow with the context, by doubling.
        assert!(counted.count_total <= 2, "{counted:?}");
    }
}

#[test]
fn a_longer_continuation_costs_no_more_allocations() {
    let (model, threads) = (model(), ThreadPool::new(1).unwrap());
    for (temperature, top_p, penalty) in [(0.0, 1.0, 1.0), (1.0, 0.9, 1.1)] {
        let settings = SamplerSettings {
            temperature,
            top_p,
            repetition_penalty: penalty,
            ..SamplerSettings::default()
        };
        let count = |max_tokens| {
            let request =
                GenerateRequest { sampler: settings.clone(), stop_ids: Vec::new(), max_tokens };
            let mut cache = model.new_cache();
            let each = |_| std::ops::ControlFlow::Continue(());
            let made = allocation_counter::measure(|| {
                let made = generate(&model, &mut cache, &[1, 2], &request, &threads, each).unwrap();
                assert_eq!(made.tokens.len(), max_tokens);
            });
            made.count_total
        };
        let (short, long) = (count(20), count(200));
        // What grows with the context does so by doubling, or by pages of two parts.
        let pages = 2 * (200 / KvCache::PAGE);
        assert!(
            long <= short + 8 + pages as u64,
            "{short} allocations for 20 tokens, {long} for 200"
        );
    }
}
