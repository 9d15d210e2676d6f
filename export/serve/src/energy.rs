//! Joules of the server: by the machine's counters where they can be read, else an estimate from
//! what was computed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bitnet_energy::{EnergyMeter, InferenceWork};
use bitnet_engine::{CachePrecision, KvCache};
use bitnet_format::ModelSpec;

/// How often the counters are read at least. One of a package starts again after three quarters of
/// an hour at 100 W and after some hours without work, and nobody may ask for that long.
pub(crate) const LONGEST_UNREAD: Duration = Duration::from_mins(1);

/// Energy since the start.
#[derive(Debug)]
pub(crate) struct ServerEnergy {
    measured: Option<Mutex<EnergyMeter>>,
    /// Estimated joules of a pass over the weights, of a token, and of a token of its context.
    prices: [f64; 3],
    passes: AtomicU64,
    tokens: AtomicU64,
    contexts: AtomicU64,
}

impl ServerEnergy {
    /// Opens the counters. The estimate takes the head for 8 bits.
    pub(crate) fn open(spec: &ModelSpec, cache: CachePrecision) -> Self {
        // The cost of a token is a line in its context: two points of it give what one token more
        // costs.
        let bytes = KvCache::bytes_a_token(spec, cache) as f64;
        let nothing_before = InferenceWork::of(spec, 0.0, 1.0, 1.0, bytes).estimate();
        let one_before = InferenceWork::of(spec, 1.0, 1.0, 1.0, bytes).estimate();
        let of_context = one_before.total() - nothing_before.total();
        Self {
            measured: EnergyMeter::open().map(Mutex::new),
            // Memory is paid a pass: weights are read once, however many tokens go through them.
            prices: [nothing_before.memory, nothing_before.arithmetic, of_context],
            passes: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            contexts: AtomicU64::new(0),
        }
    }

    /// Counts a pass over the weights for `tokens` tokens, after `context` others in all.
    pub(crate) fn pass(&self, tokens: usize, context: usize) {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        self.contexts.fetch_add(context as u64, Ordering::Relaxed);
    }

    /// Reads the counters, only so that none starts again unnoticed; the meter keeps the sum.
    pub(crate) fn keep(&self) {
        if let Some(measured) = &self.measured {
            measured.lock().unwrap_or_else(PoisonError::into_inner).joules();
        }
    }

    /// How it is known, and joules since the start.
    pub(crate) fn joules(&self) -> (String, f64) {
        if let Some(measured) = &self.measured {
            let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
            return (format!("measured: {}", measured.source()), measured.joules());
        }
        let counts = [&self.passes, &self.tokens, &self.contexts];
        let counts = counts.map(|count| count.load(Ordering::Relaxed) as f64);
        (
            "estimate".into(),
            counts.iter().zip(self.prices).map(|(count, price)| count * price).sum(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::tests::model;

    #[test]
    fn an_estimate_grows_with_passes_tokens_and_contexts() {
        let mut energy = ServerEnergy::open(model(64).spec(), CachePrecision::F32);
        energy.measured = None;
        assert_eq!(energy.joules(), ("estimate".into(), 0.0));
        energy.pass(1, 0);
        let (_, one) = energy.joules();
        energy.pass(8, 0);
        let (_, shared) = energy.joules();
        energy.pass(1, 100);
        let (_, behind) = energy.joules();
        assert!(one > 0.0 && shared - one < 2.0 * one, "eight tokens share the weights");
        assert!(behind - shared > one, "{behind} {shared} {one}");
    }
    #[test]
    fn a_server_without_work_still_reads_a_counter_before_it_starts_again() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("intel-rapl:0");
        fs_err::create_dir(&folder).unwrap();
        let write = |file: &str, text: &str| fs_err::write(folder.join(file), text).unwrap();
        write("name", "package-0\n");
        write("max_energy_range_uj", "1000000\n");
        write("energy_uj", "900000\n");
        let mut energy = ServerEnergy::open(model(64).spec(), CachePrecision::F32);
        energy.measured = EnergyMeter::of(root.path()).map(Mutex::new);
        let metrics = Arc::new(Metrics::new(energy));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            tokio::spawn(Arc::clone(&metrics).keep_energy(Duration::from_millis(1)));
            for microjoules in ["100000\n", "900000\n", "100000\n"] {
                write("energy_uj", microjoules);
                tokio::time::sleep(Duration::from_millis(50)).await;
                tokio::task::yield_now().await;
            }
        });
        let text = metrics.text("m");
        let line = text.lines().find(|line| line.starts_with("bitnet_energy_joules_total{"));
        let joules: f64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        // Twice over the end; with the last reading alone it would be 0.2 J.
        assert!(joules > 1.19, "{text}");
    }
}
