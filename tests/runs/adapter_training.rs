//! Runs that train an adapter by the real program: killed ones repeat the uninterrupted ones to the bit,
//! what they write is the adapter alone and its exports are merged, and what does not fit is refused.

use std::path::Path;

use bitnet_engine::{Model, ThreadPool, Workspace};
use bitnet_format::StoredModel;
use bitnet_format::adapter::{Adapter, AdapterKind, MergedModel};
use bitnet_format::{TensorSource, model_hash, tensor_table};

use super::lab::{Lab, assert_code, assert_same, metrics, result, stderr};
use super::stages::{kill_stage, lab};
use super::tasks::add_task;

/// A rate that moves codes within a few steps.
const RATE: &str = "phase.main.learning_rate={ shape = \"constant\", value = 0.02 }";
const ADAPTER: [&str; 3] = ["adapter.kind=latent", "adapter.rank=4", RATE];

#[test]
fn a_killed_adapter_run_resumes_to_the_bit() {
    kill_stage("sft.toml", 31, &ADAPTER);
}

#[test]
fn a_killed_lean_adapter_run_resumes_to_the_bit() {
    let words = ["train.memory=lean", "train.precision=bf16", "adapter.targets=[\"v_proj\"]"];
    kill_stage("sft.toml", 32, &[&ADAPTER[..], &words].concat());
}

#[test]
fn a_killed_preference_run_of_an_adapter_resumes_to_the_bit() {
    kill_stage("dpo.toml", 33, &ADAPTER[..2]);
}

const SIDE: [&str; 3] = ["adapter.kind=side", "adapter.rank=4", RATE];

#[test]
fn a_killed_side_adapter_run_resumes_to_the_bit() {
    kill_stage("sft.toml", 34, &[&SIDE[..], &["train.recompute=true"]].concat());
}

#[test]
fn a_preference_run_of_a_side_adapter_starts_at_its_reference_and_learns() {
    let lab = lab();
    let out = lab.path("out");
    lab.finish_recipe("dpo.toml", &out, &SIDE[..2]);
    let losses: Vec<f64> = metrics(&out).iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert!((losses[0] - std::f64::consts::LN_2).abs() < 1e-6, "{losses:?}");
    assert!(losses[23] < 0.99 * losses[0], "{losses:?}");
}

#[test]
fn recomputed_blocks_and_three_threads_change_no_bit() {
    let lab = lab();
    let words = [&ADAPTER[..], &["train.steps=6", "train.micro_batch=4"]].concat();
    let runs = ["one", "three", "again"].map(|name| lab.path(name));
    let more = [&[][..], &["--threads", "3"], &["train.recompute=true"]];
    for (out, more) in runs.iter().zip(more) {
        lab.finish_recipe("sft.toml", out, &[&words[..], more].concat());
    }
    assert_same(&result(&runs[1]), &result(&runs[0]), "three threads");
    assert_same(&result(&runs[2]), &result(&runs[0]), "recompute");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The adapter of a run from `base/final`, and the hash of that model.
fn trained(lab: &Lab, out: &Path) -> (StoredModel, String, Adapter) {
    let path = lab.path("base/final");
    let base = StoredModel::open(&path).unwrap();
    let hash = model_hash(&path, &base).unwrap();
    let adapter = Adapter::open(&out.join("final"), base.spec()).unwrap();
    (base, hash, adapter)
}

#[test]
fn what_a_run_leaves_is_the_adapter_and_merged_exports() {
    let lab = lab();
    let out = lab.path("out");
    let formats = "export.formats=[\"hf-packed\", \"hf-bf16\"]";
    lab.finish_recipe("sft.toml", &out, &[&ADAPTER[..], &[formats]].concat());
    let files = [
        "MANIFEST.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "recipe.resolved.toml",
        "state.json",
    ];
    let found = names(&out.join("step-000024"));
    assert!(files.iter().all(|name| found.iter().any(|it| it == name)), "{found:?}");
    assert!(!found.iter().any(|name| name == "model.safetensors"), "{found:?}");
    assert!(out.join("best/adapter_model.safetensors").exists());

    let (base, hash, adapter) = trained(&lab, &out);
    let description = adapter.description();
    assert_eq!((description.kind, description.rank), (AdapterKind::Latent, 4));
    assert_eq!(description.base_hash.as_deref(), Some(&*hash));
    let path = lab.path("base/final");
    let merged = MergedModel::new(&base, &path, &hash, &adapter).unwrap();
    let packed = StoredModel::open(&out.join("export/hf-packed")).unwrap();
    let mut moved = 0;
    for entry in tensor_table(base.spec()).iter().filter(|entry| entry.is_ternary(base.spec())) {
        let codes = merged.matrix(entry).unwrap().quantised().0;
        assert!(codes == packed.matrix(entry).unwrap().quantised().0, "{}", entry.name);
        let before = base.matrix(entry).unwrap().quantised().0;
        moved += codes.iter().zip(&before).filter(|(new, old)| new != old).count();
    }
    assert!(moved > 100, "only {moved} codes moved");
    assert_eq!(packed.spec().eos_token_id.len(), 2, "the end of a turn ends a text too");
    let losses: Vec<f64> = metrics(&out).iter().filter_map(|line| line["loss"].as_f64()).collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&losses[18..]) < mean(&losses[..6]), "{losses:?}");
}

