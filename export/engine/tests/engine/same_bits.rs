//! Nothing about how a pass is run shows in its logits.

use bitnet_engine::{CachePrecision, Kernel, KvCache, Model, Sequence, Workspace};

use crate::random_model::{SPLIT, model, threads};

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|i| i * 7919 % 2100).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Logits of all tokens in one call.
fn together(model: &Model, tokens: &[u32], threads: usize) -> Vec<u32> {
    let pool = crate::random_model::threads(threads);
    let mut workspace = Workspace::new(&pool);
    bits(model.forward_all(&mut workspace, &mut model.new_cache(), tokens).unwrap())
}

#[test]
fn one_token_at_a_time_gives_the_logits_of_one_call() {
    let (model, pool) = (model(SPLIT), threads(2));
    let tokens = prompt(40);
    let (mut cache, mut workspace) = (model.new_cache(), Workspace::new(&pool));
    let mut one_by_one = Vec::new();
    for token in &tokens {
        one_by_one.extend(bits(model.forward(&mut workspace, &mut cache, &[*token]).unwrap()));
    }
    assert_eq!(cache.len(), tokens.len());
    assert!(one_by_one == together(&model, &tokens, 2));
}

#[test]
fn a_long_prompt_in_pieces_gives_the_logits_of_one_call() {
    // 400 tokens: more than go through the blocks together.
    let (model, pool) = (model(SPLIT), threads(2));
    let (tokens, mut workspace) = (prompt(400), Workspace::new(&pool));
    let whole = bits(model.forward(&mut workspace, &mut model.new_cache(), &tokens).unwrap());
    let mut cache = model.new_cache();
    model.forward(&mut workspace, &mut cache, &tokens[..70]).unwrap();
    model.forward(&mut workspace, &mut cache, &prompt(100)).unwrap();
    cache.truncate(70);
    let rest = model.forward(&mut workspace, &mut cache, &tokens[70..]).unwrap();
    assert_eq!(bits(rest), whole);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for config in [SPLIT.to_owned(), format!("{SPLIT}sub_norms = false\nhidden_act = \"silu\"")] {
        let model = model(&config);
        for tokens in [prompt(1), prompt(9)] {
            let one = together(&model, &tokens, 1);
            assert!(one == together(&model, &tokens, 2));
            assert!(one == together(&model, &tokens, 3));
        }
    }
}

#[test]
fn the_kernel_changes_no_bit() {
    let mut model = model(&format!("{SPLIT}tie_word_embeddings = false"));
    let tokens = prompt(6);
    let detected = together(&model, &tokens, 1);
    for kernel in Kernel::available() {
        model = model.with_kernel(kernel);
        assert!(together(&model, &tokens, 1) == detected, "{kernel:?}");
    }
}

#[test]
fn a_sequence_among_others_gives_the_logits_it_has_alone() {
    let (model, pool) = (model(SPLIT), threads(2));
    let mut workspace = Workspace::new(&pool);
    let vocab_size = model.spec().vocab_size;
    // Prompts that end within, at and beyond what goes through the blocks together, then one token
    // of each.
    let prompts = [prompt(3), prompt(253), prompt(1), prompt(300)];
    let mut alone: Vec<KvCache> = prompts.iter().map(|_| model.new_cache()).collect();
    let mut beside = alone.clone();
    for round in 0..3 {
        let next = |at: usize| if round == 0 { prompts[at].clone() } else { vec![7 * round] };
        let tokens: Vec<Vec<u32>> = (0..prompts.len()).map(next).collect();
        let mut sequences: Vec<Sequence> = beside
            .iter_mut()
            .zip(&tokens)
            .map(|(cache, tokens)| Sequence { cache, tokens })
            .collect();
        let together = bits(model.forward_batch(&mut workspace, &mut sequences).unwrap());
        for ((cache, tokens), found) in
            alone.iter_mut().zip(&tokens).zip(together.chunks(vocab_size))
        {
            assert_eq!(bits(model.forward(&mut workspace, cache, tokens).unwrap()), found);
        }
    }
}

