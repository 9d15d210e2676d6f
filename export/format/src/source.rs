//! Where tensors come from: one trait for stored models, models in memory and random ones.
//!
//! A [`TensorSource`] reads rows of a [`TensorEntry`] as they are stored, as a [`TensorView`];
//! floats, codes and packed matrices are derived from it here, for every source alike.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use crate::blocks::{BlockError, dequantise, grouped as grouped_blocks};
use crate::grouped::GroupedTernary;
use crate::matrix::Matrix;
use crate::packed::{PackError, PackedTernary};
use crate::quant::{WeightScale, first_not_finite};
use crate::writer::little_endian;
use crate::{DType, FormatError, ModelSpec, TensorEntry};

/// The tensors of a model, read on demand.
pub trait TensorSource {
    /// What the model is.
    fn spec(&self) -> &ModelSpec;

    /// Some rows of a tensor, or some values of a norm, as they are stored. A matrix that is
    /// stored as codes is read whole: its rows may share bytes.
    ///
    /// # Errors
    /// Whatever is wrong with the tensor's shape, type or bytes.
    fn read(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<TensorView, FormatError>;

    /// An error that names a tensor of this source, and its file.
    fn error(&self, entry: &TensorEntry, what: String) -> FormatError {
        FormatError::tensor(Path::new("model"), &entry.name, what)
    }

    /// Some rows of a float tensor, all values finite.
    ///
    /// # Errors
    /// As [`TensorSource::read`]; NaN or infinity.
    fn rows(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<Vec<f32>, FormatError> {
        finite_values(self, entry, rows.clone(), self.read(entry, rows)?)
    }

    /// A whole float tensor.
    ///
    /// # Errors
    /// As [`TensorSource::rows`].
    fn floats(&self, entry: &TensorEntry) -> Result<Vec<f32>, FormatError> {
        self.rows(entry, 0..entry.shape[0])
    }

    /// A whole tensor: codes and scale of a ternary matrix that is stored as such, or as
    /// dequantised floats; the values of any other tensor ([`Matrix`]). Where a model has a scale
    /// for each row or group of columns, its ternary matrices always come with them.
    ///
    /// # Errors
    /// As [`TensorSource::rows`].
    fn matrix(&self, entry: &TensorEntry) -> Result<Matrix, FormatError> {
        let rows = 0..entry.shape[0];
        if entry.group_width(self.spec()).is_some() {
            return Ok(Matrix::Grouped(self.grouped(entry, rows)?));
        }
        let view = self.read(entry, rows.clone())?;
        // Only codes have a scale beside them.
        if let Some(scale) = view.scale {
            let codes = view.into_codes(entry);
            let codes = codes.map_err(|error| self.error(entry, error.to_string()))?;
            return Ok(Matrix::Ternary { codes, scale });
        }
        let values = finite_values(self, entry, rows, view)?;
        // A norm may well hold one magnitude only; its values are never codes.
        let may_be_codes = entry.is_ternary(self.spec());
        Ok(if may_be_codes { Matrix::from_floats(values) } else { Matrix::Latent(values) })
    }

    /// Some rows of a ternary matrix with a scale for each row or group of columns: its own codes
    /// and scales, or those of its latents.
    ///
    /// # Errors
    /// As [`TensorSource::rows`].
    ///
    /// # Panics
    /// If a matrix of this model has one scale.
    fn grouped(
        &self,
        entry: &TensorEntry,
        rows: Range<usize>,
    ) -> Result<GroupedTernary, FormatError> {
        let width = entry.group_width(self.spec()).expect("a model with a scale a group");
        let (columns, count) = (entry.shape[1], rows.len());
        let view = self.read(entry, rows.clone())?;
        if view.dtype.is_grouped() {
            let found = grouped_blocks(view.dtype, &view.bytes(), count * columns);
            let (codes, scales) = found.map_err(|error| self.error(entry, error.to_string()))?;
            let scales = scales.into_iter().map(half::f16::to_f32).collect();
            return Ok(GroupedTernary::new(columns, width, codes, scales));
        }
        let values = finite_values(self, entry, rows, view)?;
        Ok(GroupedTernary::of_floats(columns, self.spec().quantiser.group, &values))
    }

    /// A ternary matrix, packed: its own codes and scale, or those of its latents.
    ///
    /// # Errors
    /// As [`TensorSource::rows`]; a number of rows that cannot be packed.
    ///
    /// # Panics
    /// If a matrix of this model has a scale for each row or group of columns.
    fn ternary(&self, entry: &TensorEntry) -> Result<(PackedTernary, WeightScale), FormatError> {
        assert!(entry.group_width(self.spec()).is_none(), "a matrix with one scale");
        let (rows, columns) = (entry.shape[0], entry.shape[1]);
        let view = self.read(entry, 0..rows)?;
        let (packed, scale) = if let Some(scale) = view.scale {
            (view.into_packed(entry), scale)
        } else {
            let values = finite_values(self, entry, 0..rows, view)?;
            let (codes, scale) = Matrix::from_floats(values).quantised();
            (PackedTernary::from_codes(rows, columns, &codes), scale)
        };
        Ok((packed.map_err(|error| self.error(entry, error.to_string()))?, scale))
    }
}

fn finite_values<S: TensorSource + ?Sized>(
    source: &S,
    entry: &TensorEntry,
    rows: Range<usize>,
    view: TensorView,
) -> Result<Vec<f32>, FormatError> {
    let (first, elements) = (rows.start * entry.row_length(), rows.len() * entry.row_length());
    let values = view.into_floats(elements);
    let values = values.map_err(|error| source.error(entry, error.to_string()))?;
    let Some(at) = first_not_finite(&values) else { return Ok(values) };
    let what = format!("holds {} at index {}; expected finite", values[at], first + at);
    Err(source.error(entry, what))
}

/// Rows of a tensor as they are stored.
#[derive(Clone, Debug)]
pub struct TensorView {
    /// How the values are stored. With a scale: [`DType::U8`] for Hugging Face's packed codes,
    /// [`DType::I8`] for one code a byte. Without one: a float type.
    pub dtype: DType,
    data: ViewData,
    /// What a product of ternary codes is multiplied by.
    pub scale: Option<WeightScale>,
}

/// Values that were computed are f32 already; turning them into bytes and back would hold two
/// copies of the largest matrix.
#[derive(Clone, Debug)]
enum ViewData {
    Stored(Vec<u8>),
    Computed(Vec<f32>),
}

impl TensorView {
    /// Float values as a file holds them, little-endian or in blocks.
    pub fn stored(dtype: DType, bytes: Vec<u8>) -> Self {
        Self { dtype, data: ViewData::Stored(bytes), scale: None }
    }

    /// Float values.
    pub fn floats(values: Vec<f32>) -> Self {
        Self { dtype: DType::F32, data: ViewData::Computed(values), scale: None }
    }

    /// A whole matrix of codes, each in {-1, 0, +1}.
    pub fn codes(codes: Vec<i8>, scale: WeightScale) -> Self {
        let bytes = codes.into_iter().map(|code| code as u8).collect();
        Self { dtype: DType::I8, data: ViewData::Stored(bytes), scale: Some(scale) }
    }

    /// A whole matrix of codes in Hugging Face's packed layout, not yet checked.
    pub fn packed(bytes: Vec<u8>, scale: WeightScale) -> Self {
        Self { dtype: DType::U8, data: ViewData::Stored(bytes), scale: Some(scale) }
    }

    /// The bytes as a file of this type would hold them.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match &self.data {
            ViewData::Stored(bytes) => Cow::Borrowed(bytes),
            ViewData::Computed(values) => little_endian(values),
        }
    }

