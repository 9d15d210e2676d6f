//! `bitnet inspect`: config, tensors and ternary shares of a model folder.

use std::io::{Write, stdout};

use bitnet_format::folder::ModelFolder;
use bitnet_format::{FormatError, TensorEntry, WeightForm, tensor_table};

use crate::cli::InspectArgs;
use crate::open;

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    open::check_folder(&args.path)?;
    let folder = ModelFolder::open(&args.path)?;
    let mut out = stdout().lock();
    writeln!(out, "{:<24} {}", "parameters", folder.spec().parameters())?;
    writeln!(out, "{:<24} {}", "matrices", form_in_words(folder.form()))?;
    if let serde_json::Value::Object(keys) = serde_json::to_value(folder.spec())? {
        for (key, value) in keys {
            writeln!(out, "{key:<24} {value}")?;
        }
    }
    let table = tensor_table(folder.spec());
    let width = table.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    writeln!(out)?;
    for entry in &table {
        let shape = format!("{:?}", entry.shape);
        writeln!(out, "{:<width$} {shape:<16} {}", entry.name, content(&folder, entry)?)?;
    }
    Ok(())
}

fn form_in_words(form: WeightForm) -> &'static str {
    match form {
        WeightForm::Latent => "floats",
        WeightForm::PackedMultiplying => "packed ternary, scales multiply",
        WeightForm::PackedDividing => "packed ternary, scales divide",
    }
}

fn content(folder: &ModelFolder, entry: &TensorEntry) -> Result<String, FormatError> {
    let packed = folder.form() != WeightForm::Latent && entry.is_ternary(folder.spec());
    if !packed {
        return float_content(&folder.floats(entry)?);
    }
    let (matrix, scale) = folder.ternary(entry)?;
    let codes = matrix.codes();
    let share = |code| {
        let count = codes.iter().filter(|&&other| other == code).count();
        100.0 * count as f64 / codes.len() as f64
    };
    Ok(format!(
        "-1 {:4.1} %  0 {:4.1} %  +1 {:4.1} %  scale {}",
        share(-1),
        share(0),
        share(1),
        scale.multiplier()
    ))
}

fn float_content(values: &[f32]) -> Result<String, FormatError> {
    let (low, high) = values
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)));
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
    Ok(format!("float, mean {mean:.4}, from {low:.4} to {high:.4}"))
}
