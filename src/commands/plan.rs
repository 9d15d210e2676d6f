//! `bitnet-train plan`: schedule, memory and time of a recipe before it runs.

use std::io::IsTerminal;

use anyhow::Result;
use bitnet_format::ModelSpec;
use bitnet_format::figures::{grouped, significant, size};
use bitnet_train::admission::{FreeMemory, MemoryDemand, Settings};
use bitnet_train::device;
use bitnet_train::estimate::{
    self, MemoryEstimate, Pace, RankLayout, RankWorkload, Speeds, StepEstimate,
};
use bitnet_train::monitor::{Glyphs, Terminal, Verbosity, plot};
use bitnet_train::output::note;
use bitnet_train::platform::Signals;
use bitnet_train::recipe::{self, BatchWarmup, IDLE_STEP, Plan, Recipe, Schedule, StageKind};
use bitnet_train::run::{self, KnownRun};
use bitnet_train::train::TrainError;
use serde_json::json;

use super::{overrides_with_device, print_json, print_line, set_threads};
use crate::cli::PlanArgs;

/// Rows of the table, in addition to the first and last step of each phase.
const ROWS: u64 = 16;
/// Steps that the plot of the learning rate is drawn from.
const DRAWN: u64 = 4096;
/// Size of the plot of the learning rate.
const PLOT: (usize, usize) = (72, 8);
/// Share of the free memory that a probe may take.
const PROBE_SHARE: f64 = 0.8;

pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    set_threads(args.threads)?;
    let (recipe, settings) = args.recipe.read()?;
    let overrides = overrides_with_device(&settings, args.device.as_deref());
    match recipe::load(&recipe, &overrides).map_err(TrainError::from)? {
        Plan::Single(recipe) => show(&recipe, args, None),
        Plan::Pipeline(files) => {
            // Any directory does: it gives the stages' paths, and nothing is run there.
            let stages = run::pipeline(&files, &overrides, "runs".as_ref());
            let mut known = None;
            for stage in stages.map_err(TrainError::from)? {
                say(args, &format!("\n== {} ({})", stage.recipe.name, stage.recipe.stage.name()));
                let shape = shape(&stage.recipe, known.as_ref())?;
                known = shape.as_ref().and_then(|shape| shape.spec.clone()).or(known);
                print(&stage.recipe, args, shape)?;
            }
            Ok(())
        }
    }
}

/// Prints a line for people: beside a result for programs, which has stdout to itself, on stderr.
fn say(args: &PlanArgs, text: &str) {
    if args.json { note(text) } else { print_line(text) }
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
    let Some(KnownRun { steps, spec, teacher }) = shape else {
        say(
            args,
            "steps are given in epochs: known once the previous stage has written its tokenizer",
        );
        return Ok(());
    };
    let schedule = Schedule::new(recipe, steps).map_err(TrainError::from)?;
    print_schedule(args, recipe, &schedule, steps);
    // The schedule is all that can be said of a model that is not on this machine yet.
    let Some(spec) = spec else { return Ok(()) };
    let ranks = args.ranks as usize;
    let load = RankWorkload::of(recipe, ranks).taught(recipe, teacher.as_ref());
    let ranks = RankLayout::of(recipe, ranks);
    run::check_batch(recipe, args.ranks as usize)?;
    let device = device::open(&recipe.device);
    // Without the device, estimate for a CPU.
    let cpu = device::cpu();
    let (frozen, place) = (recipe.train.frozen(&spec), device.as_ref().unwrap_or(&cpu));
    let demand = MemoryDemand {
        spec: &spec,
        frozen: &frozen,
        load,
        ranks,
        // `--ranks` is planned as one rank a machine.
        here: 1,
        device: place,
        settings: Settings::Recipe,
    };
    let memory = demand.memory();
    print_memory(args, &spec, &memory);
    let joules = estimate::energy(&spec, recipe.train.precision, load, &memory);
    say(args, &estimate::energy_in_words(joules));
    for (key, bytes) in demand.savings() {
        say(args, &format!("  {key} saves {} of what it would be", size(bytes)));
    }
    let files = estimate::checkpoint_files(&spec, &frozen, load);
    let (one, keep) = (files.iter().sum::<u64>(), recipe.checkpoint.keep as u64);
    say(
        args,
        &format!("a checkpoint: {}; {keep} stay, and one more while it is written", size(one)),
    );
    let mut estimated = None;
    // The time last, and only where the probe itself would fit.
    let free = FreeMemory::of(place);
    say(args, &demand.outlook(free));
    if !demand.fits(free, PROBE_SHARE) {
        say(args, "time: not probed, the run does not fit into what is free");
    } else if !args.no_probe {
        // A probe asks for no signal and has nothing to save.
        Signals::end_at_once().map_err(TrainError::from)?;
        let device = device.map_err(TrainError::from)?;
        let backend = recipe.train.backend(&device);
        let probed = (&spec, &*frozen);
        let pace = estimate::probe(probed, teacher.as_ref(), load, backend, &device);
        // Gbit/s to bytes a second. Bytes over infinity take no time: a part that is not known,
        // or not there, adds nothing.
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
        print_json(&json!({"steps": steps, "parameters": spec.parameters(),
            "memory_bytes": memory.total(), "memory": memory, "ranks": args.ranks,
            "step_seconds": estimated,
            "estimated_joules_per_token": joules.total()}));
    }
    Ok(())
}

