//! A model that is being trained, as an export of it would hold it: latents of ternary matrices in f32,
//! which their reader quantises, or the codes of a packed base; and everything else in BF16. A side
//! adapter stands beside it.

use std::cell::RefCell;
use std::ops::Range;

use bitnet_format::DType;
use bitnet_format::adapter::{Adapter, AdapterDescription};
use bitnet_format::{FormatError, ModelSpec, TensorEntry, TensorSource, TensorView};
use burn::tensor::Tensor;
use half::bf16;

use super::{LanguageModel, factor_index, values};
use crate::host::to_host;

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

    /// The adapter that is trained beside the `adapted` matrices.
    pub(crate) fn adapter(
        &self,
        description: &AdapterDescription,
        adapted: &[TensorEntry],
    ) -> Adapter {
        Adapter::from_factors(description.clone(), adapted, |entry, factor| {
            to_host(self.values[factor_index(self.index(entry), factor)].clone())
        })
    }

    /// The place of a tensor in the table of all parameters.
    fn index(&self, entry: &TensorEntry) -> usize {
        let named = |one: &TensorEntry| one.name == entry.name;
        self.model.table().iter().position(named).expect("a tensor of the model")
    }

    /// Some rows of a matrix that is kept as codes: their scale is stored, and could not be found again
    /// from the weights.
    fn codes(&self, index: usize, rows: Range<usize>, width: usize) -> Option<TensorView> {
        let (latents, kernel) =
            (self.model.outside()[index].as_ref()?.read(), self.model.backend().kernel);
        let mut codes = vec![0; rows.len() * width];
        // A matrix is codes as a whole or not at all; if not, `all` stops at the first row.
        let mut places = rows.zip(codes.chunks_exact_mut(width.max(1)));
        places
            .all(|(row, codes)| latents.copy_codes(row, codes, kernel))
            .then(|| TensorView::codes(codes, latents.scale(kernel)))
    }
}

impl TensorSource for LiveModel<'_> {
    fn spec(&self) -> &ModelSpec {
        self.spec
    }

    fn read(&self, entry: &TensorEntry, rows: Range<usize>) -> Result<TensorView, FormatError> {
        let (index, width) = (self.index(entry), entry.row_length());
        if let Some(codes) = self.codes(index, rows.clone(), width) {
            return Ok(codes);
        }
        let mut open = self.open.borrow_mut();
        // A reader takes a tensor in parts; it is brought to the host once for all of them.
        let here = open.take().filter(|(of, _)| *of == index);
        let (_, values) =
            open.insert(here.unwrap_or_else(|| (index, self.model.latents(index, &self.values))));
        let values = &values[rows.start * width..rows.end * width];
        if entry.is_ternary(self.spec) {
            return Ok(TensorView::floats(values.to_vec()));
        }
        let bytes = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes());
        Ok(TensorView::stored(DType::Bf16, bytes.collect()))
    }
}
