//! A recipe written out and read again.

use super::*;

/// Recipes of every kind, as words over the short one or the example.
const KINDS: &[(&str, &[&str])] = &[
    (EXAMPLE, &[]),
    (SHORT, &[]),
    (SHORT, &["stage=sft", "train.epochs=1.5", "seed=9223372036854775807"]),
    (SHORT, &["stage=dpo", "model.init=hf:a/b@c", "train.max_minutes=0.25"]),
    (SHORT, &["data.generate.stories=9", "eval.every=3", "train.tokens=12345"]),
    (SHORT, &["model.vocab_size=600", "model.eos_token_id=[1, 2]", "model.head_dim=32"]),
    (SHORT, &["model.hidden_act=silu", "model.rms_norm_eps=1.00000000000001e-5"]),
    (SHORT, &["data.validation={ \"a b\" = [\"v/*.txt\"] }", "data.cache=/tmp/cache"]),
    (
        SHORT,
        &[
            "data.sets={ w = { files = \"w.txt\", max_epochs = 4, max_chars = 9, dedup = \"exact\" } }",
            "data.language=[\"de\"]",
            "data.where={ a = \"b\" }",
            "data.drop_regex=x|\"y\"",
            "data.strict=true",
            "data.text_markers={ response = \"<r>\", instruction = \"<u>\" }",
            "data.columns={ text = \"t\" }",
        ],
    ),
    (SHORT, &["name=a \"quoted\" name", "sample.prompts=[\"line\\nbreak\", \"\"]"]),
    (SHORT, &["tokenizer.chat_template=b158-apart", "guard.spike_sigma=6", "checkpoint.best=true"]),
    (SHORT, &["model.init=/m", "tokenizer.chat_template=b158", "train.freeze=[\"*.norm.*\"]"]),
    (
        SHORT,
        &[
            "distill.teacher=hf:a/b",
            "distill.relations=60",
            "distill.teacher_relation_layer=-2",
            "distill.relation_form=scaled",
        ],
    ),
    (SHORT, &["distill.teacher=/t", "distill.top_k=64", "distill.temperature=5"]),
    (SHORT, &["telemetry.every=0", "guard.max_skipped=7", "guard.spike_window=16"]),
    (EXAMPLE, &["phase.main.learning_rate={ shape = \"cosine\", peak = 0.1, span = \"phase\" }"]),
    (
        EXAMPLE,
        &[
            "export.formats=[\"gguf-tq2_0\"]",
            "train.precision=int8",
            "train.bf16_sums=tiles",
            "train.gradient_rounding=nearest",
            "train.recompute=true",
        ],
    ),
];

#[test]
fn a_resolved_recipe_read_from_anywhere_is_the_same_recipe() {
    for (text, words) in KINDS {
        let recipe = recipe(text, words);
        let elsewhere = RecipeFolder::new(&recipe.resolved_toml());
        let Ok(Plan::Single(again)) = elsewhere.load(&[]) else {
            panic!("{words:?}: {:#?}", elsewhere.problems(&[]))
        };
        assert_eq!(Recipe { path: recipe.path.clone(), ..again.clone() }, recipe, "{words:?}");
        assert_eq!(again.resolved_toml(), recipe.resolved_toml());
        assert_eq!(recipe.diff(&again), []);
    }
}

#[test]
fn the_text_of_a_resolved_recipe_is_frozen() {
    let recipe = recipe(SHORT, &["data.train=/a/b.txt", "model.vocab_size=512"]);
    assert_eq!(recipe.resolved_toml(), include_str!("resolved.toml"));
}
