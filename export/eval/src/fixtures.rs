//! A model and its tokenizer that several test modules share.

use std::path::Path;

use bitnet_engine::{HeadPrecision, Model};
use bitnet_text::{Tokenizer, train_bpe};

/// A model of random weights with a context of `context` tokens.
pub(crate) fn random_model(context: usize) -> (Model, Tokenizer) {
    let text = ["where is the key in the box ".repeat(40)].into_iter();
    let file = train_bpe(text, 280).unwrap();
    let tokenizer = Tokenizer::from_bytes(Path::new("trained.json"), &file).unwrap();
    let spec = format!(
        "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\n\
         num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = {}\n\
         max_position_embeddings = {context}",
        tokenizer.vocab_size()
    );
    (Model::random(&toml::from_str(&spec).unwrap(), HeadPrecision::File), tokenizer)
}
