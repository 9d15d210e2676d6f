//! Saving: checkpoints, the best model, the final folder and the exports.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bitnet_format::StoredModel;
use bitnet_format::adapter::{Adapter, AdapterKind, MergedModel};
use bitnet_format::figures::size;
use bitnet_format::staged::{OnExisting, StagedDir};

use super::callbacks::Callbacks;
use super::context::RunContext;
use super::metrics::RunLog;
use super::state::{Best, Progress, TrainState};
use super::telemetry::Telemetry;
use crate::checkpoint::{self, Contents, Moments};
use crate::distributed::{Comm, first_only};
use crate::error::TrainError;
use crate::exporter;
use crate::monitor::TernaryShares;
use crate::platform::StopSignal;
use crate::recipe::ExportFormat;
use crate::run_dir::{BEST_DIR, FINAL_DIR};

/// A save that a person notices.
const SLOW_SAVE: Duration = Duration::from_secs(2);
/// Checkpoints in a row that a full disk may prevent before the run gives up.
const MAX_FAILED_SAVES: u32 = 3;

impl Callbacks<'_> {
    /// Saves a checkpoint. A full disk is tolerated a few times, because training can go on without
    /// this checkpoint; not where one `must` be saved.
    pub(super) fn save_checkpoint(
        &mut self,
        state: &TrainState,
        must: bool,
    ) -> Result<(), TrainError> {
        self.last_save = Instant::now();
        match self.save(state) {
            Err(error) if !must && error.is_full_disk() && self.failed_saves < MAX_FAILED_SAVES => {
                self.failed_saves += 1;
                let message = format!("{error}; training goes on without this checkpoint");
                self.log.monitor.message(&message);
                Ok(())
            }
            Ok(()) => {
                self.failed_saves = 0;
                Ok(())
            }
            failed => failed,
        }
    }

    /// All ranks call this; rank 0 writes.
    fn save(&mut self, state: &TrainState) -> Result<(), TrainError> {
        let stepper = &self.context.stepper;
        let step = state.progress.step;
        stepper
            .save(&state.model, &state.optimizer, step, &mut |moments| self.write(state, moments))
    }

    fn write(&mut self, state: &TrainState, moments: &dyn Moments) -> Result<(), TrainError> {
        let RunContext { recipe, schedule, mixes, .. } = self.context;
        self.log.dir.require()?;
        let target = checkpoint::path_of(self.log.dir.path(), state.progress.step);
        let contents = Contents {
            folder: self.context.folder_parts(),
            model: &state.model,
            moments,
            recipe: &recipe.resolved_toml(),
            same: self.folder_of(state.progress.step),
        };
        let unwritten = self.log.unwritten();
        // What a full disk keeps out of the logs is safe in the checkpoint, which found room.
        let progress = Progress { unwritten, ..state.progress.clone() };
        let began = Instant::now();
        checkpoint::save(&target, contents, &progress)?;
        self.written = Some((state.progress.step, target.clone()));
        self.log.monitor.saved(&target);
        self.say_if_slow(&target, began.elapsed())?;
        // Ends of phases are kept, and the checkpoint that this run resumed from.
        let ends = (0..mixes.len()).map(|phase| schedule.phase_range(phase).end - 1);
        // A phase's last checkpoint is where a changed next phase would start; the one that was
        // resumed from is the proof of where this run came from.
        let pinned: Vec<u64> = ends.chain(state.resumed_from).collect();
        self.log.dir.prune(&state.progress.run_id, recipe.checkpoint.keep, &pinned)
    }

    /// Says what a save cost that held up training.
    fn say_if_slow(&mut self, target: &Path, took: Duration) -> Result<(), TrainError> {
        if took >= SLOW_SAVE {
            let bytes = checkpoint::size(target)?;
            let took = took.as_secs_f64();
            self.log.monitor.message(&format!("saving {} took {took:.1} s", size(bytes)));
        }
        Ok(())
    }

    /// A folder that this process wrote with the model of a step.
    fn folder_of(&self, step: u64) -> Option<&Path> {
        let (of, folder) = self.written.as_ref()?;
        (*of == step).then_some(folder.as_path())
    }

    /// Publishes the model as the best so far when its held-out loss is the lowest.
    pub(super) fn keep_best(
        &mut self,
        state: &mut TrainState,
        loss: f64,
    ) -> Result<(), TrainError> {
        let step = state.progress.step;
        if state.progress.best.is_some_and(|best| best.loss <= loss) || !loss.is_finite() {
            return Ok(());
        }
        let best = Best { step, loss };
        if self.context.recipe.checkpoint.best && self.context.comm.is_first() {
            match self.publish_best(state, best) {
                Err(error) if error.is_full_disk() => {
                    let message = format!("{error}; training goes on with the best of before");
                    self.log.monitor.message(&message);
                    return Ok(());
                }
                published => published?,
            }
        }
        // Only after the model is published: a best that is noted and was never written could not
        // be found.
        state.progress.best = Some(best);
        Ok(())
    }

    fn publish_best(&mut self, state: &TrainState, best: Best) -> Result<(), TrainError> {
        let target = self.log.dir.join(BEST_DIR);
        let staged = StagedDir::beside(&target, OnExisting::Replace)?;
        let (parts, same) = (self.context.folder_parts(), self.folder_of(best.step));
        checkpoint::write_model(staged.path(), parts, &state.model, same)?;
        let note = serde_json::to_string_pretty(&best).expect("two numbers serialise");
        fs_err::write(staged.path().join("best.json"), note + "\n")?;
        staged.publish()?;
        self.written = Some((best.step, target));
        let message = format!("step {}: the best so far, saved as {BEST_DIR}", best.step);
        self.log.monitor.message(&message);
        Ok(())
    }

    /// Ends a run between two steps: its state is saved where a signal or a full disk ends it.
    pub(super) fn end(
        &mut self,
        state: &mut TrainState,
        error: TrainError,
    ) -> Result<(), TrainError> {
        Err(match error {
            TrainError::Stopped(stop) => self.save_and_stop(state, stop),
            full if full.is_full_disk() => self.save_before(state, full),
            error => error,
        })
    }

    /// Saves the state unless its checkpoint is there already; returns the error to end with.
    pub(super) fn save_and_stop(&mut self, state: &mut TrainState, stop: StopSignal) -> TrainError {
        match self.save_if_missing(state) {
            Ok(()) => TrainError::Stopped(stop),
            Err(error) => error,
        }
    }

    /// The error to end with, the steps before it saved where that takes no other rank.
    pub(super) fn save_before(&mut self, state: &mut TrainState, error: TrainError) -> TrainError {
        // With several ranks saving is a collective, and after an error on this rank the others may
        // be elsewhere.
        if self.context.comm.world_size() == 1
            && let Err(second) = self.save_if_missing(state)
        {
            self.log.monitor.message(&format!("not saved: {second}"));
        }
        error
    }

    fn save_if_missing(&mut self, state: &mut TrainState) -> Result<(), TrainError> {
        self.read_figures(state)?;
        let step = state.progress.step;
        let saved = checkpoint::path_of(self.log.dir.path(), step);
        let comm = self.context.comm;
        // One of this step may be there from before the run went back to an earlier one.
        let of_this_state =
            self.folder_of(step) == Some(&saved) || state.resumed_from == Some(step);
        let there = of_this_state && checkpoint::verify(&saved).is_ok();
        let missing = step > 0 && !there;
        let missing = comm.all_reduce_max(u8::from(comm.is_first() && missing)) > 0;
        if missing { self.save(state) } else { Ok(()) }
    }

    /// Writes what is missing of the final folder and the exports, on rank 0.
    pub(crate) fn finish(&mut self, state: &TrainState) -> Result<(), TrainError> {
        first_only(self.context.comm, || self.publish(state)).map(|_| ())
    }

    /// Each part counts as published only when it is complete, so that a run that ends in between is
    /// continued with the rest.
    fn publish(&mut self, state: &TrainState) -> Result<(), TrainError> {
        self.log.write_waiting()?;
        let (run_id, step) = (&state.progress.run_id, state.progress.step);
        let mut published = self.log.dir.published().of_step(run_id, step);
        if published.of.is_none() {
            self.publish_final(state)?;
            published.of = Some((run_id.clone(), step));
            self.log.dir.note_published(published.clone())?;
        }
        for format in &self.context.recipe.export.formats {
            let name = format.name().to_owned();
            if !published.exports.contains(&name) {
                self.export(*format)?;
                published.exports.push(name);
                self.log.dir.note_published(published.clone())?;
            }
        }
        self.log.finish_trackers()?;
        self.log.monitor.finished();
        Ok(())
    }

    fn publish_final(&mut self, state: &TrainState) -> Result<(), TrainError> {
        self.log.dir.require()?;
        let target = self.log.dir.join(FINAL_DIR);
        let staged = StagedDir::beside(&target, OnExisting::Replace)?;
        let (parts, same) = (self.context.folder_parts(), self.folder_of(state.progress.step));
        checkpoint::write_model(staged.path(), parts, &state.model, same)?;
        staged.publish()?;
        self.log.monitor.saved(&target);
        self.say_what_moved(state);
        Ok(())
    }

    /// Says of a latent adapter how many codes it moved, by kind of matrix.
    fn say_what_moved(&mut self, state: &TrainState) {
        if !state.model.merges_factors() {
            return;
        }
        let single = &Comm::single();
        let (report, _) = Telemetry::default().report(&self.context.spec, &state.model, single);
        let share = |(kind, shares): (&String, &TernaryShares)| {
            let moved = shares.moved.filter(|&moved| moved > 0.0 || kind == "all")?;
            Some(format!("{kind} {:.3} %", 100.0 * moved))
        };
        let shares: Vec<_> = report.iter().filter_map(share).collect();
        self.log.monitor.message(&format!("codes that the adapter moved: {}", shares.join(", ")));
    }

    /// Exports the final folder and verifies the result.
    fn export(&mut self, format: ExportFormat) -> Result<(), TrainError> {
        let RunLog { dir, monitor, .. } = &mut self.log;
        let (source, out) = (dir.join(FINAL_DIR), dir.export_path(format));
        let request = exporter::ExportRequest::new(format, &out, OnExisting::Replace);
        let found = FinalModel::open(self.context, &source)?;
        let merged = found.merged(self.context)?;
        let model = &found.model;
        let request = exporter::ExportRequest { merged: merged.as_ref(), ..request };
        let what = format!("writing {}", format.name());
        let mut watch = |done, total| monitor.progress(&what, done as u64, total as u64);
        let signals = self.context.signals;
        let report = exporter::export(model, &source, &request, signals, &mut watch);
        let report = report.map_err(stopped_run)?;
        monitor.saved(&out);
        monitor.detail(&report.to_string());
        report.remarks.iter().for_each(|remark| monitor.detail(&format!("note: {remark}")));
        if let Some(side) = found.side() {
            let beside = exporter::write_adapter_beside(side, &out, OnExisting::Replace)?;
            monitor.saved(&beside);
        }
        let verification =
            exporter::verify(request.weights(model), &out, signals).map_err(stopped_run)?;
        monitor.message(&verification.to_string());
        monitor.detail(&verification.details());
        Ok(())
    }
}

