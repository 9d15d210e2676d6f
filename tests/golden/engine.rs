//! Training forward and engine over the same written file: the packed folders of the fixtures,
//! against transformers' offline readers and against each other.

use std::path::Path;

use bitnet_engine::{Model, ThreadPool, Workspace};
use bitnet_format::convert::hf::write_packed;
use bitnet_format::folder::{CONFIG_FILE, MODEL_FILE};
use bitnet_format::tensors::TensorFile;
use bitnet_format::writer::{TensorData, write_tensors};
use bitnet_format::{DType, StoredModel};
use bitnet_train::model::{LanguageModel, SegmentStarts, token_logits};
use burn::tensor::Device;

use super::agreement::{Agreement, absolute, agree, check};
use super::sets::{self, Set, host, ids};

/// The logits of each row of the set's `input_ids`.
type Logits = Vec<Vec<f32>>;

fn training_forward(set: &Set, folder: &Path) -> Logits {
    let device = Device::flex();
    let model = LanguageModel::read(&StoredModel::open(folder).unwrap(), &device).unwrap();
    let logits = |row: &Vec<i32>| {
        let documents = SegmentStarts::whole_rows(1, row.len());
        let hidden = model.forward(ids(row, [1, row.len()], &device), &documents);
        host(token_logits(hidden.flatten(0, 1), model.head()))
    };
    set.rows("forward.safetensors", "input_ids").iter().map(logits).collect()
}

fn engine(set: &Set, folder: &Path) -> Logits {
    let (model, threads) = (Model::load(folder).unwrap(), ThreadPool::new(1).unwrap());
    let logits = |row: &Vec<i32>| {
        let tokens: Vec<u32> = row.iter().map(|&id| id as u32).collect();
        let mut workspace = Workspace::new(&threads);
        model.forward_all(&mut workspace, &mut model.new_cache(), &tokens).unwrap().to_vec()
    };
    set.rows("forward.safetensors", "input_ids").iter().map(logits).collect()
}

fn logits_agree(set: &Set, found: &Logits, expected: &Logits) -> Result<Agreement, String> {
    assert_eq!(found.len(), expected.len());
    let rows = set.rows("forward.safetensors", "input_ids");
    let reference = set.reference();
    Agreement::of_all(rows.iter().zip(found.iter().zip(expected)).map(|(row, (a, b))| {
        agree(
            [a, b],
            |a, b| absolute(a, b),
            reference.passes(std::slice::from_ref(row)),
            |pass| pass.rows[0].logits.iter().map(|&logit| logit as f32).collect(),
        )
    }))
}

/// Logits of one of transformers' offline readers.
fn expected(set: &Set, name: &str) -> Logits {
    let file = set.file("packed/expected.safetensors");
    let shape = file.shape(name);
    file.floats(name).chunks(shape[1] * shape[2]).map(<[f32]>::to_vec).collect()
}

/// The sets with these logits and what they are of.
fn sets_with(logits: &str) -> Vec<Set> {
    let mut sets = sets::with("packed/expected.safetensors");
    sets.retain(|set| {
        let holds = set.file("packed/expected.safetensors").0.contains(logits);
        holds && ["forward.safetensors", "model.safetensors"].iter().all(|file| set.has(file))
    });
    sets
}

#[test]
fn golden_logits_with_scales_that_multiply() {
    let name = "logits_autobitlinear_offline_f32";
    for set in sets_with(name) {
        let (folder, expected) = (set.dir.join("packed"), expected(&set, name));
        let found = training_forward(&set, &folder);
        check(&set, "packed logits, training", logits_agree(&set, &found, &expected));
        let found = engine(&set, &folder);
        check(&set, "packed logits, engine", logits_agree(&set, &found, &expected));
    }
}

#[test]
fn golden_logits_with_scales_that_divide() {
    let name = "logits_bitlinear_f32";
    for set in sets_with(name).iter().filter(|set| set.has("packed/config.bitlinear.json")) {
        let folder = tempfile::tempdir().unwrap();
        let config = set.dir.join("packed/config.bitlinear.json");
        fs_err::copy(config, folder.path().join(CONFIG_FILE)).unwrap();
        let packed = set.dir.join("packed").join(MODEL_FILE);
        invert_scales(&packed, &folder.path().join(MODEL_FILE));
        let (expected, found) = (expected(set, name), engine(set, folder.path()));
        check(set, "logits of a bitlinear folder", logits_agree(set, &found, &expected));
    }
}

/// Copies a packed model; each `weight_scale` becomes what `bitlinear` stores: one over it.
fn invert_scales(from: &Path, to: &Path) {
    let file = TensorFile::open(from).unwrap();
    let copy = |name: String| {
        let info = file.info(&name).unwrap();
        let data = if name.ends_with("weight_scale") {
            TensorData::f32_owned(&[1], &[1.0 / file.floats(&name, &[1]).unwrap()[0]])
        } else if info.dtype == DType::U8 {
            TensorData::u8(&info.shape, file.raw(&name, &info.shape, DType::U8).unwrap())
        } else {
            TensorData::bf16(&info.shape, &file.floats(&name, &info.shape).unwrap())
        };
        (name, data)
    };
    write_tensors(to, file.names().into_iter().map(copy)).unwrap();
}

#[test]
fn golden_engine_agrees_with_the_training_forward_on_our_own_export() {
    for set in sets::with("forward.safetensors") {
        let out = tempfile::tempdir().unwrap();
        let master = set.file("model.safetensors");
        write_packed(out.path(), &set.spec(), |entry| master.0.floats(&entry.name, &entry.shape))
            .unwrap();
        let (found, expected) = (engine(&set, out.path()), training_forward(&set, out.path()));
        check(&set, "engine against training", logits_agree(&set, &found, &expected));
    }
}
