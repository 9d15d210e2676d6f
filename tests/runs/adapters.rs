//! `export --adapter` by the real program: latent adapters are merged in every format, side adapters
//! written beside, and what belongs to another model is refused.

use std::path::Path;
use std::process::Output;

use bitnet_engine::{HeadPrecision, Model, ThreadPool, Workspace};
use bitnet_format::adapter::{
    Adapter, AdapterDescription, AdapterKind, LowRankFactor, MergedModel, matching_entries,
    write_adapter,
};
use bitnet_format::{DType, StoredModel, TensorEntry, model_hash};
use serde_json::Value;

use super::lab::{Lab, assert_code, stderr};

const SHAPE: &str = "hidden_size = 256\nintermediate_size = 256\nnum_hidden_layers = 2\n\
    num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 300\n\
    max_position_embeddings = 64\n";

fn master(lab: &Lab, name: &str, seed: &str) {
    fs_err::write(lab.path("shape.toml"), SHAPE).unwrap();
    let init = ["init", "--config", "shape.toml", "--seed", seed, "--out", name];
    let output = lab.tool(&init);
    assert!(output.status.success(), "{}", stderr(&output));
}

/// An adapter of rank 4 of the model `base`; two kinds of matrices.
fn adapter(lab: &Lab, base: &str, kind: AdapterKind, name: &str) {
    let (path, stored) = (lab.path(base), StoredModel::open(&lab.path(base)).unwrap());
    let base_hash = Some(model_hash(&path, &stored).unwrap());
    let base_path = base.to_owned();
    let description = AdapterDescription { kind, rank: 4, alpha: 8.0, base_path, base_hash };
    let targets = ["v_proj", "down_proj"].map(str::to_owned);
    let entries = matching_entries(stored.spec(), &targets).unwrap();
    let values = |entry: &TensorEntry, factor: LowRankFactor| {
        let count = factor.shape(entry, 4).iter().product();
        let step = if factor == LowRankFactor::A { 31 } else { 37 };
        Ok((0..count).map(|i: usize| (i * step % 101) as f32 / 1000.0 - 0.05).collect())
    };
    fs_err::create_dir(lab.path(name)).unwrap();
    let dtype = DType::F32;
    write_adapter(&lab.path(name), &description, stored.spec(), &entries, dtype, values).unwrap();
}

fn export(lab: &Lab, model: &str, adapter: &str, format: &str, out: &str) -> Output {
    let arguments = ["export", "--model", model, "--adapter", adapter, "--format", format];
    lab.tool(&[&arguments[..], &["--out", out, "--json"]].concat())
}

