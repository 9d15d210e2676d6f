//! Scaled rotary frequencies: how a model that was trained on short texts turns the positions of
//! longer ones. The kinds, their keys and the order of every operation are those of transformers 5
//! (`modeling_rope_utils.py`), in f32 as torch computes them.
//!
//! | kind | frequency `f` becomes |
//! |---|---|
//! | `linear` | `f / factor` |
//! | `dynamic` | that of a larger base, where a sequence is longer than `max_position_embeddings` |
//! | `llama3` | `f` for short waves, `f / factor` for long ones, a mixture between |
//! | `yarn` | the same by pairs (arXiv 2309.00071); cosines and sines are multiplied too |

use serde::{Deserialize, Serialize};

/// A way to scale rotary positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// Positions are divided.
    Linear {
        /// By this.
        factor: f64,
    },
    /// The base grows with a sequence that is longer than `max_position_embeddings`.
    Dynamic {
        /// How fast.
        factor: f64,
    },
    /// Llama 3.1's mixture.
    Llama3 {
        /// What long waves are divided by.
        factor: f64,
        /// Waves longer than the original context over this are long.
        low_freq_factor: f64,
        /// Waves shorter than the original context over this are short.
        high_freq_factor: f64,
        /// The context before it was scaled; `None`: `max_position_embeddings`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        original_max_position_embeddings: Option<usize>,
    },
    /// Yet another `RoPE` extension.
    Yarn(YarnScaling),
}

/// The keys of `yarn`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct YarnScaling {
    /// What slow pairs are divided by.
    pub factor: f64,
    /// The context before it was scaled; `None`: `max_position_embeddings`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<usize>,
    /// What cosines and sines are multiplied by; `None`: follows from the factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    /// Pairs that turn more often than this in the original context stay as they are.
    #[serde(default = "thirty_two")]
    pub beta_fast: f64,
    /// Pairs that turn less often than this are divided.
    #[serde(default = "one")]
    pub beta_slow: f64,
    /// With `mscale_all_dim`, another way to the attention factor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale: Option<f64>,
    /// See `mscale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mscale_all_dim: Option<f64>,
    /// Whether the bounds between fast and slow are whole numbers of pairs.
    #[serde(default = "yes")]
    pub truncate: bool,
}

fn thirty_two() -> f64 {
    32.0
}
fn one() -> f64 {
    1.0
}
fn yes() -> bool {
    true
}

/// Frequencies without scaling: `1 / θ^(2j/D)` for each pair.
pub(crate) fn unscaled(theta: f32, head_dim: usize) -> Vec<f32> {
    powers(theta, head_dim).map(|power| 1.0 / power).collect()
}

/// torch rounds the power correctly here; so does the f64 power, rounded once more.
fn powers(theta: f32, head_dim: usize) -> impl Iterator<Item = f32> {
    let power = move |j: usize| {
        let exponent = (2 * j) as f32 / head_dim as f32;
        f64::from(theta).powf(f64::from(exponent)) as f32
    };
    (0..head_dim / 2).map(power)
}

/// What frequencies depend on besides the scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RopeShape {
    pub(crate) theta: f64,
    pub(crate) head_dim: usize,
    /// `max_position_embeddings`
    pub(crate) context: usize,
}

