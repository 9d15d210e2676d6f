//! A model that is being trained, as an export of it would hold it: latents of ternary matrices in f32,
//! which their reader quantises, and everything else in BF16.

use std::cell::RefCell;
use std::ops::Range;

use bitnet_format::DType;
use bitnet_format::{FormatError, ModelSpec, TensorEntry, TensorSource, TensorView};
use burn::tensor::Tensor;
use half::bf16;

use super::{LanguageModel, values};

/// The tensors of a model in memory.
pub(crate) struct LiveModel<'a> {
    spec: &'a ModelSpec,
    model: &'a LanguageModel,
    values: Vec<Tensor<1>>,
    /// The tensor that is being read: its place in the table, and its values.
    open: RefCell<Option<(usize, Vec<f32>)>>,
}

impl<'a> LiveModel<'a> {
    /// The tensors of `model`, which has this shape.
    pub(crate) fn new(spec: &'a ModelSpec, model: &'a LanguageModel) -> Self {
        Self { spec, model, values: values(model), open: RefCell::new(None) }
    }
}

impl TensorSource for LiveModel<'_> {
    fn spec(&self) -> &ModelSpec {
        self.spec
    }

    fn read(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<TensorView, FormatError> {
        let named = |one: &TensorEntry| one.name == entry.name;
        let index = self.model.table().iter().position(named).expect("a tensor of the model");
        let mut open = self.open.borrow_mut();
        let here = open.take().filter(|(of, _)| *of == index);
        let (_, values) =
            open.insert(here.unwrap_or_else(|| (index, self.model.latents(index, &self.values))));
        let width = entry.row_length();
        let values = &values[rows.start * width..rows.end * width];
        if entry.is_ternary(self.spec) {
            return Ok(TensorView::floats(values.to_vec()));
        }
        let bytes = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes());
        Ok(TensorView::stored(DType::Bf16, bytes.collect()))
    }
}
