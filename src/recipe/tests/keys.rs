//! The table of keys against what the readers accept, and the page that is generated from it.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::recipe::keys::{KEYS, KeyDefault, RecipeKey};

/// Where a rate's keys stand.
const RATE: &str = "phase.main.learning_rate";

fn is_of_a_rate(key: &RecipeKey) -> bool {
    key.name.starts_with("phase.*.")
}

/// The names the table has directly below `section`.
fn declared(section: &str) -> BTreeSet<&'static str> {
    let prefix = if section.is_empty() { String::new() } else { format!("{section}.") };
    let below = KEYS.iter().filter(|key| !is_of_a_rate(key) || section == "phase.*");
    below
        .filter_map(|key| key.name.strip_prefix(&*prefix))
        .map(|rest| rest.split('.').next().unwrap_or(rest))
        .collect()
}

/// The names a reader knows, as its message about an unknown key lists them.
fn known(problem: &str) -> BTreeSet<String> {
    let list = problem.split("expected one of ").nth(1).unwrap_or_default();
    let list = list.split(", got `zzz`").next().unwrap_or_default();
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn every_section_knows_exactly_the_keys_of_the_table() {
    for (section, word) in [
        ("model", "model.zzz"),
        ("tokenizer", "tokenizer.zzz"),
        ("tokenizer.train", "tokenizer.train.zzz"),
        ("data", "data.zzz"),
        ("data.generate", "data.generate.zzz"),
        ("data.tokens", "data.tokens.zzz"),
        ("data.text_markers", "data.text_markers.zzz"),
        ("train", "train.zzz"),
        ("train.batch_warmup", "train.batch_warmup.zzz"),
        ("adapter", "adapter.zzz"),
        ("phase", "phase.main.zzz"),
        ("phase.*", "phase.main.learning_rate.zzz"),
        ("optimizer", "optimizer.zzz"),
        ("loss", "loss.zzz"),
        ("distill", "distill.zzz"),
        ("dpo", "dpo.zzz"),
        ("eval", "eval.zzz"),
        ("checkpoint", "checkpoint.zzz"),
        ("sample", "sample.zzz"),
        ("export", "export.zzz"),
        ("guard", "guard.zzz"),
        ("telemetry", "telemetry.zzz"),
        ("report", "report.zzz"),
    ] {
        // `constant` and the curves know different keys of a rate.
        let rates = ["{ shape = \"constant\", value = 1 }", "{ shape = \"linear\", peak = 1 }"];
        let mut found = BTreeSet::new();
        for rate in rates {
            let words = [format!("{RATE}={rate}"), format!("{word}=1")];
            let words = words.each_ref().map(String::as_str);
            let problems = RecipeFolder::new(SHORT).problems(&words);
            let unknown = problems.iter().find(|problem| problem.contains("got `zzz`"));
            found.extend(known(unknown.unwrap_or_else(|| panic!("{word}: {problems:?}"))));
        }
        let declared = declared(section).into_iter().map(str::to_owned).collect();
        assert_eq!(found, declared, "[{section}]");
    }
}

#[test]
fn the_root_knows_exactly_the_sections_of_the_table() {
    let mut expected = declared("");
    // A file with a pipeline holds nothing else.
    expected.remove("pipeline");
    let found = known(&problem(SHORT, &["zzz=1"]));
    assert_eq!(found, expected.into_iter().map(str::to_owned).collect());
}

#[test]
fn a_short_recipe_has_the_defaults_of_the_table() {
    let settings = recipe(SHORT, &[]).settings();
    for key in KEYS.iter().filter(|key| !is_of_a_rate(key)) {
        let KeyDefault::Value(default) = key.default else { continue };
        let Some(found) = settings.get(key.name) else {
            let optional = [
                "data.generate.",
                "adapter.",
                "distill.",
                "ternary_warmup.",
                "model.insert_sub_norms",
                "model.quantiser",
                "model.embedding",
                "model.activations",
                "model.base_width",
            ];
            let optional = optional.iter().any(|section| key.name.starts_with(section))
                || key.takes.contains("with `kind = \"muon\"`");
            assert!(optional, "{} is not resolved", key.name);
            continue;
        };
        // As numbers: `0` and `0.0` are the same default.
        let same = match (found.parse::<f64>(), default.parse::<f64>()) {
            (Ok(found), Ok(default)) => found == default,
            _ => found == default,
        };
        assert!(same, "{}: {found}, and the table says {default}", key.name);
    }
}

#[test]
fn muon_has_the_defaults_of_the_table_and_no_setting_without_it() {
    let settings = recipe(SHORT, &["optimizer.kind=muon"]).settings();
    let of_muon = KEYS.iter().filter(|key| key.takes.contains("with `kind = \"muon\"`"));
    let mut count = 0;
    for key in of_muon {
        let KeyDefault::Value(default) = key.default else { unreachable!("they have defaults") };
        let (found, default): (f64, f64) =
            (settings[key.name].parse().unwrap(), default.parse().unwrap());
        assert!(found == default, "{}: {found}, and the table says {default}", key.name);
        let word = format!("{}={default}", key.name);
        assert!(problem(SHORT, &[&word]).contains("expected kind = \"muon\""), "{word}");
        count += 1;
    }
    assert_eq!(count, 4);
    for (words, field) in [
        (["train.shard_optimizer=true", "optimizer.moments=8bit"], "[train.shard_optimizer]"),
        (["device=ndarray", "train.batch=8"], "[device]"),
        (["optimizer.momentum=1", "train.batch=8"], "[optimizer.momentum]"),
    ] {
        let words = [&["optimizer.kind=muon"], &words[..]].concat();
        assert!(problem(SHORT, &words).contains(field), "{field}");
    }
}

#[test]
fn generated_stories_and_rates_have_the_defaults_of_the_table() {
    let rate = format!("{RATE}={{ shape = \"linear\", peak = 1 }}");
    let recipe = recipe(SHORT, &["data.generate={}", &rate]);
    let DataSource::Generate(generate) = recipe.data.source else { panic!() };
    assert_eq!((generate.stories, generate.held_out), (20_000, 200));
    let shape = CurveShape::Linear;
    let expected = Rate::Curve { shape, peak: 1.0, end: 0.0, span: Span::Run };
    assert_eq!(recipe.phases[0].learning_rate, expected);
}

#[test]
fn the_reference_page_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/recipe-reference.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs_err::write(&path, reference()).unwrap();
    }
    let page = fs_err::read_to_string(&path).unwrap_or_default();
    assert!(page == reference(), "recipe-reference.md is out of date: set UPDATE_DOCS=1 and test");
}
