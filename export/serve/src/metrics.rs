//! What the server counts, and how Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::energy::ServerEnergy;

/// Upper bounds of the times until a first token and of whole requests, in seconds.
const LONG: [f64; 12] = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
/// Upper bounds of the times between tokens, in seconds.
const SHORT: [f64; 12] = [0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0];

/// Counters of a running server.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(String, u16), u64>>,
    running: AtomicUsize,
    queued: AtomicUsize,
    pages: AtomicUsize,
    page_bytes: AtomicUsize,
    dropped_pages: AtomicUsize,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    cancelled: AtomicU64,
    failed: AtomicU64,
    first_token: Histogram,
    between_tokens: Histogram,
    durations: Histogram,
    energy: ServerEnergy,
}

/// What the inference thread has in work and in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateGauges {
    /// Answers in work.
    pub(crate) running: usize,
    /// Answers that wait.
    pub(crate) queued: usize,
    /// Pages of keys and values, each counted once.
    pub(crate) pages: usize,
    pub(crate) page_bytes: usize,
    /// Pages that were dropped for want of memory, since the start.
    pub(crate) dropped_pages: usize,
}

impl Metrics {
    pub(crate) fn new(energy: ServerEnergy) -> Self {
        Self {
            requests: Mutex::default(),
            running: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            pages: AtomicUsize::new(0),
            page_bytes: AtomicUsize::new(0),
            dropped_pages: AtomicUsize::new(0),
            prompt_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            first_token: Histogram::new(LONG),
            between_tokens: Histogram::new(SHORT),
            durations: Histogram::new(LONG),
            energy,
        }
    }

    /// Counts an answered request; `route` is a pattern of the router, never what a client wrote.
    pub(crate) fn request(&self, route: &str, code: u16, duration: Duration) {
        let mut all = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry((route.to_owned(), code)).or_default() += 1;
        self.durations.add(duration);
    }

    /// Counts the tokens of a prompt, and those of them that were not computed again.
    pub(crate) fn prompt(&self, tokens: usize, cached: usize) {
        self.prompt_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        self.cached_tokens.fetch_add(cached as u64, Ordering::Relaxed);
    }

    /// Counts the first token of an answer, so long after its request came.
    pub(crate) fn first_token(&self, after: Duration) {
        self.generated_tokens.fetch_add(1, Ordering::Relaxed);
        self.first_token.add(after);
    }

    /// Counts a token, so long after the one before it.
    pub(crate) fn next_token(&self, after: Duration) {
        self.generated_tokens.fetch_add(1, Ordering::Relaxed);
        self.between_tokens.add(after);
    }

    /// Counts an answer that its client gave up.
    pub(crate) fn cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answer that a fault of this program ended.
    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a pass over the weights for `tokens` tokens, after `context` others in all.
    pub(crate) fn pass(&self, tokens: usize, context: usize) {
        self.energy.pass(tokens, context);
    }

