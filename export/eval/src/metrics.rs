//! From the values of single rows to a score with its standard error, as the harness aggregates
//! them.

use std::thread;

use crate::mersenne::PythonRandom;
use crate::squad_answers::{SpanScore, best_percent};

/// Bootstrap samples of the harness, in portions with a seed each.
const BOOTSTRAPS: usize = 100_000;
const PORTION: usize = 1000;

/// What a row contributes to a metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricValue {
    /// A score.
    Number(f64),
    /// A sum of log-probabilities and what it is divided by.
    Weighted(f64, f64),
    /// The right class and the chosen one.
    Classes(i64, i64),
    /// A score that counts or not by a threshold on the probability of no answer.
    Span(SpanScore),
}

/// How rows make a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// The mean.
    Mean,
    /// `exp` of the negative mean.
    Perplexity,
    /// `exp` of the negative weighted mean.
    WeightedPerplexity,
    /// The negative weighted mean in bits.
    BitsPerByte,
    /// F1 of class 1.
    F1,
    /// Matthews' correlation coefficient.
    Matthews,
    /// The sum of all over the sum of their weights.
    Share,
    /// A hundred times the mean.
    Percent,
    /// A hundred times the mean at the best threshold on the probability of no answer.
    BestPercent,
}

impl Aggregation {
    /// By its name in task files.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "mean" => Self::Mean,
            "perplexity" => Self::Perplexity,
            "weighted_perplexity" => Self::WeightedPerplexity,
            "bits_per_byte" => Self::BitsPerByte,
            "f1" => Self::F1,
            "matthews_corrcoef" => Self::Matthews,
            // IFEval's: all instructions of all rows together, not a mean of rows.
            "utils.agg_inst_level_acc" => Self::Share,
            "percent" => Self::Percent,
            "best_percent" => Self::BestPercent,
            _ => return None,
        })
    }

    /// Whether the score is in percent already; all others are shares or no shares at all.
    pub fn is_percent(self) -> bool {
        matches!(self, Self::Percent | Self::BestPercent)
    }

    /// What the harness takes for a metric whose task file names none.
    pub fn of_metric(metric: &str) -> Self {
        match metric {
            "perplexity" => Self::Perplexity,
            "word_perplexity" | "byte_perplexity" => Self::WeightedPerplexity,
            "bits_per_byte" => Self::BitsPerByte,
            "f1" => Self::F1,
            "mcc" => Self::Matthews,
            _ => Self::Mean,
        }
    }

    /// The score of at least one row.
    pub fn score(self, values: &[MetricValue]) -> f64 {
        match self {
            Self::Mean => mean(values),
            Self::Perplexity => (-mean(values)).exp(),
            Self::WeightedPerplexity => (-weighted_mean(values)).exp(),
            Self::BitsPerByte => -weighted_mean(values) / std::f64::consts::LN_2,
            Self::F1 => f1(confusion(values)),
            Self::Matthews => matthews(confusion(values)),
            Self::Share => weighted_mean(values),
            Self::Percent => 100.0 * values.iter().map(number).sum::<f64>() / values.len() as f64,
            Self::BestPercent => best_percent(&values.iter().map(span).collect::<Vec<_>>()),
        }
    }

    /// Its standard error: of a mean by the formula, of anything else by the harness's own
    /// bootstrap samples; `None` where the harness has none.
    pub fn stderr(self, values: &[MetricValue]) -> Option<f64> {
        match self {
            _ if values.len() < 2 => None,
            Self::Mean => {
                let numbers: Vec<f64> = values.iter().map(number).collect();
                Some(sample_deviation(&numbers) / (numbers.len() as f64).sqrt())
            }
            Self::Perplexity | Self::F1 | Self::Matthews => Some(self.bootstrap(values)),
            Self::WeightedPerplexity
            | Self::BitsPerByte
            | Self::Share
            | Self::Percent
            | Self::BestPercent => None,
        }
    }

    fn bootstrap(self, values: &[MetricValue]) -> f64 {
        let portions = BOOTSTRAPS / PORTION;
        // Each portion has its seed, so the number of threads changes no bit.
        let workers = thread::available_parallelism().map_or(1, usize::from).min(portions);
        let mut scores = vec![0.0; BOOTSTRAPS];
        thread::scope(|scope| {
            let shares = scores.chunks_mut(portions.div_ceil(workers) * PORTION).enumerate();
            for (worker, share) in shares {
                let first = worker * portions.div_ceil(workers);
                scope.spawn(move || {
                    for (seed, scores) in (first..).zip(share.chunks_mut(PORTION)) {
                        self.resample(values, seed as u32, scores);
                    }
                });
            }
        });
        sample_deviation(&scores)
    }

    fn resample(self, values: &[MetricValue], seed: u32, scores: &mut [f64]) {
        let mut random = PythonRandom::new(seed);
        let mut drawn = Vec::with_capacity(values.len());
        for score in scores {
            drawn.clear();
            drawn.extend((0..values.len()).map(|_| values[random.choice(values.len())]));
            *score = self.score(&drawn);
        }
    }
}

/// The standard error of a group's mean weighted by size: the harness's pooled formula.
pub(crate) fn pooled_stderr(parts: &[(f64, usize)]) -> f64 {
    let rows: usize = parts.iter().map(|(_, size)| size).sum();
    let pooled =
        parts.iter().map(|(error, size)| (*size as f64 - 1.0) * error * error * *size as f64);
    // A task's variance is its standard error squared times its size; with `size - 1` degrees of
    // freedom each they are pooled, and divided by all rows they are the error of the mean again.
    (pooled.sum::<f64>() / (rows - parts.len()) as f64 / rows as f64).sqrt()
}

