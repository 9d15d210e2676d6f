//! Joules of a run's steps, where this machine's counters can be read.

use bitnet_energy::EnergyMeter;

/// What the machine of this rank has used while steps were made.
pub(super) struct StepEnergy {
    meter: EnergyMeter,
    last: f64,
    joules: f64,
    tokens: u64,
}

impl StepEnergy {
    /// Nothing where no counter can be read.
    pub(super) fn open() -> Option<Self> {
        let meter = EnergyMeter::open()?;
        Some(Self { meter, last: 0.0, joules: 0.0, tokens: 0 })
    }

    /// Leaves out what was used since the last steps, by evaluations and saving.
    pub(super) fn steps_start(&mut self) {
        self.last = self.meter.joules();
    }

    /// Joules per token of the steps that end now, with `tokens` trained tokens.
    pub(super) fn per_token(&mut self, tokens: u64) -> Option<f64> {
        let now = self.meter.joules();
        let used = now - std::mem::replace(&mut self.last, now);
        self.joules += used;
        self.tokens += tokens;
        (tokens > 0).then(|| used / tokens as f64)
    }

    /// Joules per token of all steps so far, and what was counted.
    pub(super) fn mean(&self) -> Option<(f64, String)> {
        let mean = self.joules / self.tokens.max(1) as f64;
        (self.tokens > 0).then(|| (mean, self.meter.source()))
    }
}
