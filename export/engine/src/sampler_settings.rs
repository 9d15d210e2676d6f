//! What may be set about choosing tokens, and which values are refused.

use crate::EngineError;

/// How tokens are chosen. The default draws from the model's own distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerSettings {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Only this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// The fewest of the most likely tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Only tokens at least this likely, as a share of the most likely; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens already there; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that were generated already; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted once for each time that a token was generated already; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens, before anything else.
    pub logit_bias: Vec<(u32, f32)>,
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
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplerSettings {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    pub(crate) fn check(&self) -> Result<(), EngineError> {
        let positive = self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0;
        // Logits divided by less are infinite.
        let divides = self.temperature == 0.0 || (1e-5..=1e5).contains(&self.temperature);
        let moderate = |value: &f32| (-100.0..=100.0).contains(value);
        let all_moderate = self.logit_bias.iter().all(|(_, bias)| moderate(bias));
        let outside = self.logit_bias.iter().find(|(_, bias)| !moderate(bias));
        let bias = outside.map_or(0.0, |(_, bias)| *bias);
        let (presence, frequency) = (self.presence_penalty, self.frequency_penalty);
        let rules = [
            ("presence_penalty", presence, moderate(&presence), "from -100 to 100"),
            ("frequency_penalty", frequency, moderate(&frequency), "from -100 to 100"),
            ("logit_bias", bias, all_moderate, "from -100 to 100"),
            ("temperature", self.temperature, divides, "0, or from 0.00001 to 100000"),
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

    /// Whether logits are changed before the temperature.
    pub(crate) fn changes_logits(&self) -> bool {
        let off = |value: f32, neutral: f32| (value - neutral).abs() == 0.0;
        !(off(self.repetition_penalty, 1.0)
            && off(self.presence_penalty, 0.0)
            && off(self.frequency_penalty, 0.0)
            && self.logit_bias.is_empty())
    }
}
