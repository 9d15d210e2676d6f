//! `bitnet inspect`: config, tensors and ternary shares of a model folder or a GGUF file.

use bitnet_format::StoredModel;
use bitnet_format::report::{report, report_json};
use bitnet_terminal::printable;

use crate::cli::InspectArgs;
use crate::output::{json_line, result_line};

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let model = StoredModel::open(args.model.path())?;
    if args.json {
        return Ok(json_line(&report_json(&model)?)?);
    }
    let mut lines = Vec::new();
    report(&model, |line| lines.push(printable(line).into_owned()))?;
    Ok(result_line(&lines.join("\n"))?)
}
