//! The same for models whose scales belong to groups of weights.

use std::path::{Path, PathBuf};

use super::{SHAPES, form, gguf_of, spec, ternary_entries, values};
use crate::blocks::{q2_0, quantise};
use crate::convert::gguf::write_gguf;
use crate::convert::hf::{write_master, write_packed, write_packed_form};
use crate::convert::no_progress;
use crate::gguf::architecture::{Architecture, describe, describe_ids};
use crate::gguf::tensor_names::tensor_name;
use crate::gguf::{GgufWriter, Metadata, Value};
use crate::source::FromValues;
use crate::writer::TensorPlan;
use crate::{DType, ModelSpec, StoredModel, TensorEntry, TensorSource, WeightForm, tensor_table};

/// Every form that holds a group, and what is read of it.
const GROUPS: [(&str, &str, &[DType]); 4] = [
    ("64", "64", &[DType::Q2_0]),
    ("128", "64", &[DType::Q2_0]),
    ("256", "256", &[DType::Tq1_0, DType::Tq2_0]),
    ("256", "64", &[DType::Q2_0]),
];

fn grouped_spec(shape: &str, group: &str, embedding: &str) -> ModelSpec {
    spec(&format!("{shape}\nquantiser = {{ group = {group} }}\nembedding = \"{embedding}\""))
}

fn weights(model: &dyn TensorSource, entry: &TensorEntry) -> Vec<f32> {
    model.grouped(entry, 0..entry.shape[0]).unwrap().values()
}

#[test]
fn gguf_keeps_every_weight_of_groups() {
    for (shape, embedding) in SHAPES.into_iter().zip(["full", "ternary", "ternary"]) {
        for (group, read, types) in GROUPS {
            let spec = grouped_spec(shape, group, embedding);
            let source = FromValues::new(&spec, values);
            for &ternary in types {
                let dir = tempfile::tempdir().unwrap();
                let model = gguf_of(dir.path(), &source, &form(ternary, DType::F16));
                assert_eq!(model.spec(), &grouped_spec(shape, read, embedding), "{ternary:?}");
                for entry in ternary_entries(&spec) {
                    let (ours, theirs) = (weights(&source, &entry), weights(&model, &entry));
                    assert!(ours == theirs, "{} {ternary:?} {group}", entry.name);
                    let part = model.grouped(&entry, 5..9).unwrap().values();
                    assert!(part == ours[5 * entry.shape[1]..9 * entry.shape[1]], "{}", entry.name);
                }
            }
        }
    }
}

#[test]
fn a_packed_folder_keeps_codes_and_scales_of_groups_and_rows() {
    for group in ["64", "128", "256", "\"row\""] {
        let spec = grouped_spec(SHAPES[1], group, "ternary");
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
        for folder in [&first, &second] {
            fs_err::create_dir(folder).unwrap();
        }
        write_packed(&first, &spec, values).unwrap();
        let model = StoredModel::open(&first).unwrap();
        assert_eq!(model.spec(), &spec);
        let source = FromValues::new(&spec, values);
        for entry in ternary_entries(&spec) {
            let whole = 0..entry.shape[0];
            let [ours, theirs] = [&source as &dyn TensorSource, &model]
                .map(|source| source.grouped(&entry, whole.clone()).unwrap());
            assert!(ours == theirs, "{} {group}", entry.name);
        }
        write_packed_form(&second, &model, WeightForm::PackedMultiplying, &mut no_progress)
            .unwrap();
        let read = |folder: &Path| fs_err::read(folder.join("model.safetensors")).unwrap();
        assert!(read(&first) == read(&second), "{group}");
    }
}

#[test]
fn groups_that_a_form_cannot_hold_are_refused_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |group: &str, ternary: DType| {
        let spec = grouped_spec(SHAPES[1], group, "full");
        let source = FromValues::new(&spec, values);
        let form = form(ternary, DType::F16);
        let error = write_gguf(&dir.path().join("x"), &source, &form, &mut no_progress);
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0, "nothing is written");
        error.unwrap_err().to_string()
    };
    let error = refused("128", DType::Tq2_0);
    let what = "[quantiser.group]: has the group 128, which TQ2_0 does not hold; expected Q2_0";
    assert!(error.ends_with(what), "{error}");
    assert!(refused("64", DType::I2S).ends_with("expected Q2_0"));
    assert!(refused("\"row\"", DType::I2S).contains("the group row, which I2_S"));
    assert!(refused("\"matrix\"", DType::Q2_0).ends_with("expected I2_S, TQ1_0 or TQ2_0"));
    let spec = grouped_spec(SHAPES[1], "128", "full");
    let source = FromValues::new(&spec, values);
    let error = write_master(dir.path(), &source, &mut no_progress).unwrap_err().to_string();
    assert!(error.contains("[quantiser]"), "{error}");
    let dividing = WeightForm::PackedDividing;
    let error = write_packed_form(dir.path(), &source, dividing, &mut no_progress).unwrap_err();
    assert!(error.to_string().contains("only scales that multiply"), "{error}");
}

