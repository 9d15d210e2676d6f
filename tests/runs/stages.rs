//! Fine-tuning, preference training and pipelines by the real program: killed runs repeat the
//! uninterrupted ones to the bit.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use super::kill::{kill_repeatedly, last_step, wait_for, wait_until};
use super::lab::{Dice, Lab, assert_code, assert_same, metrics, result, stderr};

const SFT: &str = r#"
stage = "sft"
seed = 5
[model]
init = "base/final"
[data]
train = ["sft.jsonl"]
validation = ["sft_val.jsonl"]
seq_len = 48
cache = "cache"
[train]
steps = 24
batch = 4
micro_batch = 2
[optimizer]
warmup_steps = 2
[eval]
every = 5
[checkpoint]
every = 2
best = true
[sample]
every = 9
prompts = ["Who?"]
max_tokens = 6
[guard]
spike_sigma = 1.5
spike_window = 6
"#;

const DPO: &str = r#"
stage = "dpo"
seed = 5
[model]
init = "base/final"
[data]
train = ["dpo.jsonl"]
validation = ["dpo_val.jsonl"]
seq_len = 64
cache = "cache"
[train]
steps = 24
batch = 4
micro_batch = 2
[[phase]]
name = "main"
share = 1.0
learning_rate = { shape = "linear", peak = 1e-3, end = 0.0, span = "run" }
[eval]
every = 5
[checkpoint]
every = 2
"#;

/// A laboratory with a base model, rows of both kinds, and recipes for them.
pub(crate) fn lab() -> Lab {
    lab_of(&[])
}

/// The same with a base model that these words change.
pub(crate) fn lab_of(model: &[&str]) -> Lab {
    let lab = Lab::new();
    let base = ["train.steps=4", "optimizer.warmup_steps=1", "eval.every=0"];
    lab.finish(&lab.path("base"), &[&base, model].concat());
    fs_err::write(lab.path("sft.toml"), SFT).unwrap();
    fs_err::write(lab.path("dpo.toml"), DPO).unwrap();
    let words = ["key", "hat", "red box", "boat", "old door"];
    let places = ["hall", "barn", "wide field"];
    let thing = |n: usize| (words[n % words.len()], places[n / words.len() % places.len()]);
    let turn = |role: &str, text: String| format!(r#"{{"role":"{role}","content":"{text}"}}"#);
    let sft = |n: usize| {
        let (word, place) = thing(n);
        let user = turn("user", format!("The {word} is in the {place}. Where?"));
        let answer = turn("assistant", format!("In the {place}."));
        format!("{{\"messages\":[{user},{answer}]}}\n")
    };
    let dpo = |n: usize| {
        let (word, place) = thing(n);
        let prompt = turn("user", format!("The {word} is in the {place}. Where?"));
        let wrong = if n.is_multiple_of(2) { "I do not know at all." } else { "No." };
        format!(
            "{{\"prompt\":[{prompt}],\"chosen\":\"In the {place}.\",\"rejected\":\"{wrong}\"}}\n"
        )
    };
    let write = |name: &str, row: &dyn Fn(usize) -> String, range: std::ops::Range<usize>| {
        fs_err::write(lab.path(name), range.map(row).collect::<String>()).unwrap();
    };
    write("sft.jsonl", &sft, 0..13);
    write("sft_val.jsonl", &sft, 13..15);
    write("dpo.jsonl", &dpo, 0..13);
    write("dpo_val.jsonl", &dpo, 13..15);
    lab
}

/// Runs a stage straight through and then several times with kills, and compares.
pub(crate) fn kill_stage(recipe: &str, seed: u64, words: &[&str]) {
    let lab = lab();
    let straight = lab.path("straight");
    lab.finish_recipe(recipe, &straight, words);
    let resume = [&["--resume", "auto"], words].concat();
    let expected = result(&straight);
    assert_eq!(expected.losses.len(), 24);
    let (mut dice, mut kills) = (Dice(seed), 0);
    for run in 0..4 {
        let out = lab.path(&format!("killed-{run}"));
        let spawn = || lab.spawn_recipe(recipe, &out, &resume);
        let is_saving = |child: &Child| holds(&out, &format!(".tmp-{}", child.id()));
        kills += kill_repeatedly((3, &mut dice, &out), spawn, is_saving);
        lab.finish_recipe(recipe, &out, &resume);
        assert_same(&result(&out), &expected, &format!("{recipe}, run {run}"));
    }
    println!("{recipe}: {kills} kills");
    assert!(kills >= 6, "only {kills} kills");
}

/// Whether a file or folder with this in its name is being made.
fn holds(out: &Path, part: &str) -> bool {
    let Ok(entries) = fs_err::read_dir(out) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains(part))
}

