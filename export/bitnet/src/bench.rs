//! `bitnet bench`: speed of a model, optionally with the limits of the machine.
//!
//! Prefill and decoding are timed separately by wall clock. Prefill starts from an empty context,
//! decoding from one of a given length. The figures are medians of the repeats.

use std::path::Path;
use std::time::Instant;

use bitnet_energy::EnergyEstimate;
use bitnet_engine::{EngineError, Kernel, KvCache, Model, Sequence, Workspace, most_likely};
use bitnet_format::Shown;
use bitnet_format::adapter::Adapter;
use bitnet_format::convert::hf::check_packable;
use bitnet_format::process::{forget_peak, free_memory, peak_memory};
use bitnet_format::{ModelSpec, TensorEntry, figures, tensor_table};
use bitnet_kernels::limits::{int8_operations, memory_read};
use bitnet_kernels::{Pages, huge_page_bytes};
use serde_json::{Map, Value, json};

use crate::cli::{BenchArgs, CacheArg, HeadArg};
use crate::energy::{BenchEnergy, PhaseEnergy, bench_figures, decode_estimate, prefill_estimate};
use crate::failure::{TooLarge, WrongFlag};
use crate::open;
use crate::output::{note, result_line};

/// Measured joules of all repeats; nothing where they cannot be read.
#[derive(Default)]
struct PhaseJoules {
    prefill: Option<f64>,
    decode: Option<f64>,
}

impl PhaseJoules {
    fn add(&mut self, before: Option<f64>, between: Option<f64>, after: Option<f64>) {
        let (Some(before), Some(between), Some(after)) = (before, between, after) else { return };
        *self.prefill.get_or_insert(0.0) += between - before;
        *self.decode.get_or_insert(0.0) += after - between;
    }

    fn figures(
        &self,
        energy: &BenchEnergy,
        spec: &ModelSpec,
        args: &BenchArgs,
    ) -> Map<String, Value> {
        let sequences = usize::from(args.sequences);
        let phase = |tokens: usize, joules: Option<f64>, estimate: EnergyEstimate| {
            let all = tokens * args.repeat as usize;
            let measured = joules.map(|joules| joules / all as f64);
            // A phase of no tokens was skipped.
            (tokens > 0).then_some(PhaseEnergy { estimate, measured })
        };
        let prompt = prefill_estimate(spec, args.head, &args.cache, args.prompt_tokens);
        // The mean context of the tokens that are decoded.
        let context = args.context_tokens as f64 + args.generate_tokens as f64 / 2.0;
        let next = decode_estimate(spec, args.head, &args.cache, context, sequences);
        let decode = phase(args.generate_tokens * sequences, self.decode, next);
        bench_figures(energy, spec, phase(args.prompt_tokens, self.prefill, prompt), decode)
    }
}

