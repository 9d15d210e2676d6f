//! Rational numbers of 128 bits; what does not fit has no value.

use std::cmp::Ordering;
use std::fmt;

/// A fraction in lowest terms; the number below is above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ratio {
    above: i128,
    below: i128,
}

impl Ratio {
    pub(crate) const ZERO: Self = Self::whole(0);
    pub(crate) const ONE: Self = Self::whole(1);

    pub(crate) const fn whole(number: i128) -> Self {
        Self { above: number, below: 1 }
    }

    /// `None` for 0 below, and for numbers that do not fit.
    pub(crate) fn new(above: i128, below: i128) -> Option<Self> {
        let shared = divisor(above.checked_abs()?, below.checked_abs()?);
        (below != 0).then_some(())?;
        let sign = below.signum();
        Some(Self { above: above / shared * sign, below: below / shared * sign })
    }

    /// A number as it is written, `12` or `.5`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = format!("{whole}{part}");
        let below = 10_i128.checked_pow(u32::try_from(part.len()).ok()?)?;
        Self::new(digits.parse().ok()?, below)
    }

    pub(crate) fn parts(self) -> (i128, i128) {
        (self.above, self.below)
    }

    pub(crate) fn is_zero(self) -> bool {
        self.above == 0
    }

    pub(crate) fn as_whole(self) -> Option<i128> {
        (self.below == 1).then_some(self.above)
    }

    pub(crate) fn floor(self) -> i128 {
        self.above.div_euclid(self.below)
    }

    pub(crate) fn decimal(self) -> f64 {
        self.above as f64 / self.below as f64
    }

    pub(crate) fn plus(self, other: Self) -> Option<Self> {
        let (left, right) =
            (self.above.checked_mul(other.below)?, other.above.checked_mul(self.below)?);
        Self::new(left.checked_add(right)?, self.below.checked_mul(other.below)?)
    }

    pub(crate) fn times(self, other: Self) -> Option<Self> {
        let above = self.above.checked_mul(other.above)?;
        Self::new(above, self.below.checked_mul(other.below)?)
    }

    pub(crate) fn inverse(self) -> Option<Self> {
        Self::new(self.below, self.above)
    }

    pub(crate) fn power(self, by: i128) -> Option<Self> {
        let count = u32::try_from(by.abs()).ok()?;
        let (above, below) = (self.above.checked_pow(count)?, self.below.checked_pow(count)?);
        if by < 0 { Self::new(below, above) } else { Self::new(above, below) }
    }

    /// The largest number that both are whole multiples of.
    pub(crate) fn common(self, other: Self) -> Option<Self> {
        let (left, right) =
            (self.above.checked_mul(other.below)?, other.above.checked_mul(self.below)?);
        Self::new(divisor(left.abs(), right.abs()), self.below.checked_mul(other.below)?)
    }
}

fn divisor(mut a: i128, mut b: i128) -> i128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    // 0 over 0 is caught by who asks.
    a.max(1)
}

impl PartialOrd for Ratio {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ratio {
    fn cmp(&self, other: &Self) -> Ordering {
        let product = |a: i128, b: i128| a.checked_mul(b);
        let exact = product(self.above, other.below).zip(product(other.above, self.below));
        // Only an order is needed where the products do not fit; equal ones are equal.
        exact.map_or_else(
            || (self.above, self.below).cmp(&(other.above, other.below)),
            |(left, right)| left.cmp(&right),
        )
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}/{}", self.above, self.below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_kept_in_lowest_terms() {
        let ratio = |a, b| Ratio::new(a, b).unwrap();
        assert_eq!(ratio(2, -4), ratio(-1, 2));
        assert_eq!(Ratio::parse(".25"), Some(ratio(1, 4)));
        assert_eq!(Ratio::parse("1.x"), None);
        assert_eq!(ratio(1, 2).plus(ratio(1, 3)), Some(ratio(5, 6)));
        assert_eq!((ratio(-1, 2).floor(), ratio(7, 2).floor()), (-1, 3));
        assert_eq!(ratio(2, 3).power(-2), Some(ratio(9, 4)));
        assert_eq!(ratio(4, 1).common(ratio(6, 1)), Some(ratio(2, 1)));
        assert!(ratio(1, 3) < ratio(1, 2) && ratio(-1, 2) < Ratio::ZERO);
        assert_eq!((Ratio::new(1, 0), Ratio::whole(i128::MAX).plus(Ratio::ONE)), (None, None));
    }
}
