//! Packed fixtures made by transformers (`shared/fixtures/README.md`): codes exactly, logits
//! within the tolerance stated there.
//!
//! Sets lie in `tests/fixtures/golden` and in every folder of `BITNET_FIXTURES`; a set may lack
//! any file, a folder may not lack sets.

use std::path::{Path, PathBuf};

use bitnet_engine::{Model, Workspace};
use bitnet_format::folder::{CONFIG_FILE, MODEL_FILE, ModelFolder};
use bitnet_format::tensors::TensorFile;
use bitnet_format::writer::{TensorData, write_tensors};
use bitnet_format::{DType, TensorSource, tensor_table};

use crate::random_model::threads;

/// Largest difference of a logit in f32 (`shared/fixtures/README.md`, "Tolerances").
const TOLERANCE: f32 = 1e-4;

/// All sets that hold a packed model and what it should give.
fn packed_sets() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden");
    let named = std::env::var_os("BITNET_FIXTURES").unwrap_or_default();
    let named = std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty());
    let is_packed = |set: &PathBuf| set.join("packed/expected.safetensors").exists();
    [own].into_iter().chain(named).flat_map(|folder| sets(&folder)).filter(is_packed).collect()
}

fn sets(folder: &Path) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(folder).expect("a folder of fixtures exists");
    let mut sets: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    sets.retain(|path| path.join(CONFIG_FILE).exists());
    assert!(!sets.is_empty(), "{} holds no set of fixtures", folder.display());
    sets
}

/// `input_ids [B, T]` as B sequences, if the set has them.
fn inputs(set: &Path) -> Option<Vec<Vec<u32>>> {
    let path = set.join("forward.safetensors");
    if !path.exists() {
        return None;
    }
    let file = TensorFile::open(&path).unwrap();
    let shape = file.info("input_ids").unwrap().shape.clone();
    let bytes = file.raw("input_ids", &shape, DType::I64).unwrap();
    let ids = bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as u32);
    let ids: Vec<u32> = ids.collect();
    Some(ids.chunks(shape[1]).map(<[u32]>::to_vec).collect())
}

/// Compares the model in `dir` with the logits `[B, T, V]` of that name, if the set has them.
fn check_logits(set: &Path, dir: &Path, name: &str) {
    let expected = TensorFile::open(&set.join("packed/expected.safetensors")).unwrap();
    let Some(inputs) = inputs(set).filter(|_| expected.contains(name)) else { return };
    let shape = expected.info(name).unwrap().shape.clone();
    let expected = expected.floats(name, &shape).unwrap();
    let (model, pool) = (Model::load(dir).unwrap(), threads(1));
    let (mut workspace, mut logits) = (Workspace::new(&pool), Vec::new());
    for tokens in &inputs {
        let found = model.forward_all(&mut workspace, &mut model.new_cache(), tokens).unwrap();
        logits.extend_from_slice(found);
    }
    assert_eq!(logits.len(), expected.len());
    let differences = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    let largest = differences.fold(0.0, f32::max);
    eprintln!("{} {name}: largest difference {largest:e}", set.display());
    assert!(largest < TOLERANCE && logits.iter().all(|logit| logit.is_finite()));
}

#[test]
fn golden_codes_are_read_exactly() {
    for set in packed_sets() {
        let folder = ModelFolder::open(&set.join("packed")).unwrap();
        let expected = TensorFile::open(&set.join("packed/expected.safetensors")).unwrap();
        for entry in tensor_table(folder.spec()) {
            let name = format!("code.{}", entry.name.trim_end_matches(".weight"));
            if entry.is_ternary(folder.spec()) && expected.contains(&name) {
                let (packed, _) = folder.ternary(&entry).unwrap();
                let bytes = expected.raw(&name, &entry.shape, DType::I8).unwrap();
                let codes: Vec<i8> = bytes.iter().map(|&byte| byte as i8).collect();
                assert!(packed.codes() == codes, "{} {name}", set.display());
            }
        }
    }
}

#[test]
fn golden_logits_with_scales_that_multiply() {
    for set in packed_sets() {
        check_logits(&set, &set.join("packed"), "logits_autobitlinear_offline_f32");
    }
}

#[test]
fn golden_logits_with_scales_that_divide() {
    for set in packed_sets() {
        let config = set.join("packed/config.bitlinear.json");
        if config.exists() {
            let dir = tempfile::tempdir().unwrap();
            fs_err::copy(config, dir.path().join(CONFIG_FILE)).unwrap();
            invert_scales(&set.join("packed").join(MODEL_FILE), &dir.path().join(MODEL_FILE));
            check_logits(&set, dir.path(), "logits_bitlinear_f32");
        }
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
