//! Folders: names, forms and what is refused.

use super::*;

#[test]
fn names_are_read_without_the_wrappers_of_torch() {
    for stored in ["module._orig_mod.model.norm.weight", "model._orig_mod.norm.weight"] {
        assert_eq!(plain_name(stored).as_deref(), Some("model.norm.weight"), "{stored}");
    }
    for stored in ["model.layers.0.self_attn.rotary_emb.inv_freq", "module.rotary_emb.inv_freq"] {
        assert_eq!(plain_name(stored), None, "{stored}");
    }
}

use crate::convert::hf::write_packed;
use crate::matrix::Matrix;
use crate::packed::PackedTernary;
use crate::writer::{TensorData, write_tensors};

fn spec(extra: &str) -> ModelSpec {
    toml::from_str(&format!(
        "hidden_size = 8\nnum_hidden_layers = 1\nnum_attention_heads = 2\n\
         num_key_value_heads = 1\nvocab_size = 10\n{extra}"
    ))
    .unwrap()
}

fn latents(entry: &TensorEntry) -> Result<Vec<f32>, FormatError> {
    Ok((0..entry.elements()).map(|i| (i % 7) as f32 - 3.0).collect())
}

#[test]
fn a_packed_folder_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec("intermediate_size = 12");
    write_packed(dir.path(), &spec, latents).unwrap();
    let folder = ModelFolder::open(dir.path()).unwrap();
    assert_eq!(folder.form(), WeightForm::PackedMultiplying);
    for entry in tensor_table(&spec) {
        let values = latents(&entry).unwrap();
        if entry.is_ternary(&spec) {
            let (packed, scale) = folder.ternary(&entry).unwrap();
            let shape = (entry.shape[0], entry.shape[1]);
            let expected = PackedTernary::from_latents(shape.0, shape.1, &values).unwrap();
            assert_eq!((packed, scale), expected);
        } else {
            assert_eq!(folder.floats(&entry).unwrap(), values);
        }
    }
}

#[test]
fn a_shape_that_cannot_be_packed_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = write_packed(dir.path(), &spec("intermediate_size = 10"), latents);
    let message = error.unwrap_err().to_string();
    assert!(
        message.ends_with(
            "[model.layers.0.mlp.gate_proj.weight]: has 10 rows; packing needs a multiple of 4"
        ),
        "{message}"
    );
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0);
    let dense = spec("intermediate_size = 12\nquantise = false");
    assert!(write_packed(dir.path(), &dense, latents).is_err());
}

/// A folder of float matrices: BF16 where `dtype` says so, else F32.
fn write_floats(dir: &Path, spec: &ModelSpec, dtype: &str, values: &[(String, Vec<f32>)]) {
    let shapes = tensor_table(spec).into_iter().map(|entry| entry.shape);
    let tensors = values.iter().zip(shapes).map(|((name, values), shape)| {
        let data = match dtype {
            "bfloat16" => TensorData::bf16(&shape, values),
            _ => TensorData::f32_owned(&shape, values),
        };
        (name.clone(), data)
    });
    write_tensors(&dir.join(MODEL_FILE), tensors).unwrap();
    let config = HfConfig { spec: spec.clone(), form: WeightForm::Latent };
    fs_err::write(dir.join(CONFIG_FILE), config.to_json(dtype)).unwrap();
}

/// Every tensor of a packed folder as the float values it stands for: codes · scale.
fn dequantised(folder: &ModelFolder) -> Vec<(String, Vec<f32>)> {
    let values = |entry: &TensorEntry| match folder.matrix(entry).unwrap() {
        Matrix::Latent(values) => values,
        ternary => {
            let (codes, scale) = ternary.quantised();
            codes.iter().map(|&code| f32::from(code) * scale.multiplier()).collect()
        }
    };
    let table = tensor_table(folder.spec());
    table.into_iter().map(|entry| (entry.name.clone(), values(&entry))).collect()
}

/// Opens a folder of f32 tensors, those of `spec` and one more, whose config says `config`.
fn opened(spec: &ModelSpec, config: &ModelSpec, more: Option<&str>) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let own = tensor_table(spec).into_iter().map(|entry| {
        let values = latents(&entry).unwrap();
        (entry.name, TensorData::f32_owned(&entry.shape, &values))
    });
    let more = more.map(|name| (name.to_owned(), TensorData::f32_owned(&[8], &[1.0; 8])));
    write_tensors(&dir.path().join(MODEL_FILE), own.chain(more)).unwrap();
    let config = HfConfig { spec: config.clone(), form: WeightForm::Latent };
    fs_err::write(dir.path().join(CONFIG_FILE), config.to_json("float32")).unwrap();
    ModelFolder::open(dir.path()).map(drop).map_err(|error| error.to_string())
}

