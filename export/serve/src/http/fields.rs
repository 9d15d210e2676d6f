//! Reads the fields of a body one by one; whatever is left in the end is refused by name.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields of a JSON object that are not read yet. `null` counts as absent.
#[derive(Debug)]
pub(crate) struct BodyFields {
    /// Where the object stands in the body: empty, or `messages[2].`.
    place: String,
    map: Map<String, Value>,
}

impl BodyFields {
    /// The fields of a body.
    pub(crate) fn new(map: Map<String, Value>) -> Self {
        Self { place: String::new(), map }
    }

    /// The fields of an object inside, which is named `name`.
    pub(crate) fn inside(name: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { place: format!("{name}."), map }),
            other => Err(expected(name, "an object", &other)),
        }
    }

    /// The full name of a field.
    pub(crate) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.place)
    }

    /// An error about a field.
    pub(crate) fn error(&self, field: &str, message: impl Into<String>) -> ApiError {
        ApiError::field(&self.name(field), message)
    }

    /// Any value.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        // Taken out: what is left in the end is what nobody has read. The order of the others
        // stays, so that the first of them is named.
        self.map.shift_remove(field).filter(|value| !value.is_null())
    }

    /// Those of some fields that say something, as they are; they can still be taken.
    pub(crate) fn copies(&self, fields: &[&str]) -> Map<String, Value> {
        let said = |field: &&str| self.map.get(*field).filter(|value| !value.is_null());
        let copy = |field: &&str| Some(((*field).to_owned(), said(field)?.clone()));
        fields.iter().filter_map(copy).collect()
    }

    /// A value that must be there.
    pub(crate) fn require(&mut self, field: &str) -> Result<Value, ApiError> {
        self.take(field).ok_or_else(|| self.error(field, "is missing; expected a value"))
    }

    pub(crate) fn flag(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(expected(&self.name(field), "true or false", &other)),
        }
    }

    pub(crate) fn text(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(expected(&self.name(field), "a string", &other)),
        }
    }

    /// A whole number in a range.
    pub(crate) fn integer(
        &mut self,
        field: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let number = value.as_i64().filter(|number| range.contains(number));
        let wanted = || format!("a whole number from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| expected(&self.name(field), &wanted(), &value))
    }

    /// A count in a range.
    pub(crate) fn count(
        &mut self,
        field: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<usize>, ApiError> {
        let range = *range.start() as i64..=*range.end() as i64;
        Ok(self.integer(field, range)?.map(|count| count as usize))
    }

    /// A number in a range.
    pub(crate) fn number(
        &mut self,
        field: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let number = value.as_f64().filter(|number| range.contains(number));
        let wanted = || format!("a number from {} to {}", range.start(), range.end());
        let number = number.ok_or_else(|| expected(&self.name(field), &wanted(), &value))?;
        Ok(Some(number as f32))
    }

    /// One string or a list of some.
    pub(crate) fn texts(&mut self, field: &str) -> Result<Vec<String>, ApiError> {
        let name = self.name(field);
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(expected(&name, "a string or a list of strings", &other)),
        };
        match self.take(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.into_iter().map(text).collect(),
            Some(value) => Ok(vec![text(value)?]),
        }
    }

    /// Drops fields that change nothing here: notes for those who keep records of requests.
    pub(crate) fn drop_notes(&mut self, fields: &[&str]) {
        for field in fields {
            self.map.shift_remove(*field);
        }
    }

    /// Accepts a field at the value that says what is done anyway.
    pub(crate) fn only(&mut self, field: &str, neutral: &[Value]) -> Result<(), ApiError> {
        match self.take(field) {
            Some(value) if !neutral.contains(&value) => {
                Err(self.error(field, format!("is not supported, got {}", shown(&value))))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what was not read.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let left = self.map.iter().find(|(_, value)| !value.is_null());
        match left {
            Some((field, _)) => Err(self.error(field, "is not supported by this server")),
            None => Ok(()),
        }
    }
}

/// The error of a value of the wrong kind or size.
pub(crate) fn expected(name: &str, wanted: &str, got: &Value) -> ApiError {
    ApiError::field(name, format!("expected {wanted}, got {}", shown(got)))
}

/// A value, cut to what an error can hold.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        // By characters: a cut inside of one would panic.
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// How deep values lie in each other.
pub(crate) fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> BodyFields {
        let Value::Object(map) = value else { panic!("an object") };
        BodyFields::new(map)
    }

    #[test]
    fn values_are_read_once_and_the_rest_is_refused_by_name() {
        let mut fields = fields(json!({"a": 1, "b": null, "c": ["x"], "d": 2, "e": null}));
        assert_eq!(fields.count("a", 0..=3).unwrap(), Some(1));
        assert_eq!(fields.text("b").unwrap(), None);
        assert_eq!(fields.texts("c").unwrap(), ["x"]);
        assert_eq!(fields.finish().unwrap_err().param.unwrap(), "d");
    }

    #[test]
    fn a_wrong_value_is_named_with_what_was_expected() {
        for value in [json!(-1), json!(4), json!(1.5), json!("1"), json!(1e30), json!([])] {
            let error = fields(json!({"n": value})).count("n", 0..=3).unwrap_err();
            assert!(error.message.starts_with("n: expected a whole number from 0 to 3"));
        }
        assert!(fields(json!({"t": 3.0})).number("t", 0.0..=2.0).is_err());
        assert!(fields(json!({"t": [1, "x"]})).texts("t").is_err());
        assert!(fields(json!({"f": 1})).flag("f").is_err());
        assert!(fields(json!({"f": 2})).only("f", &[json!(1)]).is_err());
        assert!(BodyFields::inside("messages[0]", json!(3)).is_err());
        let long = fields(json!({"t": "ü".repeat(500)})).flag("t").unwrap_err();
        assert!(long.message.chars().count() < 120);
    }

    #[test]
    fn depth_counts_levels() {
        assert_eq!(depth(&json!([[1], {"a": {"b": [2]}}])), 4);
    }
}
