//! A JSON object as the pairs that stand in it.
//!
//! A map keeps one of two equal keys and says nothing; parsers disagree on which one. Whoever
//! must refuse duplicates needs to see them.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// Keys and values in file order, duplicates included.
pub(crate) struct Pairs<V>(pub(crate) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Collector(PhantomData))
    }
}

struct Collector<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for Collector<V> {
    type Value = Pairs<V>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_are_both_there() {
        let Pairs(pairs) =
            serde_json::from_str::<Pairs<u8>>(r#"{"b": 1, "a": 2, "b": 3}"#).unwrap();
        let expected = [("b", 1), ("a", 2), ("b", 3)].map(|(key, value)| (key.to_owned(), value));
        assert_eq!(pairs, expected);
        assert!(serde_json::from_str::<Pairs<u8>>("[1]").is_err());
    }
}
