//! Arguments of filters and methods, by place or by name as in Python.

use minijinja::value::{Kwargs, Rest, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, Value};

/// What a template passed behind the value.
pub(super) struct Arguments {
    places: std::vec::IntoIter<Value>,
    named: Kwargs,
}

impl Arguments {
    /// Those of a method.
    pub(super) fn of(values: &[Value]) -> Result<Self, Error> {
        let (places, named): (&[Value], Kwargs) = from_args(values)?;
        Ok(Self { places: Vec::from(places).into_iter(), named })
    }

    /// Those of a filter.
    pub(super) fn of_filter(values: Rest<ValueOrKwargs>) -> Result<Self, Error> {
        Self::of(&values.into_values())
    }

    /// The next one, which may be named; `None` where it is not there, or is Python's `None`.
    pub(super) fn next(&mut self, name: &str) -> Result<Option<Value>, Error> {
        let value = match self.places.next() {
            Some(value) => Some(value),
            None => self.named.get(name)?,
        };
        Ok(value.filter(|value| !value.is_none()))
    }

    /// The next one as a number.
    pub(super) fn number(&mut self, name: &str) -> Result<Option<i64>, Error> {
        self.next(name)?.map(i64::try_from).transpose()
    }

    /// The next one as a condition.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Error> {
        Ok(self.next(name)?.is_some_and(|value| value.is_true()))
    }

    /// The next one as text.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        let text = |value: Value| {
            let wrong = || invalid(format!("{name}: expected text, got {}", value.kind()));
            value.as_str().map(str::to_owned).ok_or_else(wrong)
        };
        self.next(name)?.map(text).transpose()
    }

    /// Refuses what was not asked for.
    pub(super) fn end(mut self) -> Result<(), Error> {
        if self.places.next().is_some() {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        self.named.assert_all_used()
    }
}

/// The error of a filter or method.
pub(super) fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}
