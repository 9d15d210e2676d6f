//! What may change between a run and its continuation.

use super::*;

fn changes(words: &[&str]) -> Vec<Change> {
    // One desk, so that paths do not differ.
    let desk = Desk::new(EXAMPLE);
    let (Ok(Plan::Single(old)), Ok(Plan::Single(new))) = (desk.load(&[]), desk.load(words)) else {
        panic!("{words:?}: {:#?}", desk.problems(words))
    };
    old.diff(&new)
}

#[test]
fn every_setting_has_its_class() {
    for (word, class) in [
        ("name=other", Class::Safe),
        ("eval.every=7", Class::Safe),
        ("sample.prompts=[\"x\"]", Class::Safe),
        ("checkpoint.keep=9", Class::Safe),
        ("export.formats=[]", Class::Safe),
        ("train.max_minutes=5", Class::Safe),
        ("train.micro_batch=4", Class::Safe),
        ("train.recompute=true", Class::Safe),
        ("data.validation=other.txt", Class::Safe),
        ("train.batch=64", Class::NeedsAllow),
        ("train.steps=2000", Class::NeedsAllow),
        ("device=wgpu", Class::NeedsAllow),
        ("optimizer.beta2=0.99", Class::NeedsAllow),
        ("optimizer.warmup_steps=9", Class::NeedsAllow),
        ("loss.reduction=sum", Class::NeedsAllow),
        ("data.long_rows=split", Class::NeedsAllow),
        ("data.sets.hq=[\"b.txt\"]", Class::NeedsAllow),
        ("phase.cooldown.learning_rate.peak=1e-4", Class::NeedsAllow),
        ("phase.cooldown.weight_decay.value=1e-4", Class::NeedsAllow),
        ("phase.cooldown.data.hq=1", Class::NeedsAllow),
        ("seed=2", Class::Fatal),
        ("model.num_hidden_layers=3", Class::Fatal),
        ("tokenizer.path=other.json", Class::Fatal),
        ("train.precision=bf16", Class::Fatal),
        ("data.seq_len=256", Class::Fatal),
        ("stage=sft", Class::Fatal),
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
fn an_allowed_key_stands_for_all_below_it() {
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
