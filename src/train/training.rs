//! The fold itself: step after step, with what is due in between (`due`), until the last step or a
//! signal.
//!
//! A step is made, and then it is settled: looked at, logged, counted. On the CPU one follows the
//! other at once; a device that would have to wait for that makes a few steps first.

use std::time::{Duration, Instant};

use crate::data::Place;
use crate::device::runs_own_operations;
use crate::monitor::{EventFile, Monitor, StepRecord};
use crate::platform::Stop;
use crate::ranks::Ranks;
use crate::train::agreement::any_stop;
use crate::train::curriculum::{Curriculum, Draw, Lesson};
use crate::train::run::{Progress, State};
use crate::train::run_dir::{METRICS_FILE, RunDir};
use crate::train::session::Session;
use crate::train::telemetry::Telemetry;
use crate::train::{Accumulated, MadeStep, Rates, Skip, StepReport, TrainError};

/// How far the very first loss may lie from what it must be.
const FIRST_LOSS_TOLERANCE: f32 = 1e-6;
/// The same where a product may depend on how many rows it has, and one rounding moves a level.
const FIRST_LOSS_TOLERANCE_ELSEWHERE: f32 = 1e-2;
/// Steps that a device makes before the host looks at them.
const UNSETTLED_STEPS: usize = 8;

/// The loop with its surroundings.
pub(crate) struct Training<'a> {
    pub(crate) session: &'a Session<'a>,
    pub(crate) curriculum: Box<dyn Curriculum>,
    pub(crate) dir: &'a RunDir,
    pub(crate) monitor: &'a mut dyn Monitor,
    /// The first rank's; the others draw no curves.
    pub(crate) events: Option<EventFile>,
    pub(crate) telemetry: Telemetry,
    pub(crate) last_loss: Option<f32>,
    pub(crate) failed_saves: u32,
    pub(crate) unsettled: Unsettled,
    pub(crate) deadline: Option<Instant>,
}

/// What somebody asked a run for, on whichever rank.
struct Asked {
    stop: Option<Stop>,
    save: bool,
}

/// Steps that were made and not looked at.
pub(crate) struct Unsettled {
    steps: Vec<Unread>,
    since: Instant,
}

/// One of them.
struct Unread {
    step: u64,
    /// Trained targets of the run so far.
    tokens: u64,
    /// The same of this rank.
    own_tokens: u64,
    rates: Rates,
    made: MadeStep,
    /// The documents it was made of.
    places: Vec<Place>,
}

impl Unsettled {
    pub(crate) fn none() -> Self {
        Self { steps: Vec::new(), since: Instant::now() }
    }
}