#[test]
fn a_killed_fine_tuning_resumes_to_the_bit_over_epochs_spikes_and_the_best_model() {
    kill_stage("sft.toml", 11, &[]);
}

#[test]
fn a_killed_preference_run_resumes_to_the_bit() {
    kill_stage("dpo.toml", 12, &[]);
}

#[test]
fn a_preference_run_goes_on_beside_the_reference_it_began_with() {
    let lab = lab();
    let out = lab.path("out");
    lab.finish_recipe("dpo.toml", &out, &["train.steps=2"]);
    let words = ["--resume", "auto", "train.steps=4", "--allow-change", "train.steps"];
    // The drift is found by a dry run too.
    for dry in [&[][..], &["--dry-run"]] {
        let words = [&words[..], dry].concat();
        let changed = [&words[..], &["optimizer.beta1=0.8"]].concat();
        let refused = lab.run_recipe("dpo.toml", &out, &changed);
        assert_code(&refused, 3);
        assert!(stderr(&refused).contains("optimizer.beta1"), "{}", stderr(&refused));
    }
    let weights = lab.path("base/final/model.safetensors");
    let mut bytes = fs_err::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs_err::write(&weights, bytes).unwrap();
    let refused = lab.run_recipe("dpo.toml", &out, &words);
    assert_code(&refused, 3);
    assert!(stderr(&refused).contains("[model.init]: the files of the reference"), "{refused:?}");
}

#[test]
fn a_preference_run_starts_at_ln_2_and_its_reference_is_made_once() {
    let lab = lab();
    let first = lab.finish_recipe("dpo.toml", &lab.path("a"), &[]);
    assert!(stderr(&first).contains("reference log-probabilities of train"));
    let lines = metrics(&lab.path("a"));
    let loss = lines[0]["loss"].as_f64().unwrap();
    assert!((loss - std::f64::consts::LN_2).abs() <= 1e-6, "{loss}");
    for name in ["reward_chosen", "reward_rejected", "margin", "accuracy", "logp_chosen", "kl"] {
        assert!(lines[0][name].is_number(), "{name} in {}", lines[0]);
    }
    let eval = lines.iter().find(|line| line["eval"].is_object()).unwrap();
    assert!(eval["eval"]["validation"]["accuracy"].is_number(), "{eval}");
    let second = lab.finish_recipe("dpo.toml", &lab.path("b"), &[]);
    assert!(!stderr(&second).contains("reference log-probabilities"), "{}", stderr(&second));
    assert_same(&result(&lab.path("b")), &result(&lab.path("a")), "with the kept reference");
    let last = lines.iter().rfind(|line| line["margin"].is_number()).unwrap();
    assert!(last["margin"].as_f64().unwrap() > 0.05, "{last}");
}

#[test]
fn every_stage_ends_with_the_same_bits_when_blocks_are_computed_again() {
    let lab = lab();
    for recipe in ["recipe.toml", "sft.toml", "dpo.toml"] {
        let [kept, recomputed] = ["kept", "recomputed"].map(|way| lab.path(way).join(recipe));
        lab.finish_recipe(recipe, &kept, &["train.steps=8"]);
        // With a cache of its own, so that the reference of a preference run is made once more.
        let words = ["train.steps=8", "train.recompute=true", "data.cache=another"];
        lab.finish_recipe(recipe, &recomputed, &words);
        assert_same(&result(&recomputed), &result(&kept), recipe);
    }
}

