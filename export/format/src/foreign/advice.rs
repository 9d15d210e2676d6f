//! What to do with a file of another program.

use crate::Shown;
use std::path::Path;

use super::{FileRole, ForeignKind as K};

/// One sentence: the command that makes of the file what is read, or where to look.
pub(super) fn advice(path: &Path, kind: K, role: FileRole) -> String {
    let file = path.shown();
    match (kind, role) {
        (K::LfsPointer, _) => {
            "fetch the file itself: git lfs pull, or hf download owner/name".to_owned()
        }
        (K::Html, FileRole::Data) => {
            "a web page was saved instead of the file? Download the raw file (…/resolve/… on the \
             hub). To train on HTML, put it into the \"text\" field of a .jsonl file"
                .to_owned()
        }
        (K::Html | K::Xml, _) => "a web page was saved instead of the file; download the raw file \
                                  (…/resolve/… on the hub, not …/blob/…)"
            .to_owned(),
        (K::Utf16, _) => format!("convert it: iconv -f UTF-16 -t UTF-8 {file}"),
        (K::Utf32, _) => format!("convert it: iconv -f UTF-32 -t UTF-8 {file}"),
        (K::Gzip | K::Bzip2 | K::Xz | K::Zstandard | K::Lz4, _) => {
            format!("unpack it: {} -d {file}", unpacker(kind))
        }
        (K::Zip, _) => format!("unpack it: unzip {file}"),
        (K::Tar, _) => format!("unpack it: tar -xf {file}"),
        (K::SevenZip | K::Rar, _) => format!("unpack it: 7z x {file}"),
        (K::SentencePiece | K::Tiktoken, _) => "write a tokenizer.json with transformers: \
             AutoTokenizer.from_pretrained(\"FOLDER\").save_pretrained(\"FOLDER\")"
            .to_owned(),
        (K::Gguf, FileRole::Tokenizer) => format!(
            "bitnet-train export --model {file} --format hf-packed --out FOLDER writes its \
             tokenizer.json"
        ),
        (K::Gguf, FileRole::Weights) => "give the GGUF file itself as the model".to_owned(),
        (K::Safetensors | K::Gguf, _) => {
            format!("this is a model; give it as one: {}", folder_of(path, kind))
        }
        (_, FileRole::Model | FileRole::Weights) => of_model(kind),
        (_, FileRole::Data) => of_data(path, kind),
        (_, role) => format!("give {}", role.expected()),
    }
}

fn unpacker(kind: K) -> &'static str {
    match kind {
        K::Gzip => "gzip",
        K::Bzip2 => "bzip2",
        K::Xz => "xz",
        K::Zstandard => "zstd",
        _ => "lz4",
    }
}

fn folder_of(path: &Path, kind: K) -> String {
    let model = if kind == K::Gguf { Some(path) } else { path.parent() };
    model.unwrap_or(path).shown().to_string()
}

fn of_model(kind: K) -> String {
    match kind {
        K::Pickle | K::TorchArchive => {
            "a pickle can run any program and is not opened; write safetensors with transformers: \
             AutoModelForCausalLM.from_pretrained(\"FOLDER\").save_pretrained(\"OUT\")"
        }
        K::Ggml => "make a GGUF file of the original weights with llama.cpp's converter",
        K::Onnx | K::TfLite | K::Hdf5 | K::Npz | K::Npy => {
            "take the original weights, as safetensors or GGUF"
        }
        _ => "give a model folder or a GGUF file",
    }
    .to_owned()
}

fn of_data(path: &Path, kind: K) -> String {
    let file = path.shown();
    let by_datasets = |loader: &str| {
        format!(
            "write JSON lines with datasets: python3 -c 'from datasets import Dataset; \
             Dataset.from_{loader}(\"{file}\").to_json(\"data.jsonl\")'"
        )
    };
    match kind {
        // Packed; else it is read.
        K::Parquet => format!("unpack it: gzip -d {file}, or zstd -d {file}"),
        K::ArrowFile | K::ArrowStream => by_datasets("file"),
        K::Sqlite | K::Avro | K::Npy | K::Npz | K::Hdf5 => {
            "write its rows as JSON lines, one object a line".to_owned()
        }
        K::Pickle | K::TorchArchive => "a pickle can run any program and is not opened; write its \
                                        rows as JSON lines, one object a line"
            .to_owned(),
        K::Pdf | K::OfficeDocument => "take its text out first, into a .txt file".to_owned(),
        _ => "give text or rows: .txt, .jsonl, .json, .parquet or .csv".to_owned(),
    }
}
