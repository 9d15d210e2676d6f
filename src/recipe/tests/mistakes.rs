//! Mistakes in recipes and their messages.

use proptest::prelude::*;

use super::*;

#[test]
fn all_mistakes_are_reported_at_once_with_their_lines() {
    let text = SHORT
        .replace("seq_len = 16", "seq_length = 16")
        .replace("batch = 8", "batch = 8\nmicro_batch = 3\nprecision = \"f64\"")
        .replace("stage = \"pretrain\"", "stage = \"pretrian\"");
    let folder = RecipeFolder::new(&text);
    folder.write("configs/tiny.toml", "hidden_size = \"big\"\nhiden_act = 1\n");
    assert_eq!(
        folder.problems(&["train.steps=0"]),
        [
            "recipes/../configs/tiny.toml:1:15 [hidden_size]: wrong type; expected a whole number \
             of at least 1, got \"big\"",
            "recipes/../configs/tiny.toml:2:1 [hiden_act]: unknown key; expected one of activations, \
             attention_bias, bos_token_id, embedding, embedding_initializer_range, eos_token_id, head_dim, hidden_act, hidden_size, initializer_range, \
             intermediate_size, max_position_embeddings, num_attention_heads, num_hidden_layers, \
             num_key_value_heads, qk_norm, quantise, quantiser, rms_norm_eps, rope_scaling, rope_theta, sub_norms, \
             tie_word_embeddings, vocab_size, got `hiden_act`\nhint: did you mean `hidden_act`?",
            "recipes/r.toml:1:9 [stage]: unknown choice; expected \"pretrain\" or \"sft\" or \
             \"dpo\", got \"pretrian\"",
            "recipes/r.toml:6:2 [data.seq_len]: missing; expected tokens a row, got nothing",
            "recipes/r.toml:8:1 [data.seq_length]: unknown key; expected one of bad_rows, cache, columns, dedup, drop_regex, field, generate, \
             keep_regex, language, long_rows, max_bad_share, max_chars, min_chars, on_unknown_role, seq_len, sets, \
             strict, text_markers, text_split, tokens, train, validation, validation_share, where, got `seq_length`\n\
             hint: did you mean `seq_len`?",
            "recipes/r.toml:12:15 [train.micro_batch]: does not divide the batch; expected a \
             divisor of 8, got 3",
            "recipes/r.toml:13:13 [train.precision]: unknown choice; expected \"f32\" or \
             \"bf16\" or \"int8\", got \"f64\"",
            "command line [train.steps]: out of range; expected a whole number of at least 1, \
             got 0",
        ]
    );
    assert_eq!(folder.load(&["train.steps=0"]).unwrap_err().count(), 8);
}

#[test]
fn an_empty_recipe_reports_all_that_is_required() {
    let problems = RecipeFolder::new("").problems(&[]);
    let keys = ["data.seq_len", "data.train", "model.config", "stage", "tokenizer.path"];
    assert_eq!(problems.len(), keys.len() + 2, "{problems:#?}");
    for key in keys.into_iter().chain(["train.batch", "train.steps"]) {
        assert!(
            problems.iter().any(|line| line.contains(&format!("1:1 [{key}]: missing"))),
            "{key}"
        );
    }
}

#[test]
fn a_missing_recipe_is_named() {
    let error = load(Path::new("/no/such/recipe.toml"), &[]).unwrap_err();
    assert!(error.to_string().starts_with("/no/such/recipe.toml: cannot read"), "{error}");
    assert_eq!(error.count(), 1);
}

#[test]
fn a_missing_config_is_named_where_the_recipe_names_it() {
    let found = problem(&SHORT.replace("tiny.toml", "tinny.toml"), &[]);
    assert!(found.starts_with("3:10 [model.config]: cannot read recipes/../configs/tinny.toml"));
    assert!(found.contains("got: No such file"), "{found}");
}

#[test]
fn toml_that_is_none_is_shown_where_it_breaks() {
    let found = problem("stage = \"pretrain\"\nseed = = 1\n", &[]);
    assert!(found.starts_with("2:8: not valid TOML: "), "{found}");
    let twice = problem(&format!("{SHORT}batch = 9\n"), &[]);
    assert!(twice.starts_with("12:1: not valid TOML: duplicate key `"), "{twice}");
}

#[test]
fn shapes_that_contradict_themselves_are_blamed_on_the_key() {
    let found = problem(SHORT, &["model.num_key_value_heads=3"]);
    assert!(found.starts_with("command line [model.num_key_value_heads]: not a model"), "{found}");
    assert!(found.contains("num_key_value_heads (3) must divide num_attention_heads (4)"));
    let folder = RecipeFolder::new(SHORT);
    folder.write("configs/tiny.toml", &format!("{TINY}head_dim = 5\n"));
    assert!(folder.problems(&[])[0].starts_with("recipes/../configs/tiny.toml:6:12 [head_dim]"));
}

