//! Formulas in LaTeX as exact values: sums, products, powers, fractions, roots.

use crate::math_algebra::Algebraic;
use crate::math_ratio::Ratio;

/// Brackets inside brackets.
pub(crate) const MAX_DEPTH: usize = 40;
/// Functions of what follows them; their values are not computed.
const FUNCTIONS: [&str; 12] =
    ["sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "ln", "log", "exp"];

/// The value of a formula. `mixed`: `2\frac{1}{2}` is two and a half, and not their product.
pub(crate) fn read(text: &str, mixed: bool) -> Option<Algebraic> {
    Formula { rest: text, depth: 0, mixed }.whole()
}

/// A formula that is read from its beginning.
struct Formula<'a> {
    rest: &'a str,
    depth: usize,
    mixed: bool,
}

impl Formula<'_> {
    fn whole(mut self) -> Option<Algebraic> {
        let value = self.sum()?;
        self.skip();
        self.rest.is_empty().then_some(value)
    }

    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn takes(&mut self, sign: &str) -> bool {
        self.skip();
        let Some(rest) = self.rest.strip_prefix(sign) else { return false };
        self.rest = rest;
        true
    }

    fn sum(&mut self) -> Option<Algebraic> {
        self.depth += 1;
        (self.depth < MAX_DEPTH).then_some(())?;
        let mut sum = self.product()?;
        loop {
            if self.takes("+") {
                sum = sum.plus(&self.product()?)?;
            } else if self.takes("-") {
                sum = sum.minus(&self.product()?)?;
            } else {
                self.depth -= 1;
                return Some(sum);
            }
        }
    }

    fn product(&mut self) -> Option<Algebraic> {
        if self.takes("-") {
            let minus = Algebraic::number(Ratio::whole(-1));
            return self.product()?.times(&minus);
        }
        self.takes("+");
        let mut product = self.power()?;
        loop {
            if self.takes("*") {
                product = product.times(&self.signed()?)?;
            } else if self.takes("/") {
                product = product.over(&self.signed()?)?;
            } else if self.begins_factor() {
                product = product.times(&self.power()?)?;
            } else {
                return Some(product);
            }
        }
    }

    fn signed(&mut self) -> Option<Algebraic> {
        if !self.takes("-") {
            return self.power();
        }
        self.power()?.times(&Algebraic::number(Ratio::whole(-1)))
    }

    fn begins_factor(&mut self) -> bool {
        self.skip();
        let mut letters = self.rest.chars();
        match letters.next() {
            Some('\\') => letters.next().is_some_and(|it| it.is_ascii_alphabetic()),
            Some(letter) => letter.is_alphanumeric() || "({[.".contains(letter),
            None => false,
        }
    }

    fn power(&mut self) -> Option<Algebraic> {
        let base = self.atom()?;
        let base = if self.takes("^") { base.power(&self.argument()?)? } else { base };
        if self.takes("!") {
            return factorial(base.ratio()?.as_whole()?);
        }
        Some(base)
    }

    fn atom(&mut self) -> Option<Algebraic> {
        self.skip();
        let first = self.rest.chars().next()?;
        match first {
            '(' | '[' | '{' => {
                self.rest = &self.rest[1..];
                let value = self.sum()?;
                let close = match first {
                    '(' => ")",
                    '[' => "]",
                    _ => "}",
                };
                self.takes(close).then_some(value)
            }
            '\\' => self.command(),
            '0'..='9' | '.' => self.number(),
            letter if letter.is_alphabetic() => {
                self.rest = &self.rest[letter.len_utf8()..];
                match self.index() {
                    None if letter == 'i' => Some(Algebraic::imaginary()),
                    index => {
                        Some(Algebraic::named(format!("{letter}{}", index.unwrap_or_default())))
                    }
                }
            }
            _ => None,
        }
    }

    /// `x_1`, `x_{12}`
    fn index(&mut self) -> Option<String> {
        let rest = self.rest.strip_prefix('_')?;
        let (index, rest) = match rest.strip_prefix('{') {
            Some(inner) => inner.split_once('}')?,
            None => rest.split_at_checked(1)?,
        };
        self.rest = rest;
        Some(format!("_{index}"))
    }

    fn number(&mut self) -> Option<Algebraic> {
        let end = self.rest.find(|it: char| !it.is_ascii_digit() && it != '.');
        let (digits, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        // `12_8` is 12, as for Math-Verify.
        self.index();
        let number = Algebraic::number(Ratio::parse(digits)?);
        let is_mixed = self.mixed && self.rest.trim_start().starts_with("\\frac");
        if !is_mixed || digits.contains('.') {
            return Some(number);
        }
        let part = self.power()?;
        if part.ratio().is_some() { number.plus(&part) } else { number.times(&part) }
    }

    /// What a command or an exponent is of: a group, or one sign.
    fn argument(&mut self) -> Option<Algebraic> {
        self.skip();
        let first = self.rest.chars().next()?;
        if first.is_ascii_digit() {
            self.rest = &self.rest[1..];
            return Some(Algebraic::number(Ratio::parse(&first.to_string())?));
        }
        if first == '-' {
            return self.signed();
        }
        self.atom()
    }

    fn command(&mut self) -> Option<Algebraic> {
        let name = self.rest[1..].split(|it: char| !it.is_ascii_alphabetic()).next()?;
        self.rest = &self.rest[1 + name.len()..];
        match name {
            "frac" => {
                let above = self.argument()?;
                above.over(&self.argument()?)
            }
            "sqrt" => {
                self.skip();
                let degree = match self.rest.strip_prefix('[').and_then(|it| it.split_once(']')) {
                    Some((degree, rest)) => {
                        self.rest = rest;
                        read(degree, false)?
                    }
                    None => Algebraic::number(Ratio::whole(2)),
                };
                let inverse = Algebraic::number(Ratio::ONE).over(&degree)?;
                self.argument()?.power(&inverse)
            }
            "binom" => {
                let of = self.argument()?.ratio()?.as_whole()?;
                binomial(of, self.argument()?.ratio()?.as_whole()?)
            }
            "infty" => Some(Algebraic::named("infinity")),
            "" => None,
            function if FUNCTIONS.contains(&function) => {
                let index = self.index().unwrap_or_default();
                let squared = if self.takes("^") { Some(self.argument()?) } else { None };
                let of = self.power()?;
                let value = Algebraic::named(format!("{function}{index}({of})"));
                squared.map_or(Some(value.clone()), |by| value.power(&by))
            }
            letter if self.rest.is_empty() || !self.rest.starts_with('{') => {
                Some(Algebraic::named(format!("{letter}{}", self.index().unwrap_or_default())))
            }
            _ => None,
        }
    }
}

fn factorial(number: i128) -> Option<Algebraic> {
    (0..=30).contains(&number).then_some(())?;
    let product = (1..=number).try_fold(1i128, i128::checked_mul)?;
    Some(Algebraic::number(Ratio::whole(product)))
}

fn binomial(of: i128, choose: i128) -> Option<Algebraic> {
    (0..=60).contains(&of).then_some(())?;
    (0..=of).contains(&choose).then_some(())?;
    let value =
        (0..choose).try_fold(1i128, |value, at| Some(value.checked_mul(of - at)? / (at + 1)))?;
    Some(Algebraic::number(Ratio::whole(value)))
}