#[test]
fn what_an_adapter_asks_for_is_named() {
    let lab = lab();
    let refused = |recipe: &str, words: &[&str], named: &str| {
        let output = lab.run_recipe(recipe, &lab.path("refused"), words);
        assert_code(&output, 3);
        assert!(stderr(&output).contains(named), "{named:?} is not in {}", stderr(&output));
    };
    let with = |word: &'static str| [&ADAPTER[..], &[word]].concat();
    refused("sft.toml", &["adapter.rank=4"], "[adapter.kind]");
    refused("sft.toml", &["adapter.kind=beside"], "[adapter.kind]");
    refused("sft.toml", &with("adapter.rank=0"), "[adapter.rank]");
    refused("sft.toml", &with("adapter.alpha=-1"), "[adapter.alpha]");
    refused("sft.toml", &with("adapter.targets=[]"), "[adapter.targets]");
    refused("sft.toml", &with("adapter.targets=[\"x_proj\"]"), "\"x_proj\" matches no matrix");
    refused("sft.toml", &with("train.freeze=[\"*norm*\"]"), "[train.freeze]");
    refused("sft.toml", &with("train.latents=bf16"), "[train.latents]");
    refused("sft.toml", &with("train.update=during"), "[train.update]");
    refused("sft.toml", &with("device=ndarray"), "[device]");
}

#[test]
fn an_adapter_goes_on_with_its_own_base_and_rank_only() {
    let lab = lab();
    let out = lab.path("out");
    let more = [&ADAPTER[..], &["optimizer.warmup_steps=1"]].concat();
    lab.finish_recipe("sft.toml", &out, &[&more[..], &["train.steps=2"]].concat());
    let again = ["--resume", "auto", "train.steps=3", "--allow-change", "train.steps"];
    let rank = lab.run_recipe("sft.toml", &out, &[&more[..], &again, &["adapter.rank=8"]].concat());
    assert_code(&rank, 3);
    assert!(stderr(&rank).contains("adapter.rank: 4 -> 8"), "{}", stderr(&rank));
    let config = lab.path("base/final/config.json");
    let text = fs_err::read_to_string(&config).unwrap();
    fs_err::write(&config, format!("{text} ")).unwrap();
    let base = lab.run_recipe("sft.toml", &out, &[&more[..], &again].concat());
    assert_code(&base, 3);
    assert!(stderr(&base).contains("[model.init]"), "{}", stderr(&base));
    fs_err::write(&config, text).unwrap();
    lab.finish_recipe("sft.toml", &out, &[&more[..], &again].concat());
    assert_eq!(result(&out).losses.len(), 3);
}

#[test]
fn a_packed_base_has_no_latents_to_adapt() {
    let lab = lab();
    let exported = ["train.steps=2", "optimizer.warmup_steps=1", "export.formats=[\"hf-packed\"]"];
    lab.finish_recipe("sft.toml", &lab.path("full"), &exported);
    let init = format!("model.init={}", lab.path("full/export/hf-packed").display());
    let output = lab.run_recipe("sft.toml", &lab.path("out"), &[&ADAPTER[..], &[&init]].concat());
    assert_code(&output, 4);
    assert!(stderr(&output).contains("without the latent weights"), "{}", stderr(&output));
}

/// Wide enough for every format.
const SHAPE: &str = "hidden_size = 256\nintermediate_size = 256\nnum_hidden_layers = 2\n\
    num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 512\n\
    max_position_embeddings = 64\n";

