//! Block formats of GGUF: how the values of one tensor are laid out in its bytes.
//!
//! Ternary matrices: [`i2_s`] (bitnet.cpp), [`tq1_0`], [`tq2_0`] and [`q2_0`] (llama.cpp),
//! [`ptq1_0`] (a fork of it). Float tensors such as the embedding: [`q8_0`] and [`q6_k`]. Each
//! format has a file of its own; the container, the names of tensors and the choice of a format are
//! elsewhere. No layout depends on the CPU that wrote it; kernels repack when they load.
//!
//! A writer takes whole blocks, so that a matrix can be written some rows at a time; its
//! assertions fail only for a bug in the caller. A reader takes bytes from a file, allocates
//! nothing before their length fits, and refuses bytes that no writer makes.

use half::{bf16, f16};

use crate::DType;

pub(crate) mod fields;
pub mod i2_s;
pub mod ptq1_0;
pub mod q2_0;
pub mod q6_k;
pub mod q8_0;
#[cfg(test)]
mod tests;
pub mod tq1_0;
pub mod tq2_0;

/// Why bytes are not the blocks of a tensor.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// A part of a block cannot be stored.
    #[error("{elements} values do not fill blocks; expected a multiple of {block}")]
    UnevenElements {
        /// Values asked for.
        elements: usize,
        /// Values a block holds.
        block: usize,
    },
    /// The byte count does not fit the number of values.
    #[error("{elements} values need {expected} bytes, got {found}")]
    WrongLength {
        /// Values asked for.
        elements: usize,
        /// Bytes they need.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
    /// The type holds codes or integers.
    #[error("has type {name}; expected a float type")]
    NotFloat {
        /// The type.
        name: &'static str,
    },
    /// A byte that no ternary values make.
    #[error("byte {offset} is {byte:#04x}, a code that no ternary value has")]
    UnusedCode {
        /// Offset of the byte.
        offset: usize,
        /// The byte.
        byte: u8,
    },
    /// The scale of a block is NaN or infinite.
    #[error("the scale of block {block} (byte {offset}) is not a finite number")]
    ScaleNotFinite {
        /// Index of the block.
        block: usize,
        /// Offset of the scale's first byte.
        offset: usize,
    },
}

/// The values of a float type, plain or in blocks, as f32.
///
/// # Errors
/// If the length does not fit, a block has no finite scale, or the type is not a float type.
pub fn dequantise(dtype: DType, bytes: &[u8], elements: usize) -> Result<Vec<f32>, BlockError> {
    match dtype {
        DType::F32 => plain(bytes, elements, f32::from_le_bytes),
        DType::F16 => plain(bytes, elements, |bytes| f16::from_le_bytes(bytes).to_f32()),
        DType::Bf16 => plain(bytes, elements, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        DType::Q8_0 => q8_0::dequantise(bytes, elements),
        DType::Q6K => q6_k::dequantise(bytes, elements),
        DType::I2S => Err(BlockError::NotFloat { name: dtype.name() }),
        other => {
            let (codes, scales) = grouped(other, bytes, elements)?;
            let groups = codes.chunks_exact(other.block() as usize).zip(scales);
            let values = |(codes, scale): (&[i8], f16)| {
                codes.iter().map(|&code| f32::from(code) * scale.to_f32()).collect::<Vec<_>>()
            };
            Ok(groups.flat_map(values).collect())
        }
    }
}

/// The codes of a type of ternary blocks, each in -1..=2, and the scale of each block.
///
/// # Errors
/// If the length does not fit, a byte holds no codes, a block has no finite scale, or the type is
/// another.
pub fn grouped(
    dtype: DType,
    bytes: &[u8],
    elements: usize,
) -> Result<(Vec<i8>, Vec<f16>), BlockError> {
    match dtype {
        DType::Tq1_0 => tq1_0::unpack(bytes, elements),
        DType::Tq2_0 => tq2_0::unpack(bytes, elements),
        DType::Ptq1_0 => ptq1_0::unpack(bytes, elements),
        DType::Q2_0 | DType::Q2_0Of128 | DType::Pq2_0 => {
            q2_0::unpack(bytes, elements, dtype.block() as usize)
        }
        other => Err(BlockError::NotFloat { name: other.name() }),
    }
}

fn plain<const N: usize>(
    bytes: &[u8],
    elements: usize,
    to_f32: impl Fn([u8; N]) -> f32,
) -> Result<Vec<f32>, BlockError> {
    check_length(bytes, elements, elements.saturating_mul(N))?;
    Ok(bytes.as_chunks().0.iter().map(|&bytes| to_f32(bytes)).collect())
}

/// The bytes of values in a float type: whole blocks where it has blocks.
///
/// # Panics
/// If the type is not a float type, or the values do not fill blocks.
pub fn quantise(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        DType::Q8_0 => q8_0::quantise(values),
        DType::Q6K => q6_k::quantise(values),
        other => panic!("{} is no float type", other.name()),
    }
}

