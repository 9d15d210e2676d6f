//! `bitnet-train export`: converts a model to an inference format and verifies the result.

use std::time::Instant;

use anyhow::Result;
use bitnet_format::Shown;
use bitnet_format::blocks::i2_s::I2sLayout;
use bitnet_format::convert::gguf::EMBEDDING_TYPES;
use bitnet_format::figures::size;
use bitnet_format::output::{OutputClaim, is_model};
use bitnet_format::staged::OnExisting;
use bitnet_format::{StoredModel, WeightForm};
use bitnet_train::exporter::{self, ExportRequest};
use bitnet_train::monitor::{Monitor, Terminal, Verbosity};
use bitnet_train::platform::{Signals, peak_memory};
use bitnet_train::recipe::ExportFormat;
use bitnet_train::train::TrainError;
use serde_json::json;

use super::{print_json, print_line};
use crate::cli::{ExportArgs, LinearClass};
use crate::failure::Usage;

pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    let request = request(args)?;
    let signals = Signals::listen().map_err(TrainError::from)?;
    let verbosity = if args.json { Verbosity::Quiet } else { Verbosity::Normal };
    let monitor = &mut Terminal::new(verbosity);
    let model = StoredModel::open_as(args.model.path(), layout(args)).map_err(TrainError::from)?;
    let claim = OutputClaim::of(&args.out, request.on_existing, &[args.model.path()], is_model);
    let _claim = claim.map_err(TrainError::from)?;
    let start = Instant::now();
    let what = format!("writing {}", args.format);
    let mut watch = |done, total| monitor.progress(&what, done as u64, total as u64);
    let report = exporter::export(&model, args.model.path(), &request, &signals, &mut watch)?;
    let seconds = start.elapsed().as_secs_f64();
    let verification =
        if args.no_verify { None } else { Some(exporter::verify(&model, &args.out, &signals)?) };
    let bytes = size_of(&args.out)?;
    if args.json {
        let mut result = json!({
            "out": args.out.display().to_string(), "format": args.format, "bytes": bytes,
            "seconds": seconds, "peak_rss_bytes": peak_memory(), "verification": verification,
        });
        let report = serde_json::to_value(&report)?;
        let (Some(all), Some(parts)) = (result.as_object_mut(), report.as_object()) else {
            unreachable!("both are JSON objects");
        };
        all.extend(parts.clone());
        print_json(&result);
        return Ok(());
    }
    print_line(&format!("{}: {} in {seconds:.1} s, {report}", args.out.shown(), size(bytes)));
    report.remarks.iter().for_each(|remark| print_line(&format!("note: {remark}")));
    if let Some(verification) = verification {
        print_line(&verification.to_string());
        if args.verbose {
            print_line(&verification.details());
        }
    }
    Ok(())
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
        let expected = || Usage(format!("--embedding: expected {}", words.join(" or ")));
        request.embedding = found.ok_or_else(expected)?.1;
    }
    if args.linear_class == Some(LinearClass::Bitlinear) {
        request.scales = WeightForm::PackedDividing;
    }
    Ok(request)
}

fn layout(args: &ExportArgs) -> I2sLayout {
    if args.i2s_arm { I2sLayout::Blocks64 } else { I2sLayout::Blocks128 }
}

/// Bytes of a file, or of the files of a folder.
fn size_of(path: &std::path::Path) -> Result<u64> {
    if path.is_file() {
        return Ok(fs_err::metadata(path)?.len());
    }
    let mut bytes = 0;
    for entry in fs_err::read_dir(path)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
