//! Exports a stored model to an inference format.
//!
//! `bitnet-format` writes the bytes. This module chooses the format, copies the tokenizer
//! (`tokenizer`), moves the result into place in one step, and verifies it (`verify`). A latent adapter
//! is merged on the way; a side adapter is written beside the result (`adapter`).

mod adapter;
mod tokenizer;
mod verify;

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use bitnet_format::adapter::MergedModel;
use bitnet_format::convert::gguf::{self, GgufForm};
use bitnet_format::convert::{ConversionProgress, Converted, hf};
use bitnet_format::figures::grouped;
use bitnet_format::folder::CONFIG_FILE;
use bitnet_format::group::ActivationForm;
use bitnet_format::report::compatibility_warnings;
use bitnet_format::staged::{OnExisting, StagedDir, StagedFile};
use bitnet_format::{
    DType, FormatError, ModelSpec, StoredModel, TensorEntry, TensorSource, WeightForm, tensor_table,
};
use serde::Serialize;

use crate::error::TrainError;
use crate::platform::Signals;
use crate::recipe::{ExportFormat, Recipe};
pub use adapter::{adapter_path, write_adapter_beside};
pub use verify::{Verification, verify};

/// What to export and where to.
#[derive(Clone, Copy, Debug)]
pub struct ExportRequest<'a> {
    /// The layout.
    pub format: ExportFormat,
    /// The folder or file to write.
    pub out: &'a Path,
    /// What to do when it exists.
    pub on_existing: OnExisting,
    /// Embedding and head of a GGUF file.
    pub embedding: DType,
    /// What a packed folder's scales do: multiply (`autobitlinear`) or divide (`bitlinear`).
    pub scales: WeightForm,
    /// The model with a latent adapter, whose matrices are written instead of its own.
    pub merged: Option<&'a MergedModel<'a>>,
}

impl<'a> ExportRequest<'a> {
    /// The defaults: F16 embedding, scales that multiply, no adapter.
    pub fn new(format: ExportFormat, out: &'a Path, on_existing: OnExisting) -> Self {
        let (embedding, scales) = (DType::F16, WeightForm::PackedMultiplying);
        Self { format, out, on_existing, embedding, scales, merged: None }
    }

    /// What is written: `model`, or what an adapter makes of it.
    pub fn weights<'m>(&self, model: &'m StoredModel) -> &'m dyn TensorSource
    where
        'a: 'm,
    {
        self.merged.map_or(model as &dyn TensorSource, |merged| merged)
    }
}

/// What an export wrote.
#[derive(Clone, Debug, Serialize)]
pub struct ExportReport {
    /// Values of ternary matrices.
    pub ternary_parameters: usize,
    /// All other values.
    pub other_parameters: usize,
    /// Latent weights nudged off the rounding threshold to keep their ternary codes (hf-bf16).
    pub adjusted: usize,
    /// Tensors with codes that could not be kept, with their number.
    pub lost: Vec<(String, usize)>,
    /// Compatibility warnings for other programs.
    pub remarks: Vec<String>,
}

impl fmt::Display for ExportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ternary, other] =
            [self.ternary_parameters, self.other_parameters].map(|count| grouped(count as u64));
        write!(f, "{ternary} ternary and {other} other parameters")?;
        if self.adjusted > 0 {
            write!(f, "; {} rounded away from the threshold to keep their codes", self.adjusted)?;
        }
        for (name, count) in &self.lost {
            write!(f, "; {count} codes of {name} could not be kept")?;
        }
        Ok(())
    }
}

/// Refuses a recipe whose model an export format cannot hold, before anything is trained.
///
/// # Errors
/// Names the tensor.
pub fn check_formats(recipe: &Recipe, spec: &ModelSpec) -> Result<(), TrainError> {
    recipe.export.formats.iter().try_for_each(|&format| {
        let refused = |error: FormatError| TrainError::Contradiction {
            path: recipe.path.clone(),
            field: "export.formats".to_owned(),
            what: match error {
                FormatError::Tensor { name, what, .. } => {
                    format!("{}: {name} {what}", format.name())
                }
                FormatError::Config { field, what, .. } => {
                    format!("{}: {field} {what}", format.name())
                }
                other => format!("{}: {other}", format.name()),
            },
        };
        check_form(&recipe.path, spec, format, DType::F16).map_err(refused)
    })
}

fn check_form(
    path: &Path,
    spec: &ModelSpec,
    format: ExportFormat,
    embedding: DType,
) -> Result<(), FormatError> {
    match gguf_matrices(format) {
        Some(matrices) => gguf::check(path, spec, matrices, embedding),
        None if format == ExportFormat::HfPacked => hf::check_packable(path, spec),
        None => hf::check_master(path, spec),
    }
}

/// How a GGUF format stores matrices.
fn gguf_matrices(format: ExportFormat) -> Option<DType> {
    match format {
        ExportFormat::GgufI2S => Some(DType::I2S),
        ExportFormat::GgufTq1 => Some(DType::Tq1_0),
        ExportFormat::GgufTq2 => Some(DType::Tq2_0),
        ExportFormat::GgufBf16 => Some(DType::Bf16),
        ExportFormat::GgufQ2 => Some(DType::Q2_0),
        ExportFormat::HfBf16 | ExportFormat::HfPacked => None,
    }
}

