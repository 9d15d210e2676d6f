//! Continues token ids with the most likely ones.
//!
//! ```console
//! $ cargo run --release -p bitnet-engine --example continue_ids -- model.gguf 1 2 3
//! ```

use std::ops::ControlFlow;
use std::path::PathBuf;

use bitnet_engine::{
    EngineError, GenerateRequest, HeadPrecision, Model, SamplerSettings, ThreadPool, generate,
};

#[expect(clippy::print_stdout, reason = "an example")]
fn main() -> Result<(), EngineError> {
    let mut words = std::env::args().skip(1);
    let path = PathBuf::from(words.next().expect("the path of a model"));
    let prompt: Vec<u32> = words.map(|word| word.parse().expect("a token id")).collect();
    let model = Model::load_with(&path, HeadPrecision::Int8)?;
    let threads = ThreadPool::new(2).expect("two threads can be started");
    let stop_ids = model.spec().eos_token_id.clone();
    let request = GenerateRequest { sampler: SamplerSettings::greedy(), stop_ids, max_tokens: 32 };
    let mut cache = model.new_cache();
    let each = |_| ControlFlow::Continue(());
    let generated = generate(&model, &mut cache, &prompt, &request, &threads, each)?;
    println!("{:?}", generated.tokens);
    Ok(())
}