#[test]
fn one_sequence_that_cannot_go_on_leaves_the_others_as_they_were() {
    let (model, pool) = (model(SPLIT), threads(1));
    let mut workspace = Workspace::new(&pool);
    let (mut first, mut second) = (model.new_cache(), model.new_cache());
    let mut sequences = [
        Sequence { cache: &mut first, tokens: &[1, 2] },
        Sequence { cache: &mut second, tokens: &[9999] },
    ];
    assert!(model.forward_batch(&mut workspace, &mut sequences).is_err());
    assert_eq!((first.len(), second.len()), (0, 0));
}

#[test]
fn a_cache_in_half_precision_gives_nearly_the_same_logits_and_the_same_in_every_kernel() {
    let mut model = model(SPLIT);
    let (pool, tokens) = (threads(2), prompt(60));
    let mut workspace = Workspace::new(&pool);
    let exact = model.forward(&mut workspace, &mut model.new_cache(), &tokens).unwrap().to_vec();
    let mut first = None;
    for kernel in Kernel::available() {
        model = model.with_kernel(kernel);
        let mut cache = KvCache::with_precision(model.spec(), CachePrecision::F16);
        let half = model.forward(&mut workspace, &mut cache, &tokens).unwrap();
        // A rounded key moves an activation by up to one of its 127 levels.
        let size =
            |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
        let difference = size(&mut half.iter().zip(&exact).map(|(a, b)| a - b));
        let share = difference / size(&mut exact.iter().copied());
        assert!(share > 0.0 && share < 0.05, "{share}");
        assert_eq!(*first.get_or_insert_with(|| bits(half)), bits(half), "{kernel:?}");
    }
}

#[test]
fn sequences_that_share_pages_have_the_bits_of_each_alone() {
    let (model, pool) = (model(SPLIT), threads(2));
    let (tokens, mut workspace) = (prompt(150), Workspace::new(&pool));
    for precision in [CachePrecision::F32, CachePrecision::F16] {
        let mut whole = KvCache::with_precision(model.spec(), precision);
        let logits = bits(model.forward(&mut workspace, &mut whole, &tokens).unwrap());
        // Within, at and beyond the borders of pages.
        for len in [37, 64, 100, 128, 149] {
            let mut shared = whole.prefix(len);
            assert_eq!((shared.len(), whole.len()), (len, 150));
            let last = whole.page(0).unwrap();
            assert_eq!(last.holders(), 3, "nothing was copied");
            // Something else is written first, which the whole must not see.
            model.forward(&mut workspace, &mut shared, &[7]).unwrap();
            shared.truncate(len);
            let rest = model.forward(&mut workspace, &mut shared, &tokens[len..]).unwrap();
            assert_eq!(bits(rest), logits, "{len} tokens in {precision:?}");
        }
        let again = whole.prefix(149);
        assert_eq!(whole.page(2).unwrap().holders(), 3);
        let mut from_pages = KvCache::with_precision(model.spec(), precision);
        for (index, tokens) in [(0, 64), (1, 64), (2, 21)] {
            from_pages.share_page(index, again.page(index).unwrap(), tokens);
        }
        assert_eq!(from_pages.len(), 149);
        let last = model.forward(&mut workspace, &mut from_pages, &tokens[149..]).unwrap();
        assert_eq!(bits(last), logits);
        assert_eq!(whole.page(2).unwrap().holders(), 4, "a token that was there is not written");
        model.forward(&mut workspace, &mut from_pages, &[7]).unwrap();
        assert_eq!(whole.page(2).unwrap().holders(), 3, "another one is, into a copy");
        assert_eq!(whole.prefix(999).len(), 150);
    }
}

#[test]
fn memory_is_counted_in_pages() {
    let model = model(SPLIT);
    for precision in [CachePrecision::F32, CachePrecision::F16] {
        let bytes = |tokens| KvCache::bytes_for(model.spec(), precision, tokens);
        assert_eq!((bytes(0), bytes(1)), (0, bytes(KvCache::PAGE)));
        assert_eq!(bytes(KvCache::PAGE + 1), 2 * bytes(1));
    }
}
