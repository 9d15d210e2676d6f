//! The typed values of GGUF metadata: in memory, in messages, and as bytes in a file.
//!
//! ```text
//! value:   | type id: u32 | bytes |        text:  | length: u64 | UTF-8 |
//! array:   | 9: u32 | element type id: u32 | count: u64 | elements |
//! ```

use super::cursor::HeaderCursor;
use super::layout::LARGEST_HEADER;

const ARRAY_ID: u32 = 9;

/// Everything that has a case for each type, from one list of the types and their ids.
macro_rules! value_types {
    ($($name:ident($type:ty) = $id:literal),*) => {
        /// One metadata value.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "each variant is named after its type")]
        pub enum Value {
            $($name($type),)*
            Array(Array),
        }

        /// A metadata array: all elements have one type. Arrays of arrays, which the format
        /// allows and no model uses, cannot be expressed.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "each variant is named after its element type")]
        pub enum Array {
            $($name(Vec<$type>),)*
        }

        impl Value {
            fn type_id(&self) -> u32 {
                match self {
                    $(Self::$name(_) => $id,)*
                    Self::Array(_) => ARRAY_ID,
                }
            }

            fn scalar(&self) -> Result<&dyn Scalar, &Array> {
                match self {
                    $(Self::$name(value) => Ok(value),)*
                    Self::Array(array) => Err(array),
                }
            }

            /// Reads the type id, then the value.
            pub(super) fn decode(cursor: &mut HeaderCursor) -> Result<Self, String> {
                match cursor.u32()? {
                    $($id => <$type>::decode(cursor).map(Self::$name),)*
                    ARRAY_ID => Array::decode(cursor).map(Self::Array),
                    id => Err(unknown_type(id)),
                }
            }
        }

        impl Array {
            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$name(values) => values.len(),)*
                }
            }

            fn element_type(&self) -> (u32, &'static str) {
                match self {
                    $(Self::$name(_) => ($id, stringify!($name)),)*
                }
            }

            fn decode(cursor: &mut HeaderCursor) -> Result<Self, String> {
                let (id, count) = (cursor.u32()?, cursor.u64()?);
                match id {
                    $($id => <$type>::decode_many(cursor, count).map(Self::$name),)*
                    ARRAY_ID => Err("is an array of arrays, which is not read".to_owned()),
                    id => Err(unknown_type(id)),
                }
            }

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.element_type().0.to_le_bytes());
                out.extend((self.len() as u64).to_le_bytes());
                match self {
                    $(Self::$name(values) => values.iter().for_each(|value| value.encode(out)),)*
                }
            }
        }
    };
}

value_types! {
    U8(u8) = 0, I8(i8) = 1, U16(u16) = 2, I16(i16) = 3, U32(u32) = 4, I32(i32) = 5, F32(f32) = 6,
    Bool(bool) = 7, String(String) = 8, U64(u64) = 10, I64(i64) = 11, F64(f64) = 12
}

fn unknown_type(id: u32) -> String {
    format!("has the value type {id}; expected 0 to 12")
}

/// What a value that is not an array can do.
trait Scalar {
    fn decode(cursor: &mut HeaderCursor) -> Result<Self, String>
    where
        Self: Sized;

    fn decode_many(cursor: &mut HeaderCursor, count: u64) -> Result<Vec<Self>, String>
    where
        Self: Sized;

    fn encode(&self, out: &mut Vec<u8>);

    /// The value as a report shows it.
    fn shown(&self) -> String;

    /// The value for a message.
    fn described(&self) -> String;
}

macro_rules! numbers {
    ($($type:ident)*) => {$(
        impl Scalar for $type {
            fn decode(cursor: &mut HeaderCursor) -> Result<Self, String> {
                cursor.scalar(Self::from_le_bytes)
            }

            fn decode_many(cursor: &mut HeaderCursor, count: u64) -> Result<Vec<Self>, String> {
                cursor.scalars(count, Self::from_le_bytes)
            }

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }

            fn shown(&self) -> String {
                self.to_string()
            }

            fn described(&self) -> String {
                format!("{self} ({})", stringify!($type))
            }
        }
    )*};
}

numbers! { u8 i8 u16 i16 u32 i32 f32 u64 i64 f64 }

impl Scalar for bool {
    fn decode(cursor: &mut HeaderCursor) -> Result<Self, String> {
        bool_of(u8::decode(cursor)?)
    }

