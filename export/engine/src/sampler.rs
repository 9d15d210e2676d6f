//! Choosing the next token from logits.
//!
//! The order is fixed: bias, repetition penalty, presence and frequency penalty, temperature, top-k, top-p, min-p, draw. Temperature 0
//! takes the most likely token after the penalty. One seed gives one sequence on every machine that
//! gives the same logits.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::EngineError;
use crate::sampler_settings::SamplerSettings;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    /// Divided by the temperature.
    logit: f32,
}

/// Chooses tokens one after another.
#[derive(Clone, Debug)]
pub struct Sampler {
    settings: SamplerSettings,
    random: ChaCha8Rng,
    /// Tokens at the beginning of `seen` that were not generated.
    prompt: usize,
    /// Memory, kept from token to token.
    penalised: Vec<f32>,
    seen: Vec<u32>,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// A setting outside its range.
    pub fn new(settings: SamplerSettings) -> Result<Self, EngineError> {
        settings.check()?;
        let random = ChaCha8Rng::seed_from_u64(settings.seed);
        let (penalised, seen) = (Vec::new(), Vec::new());
        Ok(Self { settings, random, prompt: 0, penalised, seen, candidates: Candidates::default() })
    }

    /// The same sampler after a prompt of `tokens` tokens, to which the presence and the frequency
    /// penalty do not apply.
    #[must_use]
    pub fn after_prompt(self, tokens: usize) -> Self {
        Self { prompt: tokens, ..self }
    }

    /// Chooses a token from `logits [V]`; `seen` are the tokens the penalties apply to.
    pub fn sample(&mut self, logits: &[f32], seen: &[u32]) -> u32 {
        self.sample_among(logits, seen, None)
    }

    /// Chooses among the tokens that `allowed` accepts, at least one; all of them for `None`.
    pub fn sample_among(
        &mut self,
        logits: &[f32],
        seen: &[u32],
        allowed: Option<&dyn Fn(u32) -> bool>,
    ) -> u32 {
        // The usual case copies nothing: the logits of a large vocabulary are half a megabyte.
        let logits = if self.settings.changes_logits() || allowed.is_some() {
            self.change(logits, seen, allowed);
            &self.penalised
        } else {
            logits
        };
        // Greedy draws no random number, so a seed cannot matter.
        if self.settings.temperature == 0.0 {
            return most_likely(logits);
        }
        // After bias and penalties: temperature, top-k, top-p, min-p, in this order.
        self.candidates.narrow(logits, &self.settings);
        let at = draw(&mut self.random);
        self.candidates.choose(at)
    }