#[test]
fn a_run_may_go_on_with_recomputation_switched_on() {
    let lab = lab();
    let (straight, changed) = (lab.path("straight"), lab.path("changed"));
    lab.finish_recipe("sft.toml", &straight, &[]);
    let mut child = lab.spawn_recipe("sft.toml", &changed, &[]);
    wait_until(&mut child, || last_step(&changed).is_some_and(|step| step >= 8));
    child.kill().unwrap();
    child.wait().unwrap();
    let words = ["--resume", "auto", "train.recompute=true"];
    let output = lab.finish_recipe("sft.toml", &changed, &words);
    assert!(stderr(&output).contains("continuing after step"), "{}", stderr(&output));
    assert_same(&result(&changed), &result(&straight), "switched on after a kill");
}

#[test]
fn the_summed_loss_is_logged_as_a_mean_and_the_best_model_is_kept() {
    let lab = lab();
    let out = lab.path("out");
    lab.finish_recipe("sft.toml", &out, &["guard.spike_sigma=0", "train.steps=20"]);
    let lines = metrics(&out);
    let tokens = |step: usize| lines.iter().find(|line| line["step"] == step).unwrap();
    let first = tokens(1);
    assert!(first["loss"].as_f64().unwrap() < 8.0, "a mean per trained token: {first}");
    let trained = first["tokens"].as_f64().unwrap();
    assert!(trained < 4.0 * 48.0 * 0.7, "prompts are not counted: {trained}");
    let best: serde_json::Value =
        serde_json::from_slice(&fs_err::read(out.join("best/best.json")).unwrap()).unwrap();
    let losses =
        lines.iter().filter_map(|line| line["eval"]["validation"]["nll_per_token"].as_f64());
    let lowest = losses.fold(f64::INFINITY, f64::min);
    assert!((best["loss"].as_f64().unwrap() - lowest).abs() < 1e-12);
    for name in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(out.join("best").join(name).exists(), "{name}");
    }
    assert!(lines.iter().any(|line| line["ternary"]["all"]["zero"].is_number()));
    let events = fs_err::read_dir(out.join("tensorboard")).unwrap().count();
    assert_eq!(events, 1);
}

#[test]
fn a_pipeline_runs_its_stages_and_continues_where_it_was_killed() {
    let lab = lab();
    let recipe = "pipeline = [\"recipe.toml\", \"sft.toml\", \"dpo.toml\"]";
    fs_err::write(lab.path("all.toml"), recipe).unwrap();
    let straight = lab.path("straight");
    lab.finish_recipe("all.toml", &straight, &[]);
    let stages = ["1-recipe", "2-sft", "3-dpo"];
    let began = std::time::Instant::now();
    lab.finish_recipe("all.toml", &lab.path("timed"), &[]);
    let duration = began.elapsed();
    let refused = lab.run_recipe("all.toml", &straight, &[]);
    assert_code(&refused, 7);
    let out = lab.path("killed");
    for part in [0.2, 0.4, 0.4] {
        let mut child = lab.spawn_recipe("all.toml", &out, &["--resume", "auto"]);
        if wait_for(&mut child, Duration::from_secs_f64(duration.as_secs_f64() * part)) {
            child.kill().unwrap();
        }
        child.wait().unwrap();
    }
    lab.finish_recipe("all.toml", &out, &["--resume", "auto"]);
    for stage in stages {
        assert_same(&result(&out.join(stage)), &result(&straight.join(stage)), stage);
    }
}

