//! Adapters written and read back, every mistake in one, and merged models in every stored form.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::merge::merge_rows;
use super::*;
use crate::convert::gguf::{GgufForm, write_gguf};
use crate::convert::hf::{write_master, write_packed, write_packed_form};
use crate::convert::no_progress;
use crate::gguf::Metadata;
use crate::matrix::Matrix;
use crate::source::FromValues;
use crate::writer::{TensorData, write_tensors};
use crate::{StoredModel, TensorSource, WeightForm, model_hash};

fn spec() -> ModelSpec {
    toml::from_str(
        "hidden_size = 256\nintermediate_size = 512\nnum_hidden_layers = 2\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 20",
    )
    .unwrap()
}

/// Values between -0.02 and 0.02 that depend on a name.
fn values(name: &str, count: usize) -> Vec<f32> {
    let mut x = name.bytes().fold(1u32, |x, byte| x.wrapping_mul(31) + u32::from(byte));
    let mut draw = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((x >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.04
    };
    (0..count).map(|_| draw()).collect()
}

fn master(dir: &Path, spec: &ModelSpec) -> StoredModel {
    let source =
        FromValues::new(spec, |entry: &TensorEntry| Ok(values(&entry.name, entry.elements())));
    write_master(dir, &source, &mut no_progress).unwrap();
    StoredModel::open(dir).unwrap()
}

fn description(kind: AdapterKind) -> AdapterDescription {
    let base_hash = Some("5e".repeat(32));
    AdapterDescription { kind, rank: 3, alpha: 6.0, base_path: "base".to_owned(), base_hash }
}

fn factor_values(entry: &TensorEntry, factor: LowRankFactor, rank: usize) -> Vec<f32> {
    let count = factor.shape(entry, rank).iter().product();
    values(&factor.tensor_name(entry), count)
}

fn targets(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn written(description: &AdapterDescription, words: &[&str], dtype: DType) -> tempfile::TempDir {
    let (dir, spec) = (tempfile::tempdir().unwrap(), spec());
    let adapted = matching_entries(&spec, &targets(words)).unwrap();
    let of = |entry: &TensorEntry, factor| Ok(factor_values(entry, factor, description.rank));
    write_adapter(dir.path(), description, &spec, &adapted, dtype, of).unwrap();
    dir
}

#[test]
fn what_was_written_is_read() {
    for kind in [AdapterKind::Latent, AdapterKind::Side] {
        let description = description(kind);
        let dir = written(&description, &["q_proj", "down_proj"], DType::F32);
        let adapter = Adapter::open(dir.path(), &spec()).unwrap();
        assert_eq!(adapter.description(), &description);
        assert_eq!(adapter.description().scale(), 2.0);
        let names: Vec<_> = adapter.entries(&spec()).into_iter().map(|entry| entry.name).collect();
        let expected = [
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.layers.1.self_attn.q_proj.weight",
            "model.layers.1.mlp.down_proj.weight",
        ];
        assert_eq!(names, expected);
        for entry in tensor_table(&spec()) {
            let Some(found) = adapter.of(&entry) else { continue };
            assert_eq!(found.a, factor_values(&entry, LowRankFactor::A, 3));
            assert_eq!(found.b, factor_values(&entry, LowRankFactor::B, 3));
            assert_eq!(found.dtype, DType::F32);
        }
        assert_eq!(adapter.parameters(), 2 * 3 * (256 + 256 + 512 + 256));
    }
}

#[test]
fn the_layout_is_frozen() {
    let dir = written(&description(AdapterKind::Latent), &["q_proj", "down_proj"], DType::Bf16);
    let config = fs_err::read_to_string(dir.path().join(ADAPTER_CONFIG_FILE)).unwrap();
    let expected = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 3,
        "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": ["q_proj", "down_proj"],
        "bias": "none", "fan_in_fan_out": false, "inference_mode": true, "use_rslora": false,
        "use_dora": false,
    });
    assert_eq!(serde_json::from_str::<Value>(&config).unwrap(), expected);
    let file = TensorFile::open(&dir.path().join(ADAPTER_MODEL_FILE)).unwrap();
    let first = "base_model.model.model.layers.0.self_attn.q_proj";
    let info = |end: &str| file.info(&format!("{first}.{end}")).unwrap();
    assert_eq!(info("lora_A.weight").shape, [3, 256]);
    assert_eq!(info("lora_B.weight").shape, [256, 3]);
    assert_eq!(info("lora_B.weight").dtype, DType::Bf16);
    assert_eq!(file.names().len(), 8);
    let facts = [("bitnet.kind", "latent"), ("bitnet.version", env!("CARGO_PKG_VERSION"))];
    for (key, value) in facts {
        assert_eq!(file.fact(key), Some(value));
    }
    assert_eq!(file.fact("bitnet.base_blake3"), Some("5e".repeat(32).as_str()));
}

