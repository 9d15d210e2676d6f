//! Exact values of answers: quotients of polynomials over rational numbers, with roots of whole
//! numbers, the imaginary unit and whatever cannot be computed as atoms.
//!
//! ```text
//! \sqrt{12} / 3      2^0 · 3^½ · 2/3       roots are powers of primes below 1
//! (x+1)^2            x² + 2x + 1           one normal form for each polynomial
//! \sin(2x)           sin(2·x)              an atom, by the normal form of what it is of
//! ```
//!
//! Two values are equal where the difference of their cross products has no term. Roots of different
//! primes are independent over the rational numbers, so that decides for all of these. Numbers beyond
//! 128 bits and sums of very many terms have no value.

use std::collections::BTreeMap;
use std::fmt;

use crate::math_ratio::Ratio;

/// Terms of the largest polynomial.
const MAX_TERMS: usize = 400;
/// The largest whole exponent that is multiplied out.
const MAX_POWER: i128 = 40;
/// The largest number whose prime factors are looked for.
const MAX_FACTORED: i128 = 1_000_000_000_000;

/// What a term has powers of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Atom {
    Prime(i128),
    Imaginary,
    /// A variable, a constant such as π, or what cannot be computed, in its normal form.
    Named(String),
}

/// Atoms with their exponents, none of them 0.
type Powers = BTreeMap<Atom, Ratio>;

/// Terms with their coefficients, none of them 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Polynomial(BTreeMap<Powers, Ratio>);

/// A quotient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Algebraic {
    above: Polynomial,
    below: Polynomial,
}

impl Polynomial {
    fn of(powers: Powers, coefficient: Ratio) -> Self {
        let terms = [(powers, coefficient)].into_iter();
        Self(terms.filter(|(_, coefficient)| !coefficient.is_zero()).collect())
    }

    fn plus(&self, other: &Self) -> Option<Self> {
        let mut sum = self.clone();
        for (powers, coefficient) in &other.0 {
            sum.add(powers.clone(), *coefficient)?;
        }
        Some(sum)
    }

    fn add(&mut self, powers: Powers, coefficient: Ratio) -> Option<()> {
        let old = self.0.get(&powers).copied().unwrap_or(Ratio::ZERO);
        let new = old.plus(coefficient)?;
        if new.is_zero() {
            self.0.remove(&powers);
        } else {
            self.0.insert(powers, new);
        }
        (self.0.len() <= MAX_TERMS).then_some(())
    }

    fn times(&self, other: &Self) -> Option<Self> {
        let mut product = Self::default();
        for (left, a) in &self.0 {
            for (right, b) in &other.0 {
                let mut powers = left.clone();
                for (atom, exponent) in right {
                    let sum = powers.get(atom).copied().unwrap_or(Ratio::ZERO).plus(*exponent)?;
                    powers.insert(atom.clone(), sum);
                }
                let factor = reduce(&mut powers)?;
                product.add(powers, a.times(*b)?.times(factor)?)?;
            }
        }
        Some(product)
    }

    /// The one term, if there is no other.
    fn term(&self) -> Option<(&Powers, Ratio)> {
        let mut terms = self.0.iter();
        let (powers, coefficient) = terms.next()?;
        terms.next().is_none().then_some((powers, *coefficient))
    }
}

/// Takes whole powers of primes and of the imaginary unit out of a term.
fn reduce(powers: &mut Powers) -> Option<Ratio> {
    let mut factor = Ratio::ONE;
    for (atom, exponent) in powers.iter_mut() {
        let whole = exponent.floor();
        match atom {
            Atom::Prime(prime) => {
                factor = factor.times(Ratio::whole(*prime).power(whole)?)?;
                *exponent = exponent.plus(Ratio::whole(-whole))?;
            }
            Atom::Imaginary => {
                let turns = whole.rem_euclid(4);
                factor = factor.times(Ratio::whole(if turns > 1 { -1 } else { 1 }))?;
                *exponent = exponent.plus(Ratio::whole(turns % 2 - whole))?;
            }
            Atom::Named(_) => {}
        }
    }
    powers.retain(|_, exponent| !exponent.is_zero());
    Some(factor)
}

impl Algebraic {
    pub(crate) fn number(number: Ratio) -> Self {
        Self { above: Polynomial::of(Powers::new(), number), below: one() }
    }

