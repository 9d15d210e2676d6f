//! Runs with fewer bits a parameter and updates in the backward pass: killed ones repeat the
//! uninterrupted ones to the bit, threads change nothing, and what the modes ask for is checked.

use std::path::Path;

use bitnet_format::tensors::TensorFile;

use super::lab::{assert_code, assert_same, result, stderr};
use super::stages::{kill_stage, lab};

#[test]
fn a_killed_lean_fine_tuning_resumes_to_the_bit() {
    kill_stage("sft.toml", 21, &["train.memory=lean", "train.micro_batch=4"]);
}

#[test]
fn a_killed_run_with_24_bits_and_bf16_moments_resumes_to_the_bit() {
    let words = ["train.latents=bf16+8", "optimizer.moments=bf16", "train.precision=bf16"];
    kill_stage("sft.toml", 22, &words);
}

#[test]
fn a_killed_lean_preference_run_resumes_to_the_bit() {
    kill_stage("dpo.toml", 23, &["train.memory=lean", "train.batch=1", "train.micro_batch=1"]);
}

#[test]
fn a_killed_lean_muon_run_resumes_to_the_bit() {
    let lean = ["train.memory=lean", "train.micro_batch=4"];
    kill_stage("sft.toml", 24, &[&["optimizer.kind=muon"], &lean[..]].concat());
}

#[test]
fn muon_keeps_one_moment_of_a_matrix_and_stays() {
    let lab = lab();
    let out = lab.path("out");
    let words = ["optimizer.kind=muon", "optimizer.warmup_steps=1", "train.steps=3"];
    lab.finish_recipe("sft.toml", &out, &words);
    let file = TensorFile::open(&out.join("step-000003/optimizer.safetensors")).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    assert!(file.contains(&format!("first.{name}")));
    assert!(!file.contains(&format!("second.{name}")));
    assert!(file.contains("second.model.embed_tokens.weight"));
    let again = ["--resume", "auto", "train.steps=4", "--allow-change", "train.steps"];
    let adamw = lab.run_recipe("sft.toml", &out, &[&again[..], &words[1..2]].concat());
    assert_code(&adamw, 3);
    assert!(stderr(&adamw).contains("optimizer.kind: \"muon\" -> \"adamw\""), "{}", stderr(&adamw));
    lab.finish_recipe("sft.toml", &out, &[&again[..], &words[..2]].concat());
}

#[test]
fn the_reference_of_a_preference_run_is_that_of_its_own_latents() {
    let lab = lab();
    let one = ["train.steps=3", "train.batch=1", "train.micro_batch=1", "optimizer.warmup_steps=1"];
    lab.finish_recipe("dpo.toml", &lab.path("f32"), &one);
    // The cache has the log-probabilities of the f32 latents, which bf16 ones do not repeat.
    lab.finish_recipe("dpo.toml", &lab.path("lean"), &[&one[..], &["train.memory=lean"]].concat());
}

#[test]
fn threads_change_no_bit_of_a_lean_run() {
    let lab = lab();
    let words = ["train.memory=lean", "train.micro_batch=4", "train.steps=6"];
    let [one, three] = ["one", "three"].map(|name| lab.path(name));
    lab.finish_recipe("sft.toml", &one, &words);
    lab.finish_recipe("sft.toml", &three, &[&words[..], &["--threads", "3"]].concat());
    assert_same(&result(&three), &result(&one), "three threads");
}

#[test]
fn every_format_of_latents_and_moments_trains_and_its_model_is_read_again() {
    let lab = lab();
    for latents in ["f32", "bf16", "bf16+8", "block16"] {
        for moments in ["f32", "bf16", "8bit"] {
            let out = lab.path(&format!("{latents}-{moments}"));
            let (latents, moments) =
                (format!("train.latents={latents}"), format!("optimizer.moments={moments}"));
            let words = [&latents, &moments, "train.steps=3", "export.formats=[\"hf-packed\"]"];
            lab.finish_recipe("sft.toml", &out, &words);
            let model = bitnet_format::StoredModel::open(&out.join("final")).unwrap();
            assert!(!model.is_packed());
        }
    }
}

#[test]
fn latents_and_moments_change_only_where_it_is_allowed() {
    let lab = lab();
    let out = lab.path("out");
    lab.finish_recipe("sft.toml", &out, &["train.steps=4"]);
    let more = ["--resume", "auto", "train.steps=6", "--allow-change", "train.steps"];
    let changed = ["train.latents=block16", "optimizer.moments=8bit"];
    let refused = lab.run_recipe("sft.toml", &out, &[&more[..], &changed].concat());
    assert_code(&refused, 3);
    for key in ["train.latents", "optimizer.moments"] {
        assert!(stderr(&refused).contains(key), "{}", stderr(&refused));
    }
    let allowed = ["--allow-change", "train.latents", "--allow-change", "optimizer.moments"];
    lab.finish_recipe("sft.toml", &out, &[&more[..], &changed, &allowed].concat());
    let back = ["--resume", "auto", "train.steps=8", "--allow-change", "train.steps"];
    lab.finish_recipe("sft.toml", &out, &[&back[..], &allowed].concat());
    assert_eq!(result(&out).losses.len(), 8);
}