/// What a run exports: its final folder; of an adapter run the model that it started from, and the adapter
/// in its final folder.
struct FinalModel {
    path: PathBuf,
    model: StoredModel,
    adapter: Option<Adapter>,
}

impl FinalModel {
    fn open(context: &RunContext, folder: &Path) -> Result<Self, TrainError> {
        let init = context.init.as_ref().filter(|_| context.adapter.is_some());
        let path = init.map_or_else(|| folder.to_owned(), Clone::clone);
        let model = StoredModel::open(&path)?;
        let adapter = init.map(|_| Adapter::open(folder, model.spec())).transpose()?;
        Ok(Self { path, model, adapter })
    }

    /// Its adapter, if that is not part of the written model.
    fn side(&self) -> Option<&Adapter> {
        self.adapter.as_ref().filter(|one| one.description().kind == AdapterKind::Side)
    }

    /// The model with its latent adapter, if there is one.
    fn merged(&self, context: &RunContext) -> Result<Option<MergedModel<'_>>, TrainError> {
        let latent = self.adapter.as_ref().filter(|_| self.side().is_none());
        let Some(adapter) = latent else { return Ok(None) };
        let hash = context.hash_init()?.unwrap_or_default();
        let merged = MergedModel::new(&self.model, &self.path, &hash, adapter)?;
        Ok(Some(merged.with_spec(context.spec.clone())))
    }
}

/// An export that a signal stopped, of a run: the run goes on with it when it is resumed.
fn stopped_run(error: TrainError) -> TrainError {
    match error {
        TrainError::ExportStopped(stop) | TrainError::VerificationStopped { stop, .. } => {
            TrainError::Stopped(stop)
        }
        error => error,
    }
}