    /// A variable, a constant, or something that is not computed.
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self::atom(Atom::Named(name.into()))
    }

    pub(crate) fn imaginary() -> Self {
        Self::atom(Atom::Imaginary)
    }

    fn atom(atom: Atom) -> Self {
        Self { above: Polynomial::of([(atom, Ratio::ONE)].into(), Ratio::ONE), below: one() }
    }

    pub(crate) fn plus(&self, other: &Self) -> Option<Self> {
        let (left, right) = (self.above.times(&other.below)?, other.above.times(&self.below)?);
        Some(Self { above: left.plus(&right)?, below: self.below.times(&other.below)? })
    }

    pub(crate) fn minus(&self, other: &Self) -> Option<Self> {
        self.plus(&other.times(&Self::number(Ratio::whole(-1)))?)
    }

    pub(crate) fn times(&self, other: &Self) -> Option<Self> {
        let (above, below) = (self.above.times(&other.above)?, self.below.times(&other.below)?);
        Some(Self { above, below })
    }

    pub(crate) fn over(&self, other: &Self) -> Option<Self> {
        let swapped = Self { above: other.below.clone(), below: other.above.clone() };
        (!other.above.0.is_empty()).then_some(())?;
        self.times(&swapped)
    }

    /// Its value, if it is a rational number.
    pub(crate) fn ratio(&self) -> Option<Ratio> {
        let of = |side: &Polynomial| match side.term() {
            Some((powers, coefficient)) if powers.is_empty() => Some(coefficient),
            None if side.0.is_empty() => Some(Ratio::ZERO),
            _ => None,
        };
        of(&self.above)?.times(of(&self.below)?.inverse()?)
    }

    pub(crate) fn is_same(&self, other: &Self) -> Option<bool> {
        Some(self.above.times(&other.below)? == other.above.times(&self.below)?)
    }

    /// Whether it is the other one times a rational number that is not 0.
    pub(crate) fn is_multiple(&self, other: &Self) -> Option<bool> {
        let (left, right) = (self.above.times(&other.below)?, other.above.times(&self.below)?);
        let firsts = left.0.values().next().zip(right.0.values().next());
        let Some((a, b)) = firsts else { return Some(left == right) };
        let factor = Polynomial::of(Powers::new(), a.times(b.inverse()?)?);
        Some(left == right.times(&factor)?)
    }

    pub(crate) fn power(&self, exponent: &Self) -> Option<Self> {
        let Some(by) = exponent.ratio() else {
            return Some(Self::named(format!("({self})^({exponent})")));
        };
        match by.as_whole() {
            Some(whole) if whole.abs() <= MAX_POWER => {
                let result = (0..whole.abs())
                    .try_fold(Self::number(Ratio::ONE), |all, _| all.times(self))?;
                if whole < 0 { Self::number(Ratio::ONE).over(&result) } else { Some(result) }
            }
            Some(_) => None,
            None => {
                let (above, below) = (root(&self.above, by)?, root(&self.below, by)?);
                Self { above, below: one() }.over(&Self { above: below, below: one() })
            }
        }
    }

    /// As a decimal number, where all in it are numbers.
    pub(crate) fn decimal(&self) -> Option<f64> {
        let of = |side: &Polynomial| {
            side.0.iter().try_fold(0.0, |sum, (powers, coefficient)| {
                let parts = powers.iter().map(|(atom, by)| match atom {
                    Atom::Prime(prime) => Some((*prime as f64).powf(by.decimal())),
                    Atom::Named(name) if name == "pi" => {
                        Some(std::f64::consts::PI.powf(by.decimal()))
                    }
                    Atom::Imaginary | Atom::Named(_) => None,
                });
                let product: Option<f64> = parts.product();
                Some(sum + coefficient.decimal() * product?)
            })
        };
        Some(of(&self.above)? / of(&self.below)?)
    }
}

fn one() -> Polynomial {
    Polynomial::of(Powers::new(), Ratio::ONE)
}

/// A power of a sum that is not whole.
fn root(base: &Polynomial, by: Ratio) -> Option<Polynomial> {
    let Some((powers, coefficient)) = base.term() else {
        if base.0.is_empty() {
            return (by > Ratio::ZERO).then(Polynomial::default);
        }
        // `√(4x + 4)` is `2 √(x + 1)`: what all terms share comes before the root.
        let content = base.0.values().try_fold(Ratio::ZERO, |all, it| all.common(*it))?;
        let scaled = base.times(&Polynomial::of(Powers::new(), content.inverse()?))?;
        let inner = Algebraic { above: scaled, below: one() };
        let atom = Polynomial::of([(Atom::Named(format!("({inner})")), by)].into(), Ratio::ONE);
        return constant_root(content, by)?.times(&atom);
    };
    let mut result = constant_root(coefficient, by)?;
    for (atom, exponent) in powers {
        let factor = match atom {
            // `(x²)^½` is not x for all x.
            Atom::Named(_) if *exponent != Ratio::ONE => {
                let whole = Polynomial::of([(atom.clone(), *exponent)].into(), Ratio::ONE);
                let name = Algebraic { above: whole, below: one() }.to_string();
                Polynomial::of([(Atom::Named(format!("({name})")), by)].into(), Ratio::ONE)
            }
            _ => Polynomial::of([(atom.clone(), exponent.times(by)?)].into(), Ratio::ONE),
        };
        result = result.times(&factor)?;
    }
    Some(result)
}

