//! `bitnet-train plan`: schedule, memory and time of a recipe before it runs.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use bitnet_format::ModelSpec;
use bitnet_format::figures::{grouped, significant, size};
use bitnet_train::device;
use bitnet_train::estimate::{
    self, MemoryEstimate, Pace, RankLayout, RankWorkload, Speeds, StepEstimate,
};
use bitnet_train::monitor::{Glyphs, Terminal, Verbosity, plot};
use bitnet_train::ops::OpBackend;
use bitnet_train::platform::Signals;
use bitnet_train::recipe::{self, Plan, Recipe, Schedule, StageKind};
use bitnet_train::run::{self, KnownRun};
use bitnet_train::train::TrainError;
use serde_json::json;

use super::{overrides_with_device, print_line, set_threads};
use crate::cli::PlanArgs;

/// Rows of the table, in addition to the first and last step of each phase.
const ROWS: u64 = 16;
/// Size of the plot of the learning rate.
const PLOT: (usize, usize) = (72, 8);
/// Share of the machine's free memory that a probe may take.
const PROBE_SHARE: f64 = 0.8;

pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    set_threads(args.threads)?;
    let overrides = overrides_with_device(&args.overrides, args.device.as_deref());
    match recipe::load(&args.recipe, &overrides).map_err(TrainError::from)? {
        Plan::Single(recipe) => show(&recipe, args, None),
        Plan::Pipeline(files) => {
            let stages = run::pipeline(&files, &overrides, "runs".as_ref());
            let mut known = None;
            for stage in stages.map_err(TrainError::from)? {
                print_line(&format!("\n== {} ({})", stage.recipe.name, stage.recipe.stage.name()));
                let shape = shape(&stage.recipe, known.as_ref())?;
                known = shape.as_ref().and_then(|shape| shape.spec.clone()).or(known);
                print(&stage.recipe, args, shape)?;
            }
            Ok(())
        }
    }
}

fn show(recipe: &Recipe, args: &PlanArgs, known: Option<&ModelSpec>) -> Result<()> {
    print(recipe, args, shape(recipe, known)?)
}

/// What is known of a run without training it; `known` is the previous stage's model. `None` where
/// the number of steps depends on a tokenizer that a previous stage has yet to write.
fn shape(recipe: &Recipe, known: Option<&ModelSpec>) -> Result<Option<KnownRun>> {
    let signals = Signals::listen().map_err(TrainError::from)?;
    let monitor = &mut Terminal::new(Verbosity::Normal);
    Ok(run::known_run(recipe, known, &signals, monitor)?)
}

fn print(recipe: &Recipe, args: &PlanArgs, shape: Option<KnownRun>) -> Result<()> {
    let Some(KnownRun { steps, spec }) = shape else {
        print_line(
            "steps are given in epochs: known once the previous stage has written its tokenizer",
        );
        return Ok(());
    };
    let schedule = Schedule::new(recipe, steps).map_err(TrainError::from)?;
    print_schedule(recipe, &schedule, steps);
    let Some(spec) = spec else { return Ok(()) };
    let (ranks, load) = (rank_layout(recipe, args), load(recipe, args));
    run::check_batch(recipe, args.ranks as usize)?;
    let device = device::open(&recipe.device);
    // Without the device, estimate for a CPU.
    let memory = estimate::memory(&spec, load, ranks, device.as_ref().unwrap_or(&device::cpu()));
    print_memory(&spec, &memory, args.ranks);
    let mut estimated = None;
    let free = bitnet_train::platform::free_memory();
    let fits = free.is_none_or(|free| (memory.total() as f64) < PROBE_SHARE * free as f64);
    if !fits {
        print_line("time: not probed, the run does not fit into this machine's free memory");
    } else if !args.no_probe {
        let device = device.map_err(TrainError::from)?;
        let backend = OpBackend::of(&device, recipe.train.precision.operands());
        let pace = estimate::probe(&spec, load, backend, &device);
        let link = args.link.map_or(f64::INFINITY, |gigabits| gigabits * 1e9 / 8.0);
        let alone = args.ranks == 1;
        let reduction = if alone { f64::INFINITY } else { estimate::reduction_rate() };
        let speeds = Speeds { link, reduction };
        let parameters = spec.parameters() as u64;
        let step = StepEstimate::new(pace, load.micro_batches, ranks, parameters, speeds);
        print_time(args, pace, step, steps);
        if args.ranks > 1 {
            print_exchange(args, ranks, step, (parameters, reduction));
        }
        estimated = Some(step);
    }
    if args.json {
        print_line(
            &json!({"steps": steps, "parameters": spec.parameters(),
            "memory_bytes": memory.total(), "memory": memory, "ranks": args.ranks,
            "step_seconds": estimated})
            .to_string(),
        );
    }
    Ok(())
}

fn print_time(args: &PlanArgs, pace: Pace, step: StepEstimate, steps: u64) {
    let run = Duration::from_secs_f64(step.seconds() * steps as f64);
    let ranks =
        if args.ranks > 1 { format!(" for each of {} ranks", args.ranks) } else { String::new() };
    print_line(&format!(
        "time: about {}, by a probe on this machine{ranks} ({:.2} s a micro-batch, {:.2} s an \
         update); evaluation and saving come on top",
        in_words(run),
        pace.micro_batch.as_secs_f64(),
        pace.update.as_secs_f64()
    ));
}