#[test]
fn a_side_adapter_is_trained_beside_codes_and_exported_beside_them() {
    let lab = lab();
    fs_err::write(lab.path("shape.toml"), SHAPE).unwrap();
    let tokenizer = "base/final/tokenizer.json";
    assert_code(
        &lab.tool(&["init", "--config", "shape.toml", "--tokenizer", tokenizer, "--out", "wide"]),
        0,
    );
    let bases = ["hf-packed", "gguf-i2_s", "gguf-tq2_0"].map(|format| {
        let out = format!("{format}{}", if format == "hf-packed" { "" } else { ".gguf" });
        assert_code(
            &lab.tool(&["export", "--model", "wide", "--format", format, "--out", &out]),
            0,
        );
        lab.path(&out)
    });
    add_task(&lab, 5);
    let tasks = ["eval.tasks=[\"own.yaml\"]", "eval.task_data=sets", "eval.task_every=100"];
    let mut ends = Vec::new();
    for base in &bases {
        let out = lab.path(&format!("side-{}", ends.len()));
        let init = format!("model.init={}", base.display());
        let formats = "export.formats=[\"hf-packed\"]";
        let rate = "phase.main.learning_rate={ shape = \"constant\", value = 0.002 }";
        let words = [&SIDE[..2], &[rate, &init, formats, "train.steps=12"], &tasks].concat();
        lab.finish_recipe("sft.toml", &out, &words);
        check_scores(&lab, &out);
        let beside = out.join("export/hf-packed-adapter");
        let packed = Model::load(&out.join("export/hf-packed")).unwrap();
        let adapter = Adapter::open(&beside, packed.spec()).unwrap();
        let plain = logits(&packed);
        let adapted = logits(&packed.with_adapter(&adapter).unwrap());
        assert!(plain.iter().zip(&adapted).any(|(a, b)| (a - b).abs() > 0.05), "{adapted:?}");
        let lines = metrics(&out);
        assert!(lines.iter().all(|line| line["ternary"].is_null()), "no code ever changes");
        let losses: Vec<f64> = lines.iter().filter_map(|line| line["loss"].as_f64()).collect();
        assert!(losses[11] < losses[0], "{losses:?}");
        ends.push(losses[11]);
    }
    // The embedding of a GGUF file is F16 and that of the folder BF16: nearly the same model.
    assert!(ends.iter().all(|end| (end - ends[0]).abs() < 0.05), "{ends:?}");
}

/// The scores at the end of training are those of what it exported.
fn check_scores(lab: &Lab, out: &Path) {
    let in_training = metrics(out).iter().find_map(|line| line.get("tasks").cloned()).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
    command.current_dir(lab.path("")).arg("eval").arg(out.join("export/hf-packed"));
    command.arg("--adapter").arg(out.join("export/hf-packed-adapter"));
    let asked = command.args(["--tasks", "own.yaml", "--data", "sets", "--json"]).output().unwrap();
    assert!(asked.status.success(), "{}", stderr(&asked));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&asked.stdout).unwrap(), in_training);
}

fn logits(model: &Model) -> Vec<f32> {
    let threads = ThreadPool::new(1).unwrap();
    let mut workspace = Workspace::new(&threads);
    model.forward_all(&mut workspace, &mut model.new_cache(), &[1, 20, 7, 44]).unwrap().to_vec()
}

#[test]
fn the_share_of_codes_that_an_adapter_moved_is_reported() {
    let lab = lab();
    let out = lab.path("out");
    let words = [&ADAPTER[..], &["telemetry.every=6"]].concat();
    let run = lab.finish_recipe("sft.toml", &out, &words);
    let moved = |kind: &str| -> Vec<f64> {
        let lines = metrics(&out);
        lines.iter().filter_map(|line| line["ternary"][kind]["moved"].as_f64()).collect()
    };
    let all = moved("all");
    assert!(all.len() == 4 && all[0] < all[3] && all[3] < 1.0, "{all:?}");
    let text = String::from_utf8_lossy(&run.stdout).into_owned() + &stderr(&run);
    let line = text.lines().find(|line| line.contains("codes that the adapter moved")).unwrap();
    let end = format!("all {:.3} %", 100.0 * all[3]);
    assert!(line.contains(&end), "{line}: {end}");
    assert!(moved("v_proj")[3] > 0.0);
}

#[test]
fn the_command_that_a_run_ends_with_packs_its_adapter() {
    let lab = lab();
    let out = lab.path("out");
    let run = lab.finish_recipe("sft.toml", &out, &[&ADAPTER[..], &["train.steps=3"]].concat());
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("bitnet-train export")).unwrap();
    let mut words = line.split_whitespace().skip(1);
    let packed = lab.path("packed");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
    let words = words.by_ref().take_while(|word| *word != "--out");
    let packing = command.args(words).arg("--out").arg(&packed).output().unwrap();
    assert!(packing.status.success(), "{line}: {}", stderr(&packing));
    assert!(StoredModel::open(&packed).unwrap().is_packed());
}
