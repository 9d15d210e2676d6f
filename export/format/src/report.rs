//! What a model folder holds, in words: its config, its tensors, the shares of its ternary codes.
//! Shown by both programs; nothing here decides anything.

use crate::folder::ModelFolder;
use crate::matrix::Matrix;
use crate::quant::{WeightScale, ternary_codes};
use crate::{FormatError, TensorEntry, WeightForm, tensor_table};

/// The lines of a report, the config first. Every tensor is read once.
pub fn report(folder: &ModelFolder, mut line: impl FnMut(&str)) -> Result<(), FormatError> {
    line(&format!("{:<24} {}", "parameters", folder.spec().parameters()));
    line(&format!("{:<24} {}", "matrices", form_in_words(folder.form())));
    if let Ok(serde_json::Value::Object(keys)) = serde_json::to_value(folder.spec()) {
        for (key, value) in keys {
            line(&format!("{key:<24} {value}"));
        }
    }
    let table = tensor_table(folder.spec());
    let width = table.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    line("");
    for entry in &table {
        let shape = format!("{:?}", entry.shape);
        line(&format!("{:<width$} {shape:<16} {}", entry.name, content(folder, entry)?));
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
    if !entry.is_ternary(folder.spec()) {
        return Ok(floats(&folder.floats(entry)?));
    }
    Ok(match folder.matrix(entry)? {
        Matrix::Ternary { codes, scale } => shares(&codes, scale),
        Matrix::Latent(values) => {
            let scale = WeightScale::of_latents(&values);
            format!(
                "{}, latents: {}",
                shares(&ternary_codes(&values, scale), scale),
                range(&values)
            )
        }
    })
}

fn shares(codes: &[i8], scale: WeightScale) -> String {
    let share = |code| {
        let count = codes.iter().filter(|&&other| other == code).count();
        100.0 * count as f64 / codes.len() as f64
    };
    let shares = [share(-1), share(0), share(1)];
    let [minus, zero, plus] = shares;
    format!("-1 {minus:4.1} %  0 {zero:4.1} %  +1 {plus:4.1} %  scale {}", scale.multiplier())
}

fn floats(values: &[f32]) -> String {
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len().max(1) as f64;
    format!("float, mean {mean:.4}, {}", range(values))
}

fn range(values: &[f32]) -> String {
    let ends = |(low, high): (f32, f32), &x: &f32| (low.min(x), high.max(x));
    let (low, high) = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), ends);
    format!("from {low:.4} to {high:.4}")
}
