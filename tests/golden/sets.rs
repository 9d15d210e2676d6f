//! Finding and reading fixture sets.

use std::path::{Path, PathBuf};

use bitnet_format::tensors::TensorFile;
use bitnet_format::{DType, HfConfig, ModelSpec, TensorEntry};
use bitnet_train::model::{LanguageModel, LinearWeight, SegmentStarts, named_values};
use bitnet_train::train::TokenBatch;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::Value;

use super::reference::Reference;

/// One fixture set: a folder with some of the fixture files.
pub(crate) struct Set {
    pub(crate) dir: PathBuf,
}

/// Every set of the repository and of `BITNET_FIXTURES`.
pub(crate) fn all() -> Vec<Set> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    let mut sets = sets_of(&own);
    if let Some(folders) = std::env::var_os("BITNET_FIXTURES") {
        for folder in std::env::split_paths(&folders).filter(|path| !path.as_os_str().is_empty()) {
            println!("golden: reads {} too, outside the repository", folder.display());
            sets.extend(sets_of(&folder));
        }
    }
    sets
}

/// The sets with this `file`; at least the repository's own has it.
pub(crate) fn with(file: &str) -> Vec<Set> {
    let sets: Vec<_> = all().into_iter().filter(|set| set.has(file)).collect();
    assert!(!sets.is_empty(), "no fixture set holds {file}");
    sets
}

fn sets_of(folder: &Path) -> Vec<Set> {
    let entries = fs_err::read_dir(folder).expect("a fixture folder that was named exists");
    let mut dirs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    dirs.push(folder.to_owned());
    dirs.retain(|dir| dir.join("config.json").exists());
    dirs.sort();
    dirs.into_iter().map(|dir| Set { dir }).filter(|set| !set.is_family()).collect()
}

impl Set {
    pub(crate) fn name(&self) -> String {
        self.dir.file_name().unwrap().to_string_lossy().into_owned()
    }

    /// Whether it is one of those that `families` reads.
    pub(crate) fn is_family(&self) -> bool {
        self.has("meta.json") && self.meta().get("family").is_some()
    }

    pub(crate) fn has(&self, file: &str) -> bool {
        self.dir.join(file).exists()
    }

    pub(crate) fn spec(&self) -> ModelSpec {
        HfConfig::read(&self.dir.join("config.json")).unwrap().spec
    }

    pub(crate) fn meta(&self) -> Value {
        serde_json::from_str(&fs_err::read_to_string(self.dir.join("meta.json")).unwrap()).unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> Fixture {
        Fixture(TensorFile::open(&self.dir.join(name)).unwrap())
    }

    /// The rows of an integer tensor `[B, T]`.
    pub(crate) fn rows(&self, file: &str, name: &str) -> Vec<Vec<i32>> {
        let file = self.file(file);
        file.ints(name).chunks(file.shape(name)[1]).map(<[i32]>::to_vec).collect()
    }

    pub(crate) fn parameter_names(&self) -> Vec<String> {
        let values = named_values(&self.model(&Device::flex()));
        values.into_iter().map(|(name, _)| name).collect()
    }

    /// The model in f64.
    pub(crate) fn reference(&self) -> Reference {
        reference_of(self.spec(), &self.model(&Device::flex()))
    }

    pub(crate) fn model(&self, device: &Device) -> LanguageModel {
        self.model_with(LinearWeight::Latent, device)
    }

    pub(crate) fn model_with(&self, form: LinearWeight, device: &Device) -> LanguageModel {
        let file = self.file("model.safetensors");
        let source = |entry: &TensorEntry| {
            file.0.floats(&entry.name, &entry.shape).map(|values| (values, form))
        };
        LanguageModel::from_source(&self.spec(), device, source).unwrap()
    }
}

/// A model of ours in f64.
pub(crate) fn reference_of(spec: ModelSpec, model: &LanguageModel) -> Reference {
    let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
    let weights = named_values(model).into_iter().map(|(name, value)| (name, wide(host(value))));
    Reference::new(spec, weights.collect())
}

/// A file of a set; shapes are taken from the file.
pub(crate) struct Fixture(pub(crate) TensorFile);

impl Fixture {
    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        self.0.info(name).unwrap().shape.clone()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        self.0.floats(name, &self.shape(name)).unwrap()
    }

    pub(crate) fn ints(&self, name: &str) -> Vec<i32> {
        let raw = self.0.raw(name, &self.shape(name), DType::I64).unwrap();
        raw.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as i32).collect()
    }
}

pub(crate) fn ids(values: &[i32], shape: [usize; 2], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// Rows `[B, T + 1]` as inputs and next-token targets; `labels` below zero are not trained.
pub(crate) fn next_token_batch(rows: &[i32], labels: &[i32], width: usize) -> TokenBatch {
    let time = width - 1;
    let batch = rows.len() / width;
    let take = |from: &[i32], skip: usize| -> Vec<i32> {
        from.chunks(width).flat_map(|row| row[skip..skip + time].to_vec()).collect()
    };
    let loss_mask = take(labels, 1).iter().map(|&label| f32::from(label >= 0)).collect();
    TokenBatch {
        tokens: take(rows, 0),
        targets: take(rows, 1),
        loss_mask,
        documents: SegmentStarts::whole_rows(batch, time),
    }
}

pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().into_data().try_to_vec().unwrap()
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    differences.fold(0.0, |max, difference| if difference > max { difference } else { max })
}

/// L2 distance over the L2 norm of what is expected.
pub(crate) fn relative_distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let distance: f64 =
        found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    if norm == 0.0 { distance.sqrt() } else { (distance / norm).sqrt() }
}

/// Prints what was measured and fails when it exceeds the tolerance (or is NaN).
#[track_caller]
pub(crate) fn check(set: &Set, what: &str, error: f64, tolerance: f64) {
    println!("golden {:>8} {what}: {error:.3e} (asked: {tolerance:.0e})", set.name());
    assert!(error <= tolerance, "{} {what}: {error:e} > {tolerance:e}", set.name());
}