fn exported(lab: &Lab, model: &str, adapter: &str, format: &str, out: &str) -> Value {
    let output = export(lab, model, adapter, format, out);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn logits(model: &Model) -> Vec<f32> {
    let threads = ThreadPool::new(1).unwrap();
    let mut workspace = Workspace::new(&threads);
    model.forward_all(&mut workspace, &mut model.new_cache(), &[1, 200, 7, 44]).unwrap().to_vec()
}

fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The logits of the model at a path with a side adapter.
fn beside(model: &Path, adapter: &Path) -> Vec<f32> {
    let model = Model::load(model).unwrap();
    let adapter = Adapter::open(adapter, model.spec()).unwrap();
    logits(&model.with_adapter(&adapter).unwrap())
}

#[test]
fn a_latent_adapter_is_merged_into_every_format() {
    let lab = Lab::new();
    master(&lab, "master", "1");
    adapter(&lab, "master", AdapterKind::Latent, "latent");
    let path = lab.path("master");
    let base = StoredModel::open(&path).unwrap();
    let opened = Adapter::open(&lab.path("latent"), base.spec()).unwrap();
    let hash = model_hash(&path, &base).unwrap();
    let merged = MergedModel::new(&base, &path, &hash, &opened).unwrap();
    let expected = logits(&Model::from_stored(&merged, HeadPrecision::File).unwrap());
    let plain = logits(&Model::load(&path).unwrap());
    assert!(difference(&plain, &expected) > 0.05, "the adapter moves codes");
    for format in ["hf-bf16", "hf-packed", "gguf-i2_s", "gguf-tq1_0", "gguf-tq2_0"] {
        let result = exported(&lab, "master", "latent", format, format);
        let verified = &result["verification"];
        assert_eq!(verified["code_differences"], 0, "{format}: {result}");
        assert_eq!(result["adapter"]["kind"], "latent", "{format}: {result}");
        let found = logits(&Model::load(&lab.path(format)).unwrap());
        // Embeddings are rounded to F16, scales too in TQ1_0 and TQ2_0, and by latents in BF16.
        let largest = if format == "hf-packed" { 0.0 } else { 0.02 };
        assert!(difference(&found, &expected) <= largest, "{format}");
    }
}

#[test]
fn a_side_adapter_is_written_beside_and_bound_to_what_was_written() {
    let lab = Lab::new();
    master(&lab, "master", "1");
    adapter(&lab, "master", AdapterKind::Side, "side");
    let expected = beside(&lab.path("master"), &lab.path("side"));
    let plain = logits(&Model::load(&lab.path("master")).unwrap());
    assert!(difference(&plain, &expected) > 0.05, "the adapter does something");
    // The embedding of a GGUF file is rounded to F16.
    for (format, out, largest) in [("hf-packed", "packed", 0.0), ("gguf-i2_s", "m.gguf", 0.02)] {
        let result = exported(&lab, "master", "side", format, out);
        let name = format!("{}-adapter", out.trim_end_matches(".gguf"));
        assert_eq!(result["adapter"]["out"], name.as_str(), "{result}");
        assert_eq!(result["verification"]["code_differences"], 0, "{result}");
        let found = beside(&lab.path(out), &lab.path(&name));
        assert!(difference(&found, &expected) <= largest, "{format}");
        let written = StoredModel::open(&lab.path(out)).unwrap();
        let opened = Adapter::open(&lab.path(&name), written.spec()).unwrap();
        let hash = model_hash(&lab.path(out), &written).unwrap();
        assert_eq!(opened.description().base_hash, Some(hash));
        assert_eq!(opened.description().base_path, out);
        // From a packed form on, side adapters go everywhere too.
        let again = exported(&lab, out, &name, "gguf-tq2_0", &format!("again-{format}"));
        assert_eq!(again["adapter"]["rank"], 4);
    }
}

#[test]
fn nothing_is_written_over_an_adapter_or_what_is_none() {
    let lab = Lab::new();
    master(&lab, "master", "1");
    adapter(&lab, "master", AdapterKind::Side, "side");
    exported(&lab, "master", "side", "hf-packed", "packed");
    fs_err::remove_dir_all(lab.path("packed")).unwrap();
    let output = export(&lab, "master", "side", "hf-packed", "packed");
    assert_code(&output, 7);
    assert!(stderr(&output).contains("packed-adapter: already exists"), "{}", stderr(&output));
    assert!(!lab.path("packed").exists(), "nothing is written");
    fs_err::write(lab.path("packed-adapter/notes.txt"), "mine").unwrap();
    let force = ["export", "--model", "master", "--adapter", "side", "--format", "hf-packed"];
    let output = lab.tool(&[&force[..], &["--out", "packed", "--force"]].concat());
    assert_code(&output, 7);
    fs_err::remove_file(lab.path("packed-adapter/notes.txt")).unwrap();
    let output = lab.tool(&[&force[..], &["--out", "packed", "--force"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("packed-adapter: side adapter of rank 4, 7,168 parameters"), "{text}");
}

#[test]
fn an_adapter_that_does_not_belong_to_the_model_is_bad_input() {
    let lab = Lab::new();
    master(&lab, "master", "1");
    master(&lab, "other", "2");
    adapter(&lab, "master", AdapterKind::Latent, "latent");
    adapter(&lab, "master", AdapterKind::Side, "side");
    let packed = ["export", "--model", "master", "--format", "hf-packed", "--out", "packed"];
    assert!(lab.tool(&packed).status.success());
    for (model, adapter, said) in [
        ("other", "latent", "[bitnet.base_blake3]: was trained on the model master"),
        ("other", "side", "[bitnet.base_blake3]: was trained on the model master"),
        ("packed", "latent", "holds packed codes without the latent weights"),
        ("master", "absent", "absent: no adapter; expected a folder with adapter_config.json"),
        ("master", "other", "other: no adapter; expected a folder with adapter_config.json"),
        ("latent", "latent", "this is an adapter without its model"),
    ] {
        let output = export(&lab, model, adapter, "hf-packed", "out");
        assert_code(&output, 4);
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
        assert!(!lab.path("out").exists(), "nothing is written");
    }
}
