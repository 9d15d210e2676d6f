//! `bitnet-train bench`: tokens per second of whole optimizer steps, median and spread.

use anyhow::Result;
use bitnet_format::{ModelSpec, figures};
use bitnet_kernels::Kernel;
use bitnet_train::admission::{MemoryDemand, Settings, require_memory};
use bitnet_train::device;
use bitnet_train::distributed::{Comm, Hosts};
use bitnet_train::model::ActivationMemory;
use bitnet_train::ops::{DrawPlace, GradientFormat, GradientRounding, OpBackend};
use bitnet_train::output::note;
use bitnet_train::platform::{self, peak_memory};
use bitnet_train::recipe::{Bf16Sums, Precision, REDUCE_PRECISION_WORDS};
use bitnet_train::speed::{StepTime, TrainWorkload, measure};
use bitnet_train::train::{TrainError, all_ok};
use serde_json::json;

use super::ranks::with_ranks;
use super::{print_json, print_line};
use crate::cli::TrainBenchArgs;
use crate::failure::Usage;

/// Steps before the clock counts.
const WARM_UP: usize = 2;

pub(crate) fn run(args: &TrainBenchArgs) -> Result<()> {
    // It leaves no file, so a signal needs to wait for nothing.
    platform::Signals::end_at_once().map_err(TrainError::from)?;
    with_ranks(args.threads, args.oversubscribe, |comm| run_on(args, comm))
}

fn run_on(args: &TrainBenchArgs, comm: &Comm) -> Result<()> {
    let mut work = workload(args, comm)?;
    let hosts = Hosts::gather(comm, platform::cores());
    let (place, here) = (hosts.local_rank(), hosts.local_world_size());
    // Ranks of one machine share its cards: each takes the card of its place among them.
    let device = device::open_one_of(&args.device, place, here).map_err(TrainError::from)?;
    if work.backend.operands.are_bf16() {
        device::require_bf16(&device, &args.device).map_err(TrainError::from)?;
    }
    // From here on it is not native if the device has none of our own operations.
    work.backend = work.backend.on(&device);
    if !work.backend.is_native() && work.backend.gradients != GradientFormat::Operands {
        let message = format!("--precision int8 runs on the CPU; --device {}", args.device);
        return Err(Usage(format!("{message}: expected flex")).into());
    }
    if !args.force {
        let (load, ranks) = work.share();
        let demand = MemoryDemand {
            spec: &work.spec,
            frozen: &[],
            load,
            ranks,
            here,
            device: &device,
            settings: Settings::BenchFlags,
        };
        all_ok(comm, require_memory(demand))?;
    }
    // All ranks make the steps, and one tells of them.
    let mut steps = Vec::new();
    measure(&work, WARM_UP + args.steps, &device, |step| {
        let (number, time) = (steps.len() + 1, step.time.as_secs_f64());
        if comm.is_first() {
            note(&format!("step {number}: {time:.3} s, loss {:.4}", step.loss));
        }
        steps.push(step);
    });
    let peak = peak_memory().unwrap_or_default() as f64;
    // A sum to which one rank alone adds is that rank's figure, known to all.
    let memory: Vec<f64> = (0..comm.world_size())
        .map(|rank| comm.all_reduce_sum(&[if rank == comm.rank() { peak } else { 0.0 }])[0])
        .collect();
    if !comm.is_first() {
        return Ok(());
    }
    // The rows of all ranks, by the clock of this one: a step ends on all of them together.
    let tokens = (args.batch * args.seq_len) as f64;
    let speed = |step: &StepTime| tokens / step.time.as_secs_f64();
    let mut speeds: Vec<f64> = steps[WARM_UP..].iter().map(speed).collect();
    speeds.sort_by(f64::total_cmp);
    let share = |step: &StepTime| step.exchange.as_secs_f64() / step.time.as_secs_f64();
    let mut shares: Vec<f64> = steps[WARM_UP..].iter().map(share).collect();
    shares.sort_by(f64::total_cmp);
    let result = json!({
        "tokens_per_second": speeds[speeds.len() / 2],
        "tokens_per_second_min": speeds[0],
        "tokens_per_second_max": speeds[speeds.len() - 1],
        "peak_rss_bytes": peak as u64,
        "loss_first": steps[0].loss,
        "loss_last": steps[steps.len() - 1].loss,
        "tokens_per_step": args.batch * args.seq_len,
        "parameters": work.spec.parameters(),
        "precision": args.precision,
        "bf16_sums": args.bf16_sums,
        "recompute": args.recompute,
        "kernel": work.backend.kernel.name(),
        "threads": rayon::current_num_threads(),
        "device": args.device,
        "ranks": comm.world_size(),
        "shard_optimizer": args.shard_optimizer,
        "reduce_precision": args.reduce_precision,
        "exchange_share": shares[shares.len() / 2],
        "peak_rss_bytes_by_rank": memory.iter().map(|&bytes| bytes as u64).collect::<Vec<_>>(),
    });
    if args.json {
        print_json(&result);
    } else {
        print_line(&in_words(&result));
    }
    Ok(())
}