/// A word of the command line that breaks the short recipe, and what the answer must hold.
#[rustfmt::skip]
const BROKEN: &[(&str, &str)] = &[
    ("train.micro_batch=16", "expected a divisor of 8, got 16"),
    ("optimizer.warmup_steps=40", "expected fewer than its 40 steps, got 40"),
    ("train.batch_warmup={ start = 1, steps = 41 }", "longer than the run; expected at most 40, got 41"),
    ("optimizer.beta1=1.0", "expected a number from 0 to below 1, got 1"),
    ("optimizer.beta2=-0.1", "[optimizer.beta2]: out of range"),
    ("optimizer.eps=0", "[optimizer.eps]: out of range"),
    ("optimizer.grad_clip=inf", "expected a number of at least 0, got inf"),
    ("data.seq_len=0", "expected a whole number of at least 1, got 0"),
    ("data.seq_len=5_000_000_000", "expected a whole number up to 4294967295"),
    ("data.long_rows=shorten", "[data.long_rows]: unknown choice"),
    ("data.train=[]", "expected at least one file or pattern, got an empty list"),
    ("data.train=b***", "bad pattern"),
    ("data.validation={}", "expected at least one named list of files"),
    ("train.batch=8.0", "[train.batch]: wrong type"),
    ("train.batch=99999999999999999999", "got 99999999999999999999"),
    ("train.recompute=1", "expected true or false, got 1"),
    ("train.max_minutes=-1", "[train.max_minutes]: out of range"),
    ("train.epochs=0", "[train.epochs]: out of range"),
    ("seed=-1", "expected a whole number of at least 0, got -1"),
    ("name=a/b", "expected one without slashes, got \"a/b\""),
    ("dpo.beta=0", "[dpo.beta]: out of range"),
    ("checkpoint.keep=0", "[checkpoint.keep]: out of range"),
    ("eval.every=5", "expected data.validation beside it"),
    ("sample.every=5", "[sample.prompts]: missing"),
    ("sample.temperature=nan", "[sample.temperature]: out of range"),
    ("export.formats=[\"gguf\"]", "\"gguf-i2_s\" or \"gguf-tq1_0\""),
    ("tokenizer.train.vocab_size=0", "[tokenizer.train.vocab_size]: out of range"),
    ("model.vocab_size=100", "expected at most its vocab_size 100, got 512"),
    ("model.rope_scaling={ factor = 2 }", "[model.rope_scaling]: not a scaling of positions"),
    ("model.init=hf:nobody", "expected \"hf:owner/name[@revision]\""),
    ("model.hidden_act=gelu", "expected \"relu2\" or \"silu\", got \"gelu\""),
    ("train.batch.x=1", "expected a table around `x`, got 8"),
    ("train", "expected dotted.key=value, such as train.batch=32, got \"train\""),
    ("train..batch=1", "expected dotted.key=value"),
    ("data.generate={ storeys = 1 }", "hint: did you mean `stories`?"),
    ("phase=[]", "expected [[phase]] tables, got an empty list"),
    ("phase={ name = \"a\" }", "[phase]: wrong type"),
    ("phase=[{ name = \"a\", share = 0.5 }]", "expected a sum of 1, got 0.5"),
    ("phase=[{ name = \"a\", share = 0 }]", "expected a number above 0 and at most 1, got 0"),
    ("phase=[{ name = \"a\", data = { b = 1 } }]", "expected train, got `b`"),
    ("phase=[{ name = \"a\", data = { train = -1 } }]", "[phase.data.train]: out of range"),
    ("phase=[{ name = \"a\", data = { train = 0 } }]", "expected a weight above 0"),
    ("phase=[{ share = 1 }]", "[phase.name]: missing"),
    ("phase=[{ name = \"a\", learning_rate = 1e-3 }]", "[phase.learning_rate]: wrong type"),
    ("phase=[{ name = \"a\", learning_rate = { shape = \"linear\" } }]", "[phase.learning_rate.peak]: missing"),
    ("phase=[{ name = \"a\", weight_decay = { shape = \"constant\", peak = 1, value = 1 } }]", "[phase.weight_decay.peak]: unknown key"),
    ("phase=[{ name = \"a\", weight_decay = { shape = \"cosine\", peak = 1, span = \"all\" } }]", "expected \"run\" or \"phase\""),
    ("phase.next.share=1", "[phase]: wrong type; expected [[phase]] tables"),
];

