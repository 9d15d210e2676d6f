//! A layer's matrices as they run: ternary codes, and an adapter's product beside them.

use bitnet_format::TensorEntry;
use bitnet_format::adapter::Adapter;
use bitnet_kernels::TernaryPanels;

use crate::compute::KernelChoice;
use crate::linear::ternary;
use crate::side::SideProduct;
use crate::workspace::Products;

/// One matrix, or several of one input below each other: `[N, K]`.
#[derive(Debug)]
pub(crate) struct PackedLinear {
    panels: TernaryPanels,
    side: Option<SideProduct>,
}

impl PackedLinear {
    pub(crate) fn new(panels: TernaryPanels) -> Self {
        Self { panels, side: None }
    }

    /// Puts the factors of `entries` beside the codes; `entries` are the matrices of this one.
    pub(crate) fn adapt(&mut self, entries: &[TensorEntry], adapter: &Adapter) {
        self.side = SideProduct::of(entries, adapter);
    }

    /// Number of values of the adapter's factors here.
    pub(crate) fn adapter_parameters(&self) -> usize {
        self.side.as_ref().map_or(0, SideProduct::parameters)
    }

    /// Outputs, `N`.
    pub(crate) fn rows(&self) -> usize {
        self.panels.rows()
    }

    /// Inputs, `K`.
    pub(crate) fn columns(&self) -> usize {
        self.panels.columns()
    }

    /// `x [T, K]` → `out [T, N]`
    pub(crate) fn forward(
        &self,
        compute: KernelChoice,
        x: &[f32],
        products: &mut Products,
        out: &mut [f32],
    ) {
        ternary(compute, &self.panels, x, products, out);
        if let Some(side) = &self.side {
            side.add(compute, x, products, out);
        }
    }
}
