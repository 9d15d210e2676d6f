//! `bitnet-train export`: converts a model, with an adapter if one is named, to an inference format
//! and verifies the result.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use bitnet_format::Shown;
use bitnet_format::adapter::{Adapter, AdapterKind, MergedModel};
use bitnet_format::blocks::i2_s::I2sLayout;
use bitnet_format::convert::gguf::EMBEDDING_TYPES;
use bitnet_format::figures::{grouped, size};
use bitnet_format::output::{OutputClaim, is_adapter, is_model};
use bitnet_format::staged::OnExisting;
use bitnet_format::{FormatError, StoredModel, WeightForm, model_hash};
use bitnet_train::exporter::{
    self, ExportReport, ExportRequest, Verification, adapter_path, write_adapter_beside,
};
use bitnet_train::monitor::{Monitor, Terminal, Verbosity};
use bitnet_train::platform::{Signals, peak_memory};
use bitnet_train::recipe::ExportFormat;
use bitnet_train::train::TrainError;
use serde_json::{Value, json};

use super::{print_json, print_line};
use crate::cli::{ExportArgs, LinearClass};
use crate::failure::Usage;

pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    // What can be refused is refused before anything is written: flags, layout, adapter, outputs.
    let mut request = request(args)?;
    refuse_layout_of_a_folder(args)?;
    let signals = Signals::listen().map_err(TrainError::from)?;
    let model = StoredModel::open_as(args.model.path(), layout(args)).map_err(TrainError::from)?;
    let adapter = args.adapter.as_deref().map(|path| Adapter::open(path, model.spec()));
    let adapter = adapter.transpose().map_err(TrainError::from)?;
    let side = adapter.as_ref().filter(|one| one.description().kind == AdapterKind::Side);
    // Only now is it known whether an adapter's folder will lie beside the output. Kept to
    // the end: dropping a claim lets another process write there.
    let _claims = claims(args, request.on_existing, side.is_some()).map_err(TrainError::from)?;
    let merged =
        adapter.as_ref().map(|adapter| merged(args, &model, adapter)).transpose()?.flatten();
    request.merged = merged.as_ref();
    let exported = write(args, &model, &request, &signals)?;
    // After the export, whose hash it carries.
    let beside = side.map(|side| write_adapter_beside(side, &args.out, request.on_existing));
    show(args, &exported, adapter.as_ref(), beside.transpose()?.as_deref())
}

/// What was written, and what verifying it found.
struct Exported {
    report: ExportReport,
    seconds: f64,
    bytes: u64,
    verification: Option<Verification>,
}

/// The output, and the folder of a side adapter beside it, for this process alone.
fn claims(
    args: &ExportArgs,
    on_existing: OnExisting,
    with_side: bool,
) -> Result<Vec<OutputClaim>, FormatError> {
    let adapter = args.adapter.as_deref();
    let inputs: Vec<&Path> = std::iter::once(args.model.path()).chain(adapter).collect();
    let mut claims = vec![OutputClaim::of(&args.out, on_existing, &inputs, is_model)?];
    if with_side {
        let beside = adapter_path(&args.out);
        claims.push(OutputClaim::of(&beside, on_existing, &inputs, is_adapter)?);
    }
    Ok(claims)
}

/// The model with a latent adapter; `None` for a side adapter, which was trained on these files too.
fn merged<'a>(
    args: &ExportArgs,
    model: &'a StoredModel,
    adapter: &'a Adapter,
) -> Result<Option<MergedModel<'a>>, TrainError> {
    let path = args.model.path();
    let hash = model_hash(path, model)?;
    match adapter.description().kind {
        AdapterKind::Latent => Ok(Some(MergedModel::new(model, path, &hash, adapter)?)),
        AdapterKind::Side => {
            adapter.require_base(path, &hash)?;
            Ok(None)
        }
    }
}

fn write(
    args: &ExportArgs,
    model: &StoredModel,
    request: &ExportRequest,
    signals: &Signals,
) -> Result<Exported, TrainError> {
    let verbosity = if args.json { Verbosity::Quiet } else { Verbosity::Normal };
    let monitor = &mut Terminal::new(verbosity);
    let start = Instant::now();
    let what = format!("writing {}", args.format);
    let mut watch = |done, total| monitor.progress(&what, done as u64, total as u64);
    let report = exporter::export(model, args.model.path(), request, signals, &mut watch)?;
    let seconds = start.elapsed().as_secs_f64();
    // Against what was written from: with a latent adapter, the merged weights.
    let verify = || exporter::verify(request.weights(model), &args.out, signals);
    let verification = if args.no_verify { None } else { Some(verify()?) };
    Ok(Exported { report, seconds, bytes: size_of(&args.out)?, verification })
}