#[test]
fn the_code_2_survives_where_it_can_be_held() {
    let spec = grouped_spec(SHAPES[2], "64", "full");
    // Dequantised values: 0.5 and its double, among zeros.
    let twos = |entry: &TensorEntry| {
        let value = |i: usize| if i % 7 == 3 { 1.0 } else { [0.5, 0.0, -0.5][i % 3] };
        Ok((0..entry.elements()).map(value).collect())
    };
    let source = FromValues::new(&spec, twos);
    let dir = tempfile::tempdir().unwrap();
    let model = gguf_of(dir.path(), &source, &form(DType::Q2_0, DType::F16));
    for entry in ternary_entries(&spec) {
        let matrix = model.grouped(&entry, 0..entry.shape[0]).unwrap();
        assert_eq!(matrix.largest_code(), 2, "{}", entry.name);
        assert!(matrix.values() == twos(&entry).unwrap(), "{}", entry.name);
    }
    let folder = dir.path().join("packed");
    fs_err::create_dir(&folder).unwrap();
    write_packed_form(&folder, &model, WeightForm::PackedMultiplying, &mut no_progress).unwrap();
    let packed = StoredModel::open(&folder).unwrap();
    for entry in ternary_entries(&spec) {
        assert!(weights(&packed, &entry) == weights(&model, &entry), "{}", entry.name);
    }
    let wide = grouped_spec(SHAPES[2], "256", "full");
    let source = FromValues::new(&wide, twos);
    let path = dir.path().join("tq.gguf");
    let error = write_gguf(&path, &source, &form(DType::Tq2_0, DType::F16), &mut no_progress);
    assert!(
        error.unwrap_err().to_string().ends_with("holds the code +2, which TQ2_0 does not hold")
    );
}

/// A file whose ternary matrices have the types that `dtype` says, of the layout of `Q2_0`.
fn file_of(
    dir: &Path,
    source: &dyn TensorSource,
    extra: &[(&str, Value)],
    dtype: impl Fn(&TensorEntry) -> DType,
) -> PathBuf {
    let (path, spec) = (dir.join("fork.gguf"), source.spec());
    let architecture = Architecture::of(&path, spec).unwrap();
    let mut metadata = Metadata::default();
    metadata.insert("general.architecture", Value::String(architecture.name().to_owned()));
    describe(&mut metadata, architecture, spec);
    describe_ids(&mut metadata, spec);
    for (key, value) in extra {
        metadata.insert(*key, value.clone());
    }
    let table = tensor_table(spec);
    let dtype =
        |entry: &TensorEntry| if entry.is_ternary(spec) { dtype(entry) } else { DType::F32 };
    let plan: Vec<_> = table
        .iter()
        .map(|entry| TensorPlan::new(tensor_name(entry), dtype(entry), &entry.shape))
        .collect();
    let mut writer = GgufWriter::create(&path, &metadata, &plan).unwrap();
    for entry in &table {
        let bytes = if entry.is_ternary(spec) {
            let matrix = source.grouped(entry, 0..entry.shape[0]).unwrap();
            let block = dtype(entry).block() as usize;
            let scales = matrix.half_scales().unwrap().into_iter();
            let repeated = scales.flat_map(|scale| vec![scale; matrix.width() / block]);
            q2_0::pack(matrix.codes(), &repeated.collect::<Vec<_>>(), block)
        } else {
            quantise(DType::F32, &source.floats(entry).unwrap())
        };
        writer.write(&bytes).unwrap();
        writer.end_tensor().unwrap();
    }
    writer.finish().unwrap();
    path
}

/// A file of the fork.
fn of_fork(dir: &Path, source: &dyn TensorSource, extra: &[(&str, Value)]) -> PathBuf {
    file_of(dir, source, extra, |_| DType::Pq2_0)
}

/// Where the type id of a tensor stands: behind its length, name and two dimensions.
fn type_of(bytes: &[u8], name: &str) -> usize {
    let written = [&(name.len() as u64).to_le_bytes()[..], name.as_bytes()].concat();
    let found = bytes.windows(written.len()).position(|window| window == written);
    found.unwrap() + written.len() + 4 + 2 * 8
}

