//! `bitnet bench`: how fast a model runs here, beside what the machine could do.
//!
//! Prefill and decoding are timed apart, wall clock, each from an empty context; the figures are
//! medians of the repeats.

use std::io::{Write, stdout};
use std::time::Instant;

use bitnet_engine::{EngineError, Kernel, Model, Threads};
use bitnet_format::ModelSpec;
use bitnet_kernels::limits::{int8_operations, memory_read};
use bitnet_kernels::{Pages, huge_page_bytes};
use serde_json::{Value, json};

use crate::cli::{BenchArgs, Head};
use crate::failure::BadInput;
use crate::open;

/// Enough that no cache holds it.
const READ_BYTES: usize = 1 << 30;

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let threads = open::threads(&args.threads)?;
    // First, while the memory is free.
    let limits = args.limits.then(|| limits(threads.count()));
    let start = Instant::now();
    let model = model(args)?;
    let loaded = start.elapsed().as_secs_f64();
    let spec = model.spec();
    let (tokens, limit) =
        (args.prompt_tokens.max(args.generate_tokens), spec.max_position_embeddings);
    if tokens > limit {
        return Err(EngineError::ContextFull { tokens, limit }.into());
    }
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for repeat in 0..args.repeat {
        if args.prompt_tokens > 0 {
            prefill.push(time_prefill(&model, args.prompt_tokens, &threads)?);
        }
        if args.generate_tokens > 0 {
            decode.push(time_decode(&model, args.generate_tokens, &threads)?);
        }
        eprintln!("repeat {} of {}", repeat + 1, args.repeat);
    }
    let mut result = json!({
        "prefill_tokens_per_second": median(prefill.clone()),
        "prefill_tokens_per_second_all": prefill,
        "decode_tokens_per_second": median(decode.clone()),
        "decode_tokens_per_second_all": decode,
        "prompt_tokens": args.prompt_tokens, "generate_tokens": args.generate_tokens,
        "load_seconds": loaded, "peak_rss_bytes": peak_memory(),
        "kernel": model.kernel().name(), "threads": threads.count(),
        "head": if args.head == Head::Int8 { "int8" } else { "file" },
        "huge_pages": huge_page_bytes().is_some_and(|bytes| bytes > 0),
        "huge_page_bytes": huge_page_bytes(), "parameters": spec.parameters(),
    });
    if let (Some(limits), Some(all)) = (limits, result.as_object_mut()) {
        all.extend(limits.as_object().cloned().unwrap_or_default());
    }
    let text = if args.json { result.to_string() } else { in_words(&result) };
    Ok(writeln!(stdout().lock(), "{text}")?)
}

fn model(args: &BenchArgs) -> anyhow::Result<Model> {
    let model = match (&args.model, &args.config) {
        (Some(path), _) => open::model(path, args.head)?,
        (None, Some(config)) => {
            let spec = ModelSpec::from_file(config)?;
            Model::random(&spec, open::precision(args.head))
        }
        (None, None) => unreachable!("one of both is required"),
    };
    let Some(name) = &args.kernel else { return Ok(model) };
    let found = Kernel::named(name).ok_or_else(|| {
        let all: Vec<_> = Kernel::available().into_iter().map(Kernel::name).collect();
        BadInput(format!("--kernel {name}: not on this CPU; expected {}", all.join(" or ")))
    })?;
    Ok(model.with_kernel(found))
}

fn time_prefill(model: &Model, count: usize, threads: &Threads) -> anyhow::Result<f64> {
    let ids: Vec<u32> = (0..count).map(|i| (i * 7919 % model.spec().vocab_size) as u32).collect();
    let mut cache = model.new_cache();
    let start = Instant::now();
    std::hint::black_box(model.forward(&mut cache, &ids, threads)?);
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn time_decode(model: &Model, count: usize, threads: &Threads) -> anyhow::Result<f64> {
    let mut cache = model.new_cache();
    let mut id = 0;
    let start = Instant::now();
    for _ in 0..count {
        let logits = model.forward(&mut cache, &[id], threads)?;
        let best = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
        id = (0..logits.len()).fold(0, best) as u32;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn limits(threads: usize) -> Value {
    json!({
        "dram_read_bytes_per_second": {
            "huge_pages": memory_read(READ_BYTES, Pages::Huge, threads),
            "small_pages": memory_read(READ_BYTES, Pages::Small, threads),
        },
        "int8_ops_per_second": int8_operations(threads),
    })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn in_words(result: &Value) -> String {
    let Some(all) = result.as_object() else { return result.to_string() };
    all.iter().map(|(key, value)| format!("{key:<32} {value}")).collect::<Vec<_>>().join("\n")
}

/// Largest resident memory of this process so far in bytes; `None` where unknown.
fn peak_memory() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