impl RopeScaling {
    /// Its name in a config.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Llama3 { .. } => "llama3",
            Self::Yarn(_) => "yarn",
        }
    }

    /// What positions are scaled by.
    pub fn factor(&self) -> f64 {
        match self {
            Self::Linear { factor } | Self::Dynamic { factor } | Self::Llama3 { factor, .. } => {
                *factor
            }
            Self::Yarn(yarn) => yarn.factor,
        }
    }

    /// The longest context of a model that was made for `context` positions: the factor times as
    /// many where the kind counts `context` without it.
    pub(crate) fn longest_context(&self, context: usize) -> usize {
        let times = |tokens: usize| (tokens as f64 * self.factor()) as usize;
        match self {
            Self::Linear { .. } | Self::Dynamic { .. } => times(context),
            Self::Llama3 { .. } => context,
            Self::Yarn(yarn) => context.max(times(yarn.original(context))),
        }
    }

    /// Whether its numbers make sense.
    pub(crate) fn check(&self, head_dim: usize) -> Result<(), String> {
        let wrong = |key: &str, expected: &str, got: f64| {
            Err(format!("rope_scaling.{key} must be {expected}, got {got}"))
        };
        let factor = self.factor();
        if !(factor.is_finite() && (1.0..=65536.0).contains(&factor)) {
            return wrong("factor", "a number from 1 to 65536", factor);
        }
        match self {
            Self::Dynamic { .. } if head_dim < 4 => {
                Err(format!("head_dim must be at least 4 for rope_type dynamic, got {head_dim}"))
            }
            Self::Linear { .. } | Self::Dynamic { .. } => Ok(()),
            Self::Llama3 { low_freq_factor: low, high_freq_factor: high, .. } => {
                if !(low.is_finite() && *low > 0.0) {
                    return wrong("low_freq_factor", "a positive number", *low);
                }
                if !(high.is_finite() && high > low) {
                    return wrong("high_freq_factor", "larger than low_freq_factor", *high);
                }
                check_original(self.original())
            }
            Self::Yarn(yarn) => yarn.check(),
        }
    }

    fn original(&self) -> Option<usize> {
        match self {
            Self::Linear { .. } | Self::Dynamic { .. } => None,
            Self::Llama3 { original_max_position_embeddings: original, .. } => *original,
            Self::Yarn(yarn) => yarn.original_max_position_embeddings,
        }
    }

    /// The frequencies of a sequence of `tokens` tokens, and what cosines and sines are multiplied
    /// by.
    pub(crate) fn frequencies(&self, shape: RopeShape, tokens: usize) -> (Vec<f32>, f32) {
        let RopeShape { theta, head_dim, context } = shape;
        let base = unscaled(theta as f32, head_dim);
        match self {
            Self::Linear { factor } => {
                (base.into_iter().map(|f| f / *factor as f32).collect(), 1.0)
            }
            Self::Dynamic { .. } if tokens <= context => (base, 1.0),
            Self::Dynamic { factor } => {
                (unscaled(grown_base(shape, *factor, tokens), head_dim), 1.0)
            }
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, .. } => {
                let original = self.original().unwrap_or(context) as f64;
                let mix = |f| llama3(f, [*factor, *low, *high], original);
                (base.into_iter().map(mix).collect(), 1.0)
            }
            Self::Yarn(yarn) => (yarn.frequencies(shape), yarn.attention_factor() as f32),
        }
    }
}

/// The base of a long sequence under `dynamic`, in f32 as torch computes it from a length.
fn grown_base(shape: RopeShape, factor: f64, tokens: usize) -> f32 {
    // `θ · (factor · n / context − (factor − 1)) ^ (D / (D − 2))`: 1 at the end of the context, so
    // that the frequencies go on from the unscaled ones without a jump.
    let stretched = factor as f32 * tokens as f32 / shape.context as f32 - (factor - 1.0) as f32;
    let dim = shape.head_dim as f64;
    let power = f64::from(stretched).powf(f64::from((dim / (dim - 2.0)) as f32)) as f32;
    shape.theta as f32 * power
}

fn llama3(frequency: f32, [factor, low, high]: [f64; 3], original: f64) -> f32 {
    let factor32 = factor as f32;
    // torch divides a number by a tensor as its reciprocal times the number.
    let wave = (1.0 / frequency) * (2.0 * std::f64::consts::PI) as f32;
    // Three ranges of wavelengths, against the context the model was made for:
    //
    //    short (many turns in it)    frequency                    unchanged
    //    between                     a mix of both, by `smooth`
    //    long (not one turn)         frequency / factor           as with linear scaling
    let is_long = wave > (original / low) as f32;
    let divided = if is_long { frequency / factor32 } else { frequency };
    if wave < (original / high) as f32 || is_long {
        return divided;
    }
    let smooth = ((1.0 / wave) * original as f32 - low as f32) / (high - low) as f32;
    (1.0 - smooth) * divided / factor32 + smooth * divided
}

fn check_original(original: Option<usize>) -> Result<(), String> {
    match original {
        Some(0) => {
            Err("rope_scaling.original_max_position_embeddings must be at least 1, got 0".into())
        }
        _ => Ok(()),
    }
}

impl YarnScaling {
    fn original(&self, context: usize) -> usize {
        self.original_max_position_embeddings.unwrap_or(context)
    }

