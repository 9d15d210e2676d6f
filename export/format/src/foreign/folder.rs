//! What a folder holds instead of a model or a tokenizer, and what to do about it.

use std::path::{Path, PathBuf};

use super::{ForeignKind, recognise};
use crate::FormatError;
use crate::Shown;
use crate::names::{ADAPTER_CONFIG_FILE, CONFIG_FILE, INDEX_FILE, MODEL_FILE, TOKENIZER_FILE};

/// The error for a path without a model: nothing there, or a folder without `config.json`.
pub fn missing_model(path: &Path) -> FormatError {
    if !path.exists() {
        let what = format!(
            "no such model; expected a model folder or a GGUF file, got nothing{}",
            hub_hint(path)
        );
        return FormatError::container(path, what);
    }
    let hint = other_contents(path).map_or(String::new(), |hint| format!("\nhint: {hint}"));
    let what = format!("no model; expected {CONFIG_FILE} and {MODEL_FILE}, got no {CONFIG_FILE}");
    FormatError::container(path, what + &hint)
}

/// The error for a folder with a `config.json` and without weights that are read.
pub fn missing_weights(folder: &Path) -> FormatError {
    let hint = other_weights(folder).map_or(String::new(), |hint| format!("\nhint: {hint}"));
    let what = format!("no weights; expected {MODEL_FILE} or {INDEX_FILE}, got neither");
    FormatError::container(folder, what + &hint)
}

/// The error for a model without a tokenizer: a folder without a `tokenizer.json`, or a GGUF file.
/// `way_out` is what to do where the folder holds none of another kind.
pub fn missing_tokenizer(folder: &Path, way_out: &str) -> FormatError {
    if folder.is_file() {
        let what = "no tokenizer; expected the model's vocabulary in the file, got none";
        return FormatError::config(folder, "tokenizer.ggml.tokens", what);
    }
    let files = ["tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model"];
    let other = files.iter().find(|name| folder.join(name).is_file());
    let hint = match other {
        Some(name) => format!(
            "there is {name}; write a tokenizer.json with transformers: \
             AutoTokenizer.from_pretrained(\"FOLDER\").save_pretrained(\"FOLDER\")"
        ),
        None => way_out.to_owned(),
    };
    let what = format!("no tokenizer; expected {TOKENIZER_FILE} in this folder, got none");
    FormatError::container(folder, format!("{what}\nhint: {hint}"))
}

/// `owner/name` is how people name models of the hub.
fn hub_hint(path: &Path) -> String {
    let parts: Vec<_> = path.components().collect();
    let text = path.shown();
    if parts.len() == 2 && path.is_relative() && !path.starts_with(".") && !path.starts_with("..") {
        return format!(
            "\nhint: a model of the hub is model.init = \"hf:{text}\" in a recipe; \
                        anywhere else, download it and give its folder"
        );
    }
    String::new()
}

/// An adapter, a checkpoint of another program, or a folder above a model.
fn other_contents(path: &Path) -> Option<String> {
    if path.join(ADAPTER_CONFIG_FILE).is_file() {
        return Some(
            "this is an adapter without its model; name the model it was trained on, and this folder \
             with --adapter"
                .to_owned(),
        );
    }
    if let Some(model) = only_gguf(path) {
        return Some(format!("give the file: {}", model.shown()));
    }
    if path.join("snapshots").is_dir() {
        // models--owner--name/snapshots/REVISION: people give the outer folder.
        let snapshot = entries(&path.join("snapshots")).into_iter().next()?;
        return Some(format!("this is the hub's cache; the model is {}", snapshot.shown()));
    }
    let meta = path.join("params.json").is_file();
    let advice = "the original checkpoint of its makers; take the one in transformers' layout";
    meta.then(|| advice.to_owned()).or_else(|| other_weights(path))
}

fn only_gguf(path: &Path) -> Option<PathBuf> {
    let is_gguf = |entry: &PathBuf| entry.extension().is_some_and(|found| found == "gguf");
    entries(path).into_iter().find(is_gguf)
}

/// Weights that are not read, by their content or their name.
fn other_weights(folder: &Path) -> Option<String> {
    let names = |name: &str| {
        ["pytorch_model", "consolidated", "tf_model", "flax_model", "model"]
            .iter()
            .any(|known| name.starts_with(known))
    };
    let candidates = entries(folder).into_iter().filter(|entry| {
        names(&entry.file_name().unwrap_or_default().to_string_lossy()) && entry.is_file()
    });
    for entry in candidates {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kind = recognise(&entry);
        // The content before the name: a `.bin` may well be a web page or a pointer.
        let known = kind.is_some_and(|kind| {
            !matches!(kind, ForeignKind::Safetensors | ForeignKind::LfsPointer)
        });
        let by_name =
            [".bin", ".pt", ".pth", ".h5", ".msgpack"].iter().any(|end| name.ends_with(end));
        if known || by_name {
            let what = kind.map_or("weights of another kind", ForeignKind::name);
            return Some(format!(
                "{name} is {what}; write safetensors with transformers: \
                 AutoModelForCausalLM.from_pretrained(\"FOLDER\").save_pretrained(\"OUT\")"
            ));
        }
    }
    only_gguf(folder).map(|model| format!("give the file: {}", model.shown()))
}

/// The entries of a folder in order of their names, a bounded number of them.
fn entries(folder: &Path) -> Vec<PathBuf> {
    const MOST: usize = 10_000;
    let Ok(read) = fs_err::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = read.take(MOST).filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort();
    found
}