    /// Fills `penalised` with what the settings make of `logits`.
    fn change(&mut self, logits: &[f32], seen: &[u32], allowed: Option<&dyn Fn(u32) -> bool>) {
        self.penalised.clear();
        self.penalised.extend_from_slice(logits);
        for &(id, bias) in &self.settings.logit_bias {
            if let Some(logit) = self.penalised.get_mut(id as usize) {
                *logit += bias;
            }
        }
        self.penalise(seen);
        self.penalise_generated(seen);
        // Last, so that no bias can bring a token back that a grammar excludes.
        let Some(allowed) = allowed else { return };
        for (id, logit) in (0u32..).zip(&mut self.penalised) {
            if !allowed(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    /// Presence and frequency penalty, as OpenAI defines them.
    fn penalise_generated(&mut self, seen: &[u32]) {
        let (presence, frequency) =
            (self.settings.presence_penalty, self.settings.frequency_penalty);
        self.seen.clear();
        self.seen.extend_from_slice(&seen[self.prompt.min(seen.len())..]);
        self.seen.sort_unstable();
        for same in self.seen.chunk_by(|a, b| a == b) {
            if let Some(logit) = self.penalised.get_mut(same[0] as usize) {
                *logit -= presence + frequency * same.len() as f32;
            }
        }
    }

    /// Each token seen is penalised once, however often it occurs (Keskar et al. 2019).
    fn penalise(&mut self, seen: &[u32]) {
        self.seen.clear();
        self.seen.extend_from_slice(seen);
        self.seen.sort_unstable();
        self.seen.dedup();
        let penalty = self.settings.repetition_penalty;
        for &id in &self.seen {
            if let Some(logit) = self.penalised.get_mut(id as usize) {
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }
}

/// A number in [0, 1) with 53 random bits.
fn draw(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// The most likely token, of equals the lowest id; 0 where no logit is a number.
pub fn most_likely(logits: &[f32]) -> u32 {
    const LANES: usize = 16;
    // Lanes first: one loop that remembers where the largest was would take a large vocabulary one
    // logit after the other.
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for logits in logits.chunks(LANES) {
        for (lane, &logit) in lanes.iter_mut().zip(logits) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    let largest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit >= largest).unwrap_or(0) as u32
}

/// What may be drawn: by id, or most likely first where only the most likely are kept.
#[derive(Clone, Debug, Default)]
struct Candidates {
    all: Vec<Candidate>,
    /// Unnormalised probabilities.
    weights: Vec<f64>,
}

impl Candidates {
    /// Fills in all tokens and drops those that the settings exclude.
    fn narrow(&mut self, logits: &[f32], settings: &SamplerSettings) {
        let scaled = |(id, &logit)| Candidate { id, logit: logit / settings.temperature };
        self.all.clear();
        self.all.extend((0u32..).zip(logits).map(scaled));
        if (1..self.all.len()).contains(&settings.top_k) {
            self.sort_first(settings.top_k);
            self.all.truncate(settings.top_k);
        }
        if settings.top_p < 1.0 {
            self.keep_top_p(settings.top_p);
        }
        // ln 0 = -inf keeps all but the tokens that are not allowed.
        let floor = (self.largest() + settings.min_p.ln()).max(f32::MIN);
        self.all.retain(|candidate| candidate.logit >= floor);
    }

    /// The `count` most likely come first, in order; of equals the lower id.
    fn sort_first(&mut self, count: usize) {
        let order =
            |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id));
        if count < self.all.len() {
            self.all.select_nth_unstable_by(count, order);
        }
        let count = count.min(self.all.len());
        self.all[..count].sort_unstable_by(order);
    }

    /// Keeps the fewest of the most likely that reach the probability `top_p` together; at least one.
    ///
    /// Sorts no more of them than that takes: of a large vocabulary it is usually a few.
    fn keep_top_p(&mut self, top_p: f32) {
        const FIRST: usize = 1024;
        let largest = self.largest();
        let weight = |candidate: &Candidate| f64::from(candidate.logit - largest).exp();
        let wanted = self.all.iter().map(weight).sum::<f64>() * f64::from(top_p);
        let mut sorted = FIRST;
        loop {
            self.sort_first(sorted);
            let mut reached = 0.0;
            let enough = self.all.iter().take(sorted).position(|candidate| {
                reached += weight(candidate);
                reached >= wanted
            });
            match enough {
                Some(last) => return self.all.truncate(last + 1),
                None if sorted >= self.all.len() => return,
                None => sorted *= 8,
            }
        }
    }

    fn largest(&self) -> f32 {
        self.all.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max)
    }

    /// The candidate at `at` in [0, 1) of the summed probabilities.
    fn choose(&mut self, at: f64) -> u32 {
        let largest = self.largest();
        self.weights.clear();
        let weight = |candidate: &Candidate| f64::from(candidate.logit - largest).exp();
        self.weights.extend(self.all.iter().map(weight));
        let mut left = at * self.weights.iter().sum::<f64>();
        let chosen = self.weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        self.all[chosen.unwrap_or(0)].id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    fn ids(settings: &SamplerSettings) -> Vec<u32> {
        let mut candidates = Candidates::default();
        candidates.narrow(&LOGITS, settings);
        candidates.all.iter().map(|candidate| candidate.id).collect()
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
    fn of_equally_likely_tokens_the_first_is_taken() {
        let mut logits: Vec<f32> = (0..1003).map(|id| (id * 37 % 101) as f32 - 200.0).collect();
        logits[5] = f32::NAN;
        let one_by_one = |logits: &[f32]| {
            (1..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best })
                as u32
        };
        for length in [1, 2, 15, 16, 17, 64, 500, 1003] {
            assert_eq!(most_likely(&logits[..length]), one_by_one(&logits[..length]), "{length}");
        }
        assert_eq!(most_likely(&[f32::NEG_INFINITY; 20]), 0);
        assert_eq!(most_likely(&[f32::NAN; 20]), 0);
        assert_eq!(most_likely(&[-0.0, 0.0]), 0);
    }

    #[test]
    fn filters_keep_the_most_likely_tokens() {
        let all = SamplerSettings::default();
        assert_eq!(ids(&all), [0, 1, 2, 3, 4]);
        assert_eq!(ids(&SamplerSettings { top_k: 2, ..all.clone() }), [1, 3]);
        assert_eq!(ids(&SamplerSettings { top_k: 99, ..all.clone() }), [0, 1, 2, 3, 4]);
        assert_eq!(ids(&SamplerSettings { top_k: 4, ..all.clone() }), [1, 3, 2, 0]);
        // Probabilities are about 0.40, 0.40, 0.15, 0.05, 0.01.
        assert_eq!(ids(&SamplerSettings { top_p: 0.5, ..all.clone() }), [1, 3]);
        assert_eq!(ids(&SamplerSettings { top_p: 1e-6, ..all.clone() }), [1]);
        assert_eq!(ids(&SamplerSettings { min_p: 0.3, ..all.clone() }), [1, 2, 3]);
        assert_eq!(ids(&SamplerSettings { min_p: 1.0, ..all }), [1, 3]);
    }

    #[test]
    fn of_many_tokens_only_as_many_are_sorted_as_are_kept() {
        // Probabilities fall by a thousandth from one to the next, in a mixed order of ids.
        let logits: Vec<f32> = (0..20_000u32).map(|id| (id * 7919 % 20_000) as f32 / 1e3).collect();
        for top_p in [0.5f32, 0.9, 0.999, 0.999_999] {
            let mut candidates = Candidates::default();
            candidates.narrow(&logits, &SamplerSettings { top_p, ..SamplerSettings::default() });
            let mut sorted = logits.clone();
            sorted.sort_unstable_by(|a, b| b.total_cmp(a));
            let weight = |logit: &f32| f64::from(logit - 19.999).exp();
            let total: f64 = sorted.iter().map(weight).sum();
            let mut sum = 0.0;
            let expected = sorted.iter().take_while(|logit| {
                let more = sum < total * f64::from(top_p);
                sum += weight(logit);
                more
            });
            let expected: Vec<f32> = expected.copied().collect();
            let kept: Vec<f32> = candidates.all.iter().map(|candidate| candidate.logit).collect();
            assert!(kept.len().abs_diff(expected.len()) <= 1, "{} {}", kept.len(), expected.len());
            let both = kept.len().min(expected.len());
            assert_eq!(kept[..both], expected[..both]);
        }
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
        let settings = SamplerSettings { repetition_penalty: 2.0, ..SamplerSettings::greedy() };
        let mut sampler = Sampler::new(settings).unwrap();
        sampler.change(&[2.0, -2.0, 2.0], &[0, 1, 0], None);
        assert_eq!(sampler.penalised, [1.0, -4.0, 2.0]);
        assert_eq!(sampler.sample(&LOGITS, &[1]), 3);
    }

    #[test]
    fn presence_and_frequency_count_what_was_generated_and_a_bias_comes_first() {
        let settings = SamplerSettings {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(2, 10.0), (99, 1.0)],
            ..SamplerSettings::greedy()
        };
        let mut sampler = Sampler::new(settings).unwrap().after_prompt(2);
        sampler.change(&[2.0, -2.0, 2.0], &[0, 0, 1, 2, 1], None);
        assert_eq!(sampler.penalised, [2.0, -3.0, 11.25]);
    }

    #[test]
    fn a_token_that_is_not_allowed_is_never_chosen() {
        for temperature in [0.0, 1.0, 100.0] {
            let settings = SamplerSettings { temperature, ..SamplerSettings::default() };
            let mut sampler = Sampler::new(settings).unwrap();
            let only: &dyn Fn(u32) -> bool = &|id| id == 2 || id == 0;
            for _ in 0..200 {
                assert!([0, 2].contains(&sampler.sample_among(&LOGITS, &[], Some(only))));
            }
        }
    }

    #[test]
    fn a_setting_outside_its_range_is_refused_by_name() {
        let all = SamplerSettings::default();
        for (settings, message) in [
            (SamplerSettings { temperature: -1.0, ..all.clone() }, "temperature is -1"),
            (SamplerSettings { temperature: f32::NAN, ..all.clone() }, "temperature is NaN"),
            (SamplerSettings { temperature: 1e-39, ..all.clone() }, "temperature is 0.00000"),
            (SamplerSettings { top_p: 0.0, ..all.clone() }, "top_p is 0"),
            (SamplerSettings { min_p: 1.5, ..all.clone() }, "min_p is 1.5"),
            (SamplerSettings { repetition_penalty: 0.0, ..all.clone() }, "repetition_penalty is 0"),
            (SamplerSettings { presence_penalty: f32::NAN, ..all.clone() }, "presence_penalty is"),
            (SamplerSettings { logit_bias: vec![(0, 101.0)], ..all }, "logit_bias is 101"),
        ] {
            let error = Sampler::new(settings).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