#[test]
fn equal_adapters_are_equal_bytes() {
    let [one, two] = [(); 2].map(|()| {
        let dir = written(&description(AdapterKind::Side), &["k_proj"], DType::F32);
        fs_err::read(dir.path().join(ADAPTER_MODEL_FILE)).unwrap()
    });
    assert!(one == two);
}

#[test]
fn a_target_is_a_name_or_the_path_of_one_module() {
    let names = |words: &[&str]| {
        let found = matching_entries(&spec(), &targets(words));
        found.map(|all| all.into_iter().map(|entry| entry.name).collect::<Vec<_>>())
    };
    assert_eq!(names(&["layers.1.mlp.up_proj"]).unwrap(), ["model.layers.1.mlp.up_proj.weight"]);
    assert_eq!(names(&["mlp.up_proj", "up_proj"]).unwrap().len(), 2);
    let all = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
    assert_eq!(names(&[]).unwrap_err(), format!("is empty; expected some of {all}"));
    // Parts of names, the embedding and words for all are no targets.
    for word in ["proj", "_proj", "embed_tokens", "lm_head", "all-linear", "", "model.layers.2"] {
        let error = names(&["q_proj", word]).unwrap_err();
        assert_eq!(error, format!("{word:?} matches no matrix of a block; expected {all}"));
    }
    // What is written for some layers matches these alone.
    let dir = written(&description(AdapterKind::Side), &["layers.1.mlp.up_proj"], DType::F32);
    let adapter = Adapter::open(dir.path(), &spec()).unwrap();
    assert_eq!(adapter.entries(&spec()).len(), 1);
}

/// The error of an adapter whose config has `key` set to `value`; a null removes it.
fn refused_with(key: &str, value: Value) -> String {
    let dir = written(&description(AdapterKind::Side), &["q_proj"], DType::F32);
    set(dir.path(), key, value);
    Adapter::open(dir.path(), &spec()).map(drop).unwrap_err().to_string()
}

fn set(dir: &Path, key: &str, value: Value) {
    let path = dir.join(ADAPTER_CONFIG_FILE);
    let mut config: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs_err::write(path, config.to_string()).unwrap();
}