/// A power of a rational number: powers of its primes, and for a square root of less than 0 the
/// imaginary unit.
fn constant_root(base: Ratio, by: Ratio) -> Option<Polynomial> {
    let mut powers = Powers::new();
    let half = by.times(Ratio::whole(2))?.as_whole();
    if base < Ratio::ZERO {
        powers.insert(Atom::Imaginary, Ratio::whole(half?));
    }
    let (above, below) = base.parts();
    for (number, sign) in [(above.abs(), 1), (below, -1)] {
        for (prime, count) in prime_factors(number)? {
            powers.insert(Atom::Prime(prime), by.times(Ratio::whole(sign * count))?);
        }
    }
    let factor = reduce(&mut powers)?;
    Some(Polynomial::of(powers, factor))
}

fn prime_factors(mut number: i128) -> Option<BTreeMap<i128, i128>> {
    let mut found = BTreeMap::new();
    let mut prime = 2;
    (number <= MAX_FACTORED).then_some(())?;
    while prime * prime <= number {
        while number % prime == 0 {
            *found.entry(prime).or_insert(0) += 1;
            number /= prime;
        }
        prime += 1;
    }
    if number > 1 {
        *found.entry(number).or_insert(0) += 1;
    }
    Some(found)
}

impl fmt::Display for Algebraic {
    /// One text for each normal form.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // Divided by the first coefficient below, so that `1/2x` and `2/4x` are one text.
        let first = self.below.0.values().next().and_then(|it| it.inverse()).unwrap_or(Ratio::ONE);
        for (at, side) in [&self.above, &self.below].into_iter().enumerate() {
            f.write_str(if at == 0 { "" } else { "/" })?;
            for (powers, coefficient) in &side.0 {
                write!(f, "+{}", coefficient.times(first).unwrap_or(*coefficient))?;
                for (atom, exponent) in powers {
                    write!(f, "·{atom:?}^{exponent}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(number: i128) -> Algebraic {
        Algebraic::number(Ratio::whole(number))
    }

    fn half() -> Algebraic {
        whole(1).over(&whole(2)).unwrap()
    }

    #[test]
    fn roots_multiply_and_leave_no_trace_where_they_are_whole() {
        let root = |number| whole(number).power(&half()).unwrap();
        assert!(root(12).is_same(&whole(2).times(&root(3)).unwrap()).unwrap());
        assert!(root(2).times(&root(8)).unwrap().is_same(&whole(4)).unwrap());
        assert!(
            whole(1).over(&root(2)).unwrap().is_same(&root(2).over(&whole(2)).unwrap()).unwrap()
        );
        assert!(root(-4).is_same(&whole(2).times(&Algebraic::imaginary()).unwrap()).unwrap());
        assert!(!root(2).is_same(&root(3)).unwrap());
        assert_eq!(root(16).ratio(), Some(Ratio::whole(4)));
        assert!((root(2).decimal().unwrap() - 2.0_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn polynomials_have_one_normal_form() {
        let x = Algebraic::named("x");
        let square = x.plus(&whole(1)).unwrap().power(&whole(2)).unwrap();
        let long =
            x.times(&x).unwrap().plus(&x.plus(&x).unwrap()).unwrap().plus(&whole(1)).unwrap();
        assert!(square.is_same(&long).unwrap());
        let quotient = square.over(&x.plus(&whole(1)).unwrap()).unwrap();
        assert!(quotient.is_same(&x.plus(&whole(1)).unwrap()).unwrap());
        assert!(x.over(&whole(0)).is_none());
        assert!(long.is_multiple(&square.times(&whole(-3)).unwrap()).unwrap());
        assert!(!long.is_multiple(&x).unwrap());
        let root = |it: &Algebraic| it.power(&half()).unwrap();
        assert!(!root(&x.times(&x).unwrap()).is_same(&x).unwrap());
        let four = whole(4).times(&x).unwrap().plus(&whole(4)).unwrap();
        let two = whole(2).times(&root(&x.plus(&whole(1)).unwrap())).unwrap();
        assert!(root(&four).is_same(&two).unwrap());
    }

    #[test]
    fn what_is_too_large_has_no_value() {
        let large = whole(10).power(&whole(30)).unwrap();
        assert!(large.times(&large).is_none());
        assert!(whole(2).power(&whole(1000)).is_none());
        let sum = ["a", "b", "c", "d", "e"]
            .iter()
            .fold(whole(1), |sum, name| sum.plus(&Algebraic::named(*name)).unwrap());
        assert!(sum.power(&whole(12)).is_none());
    }
}