fn workload(args: &TrainBenchArgs, comm: &Comm) -> Result<TrainWorkload> {
    let mut spec = ModelSpec::from_file(&args.config).map_err(TrainError::from)?;
    if let Some(size) = args.vocab_size {
        spec.vocab_size = size;
    }
    // Divided first: fewer rows than ranks would leave a rank without work.
    let positive = [("--batch", args.batch / comm.world_size())];
    if let Some((flag, _)) = positive.iter().find(|(_, value)| *value == 0) {
        let each = if comm.world_size() == 1 { "" } else { " for each rank" };
        return Err(Usage(format!("{flag} must be at least 1{each}")).into());
    }
    if args.seq_len > spec.context_length() {
        let limit = spec.context_length();
        return Err(
            Usage(format!("--seq-len {} is above the config's {limit}", args.seq_len)).into()
        );
    }
    let precision = choice("--precision", &args.precision, Precision::WORDS)?;
    if precision == Precision::Int8 && spec.quantise && !spec.has_b158_quantiser() {
        let what = "--precision int8 is for the quantiser of BitNet b1.58; expected f32 or bf16 for \
                    this config";
        return Err(Usage(what.to_owned()).into());
    }
    let rounding = GradientRounding::Stochastic(DrawPlace::ORIGIN);
    let sums = choice("--bf16-sums", &args.bf16_sums, Bf16Sums::WORDS)?;
    let mut backend =
        OpBackend::native(precision.operands(sums)).with_gradients(precision.gradients(rounding));
    let comm_dtype = choice("--reduce-precision", &args.reduce_precision, REDUCE_PRECISION_WORDS)?;
    if let Some(name) = &args.kernel {
        let all: Vec<_> = Kernel::available().into_iter().map(Kernel::name).collect();
        let unknown = || Usage(format!("--kernel {name}: this CPU has {}", all.join(", ")));
        backend.kernel = Kernel::named(name).ok_or_else(unknown)?;
    }
    let activations =
        if args.recompute { ActivationMemory::Recomputed } else { ActivationMemory::Kept };
    Ok(TrainWorkload {
        spec,
        rows: args.batch,
        seq_len: args.seq_len,
        copies: args.gradient_copies,
        backend,
        activations,
        comm: comm.clone(),
        sharded: args.shard_optimizer,
        comm_dtype,
    })
}

fn choice<T: Copy>(flag: &str, word: &str, choices: &[(&str, T)]) -> Result<T, Usage> {
    let found = choices.iter().find(|(name, _)| *name == word);
    let words = || choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" or ");
    found
        .map(|(_, choice)| *choice)
        .ok_or_else(|| Usage(format!("{flag} {word}: expected {}", words())))
}

fn in_words(result: &serde_json::Value) -> String {
    figures::table(result, 24)
}
