//! A stored model described, as text or JSON, for `inspect`: its config, its tensors, the shares of
//! its ternary codes, and which other programs are known not to read it.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::Shown;
use crate::gguf::{self, GgufModel, architecture::Architecture};
use crate::group::Group;
use crate::grouped::GroupedTernary;
use crate::matrix::Matrix;
use crate::quant::{WeightScale, ternary_codes};
use crate::{
    DType, FormatError, HiddenAct, ModelSpec, StoredModel, TensorEntry, TensorSource, WeightForm,
    tensor_table,
};

/// One tensor of a report.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name in a Hugging Face folder.
    pub name: String,
    /// Rows and columns, or the length.
    pub shape: Vec<usize>,
    /// How a GGUF file stores it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<&'static str>,
    /// Shares and scale of its ternary codes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codes: Option<CodeShares>,
    /// Mean and range of its float values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<ValueRange>,
}

/// Shares of the ternary codes of a matrix, and its scale.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CodeShares {
    minus: f64,
    zero: f64,
    plus: f64,
    /// Share of +2, which some programs write.
    #[serde(skip_serializing_if = "is_nothing")]
    plus_two: f64,
    /// The scale, or the mean of the scales of groups.
    scale: f32,
    /// Weights that share a scale, where that is not the whole matrix.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<usize>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
fn is_nothing(share: &f64) -> bool {
    *share == 0.0
}

/// Mean and range of float values.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ValueRange {
    mean: f64,
    from: f32,
    to: f32,
}

/// The lines of a report, the config first. Every tensor is read once.
pub fn report(model: &StoredModel, mut line: impl FnMut(&str)) -> Result<(), FormatError> {
    for (key, value) in overview(model) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        line(&format!("{key:<24} {value}"));
    }
    if let StoredModel::Gguf(gguf) = model {
        line("");
        metadata(gguf, |key, value| line(&format!("{key:<40} {value}")));
    }
    let table = tensor_table(model.spec());
    let width = table.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    line("");
    let mut zeros = Vec::new();
    for entry in &table {
        let tensor = TensorReport::of(model, entry)?;
        let shape = format!("{:?}", entry.shape);
        line(&format!("{:<width$} {shape:<16} {tensor}", entry.name));
        // Found on the way: what is nothing but zeros is told after the table, and nothing is read
        // twice.
        zeros.extend(tensor.is_zero().then(|| entry.name.clone()));
    }
    line("");
    for warning in content_warnings(model, &zeros).iter().chain(&compatibility_warnings(model)) {
        line(&format!("note: {warning}"));
    }
    Ok(())
}

/// The same report for programs: one JSON object.
pub fn report_json(model: &StoredModel) -> Result<Value, FormatError> {
    let mut all = overview(model);
    if let StoredModel::Gguf(gguf) = model {
        let mut pairs = Map::new();
        metadata(gguf, |key, value| drop(pairs.insert(key.to_owned(), json!(value))));
        all.insert("metadata".to_owned(), Value::Object(pairs));
    }
    let table = tensor_table(model.spec());
    let tensors: Result<Vec<_>, _> =
        table.iter().map(|entry| TensorReport::of(model, entry)).collect();
    let tensors = tensors?;
    let zero = tensors.iter().filter(|tensor| tensor.is_zero());
    let mut notes = content_warnings(model, &zero.map(|one| one.name.clone()).collect::<Vec<_>>());
    notes.extend(compatibility_warnings(model));
    all.insert("tensors".to_owned(), json!(tensors));
    all.insert("notes".to_owned(), json!(notes));
    Ok(Value::Object(all))
}

/// Size, storage and config.
fn overview(model: &StoredModel) -> Map<String, Value> {
    let mut all = Map::new();
    all.insert("parameters".to_owned(), json!(model.spec().parameters()));
    all.insert("matrices".to_owned(), json!(storage(model)));
    if let Ok(Value::Object(keys)) = serde_json::to_value(model.spec()) {
        all.extend(keys);
    }
    all
}

/// Suspicious findings in a model that was read, a sentence each: tensors of zeros only
/// (`zeros` are their names), and files that no index lists.
pub fn reading_warnings(model: &StoredModel, zeros: &[String]) -> Vec<String> {
    let more = zeros.len().saturating_sub(1);
    let others =
        if more > 0 { format!(" and {more} more tensors hold") } else { " holds".to_owned() };
    let zero = zeros.first().map(|name| {
        format!("warning: {name}{others} nothing but zeros; was the file written completely?")
    });
    let unread = model.unread_files().into_iter().map(|path| {
        let path = path.shown();
        format!("warning: {path} is not among the files of this model and was not read")
    });
    zero.into_iter().chain(unread).collect()
}

