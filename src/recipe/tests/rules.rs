//! What a recipe means: a full example, defaults and overrides.

use std::collections::BTreeMap;

use super::*;
use crate::data::LongDocuments;
use crate::model::WidthRatio;

#[test]
fn a_full_recipe_means_what_it_says() {
    let folder = RecipeFolder::new(EXAMPLE);
    let Ok(Plan::Single(recipe)) = folder.load(&[]) else { panic!() };
    assert_eq!((recipe.name.as_str(), recipe.stage, recipe.seed), ("r", StageKind::Pretrain, 1));
    assert_eq!(recipe.path, folder.path("recipes/r.toml"));
    let ModelSource::New { spec } = &recipe.model else { panic!() };
    assert_eq!(spec.vocab_size(), None);
    assert_eq!(spec.complete(300).unwrap().vocab_size, 300);
    assert_eq!(recipe.tokenizer, TokenizerSource::Path(folder.path("recipes/tokenizer.json")));
    assert_eq!((recipe.data.seq_len, recipe.data.long_rows), (512, LongDocuments::Truncate));
    assert_eq!((recipe.train.batch, recipe.train.micro_batch), (32, 8));
    assert_eq!(recipe.train.length, Length::Steps(1000));
    assert_eq!(recipe.optimizer.warmup_steps, Some(375));
    assert_eq!((recipe.eval.every, recipe.checkpoint.every), (Some(200), Some(200)));
    assert_eq!(recipe.sample.prompts, ["Once upon a time"]);
    assert_eq!(recipe.export.formats, [ExportFormat::HfPacked, ExportFormat::GgufI2S]);
}

#[test]
fn a_path_on_the_command_line_counts_from_the_working_directory_if_it_is_there() {
    let folder = RecipeFolder::new(SHORT);
    folder.write("recipes/only-there/a.txt", "x");
    let here = std::env::current_dir().unwrap();
    let tokenizer = |word: &str| match folder.load(&[word]) {
        Ok(Plan::Single(recipe)) => recipe.tokenizer,
        other => panic!("{other:?}"),
    };
    let [ours, theirs] = [here.join("Cargo.toml"), folder.path("recipes/nowhere.json")];
    assert_eq!(tokenizer("tokenizer.path=Cargo.toml"), TokenizerSource::Path(ours));
    assert_eq!(tokenizer("tokenizer.path=nowhere.json"), TokenizerSource::Path(theirs));
    let data = |word: &str| match folder.load(&[word, "model.config=configs/tiny.toml"]) {
        Ok(Plan::Single(recipe)) => recipe.data.source,
        other => panic!("{other:?}"),
    };
    let set = |base: &Path, pattern: &str| DataSource::Files {
        sets: [(TRAIN.to_owned(), vec![PathPattern::new(base, pattern).unwrap()].into())].into(),
        validation: FileSets::new(),
    };
    let [ours, theirs] = ["recipes/*.toml", "only-there/*.txt"];
    assert_eq!(data("data.train=[\"recipes/*.toml\"]"), set(&here, ours));
    assert_eq!(data("data.train=[\"only-there/*.txt\"]"), set(&folder.path("recipes"), theirs));
}

#[test]
fn the_width_of_a_model_matters_where_that_is_asked_for() {
    let ratio = |words: &[&str]| recipe(SHORT, words).parametrisation.ratio(64);
    assert_eq!(ratio(&[]), WidthRatio::default());
    assert_eq!(ratio(&["model.parametrisation=mup"]), WidthRatio::new(256, 64));
    let words = ["model.parametrisation=mup", "model.base_width=128"];
    assert_eq!(ratio(&words), WidthRatio::new(128, 64));
    assert_eq!(recipe(SHORT, &words).settings()["model.base_width"], "128");
    let alone = problem(SHORT, &["model.base_width=128"]);
    assert!(alone.contains("expected \"mup\" beside it, got \"standard\""), "{alone}");
    assert!(
        problem(SHORT, &["model.parametrisation=muP"]).contains("expected \"standard\" or \"mup\"")
    );
}

