//! The other commands on what a run left: export, eval, tokenizer, plan; and the packed model's
//! own words against the training forward's.

use std::process::{Command, Output};

use bitnet_engine::{GenerateRequest, Model, SamplerSettings, ThreadPool, generate};
use bitnet_format::StoredModel;
use bitnet_train::model::{LanguageModel, SegmentStarts, token_logits};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::Value;

use super::lab::{Lab, assert_code, stderr};

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().count(), 1, "one line of JSON: {text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn export_packs_verifies_and_replaces_only_with_force() {
    let lab = Lab::new();
    lab.finish(&lab.path("out"), &[]);
    let export = ["export", "--model", "out/final", "--format", "hf-packed", "--out", "packed"];
    let result = json(&lab.tool(&[&export[..], &["--json"]].concat()));
    assert_eq!(result["verification"]["positions"], 3 * 48 + 128);
    assert_code(&lab.tool(&export), 7);
    assert!(lab.tool(&[&export[..], &["--force"]].concat()).status.success());
    let again = ["export", "--model", "packed", "--format", "hf-packed", "--out", "twice"];
    assert!(lab.tool(&again).status.success());
    let read = |folder: &str| fs_err::read(lab.path(folder).join("model.safetensors")).unwrap();
    assert!(read("packed") == read("twice"), "packing what is packed changes nothing");
    let missing = ["export", "--model", "nowhere", "--format", "hf-packed", "--out", "p"];
    assert_code(&lab.tool(&missing), 4);
    let unknown = ["export", "--model", "out/final", "--format", "zip", "--out", "p"];
    assert_code(&lab.tool(&unknown), 2);
}

#[test]
fn eval_gives_the_loss_of_a_checkpoint_and_of_its_packed_form() {
    let lab = Lab::new();
    lab.finish(&lab.path("out"), &["export.formats=[\"hf-packed\"]"]);
    fs_err::write(lab.path("text.txt"), "One day, Ben was in the park. ".repeat(40)).unwrap();
    let eval =
        |model: &str| json(&lab.tool(&["eval", "--model", model, "--data", "text.txt", "--json"]));
    let (latent, packed) = (eval("out/final"), eval("out/export/hf-packed"));
    assert_eq!(latent["tokens"], packed["tokens"]);
    assert_eq!(latent["quantised"], true);
    let nll = |result: &Value| result["nll_per_token"].as_f64().unwrap();
    assert!((nll(&latent).exp() - latent["perplexity"].as_f64().unwrap()).abs() < 1e-9);
    // Norms and embedding are rounded to BF16 in the packed file.
    assert!((nll(&latent) - nll(&packed)).abs() < 0.05);
    assert!(nll(&latent) < (320f64).ln(), "better than guessing");
}

#[test]
fn the_tokenizer_command_writes_once_and_the_same_each_time() {
    let lab = Lab::new();
    fs_err::write(lab.path("text.txt"), "the cat sat on the mat and the rat sat too ".repeat(20))
        .unwrap();
    let train = |out: &str| {
        lab.tool(&["tokenizer", "--data", "text.txt", "--vocab-size", "280", "--out", out])
    };
    assert!(train("a.json").status.success() && train("b.json").status.success());
    let read = |name: &str| fs_err::read(lab.path(name)).unwrap();
    assert_eq!(read("a.json"), read("b.json"));
    assert_code(&train("a.json"), 7);
    let small = ["tokenizer", "--data", "text.txt", "--vocab-size", "9", "--out", "c.json"];
    assert!(!lab.tool(&small).status.success());
    assert!(!lab.path("c.json").exists());
}

