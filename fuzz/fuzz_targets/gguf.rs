//! Any bytes as a GGUF file: opened, every value and every byte of it read.
#![no_main]

use bitnet_format::gguf::GgufFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("bitnet-fuzz-{}.gguf", std::process::id()));
    std::fs::write(&path, bytes).expect("the temporary folder takes a file");
    if let Ok(file) = GgufFile::open(&path) {
        for tensor in file.tensors() {
            let _ = file.part(tensor, 0..tensor.len());
        }
        let _ = bitnet_format::StoredModel::open(&path);
    }
});
