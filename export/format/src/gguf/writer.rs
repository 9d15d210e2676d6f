//! Writing a GGUF file in one pass: the header first, then each tensor's bytes in order.
//!
//! Equal input gives equal bytes: no time, host or path is stored. The file is written under the
//! name given; [`crate::staged`] makes it appear only when complete.

use std::collections::HashSet;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::layout::{
    LARGEST_HEADER, MAGIC, MOST_PAIRS, MOST_TENSORS, VERSION, is_tensor_name, tensor_bytes,
};
use super::metadata::Metadata;
use super::value::encode_text;
use crate::FormatError;
use crate::writer::TensorPlan;

/// llama.cpp's buffer holds 64 bytes, the last a zero.
const LONGEST_WRITTEN_NAME: usize = 63;

/// A GGUF file being written.
#[derive(Debug)]
pub struct GgufWriter {
    path: PathBuf,
    file: BufWriter<fs_err::File>,
    alignment: u64,
    /// Names and bytes, in order.
    tensors: Vec<(String, u64)>,
    /// The position in `tensors` of the one being written.
    current: usize,
    /// Bytes of it written so far.
    written: u64,
}

impl GgufWriter {
    /// Creates the file and writes all but the tensors' bytes.
    pub fn create(
        path: &Path,
        metadata: &Metadata,
        tensors: &[TensorPlan],
    ) -> Result<Self, FormatError> {
        let alignment = metadata.alignment()?;
        let lengths = lengths(path, tensors)?;
        // Offsets are known before a tensor is: types and shapes give all lengths, so one pass is
        // enough.
        let header = header(path, metadata, tensors, &lengths)?;
        let mut file = BufWriter::new(fs_err::File::create(path)?);
        file.write_all(&header)?;
        write_padding(&mut file, header.len() as u64, alignment)?;
        let names = tensors.iter().map(|tensor| tensor.name.clone());
        let (path, tensors) = (path.to_owned(), names.zip(lengths).collect());
        Ok(Self { path, file, alignment, tensors, current: 0, written: 0 })
    }

    /// Appends bytes to the current tensor.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let (name, len) = self.current()?;
        let total = self.written + bytes.len() as u64;
        if total > *len {
            let what = format!("is given {total} bytes; expected {len}");
            return Err(FormatError::tensor(&self.path, name, what));
        }
        self.file.write_all(bytes)?;
        self.written = total;
        Ok(())
    }

    /// Closes the current tensor, which must have all its bytes, and goes on to the next.
    pub fn end_tensor(&mut self) -> Result<(), FormatError> {
        let (name, len) = self.current()?;
        if self.written != *len {
            let what = format!("is given {} bytes; expected {len}", self.written);
            return Err(FormatError::tensor(&self.path, name, what));
        }
        write_padding(&mut self.file, self.written, self.alignment)?;
        self.current += 1;
        self.written = 0;
        Ok(())
    }

    /// Flushes the file to the operating system once every tensor has been closed.
    pub fn finish(mut self) -> Result<(), FormatError> {
        if let Some((name, _)) = self.tensors.get(self.current) {
            return Err(FormatError::tensor(&self.path, name, "was not written to its end"));
        }
        Ok(self.file.flush()?)
    }

    fn current(&self) -> Result<&(String, u64), FormatError> {
        self.tensors.get(self.current).ok_or_else(|| {
            let what = format!("all {} tensors are written already", self.tensors.len());
            FormatError::container(&self.path, what)
        })
    }
}

/// Checks names and shapes as the reader would; the bytes of each tensor.
fn lengths(path: &Path, tensors: &[TensorPlan]) -> Result<Vec<u64>, FormatError> {
    let mut names = HashSet::new();
    let length = |TensorPlan { name, dtype, shape }: &TensorPlan| {
        if !is_tensor_name(name) || name.len() > LONGEST_WRITTEN_NAME {
            let expected = format!("1 to {LONGEST_WRITTEN_NAME} bytes of plain printable ASCII");
            let what = format!("the tensor name {name:?} is not possible; expected {expected}");
            return Err(FormatError::container(path, what));
        }
        if !names.insert(name.clone()) {
            return Err(FormatError::tensor(path, name, "occurs twice"));
        }
        tensor_bytes(shape, *dtype).map_err(|what| FormatError::tensor(path, name, what))
    };
    tensors.iter().map(length).collect()
}

/// Everything before the data, unpadded.
fn header(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorPlan],
    lengths: &[u64],
) -> Result<Vec<u8>, FormatError> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        encode_text(&mut out, key);
        value.encode(&mut out);
    }
    let mut offset = 0;
    let alignment = metadata.alignment()?;
    for (tensor, len) in tensors.iter().zip(lengths) {
        encode_tensor(&mut out, tensor, offset);
        let end = next_offset(offset, *len, alignment);
        let too_long = "ends beyond what a file can hold";
        offset = end.ok_or_else(|| FormatError::tensor(path, &tensor.name, too_long))?;
    }
    let most_exceeded = tensors.len() as u64 > MOST_TENSORS || metadata.len() as u64 > MOST_PAIRS;
    if most_exceeded || out.len() > LARGEST_HEADER {
        let what = format!(
            "the header has {} tensors, {} metadata pairs, {} bytes; \
             expected at most {MOST_TENSORS}, {MOST_PAIRS}, {LARGEST_HEADER}",
            tensors.len(),
            metadata.len(),
            out.len()
        );
        return Err(FormatError::container(path, what));
    }
    Ok(out)
}

fn encode_tensor(out: &mut Vec<u8>, tensor: &TensorPlan, offset: u64) {
    encode_text(out, &tensor.name);
    out.extend((tensor.shape.len() as u32).to_le_bytes());
    // ggml has the dimension that lies densest in memory first.
    out.extend(tensor.shape.iter().rev().flat_map(|&extent| (extent as u64).to_le_bytes()));
    let id = tensor.dtype.gguf_id().expect("a type of GGUF");
    out.extend(id.to_le_bytes());
    out.extend(offset.to_le_bytes());
}

fn next_offset(offset: u64, len: u64, alignment: u64) -> Option<u64> {
    offset.checked_add(len)?.checked_next_multiple_of(alignment)
}

/// Zeros after `len` bytes up to the next multiple of the alignment.
fn write_padding(file: &mut impl Write, len: u64, alignment: u64) -> std::io::Result<()> {
    let mut left = len.next_multiple_of(alignment) - len;
    let zeros = [0; 64];
    while left > 0 {
        let count = left.min(zeros.len() as u64);
        file.write_all(&zeros[..count as usize])?;
        left -= count;
    }
    Ok(())
}