#[test]
fn files_of_the_fork_are_read_under_both_type_ids() {
    for embedding in ["full", "ternary"] {
        let spec = grouped_spec(SHAPES[1], "128", embedding);
        let source = FromValues::new(&spec, values);
        let dir = tempfile::tempdir().unwrap();
        let path = of_fork(dir.path(), &source, &[]);
        let new = StoredModel::open(&path).unwrap();
        let mut bytes = fs_err::read(&path).unwrap();
        for entry in ternary_entries(&spec) {
            let at = type_of(&bytes, &tensor_name(&entry));
            assert_eq!(bytes[at], 142);
            bytes[at] = 42;
        }
        let old = StoredModel::from_gguf_bytes(Path::new("old.gguf"), bytes).unwrap();
        for model in [&new, &old] {
            assert_eq!(model.spec(), &spec);
            for entry in ternary_entries(&spec) {
                assert!(weights(model, &entry) == weights(&source, &entry), "{}", entry.name);
            }
        }
        let StoredModel::Gguf(old) = &old else { panic!("a GGUF file") };
        assert_eq!(old.dtype(&ternary_entries(&spec)[0]), DType::Q2_0Of128);
    }
}

#[test]
fn turned_weights_are_refused_by_key() {
    let spec = grouped_spec(SHAPES[1], "128", "full");
    let source = FromValues::new(&spec, values);
    let dir = tempfile::tempdir().unwrap();
    let turned = [("prism.hadamard.block_size", Value::U32(1024))];
    let path = of_fork(dir.path(), &source, &turned);
    let error = StoredModel::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("[prism.hadamard.block_size]: says that the weights were turned"),
        "{error}"
    );
}

#[test]
fn matrices_with_different_groups_are_refused_by_name() {
    let spec = grouped_spec(SHAPES[1], "128", "full");
    let source = FromValues::new(&spec, values);
    let dir = tempfile::tempdir().unwrap();
    let is_last = |entry: &TensorEntry| entry.name.contains("1.mlp.down");
    let mixed = |entry: &TensorEntry| if is_last(entry) { DType::Q2_0 } else { DType::Pq2_0 };
    let path = file_of(dir.path(), &source, &[], mixed);
    let error = StoredModel::open(&path).unwrap_err().to_string();
    let what = "[blk.1.ffn_down.weight]: has groups of 64 weights; other matrices have 128";
    assert!(error.ends_with(what), "{error}");
}

#[test]
fn a_ternary_table_beside_a_float_head_is_read_as_floats() {
    let ternary = grouped_spec(SHAPES[1], "64", "ternary");
    let dir = tempfile::tempdir().unwrap();
    let source = FromValues::new(&ternary, values);
    let path = file_of(dir.path(), &source, &[], |_| DType::Q2_0);
    let mut bytes = fs_err::read(&path).unwrap();
    // The head gets the type F32 and as many bytes of zeros: it is the last tensor.
    let at = type_of(&bytes, "output.weight");
    bytes[at] = 0;
    let offset = u64::from_le_bytes(bytes[at + 4..at + 12].try_into().unwrap());
    let data = bytes.len() as u64 - (20u64 * 256 / 64 * 18).next_multiple_of(32);
    assert!(data >= offset);
    bytes.truncate(data as usize);
    bytes.resize(data as usize + 20 * 256 * 4, 0);
    let model = StoredModel::from_gguf_bytes(Path::new("m.gguf"), bytes).unwrap();
    assert_eq!(model.spec(), &grouped_spec(SHAPES[1], "64", "full"));
    let table = tensor_table(&ternary);
    let values = model.rows(&table[0], 3..7).unwrap();
    assert_eq!(values, weights(&source, &table[0])[3 * 256..7 * 256]);
}

#[test]
fn a_folder_whose_config_says_another_group_is_refused_by_tensor() {
    let spec = grouped_spec(SHAPES[1], "64", "full");
    let dir = tempfile::tempdir().unwrap();
    write_packed(dir.path(), &spec, values).unwrap();
    let config = dir.path().join("config.json");
    let text = fs_err::read_to_string(&config).unwrap();
    let read = |group: &str| {
        fs_err::write(&config, text.replace("\"group\": 64", group)).unwrap();
        let model = StoredModel::open(dir.path()).map_err(|error| error.to_string())?;
        let entry = &ternary_entries(&spec)[0];
        model.matrix(entry).map(|_| ()).map_err(|error| error.to_string())
    };
    let what = "q_proj.weight_scale]: has shape [256, 4]; expected [256, 2]";
    let error = read("\"group\": 128").unwrap_err();
    assert!(error.ends_with(what), "{error}");
    let error = read("\"group\": 100").unwrap_err();
    assert!(error.contains("quantiser.group is 100; expected"), "{error}");
    assert_eq!(read("\"group\": 64"), Ok(()));
}
