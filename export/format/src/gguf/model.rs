//! A model in a GGUF file: tensors under our names, rows in our order.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use half::f16;

use super::architecture::{self, Architecture};
use super::groups::{holds_groups, refuse_rotation, with_quantiser};
use super::tensor_names::tensor_name;
use super::{GgufFile, GgufTensor, rope};
use crate::blocks::i2_s::{self, I2sLayout};
use crate::blocks::{BlockError, dequantise, tq1_0, tq2_0};
use crate::group::Group;
use crate::quant::WeightScale;
use crate::{DType, FormatError, ModelSpec, TensorEntry, TensorSource, TensorView, tensor_table};

/// An open GGUF file whose tensors are those of the model that its metadata describes.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    spec: ModelSpec,
    architecture: Architecture,
    i2_s: I2sLayout,
}

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

impl GgufModel {
    /// Opens a file; `i2_s` is how its I2_S tensors are laid out, which no metadata tells.
    ///
    /// # Errors
    /// Names the key or tensor that is not as the architecture says.
    pub fn open(path: &Path, i2_s: I2sLayout) -> Result<Self, FormatError> {
        Self::of_file(GgufFile::open(path)?, i2_s)
    }

    /// The same for a file that is open.
    ///
    /// # Errors
    /// As there.
    pub fn of_file(file: GgufFile, i2_s: I2sLayout) -> Result<Self, FormatError> {
        refuse_part(&file)?;
        let missing = || FormatError::tensor(file.path(), EMBEDDING, "is missing");
        // The rows that are there decide, not a key: ids beyond them would read other bytes.
        let vocab_size = file.tensor(EMBEDDING).ok_or_else(missing)?.shape[0];
        let tied = file.tensor(HEAD).is_none();
        refuse_rotation(file.metadata())?;
        let has_codes = file.tensors().iter().any(|info| info.dtype.is_ternary());
        let (architecture, mut spec) =
            architecture::read(file.metadata(), vocab_size, tied, has_codes)?;
        read_factors(&file, &mut spec)?;
        let spec = with_quantiser(&file, spec)?;
        let model = Self { file, spec, architecture, i2_s };
        model.check_tensors()?;
        Ok(model)
    }

    /// The file itself, for its metadata.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// Which architecture it says it is.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// How a tensor is stored.
    pub fn dtype(&self, entry: &TensorEntry) -> DType {
        self.info(entry).dtype
    }

    fn codes(&self, entry: &TensorEntry) -> Result<(Vec<i8>, WeightScale), FormatError> {
        let (info, elements) = (self.info(entry), entry.elements());
        let bytes = self.file.part(info, 0..info.len())?;
        let broken = |error: BlockError| self.error(entry, error.to_string());
        match info.dtype {
            DType::I2S => {
                let (codes, scale) = i2_s::unpack(&bytes, elements, self.i2_s).map_err(broken)?;
                Ok((codes, self.scale(entry, scale)?))
            }
            DType::Tq1_0 => {
                let (codes, scales) = tq1_0::unpack(&bytes, elements).map_err(broken)?;
                Ok((codes, self.one_scale(entry, &scales)?))
            }
            _ => {
                let (codes, scales) = tq2_0::unpack(&bytes, elements).map_err(broken)?;
                Ok((codes, self.one_scale(entry, &scales)?))
            }
        }
    }

    /// The scale that all blocks share; a block of zeros has none.
    fn one_scale(&self, entry: &TensorEntry, scales: &[f16]) -> Result<WeightScale, FormatError> {
        let mut some = scales.iter().filter(|scale| **scale != f16::ZERO);
        // All codes are 0: any scale gives the same weights.
        let Some(first) = some.next() else { return Ok(WeightScale::of_latents(&[])) };
        if let Some(other) = some.find(|scale| *scale != first) {
            let what = format!(
                "has blocks with the scales {first} and {other}; expected one for the whole matrix"
            );
            return Err(self.error(entry, what));
        }
        self.scale(entry, first.to_f32())
    }

    fn scale(&self, entry: &TensorEntry, value: f32) -> Result<WeightScale, FormatError> {
        WeightScale::from_stored(value).ok_or_else(|| {
            let what = format!("has the scale {value}; expected a positive finite number");
            self.error(entry, what)
        })
    }

    /// Some rows, in our order, of a tensor whose rows are whole blocks.
    fn block_rows(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<Vec<u8>, FormatError> {
        let (info, width) = (self.info(entry), entry.row_length() as u64);
        let row_bytes = info.dtype.bytes_of(width, width).expect("rows of whole blocks") as usize;
        let theirs = |row| self.architecture.source_row(entry, &self.spec, row);
        if (0..entry.shape[0]).all(|row| theirs(row) == row) {
            return self.file.part(info, rows.start * row_bytes..rows.end * row_bytes);
        }
        let bytes = self.file.part(info, 0..info.len())?;
        // Rows of a llama file come from all over the matrix, so it is read whole and sorted.
        let mut ordered = vec![0; rows.len() * row_bytes];
        for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
            if let Some(place) = theirs(row).checked_sub(rows.start).filter(|at| *at < rows.len()) {
                ordered[place * row_bytes..][..row_bytes].copy_from_slice(bytes);
            }
        }
        Ok(ordered)
    }

    fn in_our_order(&self, entry: &TensorEntry, codes: Vec<i8>) -> Vec<i8> {
        let width = entry.shape[1];
        let ours = |row| self.architecture.source_row(entry, &self.spec, row);
        if (0..entry.shape[0]).all(|row| ours(row) == row) {
            return codes;
        }
        let mut ordered = vec![0; codes.len()];
        for (row, codes) in codes.chunks_exact(width).enumerate() {
            ordered[ours(row) * width..][..width].copy_from_slice(codes);
        }
        ordered
    }

