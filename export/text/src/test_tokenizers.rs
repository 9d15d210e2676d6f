//! Tokenizers that several test modules share. Nothing outside tests lives here.

use bitnet_format::Shown;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::{Tokenizer, train_bpe};

/// Three ordinary tokens, one merge, one special token and a template: enough to break.
pub(crate) fn tiny() -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(3, "<|end_of_text|>")],
        "normalizer": null,
        "pre_tokenizer": byte_level(),
        "post_processor": {"type": "Sequence", "processors": [byte_level(), {
            "type": "TemplateProcessing",
            "single": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<|end_of_text|>", "type_id": 0}}
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}
            ],
            "special_tokens": {"<|end_of_text|>": {
                "id": "<|end_of_text|>", "ids": [3], "tokens": ["<|end_of_text|>"]
            }}
        }]},
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": [["a", "b"]]
        }
    })
}

/// A tokenizer of the Llama-2 kind: letters, `▁` for the space, unknown letters as byte tokens.
pub(crate) fn sentence_piece() -> Value {
    let mut vocab = Map::new();
    let named = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let bytes = (0..=255_u8).map(|byte| format!("<{byte:#04X}>"));
    let letters = ('a'..='z').chain(['▁', 'é', '日']).map(String::from);
    for token in named.chain(bytes).chain(letters).chain(["▁a".to_owned()]) {
        vocab.insert(token, json!(vocab.len()));
    }
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        ]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]},
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": ["▁ a"]
        }
    })
}

pub(crate) fn special(id: u32, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true
    })
}

fn byte_level() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

pub(crate) fn load(file: &Value) -> Tokenizer {
    Tokenizer::from_bytes(Path::new("t.json"), file.to_string().as_bytes()).unwrap()
}

/// A tokenizer trained on the paragraphs below.
pub(crate) fn trained(vocab_size: usize) -> Tokenizer {
    let bytes = train_bpe(paragraphs(), vocab_size).unwrap();
    Tokenizer::from_bytes(Path::new("trained.json"), &bytes).unwrap()
}

pub(crate) fn paragraphs() -> impl Iterator<Item = String> + Send {
    [
        "The quick brown fox jumps over the lazy dog. The dog didn't mind: it's a lazy dog.",
        "In 2024 there were 1,234,567 sheep on the hills; in 2025 there'll be 1,300,000.\r\n",
        "Der Käse ist über dem Brot, und die Brücke führt über den Fluß nach Köln. 日本語と中文。",
        "fn main() {\n    println!(\"hello, world\");\n}\n\n\n    return   x;  \n",
        "👩\u{200d}👩\u{200d}👧 🎉🎉",
        "She sells sea shells by the sea shore, and the shells that she sells are sea shells.",
        "Peter Piper picked a peck of pickled peppers; how many pickled peppers did he pick?",
        "Wer anderen eine Grube gräbt, fällt selbst hinein, sagte der alte Müller am Morgen.",
    ]
    .into_iter()
    .map(str::to_owned)
}

/// Tokenizers with known ids that lie beside the repository, if they are there; prints a line
/// either way.
pub(crate) fn tokenizers_outside_the_repository() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tokenizers");
    let there = folder.is_dir();
    let what = if there { "reads" } else { "skipped, nothing at" };
    eprintln!("outside the repository: {what} {}", folder.shown());
    there.then_some(folder)
}