impl Training<'_> {
    pub(crate) fn fold(&mut self, mut state: State) -> Result<State, TrainError> {
        let asked = self.asked();
        if state.progress.unfinished {
            self.after_step(&mut state, asked.save)?;
        }
        if let Some(stop) = asked.stop {
            return Err(self.save_and_stop(&mut state, stop));
        }
        while state.progress.step < self.session.steps {
            state = match self.step(state)? {
                Ok(next) => next,
                Err((mut state, stop)) => return Err(self.save_and_stop(&mut state, stop)),
            };
            let asked = self.asked();
            self.after_step(&mut state, asked.save)?;
            let last = state.progress.step == self.session.steps;
            if let (Some(stop), false) = (asked.stop, last) {
                return Err(self.save_and_stop(&mut state, stop));
            }
        }
        Ok(state)
    }

    /// What signals, files and the clock ask for; all ranks hear the same.
    fn asked(&self) -> Asked {
        let Session { signals, ranks, .. } = self.session;
        let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let stop = signals.stop().or(late.then_some(Stop::Terminate));
        let save = signals.take_save() || self.dir.take_save_request();
        if ranks.is_alone() {
            return Asked { stop, save };
        }
        Asked { stop: any_stop(ranks, stop), save: ranks.most(u8::from(save)) > 0 }
    }

    /// What is due after a step; a signal in the middle of it ends the run, with the state saved.
    fn after_step(&mut self, state: &mut State, save: bool) -> Result<(), TrainError> {
        state.progress.unfinished = true;
        match self.between_steps(state, save) {
            Err(TrainError::Stopped(stop)) => Err(self.save_and_stop(state, stop)),
            result => result,
        }
    }

    /// One step; gives the state back unchanged when a signal arrived before the update.
    fn step(&mut self, mut state: State) -> Result<Result<State, (State, Stop)>, TrainError> {
        let session = self.session;
        if self.unsettled.steps.is_empty() {
            self.unsettled.since = Instant::now();
        }
        let step = state.progress.step + 1;
        let Lesson { sum, next, places } =
            match next_lesson(session, self.curriculum.as_mut(), &state) {
                Err(TrainError::Stopped(stop)) => return Ok(Err((state, stop))),
                lesson => lesson?,
            };
        check_first_loss(session, self.curriculum.as_ref(), step, &sum)?;
        let (rates, guard) = (rates_at(session, step), &session.recipe.guard);
        let settings = session.step_settings(state.progress.spikes.limits(guard));
        let (model, optimizer) = (state.model, &mut state.optimizer);
        let (model, made) = match &session.together {
            None => sum.make(model, optimizer, settings, rates),
            Some(together) => together.make(sum, model, optimizer, settings, rates),
        };
        state.model = model;
        let progress = &mut state.progress;
        progress.position = next;
        progress.step = step;
        progress.tokens += made.tokens();
        progress.own_tokens += made.own_tokens();
        let (tokens, own_tokens) = (progress.tokens, progress.own_tokens);
        self.unsettled.steps.push(Unread { step, tokens, own_tokens, rates, made, places });
        if self.unsettled.steps.len() >= self.patience() {
            self.settle(&mut state)?;
        }
        Ok(Ok(state))
    }

    /// Steps that may stay unread: none where reading costs nothing or limits depend on it.
    fn patience(&self) -> usize {
        let session = self.session;
        let at_once = runs_own_operations(&session.device)
            || session.together.is_some()
            || session.recipe.guard.spike_sigma != 0.0;
        if at_once { 1 } else { UNSETTLED_STEPS }
    }

    /// Looks at the steps that were made: logs them, counts what was left out, gives up on a run
    /// that diverges.
    pub(super) fn settle(&mut self, state: &mut State) -> Result<(), TrainError> {
        let steps = std::mem::take(&mut self.unsettled.steps);
        let count = steps.len() as u32;
        let optimizer = &mut state.optimizer;
        let reports: Vec<_> =
            steps.iter().map(|unread| unread.made.clone().report(optimizer)).collect();
        let took = self.unsettled.since.elapsed() / count.max(1);
        for (unread, report) in steps.iter().zip(&reports) {
            self.account(&mut state.progress, unread, report, took)?;
        }
        state.progress.updates = state.optimizer.updates;
        give_up_on_divergence(self.session, &state.progress)
    }

    fn account(
        &mut self,
        progress: &mut Progress,
        unread: &Unread,
        report: &StepReport,
        took: Duration,
    ) -> Result<(), TrainError> {
        progress.spikes.push(&self.session.recipe.guard, report.loss, report.grad_norm);
        count_skips(progress, report);
        let mut record = record(self.session, unread, report, took);
        if report.skipped.is_some() {
            record.rows = places_of_all(self.session.ranks, &unread.places);
        }
        self.log_step(&record)?;
        self.last_loss = Some(report.loss);
        if let Some(skip) = report.skipped {
            let why = if skip == Skip::Spike { "a spike" } else { "not finite" };
            let (step, rows) = (unread.step, record.rows.join(" "));
            self.monitor.message(&format!("step {step} left out ({why}); its documents: {rows}"));
        }
        Ok(())
    }

    fn log_step(&mut self, record: &StepRecord) -> Result<(), TrainError> {
        self.dir.append(METRICS_FILE, record)?;
        self.monitor.step(record);
        let own = [
            ("train/loss", f64::from(record.loss)),
            ("train/learning_rate", record.lr),
            ("train/weight_decay", record.weight_decay),
            ("train/grad_norm", record.grad_norm),
            ("train/tokens_per_second", record.tokens_per_second),
        ];
        let names: Vec<_> = record.metrics.keys().map(|name| format!("train/{name}")).collect();
        let more = names.iter().map(String::as_str).zip(record.metrics.values().copied());
        let scalars: Vec<_> = own.into_iter().chain(more).collect();
        self.plot(record.step, &scalars)
    }

    /// Adds points to the curves.
    pub(super) fn plot(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<(), TrainError> {
        match &mut self.events {
            Some(events) => Ok(events.scalars(step, scalars)?),
            None => Ok(()),
        }
    }
}