    fn info(&self, entry: &TensorEntry) -> &GgufTensor {
        self.file.tensor(&tensor_name(entry)).expect("the file's tensors were checked")
    }

    /// The types that a tensor should have, if it has another.
    fn other_type(&self, entry: &TensorEntry, dtype: DType) -> Option<String> {
        let group = self.spec.quantiser.group;
        if !entry.is_ternary(&self.spec) {
            // A table in blocks of codes has values; a norm in them is a mistake.
            let known = !dtype.is_ternary() || entry.is_matrix() && dtype != DType::I2S;
            return (!known).then(|| "a float type".to_owned());
        }
        if group == Group::Matrix {
            let known = matches!(dtype, DType::I2S | DType::Tq1_0 | DType::Tq2_0);
            return (!known).then(|| "I2_S, TQ1_0 or TQ2_0: a ternary matrix".to_owned());
        }
        let expected = || format!("a ternary matrix with groups of {group} weights");
        (!holds_groups(dtype, group)).then(expected)
    }

    fn check_tensors(&self) -> Result<(), FormatError> {
        let table = tensor_table(&self.spec);
        for entry in &table {
            let info = self.file.tensor(&tensor_name(entry));
            let info = info.ok_or_else(|| self.error(entry, "is missing".to_owned()))?;
            if info.shape != entry.shape {
                let what = format!("has shape {:?}; expected {:?}", info.shape, entry.shape);
                return Err(self.error(entry, what));
            }
            if let Some(expected) = self.other_type(entry, info.dtype) {
                let what = format!("has type {}; expected {expected}", info.dtype.name());
                return Err(self.error(entry, what));
            }
        }
        let mut known: HashSet<String> = table.iter().map(tensor_name).collect();
        // No tensor of the model, but one of the file's: `read_factors` has checked it.
        known.insert(rope::FACTORS.to_owned());
        match self.file.tensors().iter().find(|info| !known.contains(&info.name)) {
            Some(info) => {
                let what = "is not a tensor of this model";
                Err(FormatError::tensor(self.file.path(), &info.name, what))
            }
            None => Ok(()),
        }
    }
}

/// Reads [`rope::FACTORS`], if the file has them: they must be those of the scaling that it states,
/// or of a published one.
fn read_factors(file: &GgufFile, spec: &mut ModelSpec) -> Result<(), FormatError> {
    let Some(info) = file.tensor(rope::FACTORS) else { return Ok(()) };
    let wrong = |what: &str| FormatError::tensor(file.path(), rope::FACTORS, what);
    let count: usize = info.shape.iter().product();
    let values = dequantise(info.dtype, &file.part(info, 0..info.len())?, count);
    let values = values.map_err(|error| wrong(&error.to_string()))?;
    let Some(expected) = rope::factors(spec) else {
        let unknown = "holds factors of no scaling that is known; expected those of Llama 3";
        spec.rope_scaling = Some(rope::published(spec, &values).ok_or_else(|| wrong(unknown))?);
        return Ok(());
    };
    let close = |(a, b): (&f32, &f32)| (a / b - 1.0).abs() < 1e-4;
    if expected.len() == values.len() && expected.iter().zip(&values).all(close) {
        return Ok(());
    }
    Err(wrong("differs from the factors of the scaling that the metadata states"))
}

/// Refuses one file of a model that is in several.
fn refuse_part(file: &GgufFile) -> Result<(), FormatError> {
    const PARTS: &str = "split.count";
    let Some(parts) = file.metadata().get(PARTS) else { return Ok(()) };
    let parts = parts.to_string();
    if parts == "0" || parts == "1" {
        return Ok(());
    }
    let what = format!(
        "is one of {parts} files; expected the whole model in one\nhint: llama.cpp's \
         llama-gguf-split --merge FIRST.gguf WHOLE.gguf joins them"
    );
    Err(FormatError::config(file.path(), PARTS, what))
}

impl TensorSource for GgufModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn read(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<TensorView, FormatError> {
        let info = self.info(entry);
        if entry.group_width(&self.spec).is_some() {
            return Ok(TensorView::stored(info.dtype, self.block_rows(entry, rows)?));
        }
        if entry.is_ternary(&self.spec) {
            assert_eq!(rows, 0..entry.shape[0], "a ternary matrix is read whole");
            let (codes, scale) = self.codes(entry)?;
            return Ok(TensorView::codes(self.in_our_order(entry, codes), scale));
        }
        let width = entry.row_length() as u64;
        let at = |row: usize| {
            let bytes = info.dtype.bytes_of(row as u64 * width, width);
            bytes.expect("a part of a tensor is smaller than the tensor") as usize
        };
        let bytes = if self.architecture.is_interleaved(entry) {
            let stored = |row| self.architecture.stored_row(entry, &self.spec, row);
            let parts = rows.map(|row| self.file.part(info, at(stored(row))..at(stored(row) + 1)));
            parts.collect::<Result<Vec<_>, _>>()?.concat()
        } else {
            self.file.part(info, at(rows.start)..at(rows.end))?
        };
        Ok(TensorView::stored(info.dtype, bytes))
    }

    fn error(&self, entry: &TensorEntry, what: String) -> FormatError {
        FormatError::tensor(self.file.path(), &tensor_name(entry), what)
    }
}
