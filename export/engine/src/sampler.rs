//! Choosing the next token from logits.
//!
//! The order is fixed: repetition penalty, temperature, top-k, top-p, min-p, draw. Temperature 0
//! takes the likeliest token after the penalty. One seed gives one sequence on every machine that
//! gives the same logits.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::EngineError;

/// How tokens are chosen. The default draws from the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerSettings {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// The fewest of the likeliest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Only tokens at least this likely, as a share of the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens already there; 1 is off.
    pub repetition_penalty: f32,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Default for SamplerSettings {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplerSettings {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    fn check(&self) -> Result<(), EngineError> {
        let positive = self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0;
        let rules = [
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0, at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, positive, "above 0"),
        ];
        let broken = |&(_, value, holds, _): &(_, f32, bool, _)| !(holds && value.is_finite());
        match rules.into_iter().find(broken) {
            Some((name, value, _, expected)) => Err(EngineError::Setting { name, value, expected }),
            None => Ok(()),
        }
    }
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// Chooses tokens one after another.
#[derive(Clone, Debug)]
pub struct Sampler {
    settings: SamplerSettings,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// A setting outside its range.
    pub fn new(settings: SamplerSettings) -> Result<Self, EngineError> {
        settings.check()?;
        let random = ChaCha8Rng::seed_from_u64(settings.seed);
        Ok(Self { settings, random })
    }

    /// Chooses a token from `logits [V]`; `seen` are the tokens the penalty applies to.
    pub fn sample(&mut self, logits: &[f32], seen: &[u32]) -> u32 {
        let mut logits = logits.to_vec();
        penalise(&mut logits, seen, self.settings.repetition_penalty);
        if self.settings.temperature == 0.0 {
            return most_likely(&logits);
        }
        let candidates = candidates(&logits, &self.settings);
        let at = self.draw();
        choose(&candidates, at)
    }

    /// A number in [0, 1) with 53 random bits.
    fn draw(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The likeliest token, of equals the lowest id.
pub(crate) fn most_likely(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// Each token seen is penalised once, however often it occurs (Keskar et al. 2019).
fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    let mut seen = seen.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// What is left to draw from, likeliest first, with logits divided by the temperature.
fn candidates(logits: &[f32], settings: &SamplerSettings) -> Vec<Candidate> {
    let scaled = |(id, &logit)| Candidate { id, logit: logit / settings.temperature };
    let mut candidates: Vec<_> = (0u32..).zip(logits).map(scaled).collect();
    let order = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id));
    if (1..candidates.len()).contains(&settings.top_k) {
        candidates.select_nth_unstable_by(settings.top_k - 1, order);
        candidates.truncate(settings.top_k);
    }
    candidates.sort_unstable_by(order);
    candidates.truncate(within_top_p(&candidates, settings.top_p));
    let floor = candidates[0].logit + settings.min_p.ln(); // ln 0 = -inf keeps all
    candidates.truncate(candidates.partition_point(|candidate| candidate.logit >= floor));
    candidates
}

/// How many of the likeliest reach the probability `top_p` together; at least one.
fn within_top_p(candidates: &[Candidate], top_p: f32) -> usize {
    if top_p >= 1.0 {
        return candidates.len();
    }
    let weights = weights(candidates);
    let wanted = weights.iter().sum::<f64>() * f64::from(top_p);
    let mut reached = 0.0;
    let enough = weights.iter().position(|weight| {
        reached += weight;
        reached >= wanted
    });
    enough.map_or(candidates.len(), |last| last + 1)
}

/// Unnormalised probabilities of candidates of which the first is the likeliest.
fn weights(candidates: &[Candidate]) -> Vec<f64> {
    let weight = |candidate: &Candidate| f64::from(candidate.logit - candidates[0].logit).exp();
    candidates.iter().map(weight).collect()
}

/// The candidate at `at` in [0, 1) of the summed probabilities.
fn choose(candidates: &[Candidate], at: f64) -> u32 {
    let weights = weights(candidates);
    let mut left = at * weights.iter().sum::<f64>();
    let chosen = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    candidates[chosen.unwrap_or(0)].id
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    fn ids(settings: &SamplerSettings) -> Vec<u32> {
        candidates(&LOGITS, settings).iter().map(|candidate| candidate.id).collect()
    }

    fn drawn(settings: &SamplerSettings, count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings.clone()).unwrap();
        (0..count).map(|_| sampler.sample(&LOGITS, &[])).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_of_equal_ids() {
        assert_eq!(drawn(&SamplerSettings::greedy(), 3), [1, 1, 1]);
    }

    #[test]
    fn filters_keep_the_likeliest() {
        let all = SamplerSettings::default();
        assert_eq!(ids(&all), [1, 3, 2, 0, 4]);
        assert_eq!(ids(&SamplerSettings { top_k: 2, ..all.clone() }), [1, 3]);
        assert_eq!(ids(&SamplerSettings { top_k: 99, ..all.clone() }), [1, 3, 2, 0, 4]);
        // Probabilities are about 0.40, 0.40, 0.15, 0.05, 0.01.
        assert_eq!(ids(&SamplerSettings { top_p: 0.5, ..all.clone() }), [1, 3]);
        assert_eq!(ids(&SamplerSettings { top_p: 1e-6, ..all.clone() }), [1]);
        assert_eq!(ids(&SamplerSettings { min_p: 0.3, ..all.clone() }), [1, 3, 2]);
        assert_eq!(ids(&SamplerSettings { min_p: 1.0, ..all }), [1, 3]);
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let settings = SamplerSettings { seed: 7, ..SamplerSettings::default() };
        let first = drawn(&settings, 50);
        assert_eq!(first, drawn(&settings, 50));
        assert_ne!(first, drawn(&SamplerSettings { seed: 8, ..settings }, 50));
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let ids = drawn(&SamplerSettings::default(), 20_000);
        let share = |id| ids.iter().filter(|&&drawn| drawn == id).count() as f32 / 20_000.0;
        let sum: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        for (id, logit) in (0..).zip(LOGITS) {
            // Five standard deviations of a share of 20 000 draws are at most 0.018.
            assert!((share(id) - logit.exp() / sum).abs() < 0.018, "{id}: {}", share(id));
        }
    }

    #[test]
    fn the_penalty_weakens_tokens_of_either_sign_once() {
        let mut logits = [2.0, -2.0, 2.0];
        penalise(&mut logits, &[0, 1, 0], 2.0);
        assert_eq!(logits, [1.0, -4.0, 2.0]);
        let settings = SamplerSettings { repetition_penalty: 2.0, ..SamplerSettings::greedy() };
        assert_eq!(Sampler::new(settings).unwrap().sample(&LOGITS, &[1]), 3);
    }

    #[test]
    fn a_setting_outside_its_range_is_refused_by_name() {
        let all = SamplerSettings::default();
        for (settings, message) in [
            (SamplerSettings { temperature: -1.0, ..all.clone() }, "temperature is -1"),
            (SamplerSettings { temperature: f32::NAN, ..all.clone() }, "temperature is NaN"),
            (SamplerSettings { top_p: 0.0, ..all.clone() }, "top_p is 0"),
            (SamplerSettings { min_p: 1.5, ..all.clone() }, "min_p is 1.5"),
            (SamplerSettings { repetition_penalty: 0.0, ..all }, "repetition_penalty is 0"),
        ] {
            let error = Sampler::new(settings).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
