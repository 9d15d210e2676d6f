//! A JSON object as its key-value pairs, in file order and with duplicate keys.
//!
//! A map would keep one of two equal keys silently, and parsers disagree on which one. A check
//! for duplicates needs to see both.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// Keys and values in file order, duplicates included.
pub(crate) struct OrderedMap<V>(pub(crate) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for OrderedMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Collector(PhantomData))
    }
}

struct Collector<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for Collector<V> {
    type Value = OrderedMap<V>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OrderedMap<V>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(OrderedMap(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_are_both_there() {
        let OrderedMap(pairs) =
            serde_json::from_str::<OrderedMap<u8>>(r#"{"b": 1, "a": 2, "b": 3}"#).unwrap();
        let expected = [("b", 1), ("a", 2), ("b", 3)].map(|(key, value)| (key.to_owned(), value));
        assert_eq!(pairs, expected);
        assert!(serde_json::from_str::<OrderedMap<u8>>("[1]").is_err());
    }
}