/// Tensors that are all zeros, and files that belong to no tensor.
fn content_warnings(model: &StoredModel, zeros: &[String]) -> Vec<String> {
    let zero = zeros.iter().map(|name| format!("{name} holds nothing but zeros"));
    let unread = model.unread_files().into_iter();
    let unread = unread.map(|path| format!("{} is not read: no index lists it", path.shown()));
    zero.chain(unread).collect()
}

/// What other programs are known to refuse or to read wrongly in this model.
pub fn compatibility_warnings(model: &StoredModel) -> Vec<String> {
    let mut all = Vec::new();
    match model {
        // A folder of b1.58 is read by others in one of three ways; what each of them takes
        // differs.
        StoredModel::Folder(folder)
            if folder.spec().quantise && model.spec().has_b158_quantiser() =>
        {
            all.push(folder_warning(folder.form()).to_owned());
        }
        // Dense models have none; those of other quantisers are added below.
        StoredModel::Folder(_) => {}
        StoredModel::Gguf(gguf) => gguf_warnings(gguf, &mut all),
    }
    let spec = model.spec();
    if spec.quantise && spec.hidden_act == HiddenAct::Relu2 && !spec.sub_norms {
        all.push("relu2 without sub-norms: only this project's programs run it".to_owned());
    }
    if spec.quantise && !spec.has_b158_quantiser() {
        all.extend(quantiser_warnings(model));
    }
    all.extend(impossible_formats(spec));
    all
}

/// What other programs make of groups, a ternary embedding or float activations.
fn quantiser_warnings(model: &StoredModel) -> Vec<String> {
    let group = model.spec().quantiser.group;
    match model {
        StoredModel::Folder(_) => vec![format!(
            "quantiser group {group}: transformers knows one scale a matrix, so only this project's \
             programs read this folder"
        )],
        StoredModel::Gguf(gguf) => {
            let table = tensor_table(gguf.spec());
            let holds = |dtype| table.iter().any(|entry| gguf.dtype(entry) == dtype);
            let of_fork =
                [DType::Q2_0Of128, DType::Pq2_0, DType::Ptq1_0].into_iter().find(|d| holds(*d));
            match of_fork {
                Some(dtype) => vec![format!("{}: only a fork of llama.cpp reads it", dtype.name())],
                None if holds(DType::Q2_0) => {
                    vec!["Q2_0 (type 42): llama.cpp reads it since June 2026".to_owned()]
                }
                None => Vec::new(),
            }
        }
    }
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
    let holds = |dtype| table.iter().any(|entry| gguf.dtype(entry) == dtype);
    let (i2_s, tq) = (holds(DType::I2S), holds(DType::Tq1_0) || holds(DType::Tq2_0));
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
        Architecture::Bitnet if tq && gguf.spec().tie_word_embeddings => {
            all.push("bitnet with SiLU and TQ blocks: unmodified llama.cpp runs it".to_owned());
        }
        Architecture::Llama | Architecture::Qwen2 | Architecture::Qwen3
            if tq && gguf.spec().quantise =>
        {
            let name = gguf.architecture().name();
            all.push(format!("{name} with TQ blocks: unmodified llama.cpp runs it"));
        }
        _ => {}
    }
    if gguf.architecture().has_sub_norms() && !gguf.spec().tie_word_embeddings {
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
    if matches!(text("tokenizer.chat_template"), Some(gguf::Value::String(t)) if t.contains("BITNETAssistant"))
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
    // Blocks and the forms that have them, as `convert::gguf::check_group` pairs groups with forms.
    let forms: &[(usize, &str)] = match spec.quantiser.group {
        Group::Matrix => &[(128, "I2_S"), (256, "TQ1_0 and TQ2_0")],
        Group::Row | Group::Columns(256) => &[(64, "Q2_0"), (256, "TQ1_0 and TQ2_0")],
        Group::Columns(_) => &[(64, "Q2_0")],
    };
    for &(block, form) in forms {
        if let Some((name, width)) = columns(block) {
            all.push(format!(
                "no GGUF with {form}: {name} has {width} columns, not a multiple of {block}"
            ));
        }
    }
    all
}

fn metadata(gguf: &GgufModel, mut pair: impl FnMut(&str, &str)) {
    for (key, value) in gguf.file().metadata().iter() {
        pair(key, &shortened(value));
    }
}

