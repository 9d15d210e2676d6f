//! The teacher's most likely words of every trained token of a set, computed once before the first step and
//! kept on disk; training maps the file and needs no teacher.
//!
//! They are kept by document and not by row: epochs pack documents into other rows, but attention stays
//! inside of a document, so what a model says of a token depends on no neighbour. The teacher reads each
//! document as rows hold it: cut to `data.seq_len`, or, where long ones are split, in pieces of that length
//! from its start. Text that is split is one stream, so a row may begin within a document; the student sees
//! less of it there than the teacher did.
//!
//! ```text
//! teacher-….top    for each document, for each trained token: k ids (u32), k + 1 log-probabilities (f32)
//!                  BLAKE3 of all of them
//! ```
//!
//! All numbers are little-endian.

use std::collections::BTreeMap;
use std::path::Path;

use bitnet_format::FileBytes;

use crate::data::{LoaderSettings, LongDocuments, PackedSequence, Segment, TokenCache};
use crate::distributed::all_ok;
use crate::error::TrainError;
use crate::model::LanguageModel;
use crate::ops::{TopOutcomes, top_outcomes};
use crate::train::stage::evaluate::batch_of;
use crate::train::stage::kept_file::{ItemComputation, KeptFile, KeptKey, KeptWork};

/// Documents of a thread in a round, after each of which the file grows.
const DOCUMENTS_AT_ONCE: usize = 8;

/// Where the words of a set are kept, who computes them and who gets the progress.
pub(crate) struct KeptRequest<'a> {
    pub(crate) dir: &'a Path,
    pub(super) key: &'a KeptKey,
    pub(crate) cache: &'a TokenCache,
    pub(crate) settings: LoaderSettings,
    /// Words of each token.
    pub(crate) count: usize,
    pub(super) work: KeptWork<'a>,
}

/// The words of all sets.
#[derive(Debug)]
pub(crate) struct KeptTeacher(pub(crate) BTreeMap<String, KeptWords>);

/// The kept words of a set.
#[derive(Debug)]
pub(crate) struct KeptWords {
    bytes: FileBytes,
    places: TokenPlaces,
    count: usize,
}

/// Which record of a file is whose.
#[derive(Debug)]
struct TokenPlaces {
    cache: TokenCache,
    settings: LoaderSettings,
    /// The first record of each document, and the end.
    firsts: Vec<u64>,
}

impl KeptTeacher {
    /// What is known of every token of these rows, which have one length.
    pub(crate) fn of_rows(&self, rows: &[PackedSequence]) -> TopOutcomes {
        let count = self.0.values().next().map_or(0, |words| words.count);
        let time = rows.first().map_or(0, |row| row.tokens.len());
        let mut ids = vec![0; rows.len() * time * count];
        let mut log_probs = vec![f32::NEG_INFINITY; rows.len() * time * (count + 1)];
        for (number, row) in rows.iter().enumerate() {
            let (words, mut token) = (&self.0[&*row.set], number * time);
            for segment in &row.segments {
                let mut record = words.places.record(segment);
                for at in token..token + segment.pairs {
                    // Only trained tokens have a record, and records of a segment follow each
                    // other: counting trained tokens finds them all.
                    if row.loss_mask[at - number * time] > 0.0 {
                        let ids = &mut ids[at * count..][..count];
                        words.read(record, ids, &mut log_probs[at * (count + 1)..][..=count]);
                        record += 1;
                    }
                }
                token += segment.pairs;
            }
        }
        TopOutcomes { count, ids: ids.into(), log_probs: log_probs.into() }
    }
}

impl KeptWords {
    fn read(&self, record: u64, ids: &mut [u32], log_probs: &mut [f32]) {
        let bytes = &self.bytes[record as usize * record_bytes(self.count)..];
        let (words, _) = bytes.as_chunks::<4>();
        ids.iter_mut().zip(words).for_each(|(id, word)| *id = u32::from_le_bytes(*word));
        let words = &words[self.count..];
        let values = log_probs.iter_mut().zip(words);
        values.for_each(|(value, word)| *value = f32::from_le_bytes(*word));
    }
}

fn record_bytes(count: usize) -> usize {
    4 * (2 * count + 1)
}

