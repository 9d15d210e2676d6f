//! The key-value pairs of a GGUF file, in file order, with getters whose errors name the key.

use std::path::{Path, PathBuf};

use super::layout::is_key;
use super::value::{Array, Value};
use crate::FormatError;

const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u32 = 32;

/// The strictest element type needs 8.
const LEAST_ALIGNMENT: u32 = 8;

/// Ordered pairs with unique keys. Equality looks at the pairs alone.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// What messages name: the file the pairs came from.
    source: PathBuf,
    pairs: Vec<(String, Value)>,
}

impl Default for Metadata {
    fn default() -> Self {
        Self { source: PathBuf::from("metadata"), pairs: Vec::new() }
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.pairs == other.pairs
    }
}

impl Metadata {
    /// No pairs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Pairs of a file; the caller has checked that no key occurs twice.
    pub(super) fn from_pairs(source: &Path, pairs: Vec<(String, Value)>) -> Self {
        Self { source: source.to_owned(), pairs }
    }

    /// Appends a pair, or replaces the value of a key that is there and leaves it where it is.
    ///
    /// # Panics
    ///
    /// When the key is not 1 to 65535 bytes of plain printable ASCII.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        assert!(is_key(&key), "{key:?} is a key");
        match self.pairs.iter_mut().find(|(other, _)| *other == key) {
            // Order is part of a file's bytes: a replaced value keeps its place, so equal models
            // make equal files.
            Some((_, old)) => *old = value,
            None => self.pairs.push((key, value)),
        }
    }

    /// Takes a pair out, if it is there.
    pub fn remove(&mut self, key: &str) {
        self.pairs.retain(|(other, _)| other != key);
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.iter().find(|(other, _)| other == key).map(|(_, value)| value)
    }

    /// All pairs in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// An integer of any width that fits.
    pub fn u32(&self, key: &str) -> Result<u32, FormatError> {
        self.required(key, self.optional_u32(key)?)
    }

    /// As [`Metadata::u32`]; `None` when the key is missing.
    pub fn optional_u32(&self, key: &str) -> Result<Option<u32>, FormatError> {
        self.picked(key, "an integer from 0 to 4294967295", |value| {
            // Programs write the same key in different widths, signed and unsigned.
            value.integer()?.try_into().ok()
        })
    }

    /// An f32.
    pub fn f32(&self, key: &str) -> Result<f32, FormatError> {
        self.required(key, self.optional_f32(key)?)
    }

    /// As [`Metadata::f32`]; `None` when the key is missing.
    pub fn optional_f32(&self, key: &str) -> Result<Option<f32>, FormatError> {
        self.picked(key, "an f32", |value| match value {
            Value::F32(number) => Some(*number),
            _ => None,
        })
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<bool, FormatError> {
        self.required(key, self.optional_bool(key)?)
    }

    /// As [`Metadata::bool`]; `None` when the key is missing.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        self.picked(key, "a boolean", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<&str, FormatError> {
        self.required(key, self.optional_str(key)?)
    }

    /// As [`Metadata::str`]; `None` when the key is missing.
    pub fn optional_str(&self, key: &str) -> Result<Option<&str>, FormatError> {
        self.picked(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<&[String], FormatError> {
        self.required(key, self.optional_strings(key)?)
    }

    /// As [`Metadata::strings`]; `None` when the key is missing.
    pub fn optional_strings(&self, key: &str) -> Result<Option<&[String]>, FormatError> {
        self.picked(key, "an array of strings", |value| match value {
            Value::Array(Array::String(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// As [`Metadata::optional_strings`], of i32.
    pub fn optional_i32s(&self, key: &str) -> Result<Option<&[i32]>, FormatError> {
        self.picked(key, "an array of i32", |value| match value {
            Value::Array(Array::I32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// As [`Metadata::optional_strings`], of f32.
    pub fn optional_f32s(&self, key: &str) -> Result<Option<&[f32]>, FormatError> {
        self.picked(key, "an array of f32", |value| match value {
            Value::Array(Array::F32(numbers)) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// Tensor data starts at multiples of this many bytes.
    pub(super) fn alignment(&self) -> Result<u64, FormatError> {
        match self.get(ALIGNMENT_KEY) {
            None => Ok(DEFAULT_ALIGNMENT.into()),
            // Here a u32 and no other: the specification names the type.
            Some(&Value::U32(n)) if n.is_power_of_two() && n >= LEAST_ALIGNMENT => Ok(n.into()),
            Some(other) => {
                let found = other.describe();
                let what = format!("is {found}; expected a power of two from 8, as a u32");
                Err(self.error(ALIGNMENT_KEY, what))
            }
        }
    }

    /// An error about one of the pairs, for checks outside this module.
    pub fn error(&self, key: &str, what: impl Into<String>) -> FormatError {
        FormatError::config(&self.source, key, what)
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, FormatError> {
        value.ok_or_else(|| self.error(key, "is missing"))
    }

    fn picked<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        pick: fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FormatError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || self.error(key, format!("is {}; expected {expected}", value.describe()));
        pick(value).ok_or_else(wrong).map(Some)
    }
}

/// An f32 as the f64 that its shortest decimal names: 1e-5 and not 9.99999974e-6.
pub(super) fn short(value: f32) -> f64 {
    value.to_string().parse().expect("a printed number is a number")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let mut metadata = Metadata::new();
        metadata.insert("count", Value::I64(7));
        metadata.insert("large", Value::U64(1 << 32));
        metadata.insert("negative", Value::I8(-1));
        metadata.insert("eps", 0.5);
        metadata.insert("double", Value::F64(0.5));
        metadata.insert("flag", true);
        metadata.insert("name", "bitnet");
        metadata.insert("tokens", vec!["a".to_owned(), String::new()]);
        metadata.insert("types", vec![1, -2]);
        metadata.insert("scores", vec![1.5]);
        metadata
    }

    fn message<T: std::fmt::Debug>(result: Result<T, FormatError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn values_come_back_by_key_and_type() {
        let metadata = sample();
        assert_eq!(metadata.u32("count").unwrap(), 7);
        assert_eq!(metadata.f32("eps").unwrap(), 0.5);
        assert!(metadata.bool("flag").unwrap());
        assert_eq!(metadata.str("name").unwrap(), "bitnet");
        assert_eq!(metadata.strings("tokens").unwrap(), ["a", ""]);
        assert_eq!(metadata.optional_i32s("types").unwrap(), Some(&[1, -2][..]));
        assert_eq!(metadata.optional_f32s("scores").unwrap(), Some(&[1.5][..]));
    }

    #[test]
    fn alignment_defaults_to_32_and_must_be_a_sane_u32() {
        let mut metadata = Metadata::new();
        assert_eq!(metadata.alignment().unwrap(), 32);
        for good in [8u32, 64, 4096, 1 << 31] {
            metadata.insert(ALIGNMENT_KEY, good);
            assert_eq!(metadata.alignment().unwrap(), u64::from(good));
        }
        let bad = [0, 1, 4, 12, 33].map(Value::U32);
        let wrong_type = [Value::U64(32), Value::I32(32), Value::F32(32.0), Value::from("32")];
        for value in bad.into_iter().chain(wrong_type) {
            metadata.insert(ALIGNMENT_KEY, value);
            let error = metadata.alignment().unwrap_err().to_string();
            assert!(error.starts_with("metadata [general.alignment]: is "), "{error}");
            assert!(error.ends_with("; expected a power of two from 8, as a u32"), "{error}");
        }
    }

    #[test]
    fn a_missing_key_is_an_error_only_where_it_is_required() {
        let metadata = sample();
        assert_eq!(message(metadata.u32("x")), "metadata [x]: is missing");
        assert_eq!(metadata.optional_u32("x").unwrap(), None);
        assert_eq!(metadata.optional_f32("x").unwrap(), None);
        assert_eq!(metadata.optional_bool("x").unwrap(), None);
        assert_eq!(metadata.optional_str("x").unwrap(), None);
        assert_eq!(metadata.optional_strings("x").unwrap(), None);
    }

    #[test]
    fn a_wrong_type_names_both() {
        let metadata = sample();
        let integer = "expected an integer from 0 to 4294967295";
        let large = format!("metadata [large]: is 4294967296 (u64); {integer}");
        assert_eq!(message(metadata.u32("large")), large);
        let negative = format!("metadata [negative]: is -1 (i8); {integer}");
        assert_eq!(message(metadata.u32("negative")), negative);
        let float = message(metadata.u32("eps"));
        assert_eq!(float, format!("metadata [eps]: is 0.5 (f32); {integer}"));
        let double = message(metadata.f32("double"));
        assert_eq!(double, "metadata [double]: is 0.5 (f64); expected an f32");
        assert_eq!(
            message(metadata.strings("types")),
            "metadata [types]: is an array of 2 i32; expected an array of strings"
        );
        assert_eq!(
            message(metadata.optional_f32s("types")),
            "metadata [types]: is an array of 2 i32; expected an array of f32"
        );
        assert_eq!(message(metadata.str("flag")), "metadata [flag]: is true; expected a string");
        assert!(metadata.bool("name").is_err() && metadata.optional_i32s("scores").is_err());
    }

    #[test]
    fn inserting_twice_keeps_the_position() {
        let mut metadata = sample();
        metadata.insert("count", 8);
        assert_eq!(metadata.len(), sample().len());
        assert_eq!(metadata.iter().next(), Some(("count", &Value::U32(8))));
    }

    #[test]
    #[should_panic(expected = "is a key")]
    fn a_key_with_a_space_is_a_bug() {
        Metadata::new().insert("a b", 1);
    }
}
