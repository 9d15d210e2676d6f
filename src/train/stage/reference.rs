//! The frozen reference model of DPO: its log-probability of every answer, computed once before the
//! first step and kept on disk.
//!
//! They come from the forward pass that trains (recorded for a backward pass, because an unrecorded
//! one can differ in the last bit), at the same precision and over the same rows. So a policy equal
//! to its reference has a loss of exactly ln 2. The file name is a hash of everything that the
//! values depend on; a killed or interrupted computation goes on where it stopped.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bitnet_format::staged::{OnExisting, write_file};
use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

use super::evaluate::batch_of;
use super::preference::recorded_log_probs;
use crate::data::{EpochPlan, FileLock, PairPlan, PreferencePair};
use crate::distributed::{all_ok, first_only};
use crate::error::TrainError;
use crate::model::LanguageModel;
use crate::train::context::StepContext;
use crate::train::step::accumulate::detached_copy;

/// Bytes of a pair: two little-endian f32.
const PAIR_BYTES: usize = 8;
/// Bytes of the checksum that ends a finished file.
const HASH_BYTES: usize = 32;

/// What the log-probabilities depend on.
#[derive(Clone, Debug)]
pub(crate) struct ReferenceKey {
    /// Data, tokenizer and template: the token cache's key.
    pub(crate) data: String,
    /// Hash of the model's weights and config.
    pub(crate) model: String,
    /// Everything else that decides the rows and the arithmetic.
    pub(crate) rows: String,
}

/// Where log-probabilities are kept, who computes them and who is told of progress.
pub(crate) struct ReferenceRequest<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) key: &'a ReferenceKey,
    pub(crate) context: StepContext<'a>,
    pub(crate) progress: &'a dyn Fn(u64, u64),
}

/// The log-probabilities of a set: for each pair, in file order, of the chosen and of the rejected
/// answer. Rank 0 keeps the file; all ranks compute.
///
/// `model` is called only when something is left to compute.
pub(crate) fn open_or_compute(
    request: &ReferenceRequest<'_>,
    plan: &PairPlan,
    model: &mut dyn FnMut() -> Result<LanguageModel, TrainError>,
) -> Result<Vec<[f32; 2]>, TrainError> {
    let comm = request.context.comm;
    let found = first_only(comm, || Store::open(request, plan.items() as usize))?;
    let (store, known) = found.unzip();
    let known = comm.broadcast(known.unwrap_or_default());
    let done = (known.len() / PAIR_BYTES) as u64;
    let mut writer = Writer { store, bytes: known };
    if done < plan.items() {
        let model = all_ok(comm, model())?;
        compute(request, plan, &model, done, &mut writer)?;
    }
    first_only(comm, || writer.finish())?;
    Ok(decode(&writer.bytes))
}

/// The file of a set, on rank 0.
struct Store {
    path: PathBuf,
    /// Where more pairs go; `None` when the file is finished.
    partial: Option<(fs_err::File, FileLock)>,
}

impl Store {
    /// Finds a whole file, or waits until no other process works on it and opens what is there; with
    /// the pairs that were computed before.
    fn open(request: &ReferenceRequest<'_>, pairs: usize) -> Result<(Self, Vec<u8>), TrainError> {
        let path = request.path();
        if let Some(bytes) = read_finished(&path, pairs) {
            return Ok((Self { path, partial: None }, bytes));
        }
        fs_err::create_dir_all(request.dir)?;
        let interrupted = || request.context.interrupted();
        let lock = FileLock::exclusive(&path.with_extension("lock"), &interrupted)?;
        let Some(lock) = lock else {
            let stop = request.context.signals.stop().expect("only a signal interrupts");
            return Err(TrainError::Stopped(stop));
        };
        if let Some(bytes) = read_finished(&path, pairs) {
            return Ok((Self { path, partial: None }, bytes)); // made by another process meanwhile
        }
        let mut file = fs_err::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(partial_path(&path))?;
        let mut bytes = Vec::new();
        std::io::copy(&mut file, &mut bytes)?;
        let done = (bytes.len() / PAIR_BYTES).min(pairs);
        bytes.truncate(done * PAIR_BYTES);
        file.file_mut().set_len(bytes.len() as u64)?;
        file.seek(SeekFrom::End(0))?;
        Ok((Self { path, partial: Some((file, lock)) }, bytes))
    }
}

