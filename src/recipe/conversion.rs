//! What becomes of a model that a run starts from: one with float matrices can be trained with ternary
//! ones, and one without sub-norms can be given them. Both keep every weight that is stored.

use bitnet_format::ModelSpec;

use super::item::Item;
use super::section::Section;

/// Changes of the stored model before the first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conversion {
    /// `model.quantise`: whether its matrices become ternary, where the recipe says so.
    pub quantise: Option<bool>,
    /// `model.insert_sub_norms`: whether each block gets `attn_sub_norm` and `ffn_sub_norm`.
    pub insert_sub_norms: bool,
}

/// A key of `[model]` that does not fit the stored model, and why.
pub(crate) type Unfit = (&'static str, String);

impl Conversion {
    /// The keys beside `model.init` that no new model has.
    pub(super) const OWN_KEYS: [&str; 1] = ["insert_sub_norms"];

    /// Reads the keys of `[model]` that may stand beside `init`.
    pub(super) fn read(table: &mut Section<'_>) -> Self {
        let quantise = table.optional("quantise", Item::boolean);
        Self { quantise, insert_sub_norms: table.value("insert_sub_norms", Item::boolean) }
    }

    /// The shape of the model that is trained, from the stored one's.
    pub(crate) fn of(&self, stored: &ModelSpec) -> Result<ModelSpec, Unfit> {
        let mut spec = stored.clone();
        if self.quantise == Some(false) && stored.quantise {
            let what = "is false; expected true or nothing: the model is ternary already";
            return Err(("model.quantise", what.to_owned()));
        }
        if self.insert_sub_norms && stored.sub_norms {
            let what = "is true; expected false or nothing: the model has sub-norms already";
            return Err(("model.insert_sub_norms", what.to_owned()));
        }
        spec.quantise = self.quantise.unwrap_or(stored.quantise);
        spec.sub_norms |= self.insert_sub_norms;
        Ok(spec)
    }
}