#[test]
fn every_rule_has_its_message() {
    for (word, expected) in BROKEN {
        let found = RecipeFolder::new(SHORT).problems(&[word]);
        assert!(found.iter().any(|line| line.contains(expected)), "{word}: {found:#?}");
        assert!(found.iter().all(|line| line.contains("; expected ")), "{word}: {found:#?}");
    }
}

#[test]
fn what_excludes_itself_in_a_file_is_refused() {
    let lengths = problem(&format!("{SHORT}tokens = 5\n"), &[]);
    assert!(lengths.starts_with("12:10 [train.tokens]: a second length"), "{lengths}");
    let tokenizers = problem(&SHORT.replace("train = {", "path = \"t.json\"\ntrain = {"), &[]);
    assert!(tokenizers.starts_with("6:9 [tokenizer.train]: `train` beside `path`"), "{tokenizers}");
    let models = problem(&SHORT.replace("[model]", "[model]\ninit = \"x\""), &[]);
    assert!(models.starts_with("4:10 [model.config]: a shape beside `model.init`"), "{models}");
    let data = problem(&SHORT.replace("[data]", "[data]\ngenerate = {}"), &[]);
    assert!(data.starts_with("8:9 [data.train]: files beside `generate`"), "{data}");
    let sets = problem(&SHORT.replace("[data]", "[data]\nsets.train = [\"b\"]"), &[]);
    assert!(sets.contains("a set called `train` beside `data.train`"), "{sets}");
    let pipeline = problem("pipeline = [\"r.toml\"]\nseed = 1", &[]);
    assert!(pipeline.contains("unknown key; expected one of pipeline"), "{pipeline}");
}

#[test]
fn named_sets_alone_need_phases_that_weigh_them() {
    let text = SHORT.replace("train = [\"a.txt\"]", "sets.a = [\"a.txt\"]");
    assert!(problem(&text, &[]).starts_with("1:1 [phase]: missing; expected [[phase]] tables"));
    let unweighed = problem(&text, &["phase=[{ name = \"a\" }]"]);
    assert!(unweighed.contains("[phase.data]: missing"), "{unweighed}");
}

#[test]
fn phases_need_their_own_names_and_shares() {
    let twins = "phase=[{ name = \"a\", share = 0.5 }, { name = \"a\", share = 0.5 }]";
    assert!(problem(SHORT, &[twins]).contains("expected one for each phase, got \"a\""));
    let shareless = "phase=[{ name = \"a\" }, { name = \"b\", share = 0.5 }]";
    assert!(problem(SHORT, &[shareless]).contains("[phase.share]: missing"));
    let thirds = [0.333_333_3, 0.333_333_3, 0.333_333_4]
        .map(|share| format!("{{ name = \"{share}{}\", share = {share} }}", "x"));
    let thirds = format!("phase=[{}]", thirds.join(", ").replacen("333x", "333y", 1));
    assert_eq!(recipe(SHORT, &[&thirds]).phases.len(), 3);
    let six_digits = thirds.replace("333333", "33333").replace("3334", "333");
    assert_eq!(recipe(SHORT, &[&six_digits]).phases.len(), 3, "{six_digits}");
}

#[test]
fn no_share_is_held_out_of_tokens() {
    let text = SHORT.replace("train = [\"a.txt\"]\n", "");
    let set = "{ files = \"w.bin\", weight = 1, tokens = { dtype = \"u16\" } }";
    let words = [&*format!("data.sets={{ a = {set} }}"), "data.validation_share=0.1"];
    let found = problem(&text, &words);
    assert!(found.contains("rows chosen by their text beside tokens"), "{found}");
    assert_eq!(recipe(&text, &words[..1]).phases.len(), 1);
}

#[test]
fn control_characters_of_a_recipe_do_not_reach_the_terminal() {
    let found = problem(&format!("\"\\u001b[31m\" = 1\n{SHORT}"), &[]);
    assert!(found.starts_with("1:1 [\\u{1b}[31m]: unknown key"), "{found}");
}

#[test]
fn a_preference_pair_cannot_be_split() {
    let found = problem(SHORT, &["stage=dpo", "data.long_rows=split"]);
    assert!(found.contains("expected \"truncate\" or \"drop\", got \"split\""), "{found}");
}

proptest! {
    #[test]
    fn no_cut_of_a_recipe_panics_its_reader(
        start in 0usize..1600,
        length in 0usize..60,
        with in ".{0,3}",
    ) {
        let (start, end) = (start.min(EXAMPLE.len()), (start + length).min(EXAMPLE.len()));
        let text = format!("{}{with}{}", &EXAMPLE[..start], &EXAMPLE[end..]);
        match RecipeFolder::new(&text).load(&[]) {
            Ok(_) => {}
            Err(error) => prop_assert!(!error.problems().is_empty()),
        }
    }
}