#[test]
fn phases_mix_named_sets() {
    let recipe = recipe(EXAMPLE, &[]);
    let [main, cooldown] = recipe.phases.as_slice() else { panic!() };
    assert_eq!((main.name.as_str(), main.share), ("main", 0.5));
    assert_eq!(main.weight_decay, Rate::Constant { value: 0.1 });
    let peak = 1e-3;
    let rate = Rate::Curve { shape: CurveShape::Linear, peak, end: 0.0, span: Span::Run };
    assert_eq!(cooldown.learning_rate, rate);
    let mix = BTreeMap::from([("general".to_owned(), 0.3), ("hq".to_owned(), 0.7)]);
    assert_eq!(cooldown.data, mix);
    let schedule = Schedule::new(&recipe, 1000).unwrap();
    assert_eq!((schedule.warmup(), schedule.phase_of(501)), (375, 1));
}

#[test]
fn a_set_that_is_a_table_says_what_differs_from_data() {
    let words = [
        "data.sets={ web = { files = \"w/*.txt\", weight = 3, min_chars = 9, keep_regex = \"a+\" }, \
         books = { files = [\"b.csv\"], weight = 1, max_epochs = 4, columns = { text = \"body\" } } }",
        "data.min_chars=5",
        "data.language=en",
        "data.where={ lang = [\"en\", \"de\"], \"meta.ok\" = \"true\" }",
    ];
    let text = SHORT.replace("train = [\"a.txt\"]\n", "");
    let recipe = recipe(&text, &words);
    assert_eq!(recipe.phases[0].data, BTreeMap::from([("books".into(), 1.0), ("web".into(), 3.0)]));
    assert_eq!(recipe.data.max_epochs(), BTreeMap::from([("books".to_owned(), 4)]));
    let DataSource::Files { sets, .. } = &recipe.data.source else { panic!() };
    let [books, web] = ["books", "web"].map(|set| sets[set].reading.as_ref().unwrap());
    assert_eq!((books.selection.min_chars, web.selection.min_chars), (5, 9));
    assert_eq!(web.selection.keep_regex.as_ref().unwrap().as_str(), "a+");
    assert_eq!((books.files.columns["text"].as_str(), web.files.columns.len()), ("body", 0));
    for rules in [books, web] {
        assert_eq!(rules.selection.languages[0].code(), "en");
        assert_eq!(rules.selection.fields["lang"], ["en", "de"]);
    }
}

#[test]
fn mistakes_in_sets_are_named_by_their_key() {
    for (word, message) in [
        ("data.sets={ a = { weight = 1 } }", "[data.sets.a.files]: missing"),
        ("data.sets={ a = { files = \"x\", wieght = 1 } }", "did you mean `weight`?"),
        (
            "data.sets={ a = { files = \"x\", weight = 1 }, b = \"y\" }",
            "[data.sets]: a weight for some",
        ),
        (
            "data.sets={ a = { files = \"x\", max_epochs = 0 } }",
            "[data.sets.a.max_epochs]: out of range",
        ),
        ("data.keep_regex=(", "[data.keep_regex]: bad pattern"),
        ("data.language=klingon", "[data.language]: unknown language"),
        ("data.where={ a = 3 }", "[data.where.a]: wrong type"),
        (
            "data.validation={ v = { files = \"x\", weight = 1 } }",
            "[data.validation.v.weight]: unknown key",
        ),
    ] {
        let problems = RecipeFolder::new(SHORT).problems(&[word]);
        assert!(problems.iter().any(|problem| problem.contains(message)), "{word}: {problems:?}");
    }
}

#[test]
fn what_a_short_recipe_leaves_out_has_its_default() {
    let recipe = recipe(SHORT, &[]);
    assert_eq!((recipe.seed, recipe.device.as_str()), (1, "flex"));
    assert_eq!(recipe.train.micro_batch, 8);
    assert_eq!(recipe.train.precision, Precision::F32);
    assert_eq!((recipe.train.recompute, recipe.train.shard_optimizer), (false, false));
    assert_eq!(recipe.train.max_minutes, None);
    assert_eq!(recipe.data.long_rows, LongDocuments::Split);
    let optimizer = &recipe.optimizer;
    assert_eq!((optimizer.beta1, optimizer.beta2, optimizer.eps), (0.9, 0.95, 1e-8));
    assert_eq!((optimizer.grad_clip, optimizer.warmup_steps), (1.0, Some(2)));
    assert_eq!((recipe.eval.every, recipe.checkpoint.every), (None, None));
    assert_eq!((recipe.checkpoint.keep, recipe.dpo.beta), (3, 0.1));
    assert_eq!((recipe.sample.every, recipe.sample.max_tokens), (None, 48));
    assert_eq!((recipe.sample.temperature, recipe.export.formats.len()), (0.0, 0));
}

