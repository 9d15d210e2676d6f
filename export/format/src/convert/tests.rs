//! Every form written and read back, from every other.

mod groups;

use std::path::Path;

use super::gguf::{GgufForm, write_gguf};
use super::hf::{write_master, write_packed, write_packed_form};
use super::no_progress;
use crate::gguf::Metadata;
use crate::quant::WeightScale;
use crate::source::FromValues;
use crate::{
    DType, FormatError, ModelSpec, StoredModel, TensorEntry, TensorRole, TensorSource, WeightForm,
    tensor_table,
};

const SHAPES: [&str; 5] = [
    "eos_token_id = 3",
    "hidden_act = \"silu\"\ntie_word_embeddings = false",
    "hidden_act = \"silu\"\nsub_norms = false\nrope_theta = 1e4",
    "hidden_act = \"silu\"\nsub_norms = false\nattention_bias = true",
    "hidden_act = \"silu\"\nsub_norms = false\nqk_norm = true\nhead_dim = 128",
];

fn spec(extra: &str) -> ModelSpec {
    toml::from_str(&format!(
        "hidden_size = 256\nintermediate_size = 512\nnum_hidden_layers = 2\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 20\n{extra}"
    ))
    .unwrap()
}

/// Values that differ by tensor; one block of a matrix is all zeros.
fn values(entry: &TensorEntry) -> Result<Vec<f32>, FormatError> {
    let mut x = entry.name.bytes().fold(1u32, |x, byte| x.wrapping_mul(31) + u32::from(byte));
    let mut draw = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((x >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.04
    };
    let mut values: Vec<f32> = (0..entry.elements()).map(|_| draw()).collect();
    if entry.is_matrix() {
        values[..256].fill(1e-9);
    }
    Ok(values)
}

fn form(ternary: DType, embedding: DType) -> GgufForm {
    GgufForm {
        matrices: ternary,
        embedding,
        name: "test".to_owned(),
        tokenizer: Metadata::default(),
    }
}

fn gguf_of(dir: &Path, source: &dyn TensorSource, form: &GgufForm) -> StoredModel {
    let path = dir.join("x.gguf");
    write_gguf(&path, source, form, &mut no_progress).unwrap();
    StoredModel::open(&path).unwrap()
}

fn ternary_entries(spec: &ModelSpec) -> Vec<TensorEntry> {
    tensor_table(spec).into_iter().filter(|entry| entry.is_ternary(spec)).collect()
}

#[test]
fn gguf_keeps_every_code_and_its_scale() {
    for extra in SHAPES {
        let spec = spec(extra);
        let source = FromValues::new(&spec, values);
        for ternary in [DType::I2S, DType::Tq1_0, DType::Tq2_0] {
            let dir = tempfile::tempdir().unwrap();
            let model = gguf_of(dir.path(), &source, &form(ternary, DType::F16));
            assert_eq!(model.spec(), &spec);
            for entry in ternary_entries(&spec) {
                let (codes, scale) = source.matrix(&entry).unwrap().quantised();
                let (read, stored) = model.matrix(&entry).unwrap().quantised();
                assert!(codes == read, "{}", entry.name);
                let held = match ternary {
                    DType::I2S => scale.multiplier(),
                    _ => half::f16::from_f32(scale.multiplier()).to_f32(),
                };
                assert_eq!(Some(stored), WeightScale::from_stored(held), "{}", entry.name);
            }
        }
    }
}

#[test]
fn a_dense_model_goes_through_gguf_with_its_rows_in_order() {
    for extra in &SHAPES[2..] {
        let spec = spec(&format!("{extra}\nquantise = false"));
        let source = FromValues::new(&spec, values);
        for matrices in [DType::F32, DType::Bf16] {
            let dir = tempfile::tempdir().unwrap();
            let model = gguf_of(dir.path(), &source, &form(matrices, DType::F32));
            assert!(model.spec() == &spec && !model.is_packed());
            for entry in tensor_table(&spec) {
                let held = |&value: &f32| match entry.role {
                    TensorRole::Linear(_) if matrices == DType::Bf16 => {
                        half::bf16::from_f32(value).to_f32()
                    }
                    _ => value,
                };
                let ours: Vec<f32> = values(&entry).unwrap().iter().map(held).collect();
                assert!(model.floats(&entry).unwrap() == ours, "{} {extra}", entry.name);
                let (part, width) = (model.rows(&entry, 3..9).unwrap(), entry.row_length());
                assert!(part == ours[3 * width..9 * width], "rows of {}", entry.name);
            }
        }
    }
}

#[test]
fn the_factors_of_llama_3_are_read_with_our_keys_and_without() {
    let llama3 = |original: usize| {
        format!(
            "hidden_act = \"silu\"\nsub_norms = false\nmax_position_embeddings = 131072\n\
             rope_scaling = {{ rope_type = \"llama3\", factor = 32.0, low_freq_factor = 1.0, \
             high_freq_factor = 4.0, original_max_position_embeddings = {original} }}"
        )
    };
    let dir = tempfile::tempdir().unwrap();
    let open = |original: usize| {
        let spec = spec(&llama3(original));
        let source = FromValues::new(&spec, values);
        write_gguf(&dir.path().join("x"), &source, &form(DType::I2S, DType::F16), &mut no_progress)
            .unwrap();
        let mut bytes = fs_err::read(dir.path().join("x")).unwrap();
        let whole = StoredModel::from_gguf_bytes(Path::new("x"), bytes.clone()).unwrap();
        assert_eq!(whole.spec(), &spec);
        // The same file of a program that does not write our keys.
        while let Some(at) = bytes.windows(11).position(|part| part == b"rope.llama3") {
            bytes[at..at + 11].copy_from_slice(b"other.words");
        }
        StoredModel::from_gguf_bytes(Path::new("x"), bytes).map(|model| model.spec() == &spec)
    };
    assert!(open(8192).unwrap());
    let error = open(4000).unwrap_err().to_string();
    assert!(error.contains("[rope_freqs.weight]: holds factors of no scaling"), "{error}");
}

#[test]
fn an_embedding_is_held_as_well_as_its_type_can() {
    let spec = spec(SHAPES[1]);
    let source = FromValues::new(&spec, values);
    for (table, tolerance) in
        [(DType::F32, 0.0), (DType::F16, 1e-5), (DType::Q8_0, 1e-4), (DType::Q6K, 5e-4)]
    {
        let dir = tempfile::tempdir().unwrap();
        let model = gguf_of(dir.path(), &source, &form(DType::I2S, table));
        for entry in tensor_table(&spec).iter().filter(|entry| !entry.is_ternary(&spec)) {
            let tolerance = if entry.is_matrix() { tolerance } else { 0.0 };
            let (ours, theirs) = (values(entry).unwrap(), model.floats(entry).unwrap());
            for (a, b) in ours.iter().zip(&theirs) {
                assert!((a - b).abs() <= tolerance, "{}: {a} became {b}", entry.name);
            }
            let part = model.rows(entry, 3..7).unwrap();
            let width = entry.elements() / entry.shape[0];
            assert_eq!(part, theirs[3 * width..7 * width]);
        }
    }
}

#[test]
fn packed_to_gguf_and_back_is_the_same_folder() {
    for extra in SHAPES {
        let spec = spec(extra);
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
        for folder in [&first, &second] {
            fs_err::create_dir(folder).unwrap();
        }
        // BF16 embeddings pass F32 unharmed.
        write_packed(&first, &spec, values).unwrap();
        let packed = StoredModel::open(&first).unwrap();
        let gguf = gguf_of(dir.path(), &packed, &form(DType::I2S, DType::F32));
        write_packed_form(&second, &gguf, WeightForm::PackedMultiplying, &mut no_progress).unwrap();
        let read = |folder: &Path| fs_err::read(folder.join("model.safetensors")).unwrap();
        assert!(read(&first) == read(&second), "{extra}");
    }
}

#[test]
fn dividing_scales_are_read_as_what_they_mean() {
    let spec = spec(SHAPES[0]);
    let dir = tempfile::tempdir().unwrap();
    let source = FromValues::new(&spec, values);
    write_packed_form(dir.path(), &source, WeightForm::PackedDividing, &mut no_progress).unwrap();
    let model = StoredModel::open(dir.path()).unwrap();
    for entry in ternary_entries(&spec) {
        let (codes, scale) = source.matrix(&entry).unwrap().quantised();
        let (read, stored) = model.ternary(&entry).unwrap();
        assert!(read.codes() == codes, "{}", entry.name);
        assert!((stored.multiplier() / scale.multiplier() - 1.0).abs() < 1e-6, "{}", entry.name);
    }
}

#[test]
fn a_master_keeps_the_codes_of_its_latents() {
    let spec = spec(SHAPES[0]);
    let dir = tempfile::tempdir().unwrap();
    let source = FromValues::new(&spec, values);
    let written = write_master(dir.path(), &source, &mut no_progress).unwrap();
    assert!(written.adjusted > 0 && written.lost.is_empty(), "{written:?}");
    let model = StoredModel::open(dir.path()).unwrap();
    assert!(matches!(&model, StoredModel::Folder(folder) if folder.is_bf16()));
    for entry in ternary_entries(&spec) {
        let (codes, _) = source.matrix(&entry).unwrap().quantised();
        assert!(model.matrix(&entry).unwrap().quantised().0 == codes, "{}", entry.name);
    }
    // From there on nothing changes any more.
    let again = tempfile::tempdir().unwrap();
    let written = write_master(again.path(), &model, &mut no_progress).unwrap();
    assert_eq!(written.adjusted, 0);
    let read = |dir: &Path| fs_err::read(dir.join("model.safetensors")).unwrap();
    assert!(read(dir.path()) == read(again.path()));
}

#[test]
fn shapes_that_a_form_cannot_hold_are_refused_by_tensor_before_anything_is_written() {
    let config = |name: &str| {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
        ModelSpec::from_file(&configs.join(name)).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let refused = |spec: &ModelSpec, form: &GgufForm| {
        let source = FromValues::new(spec, values);
        let error = write_gguf(&path, &source, form, &mut no_progress).unwrap_err().to_string();
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0, "nothing is written");
        error
    };
    for (name, width) in [("s.toml", 688), ("m.toml", 1376)] {
        for (ternary, block) in [(DType::I2S, 128), (DType::Tq1_0, 256), (DType::Tq2_0, 256)] {
            let error = refused(&config(name), &form(ternary, DType::F16));
            let what = format!(
                "[model.layers.0.mlp.down_proj.weight]: has {width} columns; {} needs a multiple \
                 of {block}",
                ternary.name()
            );
            assert!(error.ends_with(&what), "{error}");
        }
    }
    let narrow = ModelSpec { hidden_size: 128, head_dim: 32, ..spec("") };
    let error = refused(&narrow, &form(DType::I2S, DType::Q6K));
    assert!(error.contains("[model.embed_tokens.weight]: has 128 columns; Q6_K"), "{error}");
    let dense = ModelSpec { quantise: false, ..spec("") };
    assert!(refused(&dense, &form(DType::I2S, DType::F16)).contains("is a dense model"));
    let odd = ModelSpec { sub_norms: false, ..spec("") };
    assert!(refused(&odd, &form(DType::I2S, DType::F16)).contains("[hidden_act]"));
}

#[test]
fn values_that_a_type_cannot_hold_are_refused_by_tensor() {
    let spec = spec("");
    let dir = tempfile::tempdir().unwrap();
    let large = |entry: &TensorEntry| {
        let mut values = values(entry)?;
        if entry.name.contains("embed") {
            values[5] = 7e4;
        }
        Ok(values)
    };
    let write = |ternary, table, values: &dyn Fn(&TensorEntry) -> Result<Vec<f32>, FormatError>| {
        let source = FromValues::new(&spec, values);
        write_gguf(&dir.path().join("x"), &source, &form(ternary, table), &mut no_progress)
    };
    let error = write(DType::I2S, DType::F16, &large).unwrap_err().to_string();
    assert!(error.ends_with("[model.embed_tokens.weight]: holds 70000, which F16 does not hold"));
    assert!(write(DType::I2S, DType::F32, &large).is_ok());
    let huge = |entry: &TensorEntry| Ok(vec![1e6; entry.elements()]);
    let error = write(DType::Tq2_0, DType::F32, &huge).unwrap_err().to_string();
    assert!(error.ends_with("has the scale 1000000, which F16 does not hold"), "{error}");
}

#[test]
fn a_progress_callback_can_stop_the_conversion() {
    let spec = spec("");
    let dir = tempfile::tempdir().unwrap();
    let source = FromValues::new(&spec, values);
    let mut seen = Vec::new();
    let mut stop = |done, total| {
        seen.push((done, total));
        if seen.len() == 3 { Err(FormatError::Interrupted) } else { Ok(()) }
    };
    let stopped = write_packed_form(dir.path(), &source, WeightForm::PackedMultiplying, &mut stop);
    assert!(matches!(stopped, Err(FormatError::Interrupted)));
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|(done, total)| done <= total && *total == spec.parameters()));
}