    fn decode_many(cursor: &mut HeaderCursor, count: u64) -> Result<Vec<Self>, String> {
        u8::decode_many(cursor, count)?.into_iter().map(bool_of).collect()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn shown(&self) -> String {
        self.to_string()
    }

    fn described(&self) -> String {
        self.to_string()
    }
}

fn bool_of(byte: u8) -> Result<bool, String> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(format!("holds {byte} as a boolean; expected 0 or 1")),
    }
}

impl Scalar for String {
    fn decode(cursor: &mut HeaderCursor) -> Result<Self, String> {
        Ok(cursor.text(LARGEST_HEADER as u64)?.to_owned())
    }

    fn decode_many(cursor: &mut HeaderCursor, count: u64) -> Result<Vec<Self>, String> {
        // The count comes from the file: a text takes at least the 8 bytes of its length, so a
        // count that cannot be true is refused before anything is reserved for it.
        cursor.expect_items(count, 8)?;
        let within = |index| move |what| format!("element {index} {what}");
        (0..count).map(|index| Self::decode(cursor).map_err(within(index))).collect()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        encode_text(out, self);
    }

    fn shown(&self) -> String {
        format!("{self:?}")
    }

    /// Without the text: it may be long, and comes from elsewhere.
    fn described(&self) -> String {
        "a string".to_owned()
    }
}

/// The length in bytes, then the text without an end mark.
pub(super) fn encode_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Scalars as their numbers, text quoted, an array as its length.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.scalar() {
            Ok(scalar) => f.write_str(&scalar.shown()),
            Err(Array::String(texts)) => write!(f, "[{} strings]", texts.len()),
            // A vocabulary has a hundred thousand elements; reports show how many, not which.
            Err(array) => write!(f, "[{} numbers]", array.len()),
        }
    }
}

impl Value {
    /// Appends the type id, then the value.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.type_id().to_le_bytes());
        match self.scalar() {
            Ok(scalar) => scalar.encode(out),
            Err(array) => array.encode(out),
        }
    }

    /// An integer of any width.
    pub(super) fn integer(&self) -> Option<i128> {
        match *self {
            Self::U8(x) => Some(x.into()),
            Self::I8(x) => Some(x.into()),
            Self::U16(x) => Some(x.into()),
            Self::I16(x) => Some(x.into()),
            Self::U32(x) => Some(x.into()),
            Self::I32(x) => Some(x.into()),
            Self::U64(x) => Some(x.into()),
            Self::I64(x) => Some(x.into()),
            _ => None,
        }
    }

    /// The value for a message.
    pub(super) fn describe(&self) -> String {
        match self.scalar() {
            Ok(scalar) => scalar.described(),
            Err(array) => {
                let element = array.element_type().1.to_lowercase();
                format!("an array of {} {element}", array.len())
            }
        }
    }
}

impl Array {
    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}

impl From<Vec<String>> for Value {
    fn from(values: Vec<String>) -> Self {
        Self::Array(Array::String(values))
    }
}

impl From<Vec<i32>> for Value {
    fn from(values: Vec<i32>) -> Self {
        Self::Array(Array::I32(values))
    }
}

impl From<Vec<f32>> for Value {
    fn from(values: Vec<f32>) -> Self {
        Self::Array(Array::F32(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_ids_are_frozen() {
        let values = [
            Value::U8(0),
            Value::I8(0),
            Value::U16(0),
            Value::I16(0),
            Value::U32(0),
            Value::I32(0),
            Value::F32(0.0),
            Value::Bool(false),
            Value::String(String::new()),
            Value::Array(Array::U8(vec![])),
            Value::U64(0),
            Value::I64(0),
            Value::F64(0.0),
        ];
        for (id, value) in (0u32..).zip(values) {
            let mut bytes = Vec::new();
            value.encode(&mut bytes);
            assert_eq!(bytes[..4], id.to_le_bytes());
            assert_eq!(Value::decode(&mut HeaderCursor::new(&bytes)), Ok(value));
        }
    }

    #[test]
    fn descriptions_show_numbers_but_no_text() {
        assert_eq!(Value::I8(-3).describe(), "-3 (i8)");
        assert_eq!(Value::F32(0.5).describe(), "0.5 (f32)");
        assert_eq!(Value::F64(0.5).describe(), "0.5 (f64)");
        assert_eq!(Value::Bool(true).describe(), "true");
        assert_eq!(Value::from("\u{1b}[2J").describe(), "a string");
        assert_eq!(Value::from(vec![1.0, 2.0]).describe(), "an array of 2 f32");
    }
}