#[test]
fn frozen_matrices_of_a_lean_run_are_those_of_their_file() {
    let lab = lab();
    let master = lab.path("master");
    let words = ["export", "--model", "base/final", "--format", "hf-bf16", "--out", "master"];
    assert_code(&lab.tool(&words), 0);
    let freeze = "train.freeze=[\"*.q_proj.*\", \"model.embed_tokens.weight\"]";
    let lean = ["model.init=master", "train.memory=lean", "train.micro_batch=4", freeze];
    let words = [&lean[..], &["train.steps=4", "checkpoint.every=2"]].concat();
    let [once, again] = ["once", "again"].map(|name| lab.path(name));
    lab.finish_recipe("sft.toml", &once, &words);
    let model = |folder: &Path| TensorFile::open(&folder.join("model.safetensors")).unwrap();
    let (before, after) = (model(&master), model(&once.join("final")));
    for name in &after.names() {
        let shape = &after.info(name).unwrap().shape;
        let same = before.floats(name, shape).unwrap() == after.floats(name, shape).unwrap();
        let is_frozen = name.contains("q_proj") || name.contains("embed_tokens");
        assert_eq!(same, is_frozen, "{name}");
    }
    let state = TensorFile::open(&once.join("step-000004/optimizer.safetensors")).unwrap();
    let kept = |part: &str| state.names().iter().any(|name| name.contains(part));
    assert!(kept("v_proj") && !kept("q_proj") && !kept("embed_tokens"));
    lab.finish_recipe("sft.toml", &again, &words);
    for later in ["step-000004", "final"] {
        fs_err::remove_dir_all(again.join(later)).unwrap();
    }
    lab.finish_recipe("sft.toml", &again, &[&words[..], &["--resume", "auto"]].concat());
    assert_same(&result(&again), &result(&once), "resumed after two steps");
}

#[test]
fn what_a_lean_run_asks_for_is_named() {
    let lab = lab();
    let refused = |recipe: &str, words: &[&str], named: &str| {
        let output = lab.run_recipe(recipe, &lab.path("refused"), words);
        assert_code(&output, 3);
        assert!(stderr(&output).contains(named), "{named:?} is not in {}", stderr(&output));
    };
    refused("sft.toml", &["train.memory=lean"], "train.micro_batch");
    refused("sft.toml", &["train.update=during", "train.micro_batch=4"], "train.update");
    refused("dpo.toml", &["train.memory=lean", "train.micro_batch=4"], "train.batch");
    refused("sft.toml", &["train.latents=bf16", "device=ndarray"], "device");
    refused("sft.toml", &["train.latents=bf17"], "train.latents");
}

#[test]
fn moments_in_blocks_of_another_size_are_refused() {
    let lab = lab();
    let out = lab.path("out");
    let lean = ["train.memory=lean", "train.micro_batch=4", "optimizer.warmup_steps=1"];
    lab.finish_recipe("sft.toml", &out, &[&lean[..], &["train.steps=2"]].concat());
    let checkpoint = out.join("step-000002");
    let path = checkpoint.join("optimizer.safetensors");
    // The header says the scales are one dimension of n; the same bytes as [n, 1] are no list of blocks.
    let bytes = fs_err::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut header = header.as_object().unwrap().clone();
    let name = "first.model.layers.0.self_attn.q_proj.weight.scales";
    let blocks = header[name]["shape"][0].clone();
    header.get_mut(name).unwrap()["shape"] = serde_json::json!([blocks, 1]);
    let mut text = serde_json::to_string(&header).unwrap();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let changed = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &bytes[8 + length..]];
    fs_err::write(&path, changed.concat()).unwrap();
    let manifest = checkpoint.join("MANIFEST.json");
    let mut list: serde_json::Value =
        serde_json::from_slice(&fs_err::read(&manifest).unwrap()).unwrap();
    let file = &mut list["files"]["optimizer.safetensors"];
    let new = fs_err::read(&path).unwrap();
    file["bytes"] = new.len().into();
    file["blake3"] = blake3::hash(&new).to_hex().to_string().into();
    fs_err::write(&manifest, list.to_string()).unwrap();
    let more = ["--resume", "auto", "train.steps=3", "--allow-change", "train.steps"];
    let refused = lab.run_recipe("sft.toml", &out, &[&lean[..], &more].concat());
    assert_code(&refused, 4);
    assert!(stderr(&refused).contains(name), "{}", stderr(&refused));
}