fn print_time(args: &PlanArgs, pace: Pace, step: StepEstimate, steps: u64) {
    let run = step.seconds() * steps as f64;
    let ranks =
        if args.ranks > 1 { format!(" for each of {} ranks", args.ranks) } else { String::new() };
    say(
        args,
        &format!(
            "time: about {}, by a probe on this machine{ranks} ({:.2} s a micro-batch, {:.2} s an \
         update); evaluation and saving come on top",
            in_words(run),
            pace.micro_batch.as_secs_f64(),
            pace.update.as_secs_f64()
        ),
    );
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
    say(
        args,
        &format!(
            "a step: {:.3} s computing + {:.3} s updating + {:.3} s exchanging + {:.3} s reducing; \
         {:.1} % of it is computing and updating",
            step.compute,
            step.update,
            step.exchange,
            step.reduce,
            100.0 * step.efficiency()
        ),
    );
    let ranks = args.ranks;
    say(
        args,
        &format!(
            "  each rank sends and receives ({ranks} - 1) / {ranks} x {} parameters x \
         ({there} + 4) bytes = {}, over {link}; it packs, adds and unpacks them at {} a second \
         (measured here)",
            grouped(parameters),
            size(layout.bytes_a_step(parameters)),
            size(reduction as u64)
        ),
    );
    say(args, "  assumes no overlap of the parts and no latency");
}

fn print_schedule(args: &PlanArgs, recipe: &Recipe, schedule: &Schedule, steps: u64) {
    let (batch, rows) = (recipe.train.batch as u64, recipe.train.batches().rows(steps));
    let work = if recipe.stage == StageKind::Dpo {
        format!("{batch} pairs: {} pairs", grouped(rows))
    } else {
        let seq_len = recipe.data.seq_len as u64;
        let all = rows.saturating_mul(seq_len);
        format!("{} tokens: {} tokens", grouped(batch * seq_len), grouped(all))
    };
    let (all, warmup) = (grouped(steps), grouped(schedule.warmup()));
    say(args, &format!("{all} steps of {work}, {warmup} of warm-up"));
    if let Some(BatchWarmup { start, steps }) = recipe.train.batch_warmup {
        say(args, &format!("from {start} rows a step to {batch} over {} steps", grouped(steps)));
    }
    say(args, "    step  phase        learning rate  weight decay  data");
    for step in shown_steps(schedule, recipe, steps) {
        let (phase, rates) = (schedule.phase_of(step), schedule.at(step));
        let phase = &recipe.phases[phase];
        let mix: Vec<String> = phase.data.iter().map(|(set, w)| format!("{set} {w}")).collect();
        say(
            args,
            &format!(
                "{:>8}  {:<12} {:>13}  {:>12}  {}",
                grouped(step),
                phase.name,
                significant(rates.learning_rate),
                significant(rates.weight_decay),
                mix.join(", ")
            ),
        );
    }
    if schedule.last_step_is_idle() {
        say(args, &format!("note: {IDLE_STEP}"));
    }
    say(args, &format!("checkpoints: {}", checkpoints(recipe)));
    let rates: Vec<f64> =
        spread(steps, DRAWN).map(|step| schedule.at(step).learning_rate).collect();
    say(args, "\nlearning rate over the run:");
    let glyphs = if std::io::stdout().is_terminal() { Glyphs::Unicode } else { Glyphs::Ascii };
    for line in plot(&rates, PLOT.0, PLOT.1, glyphs) {
        say(args, &line);
    }
}

