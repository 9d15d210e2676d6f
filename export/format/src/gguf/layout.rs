//! The rules that GGUF's reader and writer share: names, shapes, limits.

use crate::DType;

pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// The version we write. Version 2 has the same little-endian layout and is read too.
pub(super) const VERSION: u32 = 3;

/// No header, metadata and tensor infos together, is larger: a vocabulary of a million tokens
/// fits. Short strings take six times their file size in memory, so this bounds both.
pub(super) const LARGEST_HEADER: usize = 128 << 20;

/// Models have dozens of pairs.
pub(super) const MOST_PAIRS: u64 = 1 << 16;

/// Unmerged mixtures of experts come close to a quarter of this.
pub(super) const MOST_TENSORS: u64 = 1 << 18;

/// The GGUF specification's limits, in bytes.
pub(super) const LONGEST_KEY: u64 = 65535;
pub(super) const LONGEST_TENSOR_NAME: u64 = 64;

/// ggml has no more dimensions.
pub(super) const MOST_DIMENSIONS: u32 = 4;

/// Keys appear in messages, so they hold nothing that could steer a terminal.
pub(super) fn is_key(key: &str) -> bool {
    is_plain(key) && key.len() as u64 <= LONGEST_KEY
}

/// As for keys.
pub(super) fn is_tensor_name(name: &str) -> bool {
    is_plain(name) && name.len() as u64 <= LONGEST_TENSOR_NAME
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A tensor as the header describes it, not yet compared with the data.
pub(super) struct Claim {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    /// From the start of the data section.
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Bytes of a tensor of this shape `[out, in]`, without padding.
pub(super) fn tensor_bytes(shape: &[usize], dtype: DType) -> Result<u64, String> {
    let row_length = match shape {
        [] => return Err("has no dimensions; expected 1 to 4".to_owned()),
        [.., row_length] => *row_length as u64,
    };
    if shape.len() as u64 > MOST_DIMENSIONS.into() {
        return Err(format!("has {} dimensions; expected 1 to {MOST_DIMENSIONS}", shape.len()));
    }
    if shape.contains(&0) {
        return Err(format!("has shape {shape:?}; expected no dimension of 0"));
    }
    // Checked: four dimensions of a file can multiply to anything.
    let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64));
    let elements = elements.ok_or_else(|| format!("has shape {shape:?}, which overflows"))?;
    dtype.bytes_of(elements, row_length).ok_or_else(|| size_problem(shape, dtype))
}

fn size_problem(shape: &[usize], dtype: DType) -> String {
    let (name, block) = (dtype.name(), dtype.block());
    let values = if dtype == DType::I2S { "values" } else { "columns" };
    format!(
        "has shape {shape:?}; expected a multiple of {block} {values} for {name}, of a size that does not overflow"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_one_to_four_dimensions_and_no_zero() {
        assert_eq!(tensor_bytes(&[2, 3], DType::F32), Ok(24));
        assert_eq!(tensor_bytes(&[1, 1, 1, 1], DType::F16), Ok(2));
        for (shape, part) in [
            (&[][..], "no dimensions"),
            (&[1, 1, 1, 1, 1], "5 dimensions"),
            (&[3, 0], "no dimension of 0"),
            (&[usize::MAX, 2], "overflows"),
            (&[usize::MAX], "does not overflow"),
        ] {
            let error = tensor_bytes(shape, DType::F32).unwrap_err();
            assert!(error.contains(part), "{shape:?}: {error}");
        }
        let uneven = tensor_bytes(&[256, 32], DType::Tq2_0).unwrap_err();
        assert!(uneven.contains("a multiple of 256 columns for TQ2_0"), "{uneven}");
    }
}