#[test]
fn each_stage_has_its_own_defaults() {
    let linear = |peak| Rate::Curve { shape: CurveShape::Linear, peak, end: 0.0, span: Span::Run };
    for (stage, peak, decay, reduction, long_rows) in [
        ("pretrain", 1.5e-3, 0.1, LossReduction::Mean, LongDocuments::Split),
        ("sft", 1e-4, 0.0, LossReduction::Sum, LongDocuments::Truncate),
        ("dpo", 2e-7, 0.0, LossReduction::Mean, LongDocuments::Truncate),
    ] {
        let recipe = recipe(SHORT, &[&format!("stage={stage}")]);
        let [phase] = recipe.phases.as_slice() else { panic!() };
        assert_eq!((phase.name.as_str(), phase.share), ("main", 1.0));
        assert_eq!(phase.learning_rate, linear(peak), "{stage}");
        assert_eq!(phase.weight_decay, Rate::Constant { value: decay }, "{stage}");
        assert_eq!(phase.data, BTreeMap::from([("train".to_owned(), 1.0)]));
        assert_eq!((recipe.loss.reduction, recipe.data.long_rows), (reduction, long_rows));
    }
}

#[test]
fn a_run_of_tokens_or_epochs_learns_its_warm_up_later() {
    let tokens = recipe(SHORT, &["train.tokens=1_000_000"]);
    assert_eq!(tokens.train.length, Length::Tokens(1_000_000));
    assert_eq!(tokens.optimizer.warmup_steps, None);
    assert_eq!(Schedule::new(&tokens, 10_000).unwrap().warmup(), 375);
    let epochs = recipe(SHORT, &["train.epochs=0.5", "optimizer.warmup_steps=9"]);
    assert_eq!(epochs.train.length, Length::Epochs(0.5));
    assert!(matches!(
        Schedule::new(&epochs, 9),
        Err(RecipeError::WarmupTooLong { warmup: 9, steps: 9, .. })
    ));
}

#[test]
fn any_key_of_the_config_can_be_set_in_the_recipe() {
    let text = SHORT.replace("[tokenizer]", "vocab_size = 4096\nquantise = false\n[tokenizer]");
    let recipe = recipe(&text, &["model.num_hidden_layers=7"]);
    let ModelSource::New { spec } = recipe.model else { panic!() };
    assert_eq!(spec.vocab_size(), Some(4096));
    let spec = spec.complete(5).unwrap();
    assert_eq!((spec.vocab_size, spec.num_hidden_layers, spec.quantise), (4096, 7, false));
    assert_eq!((spec.hidden_size, spec.head_dim), (64, 16));
}

