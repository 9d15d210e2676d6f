//! Prints the shape of a model and how its matrices are stored, read through bytes in memory.
//!
//! ```console
//! $ cargo run -p bitnet-format --example inspect_model -- model.gguf
//! ```

use std::path::PathBuf;

use bitnet_format::figures::grouped;
use bitnet_format::{FormatError, StoredModel, TensorSource, tensor_table};

#[expect(clippy::print_stdout, reason = "an example")]
fn main() -> Result<(), FormatError> {
    let path = PathBuf::from(std::env::args().nth(1).expect("the path of a model"));
    let model = if path.is_dir() {
        StoredModel::open(&path)?
    } else {
        // As a program would that has a file from elsewhere than a disk.
        StoredModel::from_gguf_bytes(&path, fs_err::read(&path)?)?
    };
    let spec = model.spec();
    println!("{} parameters, {} blocks", grouped(spec.parameters() as u64), spec.num_hidden_layers);
    for entry in tensor_table(spec) {
        let stored = model.read(&entry, 0..1)?.dtype.name();
        println!("{:<48} {:?} {stored}", entry.name, entry.shape);
    }
    Ok(())
}