#[test]
fn tensors_of_another_kind_of_model_are_refused_by_name() {
    let llama = spec("intermediate_size = 12\nsub_norms = false\nquantise = false");
    assert_eq!(opened(&llama, &llama, None), Ok(()));
    for (part, what) in [
        ("self_attn.q_proj.bias", "is a bias where the config has none"),
        ("self_attn.qkv_proj.weight", "expected q_proj, k_proj and v_proj apart"),
        ("mlp.gate_up_proj.weight", "expected gate_proj and up_proj apart"),
        ("self_attn.q_norm.weight", "is not a tensor of this model"),
    ] {
        let name = format!("model.layers.0.{part}");
        let error = opened(&llama, &llama, Some(&name)).unwrap_err();
        assert!(error.contains(&format!("[{name}]: ")) && error.contains(what), "{error}");
    }
    let qwen2 = ModelSpec { attention_bias: true, ..llama.clone() };
    let qwen3 = ModelSpec { qk_norm: true, ..llama.clone() };
    for (config, part) in [(qwen2, "q_proj.bias"), (qwen3, "q_norm.weight")] {
        assert_eq!(opened(&config, &config, None), Ok(()));
        let error = opened(&llama, &config, None).unwrap_err();
        let missing = format!("[model.layers.0.self_attn.{part}]: is missing");
        assert!(error.ends_with(&missing), "{error}");
    }
}

#[test]
fn packing_a_dequantised_folder_gives_the_same_bytes() {
    let [first, floats, second] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let spec = spec("intermediate_size = 12");
    write_packed(first.path(), &spec, latents).unwrap();
    let packed = ModelFolder::open(first.path()).unwrap();
    write_floats(floats.path(), &spec, "float32", &dequantised(&packed));
    let source = ModelFolder::open(floats.path()).unwrap();
    write_packed(second.path(), &spec, |entry| source.floats(entry)).unwrap();
    for file in [MODEL_FILE, CONFIG_FILE] {
        let read = |dir: &tempfile::TempDir| fs_err::read(dir.path().join(file)).unwrap();
        assert!(read(&first) == read(&second), "{file}");
    }
    for entry in tensor_table(&spec) {
        let [a, b] = [&packed, &source].map(|folder| folder.matrix(&entry).unwrap());
        assert_eq!(a, b, "{}", entry.name);
    }
}

#[test]
fn a_dequantised_folder_keeps_its_scale_through_bf16() {
    let [first, floats] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let spec = spec("intermediate_size = 12");
    write_packed(first.path(), &spec, latents).unwrap();
    let packed = ModelFolder::open(first.path()).unwrap();
    write_floats(floats.path(), &spec, "bfloat16", &dequantised(&packed));
    let source = ModelFolder::open(floats.path()).unwrap();
    for entry in tensor_table(&spec).iter().filter(|entry| entry.is_ternary(&spec)) {
        let (expected, exact) = packed.ternary(entry).unwrap();
        let rounded = half::bf16::from_f32(exact.multiplier()).to_f32();
        let scale = WeightScale::from_stored(rounded).unwrap();
        let codes = expected.codes();
        assert_eq!(source.matrix(entry).unwrap(), Matrix::Ternary { codes, scale });
    }
}

#[test]
fn latents_stay_latents() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec("intermediate_size = 10");
    let table = tensor_table(&spec);
    let values: Vec<_> =
        table.iter().map(|entry| (entry.name.clone(), latents(entry).unwrap())).collect();
    write_floats(dir.path(), &spec, "float32", &values);
    let folder = ModelFolder::open(dir.path()).unwrap();
    for (entry, (_, values)) in table.iter().zip(values) {
        assert_eq!(folder.matrix(entry).unwrap(), Matrix::Latent(values));
    }
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// Moves every tensor of a folder into one of two shards, by turns.
fn split(dir: &Path) {
    let file = TensorFile::open(&dir.join(MODEL_FILE)).unwrap();
    let mut weight_map = serde_json::Map::new();
    for (turn, shard) in SHARDS.into_iter().enumerate() {
        let names = file.names().into_iter().skip(turn).step_by(2);
        let tensors: Vec<_> = names.map(|name| (name.clone(), copy(&file, &name))).collect();
        for (name, _) in &tensors {
            weight_map.insert(name.clone(), shard.into());
        }
        write_tensors(&dir.join(shard), tensors).unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
    fs_err::write(dir.join(INDEX_FILE), index.to_string()).unwrap();
    fs_err::remove_file(dir.join(MODEL_FILE)).unwrap();
}

fn copy(file: &TensorFile, name: &str) -> TensorData<'static> {
    let info = file.info(name).unwrap();
    let shape = info.shape.as_slice();
    match info.dtype {
        DType::U8 => TensorData::u8(shape, file.raw(name, shape, DType::U8).unwrap()),
        DType::Bf16 => TensorData::bf16(shape, &file.floats(name, shape).unwrap()),
        _ => TensorData::f32_owned(shape, &file.floats(name, shape).unwrap()),
    }
}