#[test]
fn a_model_may_have_another_quantiser_that_fits_its_widths() {
    let keys = "quantiser = { group = 64 }\nembedding = \"ternary\"\nactivations = \"none\"\n";
    let text = SHORT.replace("[tokenizer]", &format!("{keys}[tokenizer]"));
    let resolved = recipe(&text, &[]).resolved_toml();
    let ModelSource::New { spec } = recipe(&text, &[]).model else { panic!() };
    let spec = spec.complete(512).unwrap();
    assert_eq!(spec.quantiser.group, bitnet_format::group::Group::Columns(64));
    assert!(resolved.contains("embedding = \"ternary\""), "{resolved}");
    for (from, to, expected) in [
        (
            "64",
            "128",
            "4:13 [model.quantiser]: not a model; expected sizes that fit together, \
                       got: quantiser.group (128) must divide hidden_size (64)",
        ),
        (
            "64",
            "96",
            "4:13 [model.quantiser]: not a quantiser; expected a table such as \
                      { weights = \"absmean\", group = 64 }, got: quantiser.group is 96",
        ),
        ("ternary", "half", "5:13 [model.embedding]: unknown choice"),
        ("none", "int4", "6:15 [model.activations]: unknown choice"),
        ("batch = 8", "batch = 8\nprecision = \"int8\"", "[train.precision]: expected \"f32\" or"),
    ] {
        let message = problem(&text.replace(from, to), &[]);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_token_id_beyond_the_tokenizers_vocabulary_is_found_when_that_is_known() {
    let recipe = recipe(SHORT, &["model.eos_token_id=[500, 501]"]);
    let ModelSource::New { spec } = recipe.model else { panic!() };
    assert_eq!(spec.complete(502).unwrap().eos_token_id, [500, 501]);
    assert!(spec.complete(501).unwrap_err().contains("501 lies outside vocab_size 501"));
}

fn stored(path: String) -> InitModel {
    InitModel { path, conversion: Conversion::default() }
}

#[test]
fn weights_to_start_from_bring_shape_and_tokenizer() {
    let text = SHORT.replace("[tokenizer]\ntrain = { vocab_size = 512 }\n", "");
    let folder = RecipeFolder::new(&text);
    let Ok(Plan::Single(recipe)) = folder.load(&["model.init=runs/a/final"]) else { panic!() };
    let weights = folder.path("recipes/runs/a/final").display().to_string();
    assert_eq!(recipe.model, ModelSource::Init(stored(weights)));
    assert_eq!(recipe.tokenizer, TokenizerSource::FromInit);
    let hub = "hf:microsoft/bitnet-b1.58-2B-4T-bf16@main";
    let Ok(Plan::Single(recipe)) = folder.load(&[&format!("model.init={hub}")]) else { panic!() };
    assert_eq!(recipe.model, ModelSource::Init(stored(hub.into())));
}

#[test]
fn a_validation_list_is_one_set_and_a_table_one_for_each_name() {
    let names = |word: &str| match recipe(SHORT, &[word]).data.source {
        DataSource::Files { validation, .. } => validation.into_keys().collect::<Vec<_>>(),
        DataSource::Generate(_) => panic!(),
    };
    assert_eq!(names("data.validation=[\"v.txt\", \"w.txt\"]"), ["validation"]);
    assert_eq!(names("data.validation={ b = [\"v.txt\"], a = [\"w.txt\"] }"), ["a", "b"]);
}

#[test]
fn generated_stories_replace_files() {
    let recipe = recipe(SHORT, &["data.generate={}", "eval.every=5"]);
    let generate = Generate { stories: 20_000, held_out: 200 };
    assert_eq!(recipe.data.source, DataSource::Generate(generate));
    assert_eq!(recipe.phases[0].data, BTreeMap::from([("general".to_owned(), 1.0)]));
    let word = "phase=[{ name = \"p\", data = { general = 1, hq = 2 } }]";
    let mixed = super::recipe(SHORT, &["data.generate.stories=7", word]);
    assert_eq!(mixed.data.source, DataSource::Generate(Generate { stories: 7, held_out: 200 }));
    assert_eq!(mixed.phases[0].data["hq"], 2.0);
}

#[test]
fn overrides_reach_every_key_and_replace_what_excludes_them() {
    let words = [
        "train.batch = 6",
        "train.epochs=2",
        "optimizer.eps=1e-6",
        "phase.cooldown.learning_rate.peak=5e-4",
        "phase.0.weight_decay.value=0.2",
        "tokenizer.train.vocab_size=300",
        "train.micro_batch=3",
        "optimizer.warmup_steps=0",
        "sample.every=0",
        "name=longer",
    ];
    let recipe = recipe(EXAMPLE, &words);
    assert_eq!((recipe.train.batch, recipe.train.length), (6, Length::Epochs(2.0)));
    assert_eq!(recipe.optimizer.eps, 1e-6);
    assert_eq!(recipe.phases[1].learning_rate.peak(), 5e-4);
    assert_eq!(recipe.phases[0].weight_decay, Rate::Constant { value: 0.2 });
    assert_eq!(recipe.tokenizer, TokenizerSource::Train { vocab_size: 300 });
    assert_eq!((recipe.sample.every, recipe.name.as_str()), (None, "longer"));
}

#[test]
fn the_one_phase_of_a_short_recipe_can_be_overridden() {
    let words = ["phase.main.weight_decay={ shape = \"constant\", value = 0.3 }"];
    let recipe = recipe(SHORT, &words);
    assert_eq!(recipe.phases[0].weight_decay, Rate::Constant { value: 0.3 });
    assert_eq!(recipe.phases[0].learning_rate.peak(), 1.5e-3);
}

#[test]
fn a_pipeline_is_a_list_of_recipes() {
    let folder = RecipeFolder::new("pipeline = [\"a.toml\", \"b.toml\"]");
    folder.write("recipes/a.toml", SHORT);
    assert_eq!(
        folder.problems(&[]),
        ["recipes/r.toml:1:23 [pipeline]: no such recipe; expected a TOML file, got \"b.toml\""]
    );
    folder.write("recipes/b.toml", SHORT);
    let paths = ["recipes/a.toml", "recipes/b.toml"].map(|name| folder.path(name));
    assert_eq!(folder.load(&["train.steps=5"]).unwrap(), Plan::Pipeline(paths.to_vec()));
}
