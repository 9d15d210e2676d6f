//! From a trained folder to a file that runs, checked by the program that will run it.
//!
//! Writing bytes is `bitnet-format`'s; this room chooses the source, publishes the result in one
//! step, and verifies it by running the written file through the engine and through the training
//! forward over the same written values.

use std::fmt;
use std::path::Path;

use bitnet_engine::Model;
use bitnet_format::folder::{ModelFolder, TOKENIZER_FILE, write_packed};
use bitnet_format::staged::{OnExisting, StagedDir};
use bitnet_format::{WeightForm, tensor_table};
use bitnet_text::TOKENIZER_CONFIG_FILE;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use serde::Serialize;

use crate::model::{Documents, LanguageModel, likeliest, token_logits};
use crate::random;
use crate::recipe::{ExportFormat, Recipe};
use crate::train::TrainError;

/// What to export and where to.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The layout.
    pub format: ExportFormat,
    /// The folder or file to write.
    pub out: &'a Path,
    /// What to do when it is there.
    pub on_existing: OnExisting,
}

/// How far the engine and the training forward are apart on the written file.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Verification {
    /// Largest difference of a logit.
    pub largest_logit_difference: f32,
    /// Positions compared.
    pub positions: usize,
    /// Positions whose likeliest token differs.
    pub greedy_disagreements: usize,
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "verified: engine and training forward differ by at most {:.1e} in a logit; likeliest \
             token equal at {} of {} positions",
            self.largest_logit_difference,
            self.positions - self.greedy_disagreements,
            self.positions
        )
    }
}

/// Sequences and tokens of the verification.
const CHECK_SEQUENCES: usize = 3;
const CHECK_TOKENS: usize = 48;

/// Refuses a recipe whose export formats this version cannot write, before anything is trained.
///
/// # Errors
/// Names the format.
pub fn check_formats(recipe: &Recipe) -> Result<(), TrainError> {
    recipe.export.formats.iter().try_for_each(|&format| check_format(format, &recipe.path))
}

fn check_format(format: ExportFormat, path: &Path) -> Result<(), TrainError> {
    if format == ExportFormat::HfPacked {
        return Ok(());
    }
    Err(TrainError::Contradiction {
        path: path.to_owned(),
        field: "export.formats",
        what: format!("{} is not in this version yet; expected hf-packed", format.name()),
    })
}

/// Exports an open folder of latents; `source` is its path. The result is verified by running it.
///
/// # Errors
/// When the source is packed already, a shape cannot be packed, the target exists, or the written
/// file does not run.
pub fn export(
    folder: &ModelFolder,
    source: &Path,
    request: &Request,
) -> Result<Verification, TrainError> {
    write(folder, source, request)?;
    verify(request.out)
}

/// Exports without the check.
///
/// # Errors
/// As [`export`].
pub fn write(folder: &ModelFolder, source: &Path, request: &Request) -> Result<(), TrainError> {
    check_format(request.format, source)?;
    if folder.form() != WeightForm::Latent {
        let path = source.to_owned();
        let what = "is packed already; expected a checkpoint or a master with float matrices";
        return Err(TrainError::Contradiction { path, field: "model", what: what.to_owned() });
    }
    let staged = StagedDir::beside(request.out, request.on_existing)?;
    write_packed(staged.path(), folder.spec(), |entry| folder.floats(entry))?;
    for name in [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE] {
        let beside = source.join(name);
        if beside.exists() {
            fs_err::copy(&beside, staged.path().join(name))?;
        }
    }
    Ok(staged.publish()?)
}

/// Runs a packed folder through the engine and through the training forward over the values as
/// they stand in the file, and compares every logit of a few fixed sequences.
///
/// # Errors
/// When the folder does not open.
pub fn verify(packed: &Path) -> Result<Verification, TrainError> {
    let engine = Model::load(packed)?;
    let device = Device::flex();
    let reference = LanguageModel::read(&ModelFolder::open(packed)?, &device)?;
    let vocab = engine.spec().vocab_size;
    let time = CHECK_TOKENS.min(engine.spec().max_position_embeddings);
    let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let threads = threads.map_err(std::io::Error::other)?;
    let mut total =
        Verification { largest_logit_difference: 0.0, positions: 0, greedy_disagreements: 0 };
    for index in 0..CHECK_SEQUENCES {
        let mut draw = random::keyed(0, "verify", 0, index as u64);
        let ids: Vec<u32> = (0..time).map(|_| draw.next_u32() % vocab as u32).collect();
        let found = engine.forward_all(&mut engine.new_cache(), &ids, &threads)?;
        let expected = reference_logits(&reference, &ids, &device);
        for (found, expected) in found.chunks(vocab).zip(expected.chunks(vocab)) {
            total.add(found, expected);
        }
    }
    Ok(total)
}

impl Verification {
    fn add(&mut self, found: &[f32], expected: &[f32]) {
        let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
        self.largest_logit_difference = differences.fold(self.largest_logit_difference, f32::max);
        self.positions += 1;
        self.greedy_disagreements += usize::from(likeliest(found) != likeliest(expected));
    }
}

fn reference_logits(model: &LanguageModel, ids: &[u32], device: &Device) -> Vec<f32> {
    let time = ids.len();
    let data = TensorData::new(ids.iter().map(|&id| id as i32).collect(), [1, time]);
    let tokens: Tensor<2, Int> = Tensor::from_data(data, device);
    let hidden = model.forward(tokens, &Documents::whole_rows(1, time)).flatten(0, 1);
    token_logits(hidden, model.head()).into_data().try_into_vec().expect("logits are f32")
}

/// The number of ternary and of other parameters, for messages.
pub fn parameter_split(folder: &ModelFolder) -> (usize, usize) {
    let spec = folder.spec();
    tensor_table(spec).iter().fold((0, 0), |(ternary, other), entry| {
        let elements = entry.elements();
        if entry.is_ternary(spec) {
            (ternary + elements, other)
        } else {
            (ternary, other + elements)
        }
    })
}