fn show(
    args: &ExportArgs,
    exported: &Exported,
    adapter: Option<&Adapter>,
    beside: Option<&Path>,
) -> Result<()> {
    if args.json {
        print_json(&as_json(args, exported, adapter, beside)?);
        return Ok(());
    }
    let Exported { report, seconds, bytes, verification } = exported;
    print_line(&format!("{}: {} in {seconds:.1} s, {report}", args.out.shown(), size(*bytes)));
    if let Some(adapter) = adapter {
        print_line(&about_adapter(adapter, beside));
    }
    report.remarks.iter().for_each(|remark| print_line(&format!("note: {remark}")));
    if let Some(verification) = verification {
        print_line(&verification.to_string());
        if args.verbose {
            print_line(&verification.details());
        }
    }
    Ok(())
}

fn about_adapter(adapter: &Adapter, beside: Option<&Path>) -> String {
    let rank = adapter.description().rank;
    let path = adapter.path().shown();
    match beside {
        None => format!("{path}: latent adapter of rank {rank}, merged"),
        Some(beside) => format!(
            "{}: side adapter of rank {rank}, {} parameters; run both with --adapter",
            beside.shown(),
            grouped(adapter.parameters() as u64)
        ),
    }
}

fn as_json(
    args: &ExportArgs,
    exported: &Exported,
    adapter: Option<&Adapter>,
    beside: Option<&Path>,
) -> Result<Value> {
    let Exported { report, seconds, bytes, verification } = exported;
    let mut result = json!({
        "out": args.out.display().to_string(), "format": args.format, "bytes": bytes,
        "seconds": seconds, "peak_rss_bytes": peak_memory(), "verification": verification,
    });
    // The report's keys stand beside the others, not below one of their own.
    let mut parts = serde_json::to_value(report)?;
    if let Some(adapter) = adapter {
        let description = adapter.description();
        parts["adapter"] = json!({
            "kind": description.kind.name(), "rank": description.rank,
            "parameters": adapter.parameters(),
            "out": beside.map(|path| path.display().to_string()),
        });
    }
    let (Some(all), Some(parts)) = (result.as_object_mut(), parts.as_object()) else {
        unreachable!("both are JSON objects");
    };
    all.extend(parts.clone());
    Ok(result)
}

fn request(args: &ExportArgs) -> Result<ExportRequest<'_>> {
    let format: ExportFormat =
        args.format.parse().map_err(|error| Usage(format!("--format: {error}")))?;
    let is_gguf = args.format.starts_with("gguf");
    if args.embedding.is_some() && !is_gguf {
        return Err(Usage("--embedding: only GGUF files have a choice".to_owned()).into());
    }
    if args.linear_class.is_some() && format != ExportFormat::HfPacked {
        return Err(Usage("--linear-class: only hf-packed has a choice".to_owned()).into());
    }
    let on_existing = if args.force { OnExisting::Replace } else { OnExisting::Refuse };
    let mut request = ExportRequest::new(format, &args.out, on_existing);
    if let Some(word) = &args.embedding {
        let found = EMBEDDING_TYPES.iter().find(|(known, _)| known == word);
        let words: Vec<_> = EMBEDDING_TYPES.iter().map(|(word, _)| *word).collect();
        let expected =
            || Usage(format!("--embedding: expected {}, got {word:?}", words.join(" or ")));
        request.embedding = found.ok_or_else(expected)?.1;
    }
    if args.linear_class == Some(LinearClass::Bitlinear) {
        request.scales = WeightForm::PackedDividing;
    }
    Ok(request)
}

/// A folder has no I2_S tensors.
fn refuse_layout_of_a_folder(args: &ExportArgs) -> Result<()> {
    let path = args.model.path();
    if args.i2s_arm && path.is_dir() {
        let what = format!("expected a GGUF file as model, got the folder {}", path.shown());
        return Err(Usage(format!("--i2s-arm: {what}")).into());
    }
    Ok(())
}

fn layout(args: &ExportArgs) -> I2sLayout {
    if args.i2s_arm { I2sLayout::Blocks64 } else { I2sLayout::Blocks128 }
}

/// Bytes of a file, or of the files of a folder.
fn size_of(path: &Path) -> Result<u64, FormatError> {
    if path.is_file() {
        return Ok(fs_err::metadata(path)?.len());
    }
    let mut bytes = 0;
    for entry in fs_err::read_dir(path)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
