//! Thousands of damaged files: each is read or refused, none brings the reader down.

use super::{GgufFile, bytes_of, open, sample_metadata, sample_tensors, written};
use crate::mutation;

#[test]
fn a_mutated_file_never_panics() {
    let good = written(&sample_metadata(), &sample_tensors());
    mutation::survive_all(&good, |bytes| open(bytes).map(|file| read_all(&file)).is_ok());
}

/// Touches every value and every byte.
fn read_all(file: &GgufFile) {
    let metadata = file.metadata();
    for (key, value) in metadata.iter() {
        assert!(std::ptr::eq(metadata.get(key).unwrap(), value), "{key}");
        assert!(value.describe().is_ascii());
        let _ = (metadata.u32(key), metadata.f32(key), metadata.bool(key), metadata.str(key));
        let _ = (metadata.strings(key), metadata.optional_i32s(key), metadata.optional_f32s(key));
    }
    for tensor in file.tensors() {
        assert_eq!(file.tensor(&tensor.name), Some(tensor));
        let bytes = bytes_of(file, tensor);
        let sum: u64 = bytes.iter().map(|&byte| u64::from(byte)).sum();
        assert!(sum <= 255 * bytes.len() as u64);
    }
}