#[test]
fn plan_shows_both_sides_of_the_phase_switch() {
    let lab = Lab::new();
    let output = lab.tool(&["plan", "--recipe", "recipe.toml"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(text.contains("15  main") && text.contains("16  cooldown"), "{text}");
}

/// Logits that differ by less than this may change places: one 8-bit level at a near-tie.
const ONE_LEVEL: f32 = 5e-2;

#[test]
fn the_engine_says_what_the_training_forward_says() {
    let lab = Lab::new();
    lab.finish(
        &lab.path("out"),
        &["export.formats=[\"hf-packed\"]", "train.steps=60", "model.max_position_embeddings=256"],
    );
    let packed = lab.path("out/export/hf-packed");
    let engine = Model::load(&packed).unwrap();
    let device = Device::flex();
    let reference = LanguageModel::read(&StoredModel::open(&packed).unwrap(), &device).unwrap();
    let threads = ThreadPool::new(2).unwrap();
    let request = GenerateRequest {
        sampler: SamplerSettings::greedy(),
        stop_ids: Vec::new(),
        max_tokens: 200,
    };
    let mut ids = vec![engine.spec().bos_token_id.unwrap()];
    let mut cache = engine.new_cache();
    let each = |_| std::ops::ControlFlow::Continue(());
    let generated = generate(&engine, &mut cache, &ids, &request, &threads, each).unwrap().tokens;
    assert_eq!(generated.len(), 200);
    ids.extend(&generated);
    let logits = all_logits(&reference, &ids, &device);
    for (place, (&id, logits)) in
        generated.iter().zip(logits.chunks(engine.spec().vocab_size)).enumerate()
    {
        let best = logits.iter().copied().fold(f32::MIN, f32::max);
        let chosen = logits[id as usize];
        assert!(best - chosen <= ONE_LEVEL, "token {place}: {chosen} is not the best, {best}");
    }
}

/// `[T, V]`
fn all_logits(model: &LanguageModel, ids: &[u32], device: &Device) -> Vec<f32> {
    let time = ids.len();
    let data = TensorData::new(ids.iter().map(|&id| id as i32).collect(), [1, time]);
    let tokens: Tensor<2, Int> = Tensor::from_data(data, device);
    let hidden = model.forward(tokens, &SegmentStarts::whole_rows(1, time));
    token_logits(hidden.flatten(0, 1), model.head()).into_data().try_to_vec().unwrap()
}

#[test]
fn inspect_data_marks_what_is_trained_and_counts_what_packing_did() {
    let lab = Lab::new();
    lab.finish(&lab.path("base"), &["train.steps=2", "optimizer.warmup_steps=0", "eval.every=0"]);
    let row =
        r#"{"messages":[{"role":"user","content":"Who?"},{"role":"assistant","content":"Me."}]}"#;
    fs_err::write(lab.path("chat.jsonl"), format!("{row}\n").repeat(3)).unwrap();
    fs_err::write(
        lab.path("chat.toml"),
        "stage = \"sft\"\n[model]\ninit = \"base/final\"\n[data]\ntrain = [\"chat.jsonl\"]\n\
         seq_len = 64\ncache = \"cache\"\n[train]\nsteps = 2\nbatch = 1\n",
    )
    .unwrap();
    let text = program(&["inspect", "data", "--recipe", &lab.path("chat.toml").to_string_lossy()]);
    let answer = text.lines().find(|line| line.contains("[[")).unwrap();
    let trained = answer.split_once("[[").unwrap().1.split_once("]]").unwrap().0;
    assert_eq!(trained.replace('|', "").replace("<eot_id>", ""), " Me.", "{answer}");
    assert!(answer.starts_with("  <|begin_of_text|>|"), "{answer}");
    for words in ["documents in", "% filled", "lengths in tokens"] {
        assert!(text.contains(words), "{words} in {text}");
    }
}

#[test]
fn inspect_model_reads_checkpoints_and_packed_folders() {
    let lab = Lab::new();
    let out = lab.path("out");
    let words = ["train.steps=2", "optimizer.warmup_steps=0", "export.formats=[\"hf-packed\"]"];
    lab.finish(&out, &words);
    for (folder, form) in [("final", "floats"), ("export/hf-packed", "packed ternary")] {
        let text = program(&["inspect", "model", &out.join(folder).to_string_lossy()]);
        assert!(text.contains(form) && text.contains("hidden_size"), "{text}");
        let line = text.lines().find(|line| line.contains("layers.0.mlp.down_proj")).unwrap();
        assert!(line.contains("-1 ") && line.contains("scale "), "{line}");
    }
}

#[test]
fn plan_tells_memory_and_time() {
    let lab = Lab::new();
    let recipe = lab.path("recipe.toml").to_string_lossy().into_owned();
    // All of stdout is the one line.
    let line: serde_json::Value =
        serde_json::from_str(&program(&["plan", "--json", "--recipe", &recipe])).unwrap();
    let text = program(&["plan", "--recipe", &recipe]);
    let parts = line["memory"].as_object().unwrap().values().map(|part| part.as_u64().unwrap());
    assert_eq!(parts.sum::<u64>(), line["memory_bytes"].as_u64().unwrap());
    for words in ["time: about", "learning rate over the run", "activations"] {
        assert!(text.contains(words), "{words} in {text}");
    }
}

/// What the program prints on stdout.
fn program(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_bitnet-train")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