/// The gradients of the step that follows `state`.
fn next_lesson(
    session: &Session,
    curriculum: &mut dyn Curriculum,
    state: &State,
) -> Result<Lesson, TrainError> {
    let (train, position) = (&session.recipe.train, &state.progress.position);
    let phase = session.schedule.phase_of(state.progress.step + 1);
    let (mix, batch, micro_batch) = (&session.mixes[phase], train.batch, train.micro_batch);
    let draw = Draw { phase, mix, position, batch, micro_batch };
    curriculum.lesson(&state.model, draw, session.desk(&session.device))
}

/// The loss of the step that follows `state`, checked; changes nothing.
pub(crate) fn next_loss(
    session: &Session,
    curriculum: &mut dyn Curriculum,
    state: &State,
) -> Result<f32, TrainError> {
    let lesson = next_lesson(session, curriculum, state)?;
    check_first_loss(session, curriculum, state.progress.step + 1, &lesson.sum)?;
    Ok(lesson.sum.loss())
}

/// A preference run starts from its reference: anything but ln 2 would mean that the two are not
/// the same model, or not computed alike.
fn check_first_loss(
    session: &Session,
    curriculum: &dyn Curriculum,
    step: u64,
    sum: &Accumulated,
) -> Result<(), TrainError> {
    match curriculum.first_loss() {
        Some(expected) if step == 1 => {
            let found = sum.loss();
            let tolerance = if runs_own_operations(&session.device) {
                FIRST_LOSS_TOLERANCE
            } else {
                FIRST_LOSS_TOLERANCE_ELSEWHERE
            };
            let close = (found - expected).abs() <= tolerance;
            if close { Ok(()) } else { Err(TrainError::ReferenceDiffers { found, expected }) }
        }
        _ => Ok(()),
    }
}

/// The documents of a step, as every rank names its own.
fn places_of_all(ranks: &Ranks, own: &[Place]) -> Vec<String> {
    let own: Vec<String> = own.iter().map(ToString::to_string).collect();
    let own = serde_json::to_vec(&own).expect("names serialise");
    let read = |bytes: Vec<u8>| -> Vec<String> {
        serde_json::from_slice(&bytes).expect("names of our own")
    };
    ranks.gather(&own).into_iter().flat_map(read).collect()
}

fn rates_at(session: &Session, step: u64) -> Rates {
    let rates = session.schedule.at(step);
    Rates { learning_rate: rates.learning_rate, weight_decay: rates.weight_decay }
}

fn count_skips(progress: &mut Progress, report: &StepReport) {
    match report.skipped {
        Some(Skip::NotFinite) => {
            progress.skipped_in_a_row += 1;
            progress.skipped += 1;
        }
        Some(Skip::Spike) => {}
        None => progress.skipped_in_a_row = 0,
    }
}

fn give_up_on_divergence(session: &Session, progress: &Progress) -> Result<(), TrainError> {
    let guard = &session.recipe.guard;
    let (step, in_a_row, total) = (progress.step, progress.skipped_in_a_row, progress.skipped);
    if in_a_row >= guard.max_skipped_in_a_row || total >= guard.max_skipped {
        return Err(TrainError::Diverged { step, in_a_row, total });
    }
    Ok(())
}

fn record(session: &Session, unread: &Unread, report: &StepReport, took: Duration) -> StepRecord {
    let Unread { step, tokens, own_tokens, rates, .. } = *unread;
    let phase = session.schedule.phase_of(step);
    StepRecord {
        step,
        phase: session.recipe.phases[phase].name.clone(),
        tokens,
        loss: report.loss,
        loss_bits: format!("{:08x}", report.loss.to_bits()),
        lr: rates.learning_rate,
        weight_decay: rates.weight_decay,
        grad_norm: report.grad_norm,
        tokens_per_second: report.tokens as f64 / took.as_secs_f64(),
        skipped: report.skipped.is_some(),
        ranks: session.ranks.count(),
        tokens_this_rank: own_tokens,
        metrics: report.metrics.iter().copied().collect(),
        rows: Vec::new(),
    }
}
