//! Any bytes as a safetensors file: opened, every tensor of it read.
#![no_main]

use bitnet_format::tensors::TensorFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("bitnet-fuzz-{}", std::process::id()));
    std::fs::write(&path, bytes).expect("the temporary folder takes a file");
    if let Ok(file) = TensorFile::open(&path) {
        for name in file.names() {
            if let Ok(info) = file.info(&name) {
                let _ = file.raw(&name, &info.shape, info.dtype);
                let _ = file.finite_floats(&name, &info.shape);
            }
        }
    }
});
