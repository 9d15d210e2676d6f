//! What a conversion cost: held-out losses of the dense model, of the ternary one before any training, and
//! of the trained one, over the sets that the run itself evaluates.

use std::collections::BTreeMap;
use std::path::Path;

use bitnet_format::StoredModel;
use burn::module::Module;

use crate::distributed::Comm;
use crate::error::TrainError;
use crate::model::LanguageModel;
use crate::monitor::{Evaluation, Monitor};
use crate::platform::Signals;
use crate::recipe::Recipe;
use crate::train::context::RunContext;
use crate::train::open::{Opener, open};

/// The evaluation of each held-out set.
pub type SetLosses = BTreeMap<String, Evaluation>;

/// A model that the held-out sets of a run are given to.
#[derive(Clone, Copy, Debug)]
pub enum MeasuredModel<'a> {
    /// The model of `model.init`, as it is stored.
    Stored,
    /// The model of step 0: converted, untrained.
    Converted,
    /// The one in this folder.
    Trained(&'a Path),
}

impl MeasuredModel<'_> {
    fn open(
        self,
        context: &RunContext,
        monitor: &mut dyn Monitor,
    ) -> Result<LanguageModel, TrainError> {
        let device = &context.device;
        let read = |folder: &Path| Ok(LanguageModel::read(&StoredModel::open(folder)?, device)?);
        match self {
            Self::Stored => read(context.init.as_deref().expect("a conversion has a model")),
            Self::Converted => context.initial_model(monitor),
            Self::Trained(folder) => read(folder),
        }
    }
}

/// Evaluates models over the held-out sets of a recipe, one after the other.
///
/// # Errors
/// As [`super::run`], up to the first step.
pub fn held_out_losses(
    recipe: &Recipe,
    models: &[MeasuredModel],
    signals: &Signals,
    monitor: &mut dyn Monitor,
) -> Result<Vec<SetLosses>, TrainError> {
    let comm = Comm::single();
    let opener = Opener { signals, comm: &comm, kept_tokenizer: None, allowed: &[] };
    let (context, mut stage) = open(recipe, opener, monitor)?;
    let device = context.device.clone().inner();
    let mut losses = |model: &MeasuredModel| {
        // `valid` takes it out of autodiff: nothing is recorded for a backward pass.
        let model = model.open(&context, monitor)?.with_backend(context.backend).valid();
        stage.evaluate(&model, context.step_context(&device))
    };
    models.iter().map(&mut losses).collect()
}
