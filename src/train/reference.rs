//! The frozen reference of preference training: the log-probabilities it gives to every answer,
//! computed once, before the first step, and kept on disk.
//!
//! They come from the very forward pass that trains (recorded for a backward pass, which can differ
//! in the last bit from one that is not), at the same precision and over the same rows, so that a
//! policy equal to its reference has a loss of exactly ln 2. The file is named by all
//! that they depend on; a killed or interrupted computation goes on where it stopped.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bitnet_format::StoredModel;
use bitnet_format::staged::{OnExisting, write_file};
use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

use crate::data::{Epoch, FileLock, Pair, PairPlan};
use crate::device::runs_own_operations;
use crate::model::LanguageModel;
use crate::train::TrainError;
use crate::train::evaluate::batch_of;
use crate::train::preference::{host, recorded_log_probs};
use crate::train::step::with_own_leaves;

/// Bytes of a pair: two little-endian f32.
const PAIR_BYTES: usize = 8;
/// Bytes of the checksum that ends a finished file.
const HASH_BYTES: usize = 32;

/// What a file of log-probabilities is of.
#[derive(Clone, Debug)]
pub(crate) struct ReferenceKey {
    /// Data, tokenizer and template: the token cache's key.
    pub(crate) data: String,
    /// Hash of the model's weights and config.
    pub(crate) model: String,
    /// Everything else that decides the rows and the arithmetic.
    pub(crate) rows: String,
}

/// Where log-probabilities are kept and how work on them is watched.
pub(crate) struct Request<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) key: &'a ReferenceKey,
    /// The one that trains.
    pub(crate) device: &'a Device,
    pub(crate) interrupted: &'a dyn Fn() -> bool,
    pub(crate) progress: &'a dyn Fn(u64, u64),
}

/// The log-probabilities of a set: for each pair, in file order, of the chosen and of the rejected
/// answer. `None` when interrupted.
///
/// `model` is called only where something is left to compute.
pub(crate) fn open_or_compute(
    request: &Request<'_>,
    plan: &PairPlan,
    model: &mut dyn FnMut() -> Result<LanguageModel, TrainError>,
) -> Result<Option<Vec<[f32; 2]>>, TrainError> {
    let path = request.path();
    let pairs = plan.items() as usize;
    if let Some(found) = read_finished(&path, pairs) {
        return Ok(Some(found));
    }
    fs_err::create_dir_all(request.dir)?;
    let lock = FileLock::exclusive(&path.with_extension("lock"), request.interrupted)?;
    let Some(_lock) = lock else { return Ok(None) };
    if let Some(found) = read_finished(&path, pairs) {
        return Ok(Some(found)); // another process made it in the meantime
    }
    let partial = path.with_extension("part");
    let Some(bytes) = compute(request, plan, &partial, model)? else { return Ok(None) };
    let mut finished = bytes.clone();
    finished.extend(blake3::hash(&bytes).as_bytes());
    write_file(&path, &finished, OnExisting::Replace)?;
    fs_err::remove_file(&partial)?;
    Ok(Some(decode(&bytes)))
}

impl Request<'_> {
    fn path(&self) -> PathBuf {
        let ReferenceKey { data, model, rows } = self.key;
        let mut hasher = blake3::Hasher::new_derive_key("bitnet-train reference log-probabilities");
        for part in [data.as_str(), model, rows, env!("CARGO_PKG_VERSION")] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let name = format!("reference-{}.logp", &hasher.finalize().to_hex()[..32]);
        self.dir.join(name)
    }
}

/// Identifies a model by its config and the bytes of its weights.
pub(crate) fn hash_model(folder: &Path) -> Result<String, TrainError> {
    let mut hasher = blake3::Hasher::new();
    let config = folder.join(bitnet_format::folder::CONFIG_FILE);
    let weights = StoredModel::open(folder)?.weight_files();
    for path in std::iter::once(config).chain(weights) {
        std::io::copy(&mut fs_err::File::open(path)?, &mut hasher)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The contents of a whole file whose checksum is right.
fn read_finished(path: &Path, pairs: usize) -> Option<Vec<[f32; 2]>> {
    let bytes = fs_err::read(path).ok()?;
    let (values, hash) = bytes.split_at_checked(pairs * PAIR_BYTES)?;
    let sound = hash.len() == HASH_BYTES && blake3::hash(values).as_bytes() == hash;
    sound.then(|| decode(values))
}

/// Appends pair after pair to the file at `partial`, after those it holds already.
fn compute(
    request: &Request<'_>,
    plan: &PairPlan,
    partial: &Path,
    model: &mut dyn FnMut() -> Result<LanguageModel, TrainError>,
) -> Result<Option<Vec<u8>>, TrainError> {
    let mut file = fs_err::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(partial)?;
    let mut bytes = Vec::new();
    std::io::copy(&mut file, &mut bytes)?;
    let done = (bytes.len() / PAIR_BYTES).min(plan.items() as usize);
    bytes.truncate(done * PAIR_BYTES);
    file.file_mut().set_len(bytes.len() as u64)?;
    file.seek(SeekFrom::End(0))?;
    if done as u64 == plan.items() {
        return Ok(Some(bytes));
    }
    let model = model()?;
    let of = |number: u64| {
        encode(log_probs(&with_own_leaves(&model), &plan.item(number), request.device))
    };
    // No more than threads: a thread that waits within one pair would begin another, and another.
    let shared = runs_own_operations(request.device);
    let at_once = if shared { rayon::current_num_threads() as u64 } else { 1 };
    let mut from = done as u64;
    while from < plan.items() {
        if (request.interrupted)() {
            return Ok(None);
        }
        let to = plan.items().min(from + at_once);
        let records: Vec<_> = if shared {
            (from..to).into_par_iter().map(of).collect()
        } else {
            (from..to).map(of).collect()
        };
        release_graphs(request.device);
        file.write_all(records.as_flattened())?;
        bytes.extend(records.as_flattened());
        (request.progress)(to, plan.items());
        from = to;
    }
    Ok(Some(bytes))
}

/// What was recorded and is of no more use is only freed by a backward pass, of whatever graph.
fn release_graphs(device: &Device) {
    let nothing: Tensor<1> = Tensor::zeros([1], device).require_grad();
    let _ = nothing.sum().backward();
}

fn log_probs(model: &LanguageModel, pair: &Pair, device: &Device) -> [f32; 2] {
    let rows = batch_of(&[pair.chosen.clone(), pair.rejected.clone()]);
    let both = host(recorded_log_probs(model, &rows, device));
    [both[0], both[1]]
}

fn encode([chosen, rejected]: [f32; 2]) -> [u8; PAIR_BYTES] {
    let mut bytes = [0; PAIR_BYTES];
    bytes[..4].copy_from_slice(&chosen.to_le_bytes());
    bytes[4..].copy_from_slice(&rejected.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Vec<[f32; 2]> {
    let (numbers, _) = bytes.as_chunks::<4>();
    let (pairs, _) = numbers.as_chunks::<2>();
    pairs.iter().map(|pair| pair.map(f32::from_le_bytes)).collect()
}
