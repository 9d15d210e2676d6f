//! Prints a few held-out dialogues as lines of a chat file.
//!
//! ```console
//! $ cargo run -p bitnet-stories --example print_dialogues
//! ```

use bitnet_stories::{Split, dialogue};

#[expect(clippy::print_stdout, reason = "an example")]
fn main() {
    for index in 0..4 {
        println!("{}", dialogue(1, Split::HeldOut, index).to_json_line());
    }
}
