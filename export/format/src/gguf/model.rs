//! A model in a GGUF file, read as its tensors are meant.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};

use super::architecture::{self, Architecture, tensor_name};
use super::{GgufFile, TensorInfo, TensorKind};
use crate::blocks::i2_s::{self, I2sLayout};
use crate::blocks::{q6_k, q8_0, tq1_0, tq2_0};
use crate::packed::PackedTernary;
use crate::quant::{WeightScale, first_not_finite};
use crate::{FormatError, ModelSpec, TensorEntry, tensor_table};

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
        let file = GgufFile::open(path)?;
        let missing = || FormatError::tensor(path, EMBEDDING, "is missing");
        let vocab_size = file.tensor(EMBEDDING).ok_or_else(missing)?.shape[0];
        let tied = file.tensor(HEAD).is_none();
        let (architecture, spec) = architecture::read(file.metadata(), vocab_size, tied)?;
        let model = Self { file, spec, architecture, i2_s };
        model.check_tensors()?;
        Ok(model)
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
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
    pub fn kind(&self, entry: &TensorEntry) -> TensorKind {
        self.info(entry).kind
    }

    /// A ternary matrix and its scale.
    ///
    /// # Errors
    /// When its bytes are no ternary codes, or its blocks have scales of their own.
    pub fn ternary(
        &self,
        entry: &TensorEntry,
    ) -> Result<(PackedTernary, WeightScale), FormatError> {
        let (codes, scale) = self.codes(entry)?;
        let codes = self.in_our_order(entry, codes);
        let packed = PackedTernary::from_codes(entry.shape[0], entry.shape[1], &codes)
            .map_err(|error| self.fault(entry, error.to_string()))?;
        Ok((packed, scale))
    }

    /// Some rows of a float tensor, finite.
    ///
    /// # Errors
    /// When it is stored as codes, or holds what is no number.
    pub fn rows(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<Vec<f32>, FormatError> {
        let (info, width) = (self.info(entry), entry.elements() / entry.shape[0]);
        let elements = rows.len() * width;
        let bytes = self.row_bytes(entry, rows.clone())?;
        let broken = |error: crate::blocks::BlockError| self.fault(entry, error.to_string());
        let values = match info.kind {
            TensorKind::F32 => quads(&bytes).map(f32::from_le_bytes).collect(),
            TensorKind::F16 => pairs(&bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            TensorKind::Bf16 => pairs(&bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            TensorKind::Q8_0 => q8_0::dequantise(&bytes, elements).map_err(broken)?,
            TensorKind::Q6K => q6_k::dequantise(&bytes, elements).map_err(broken)?,
            TensorKind::Tq1_0 | TensorKind::Tq2_0 | TensorKind::I2S => {
                let what = format!("has type {}; expected a float type", info.kind.name());
                return Err(self.fault(entry, what));
            }
        };
        match first_not_finite(&values) {
            None => Ok(values),
            Some(at) => {
                let (value, index) = (values[at], rows.start * width + at);
                Err(self.fault(entry, format!("holds {value} at index {index}; expected finite")))
            }
        }
    }

    /// The bytes of some rows of a float tensor, as they are stored.
    ///
    /// # Errors
    /// Whatever reading reports.
    pub fn row_bytes(
        &self,
        entry: &TensorEntry,
        rows: Range<usize>,
    ) -> Result<Vec<u8>, FormatError> {
        let (info, width) = (self.info(entry), entry.elements() / entry.shape[0]);
        let part = |row: usize| {
            let bytes = info.kind.bytes_of((row * width) as u64, width as u64);
            bytes.expect("a part of a tensor is smaller than the tensor") as usize
        };
        self.file.part(info, part(rows.start)..part(rows.end))
    }

    fn codes(&self, entry: &TensorEntry) -> Result<(Vec<i8>, WeightScale), FormatError> {
        let info = self.info(entry);
        let bytes = self.file.part(info, 0..info.len())?;
        let broken = |error: crate::blocks::BlockError| self.fault(entry, error.to_string());
        match info.kind {
            TensorKind::I2S => {
                let (codes, scale) =
                    i2_s::unpack(&bytes, entry.elements(), self.i2_s).map_err(broken)?;
                Ok((codes, self.scale(entry, scale)?))
            }
            TensorKind::Tq1_0 => {
                let (codes, scales) = tq1_0::unpack(&bytes, entry.elements()).map_err(broken)?;
                Ok((codes, self.one_scale(entry, &scales)?))
            }
            TensorKind::Tq2_0 => {
                let (codes, scales) = tq2_0::unpack(&bytes, entry.elements()).map_err(broken)?;
                Ok((codes, self.one_scale(entry, &scales)?))
            }
            kind => {
                let what = format!("has type {}; expected I2_S, TQ1_0 or TQ2_0", kind.name());
                Err(self.fault(entry, what))
            }
        }
    }

    /// The scale that all blocks share; a block of zeros has none.
    fn one_scale(&self, entry: &TensorEntry, scales: &[f16]) -> Result<WeightScale, FormatError> {
        let mut some = scales.iter().filter(|scale| **scale != f16::ZERO);
        let Some(first) = some.next() else { return Ok(WeightScale::of_latents(&[])) };
        if let Some(other) = some.find(|scale| *scale != first) {
            let what = format!(
                "has blocks with the scales {first} and {other}; expected one for the whole matrix"
            );
            return Err(self.fault(entry, what));
        }
        self.scale(entry, first.to_f32())
    }

    fn scale(&self, entry: &TensorEntry, value: f32) -> Result<WeightScale, FormatError> {
        WeightScale::from_stored(value).ok_or_else(|| {
            let what = format!("has the scale {value}; expected a positive finite number");
            self.fault(entry, what)
        })
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

    fn info(&self, entry: &TensorEntry) -> &TensorInfo {
        self.file.tensor(&tensor_name(entry)).expect("the file's tensors were checked")
    }

    fn fault(&self, entry: &TensorEntry, what: String) -> FormatError {
        FormatError::tensor(self.file.path(), &tensor_name(entry), what)
    }

    fn check_tensors(&self) -> Result<(), FormatError> {
        let table = tensor_table(&self.spec);
        for entry in &table {
            let info = self.file.tensor(&tensor_name(entry));
            let info = info.ok_or_else(|| self.fault(entry, "is missing".to_owned()))?;
            if info.shape != entry.shape {
                let what = format!("has shape {:?}; expected {:?}", info.shape, entry.shape);
                return Err(self.fault(entry, what));
            }
            let codes =
                matches!(info.kind, TensorKind::I2S | TensorKind::Tq1_0 | TensorKind::Tq2_0);
            if codes != entry.is_ternary(&self.spec) {
                let expected =
                    if codes { "a float type" } else { "I2_S, TQ1_0 or TQ2_0: a ternary matrix" };
                let what = format!("has type {}; expected {expected}", info.kind.name());
                return Err(self.fault(entry, what));
            }
        }
        let known: HashSet<String> = table.iter().map(tensor_name).collect();
        match self.file.tensors().iter().find(|info| !known.contains(&info.name)) {
            Some(info) => {
                let what = "is not a tensor of this model";
                Err(FormatError::tensor(self.file.path(), &info.name, what))
            }
            None => Ok(()),
        }
    }
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = [u8; 2]> {
    bytes.chunks_exact(2).map(|b| [b[0], b[1]])
}

fn quads(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]])
}