/// Exports an open model; `source` is its path. The result gets its final name as the last step, so
/// an error or a stop by `signals` leaves nothing behind.
///
/// # Errors
/// A form that cannot hold the model, a target that exists, a full disk, a stop.
pub fn export(
    model: &StoredModel,
    source: &Path,
    request: &ExportRequest,
    signals: &Signals,
    watch: &mut dyn FnMut(usize, usize),
) -> Result<ExportReport, TrainError> {
    check_form(source, model.spec(), request.format, request.embedding)?;
    let start = Instant::now();
    let mut progress = |done, total| {
        // Small models finish before a progress line would be readable.
        if start.elapsed() > Duration::from_secs(1) {
            watch(done, total);
        }
        signals.stop().map_or(Ok(()), |_| Err(FormatError::Interrupted))
    };
    let written = match gguf_matrices(request.format) {
        Some(matrices) => write_file(model, source, request, matrices, &mut progress),
        None => write_folder(model, source, request, &mut progress),
    };
    let (written, mut remarks) = written.map_err(|error| match (error, signals.stop()) {
        (TrainError::Format(FormatError::Interrupted), Some(stop)) => {
            TrainError::ExportStopped(stop)
        }
        (error, _) => error,
    })?;
    // From the written file, which is what the other programs will read.
    remarks.extend(compatibility_warnings(&StoredModel::open(request.out)?));
    Ok(ExportReport {
        ternary_parameters: written.ternary,
        other_parameters: model.spec().parameters() - written.ternary,
        adjusted: written.adjusted,
        lost: written.lost,
        remarks,
    })
}

fn write_file(
    model: &StoredModel,
    source: &Path,
    request: &ExportRequest,
    matrices: DType,
    progress: ConversionProgress,
) -> Result<(Converted, Vec<String>), TrainError> {
    let spec = request.weights(model).spec();
    let (tokenizer, mut remarks) = tokenizer::for_gguf(source, spec)?;
    if spec.quantise && spec.activations == ActivationForm::None {
        remarks.push(FLOAT_ACTIVATIONS.to_owned());
    }
    // GGUF's `general.name`, for people; nothing is found by it.
    let name = source.file_stem().unwrap_or(source.as_os_str()).to_string_lossy().into_owned();
    let form = GgufForm { matrices, embedding: request.embedding, name, tokenizer };
    // Under a temporary name until it is whole; dropped before that, it is removed.
    let staged = StagedFile::beside(request.out, request.on_existing)?;
    let written = gguf::write_gguf(staged.path(), request.weights(model), &form, progress)?;
    staged.publish()?;
    Ok((written, remarks))
}

/// What GGUF has no key for.
const FLOAT_ACTIVATIONS: &str = "activations = \"none\": a GGUF file does not say so, and programs that \
     read it, ours too, may quantise them to 8 bits";

fn write_folder(
    model: &StoredModel,
    source: &Path,
    request: &ExportRequest,
    progress: ConversionProgress,
) -> Result<(Converted, Vec<String>), TrainError> {
    let staged = StagedDir::beside(request.out, request.on_existing)?;
    let written = if request.format == ExportFormat::HfPacked {
        hf::write_packed_form(staged.path(), request.weights(model), request.scales, progress)?
    // The sums with an adapter are new values: there is no file to copy.
    } else if request.merged.is_some() {
        hf::write_master(staged.path(), request.weights(model), progress)?
    } else {
        write_master(model, source, staged.path(), progress)?
    };
    let remarks = tokenizer::for_folder(source, staged.path(), request.weights(model).spec())?;
    staged.publish()?;
    Ok((written, remarks))
}

/// Writes a BF16 master. A source that is one already is copied byte for byte.
fn write_master(
    model: &StoredModel,
    source: &Path,
    to: &Path,
    progress: ConversionProgress,
) -> Result<Converted, TrainError> {
    if model.is_packed() {
        let what = "holds packed codes without the latent weights that a master is made of; \
                    expected a checkpoint or a folder with float matrices";
        return Err(FormatError::Container { path: source.to_owned(), what: what.into() }.into());
    }
    if !matches!(model, StoredModel::Folder(folder) if folder.is_bf16()) {
        return Ok(hf::write_master(to, model, progress)?);
    }
    let config = source.join(CONFIG_FILE);
    let index = source.join(bitnet_format::folder::INDEX_FILE);
    let weights = model.weight_files();
    let total = model.spec().parameters();
    // An index names shards: a single file is copied without.
    let index = (weights.len() > 1 && index.exists()).then_some(index);
    let mut before = 0;
    for file in std::iter::once(config).chain(index).chain(weights) {
        let name = file.file_name().expect("a file of the folder has a name").to_owned();
        // A weight has two bytes; what else the files hold is too little to tell apart.
        let mut copied = |bytes: usize| {
            let all: usize = before + bytes;
            progress((all / 2).min(total), total)
        };
        before += copy(&file, &to.join(name), &mut copied)?;
    }
    let table = tensor_table(model.spec());
    let matrices = table.iter().filter(|entry| entry.is_ternary(model.spec()));
    let ternary = matrices.map(TensorEntry::elements).sum();
    Ok(Converted { ternary, ..Converted::default() })
}

/// Copies a file in chunks, so that a stop signal is noticed; returns its bytes.
fn copy(
    from: &Path,
    to: &Path,
    progress: &mut dyn FnMut(usize) -> Result<(), FormatError>,
) -> Result<usize, FormatError> {
    use std::io::{Read, Write};
    let (mut from, mut to) = (fs_err::File::open(from)?, fs_err::File::create(to)?);
    let (mut chunk, mut done) = (vec![0; 8 << 20], 0);
    loop {
        let count = from.read(&mut chunk)?;
        if count == 0 {
            return Ok(done);
        }
        to.write_all(&chunk[..count])?;
        done += count;
        progress(done)?;
    }
}
