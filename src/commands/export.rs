//! `bitnet-train export`: write a trained model in a format that runs, and run it.

use anyhow::Result;
use bitnet_format::folder::ModelFolder;
use bitnet_format::staged::OnExisting;
use bitnet_train::export::{self, Request};
use bitnet_train::recipe::ExportFormat;
use bitnet_train::train::TrainError;
use serde_json::json;

use super::print_line;
use crate::cli::ExportArgs;
use crate::failure::Usage;

pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    let format: ExportFormat =
        args.format.parse().map_err(|error| Usage(format!("--format: {error}")))?;
    let on_existing = if args.force { OnExisting::Replace } else { OnExisting::Refuse };
    let request = Request { format, out: &args.out, on_existing };
    let folder = ModelFolder::open(&args.model).map_err(TrainError::from)?;
    export::write(&folder, &args.model, &request)?;
    let verification = if args.no_verify { None } else { Some(export::verify(&args.out)?) };
    let (ternary, other) = export::parameter_split(&folder);
    if args.json {
        let result = json!({
            "out": args.out.display().to_string(), "format": args.format,
            "ternary_parameters": ternary, "other_parameters": other,
            "verification": verification,
        });
        print_line(&result.to_string());
        return Ok(());
    }
    print_line(&format!("{}: {ternary} ternary and {other} other parameters", args.out.display()));
    if let Some(verification) = verification {
        print_line(&verification.to_string());
    }
    Ok(())
}
