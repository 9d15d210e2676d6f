//! A server over a tiny random model on a socket of this machine, asked as programs ask.

mod abuse;
mod client;
mod endpoints;
mod malformed;
mod other_forms;
mod slow;
mod structured;
mod tools;

use bitnet_engine::{CachePrecision, HeadPrecision, Model};
use bitnet_format::ModelSpec;
use bitnet_text::{ChatTemplate, Tokenizer, train_bpe};

use crate::options::{PromptBos, ServeOptions, ServedModel};

/// Random weights with a context of `context` tokens.
pub(crate) fn model(context: usize) -> Model {
    let spec: ModelSpec = toml::from_str(&format!(
        "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 2\n\
         num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = 300\n\
         max_position_embeddings = {context}"
    ))
    .unwrap();
    Model::random(&spec, HeadPrecision::File)
}

/// A tokenizer of fewer tokens than the model has.
pub(crate) fn tokenizer() -> Tokenizer {
    let texts = ["where is the key? the key is in the box. ".repeat(40)].into_iter();
    let json = train_bpe(texts, 280).unwrap();
    Tokenizer::from_bytes("trained.json".as_ref(), &json).unwrap()
}

pub(crate) fn served(context: usize) -> ServedModel {
    ServedModel {
        name: "tiny".to_owned(),
        model: model(context),
        tokenizer: tokenizer(),
        template: ChatTemplate::b158(),
    }
}

pub(crate) fn options() -> ServeOptions {
    ServeOptions {
        host: [127, 0, 0, 1].into(),
        port: 0,
        keys: Vec::new(),
        slots: 4,
        context: None,
        cache: CachePrecision::F32,
        cache_bytes: 64 << 20,
        threads: 1,
        cors_origins: Vec::new(),
        bos: PromptBos::Auto,
        drain_timeout: std::time::Duration::from_secs(5),
    }
}