#[test]
fn a_sharded_folder_is_the_same_model() {
    let [whole, sharded] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let spec = spec("intermediate_size = 12");
    for dir in [&whole, &sharded] {
        write_packed(dir.path(), &spec, latents).unwrap();
    }
    split(sharded.path());
    let [one, two] = [&whole, &sharded].map(|dir| ModelFolder::open(dir.path()).unwrap());
    for entry in tensor_table(&spec) {
        assert_eq!(one.matrix(&entry).unwrap(), two.matrix(&entry).unwrap());
    }
    assert_eq!(one.weight_files(), [whole.path().join(MODEL_FILE)]);
    let shard = |name: &str| sharded.path().join(name);
    assert_eq!(two.weight_files(), SHARDS.map(shard));
}

#[test]
fn a_whole_file_is_preferred_to_an_index() {
    let dir = tempfile::tempdir().unwrap();
    write_packed(dir.path(), &spec("intermediate_size = 12"), latents).unwrap();
    fs_err::write(dir.path().join(INDEX_FILE), "broken").unwrap();
    assert!(ModelFolder::open(dir.path()).is_ok());
    fs_err::remove_file(dir.path().join(MODEL_FILE)).unwrap();
    let broken = ModelFolder::open(dir.path()).unwrap_err().to_string();
    assert!(broken.contains(INDEX_FILE), "{broken}");
    fs_err::remove_file(dir.path().join(INDEX_FILE)).unwrap();
    let neither = ModelFolder::open(dir.path()).unwrap_err().to_string();
    assert!(neither.contains("no weights; expected model.safetensors or"), "{neither}");
}

#[test]
fn a_tensor_that_an_index_forgot_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write_packed(dir.path(), &spec("intermediate_size = 12"), latents).unwrap();
    split(dir.path());
    let index = dir.path().join(INDEX_FILE);
    fs_err::write(&index, r#"{"weight_map": {}}"#).unwrap();
    let error = ModelFolder::open(dir.path()).unwrap_err().to_string();
    let expected = "index.json [model.embed_tokens.weight]: is missing";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn a_missing_or_foreign_tensor_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let spec = spec("intermediate_size = 12");
    write_packed(dir.path(), &spec, latents).unwrap();
    let config = dir.path().join(CONFIG_FILE);
    let text = fs_err::read_to_string(&config).unwrap();
    let with = |layers: &str| text.replace("\"num_hidden_layers\": 1", layers);
    fs_err::write(&config, with("\"num_hidden_layers\": 2")).unwrap();
    let missing = ModelFolder::open(dir.path()).unwrap_err().to_string();
    assert!(missing.contains("[model.layers.1.input_layernorm.weight]: is missing"));
    fs_err::write(&config, text.replace("\"bitnet\",\n  \"hidden", "\"llama\",\n  \"hidden"))
        .unwrap();
    let foreign = ModelFolder::open(dir.path()).unwrap_err().to_string();
    assert!(foreign.ends_with("is not a tensor of this model"), "{foreign}");
}

#[test]
fn the_directory_of_a_run_is_answered_with_its_model() {
    let dir = tempfile::tempdir().unwrap();
    let put = |folder: &str| {
        fs_err::create_dir_all(dir.path().join(folder)).unwrap();
        fs_err::write(dir.path().join(folder).join(CONFIG_FILE), "{}").unwrap();
    };
    let found = || model_of_run(dir.path()).map(|at| at.strip_prefix(dir.path()).unwrap().into());
    assert_eq!(found(), None::<PathBuf>);
    for folder in ["1-a/step-000002", "1-a/step-000010", "1-a/final", "2-b/final"] {
        put(folder);
    }
    assert_eq!(found(), Some("2-b/final".into()));
    let error = ModelFolder::open(&dir.path().join("1-a")).unwrap_err().to_string();
    assert!(error.contains("is the directory of a run; its model is"), "{error}");
    put("2-b/export/hf-packed");
    assert_eq!(found(), Some("2-b/export/hf-packed".into()));
    fs_err::remove_dir_all(dir.path().join("1-a/final")).unwrap();
    let unfinished = model_of_run(&dir.path().join("1-a")).unwrap();
    assert!(unfinished.ends_with("step-000010"));
}
