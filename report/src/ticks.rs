//! Round numbers along an axis.

use bitnet_format::figures::{grouped, significant};

/// About `wanted` round numbers from `low` to `high`.
pub(crate) fn linear(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let step = round_step((high - low) / wanted.max(1) as f64);
    if !(step.is_finite() && step > 0.0) {
        return vec![low];
    }
    // The tolerance keeps a tick that rounding put a hair outside, such as 0.30000000000000004.
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|at| at as f64 * step).collect()
}

/// The next of 1, 2, 5, 10, … times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let share = step / power;
    let round = [1.0, 2.0, 5.0].into_iter().find(|round| share <= round * 1.0001);
    round.unwrap_or(10.0) * power
}

/// A label; whole numbers from 10,000 on as `12k` and `3.5M`, small ones without a tail of zeros.
pub(crate) fn label(value: f64) -> String {
    let size = value.abs();
    // `size >= 1e4`: numbers of four digits stay whole, with a comma.
    for (unit, name) in [(1e9, "B"), (1e6, "M"), (1e3, "k")] {
        if size >= unit && size >= 1e4 {
            return format!("{}{name}", trimmed(&format!("{:.2}", value / unit)));
        }
    }
    if size >= 1000.0 && value.fract() == 0.0 {
        let sign = if value < 0.0 { "-" } else { "" };
        return format!("{sign}{}", grouped(size as u64));
    }
    // What is left of 0 after a sum of steps.
    if size < 1e-9 {
        return "0".to_owned();
    }
    if size < 1e-2 {
        return trimmed_power(&significant(value));
    }
    trimmed(&format!("{value:.4}"))
}

fn trimmed(text: &str) -> String {
    if !text.contains('.') {
        return text.to_owned();
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `2.50e-3` as `2.5e-3`.
fn trimmed_power(text: &str) -> String {
    match text.split_once('e') {
        Some((number, power)) => format!("{}e{power}", trimmed(number)),
        None => trimmed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(linear(0.0, 900.0, 5), [0.0, 200.0, 400.0, 600.0, 800.0]);
        assert_eq!(linear(2.3, 2.9, 4), [2.400_000_000_000_000_4, 2.6, 2.800_000_000_000_000_3]);
        assert_eq!(linear(3.0, 3.0, 4), [3.0]);
        assert_eq!(linear(f64::NAN, 3.0, 4).len(), 1);
    }

    #[test]
    fn labels_have_no_digits_that_say_nothing() {
        let labels = [0.0, 0.25, 2.400_000_000_000_000_4, 1500.0, 20_000.0, 3.5e6, 0.0025, -0.5];
        let expected = ["0", "0.25", "2.4", "1,500", "20k", "3.5M", "2.5e-3", "-0.5"];
        assert_eq!(labels.map(label), expected);
    }
}