fn shortened(value: &gguf::Value) -> String {
    match value {
        gguf::Value::String(text) if text.chars().count() > 60 => {
            let (begin, count) = (text.chars().take(60).collect::<String>(), text.chars().count());
            format!("{begin:?}… ({count} characters)")
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

impl TensorReport {
    fn of(model: &StoredModel, entry: &TensorEntry) -> Result<Self, FormatError> {
        let dtype = match model {
            StoredModel::Gguf(gguf) => Some(gguf.dtype(entry).name()),
            StoredModel::Folder(_) => None,
        };
        let (codes, values) = if entry.is_ternary(model.spec()) {
            match model.matrix(entry)? {
                Matrix::Ternary { codes, scale } => (Some(CodeShares::of(&codes, scale)), None),
                // Latents have the codes that an export would write now, beside their own range.
                Matrix::Latent(values) => {
                    let scale = WeightScale::of_latents(&values);
                    let shares = CodeShares::of(&ternary_codes(&values, scale), scale);
                    (Some(shares), Some(ValueRange::of(&values)))
                }
                Matrix::Grouped(matrix) => (Some(CodeShares::of_groups(&matrix)), None),
            }
        } else {
            (None, Some(ValueRange::of(&model.floats(entry)?)))
        };
        Ok(Self { name: entry.name.clone(), shape: entry.shape.clone(), dtype, codes, values })
    }
}

impl TensorReport {
    /// Zeros are suspect but in biases.
    fn is_zero(&self) -> bool {
        let is_bias = self.name.strip_suffix(".bias").is_some();
        let zero = self.values.map_or_else(
            || self.codes.is_some_and(|codes| codes.minus + codes.plus + codes.plus_two == 0.0),
            |range| range.from == 0.0 && range.to == 0.0,
        );
        zero && !is_bias
    }
}

impl fmt::Display for TensorReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(dtype) = self.dtype {
            write!(out, "{dtype:<6}")?;
        }
        match (&self.codes, &self.values) {
            (Some(codes), None) => write!(out, "{codes}"),
            (Some(codes), Some(range)) => write!(out, "{codes}, latents: {range}"),
            (None, Some(range)) => write!(out, "float, mean {:.4}, {range}", range.mean),
            (None, None) => Ok(()),
        }
    }
}

impl CodeShares {
    fn of_groups(matrix: &GroupedTernary) -> Self {
        let count = matrix.scales().len().max(1) as f64;
        let mean = matrix.scales().iter().map(|&scale| f64::from(scale)).sum::<f64>() / count;
        Self { group: Some(matrix.width()), ..Self::shares(matrix.codes(), mean as f32) }
    }

    fn of(codes: &[i8], scale: WeightScale) -> Self {
        Self::shares(codes, scale.multiplier())
    }

    fn shares(codes: &[i8], scale: f32) -> Self {
        let share = |code| {
            let count = codes.iter().filter(|&&other| other == code).count();
            count as f64 / codes.len() as f64
        };
        let [minus, zero, plus, plus_two] = [-1, 0, 1, 2].map(share);
        Self { minus, zero, plus, plus_two, scale, group: None }
    }
}

impl fmt::Display for CodeShares {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [minus, zero, plus] = [self.minus, self.zero, self.plus].map(|share| 100.0 * share);
        write!(out, "-1 {minus:4.1} %  0 {zero:4.1} %  +1 {plus:4.1} %  ")?;
        if self.plus_two > 0.0 {
            write!(out, "+2 {:4.1} %  ", 100.0 * self.plus_two)?;
        }
        match self.group {
            None => write!(out, "scale {}", self.scale),
            Some(group) => write!(out, "mean scale {:.6}, one for {group} weights", self.scale),
        }
    }
}

impl ValueRange {
    fn of(values: &[f32]) -> Self {
        let sum = values.iter().map(|&x| f64::from(x)).sum::<f64>();
        let ends = |(low, high): (f32, f32), &x: &f32| (low.min(x), high.max(x));
        let (from, to) = values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), ends);
        Self { mean: sum / values.len().max(1) as f64, from, to }
    }
}

impl fmt::Display for ValueRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "from {:.4} to {:.4}", self.from, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_and_its_characters_are_counted() {
        let text = |count| gguf::Value::String("ä".repeat(count));
        assert_eq!(shortened(&text(70)), format!("{:?}… (70 characters)", "ä".repeat(60)));
        assert!(!shortened(&text(60)).contains("characters"));
    }
}