#[test]
fn a_dry_run_writes_nothing_and_a_wrong_later_stage_stops_a_pipeline_before_it_starts() {
    let lab = lab();
    let out = lab.path("out");
    let dry = lab.run_recipe("sft.toml", &out, &["--dry-run"]);
    assert_code(&dry, 0);
    assert!(stderr(&dry).contains("nothing was written"), "{}", stderr(&dry));
    assert!(!out.exists());
    let unfit = lab.run_recipe("sft.toml", &out, &["--dry-run", "export.formats=[\"gguf-i2_s\"]"]);
    assert_code(&unfit, 3);
    assert!(stderr(&unfit).contains("[export.formats]: gguf-i2_s"), "{}", stderr(&unfit));
    fs_err::write(lab.path("bad.toml"), SFT.replace("seq_len", "seqlen")).unwrap();
    fs_err::write(lab.path("all.toml"), "pipeline = [\"recipe.toml\", \"bad.toml\"]").unwrap();
    let bad = lab.run_recipe("all.toml", &out, &[]);
    assert_code(&bad, 3);
    assert!(stderr(&bad).contains("bad.toml:9"), "{}", stderr(&bad));
    assert!(!out.exists());
}

#[test]
fn frozen_tensors_stay_as_they_are() {
    let lab = lab();
    let out = lab.path("out");
    let freeze = "train.freeze=[\"*.q_proj.*\", \"model.embed_tokens.weight\"]";
    lab.finish_recipe("sft.toml", &out, &[freeze, "train.steps=6", "guard.spike_sigma=0"]);
    let read = |folder: PathBuf| {
        bitnet_format::tensors::TensorFile::open(&folder.join("model.safetensors"))
    };
    let (before, after) = (read(lab.path("base/final")).unwrap(), read(out.join("final")).unwrap());
    let names = after.names().clone();
    for name in names {
        let shape = after.info(&name).unwrap().shape.clone();
        let same = before.floats(&name, &shape).unwrap() == after.floats(&name, &shape).unwrap();
        let frozen = name.contains("q_proj") || name.contains("embed_tokens");
        assert_eq!(same, frozen, "{name}");
    }
    // The last checkpoint and the final folder share their weights.
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let file = |folder: &str| fs_err::metadata(out.join(folder).join("model.safetensors"));
        assert_eq!(file("final").unwrap().ino(), file("step-000006").unwrap().ino());
    }
    // Moments are kept of what is trained, and a run continues with them to the same bits.
    let moments = fs_err::read(out.join("step-000006/optimizer.safetensors")).unwrap();
    let moments = String::from_utf8_lossy(&moments[..moments.len().min(20_000)]).into_owned();
    assert!(moments.contains("first.model.layers.0.self_attn.k_proj.weight"));
    assert!(!moments.contains("q_proj") && !moments.contains("embed_tokens"));
    let again = lab.path("again");
    lab.finish_recipe(
        "sft.toml",
        &again,
        &[freeze, "train.steps=6", "guard.spike_sigma=0", "checkpoint.every=3"],
    );
    fs_err::remove_dir_all(again.join("step-000006")).unwrap();
    fs_err::remove_dir_all(again.join("final")).unwrap();
    lab.finish_recipe(
        "sft.toml",
        &again,
        &[freeze, "train.steps=6", "guard.spike_sigma=0", "checkpoint.every=3", "--resume", "auto"],
    );
    let weights = |run: &PathBuf| fs_err::read(run.join("final/model.safetensors")).unwrap();
    assert!(weights(&again) == weights(&out), "the resumed run has other bits");
    let none = lab.run_recipe("sft.toml", &lab.path("none"), &["train.freeze=[\"nothing\"]"]);
    assert_code(&none, 3);
}

#[test]
fn a_run_does_not_continue_with_another_template_or_other_rows() {
    let lab = lab();
    let out = lab.path("out");
    lab.finish_recipe("sft.toml", &out, &["train.steps=4"]);
    let go_on = |extra: &[&str]| {
        let mut words = vec!["--resume", "auto", "train.steps=6", "--allow-change", "train.steps"];
        words.extend(extra);
        lab.run_recipe("sft.toml", &out, &words)
    };
    let template = go_on(&["tokenizer.chat_template=b158-apart"]);
    assert_code(&template, 3);
    assert!(stderr(&template).contains("tokenizer.chat_template"), "{}", stderr(&template));
    let rows = fs_err::read_to_string(lab.path("sft.jsonl")).unwrap().replace("key", "cup");
    fs_err::write(lab.path("sft.jsonl"), rows).unwrap();
    let data = go_on(&[]);
    assert_code(&data, 3);
    assert!(stderr(&data).contains("--allow-change data"), "{}", stderr(&data));
}

