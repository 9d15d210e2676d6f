//! Type id 42 means two layouts: groups of 64 values (`Q2_0` of llama.cpp), and groups of 128 (a
//! fork). Tensors follow each other without gaps, so offsets and the end of the file tell which is
//! meant.

use std::path::Path;

use super::layout::{Claim, tensor_bytes};
use crate::{DType, FormatError};

/// Where the data of a file lies.
#[derive(Clone, Copy)]
pub(super) struct SectionEnds {
    pub(super) start: u64,
    pub(super) file_len: u64,
    pub(super) alignment: u64,
}

/// The claims, with [`DType::Q2_0Of128`] where the sizes say so.
///
/// # Errors
/// Names the first tensor of id 42 where both layouts fit the file. Where neither does, the common
/// one is kept, and its offsets are then found to be wrong.
pub(super) fn resolved(
    path: &Path,
    mut claims: Vec<Claim>,
    ends: SectionEnds,
) -> Result<Vec<Claim>, FormatError> {
    let Some(first) = claims.iter().position(|claim| claim.dtype == DType::Q2_0) else {
        return Ok(claims);
    };
    let fits = [DType::Q2_0, DType::Q2_0Of128].map(|dtype| fits(&claims, dtype, ends));
    // A guess would shuffle weights without a word.
    if fits == [true, true] {
        let what = "has the type id 42, which is groups of 64 or of 128 values: both fit the sizes \
                    in this file; expected one with larger matrices";
        return Err(FormatError::tensor(path, &claims[first].name, what));
    }
    if fits[1] {
        for claim in claims.iter_mut().filter(|claim| claim.dtype == DType::Q2_0) {
            claim.len = length(claim, DType::Q2_0Of128).expect("a size that fits the file");
            claim.dtype = DType::Q2_0Of128;
        }
    }
    Ok(claims)
}

/// Bytes of a tensor, where id 42 is `two_bit`.
fn length(claim: &Claim, two_bit: DType) -> Option<u64> {
    match claim.dtype {
        DType::Q2_0 => tensor_bytes(&claim.shape, two_bit).ok(),
        _ => Some(claim.len),
    }
}

/// Whether what follows each tensor of id 42, a tensor or the end of the file, is where it should
/// be.
fn fits(claims: &[Claim], two_bit: DType, ends: SectionEnds) -> bool {
    let each = |(at, claim): (usize, &Claim)| {
        let end = claim.offset.checked_add(length(claim, two_bit)?)?;
        let padded = end.checked_next_multiple_of(ends.alignment)?;
        Some(match claims.get(at + 1) {
            _ if claim.dtype != DType::Q2_0 => true,
            Some(next) => next.offset == padded,
            None => {
                let at = |offset: u64| ends.start.checked_add(offset);
                // Some writers pad the last tensor and some do not.
                (at(end)?..=at(padded)?).contains(&ends.file_len)
            }
        })
    };
    claims.iter().enumerate().all(|pair| each(pair).unwrap_or(false))
}