    fn into_floats(self, elements: usize) -> Result<Vec<f32>, BlockError> {
        match self.data {
            ViewData::Stored(bytes) => dequantise(self.dtype, &bytes, elements),
            ViewData::Computed(values) => Ok(values),
        }
    }

    fn into_codes(self, entry: &TensorEntry) -> Result<Vec<i8>, PackError> {
        if self.dtype == DType::U8 {
            return Ok(self.into_packed(entry)?.codes());
        }
        let ViewData::Stored(bytes) = self.data else { unreachable!("codes are stored as bytes") };
        Ok(bytes.into_iter().map(|byte| byte as i8).collect())
    }

    fn into_packed(self, entry: &TensorEntry) -> Result<PackedTernary, PackError> {
        let (rows, columns) = (entry.shape[0], entry.shape[1]);
        match (self.dtype, self.data) {
            (DType::U8, ViewData::Stored(bytes)) => PackedTernary::from_bytes(rows, columns, bytes),
            (_, data) => {
                let codes = Self { data, ..self }.into_codes(entry)?;
                PackedTernary::from_codes(rows, columns, &codes)
            }
        }
    }
}

/// A source whose float values a function gives, a whole tensor at a time.
pub struct FromValues<'a, F> {
    spec: &'a ModelSpec,
    values: std::cell::RefCell<F>,
}

impl<'a, F: FnMut(&TensorEntry) -> Result<Vec<f32>, FormatError>> FromValues<'a, F> {
    /// `values` is asked for each tensor of the table, in its order, once or more.
    pub fn new(spec: &'a ModelSpec, values: F) -> Self {
        Self { spec, values: values.into() }
    }
}

impl<F: FnMut(&TensorEntry) -> Result<Vec<f32>, FormatError>> TensorSource for FromValues<'_, F> {
    fn spec(&self) -> &ModelSpec {
        self.spec
    }

    fn read(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<TensorView, FormatError> {
        let mut values = (self.values.borrow_mut())(entry)?;
        let width = entry.row_length();
        // Behind first: the other way round the end would have moved.
        values.truncate(rows.end * width);
        values.drain(..rows.start * width);
        Ok(TensorView::floats(values))
    }
}

/// Rows of a float tensor that are read together: about 16 MiB as f32.
pub fn row_chunks(entry: &TensorEntry) -> impl Iterator<Item = Range<usize>> + use<> {
    let (rows, width) = (entry.shape[0], entry.row_length());
    let step = ((4 << 20) / width).max(1);
    (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
}