#[test]
fn settings_that_would_change_the_arithmetic_are_refused_by_name() {
    for (key, value, said) in [
        ("peft_type", json!("IA3"), "is \"IA3\"; expected \"LORA\""),
        ("r", json!(0), "is 0; expected a whole number from 1"),
        ("r", json!(2.5), "is 2.5; expected a whole number from 1"),
        ("r", json!(null), "is missing; expected a whole number from 1"),
        ("lora_alpha", json!("big"), "is \"big\"; expected a number"),
        ("lora_alpha", json!(1e300), "is 1e+300; expected a number"),
        ("bias", json!("all"), "is \"all\", which is not followed; expected \"none\""),
        ("use_dora", json!(true), "is true, which is not followed; expected false"),
        ("rank_pattern", json!({"q_proj": 4}), "which is not followed; expected {}"),
        ("modules_to_save", json!(["lm_head"]), "which is not followed; expected []"),
        ("layers_to_transform", json!([1]), "is [1], which is not followed; expected null"),
        ("init_lora_weights", json!("pissa_niter_4"), "which changes the model's weights"),
        ("target_modules", json!(7), "is 7; expected a list of names"),
        ("target_modules", json!([7]), "is [7]; expected a list of names"),
        ("target_modules", json!([]), "is empty; expected some of q_proj"),
        ("target_modules", json!(["wq"]), "\"wq\" matches no matrix of a block"),
    ] {
        let error = refused_with(key, value);
        assert!(error.contains(&format!("{ADAPTER_CONFIG_FILE} [{key}]: ")), "{error}");
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn another_rank_than_the_config_says_is_refused_by_tensor() {
    let error = refused_with("r", json!(4));
    let what = "[base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight]: has rank 3; \
                adapter_config.json says r = 4";
    assert!(error.ends_with(what), "{error}");
}

#[test]
fn a_matrix_without_its_factors_and_factors_without_their_matrix_are_refused() {
    let error = refused_with("target_modules", json!(["q_proj", "v_proj"]));
    assert!(error.ends_with("v_proj.lora_A.weight]: is missing"), "{error}");
    let error = refused_with("target_modules", json!(["layers.0.self_attn.q_proj"]));
    let what = "[base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight]: belongs to no \
                matrix that target_modules names";
    assert!(error.ends_with(what), "{error}");
}

/// The error of an adapter of `q_proj` in two layers whose tensors are these.
fn refused_tensors(
    change: impl Fn(&str, Vec<usize>, Vec<f32>) -> Option<(Vec<usize>, Vec<f32>)>,
) -> String {
    let dir = written(&description(AdapterKind::Side), &["q_proj"], DType::F32);
    let mut tensors = Vec::new();
    for entry in matching_entries(&spec(), &targets(&["q_proj"])).unwrap() {
        for factor in LowRankFactor::BOTH {
            let (name, shape) = (factor.tensor_name(&entry), factor.shape(&entry, 3).to_vec());
            if let Some((shape, values)) = change(&name, shape, factor_values(&entry, factor, 3)) {
                tensors.push((name, TensorData::f32_owned(&shape, &values)));
            }
        }
    }
    write_tensors(&dir.path().join(ADAPTER_MODEL_FILE), tensors).unwrap();
    Adapter::open(dir.path(), &spec()).map(drop).unwrap_err().to_string()
}

#[test]
fn factors_that_are_missing_misshapen_or_not_finite_are_refused_by_name() {
    let last = "layers.1.self_attn.q_proj.lora_B.weight";
    let error =
        refused_tensors(|name, shape, values| (!name.ends_with(last)).then_some((shape, values)));
    assert!(error.ends_with(&format!("{last}]: is missing")), "{error}");
    let error = refused_tensors(|name, shape, values| {
        Some(if name.ends_with(last) {
            (vec![256 - 1, 3], values[3..].to_vec())
        } else {
            (shape, values)
        })
    });
    assert!(error.ends_with(&format!("{last}]: has shape [255, 3]; expected [256, 3]")), "{error}");
    let error = refused_tensors(|name, shape, mut values| {
        values[7] = if name.ends_with(last) { f32::NAN } else { 0.0 };
        Some((shape, values))
    });
    assert!(error.ends_with(&format!("{last}]: holds NaN at index 7; expected finite")), "{error}");
}

/// An adapter whose file says these facts of itself.
fn with_facts(facts: &[(&str, &str)]) -> Result<Adapter, FormatError> {
    let dir = written(&description(AdapterKind::Side), &["k_proj"], DType::F32);
    let adapted = matching_entries(&spec(), &targets(&["k_proj"])).unwrap();
    let all = || adapted.iter().flat_map(|entry| LowRankFactor::BOTH.map(|factor| (entry, factor)));
    let plan = all().map(|(entry, factor)| {
        crate::writer::TensorPlan::new(
            factor.tensor_name(entry),
            DType::F32,
            &factor.shape(entry, 3),
        )
    });
    let path = dir.path().join(ADAPTER_MODEL_FILE);
    let mut writer =
        crate::writer::TensorWriter::create_with(&path, plan.collect(), facts).unwrap();
    for (entry, factor) in all() {
        writer.write_floats(&factor.tensor_name(entry), &factor_values(entry, factor, 3)).unwrap();
    }
    writer.finish().unwrap();
    Adapter::open(dir.path(), &spec())
}

#[test]
fn an_adapter_of_pefts_own_is_a_side_adapter_of_any_model() {
    let adapter = with_facts(&[]).unwrap();
    assert_eq!(adapter.description().kind, AdapterKind::Side);
    assert!(adapter.may_be_of("anything"));
}

#[test]
fn facts_that_mean_nothing_are_refused() {
    let hash = "0".repeat(64);
    for (facts, said) in [
        (
            vec![("bitnet.kind", "both")],
            "[bitnet.kind]: is \"both\"; expected \"latent\" or \"side\"",
        ),
        (vec![("bitnet.kind", "latent")], "[bitnet.base_blake3]: is missing; expected the hash"),
        (vec![("bitnet.base_blake3", "12")], "[bitnet.base_blake3]: is no BLAKE3 hash"),
    ] {
        let error = with_facts(&facts).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let kind = with_facts(&[("bitnet.kind", "latent"), ("bitnet.base_blake3", &hash)]).unwrap();
    assert_eq!(kind.description().kind, AdapterKind::Latent);
}

#[test]
fn a_folder_without_an_adapter_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let said = || Adapter::open(dir.path(), &spec()).unwrap_err().to_string();
    assert!(said().ends_with("got no adapter_config.json"), "{}", said());
    fs_err::write(dir.path().join(ADAPTER_CONFIG_FILE), "{}").unwrap();
    assert!(said().ends_with("got no adapter_model.safetensors"), "{}", said());
    fs_err::write(dir.path().join("adapter_model.bin"), "").unwrap();
    assert!(said().contains("write safetensors with peft"), "{}", said());
    let absent = Adapter::open(&dir.path().join("absent"), &spec()).unwrap_err().to_string();
    assert!(absent.contains("absent: no adapter"), "{absent}");
}

#[test]
fn forms_that_peft_writes_are_read_with_their_meaning() {
    let dir = written(&description(AdapterKind::Side), &["q_proj", "v_proj"], DType::F32);
    set(dir.path(), "target_modules", json!(".*\\.(q|v)_proj"));
    set(dir.path(), "use_rslora", json!(true));
    set(dir.path(), "rank_pattern", json!({}));
    set(dir.path(), "modules_to_save", json!(null));
    set(dir.path(), "init_lora_weights", json!("gaussian"));
    let adapter = Adapter::open(dir.path(), &spec()).unwrap();
    assert_eq!(adapter.entries(&spec()).len(), 4);
    assert!((adapter.description().scale() - 6.0 / 3.0f32.sqrt()).abs() < 1e-6);
}

/// The definition, one value at a time.
fn merged_value(w0: f32, b: &[f32], column: impl Iterator<Item = f32>, scale: f32) -> f32 {
    let sum = b.iter().zip(column).fold(0.0f32, |sum, (b, a)| sum + b * a);
    w0 + scale * sum
}

proptest! {
    #[test]
    fn merging_is_the_definition_to_the_bit(
        rows in 1usize..11, width in 1usize..100, rank in 1usize..20, scale in 0.01f32..4.0,
        seed in any::<u32>(),
    ) {
        let draw = |word: &str, count| values(&format!("{word}{seed}"), count);
        let w0 = draw("w", rows * width);
        let (b, a) = (draw("b", rows * rank), draw("a", rank * width));
        let mut merged = w0.clone();
        merge_rows(&mut merged, &b, &a, rank, scale);
        for (i, b) in b.chunks(rank).enumerate() {
            for j in 0..width {
                let column = a.iter().skip(j).step_by(width).copied();
                let expected = merged_value(w0[i * width + j], b, column, scale);
                prop_assert_eq!(merged[i * width + j].to_bits(), expected.to_bits());
            }
        }
        let mut first = w0[..width].to_vec();
        merge_rows(&mut first, &b[..rank], &a, rank, scale);
        prop_assert_eq!(first, &merged[..width]);
    }
}

/// A master, its hash, and an adapter of it in folders of their own.
struct Pair {
    base_dir: tempfile::TempDir,
    base: StoredModel,
    hash: String,
    adapter: Adapter,
}

fn pair(kind: AdapterKind, words: &[&str]) -> Pair {
    let base_dir = tempfile::tempdir().unwrap();
    let base = master(base_dir.path(), &spec());
    let hash = model_hash(base_dir.path(), &base).unwrap();
    let description = AdapterDescription {
        base_hash: Some(hash.clone()),
        // Large enough to move codes: products of two values of 0.02 are small.
        alpha: 60.0,
        ..description(kind)
    };
    let dir = written(&description, words, DType::F32);
    let adapter = Adapter::open(dir.path(), &spec()).unwrap();
    Pair { base_dir, base, hash, adapter }
}

impl Pair {
    fn merged(&self) -> Result<MergedModel<'_>, FormatError> {
        MergedModel::new(&self.base, self.base_dir.path(), &self.hash, &self.adapter)
    }
}

#[test]
fn a_merged_model_is_what_the_definition_says_and_the_rest_is_the_base() {
    let pair = pair(AdapterKind::Latent, &["k_proj", "down_proj"]);
    let merged = pair.merged().unwrap();
    for entry in tensor_table(&spec()) {
        let (base, found) = (pair.base.floats(&entry).unwrap(), merged.floats(&entry).unwrap());
        let Some(factors) = pair.adapter.of(&entry) else {
            assert_eq!(base, found, "{}", entry.name);
            continue;
        };
        let width = entry.shape[1];
        for (i, (row, base)) in found.chunks(width).zip(base.chunks(width)).enumerate() {
            for j in [0, 31, width - 1] {
                let column = factors.a.iter().skip(j).step_by(width).copied();
                let expected = merged_value(base[j], &factors.b[3 * i..][..3], column, 20.0);
                assert_eq!(row[j], expected, "{}", entry.name);
            }
        }
        let some = merged.rows(&entry, 5..9).unwrap();
        assert_eq!(some, found[5 * width..9 * width]);
        let codes = |values| Matrix::from_floats(values).quantised().0;
        assert_ne!(codes(base), codes(found), "the adapter moves codes");
    }
}

#[test]
fn a_merged_model_is_written_in_every_form_with_its_own_codes() {
    let pair = pair(AdapterKind::Latent, &["q_proj", "gate_proj"]);
    let merged = pair.merged().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut forms = Vec::new();
    for name in ["packed", "master"] {
        let path = dir.path().join(name);
        fs_err::create_dir(&path).unwrap();
        let form = WeightForm::PackedMultiplying;
        let written = match name {
            "packed" => write_packed_form(&path, &merged, form, &mut no_progress),
            _ => write_master(&path, &merged, &mut no_progress),
        };
        assert!(written.unwrap().lost.is_empty());
        forms.push(path);
    }
    for ternary in [DType::I2S, DType::Tq1_0, DType::Tq2_0] {
        let path = dir.path().join(ternary.name());
        let (embedding, name, tokenizer) = (DType::F16, "x".to_owned(), Metadata::default());
        let form = GgufForm { matrices: ternary, embedding, name, tokenizer };
        write_gguf(&path, &merged, &form, &mut no_progress).unwrap();
        forms.push(path);
    }
    for path in forms {
        let written = StoredModel::open(&path).unwrap();
        for entry in tensor_table(&spec()).iter().filter(|entry| entry.is_ternary(&spec())) {
            let (codes, _) = merged.matrix(entry).unwrap().quantised();
            let found = written.matrix(entry).unwrap().quantised().0;
            assert!(codes == found, "{}: {}", path.display(), entry.name);
        }
    }
}

#[test]
fn a_b_of_zeros_changes_nothing() {
    let base_dir = tempfile::tempdir().unwrap();
    let base = master(base_dir.path(), &spec());
    let hash = model_hash(base_dir.path(), &base).unwrap();
    let description =
        AdapterDescription { base_hash: Some(hash.clone()), ..description(AdapterKind::Latent) };
    let dir = tempfile::tempdir().unwrap();
    let adapted = matching_entries(&spec(), &targets(&["o_proj"])).unwrap();
    let of = |entry: &TensorEntry, factor: LowRankFactor| {
        let values = factor_values(entry, factor, 3);
        Ok(if factor == LowRankFactor::B { vec![0.0; values.len()] } else { values })
    };
    write_adapter(dir.path(), &description, &spec(), &adapted, DType::F32, of).unwrap();
    let adapter = Adapter::open(dir.path(), &spec()).unwrap();
    let merged = MergedModel::new(&base, base_dir.path(), &hash, &adapter).unwrap();
    for entry in &adapted {
        assert_eq!(merged.floats(entry).unwrap(), base.floats(entry).unwrap());
    }
}

#[test]
fn a_side_adapter_another_model_and_packed_codes_are_not_merged() {
    let side = pair(AdapterKind::Side, &["k_proj"]);
    let error = side.merged().unwrap_err().to_string();
    assert!(error.contains("is a side adapter"), "{error}");

    let latent = pair(AdapterKind::Latent, &["k_proj"]);
    let path = latent.base_dir.path();
    let other = MergedModel::new(&latent.base, path, &"0".repeat(64), &latent.adapter);
    let error = other.unwrap_err().to_string();
    assert!(error.contains("[bitnet.base_blake3]: was trained on the model base"), "{error}");

    let packed_dir = tempfile::tempdir().unwrap();
    write_packed(packed_dir.path(), &spec(), |entry| latent.base.floats(entry)).unwrap();
    let packed = StoredModel::open(packed_dir.path()).unwrap();
    let hash = model_hash(packed_dir.path(), &packed).unwrap();
    let error = MergedModel::new(&packed, packed_dir.path(), &hash, &latent.adapter);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("holds packed codes without the latent weights"), "{error}");
    assert!(error.contains("kind = \"side\""), "{error}");
}

#[test]
fn the_hash_of_a_model_is_that_of_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let base = master(dir.path(), &spec());
    let bytes =
        ["config.json", "model.safetensors"].map(|name| fs_err::read(dir.path().join(name)));
    let bytes: Vec<u8> = bytes.into_iter().flat_map(Result::unwrap).collect();
    let expected = blake3::hash(&bytes).to_hex().to_string();
    assert_eq!(model_hash(dir.path(), &base).unwrap(), expected);
    let path = dir.path().join("x.gguf");
    let (embedding, name, tokenizer) = (DType::F16, "x".to_owned(), Metadata::default());
    let form = GgufForm { matrices: DType::I2S, embedding, name, tokenizer };
    write_gguf(&path, &base, &form, &mut no_progress).unwrap();
    let expected = blake3::hash(&fs_err::read(&path).unwrap()).to_hex().to_string();
    let gguf = StoredModel::open(&path).unwrap();
    assert_eq!(model_hash(&path, &gguf).unwrap(), expected);
}
