//! What becomes of a model that a run starts from: one with float matrices can be trained with ternary
//! ones, and one without sub-norms can be given them. Both keep every weight that is stored.

use bitnet_format::ModelSpec;

/// Changes of the stored model before the first step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversion {
    /// The keys of `[model]` that say how its matrices become ternary: those of `SHAPE_KEYS`.
    pub quantiser: toml::Table,
    /// `model.insert_sub_norms`: whether each block gets `attn_sub_norm` and `ffn_sub_norm`.
    pub insert_sub_norms: bool,
}

/// A key of `[model]` that does not fit the stored model, and why.
pub(crate) type Unfit = (&'static str, String);

impl Conversion {
    /// The keys beside `model.init` that no new model has.
    pub(super) const OWN_KEYS: [&str; 1] = ["insert_sub_norms"];
    /// The keys of a new model that may stand beside `model.init`.
    pub(super) const SHAPE_KEYS: [&str; 4] = ["quantise", "quantiser", "embedding", "activations"];

    /// The shape of the model that is trained, from the stored one's.
    pub(crate) fn of(&self, stored: &ModelSpec) -> Result<ModelSpec, Unfit> {
        if self.insert_sub_norms && stored.sub_norms {
            let what = "is true; expected false or nothing: the model has sub-norms already";
            return Err(("model.insert_sub_norms", what.to_owned()));
        }
        let wrong =
            |what: String| ("model", format!("the model cannot become what it says: {what}"));
        let mut shape = toml::Table::try_from(stored).map_err(|error| wrong(error.to_string()))?;
        shape.extend(self.quantiser.clone());
        let spec: Result<ModelSpec, toml::de::Error> = shape.try_into();
        let mut spec = spec.map_err(|error| wrong(error.message().to_owned()))?;
        // Before the sub-norms, which a ternary model may be given too.
        if stored.quantise && spec != *stored {
            let what =
                "changes how matrices are quantised; expected a dense model, got a ternary one";
            return Err(("model", what.to_owned()));
        }
        spec.sub_norms |= self.insert_sub_norms;
        Ok(spec)
    }
}
