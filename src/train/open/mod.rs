//! Opens everything a recipe names: device, model folder, tokenizer, data, schedule.

mod adapter;
mod agreement;
mod inputs;
mod limits;
mod sources;
mod teacher;

use std::cell::OnceCell;
use std::collections::BTreeMap;

use bitnet_format::{ModelSpec, TensorEntry, generation_config, tensor_table};

pub(crate) use agreement::{TOKENIZER, say_how_it_starts};
pub(crate) use inputs::{contradiction, known_spec};
pub(crate) use teacher::known_teacher;

use super::context::RunContext;
use super::stage::Stage;
use super::stage::dpo::Dpo;
use super::stage::pretrain_sft::PretrainSft;
use super::step::update::{OptimizerStep, lean_process};
use super::tasks;
use crate::data::{DataMixture, LoaderSettings, PackedSequence};
use crate::distributed::{Comm, DataParallel, DataParallelSettings, Hosts};
use crate::error::TrainError;
use crate::latents::UpdateTime;
use crate::monitor::Monitor;
use crate::ops::OpBackend;
use crate::platform::Signals;
use crate::recipe::{self, Length, Recipe, Schedule};
use agreement::{
    compare_tokenizer, grow_vocabulary, say_if_dense, say_if_tiles_are_idle, warn_of_duplicates,
};
use inputs::{TokenizerRequest, init_folder, open_chat, open_device, resolve_spec};
use sources::Caches;

/// Who opens a run.
#[derive(Clone, Copy)]
pub(crate) struct Opener<'a> {
    pub(crate) signals: &'a Signals,
    pub(crate) comm: &'a Comm,
    /// The tokenizer of the checkpoint to resume, used instead of training a new one.
    pub(crate) kept_tokenizer: Option<&'a [u8]>,
    /// The keys of `--allow-change`.
    pub(crate) allowed: &'a [String],
}