/// The standard error of a group's plain mean.
pub(crate) fn unweighted_stderr(parts: &[(f64, usize)]) -> f64 {
    parts.iter().map(|(error, _)| error * error).sum::<f64>().sqrt() / parts.len() as f64
}

fn number(value: &MetricValue) -> f64 {
    match value {
        MetricValue::Number(number) | MetricValue::Weighted(number, _) => *number,
        MetricValue::Classes(gold, found) => f64::from(gold == found),
        MetricValue::Span(span) => span.score,
    }
}

fn span(value: &MetricValue) -> SpanScore {
    match value {
        MetricValue::Span(span) => *span,
        // Nothing tells whether there is an answer: the score counts at every threshold.
        _ => {
            SpanScore { score: number(value), has_answer: true, is_answered: true, no_answer: 0.0 }
        }
    }
}

fn mean(values: &[MetricValue]) -> f64 {
    values.iter().map(number).sum::<f64>() / values.len() as f64
}

fn weighted_mean(values: &[MetricValue]) -> f64 {
    let weight = |value: &MetricValue| match value {
        MetricValue::Weighted(_, weight) => *weight,
        _ => 1.0,
    };
    values.iter().map(number).sum::<f64>() / values.iter().map(weight).sum::<f64>()
}

/// `sqrt(Σ (x − mean)² / (n − 1))`
pub(crate) fn sample_deviation(values: &[f64]) -> f64 {
    // Bessel's correction, as in `lm_eval.api.metrics.sample_stddev`.
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

/// True and false positives, false and true negatives of class 1.
fn confusion(values: &[MetricValue]) -> [f64; 4] {
    let mut counts = [0.0; 4];
    for value in values {
        if let MetricValue::Classes(gold, found) = value {
            // Places 0 and 1: class 1 was found, rightly and wrongly; 2 and 3: another was.
            counts[2 * usize::from(*found != 1) + usize::from((*gold == 1) != (*found == 1))] +=
                1.0;
        }
    }
    let [true_positive, false_positive, true_negative, false_negative] = counts;
    [true_positive, false_positive, false_negative, true_negative]
}

fn f1([tp, fp, fneg, _]: [f64; 4]) -> f64 {
    let both = 2.0 * tp + fp + fneg;
    if both == 0.0 { 0.0 } else { 2.0 * tp / both }
}

fn matthews([tp, fp, fneg, tn]: [f64; 4]) -> f64 {
    let below = ((tp + fp) * (tp + fneg) * (tn + fp) * (tn + fneg)).sqrt();
    if below == 0.0 { 0.0 } else { (tp * tn - fp * fneg) / below }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }

    #[test]
    fn scores_and_errors_are_those_of_the_harness() {
        let numbers = [1.0, 0.0, 1.0, 1.0].map(MetricValue::Number);
        near(Aggregation::Mean.score(&numbers), 0.75);
        near(Aggregation::Mean.stderr(&numbers).unwrap(), 0.25);
        let logs = [-1.0, -2.0, -3.5, -0.25, -1.5].map(MetricValue::Number);
        near(Aggregation::Perplexity.score(&logs), 5.206_979_827_179_849);
        near(Aggregation::Perplexity.stderr(&logs).unwrap(), PERPLEXITY_STDERR);
        let weighted = [MetricValue::Weighted(-6.0, 3.0), MetricValue::Weighted(-2.0, 1.0)];
        near(Aggregation::WeightedPerplexity.score(&weighted), 2.0_f64.exp());
        near(Aggregation::Share.score(&weighted), -2.0);
        near(Aggregation::BitsPerByte.score(&weighted), 2.0 / std::f64::consts::LN_2);
        let classes =
            [(1, 1), (1, 0), (0, 0), (0, 1), (1, 1)].map(|(g, f)| MetricValue::Classes(g, f));
        near(Aggregation::F1.score(&classes), 2.0 / 3.0);
        near(Aggregation::Matthews.score(&classes), 1.0 / 6.0);
        near(pooled_stderr(&[(0.1, 10), (0.2, 5)]), POOLED);
        near(unweighted_stderr(&[(0.3, 10), (0.4, 5)]), 0.25);
    }

    /// What SQuAD's script computes of these rows (`scripts/eval_golden.py`).
    #[test]
    fn the_best_threshold_is_that_of_the_script() {
        let cases: serde_json::Value =
            serde_json::from_str(include_str!("../tests/golden.json")).unwrap();
        for case in cases["squad_rows"].as_array().unwrap() {
            let rows = case["rows"].as_array().unwrap();
            let values: Vec<MetricValue> = rows
                .iter()
                .map(|row| {
                    MetricValue::Span(SpanScore {
                        score: row[0].as_f64().unwrap(),
                        has_answer: row[1].as_bool().unwrap(),
                        is_answered: row[2].as_bool().unwrap(),
                        no_answer: row[3].as_f64().unwrap(),
                    })
                })
                .collect();
            assert_eq!(Aggregation::Percent.score(&values), case["percent"].as_f64().unwrap());
            assert_eq!(Aggregation::BestPercent.score(&values), case["best"].as_f64().unwrap());
            assert_eq!(Aggregation::BestPercent.stderr(&values), None);
        }
        let plain = [0.5, 1.0].map(MetricValue::Number);
        assert_eq!(Aggregation::BestPercent.score(&plain), 75.0);
    }

    // 5.206979827179849
    const PERPLEXITY_STDERR: f64 = 3.205_252_649_978_648;
    const POOLED: f64 = 0.093_369_956_184_785_27;
}