/// Checks that `bytes` are as long as `elements` values in blocks of `block_bytes` bytes.
fn check_blocks(
    bytes: &[u8],
    elements: usize,
    block: usize,
    block_bytes: usize,
) -> Result<(), BlockError> {
    check_whole(elements, block)?;
    // Where the product saturates it is longer than any slice, so the length is refused.
    check_length(bytes, elements, (elements / block).saturating_mul(block_bytes))
}

fn check_whole(elements: usize, block: usize) -> Result<(), BlockError> {
    if !elements.is_multiple_of(block) {
        return Err(BlockError::UnevenElements { elements, block });
    }
    Ok(())
}

fn check_length(bytes: &[u8], elements: usize, expected: usize) -> Result<(), BlockError> {
    if bytes.len() != expected {
        return Err(BlockError::WrongLength { elements, expected, found: bytes.len() });
    }
    Ok(())
}

/// The scale at byte `offset`, which must be finite.
fn finite_scale(bytes: &[u8], block: usize, offset: usize) -> Result<f16, BlockError> {
    let scale = f16::from_le_bytes([bytes[offset], bytes[offset + 1]]);
    if scale.is_finite() { Ok(scale) } else { Err(BlockError::ScaleNotFinite { block, offset }) }
}

fn assert_whole(values: usize, block: usize) {
    assert!(values.is_multiple_of(block), "whole blocks of {block} values, got {values}");
}

pub(crate) fn assert_ternary(codes: &[i8]) {
    let foreign = codes.iter().fold(false, |any, code| any | !(-1..=1).contains(code));
    assert!(!foreign, "ternary codes");
}

/// The bytes of blocks of 256 codes, each followed by its scale. ggml's scale is the largest
/// magnitude in a block, so a block whose codes are all 0 has the scale 0.
fn pack_ternary(
    codes: &[i8],
    scale: impl Fn(usize) -> f16,
    pack_block: impl Fn(&[i8], &mut Vec<u8>),
) -> Vec<u8> {
    assert_whole(codes.len(), tq2_0::BLOCK);
    assert_ternary(codes);
    let mut bytes = Vec::with_capacity(codes.len() / 3);
    for (index, block) in codes.chunks_exact(tq2_0::BLOCK).enumerate() {
        pack_block(block, &mut bytes);
        // Not left as the matrix's: bytes must be those that llama.cpp makes of the same values.
        let scale = if block.iter().all(|&code| code == 0) { f16::ZERO } else { scale(index) };
        bytes.extend(scale.to_le_bytes());
    }
    bytes
}

/// The codes and the scale of each block of `block` codes in `code_bytes` bytes. `unpack_block`
/// fails with the position of a byte that no codes make.
fn unpack_ternary(
    bytes: &[u8],
    elements: usize,
    block: usize,
    code_bytes: usize,
    unpack_block: impl Fn(&[u8], &mut [i8]) -> Result<(), usize>,
) -> Result<(Vec<i8>, Vec<f16>), BlockError> {
    check_blocks(bytes, elements, block, code_bytes + 2)?;
    let mut codes = vec![0; elements];
    let mut scales = Vec::with_capacity(elements / block);
    for (index, codes) in codes.chunks_exact_mut(block).enumerate() {
        let start = index * (code_bytes + 2);
        let packed = &bytes[start..][..code_bytes];
        unpack_block(packed, codes)
            .map_err(|at| BlockError::UnusedCode { offset: start + at, byte: packed[at] })?;
        scales.push(finite_scale(bytes, index, start + code_bytes)?);
    }
    Ok((codes, scales))
}

/// The largest magnitude; NaN if one of the values is.
fn absmax(values: &[f32]) -> f32 {
    // Without the sign, bits are ordered as the numbers are, and NaN comes after infinity.
    let bits = values.iter().map(|value| value.abs().to_bits()).max();
    f32::from_bits(bits.unwrap_or(0))
}