/// Opens everything a recipe names. A rank may fail here alone: ranks agree on the host list only.
pub(crate) fn open<'a>(
    recipe: &'a Recipe,
    opener: Opener<'a>,
    monitor: &mut dyn Monitor,
) -> Result<(RunContext<'a>, Box<dyn Stage>), TrainError> {
    let Opener { signals, comm, kept_tokenizer, allowed } = opener;
    let hosts = Hosts::gather(comm, crate::platform::cores());
    let device = open_device(recipe, &hosts, monitor)?;
    let init = init_folder(recipe, signals, monitor)?;
    let request = TokenizerRequest { recipe, init: init.as_deref(), signals };
    let tokenizer = request.open(kept_tokenizer, monitor)?;
    // A run that goes on was compared when it began.
    let accepted = [TOKENIZER.to_owned()];
    let allowed = if kept_tokenizer.is_some() { &accepted } else { allowed };
    let growth = compare_tokenizer(recipe, init.as_deref(), &tokenizer, allowed, monitor)?;
    let chat = open_chat(recipe, init.as_deref(), &tokenizer, monitor)?;
    let encoding = sources::encoding(recipe.stage, &chat);
    let spec = resolve_spec(recipe, init.as_deref(), &tokenizer, &chat, |spec| {
        grow_vocabulary(spec, &tokenizer, growth, monitor);
    })?;
    if let Some(init) = &init {
        say_if_dense(init, &spec, monitor);
    }
    say_if_tiles_are_idle(recipe, monitor);
    let teacher = teacher::open(recipe, &tokenizer, &spec, signals, monitor)?;
    let generation = init.as_deref().map(generation_config::read).transpose()?.unwrap_or_default();
    let pool = sources::threads_of_all_ranks(&hosts)?;
    let mut caches = Caches {
        recipe,
        tokenizer: &tokenizer,
        encoding: &encoding,
        signals,
        monitor,
        hosts: &hosts,
        pool: pool.as_ref(),
    };
    let sets = sources::training(recipe, &mut caches.caller())?;
    let sets = caches.open_all(sets)?;
    let validation = sources::validation(recipe, &mut caches.caller())?;
    let validation = caches.open_all(validation)?;
    // Both sides of a split come from the same files.
    let apart = if recipe.data.validation_share > 0.0 { &BTreeMap::new() } else { &validation };
    warn_of_duplicates(&sets, apart, caches.monitor);
    let fingerprint = sources::fingerprint(&sets);
    let names: Vec<String> = sets.keys().cloned().collect();
    let loader = loader_settings(recipe);
    let mut stage: Box<dyn Stage> = match recipe.stage {
        recipe::StageKind::Dpo => {
            Box::new(Dpo::new(sets, validation, loader, recipe.dpo.beta, recipe.train.cut()))
        }
        recipe::StageKind::Pretrain | recipe::StageKind::Sft => {
            Box::new(PretrainSft::new(sets, validation, loader))
        }
    };
    let first_rows = first_rows(recipe, stage.as_mut(), &names)?;
    let steps = total_steps(recipe, stage.as_mut(), &names, monitor)?;
    let schedule = Schedule::new(recipe, steps)?;
    if steps == 1 && schedule.last_step_is_idle() {
        monitor.message(&format!("note: {}; it is the only one", recipe::IDLE_STEP));
    }
    limits::check(recipe, &schedule, stage.as_mut(), monitor)?;
    let mix = |phase: &recipe::Phase| DataMixture {
        sets: phase.data.clone().into_iter().collect(),
        max_epochs: recipe.data.max_epochs(),
    };
    let mixes = recipe.phases.iter().map(mix).collect();
    let adapter = adapter::open(recipe, init.as_deref(), &spec, monitor)?;
    let (table, frozen) = adapter::parameters(recipe, &spec, adapter.as_ref());
    check_frozen(recipe, &spec, &frozen, monitor)?;
    let tasks = if comm.is_first() { tasks::open(recipe)? } else { None };
    check_tasks(recipe, &spec)?;
    check_ternary_warmup(recipe, &spec, steps)?;
    let backend = recipe.train.backend(&device);
    let stepper = optimizer_step(recipe, comm, backend, (&table, &frozen))?;
    let context = RunContext {
        recipe,
        spec,
        init,
        tokenizer,
        chat,
        generation,
        fingerprint,
        first_rows,
        mixes,
        steps,
        schedule,
        device,
        backend,
        signals,
        comm,
        table,
        frozen,
        adapter,
        teacher,
        tasks,
        init_hash: OnceCell::new(),
        stepper,
    };
    Ok((context, stage))
}

/// Who makes the updates of these parameters, of which `frozen[i]` has none.
fn optimizer_step(
    recipe: &Recipe,
    comm: &Comm,
    backend: OpBackend,
    (table, frozen): (&[TensorEntry], &[bool]),
) -> Result<Box<dyn OptimizerStep>, TrainError> {
    let (lean, frozen) = (recipe.lean(), frozen.to_vec());
    if comm.world_size() == 1 {
        let sync_every_step = recipe.guard.spike_sigma != 0.0;
        return Ok(lean_process(backend, frozen, (lean, recipe.train.update), sync_every_step));
    }
    if recipe.train.update == UpdateTime::During {
        let what =
            "ranks exchange gradients when all are there; expected \"after\", got \"during\"";
        return Err(contradiction(recipe, "train.update", what.to_owned()));
    }
    let sharded = recipe.train.shard_optimizer;
    let comm_dtype = recipe.train.reduce_precision;
    let muon = recipe.optimizer.muon.is_some();
    let settings = DataParallelSettings { sharded, comm_dtype, lean, muon };
    Ok(Box::new(DataParallel::new(comm, table.to_vec(), frozen, settings)))
}

/// Rows that new sub-norms are fitted to.
const FITTED_ROWS: u64 = 8;

