//! Prints the tokens of a text, and of a user's message as the model's chat template writes it.
//!
//! ```console
//! $ cargo run -p bitnet-text --example show_tokens -- model.gguf "Where is the key?"
//! ```

use std::path::PathBuf;

use bitnet_text::{ChatTemplate, Message, Role, TextError, Tokenizer};

#[expect(clippy::print_stdout, reason = "an example")]
fn main() -> Result<(), TextError> {
    let mut words = std::env::args().skip(1);
    let path = PathBuf::from(words.next().expect("the path of a model"));
    let text = words.next().expect("a text");
    let tokenizer = Tokenizer::of_model(&path)?.expect("the model has a tokenizer");
    println!("{:?}", tokenizer.encode(&text)?);
    let conversation = vec![Message::new(Role::User, text)].into();
    let template = ChatTemplate::of_model(&path, &tokenizer)?;
    let prompt = template.prompt(&tokenizer, &conversation)?;
    println!("{prompt:?}");
    Ok(())
}
