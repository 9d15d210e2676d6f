//! `bitnet inspect`: config, tensors and ternary shares of a model folder or a GGUF file.

use bitnet_format::StoredModel;
use bitnet_format::report::report;

use crate::cli::InspectArgs;
use crate::open;
use crate::output::result_line;

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let path = args.path.as_ref().or(args.model.as_ref()).expect("clap requires one of them");
    open::check_path(path)?;
    let model = StoredModel::open(path)?;
    let mut lines = Vec::new();
    report(&model, |line| lines.push(line.to_owned()))?;
    Ok(result_line(&lines.join("\n"))?)
}
