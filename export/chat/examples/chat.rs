//! Asks a model a few questions, one after the other.
//!
//! ```console
//! $ cargo run --release -p bitnet-chat --example chat -- model.gguf "Where is the key?" "And the box?"
//! ```

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;

use bitnet_chat::{ChatSession, ChatSettings};
use bitnet_engine::{HeadPrecision, Model, SamplerSettings, ThreadPool};
use bitnet_text::{ChatTemplate, Tokenizer};

#[expect(clippy::print_stdout, reason = "an example")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let path = PathBuf::from(words.next().expect("the path of a model"));
    let model = Model::load_with(&path, HeadPrecision::Int8)?;
    let tokenizer = Tokenizer::of_model(&path)?.expect("the model has a tokenizer");
    let template = ChatTemplate::of_model(&path, &tokenizer)?;
    let settings = ChatSettings { sampler: SamplerSettings::greedy(), max_tokens: 256 };
    let threads = ThreadPool::new(2)?;
    let mut session = ChatSession::new(&model, &tokenizer, template, threads, settings);
    for question in words {
        println!("> {question}");
        let answer = session.answer(&question, &mut |piece| {
            print!("{piece}");
            ControlFlow::Continue(())
        })?;
        println!("\n[{} tokens]", answer.tokens);
    }
    Ok(())
}
