//! The rules that reader and writer share: names, shapes, alignment, limits.

use super::kind::TensorKind;
use super::metadata::Metadata;
use super::value::Value;
use crate::FormatError;

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

pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u32 = 32;

/// The strictest element type needs 8.
const LEAST_ALIGNMENT: u32 = 8;

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

/// What tensor data starts at multiples of, in bytes.
pub(super) fn alignment(metadata: &Metadata) -> Result<u64, FormatError> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT.into()),
        Some(&Value::U32(n)) if n.is_power_of_two() && n >= LEAST_ALIGNMENT => Ok(n.into()),
        Some(other) => {
            let what = format!("is {}; expected a power of two from 8, as a u32", other.describe());
            Err(metadata.error(ALIGNMENT_KEY, what))
        }
    }
}

/// Bytes of a tensor of this shape `[out, in]`, without padding.
pub(super) fn tensor_bytes(shape: &[usize], kind: TensorKind) -> Result<u64, String> {
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
    let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64));
    let elements = elements.ok_or_else(|| format!("has shape {shape:?}, which overflows"))?;
    kind.bytes_of(elements, row_length).ok_or_else(|| size_problem(shape, kind))
}

fn size_problem(shape: &[usize], kind: TensorKind) -> String {
    let (name, group) = (kind.name(), kind.group());
    let values = if kind == TensorKind::I2S { "values" } else { "columns" };
    format!(
        "has shape {shape:?}; expected a multiple of {group} {values} for {name}, of a size that does not overflow"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_defaults_to_32_and_must_be_a_sane_u32() {
        let mut metadata = Metadata::new();
        assert_eq!(alignment(&metadata).unwrap(), 32);
        for good in [8u32, 64, 4096, 1 << 31] {
            metadata.insert(ALIGNMENT_KEY, good);
            assert_eq!(alignment(&metadata).unwrap(), u64::from(good));
        }
        let bad = [0, 1, 4, 12, 33].map(Value::U32);
        let wrong_type = [Value::U64(32), Value::I32(32), Value::F32(32.0), Value::from("32")];
        for value in bad.into_iter().chain(wrong_type) {
            metadata.insert(ALIGNMENT_KEY, value);
            let error = alignment(&metadata).unwrap_err().to_string();
            assert!(error.starts_with("metadata [general.alignment]: is "), "{error}");
            assert!(error.ends_with("; expected a power of two from 8, as a u32"), "{error}");
        }
    }

    #[test]
    fn shapes_have_one_to_four_dimensions_and_no_zero() {
        assert_eq!(tensor_bytes(&[2, 3], TensorKind::F32), Ok(24));
        assert_eq!(tensor_bytes(&[1, 1, 1, 1], TensorKind::F16), Ok(2));
        for (shape, part) in [
            (&[][..], "no dimensions"),
            (&[1, 1, 1, 1, 1], "5 dimensions"),
            (&[3, 0], "no dimension of 0"),
            (&[usize::MAX, 2], "overflows"),
            (&[usize::MAX], "does not overflow"),
        ] {
            let error = tensor_bytes(shape, TensorKind::F32).unwrap_err();
            assert!(error.contains(part), "{shape:?}: {error}");
        }
        let uneven = tensor_bytes(&[256, 32], TensorKind::Tq2_0).unwrap_err();
        assert!(uneven.contains("a multiple of 256 columns for TQ2_0"), "{uneven}");
    }
}
