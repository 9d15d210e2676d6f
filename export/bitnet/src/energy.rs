//! What a command says of energy: joules by the machine's counters, or an estimate that says so.

use std::time::Duration;

use bitnet_energy::{EnergyEstimate, EnergyMeter, InferenceWork, report_joules};
use bitnet_engine::KvCache;
use bitnet_format::ModelSpec;
use bitnet_format::figures::significant;
use serde_json::{Map, Value, json};

use crate::cli::{CacheArgs, HeadArg};
use crate::open::cache_precision;

/// How long the machine is watched before the work begins.
const IDLE: Duration = Duration::from_secs(1);

/// Tokens of the report's own figure.
const REPORT_TOKENS: f64 = 512.0;

/// Joules of both phases of a benchmark.
pub(crate) struct BenchEnergy {
    meter: Option<EnergyMeter>,
    idle_watts: Option<f64>,
}

impl BenchEnergy {
    /// Watches the idle machine for a second, where it counts.
    pub(crate) fn open() -> Self {
        let mut meter = EnergyMeter::open();
        let idle_watts = meter.as_mut().map(|meter| meter.idle_watts(IDLE));
        Self { meter, idle_watts }
    }

    /// Joules so far, where they can be read.
    pub(crate) fn joules(&mut self) -> Option<f64> {
        self.meter.as_mut().map(EnergyMeter::joules)
    }

    fn method(&self) -> String {
        match &self.meter {
            Some(meter) => format!("measured, the whole machine: {}", meter.source()),
            None => "estimate: no energy counter can be read here".into(),
        }
    }
}

/// A phase: its estimate, and the measured joules of a token.
#[derive(Clone, Copy)]
pub(crate) struct PhaseEnergy {
    pub(crate) estimate: EnergyEstimate,
    pub(crate) measured: Option<f64>,
}

impl PhaseEnergy {
    fn write(&self, name: &str, into: &mut Map<String, Value>) {
        let best = self.measured.unwrap_or(self.estimate.total());
        into.insert(format!("{name}_joules_per_token"), json!(best));
        let estimate = [
            ("estimated_arithmetic_joules", self.estimate.arithmetic),
            ("estimated_memory_joules", self.estimate.memory),
        ];
        into.extend(estimate.map(|(key, joules)| (format!("{name}_{key}"), json!(joules))));
    }
}

/// All that the benchmark says of energy.
pub(crate) fn bench_figures(
    energy: &BenchEnergy,
    spec: &ModelSpec,
    prefill: Option<PhaseEnergy>,
    decode: Option<PhaseEnergy>,
) -> Map<String, Value> {
    let mut all = Map::new();
    all.insert("energy_method".into(), json!(energy.method()));
    all.insert("idle_watts".into(), json!(energy.idle_watts));
    for (name, phase) in [("prefill", prefill), ("decode", decode)] {
        if let Some(phase) = phase {
            phase.write(name, &mut all);
        }
    }
    all.insert("report_joules_512_tokens".into(), json!(report_joules(spec, REPORT_TOKENS)));
    all
}

/// A token of a pass that `together` tokens share.
fn work(
    spec: &ModelSpec,
    head: HeadArg,
    cache: &CacheArgs,
    context: f64,
    together: f64,
) -> InferenceWork {
    // A head as in the file counts 16 bits a value, as BF16 and F16 have.
    let head_bytes = if head == HeadArg::Int8 { 1.0 } else { 2.0 };
    InferenceWork::of(spec, context, together, head_bytes, cache_bytes(spec, cache))
}

/// Bytes of keys and values that a token of the context takes.
fn cache_bytes(spec: &ModelSpec, cache: &CacheArgs) -> f64 {
    KvCache::bytes_a_token(spec, cache_precision(cache)) as f64
}

/// A token of a prompt that is read at once; the head runs for its last one only.
pub(crate) fn prefill_estimate(
    spec: &ModelSpec,
    head: HeadArg,
    cache: &CacheArgs,
    tokens: usize,
) -> EnergyEstimate {
    let tokens = tokens as f64;
    // The mean token of a prompt has half of it as context.
    let work = work(spec, head, cache, tokens / 2.0, tokens);
    // The prompt's keys and values are read from memory once for a block of tokens, not for each.
    let bytes = work.bytes - tokens / 2.0 * cache_bytes(spec, cache);
    InferenceWork { head: work.head / tokens, bytes, ..work }.estimate()
}

/// A token after `context` others, decoded together with one of each other sequence.
pub(crate) fn decode_estimate(
    spec: &ModelSpec,
    head: HeadArg,
    cache: &CacheArgs,
    context: f64,
    sequences: usize,
) -> EnergyEstimate {
    work(spec, head, cache, context, sequences as f64).estimate()
}

/// The line of `--verbose`.
pub(crate) fn in_words(phase: PhaseEnergy) -> String {
    match phase.measured {
        Some(joules) => format!("{} J/token, measured on the whole machine", significant(joules)),
        None => format!(
            "about {} J/token, an estimate: {} of arithmetic, {} of memory",
            significant(phase.estimate.total()),
            significant(phase.estimate.arithmetic),
            significant(phase.estimate.memory)
        ),
    }
}
