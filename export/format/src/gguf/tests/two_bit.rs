//! Type id 42 in groups of 64 and of 128: told apart by sizes, refused where they do not tell.

use super::{Tensor, open, written};
use crate::gguf::Metadata;
use crate::gguf::layout::tensor_bytes;
use crate::{DType, FormatError};

const ID: u32 = 42;
const OF_FORK: u32 = 142;

/// A file of these tensors in which every type id 142 is written as 42.
fn file(tensors: &[(&'static [usize], DType)]) -> Vec<u8> {
    let tensor = |(name, (shape, dtype)): (&'static str, &(&'static [usize], DType))| {
        let len = tensor_bytes(shape, *dtype).unwrap();
        (name, *shape, *dtype, vec![0x15; len as usize])
    };
    let tensors: Vec<Tensor> = ["a", "b", "c"].into_iter().zip(tensors).map(tensor).collect();
    let mut bytes = written(&Metadata::new(), &tensors);
    for at in 0..bytes.len() - 4 {
        if bytes[at..at + 4] == OF_FORK.to_le_bytes() {
            bytes[at..at + 4].copy_from_slice(&ID.to_le_bytes());
        }
    }
    bytes
}

fn types(bytes: Vec<u8>) -> Result<Vec<DType>, FormatError> {
    Ok(open(bytes)?.tensors().iter().map(|tensor| tensor.dtype).collect())
}

#[test]
fn sizes_tell_groups_of_64_from_groups_of_128() {
    let before = (&[4][..], DType::F32);
    let after = (&[2, 32][..], DType::Q8_0);
    for (written, read) in [(DType::Q2_0, DType::Q2_0), (DType::Pq2_0, DType::Q2_0Of128)] {
        let matrix = (&[16, 256][..], written);
        assert_eq!(types(file(&[before, matrix, after])).unwrap(), [DType::F32, read, DType::Q8_0]);
        // The last tensor: the end of the file tells.
        assert_eq!(types(file(&[before, matrix])).unwrap(), [DType::F32, read]);
        assert_eq!(types(file(&[matrix, (&[1, 128], written)])).unwrap(), [read, read]);
    }
    // A width of 64 leaves one reading, whatever the padding hides.
    assert_eq!(types(file(&[(&[1, 64], DType::Q2_0)])).unwrap(), [DType::Q2_0]);
}

#[test]
fn a_file_that_both_layouts_fit_is_refused_by_tensor() {
    for dtype in [DType::Q2_0, DType::Pq2_0] {
        let error = types(file(&[(&[1, 128], dtype), (&[3], DType::F32)])).unwrap_err().to_string();
        assert!(error.starts_with("m.gguf [a]: has the type id 42"), "{error}");
        assert!(error.contains("both fit"), "{error}");
    }
}

#[test]
fn a_file_that_neither_layout_fits_names_where_it_breaks() {
    let mut bytes = file(&[(&[16, 256], DType::Pq2_0), (&[64], DType::F32)]);
    let padded = (16 * 2 * 34u64).next_multiple_of(32);
    let at = bytes.windows(8).position(|window| window == padded.to_le_bytes()).unwrap();
    bytes[at..at + 8].copy_from_slice(&(padded - 32).to_le_bytes());
    let error = types(bytes).unwrap_err().to_string();
    assert!(error.contains("[b]: has the offset"), "{error}");
    let mut cut = file(&[(&[16, 256], DType::Pq2_0)]);
    cut.truncate(cut.len() - 300);
    assert!(types(cut).unwrap_err().to_string().contains("[a]: is cut off"));
}