fn print_memory(args: &PlanArgs, spec: &ModelSpec, memory: &MemoryEstimate) {
    say(
        args,
        &format!(
            "\n{} parameters; memory{} at its peak:",
            grouped(spec.parameters() as u64),
            if args.ranks > 1 { " of a rank" } else { "" }
        ),
    );
    memory.lines().iter().for_each(|line| say(args, line));
}

/// Evenly spaced steps, and the first and last of every phase.
fn shown_steps(schedule: &Schedule, recipe: &Recipe, steps: u64) -> Vec<u64> {
    let mut shown: Vec<u64> = (0..=ROWS).map(|i| part(steps, i, ROWS).max(1)).collect();
    for phase in 0..recipe.phases.len() {
        let range = schedule.phase_range(phase);
        shown.extend([range.start, range.end - 1]);
    }
    shown.retain(|step| (1..=steps).contains(step));
    shown.sort_unstable();
    shown.dedup();
    shown
}

/// `i` parts of `of`, where `of` are all of `steps`.
fn part(steps: u64, i: u64, of: u64) -> u64 {
    (u128::from(steps) * u128::from(i) / u128::from(of)) as u64
}

/// All steps, or `most` of them evenly spread.
fn spread(steps: u64, most: u64) -> impl Iterator<Item = u64> {
    let count = steps.min(most);
    (1..=count).map(move |i| part(steps, i, count))
}

fn checkpoints(recipe: &Recipe) -> String {
    let checkpoint = &recipe.checkpoint;
    let steps = checkpoint.every.map(|steps| format!("every {steps} steps, "));
    let minutes = checkpoint.every_minutes.map(|minutes| format!("every {minutes} minutes, "));
    format!("{}{}on signals and at the end", steps.unwrap_or_default(), minutes.unwrap_or_default())
}

fn in_words(seconds: f64) -> String {
    match seconds {
        0.0..120.0 => format!("{seconds:.0} s"),
        120.0..7200.0 => format!("{:.0} min", (seconds / 60.0).floor()),
        7200.0..1e8 => format!("{:.1} h", seconds / 3600.0),
        // Of 365.25 days.
        _ => format!("{:.0} years", seconds / 31_557_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_steps_is_drawn_with_a_few() {
        assert_eq!(spread(3, DRAWN).collect::<Vec<_>>(), [1, 2, 3]);
        let vast: Vec<u64> = spread(u64::MAX, DRAWN).collect();
        assert_eq!((vast.len() as u64, vast[vast.len() - 1]), (DRAWN, u64::MAX));
        assert_eq!(part(u64::MAX, 16, 16), u64::MAX);
    }

    #[test]
    fn the_first_and_the_last_step_of_each_phase_are_shown() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/pretrain.toml");
        let Ok(recipe::Plan::Single(recipe)) = recipe::load(&path, &[]) else { panic!() };
        let schedule = Schedule::new(&recipe, 1000).unwrap();
        let (first, second) = (schedule.phase_range(0), schedule.phase_range(1));
        let shown = shown_steps(&schedule, &recipe, 1000);
        assert_eq!((first.end, second.end), (501, 1001));
        let within = |step: &u64| (495..=505).contains(step);
        let near: Vec<u64> = shown.iter().copied().filter(within).collect();
        assert_eq!((near, shown.last()), (vec![500, 501], Some(&1000)));
    }

    #[test]
    fn every_time_has_words() {
        let words = [0.4, 130.0, 7300.0, 1e9, f64::INFINITY, f64::NAN].map(in_words);
        assert_eq!(words, ["0 s", "2 min", "2.0 h", "32 years", "inf years", "NaN years"]);
    }
}
