//! `--adapter` of the program: every command that loads a model takes it, and bad ones are named.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bitnet_format::adapter::{
    Adapter, AdapterDescription, AdapterKind, LowRankFactor, MergedModel, matching_entries,
    write_adapter,
};
use bitnet_format::convert::hf::{write_master, write_packed};
use bitnet_format::convert::no_progress;
use bitnet_format::folder::TOKENIZER_FILE;
use bitnet_format::source::FromValues;
use bitnet_format::{DType, ModelSpec, StoredModel, TensorEntry, TensorSource, model_hash};
use bitnet_text::train_bpe;
use serde_json::Value;
use tempfile::TempDir;

const CONFIG: &str = "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\n\
    num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 300\n\
    max_position_embeddings = 64\n";

/// A master and its packed form with tokenizers, and adapters of the first.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let spec: ModelSpec = toml::from_str(CONFIG).unwrap();
        for name in ["master", "packed", "latent", "side", "own"] {
            fs_err::create_dir(place.path(name)).unwrap();
        }
        let source = FromValues::new(&spec, |entry: &TensorEntry| Ok(latents(entry)));
        write_master(&place.path("master"), &source, &mut no_progress).unwrap();
        let master = StoredModel::open(&place.path("master")).unwrap();
        write_packed(&place.path("packed"), &spec, |entry| master.floats(entry)).unwrap();
        let texts = ["the cat sat on the mat", "the dog sat on the log, and sang"];
        let json = train_bpe(texts.into_iter().map(str::to_owned), 290).unwrap();
        for model in ["master", "packed"] {
            fs_err::write(place.path(model).join(TOKENIZER_FILE), &json).unwrap();
        }
        let hash = Some(model_hash(&place.path("master"), &master).unwrap());
        place.adapter("latent", AdapterKind::Latent, hash.clone());
        place.adapter("side", AdapterKind::Side, hash);
        place.adapter("own", AdapterKind::Side, None);
        fs_err::write(place.path("ids"), "[1, 2, 3, 200, 7]\n[9, 9, 10]\n").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn adapter(&self, name: &str, kind: AdapterKind, base_hash: Option<String>) {
        let spec: ModelSpec = toml::from_str(CONFIG).unwrap();
        let base_path = "master".to_owned();
        let description = AdapterDescription { kind, rank: 3, alpha: 6.0, base_path, base_hash };
        let targets = ["q_proj", "o_proj", "up_proj", "down_proj"].map(str::to_owned);
        let entries = matching_entries(&spec, &targets).unwrap();
        let values = |entry: &TensorEntry, factor: LowRankFactor| {
            let count = factor.shape(entry, 3).iter().product();
            Ok((0..count).map(|i: usize| (i * 29 % 64) as f32 / 128.0 - 0.25).collect())
        };
        let dir = self.path(name);
        write_adapter(&dir, &description, &spec, &entries, DType::Bf16, values).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
        command.current_dir(self.0.path()).args(arguments).output().unwrap()
    }

    fn scores(&self, model: &str, extra: &[&str]) -> (String, String) {
        let output = self.run(&[&["score", model, "--ids", "ids", "--json"], extra].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        (String::from_utf8(output.stdout).unwrap(), said)
    }
}

fn latents(entry: &TensorEntry) -> Vec<f32> {
    let mut x = entry.name.bytes().fold(1u32, |x, byte| x.wrapping_mul(31) + u32::from(byte));
    let mut draw = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..entry.elements()).map(|_| draw()).collect()
}

#[test]
fn a_side_adapter_gives_the_same_on_every_form_of_its_model() {
    let place = Place::new();
    let (with, said) = place.scores("master", &["--adapter", "side"]);
    assert_eq!(said, "");
    assert_ne!(with, place.scores("master", &[]).0);
    let (packed, said) = place.scores("packed", &["--adapter", "side"]);
    assert_eq!(packed, with);
    let warning = "warning: side: was trained on other files (master) than packed;";
    assert!(said.starts_with(warning), "{said}");
    let (own, said) = place.scores("packed", &["--adapter", "own"]);
    assert_eq!(
        (own, said),
        (with, String::new()),
        "one of peft's own does not say where it belongs"
    );
}