/// The first rows of the training data, where something is fitted to them.
fn first_rows(
    recipe: &Recipe,
    stage: &mut dyn Stage,
    sets: &[String],
) -> Result<Vec<PackedSequence>, TrainError> {
    let mut rows = Vec::new();
    if recipe.model.inserts_sub_norms() {
        for set in sets {
            rows.extend(stage.preview(set, FITTED_ROWS)?.into_iter().map(|(_, row)| row));
        }
        rows.truncate(FITTED_ROWS as usize);
    }
    Ok(rows)
}

/// Refuses a warm-up of what is not ternary, or one that does not end.
fn check_ternary_warmup(recipe: &Recipe, spec: &ModelSpec, steps: u64) -> Result<(), TrainError> {
    let Some(warmup) = recipe.ternary_warmup else { return Ok(()) };
    if !spec.quantise {
        let what = "makes a model ternary; expected model.quantise = true, got a dense model";
        return Err(contradiction(recipe, "ternary_warmup", what.to_owned()));
    }
    let (asked, field) = (warmup.steps_of(steps), "ternary_warmup.steps");
    if asked > steps {
        let what = format!("is {asked}; expected at most the run's {steps} steps");
        return Err(contradiction(recipe, field, what));
    }
    Ok(())
}

/// Refuses benchmarks of what is not packed.
fn check_tasks(recipe: &Recipe, spec: &ModelSpec) -> Result<(), TrainError> {
    if recipe.eval.tasks.names.is_empty() || spec.quantise {
        return Ok(());
    }
    let what = "asks a packed model; expected a ternary one, got a dense one";
    Err(contradiction(recipe, "eval.tasks", what.to_owned()))
}

/// Says how many parameters `train.freeze` freezes; refuses none and all.
fn check_frozen(
    recipe: &Recipe,
    spec: &ModelSpec,
    frozen: &[bool],
    monitor: &mut dyn Monitor,
) -> Result<(), TrainError> {
    if recipe.train.freeze.is_empty() {
        return Ok(());
    }
    let table = tensor_table(spec);
    let pairs = table.iter().zip(frozen).filter(|(_, frozen)| **frozen);
    let kept: usize = pairs.map(|(entry, _)| entry.elements()).sum();
    let all = spec.parameters();
    if kept == 0 || kept == all {
        let what = format!("names {kept} of {all} parameters; expected some and not all");
        return Err(contradiction(recipe, "train.freeze", what));
    }
    monitor.message(&format!("frozen: {kept} of {all} parameters"));
    Ok(())
}

fn loader_settings(recipe: &Recipe) -> LoaderSettings {
    let data = &recipe.data;
    LoaderSettings { seed: recipe.seed, seq_len: data.seq_len, policy: data.long_rows }
}

/// The number of steps; says when epochs are not a whole number of batches, or a batch is larger than
/// what there is.
fn total_steps(
    recipe: &Recipe,
    stage: &mut dyn Stage,
    sets: &[String],
    monitor: &mut dyn Monitor,
) -> Result<u64, TrainError> {
    let (Length::Epochs(epochs), None) = (recipe.train.length, known_steps(recipe)) else {
        return Ok(known_steps(recipe).expect("only epochs need the data"));
    };
    let mut items = 0;
    for set in sets {
        items += stage.items(set)?;
    }
    let wanted = (items as f64 * epochs).ceil();
    let (batches, batch) = (recipe.train.batches(), recipe.train.batch);
    let steps = batches.steps_for(wanted as u64);
    let taken = batches.rows(steps) as f64;
    if taken > wanted {
        let again = taken - wanted;
        monitor.message(&format!(
            "note: {epochs} epochs are {wanted:.0} rows, fewer than {steps} steps of {batch} take; \
             {again:.0} are repeated"
        ));
    }
    Ok(steps)
}

/// The number of steps, unless epochs are counted.
pub(crate) fn known_steps(recipe: &Recipe) -> Option<u64> {
    match recipe.train.length {
        Length::Steps(steps) => Some(steps),
        Length::Tokens(tokens) => {
            Some(recipe.train.batches().steps_for(tokens.div_ceil(recipe.data.seq_len as u64)))
        }
        Length::Epochs(_) => None,
    }
}
