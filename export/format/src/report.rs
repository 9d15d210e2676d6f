//! A stored model described as text, for `inspect`: its config, its tensors, the shares of its
//! ternary codes, and which other programs are known not to read it.

use crate::gguf::{GgufModel, Value, architecture::Architecture};
use crate::matrix::Matrix;
use crate::quant::{WeightScale, ternary_codes};
use crate::{
    DType, FormatError, HiddenAct, ModelSpec, StoredModel, TensorEntry, TensorSource, WeightForm,
    tensor_table,
};

/// The lines of a report, the config first. Every tensor is read once.
pub fn report(model: &StoredModel, mut line: impl FnMut(&str)) -> Result<(), FormatError> {
    let spec = model.spec();
    line(&format!("{:<24} {}", "parameters", spec.parameters()));
    line(&format!("{:<24} {}", "matrices", storage(model)));
    if let Ok(serde_json::Value::Object(keys)) = serde_json::to_value(spec) {
        for (key, value) in keys {
            line(&format!("{key:<24} {value}"));
        }
    }
    if let StoredModel::Gguf(gguf) = model {
        line("");
        metadata(gguf, &mut line);
    }
    let table = tensor_table(spec);
    let width = table.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    line("");
    for entry in &table {
        let shape = format!("{:?}", entry.shape);
        line(&format!("{:<width$} {shape:<16} {}", entry.name, statistics(model, entry)?));
    }
    line("");
    for warning in compatibility_warnings(model) {
        line(&format!("note: {warning}"));
    }
    Ok(())
}

/// What other programs are known to refuse or to read wrongly in this model.
pub fn compatibility_warnings(model: &StoredModel) -> Vec<String> {
    let mut all = Vec::new();
    match model {
        StoredModel::Folder(folder) => all.push(folder_warning(folder.form()).to_owned()),
        StoredModel::Gguf(gguf) => gguf_warnings(gguf, &mut all),
    }
    let spec = model.spec();
    if spec.quantise && spec.hidden_act == HiddenAct::Relu2 && !spec.sub_norms {
        all.push("relu2 without sub-norms: only this project's programs run it".to_owned());
    }
    all.extend(impossible_formats(spec));
    all
}

fn folder_warning(form: WeightForm) -> &'static str {
    match form {
        WeightForm::Latent => {
            "float latents: transformers runs them (quantization_mode online); llama.cpp's \
             converter does not take this model type"
        }
        WeightForm::PackedMultiplying => {
            "scales multiply: transformers 4.52 and later; readers that always divide (llama.cpp's \
             converter) get it wrong"
        }
        WeightForm::PackedDividing => {
            "scales divide: readers that know only 2B4T's own folder, whose scales multiply, get \
             it wrong"
        }
    }
}

fn gguf_warnings(gguf: &GgufModel, all: &mut Vec<String>) {
    let table = tensor_table(gguf.spec());
    let i2_s = table.iter().any(|entry| gguf.dtype(entry) == DType::I2S);
    if i2_s {
        all.push(
            "I2_S (type 36): bitnet.cpp and ik_llama.cpp read it, llama.cpp and its relatives do \
             not; builds of bitnet.cpp for ARM since November 2025 expect other blocks"
                .to_owned(),
        );
    }
    match gguf.architecture() {
        Architecture::BitnetB158 => all.push(
            "bitnet-b1.58: not in llama.cpp; bitnet.cpp since July 2026 computes SiLU where this \
             model has relu2"
                .to_owned(),
        ),
        Architecture::Bitnet if !i2_s && gguf.spec().tie_word_embeddings => {
            all.push("bitnet with SiLU and TQ blocks: unmodified llama.cpp runs it".to_owned());
        }
        Architecture::Llama if !i2_s => {
            all.push("llama with TQ blocks: unmodified llama.cpp runs it".to_owned());
        }
        Architecture::Bitnet | Architecture::Llama => {}
    }
    if gguf.architecture() != Architecture::Llama && !gguf.spec().tie_word_embeddings {
        all.push(
            "a head of its own: llama.cpp refuses such a bitnet model, bitnet.cpp takes the \
             embedding for it; train with tie_word_embeddings = true for them"
                .to_owned(),
        );
    }
    let text = |key: &str| gguf.file().metadata().get(key);
    let has_vocabulary = text("tokenizer.ggml.tokens").is_some();
    if has_vocabulary && text("tokenizer.ggml.pre").is_none() {
        all.push("no tokenizer.ggml.pre: readers fall back to another way of splitting".to_owned());
    }
    if matches!(text("tokenizer.chat_template"), Some(Value::String(t)) if t.contains("BITNETAssistant"))
    {
        all.push("the chat template is not the one the model was trained with".to_owned());
    }
}

/// Formats that cannot hold this shape.
fn impossible_formats(spec: &ModelSpec) -> Vec<String> {
    let columns = |block: usize| {
        let table = tensor_table(spec);
        let odd =
            |entry: &&TensorEntry| entry.is_ternary(spec) && !entry.shape[1].is_multiple_of(block);
        table.iter().find(odd).map(|entry| (entry.name.clone(), entry.shape[1]))
    };
    let mut all = Vec::new();
    for (block, form) in [(128, "I2_S"), (256, "TQ1_0 and TQ2_0")] {
        if let Some((name, width)) = columns(block) {
            all.push(format!(
                "no GGUF with {form}: {name} has {width} columns, not a multiple of {block}"
            ));
        }
    }
    all
}

fn metadata(gguf: &GgufModel, line: &mut impl FnMut(&str)) {
    for (key, value) in gguf.file().metadata().iter() {
        line(&format!("{key:<40} {}", shortened(value)));
    }
}

fn shortened(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > 60 => {
            format!("{:?}… ({} characters)", text.chars().take(60).collect::<String>(), text.len())
        }
        other => other.to_string(),
    }
}

fn storage(model: &StoredModel) -> String {
    match model {
        StoredModel::Folder(folder) => match folder.form() {
            WeightForm::Latent => "floats".to_owned(),
            WeightForm::PackedMultiplying => "packed ternary, scales multiply".to_owned(),
            WeightForm::PackedDividing => "packed ternary, scales divide".to_owned(),
        },
        StoredModel::Gguf(gguf) => format!("GGUF, {}", gguf.architecture().name()),
    }
}

fn statistics(model: &StoredModel, entry: &TensorEntry) -> Result<String, FormatError> {
    let dtype = match model {
        StoredModel::Gguf(gguf) => format!("{:<6}", gguf.dtype(entry).name()),
        StoredModel::Folder(_) => String::new(),
    };
    if !entry.is_ternary(model.spec()) {
        return Ok(dtype + &floats(&model.floats(entry)?));
    }
    Ok(dtype
        + &match model.matrix(entry)? {
            Matrix::Ternary { codes, scale } => shares(&codes, scale),
            Matrix::Latent(values) => {
                let scale = WeightScale::of_latents(&values);
                let shares = shares(&ternary_codes(&values, scale), scale);
                format!("{shares}, latents: {}", range(&values))
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