#[test]
fn a_latent_adapter_is_merged_into_a_model_with_latents() {
    let place = Place::new();
    let (with, _) = place.scores("master", &["--adapter", "latent"]);
    let path = place.path("master");
    let base = StoredModel::open(&path).unwrap();
    let adapter = Adapter::open(&place.path("latent"), base.spec()).unwrap();
    let hash = model_hash(&path, &base).unwrap();
    let merged = MergedModel::new(&base, &path, &hash, &adapter).unwrap();
    fs_err::create_dir(place.path("merged")).unwrap();
    write_packed(&place.path("merged"), base.spec(), |entry| merged.floats(entry)).unwrap();
    assert_eq!(place.scores("merged", &[]).0, with);
    assert_ne!(place.scores("master", &[]).0, with);
}

#[test]
fn every_command_that_runs_a_model_takes_an_adapter() {
    let place = Place::new();
    let generate = ["generate", "packed", "--prompt", "the cat", "--max-tokens", "12"];
    let text = |arguments: &[&str]| {
        let output = place.run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let plain = text(&generate);
    assert_ne!(text(&[&generate[..], &["--adapter", "own"]].concat()), plain);
    text(&["chat", "packed", "--adapter", "own", "--max-tokens", "2"]);
    let bench = ["bench", "packed", "--prompt-tokens", "8", "--generate-tokens", "4"];
    let bench = [&bench[..], &["--repeat", "1", "--json"]].concat();
    let figures = |extra: &[&str]| -> Value {
        serde_json::from_str(&text(&[&bench[..], extra].concat())).unwrap()
    };
    // q and o: 32 inputs and outputs; up: 32 to 48; down: 48 to 32.
    assert_eq!(figures(&["--adapter", "own"])["adapter_parameters"], 3 * (64 + 64 + 80 + 80));
    assert_eq!(figures(&[])["adapter_parameters"], 0);
    fs_err::write(place.path("shape.toml"), CONFIG).unwrap();
    let random = ["bench", "--config", "shape.toml", "--repeat", "1", "--prompt-tokens", "2"];
    text(&[&random[..], &["--generate-tokens", "2", "--adapter", "side"]].concat());
}

/// The message of a command that ends with bad input.
fn refused(place: &Place, model: &str, adapter: &str) -> String {
    let output = place.run(&["score", model, "--ids", "ids", "--adapter", adapter]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{message}");
    assert!(output.stdout.is_empty() && message.starts_with("error: "), "{message}");
    message
}

fn set(folder: &Path, key: &str, value: Value) {
    let path = folder.join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs_err::write(path, config.to_string()).unwrap();
}

#[test]
fn bad_adapters_are_bad_input_with_the_reason() {
    let place = Place::new();
    assert!(refused(&place, "packed", "latent").contains("holds packed codes without the latent"));
    assert!(refused(&place, "packed", "absent").contains("absent: no adapter; expected a folder"));
    assert!(refused(&place, "packed", "master").contains("master: no adapter; expected a folder"));
    set(&place.path("own"), "r", 4.into());
    let message = refused(&place, "packed", "own");
    assert!(message.contains("has rank 3; adapter_config.json says r = 4"), "{message}");
    set(&place.path("side"), "target_modules", serde_json::json!(["wq"]));
    let message = refused(&place, "packed", "side");
    assert!(message.contains("[target_modules]: \"wq\" matches no matrix of a block"), "{message}");
}

#[test]
fn an_adapter_of_another_shape_is_refused_by_tensor() {
    let place = Place::new();
    let wide: ModelSpec = toml::from_str(&CONFIG.replace("= 48", "= 64")).unwrap();
    fs_err::create_dir(place.path("wide")).unwrap();
    write_packed(&place.path("wide"), &wide, |entry| Ok(latents(entry))).unwrap();
    let message = refused(&place, "wide", "own");
    assert!(message.contains("mlp.up_proj.lora_B.weight]: has shape [48, 3]; expected [64, 3]"));
}