/// Larger than any CPU cache.
const READ_BYTES: usize = 1 << 30;

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    // First, while the memory is still free.
    let limits = args.limits.then(|| limits(open::count(&args.threads)));
    // What was measured with is not the model's.
    let peak_is_own = limits.is_none() || forget_peak();
    let start = Instant::now();
    let model = model(args)?;
    let loaded = start.elapsed().as_secs_f64();
    let threads = open::threads(&args.threads, &model)?;
    let spec = model.spec();
    // Prefill and decoding have caches of their own, so the longer of the two must fit.
    let tokens = args.prompt_tokens.max(args.context_tokens.saturating_add(args.generate_tokens));
    let limit = spec.context_length();
    if tokens > limit {
        return Err(EngineError::ContextFull { tokens, limit }.into());
    }
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    let mut workspace = Workspace::new(&threads);
    let mut caches = filled(&model, args, &mut workspace)?;
    let mut energy = args.energy.then(BenchEnergy::open);
    let mut joules = PhaseJoules::default();
    for repeat in 0..args.repeat {
        let before = energy.as_mut().and_then(BenchEnergy::joules);
        if args.prompt_tokens > 0 {
            prefill.push(time_prefill(&model, args, &mut workspace)?);
        }
        let between = energy.as_mut().and_then(BenchEnergy::joules);
        if args.generate_tokens > 0 {
            decode.push(time_decode(&model, args, &mut caches, &mut workspace)?);
        }
        joules.add(before, between, energy.as_mut().and_then(BenchEnergy::joules));
        note(&format!("repeat {} of {}", repeat + 1, args.repeat));
    }
    let mut result = json!({
        "prefill_tokens_per_second": median(prefill.clone()),
        "prefill_tokens_per_second_all": prefill,
        "decode_tokens_per_second": median(decode.clone()),
        "decode_tokens_per_second_all": decode,
        "prompt_tokens": args.prompt_tokens, "generate_tokens": args.generate_tokens,
        "context_tokens": args.context_tokens, "sequences": args.sequences,
        "cache": if args.cache.cache == CacheArg::F16 { "f16" } else { "f32" },
        "load_seconds": loaded, "peak_rss_bytes": peak_memory().filter(|_| peak_is_own),
        "kernel": model.kernel().name(), "threads": threads.count(),
        "head": if args.head == HeadArg::Int8 { "int8" } else { "file" },
        "huge_pages": huge_page_bytes().is_some_and(|bytes| bytes > 0),
        "huge_page_bytes": huge_page_bytes(), "parameters": spec.parameters(),
        "adapter_parameters": model.adapter_parameters(),
        "group": spec.quantiser.group, "embedding": spec.embedding, "activations": spec.activations,
    });
    if let Some(all) = result.as_object_mut() {
        all.extend(limits.as_ref().and_then(Value::as_object).cloned().unwrap_or_default());
        all.extend(energy.map(|energy| joules.figures(&energy, spec, args)).unwrap_or_default());
    }
    let text = if args.json { result.to_string() } else { in_words(&result) };
    Ok(result_line(&text)?)
}

fn model(args: &BenchArgs) -> anyhow::Result<Model> {
    let model = match (args.model.as_ref().or(args.positional.as_ref()), &args.config) {
        (Some(path), _) => open::model(path, args.head, &args.adapter)?,
        (None, Some(config)) => {
            let spec = ModelSpec::from_file(config)?;
            check_packable(config, &spec)?;
            // A typing mistake in a config could else ask for more memory than there is, and the
            // system would kill the program.
            require_memory(config, least_memory(&spec, args))?;
            let model = Model::random(&spec, open::precision(args.head));
            match &args.adapter.adapter {
                Some(path) => model.with_adapter(&Adapter::open(path, &spec)?)?,
                None => model,
            }
        }
        (None, None) => unreachable!("one of both is required"),
    };
    let Some(name) = &args.kernel else { return Ok(model) };
    let found = Kernel::named(name).ok_or_else(|| {
        let all: Vec<_> = Kernel::available().into_iter().map(Kernel::name).collect();
        WrongFlag(format!("--kernel {name}: not on this CPU; expected {}", all.join(" or ")))
    })?;
    Ok(model.with_kernel(found))
}

/// Bytes that random weights of this shape and the contexts take at least: 2 bits a ternary weight,
/// an 8-bit embedding.
fn least_memory(spec: &ModelSpec, args: &BenchArgs) -> u128 {
    let elements = |entry: &TensorEntry| entry.elements() as u128;
    let table = tensor_table(spec);
    let (ternary, other): (Vec<_>, Vec<_>) = table.iter().partition(|entry| entry.is_ternary(spec));
    // A scale of two bytes a group.
    let scales = |entry: &TensorEntry| {
        entry.group_width(spec).map_or(0, |width| 2 * elements(entry) / width as u128)
    };
    let weights = ternary.iter().map(|entry| elements(entry)).sum::<u128>() / 4
        + ternary.iter().map(|entry| scales(entry)).sum::<u128>()
        + other.into_iter().map(elements).sum::<u128>();
    let a_token = KvCache::bytes_a_token(spec, open::cache_precision(&args.cache)) as u128;
    let decoded = args.context_tokens as u128 + args.generate_tokens as u128;
    let tokens = u128::from(args.sequences) * decoded.max(1);
    weights + a_token * tokens.max(args.prompt_tokens as u128)
}