    fn check(&self) -> Result<(), String> {
        let positive = [
            ("attention_factor", self.attention_factor.unwrap_or(1.0)),
            ("beta_fast", self.beta_fast),
            ("beta_slow", self.beta_slow),
            ("mscale", self.mscale.unwrap_or(1.0)),
            ("mscale_all_dim", self.mscale_all_dim.unwrap_or(1.0)),
        ];
        match positive.into_iter().find(|(_, number)| !(number.is_finite() && *number > 0.0)) {
            Some((key, number)) => {
                Err(format!("rope_scaling.{key} must be a positive number, got {number}"))
            }
            None => check_original(self.original_max_position_embeddings),
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        let of = |mscale: f64| {
            // The paper's `√(1/t) = 0.1 · ln(s) + 1`.
            if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 }
        };
        self.attention_factor.unwrap_or_else(|| match (self.mscale, self.mscale_all_dim) {
            (Some(mscale), Some(all)) => of(mscale) / of(all),
            _ => of(1.0),
        })
    }

    fn frequencies(&self, shape: RopeShape) -> Vec<f32> {
        let (low, high) = self.bounds(shape);
        // As in transformers: bounds that fall together must not divide by 0.
        let span = if (high - low).abs() > 0.0 { high - low } else { 0.001 };
        let all = powers(shape.theta as f32, shape.head_dim).enumerate();
        let mixed = all.map(|(pair, power)| {
            let ramp = ((pair as f32 - low as f32) / span as f32).clamp(0.0, 1.0);
            let kept = 1.0 - ramp;
            1.0 / (self.factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
        });
        mixed.collect()
    }

    /// The pairs between which frequencies are mixed.
    fn bounds(&self, shape: RopeShape) -> (f64, f64) {
        let (dim, original) = (shape.head_dim as f64, self.original(shape.context) as f64);
        let pair = |turns: f64| {
            // Solves `turns · wavelength = original` for the pair: `j = D · ln(original / (2π ·
            // turns)) / (2 ln θ)`.
            let wave = original / (turns * 2.0 * std::f64::consts::PI);
            dim * wave.ln() / (2.0 * shape.theta.ln())
        };
        let (low, high) = (pair(self.beta_fast), pair(self.beta_slow));
        let (low, high) = if self.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        (low.max(0.0), high.min(dim - 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RopeScaling, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_kind_reads_its_own_keys_and_no_others() {
        let linear = parse("rope_type = \"linear\"\nfactor = 2.0").unwrap();
        assert_eq!(linear, RopeScaling::Linear { factor: 2.0 });
        let yarn = parse("rope_type = \"yarn\"\nfactor = 4.0").unwrap();
        let RopeScaling::Yarn(keys) = &yarn else { panic!("{yarn:?}") };
        assert!((keys.beta_fast, keys.beta_slow, keys.truncate) == (32.0, 1.0, true));
        assert!(parse("rope_type = \"linear\"\nfactor = 2.0\nbeta_fast = 1.0").is_err());
        assert!(parse("rope_type = \"longrope\"\nfactor = 2.0").is_err());
        for scaling in [linear, yarn] {
            assert_eq!(parse(&toml::to_string(&scaling).unwrap()).unwrap(), scaling);
        }
    }

    #[test]
    fn numbers_that_mean_nothing_are_refused_by_key() {
        for (text, key) in [
            ("rope_type = \"linear\"\nfactor = 0.5", "rope_scaling.factor"),
            ("rope_type = \"dynamic\"\nfactor = nan", "rope_scaling.factor"),
            ("rope_type = \"yarn\"\nfactor = 2.0\nbeta_slow = -1.0", "rope_scaling.beta_slow"),
            (
                "rope_type = \"llama3\"\nfactor = 2.0\nlow_freq_factor = 4.0\nhigh_freq_factor = 4.0",
                "rope_scaling.high_freq_factor",
            ),
        ] {
            let error = parse(text).unwrap().check(8).unwrap_err();
            assert!(error.starts_with(key), "{error}");
        }
        assert!(RopeScaling::Dynamic { factor: 2.0 }.check(2).unwrap_err().starts_with("head_dim"));
    }

    #[test]
    fn a_dynamic_base_grows_only_behind_the_context() {
        let shape = RopeShape { theta: 1e4, head_dim: 8, context: 16 };
        let of = |tokens| RopeScaling::Dynamic { factor: 2.0 }.frequencies(shape, tokens).0;
        assert_eq!(of(16), unscaled(1e4, 8));
        assert!(of(17)[1] < of(16)[1] && of(32)[3] < of(17)[3]);
    }

    #[test]
    fn the_longest_context_counts_the_factor_once() {
        let yarn =
            parse("rope_type = \"yarn\"\nfactor = 4.0\noriginal_max_position_embeddings = 8");
        assert_eq!(RopeScaling::Linear { factor: 2.5 }.longest_context(16), 40);
        let yarn = yarn.unwrap();
        assert_eq!((yarn.longest_context(32), yarn.longest_context(8)), (32, 32));
    }
}
