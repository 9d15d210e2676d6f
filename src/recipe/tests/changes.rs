//! What may change between a run and its continuation.

use super::*;

fn changes(words: &[&str]) -> Vec<Change> {
    // One folder, so that paths do not differ.
    let folder = RecipeFolder::new(EXAMPLE);
    let (Ok(Plan::Single(old)), Ok(Plan::Single(new))) = (folder.load(&[]), folder.load(words))
    else {
        panic!("{words:?}: {:#?}", folder.problems(words))
    };
    old.diff(&new)
}

#[test]
fn every_setting_has_its_class() {
    for (word, class) in [
        ("name=other", ChangeClass::Safe),
        ("eval.every=7", ChangeClass::Safe),
        ("sample.prompts=[\"x\"]", ChangeClass::Safe),
        ("checkpoint.keep=9", ChangeClass::Safe),
        ("export.formats=[]", ChangeClass::Safe),
        ("train.max_minutes=5", ChangeClass::Safe),
        ("train.micro_batch=4", ChangeClass::Safe),
        ("train.recompute=true", ChangeClass::Safe),
        ("data.validation=other.txt", ChangeClass::Safe),
        ("train.batch=64", ChangeClass::NeedsAllow),
        ("train.steps=2000", ChangeClass::NeedsAllow),
        ("device=wgpu", ChangeClass::NeedsAllow),
        ("optimizer.beta2=0.99", ChangeClass::NeedsAllow),
        ("optimizer.warmup_steps=9", ChangeClass::NeedsAllow),
        ("loss.reduction=sum", ChangeClass::NeedsAllow),
        ("data.long_rows=split", ChangeClass::NeedsAllow),
        ("data.sets.hq=[\"b.txt\"]", ChangeClass::NeedsAllow),
        ("phase.cooldown.learning_rate.peak=1e-4", ChangeClass::NeedsAllow),
        ("phase.cooldown.weight_decay.value=1e-4", ChangeClass::NeedsAllow),
        ("phase.cooldown.data.hq=1", ChangeClass::NeedsAllow),
        ("seed=2", ChangeClass::Fatal),
        ("model.num_hidden_layers=3", ChangeClass::Fatal),
        ("tokenizer.path=other.json", ChangeClass::Fatal),
        ("train.precision=bf16", ChangeClass::Fatal),
        ("train.gradient_rounding=nearest", ChangeClass::Fatal),
        ("train.bf16_sums=tiles", ChangeClass::NeedsAllow),
        ("data.seq_len=256", ChangeClass::Fatal),
        ("stage=sft", ChangeClass::Fatal),
    ] {
        let key = word.split_once('=').unwrap().0;
        let found = changes(&[word]);
        let change = found.iter().find(|change| change.key.starts_with(key));
        assert_eq!(change.map(|change| change.class), Some(class), "{word}: {found:#?}");
    }
}

#[test]
fn a_change_shows_both_values() {
    let found = changes(&["train.batch=64", "train.micro_batch=8"]);
    let [batch] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!(
        (batch.key.as_str(), batch.old.as_str(), batch.new.as_str()),
        ("train.batch", "32", "64")
    );
    let tokens = changes(&["train.tokens=9"]);
    let steps = tokens.iter().find(|change| change.key == "train.steps").unwrap();
    assert_eq!((steps.old.as_str(), steps.new.as_str()), ("1000", "unset"));
}

#[test]
fn an_allowed_key_includes_all_below_it() {
    let [change] = changes(&["phase.main.learning_rate.peak=1e-4"]).try_into().unwrap();
    assert_eq!(change.key, "phase.main.learning_rate.peak");
    let allowed = |keys: &[&str]| {
        change.is_allowed(&keys.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert!(allowed(&["train", "phase.main"]) && allowed(&[&change.key]));
    assert!(!allowed(&["phase.mai"]) && !allowed(&[]));
    let [seed] = changes(&["seed=2"]).try_into().unwrap();
    assert!(!seed.is_allowed(&["seed".into()]));
}