    /// Reads the counters of energy `every` so long, for ever: a server that has nothing to do uses
    /// some too.
    pub(crate) async fn keep_energy(self: Arc<Self>, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            self.energy.keep();
        }
    }

    /// What is going on now.
    pub(crate) fn state(&self, state: StateGauges) {
        self.running.store(state.running, Ordering::Relaxed);
        self.queued.store(state.queued, Ordering::Relaxed);
        self.pages.store(state.pages, Ordering::Relaxed);
        self.page_bytes.store(state.page_bytes, Ordering::Relaxed);
        self.dropped_pages.store(state.dropped_pages, Ordering::Relaxed);
    }

    /// Pages in memory.
    #[cfg(test)]
    pub(crate) fn pages(&self) -> usize {
        self.pages.load(Ordering::Relaxed)
    }

    /// Pages that were dropped.
    #[cfg(test)]
    pub(crate) fn dropped_pages(&self) -> usize {
        self.dropped_pages.load(Ordering::Relaxed)
    }

    /// Tokens of prompts that were found.
    #[cfg(test)]
    pub(crate) fn cached_tokens(&self) -> u64 {
        self.cached_tokens.load(Ordering::Relaxed)
    }

    /// Answers that clients gave up.
    #[cfg(test)]
    pub(crate) fn cancelled_count(&self) -> u64 {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Everything in Prometheus' text format.
    pub(crate) fn text(&self, model: &str) -> String {
        let mut text = String::new();
        let version = env!("CARGO_PKG_VERSION");
        head(&mut text, "bitnet_build_info", "gauge", "version and model of this server");
        // `{:?}` escapes quotes, backslashes and line ends, as labels want it.
        line(&mut text, &format!("bitnet_build_info{{version=\"{version}\",model={model:?}}} 1"));
        head(
            &mut text,
            "bitnet_requests_total",
            "counter",
            "answered requests by route and status",
        );
        for ((route, code), count) in &*self.requests.lock().unwrap_or_else(PoisonError::into_inner)
        {
            let labels = format!("route=\"{route}\",code=\"{code}\"");
            line(&mut text, &format!("bitnet_requests_total{{{labels}}} {count}"));
        }
        for (name, kind, help, value) in self.numbers() {
            head(&mut text, name, kind, help);
            line(&mut text, &format!("{name} {value}"));
        }
        head(
            &mut text,
            "bitnet_prefix_cache_hit_ratio",
            "gauge",
            "found tokens of all tokens read",
        );
        line(&mut text, &format!("bitnet_prefix_cache_hit_ratio {}", self.hit_ratio()));
        let (method, joules) = self.energy.joules();
        head(&mut text, "bitnet_energy_joules_total", "counter", "energy since the start");
        line(&mut text, &format!("bitnet_energy_joules_total{{method={method:?}}} {joules}"));
        for (name, help, histogram) in [
            ("bitnet_time_to_first_token_seconds", "from request to token", &self.first_token),
            ("bitnet_inter_token_latency_seconds", "from token to token", &self.between_tokens),
            ("bitnet_request_duration_seconds", "until the headers are sent", &self.durations),
        ] {
            head(&mut text, name, "histogram", help);
            histogram.write(&mut text, name);
        }
        text
    }

    /// The share of all tokens of prompts that were not computed again.
    fn hit_ratio(&self) -> f64 {
        let all = self.prompt_tokens.load(Ordering::Relaxed).max(1);
        self.cached_tokens.load(Ordering::Relaxed) as f64 / all as f64
    }

    fn numbers(&self) -> [(&'static str, &'static str, &'static str, u64); 10] {
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let now = |number: &AtomicUsize| number.load(Ordering::Relaxed) as u64;
        let counter = "counter";
        [
            ("bitnet_requests_running", "gauge", "answers in work", now(&self.running)),
            ("bitnet_requests_queued", "gauge", "answers that wait", now(&self.queued)),
            (
                "bitnet_kv_cache_pages",
                "gauge",
                "pages of keys and values in memory, shared ones once",
                now(&self.pages),
            ),
            (
                "bitnet_kv_cache_bytes",
                "gauge",
                "bytes of these pages",
                now(&self.pages) * now(&self.page_bytes),
            ),
            (
                "bitnet_prefix_cache_dropped_pages_total",
                counter,
                "pages that were dropped for want of memory",
                now(&self.dropped_pages),
            ),
            ("bitnet_prompt_tokens_total", counter, "tokens read", count(&self.prompt_tokens)),
            (
                "bitnet_prefix_cache_hit_tokens_total",
                counter,
                "tokens of prompts that were in a cache already",
                count(&self.cached_tokens),
            ),
            (
                "bitnet_generated_tokens_total",
                counter,
                "tokens generated",
                count(&self.generated_tokens),
            ),
            ("bitnet_cancelled_total", counter, "answers given up", count(&self.cancelled)),
            ("bitnet_failed_total", counter, "answers lost to a fault", count(&self.failed)),
        ]
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    line(text, &format!("# HELP {name} {help}"));
    line(text, &format!("# TYPE {name} {kind}"));
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// Counts by upper bounds.
#[derive(Debug)]
struct Histogram {
    bounds: [f64; 12],
    /// One more than bounds: the last has no bound.
    counts: [AtomicU64; 13],
    microseconds: AtomicU64,
}

impl Histogram {
    fn new(bounds: [f64; 12]) -> Self {
        Self { bounds, counts: Default::default(), microseconds: AtomicU64::new(0) }
    }

    fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let place = self.bounds.iter().position(|bound| seconds <= *bound);
        self.counts[place.unwrap_or(self.bounds.len())].fetch_add(1, Ordering::Relaxed);
        // Whole microseconds, since there is no atomic float.
        self.microseconds.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str) {
        let mut sum = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            // Prometheus wants cumulative counts: a bucket holds all below its bound.
            sum += count.load(Ordering::Relaxed);
            line(text, &format!("{name}_bucket{{le=\"{bound}\"}} {sum}"));
        }
        sum += self.counts[self.bounds.len()].load(Ordering::Relaxed);
        let seconds = self.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = write!(
            text,
            "{name}_bucket{{le=\"+Inf\"}} {sum}\n{name}_sum {seconds}\n{name}_count {sum}\n"
        );
    }
}

#[cfg(test)]
mod tests {
    use bitnet_engine::CachePrecision;

    use super::*;
    use crate::tests::model;

    #[test]
    fn buckets_are_cumulative_and_requests_have_their_labels() {
        let energy = ServerEnergy::open(model(64).spec(), CachePrecision::F32);
        let metrics = Metrics::new(energy);
        for milliseconds in [5, 5, 700, 500_000] {
            metrics.first_token(Duration::from_millis(milliseconds));
        }
        metrics.request("/v1/models", 200, Duration::ZERO);
        metrics.prompt(10, 4);
        let text = metrics.text("a\"b");
        for line in [
            "bitnet_build_info{version=\"0.2.0\",model=\"a\\\"b\"} 1",
            "bitnet_requests_total{route=\"/v1/models\",code=\"200\"} 1",
            "bitnet_time_to_first_token_seconds_bucket{le=\"0.01\"} 2",
            "bitnet_time_to_first_token_seconds_bucket{le=\"1\"} 3",
            "bitnet_time_to_first_token_seconds_bucket{le=\"+Inf\"} 4",
            "bitnet_time_to_first_token_seconds_count 4",
            "bitnet_generated_tokens_total 4",
            "bitnet_prefix_cache_hit_tokens_total 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains("\nbitnet_energy_joules_total{method="), "{text}");
    }
}