/// Takes the pairs in their order; on the first rank they also reach the disk.
struct Writer {
    store: Option<Store>,
    bytes: Vec<u8>,
}

impl Writer {
    fn append(&mut self, records: &[u8]) -> Result<(), TrainError> {
        let file = self.store.as_mut().and_then(|store| store.partial.as_mut());
        if let Some((file, _)) = file {
            file.write_all(records)?;
        }
        self.bytes.extend(records);
        Ok(())
    }

    /// Publishes the whole file where it was not there yet.
    fn finish(&mut self) -> Result<(), TrainError> {
        let Some(Store { path, partial: Some(_) }) = &self.store else { return Ok(()) };
        let mut finished = self.bytes.clone();
        finished.extend(blake3::hash(&self.bytes).as_bytes());
        write_file(path, &finished, OnExisting::Replace)?;
        Ok(fs_err::remove_file(partial_path(path))?)
    }
}

fn partial_path(path: &Path) -> PathBuf {
    path.with_extension("part")
}

impl ReferenceRequest<'_> {
    fn path(&self) -> PathBuf {
        let ReferenceKey { data, model, rows } = self.key;
        let mut hasher =
            blake3::Hasher::new_derive_key("bitnet-train reference log-probabilities 2");
        for part in [data.as_str(), model, rows, env!("CARGO_PKG_VERSION")] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let name = format!("reference-{}.logp", &hasher.finalize().to_hex()[..32]);
        self.dir.join(name)
    }
}

/// The values of a whole file whose checksum is right.
fn read_finished(path: &Path, pairs: usize) -> Option<Vec<u8>> {
    let mut bytes = fs_err::read(path).ok()?;
    let (values, hash) = bytes.split_at_checked(pairs * PAIR_BYTES)?;
    let sound = hash.len() == HASH_BYTES && blake3::hash(values).as_bytes() == hash;
    bytes.truncate(pairs * PAIR_BYTES);
    sound.then_some(bytes)
}

/// Computes pairs from number `done` on, round after round, each rank its share of a round.
fn compute(
    request: &ReferenceRequest<'_>,
    plan: &PairPlan,
    model: &LanguageModel,
    done: u64,
    writer: &mut Writer,
) -> Result<(), TrainError> {
    let StepContext { device, comm, .. } = request.context;
    let of = |number: u64| encode(log_probs(&detached_copy(model), &plan.item(number), device));
    // No more pairs than threads: a thread that waits within one pair would begin another.
    let shared = model.backend().is_native();
    let at_once = if shared { rayon::current_num_threads().min(255) as u8 } else { 1 };
    // All ranks must make rounds of the same size, however many threads each has.
    let at_once = usize::from(comm.all_reduce_max(at_once)) * comm.world_size();
    let mut from = done;
    while from < plan.items() {
        let round = (plan.items() - from).min(at_once as u64);
        let share = comm.share(round as usize);
        let own = from + share.start as u64..from + share.end as u64;
        let own = (!request.context.interrupted()).then(|| -> Vec<[u8; PAIR_BYTES]> {
            if shared { own.into_par_iter().map(of).collect() } else { own.map(of).collect() }
        });
        release_graphs(device);
        let own = request.context.finish(own)?;
        writer.append(&comm.gather(own.as_flattened()).concat())?;
        from += round;
        (request.progress)(from, plan.items());
    }
    Ok(())
}

/// Burn frees recorded graphs only in a backward pass; any graph will do.
fn release_graphs(device: &Device) {
    let nothing: Tensor<1> = Tensor::zeros([1], device).require_grad();
    let _ = nothing.sum().backward();
}

fn log_probs(model: &LanguageModel, pair: &PreferencePair, device: &Device) -> [f32; 2] {
    let rows = batch_of(&[pair.chosen.clone(), pair.rejected.clone()]);
    let both = recorded_log_probs(model, &rows, device);
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