/// A step of several ranks by part, with the formula.
fn print_exchange(
    args: &PlanArgs,
    layout: RankLayout,
    step: StepEstimate,
    (parameters, reduction): (u64, f64),
) {
    let there = layout.comm_dtype.bytes();
    let link = args.link.map_or("a free link (no --link GBPS given)".to_owned(), |link| {
        format!("a link of {link} Gbit/s")
    });
    print_line(&format!(
        "a step: {:.3} s computing + {:.3} s updating + {:.3} s exchanging + {:.3} s reducing; \
         {:.1} % of it is computing and updating",
        step.compute,
        step.update,
        step.exchange,
        step.reduce,
        100.0 * step.efficiency()
    ));
    let ranks = args.ranks;
    print_line(&format!(
        "  each rank sends and receives ({ranks} - 1) / {ranks} x {} parameters x \
         ({there} + 4) bytes = {}, over {link}; it packs, adds and unpacks them at {} a second \
         (measured here)",
        grouped(parameters),
        size(layout.bytes_a_step(parameters)),
        size(reduction as u64)
    ));
    print_line("  assumes no overlap of the parts and no latency");
}

fn rank_layout(recipe: &Recipe, args: &PlanArgs) -> RankLayout {
    let train = &recipe.train;
    let sharded = train.shard_optimizer && args.ranks > 1;
    RankLayout {
        ranks: args.ranks.into(),
        sharded,
        comm_dtype: train.reduce_precision.comm_dtype(),
    }
}

/// The load of the rank with the largest share.
fn load(recipe: &Recipe, args: &PlanArgs) -> RankWorkload {
    let train = &recipe.train;
    let share = train.batch.div_ceil(args.ranks as usize);
    let micro_batch = train.micro_batch.min(share);
    RankWorkload {
        items: micro_batch as u64,
        rows_an_item: if recipe.stage == StageKind::Dpo { 2 } else { 1 },
        seq_len: recipe.data.seq_len as u64,
        micro_batches: share.div_ceil(micro_batch) as u64,
        activations: train.activations(),
    }
}

fn print_schedule(recipe: &Recipe, schedule: &Schedule, steps: u64) {
    let batch = recipe.train.batch as u64;
    let work = if recipe.stage == StageKind::Dpo {
        format!("{batch} pairs: {} pairs", grouped(steps.saturating_mul(batch)))
    } else {
        let tokens = batch * recipe.data.seq_len as u64;
        format!("{} tokens: {} tokens", grouped(tokens), grouped(steps.saturating_mul(tokens)))
    };
    let (all, warmup) = (grouped(steps), grouped(schedule.warmup()));
    print_line(&format!("{all} steps of {work}, {warmup} of warm-up"));
    print_line("    step  phase        learning rate  weight decay  data");
    for step in shown_steps(schedule, recipe, steps) {
        let (phase, rates) = (schedule.phase_of(step), schedule.at(step));
        let phase = &recipe.phases[phase];
        let mix: Vec<String> = phase.data.iter().map(|(set, w)| format!("{set} {w}")).collect();
        print_line(&format!(
            "{:>8}  {:<12} {:>13}  {:>12}  {}",
            grouped(step),
            phase.name,
            significant(rates.learning_rate),
            significant(rates.weight_decay),
            mix.join(", ")
        ));
    }
    let rates: Vec<f64> = (1..=steps).map(|step| schedule.at(step).learning_rate).collect();
    print_line("\nlearning rate over the run:");
    let glyphs = if std::io::stdout().is_terminal() { Glyphs::Unicode } else { Glyphs::Ascii };
    for line in plot(&rates, PLOT.0, PLOT.1, glyphs) {
        print_line(&line);
    }
}

fn print_memory(spec: &ModelSpec, memory: &MemoryEstimate, ranks: u32) {
    print_line(&format!(
        "\n{} parameters; memory{} at its peak:",
        grouped(spec.parameters() as u64),
        if ranks > 1 { " of a rank" } else { "" }
    ));
    for (part, bytes) in memory.parts() {
        if bytes == 0 {
            continue;
        }
        print_line(&format!("  {part:<12} {:>9}", size(bytes)));
    }
    print_line(&format!("  {:<12} {:>9}", "total", size(memory.total())));
}

/// Evenly spaced steps, and the first and last of every phase.
fn shown_steps(schedule: &Schedule, recipe: &Recipe, steps: u64) -> Vec<u64> {
    let mut shown: Vec<u64> = (0..=ROWS).map(|i| (steps * i / ROWS).max(1)).collect();
    for phase in 0..recipe.phases.len() {
        let range = schedule.phase_range(phase);
        shown.extend([range.start, range.end]);
    }
    shown.retain(|step| (1..=steps).contains(step));
    shown.sort_unstable();
    shown.dedup();
    shown
}

fn in_words(time: Duration) -> String {
    match time.as_secs() {
        0..120 => format!("{} s", time.as_secs()),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}
