//! What can be known about a run before it starts: a dry run, a preview of its data, its size.

use bitnet_format::ModelSpec;
use bitnet_text::Tokenizer;

use super::{
    RunOptions, Start, Summary, admit, begin_stage, check_across_ranks, open_on_all_ranks,
    own_files, resume, space,
};
use crate::data::PackedSequence;
use crate::distributed::{Comm, all_ok, first_only};
use crate::error::TrainError;
use crate::monitor::Monitor;
use crate::platform::Signals;
use crate::recipe::{ModelSource, Recipe, StageKind};
use crate::run_dir::{RunDir, refuse_others};
use crate::train::open::{
    Opener, TOKENIZER, known_spec, known_steps, known_teacher, open, say_how_it_starts,
};
use crate::train::state::TrainState;
use crate::train::{Limits, next_gradients};

/// Does everything up to the first optimizer step that a run would make, and leaves nothing behind
/// but the caches of data.
///
/// # Errors
/// As [`super::run`].
pub fn dry_run(
    recipe: &Recipe,
    options: &RunOptions,
    monitor: &mut dyn Monitor,
) -> Result<Summary, TrainError> {
    let comm = &options.comm;
    check_across_ranks(recipe, comm)?;
    all_ok(comm, own_files::check(recipe, &options.out))?;
    // Asked without a lock, which would leave a directory behind.
    let dir = RunDir::unlocked(&options.out);
    let checkpoint = first_only(comm, || {
        refuse_others(&options.out, &[], options.force)?;
        resume::choose(&dir, &options.resume, monitor)
    })?;
    let start = Start::broadcast(comm, &dir, checkpoint.flatten())?;
    let (kept_tokenizer, allowed) = (start.tokenizer.as_deref(), &options.allow_change);
    let opener = Opener { signals: &options.signals, comm, kept_tokenizer, allowed };
    let (context, mut stage) = open_on_all_ranks(recipe, opener, monitor)?;
    admit(&context, options.force)?;
    let mut state = match &start.checkpoint {
        Some(checkpoint) => resume::load(&context, checkpoint, allowed, monitor)?,
        None => all_ok(comm, TrainState::fresh(&context, monitor))?,
    };
    first_only(comm, || space::require(&context, &options.out, state.progress.step))?;
    let (out, steps) = (options.out.clone(), context.steps);
    let summary = |last_loss| Summary { out, steps, last_loss, exports: Vec::new() };
    if state.is_trained(steps) {
        monitor.message("dry run: all steps of this run are made; nothing was written");
        return Ok(summary(None));
    }
    begin_stage(&context, stage.as_mut(), monitor)?;
    let TrainState { model, optimizer, progress, .. } = &mut state;
    let step = progress.step + 1;
    let (settings, rates) = (context.step_settings(Limits::NONE), context.schedule.at(step));
    let updates = context.updates_during(optimizer, settings, rates);
    let drawn = next_gradients(&context, stage.as_mut(), (model, progress), updates.as_ref())?;
    let loss = drawn.sum.loss();
    monitor.message(&format!(
        "dry run: {} parameters, {steps} steps; the loss of step {step} is {loss:.4}; nothing was \
         written but caches of data",
        context.spec.parameters()
    ));
    Ok(summary(Some(loss)))
}

/// The first rows of each set as the model would see them.
#[derive(Debug)]
pub struct Preview {
    /// Statistics of the documents, a line or more a set.
    pub statistics: Vec<String>,
    /// Rows with a name, padding included.
    pub rows: Vec<(String, PackedSequence)>,
    /// The tokenizer of their ids.
    pub tokenizer: Tokenizer,
}

/// Prepares the data of a recipe and shows the first `count` items of each set.
///
/// # Errors
/// As [`super::run`], up to the data.
pub fn preview(
    recipe: &Recipe,
    count: usize,
    signals: &Signals,
    monitor: &mut dyn Monitor,
) -> Result<Preview, TrainError> {
    let comm = Comm::single();
    // What a run would refuse can still be looked at.
    let allowed = [TOKENIZER.to_owned()];
    let opener = Opener { signals, comm: &comm, kept_tokenizer: None, allowed: &allowed };
    let (context, mut stage) = open(recipe, opener, monitor)?;
    let mut rows = Vec::new();
    let sets: std::collections::BTreeSet<_> =
        context.mixes.iter().flat_map(|mix| mix.sets.iter().map(|(set, _)| set)).collect();
    for set in sets {
        rows.extend(stage.preview(set, count as u64)?);
    }
    let mut statistics = stage.describe()?;
    if recipe.stage != StageKind::Pretrain {
        let warnings = context.chat.warnings(&context.tokenizer);
        statistics.extend(warnings.iter().map(|warning| format!("warning: {warning}")));
    }
    Ok(Preview { statistics, rows, tokenizer: context.tokenizer })
}

/// What is known of a run before it is made.
#[derive(Clone, Debug)]
pub struct KnownRun {
    /// Steps of the whole run.
    pub steps: u64,
    /// The architecture, if it can be known.
    pub spec: Option<ModelSpec>,
    /// The shape of its teacher.
    pub teacher: Option<ModelSpec>,
}

/// Finds the number of steps and the architecture of a recipe; data is read only to count epochs.
/// `before` is the model of the stage before in a pipeline, whose folder need not exist yet. `None`
/// when epochs of data are counted that cannot be tokenised yet.
///
/// # Errors
/// As [`super::run`], up to the data.
pub fn known_run(
    recipe: &Recipe,
    before: Option<&ModelSpec>,
    signals: &Signals,
    monitor: &mut dyn Monitor,
) -> Result<Option<KnownRun>, TrainError> {
    if let Some(steps) = known_steps(recipe) {
        let spec = known_spec(recipe)?;
        if let (ModelSource::Init(init), Some(spec)) = (&recipe.model, &spec) {
            say_how_it_starts(recipe, init.path.as_ref(), spec, monitor)?;
        }
        let spec = spec.or_else(|| before.cloned());
        let teacher = known_teacher(recipe)?;
        return Ok(Some(KnownRun { steps, spec, teacher }));
    }
    // Passes over data are counted in tokens, by a tokenizer that the stage before has yet
    // to write.
    if before.is_some() {
        return Ok(None);
    }
    let comm = Comm::single();
    let (context, _) =
        open(recipe, Opener { signals, comm: &comm, kept_tokenizer: None, allowed: &[] }, monitor)?;
    let teacher = context.teacher.map(|teacher| teacher.spec);
    Ok(Some(KnownRun { steps: context.steps, spec: Some(context.spec), teacher }))
}