fn require_memory(config: &Path, needed: u128) -> anyhow::Result<()> {
    match free_memory() {
        Some(free) if needed > u128::from(free) => Err(TooLarge(format!(
            "{}: a model of this shape needs at least {} with its contexts, and {} are \
             free here; expected a smaller shape, fewer tokens or sequences, or --cache f16",
            config.shown(),
            figures::size(needed.try_into().unwrap_or(u64::MAX)),
            figures::size(free)
        ))
        .into()),
        _ => Ok(()),
    }
}

/// Arbitrary but fixed token ids: numbers `first` to `first + count` of one sequence.
fn ids(model: &Model, first: usize, count: usize) -> Vec<u32> {
    let id = |i: usize| (i * 7919 % model.spec().vocab_size) as u32;
    (first..first + count).map(id).collect()
}

/// A context for each sequence, filled with `--context-tokens` tokens.
fn filled(
    model: &Model,
    args: &BenchArgs,
    workspace: &mut Workspace,
) -> anyhow::Result<Vec<KvCache>> {
    let all = 0..usize::from(args.sequences);
    all.map(|sequence| {
        let mut cache = open::cache(model, &args.cache);
        if args.context_tokens > 0 {
            let ids = ids(model, sequence, args.context_tokens);
            model.forward(workspace, &mut cache, &ids)?;
        }
        Ok(cache)
    })
    .collect()
}

fn time_prefill(model: &Model, args: &BenchArgs, workspace: &mut Workspace) -> anyhow::Result<f64> {
    let ids = ids(model, 0, args.prompt_tokens);
    let mut cache = open::cache(model, &args.cache);
    let start = Instant::now();
    // Else the optimiser may leave out what nobody reads.
    std::hint::black_box(model.forward(workspace, &mut cache, &ids)?);
    Ok(ids.len() as f64 / start.elapsed().as_secs_f64())
}

/// Tokens a second of all sequences together, each taking its most likely token. The caches
/// are restored to their original length.
fn time_decode(
    model: &Model,
    args: &BenchArgs,
    caches: &mut [KvCache],
    workspace: &mut Workspace,
) -> anyhow::Result<f64> {
    // Every sequence begins with another token, so that they go different ways.
    let mut ids: Vec<u32> = (0..caches.len() as u32).collect();
    let start = Instant::now();
    for _ in 0..args.generate_tokens {
        let mut sequences: Vec<_> = caches
            .iter_mut()
            .zip(ids.chunks(1))
            .map(|(cache, tokens)| Sequence { cache, tokens })
            .collect();
        let logits = model.forward_batch(workspace, &mut sequences)?;
        let next = logits.chunks(model.spec().vocab_size).map(most_likely).collect();
        ids = next;
    }
    let seconds = start.elapsed().as_secs_f64();
    for cache in caches.iter_mut() {
        // Outside of the clock: every repeat decodes after the same context.
        cache.truncate(args.context_tokens);
    }
    Ok((args.generate_tokens * caches.len()) as f64 / seconds)
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
    let upper = values.len() / 2;
    match (values.get(upper), values.get(upper.wrapping_sub(1))) {
        // An even number has no middle one: with the upper of two, each repeat more would flatter.
        (Some(upper), Some(lower)) if values.len().is_multiple_of(2) => {
            Some(lower.midpoint(*upper))
        }
        (middle, _) => middle.copied(),
    }
}

fn in_words(result: &Value) -> String {
    figures::table(result, 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        for (values, expected) in [
            (vec![], None),
            (vec![3.0], Some(3.0)),
            (vec![4.0, 1.0], Some(2.5)),
            (vec![9.0, 1.0, 2.0], Some(2.0)),
            (vec![4.0, 1.0, 9.0, 2.0], Some(3.0)),
        ] {
            assert_eq!(median(values), expected);
        }
    }
}