impl TokenPlaces {
    fn new(cache: &TokenCache, settings: LoaderSettings) -> Self {
        let mut places = Self { cache: cache.clone(), settings, firsts: vec![0] };
        let mut end = 0;
        for document in 0..cache.documents() {
            // Records are laid out document by document in the order of the cache, whatever the
            // order of an epoch: shuffling, packing and resuming find the same ones.
            let covered = places.covered(document);
            end += places.trained(document, covered) as u64;
            places.firsts.push(end);
        }
        places
    }

    /// Pairs of a document that rows hold.
    fn covered(&self, document: usize) -> usize {
        let pairs = (self.cache.length(document) as usize).saturating_sub(1);
        let LoaderSettings { seq_len, policy, .. } = self.settings;
        match policy {
            LongDocuments::Truncate => pairs.min(seq_len),
            LongDocuments::Drop if pairs > seq_len => 0,
            LongDocuments::Split | LongDocuments::Drop => pairs,
        }
    }

    /// Trained targets of the first pairs of a document.
    fn trained(&self, document: usize, pairs: usize) -> usize {
        if !self.cache.is_marked() {
            return pairs;
        }
        let mut mask = Vec::with_capacity(pairs);
        self.cache.extend_mask(document, 1..pairs + 1, &mut mask);
        mask.iter().filter(|&&trained| trained > 0.0).count()
    }

    /// The record of the first trained token of a segment.
    fn record(&self, segment: &Segment) -> u64 {
        self.firsts[segment.document] + self.trained(segment.document, segment.from) as u64
    }

    /// The pieces in which the teacher reads a document.
    fn pieces(&self, document: usize) -> Vec<Segment> {
        let (covered, row) = (self.covered(document), self.settings.seq_len);
        let piece = |from| Segment { document, from, pairs: row.min(covered - from) };
        // The teacher reads pieces of at most a row, as rows of the run hold them.
        (0..covered).step_by(row).map(piece).collect()
    }
}

/// Opens the words of a set, or lets the teacher say them first. Rank 0 keeps the file; all ranks compute,
/// and each of another machine gets a file of its own.
///
/// `teacher` is called only when something is left to compute.
pub(crate) fn open_or_compute(
    request: &KeptRequest<'_>,
    teacher: &mut dyn FnMut() -> Result<LanguageModel, TrainError>,
) -> Result<KeptWords, TrainError> {
    let (comm, count) = (request.work.context.comm, request.count);
    let places = TokenPlaces::new(request.cache, request.settings);
    let starts = places.firsts.iter().map(|&first| first * record_bytes(count) as u64).collect();
    let hash = request.key.hash("bitnet-train words of a teacher 1", &[&count.to_string()]);
    let file = KeptFile { path: request.dir.join(format!("teacher-{hash}.top")), starts };
    let whole = file.complete(request.work, || {
        let (teacher, places) = (teacher()?, &places);
        Ok(ItemComputation {
            in_parallel: teacher.backend().is_native(),
            of: move |document: u64| records(places, &teacher, count, document as usize),
            at_once: DOCUMENTS_AT_ONCE,
        })
    })?;
    file.share(comm)?;
    let bytes = all_ok(comm, whole.map_or_else(|| file.open(), Ok))?;
    Ok(KeptWords { bytes, places, count })
}

/// The records of a document, `count` words each.
fn records(
    places: &TokenPlaces,
    teacher: &LanguageModel,
    count: usize,
    document: usize,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in places.pieces(document) {
        let row = PackedSequence::of_segment(&places.cache, piece);
        let batch = batch_of(&[row]);
        if batch.trained_tokens() == 0 {
            continue;
        }
        let hidden = batch.outputs(teacher, None, &teacher.device()).hidden;
        let head = teacher.head_operand();
        let targets = batch.targets(batch.loss_mask.clone());
        let found = top_outcomes(hidden, head, &targets, count, teacher.backend());
        for token in targets.trained() {
            bytes.extend(found.ids(token).iter().flat_map(|id| id.to_le_bytes()));
            bytes.extend(found.log_probs(token).iter().flat_map(|value| value.to_le_bytes()));
        }
    }
    bytes
}