#[test]
fn another_chat_template_goes_with_the_model_to_the_packed_folder() {
    let lab = lab();
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|eot_id|>{% endfor %}\
                    {% if add_generation_prompt %}<assistant>{% endif %}";
    fs_err::write(lab.path("own.jinja"), template).unwrap();
    let out = lab.path("out");
    let words = [
        "tokenizer.chat_template=own.jinja",
        "train.steps=3",
        "export.formats=[\"hf-packed\"]",
        "guard.spike_sigma=0",
    ];
    lab.finish_recipe("sft.toml", &out, &words);
    let packed = out.join("export/hf-packed");
    let tokenizer = bitnet_text::Tokenizer::from_file(&packed.join("tokenizer.json")).unwrap();
    let chat = bitnet_text::ChatTemplate::of_model(&packed, &tokenizer).unwrap();
    // The tokenizer begins texts with a token that this template leaves out.
    assert_eq!(chat.source_for(&tokenizer).unwrap(), format!("{{{{ bos_token }}}}{template}"));
    let missing = ["tokenizer.chat_template=nowhere.jinja"];
    assert_code(&lab.run_recipe("sft.toml", &lab.path("no"), &missing), 3);
    fs_err::write(lab.path("own.jinja"), "{% for m in messages %}").unwrap();
    let broken = lab.run_recipe("sft.toml", &lab.path("no"), &words);
    assert_code(&broken, 4);
    assert!(stderr(&broken).contains("own.jinja"), "{}", stderr(&broken));
}

#[test]
fn a_packed_folder_is_refused_for_training_with_the_reason() {
    let lab = lab();
    let export = ["export.formats=[\"hf-packed\"]", "train.steps=2", "optimizer.warmup_steps=0"];
    lab.finish(&lab.path("packed"), &export);
    let init = "model.init=packed/export/hf-packed";
    let output = lab.run_recipe("sft.toml", &lab.path("out"), &[init]);
    assert_code(&output, 4);
    assert!(stderr(&output).contains("without the latent weights"), "{}", stderr(&output));
}

#[test]
fn pretraining_goes_on_from_a_model_and_stops_when_its_time_is_over() {
    let lab = lab();
    let words = [
        "model.init=base/final",
        "tokenizer.path=base/final/tokenizer.json",
        "train.steps=3",
        "optimizer.warmup_steps=0",
    ];
    lab.finish(&lab.path("more"), &words);
    let loss = |out: &str| metrics(&lab.path(out))[0]["loss"].as_f64().unwrap();
    assert!(loss("more") < loss("base") - 0.05, "{} after {}", loss("more"), loss("base"));
    let out = lab.path("timed");
    let stopped =
        lab.run(&out, &[&words[..2], &["train.steps=5000", "train.max_minutes=0.02"]].concat());
    assert_code(&stopped, 143);
    let saved = bitnet_train::checkpoint::list(&out).unwrap();
    bitnet_train::checkpoint::verify(&saved.last().unwrap().1).unwrap();
}

#[test]
fn a_spike_is_left_out_and_named() {
    let lab = lab();
    let out = lab.path("out");
    let words = ["guard.spike_sigma=0.5", "guard.spike_window=4", "train.steps=20"];
    lab.finish_recipe("sft.toml", &out, &words);
    let lines = metrics(&out);
    let left_out = lines.iter().find(|line| line["skipped"] == true).expect("half a deviation");
    assert!(left_out["rows"][0].as_str().unwrap().contains("sft.jsonl:"), "{left_out}");
    assert!(left_out["loss"].is_number(), "a spike is finite: {left_out}");
}
