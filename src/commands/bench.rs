//! `bitnet-train bench`: tokens a second of whole optimizer steps, the median and the spread.

use anyhow::Result;
use bitnet_format::ModelSpec;
use bitnet_kernels::Kernel;
use bitnet_train::device;
use bitnet_train::model::Activations;
use bitnet_train::ops::Compute;
use bitnet_train::platform::peak_memory;
use bitnet_train::recipe::Precision;
use bitnet_train::speed::{StepTime, Workload, measure};
use bitnet_train::train::TrainError;
use serde_json::json;

use super::{print_line, set_threads};
use crate::cli::BenchArgs;
use crate::failure::Usage;

/// Steps before the clock counts.
const WARM_UP: usize = 2;

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    set_threads(args.threads)?;
    let work = workload(args)?;
    let device = device::open(&args.device).map_err(TrainError::from)?;
    if work.compute.operands == Precision::Bf16.operands() {
        device::require_bf16(&device, &args.device).map_err(TrainError::from)?;
    }
    let mut steps = Vec::new();
    measure(&work, WARM_UP + args.steps, &device, |step| {
        eprintln!(
            "step {}: {:.3} s, loss {:.4}",
            steps.len() + 1,
            step.time.as_secs_f64(),
            step.loss
        );
        steps.push(step);
    });
    let tokens = (args.batch * args.seq_len) as f64;
    let speed = |step: &StepTime| tokens / step.time.as_secs_f64();
    let mut speeds: Vec<f64> = steps[WARM_UP..].iter().map(speed).collect();
    speeds.sort_by(f64::total_cmp);
    let result = json!({
        "tokens_per_second": speeds[speeds.len() / 2],
        "tokens_per_second_min": speeds[0],
        "tokens_per_second_max": speeds[speeds.len() - 1],
        "peak_rss_bytes": peak_memory(),
        "loss_first": steps[0].loss,
        "loss_last": steps[steps.len() - 1].loss,
        "tokens_per_step": args.batch * args.seq_len,
        "parameters": work.spec.parameters(),
        "precision": args.precision,
        "recompute": args.recompute,
        "kernel": work.compute.kernel.name(),
        "threads": rayon::current_num_threads(),
        "device": args.device,
    });
    print_line(&if args.json { result.to_string() } else { in_words(&result) });
    Ok(())
}

fn workload(args: &BenchArgs) -> Result<Workload> {
    let mut spec = ModelSpec::from_file(&args.config).map_err(TrainError::from)?;
    if let Some(size) = args.vocab_size {
        spec.vocab_size = size;
    }
    let positive = [
        ("--seq-len", args.seq_len),
        ("--batch", args.batch),
        ("--steps", args.steps),
        ("--vocab-size", spec.vocab_size),
    ];
    if let Some((flag, _)) = positive.iter().find(|(_, value)| *value == 0) {
        return Err(Usage(format!("{flag} must be at least 1")).into());
    }
    if args.seq_len > spec.max_position_embeddings {
        let limit = spec.max_position_embeddings;
        return Err(
            Usage(format!("--seq-len {} is above the config's {limit}", args.seq_len)).into()
        );
    }
    let precision = [Precision::F32, Precision::Bf16];
    let precision = precision.into_iter().find(|precision| precision.name() == args.precision);
    let unknown = || Usage(format!("--precision {}: expected f32 or bf16", args.precision));
    let mut compute =
        Compute { operands: precision.ok_or_else(unknown)?.operands(), ..Compute::default() };
    if let Some(name) = &args.kernel {
        let all: Vec<_> = Kernel::available().into_iter().map(Kernel::name).collect();
        let unknown = || Usage(format!("--kernel {name}: this CPU has {}", all.join(", ")));
        compute.kernel = Kernel::named(name).ok_or_else(unknown)?;
    }
    let activations = if args.recompute { Activations::Recomputed } else { Activations::Kept };
    Ok(Workload { spec, rows: args.batch, seq_len: args.seq_len, compute, activations })
}

fn in_words(result: &serde_json::Value) -> String {
    let all = result.as_object().into_iter().flatten();
    all.map(|(key, value)| format!("{key:<24} {value}")).collect::<Vec<_>>().join("\n")
}
