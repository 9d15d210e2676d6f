//! Metadata values to bytes and back.

use super::cursor::HeaderCursor;
use super::layout::LARGEST_HEADER;
use super::value::{Array, Value, ValueType};

/// The type id, then the value.
pub(super) fn decode_value(cursor: &mut HeaderCursor) -> Result<Value, String> {
    let value_type = decode_type(cursor)?;
    Ok(match value_type {
        ValueType::U8 => Value::U8(cursor.scalar(u8::from_le_bytes)?),
        ValueType::I8 => Value::I8(cursor.scalar(i8::from_le_bytes)?),
        ValueType::U16 => Value::U16(cursor.scalar(u16::from_le_bytes)?),
        ValueType::I16 => Value::I16(cursor.scalar(i16::from_le_bytes)?),
        ValueType::U32 => Value::U32(cursor.scalar(u32::from_le_bytes)?),
        ValueType::I32 => Value::I32(cursor.scalar(i32::from_le_bytes)?),
        ValueType::F32 => Value::F32(cursor.scalar(f32::from_le_bytes)?),
        ValueType::Bool => Value::Bool(decode_bool(cursor.scalar(u8::from_le_bytes)?)?),
        ValueType::String => Value::String(decode_string(cursor)?),
        ValueType::Array => Value::Array(decode_array(cursor)?),
        ValueType::U64 => Value::U64(cursor.scalar(u64::from_le_bytes)?),
        ValueType::I64 => Value::I64(cursor.scalar(i64::from_le_bytes)?),
        ValueType::F64 => Value::F64(cursor.scalar(f64::from_le_bytes)?),
    })
}

/// The element type, the count, the elements.
fn decode_array(cursor: &mut HeaderCursor) -> Result<Array, String> {
    let element_type = decode_type(cursor)?;
    let count = cursor.u64()?;
    Ok(match element_type {
        ValueType::U8 => Array::U8(cursor.scalars(count, u8::from_le_bytes)?),
        ValueType::I8 => Array::I8(cursor.scalars(count, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(cursor.scalars(count, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(cursor.scalars(count, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(cursor.scalars(count, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(cursor.scalars(count, i32::from_le_bytes)?),
        ValueType::F32 => Array::F32(cursor.scalars(count, f32::from_le_bytes)?),
        ValueType::Bool => {
            let bytes = cursor.scalars(count, u8::from_le_bytes)?;
            Array::Bool(bytes.into_iter().map(decode_bool).collect::<Result<_, _>>()?)
        }
        ValueType::String => Array::String(decode_strings(cursor, count)?),
        ValueType::Array => return Err("is an array of arrays, which is not read".to_owned()),
        ValueType::U64 => Array::U64(cursor.scalars(count, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(cursor.scalars(count, i64::from_le_bytes)?),
        ValueType::F64 => Array::F64(cursor.scalars(count, f64::from_le_bytes)?),
    })
}

fn decode_type(cursor: &mut HeaderCursor) -> Result<ValueType, String> {
    let id = cursor.u32()?;
    ValueType::from_id(id).ok_or_else(|| format!("has the value type {id}; expected 0 to 12"))
}

fn decode_bool(byte: u8) -> Result<bool, String> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(format!("holds {byte} as a boolean; expected 0 or 1")),
    }
}

fn decode_string(cursor: &mut HeaderCursor) -> Result<String, String> {
    Ok(cursor.text(LARGEST_HEADER as u64)?.to_owned())
}

fn decode_strings(cursor: &mut HeaderCursor, count: u64) -> Result<Vec<String>, String> {
    cursor.expect_items(count, 8)?;
    let within = |index| move |what| format!("element {index} {what}");
    (0..count).map(|index| decode_string(cursor).map_err(within(index))).collect()
}

/// The type id, then the value.
pub(super) fn encode_value(out: &mut Vec<u8>, value: &Value) {
    out.extend((value.value_type() as u32).to_le_bytes());
    match value {
        Value::U8(x) => out.push(*x),
        Value::I8(x) => out.extend(x.to_le_bytes()),
        Value::U16(x) => out.extend(x.to_le_bytes()),
        Value::I16(x) => out.extend(x.to_le_bytes()),
        Value::U32(x) => out.extend(x.to_le_bytes()),
        Value::I32(x) => out.extend(x.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::String(text) => encode_text(out, text),
        Value::Array(array) => encode_array(out, array),
        Value::U64(x) => out.extend(x.to_le_bytes()),
        Value::I64(x) => out.extend(x.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
    }
}

/// The length in bytes, then the text without an end mark.
pub(super) fn encode_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn encode_array(out: &mut Vec<u8>, array: &Array) {
    out.extend((array.element_type() as u32).to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(values) => out.extend(values),
        Array::I8(values) => encode_scalars(out, values, i8::to_le_bytes),
        Array::U16(values) => encode_scalars(out, values, u16::to_le_bytes),
        Array::I16(values) => encode_scalars(out, values, i16::to_le_bytes),
        Array::U32(values) => encode_scalars(out, values, u32::to_le_bytes),
        Array::I32(values) => encode_scalars(out, values, i32::to_le_bytes),
        Array::F32(values) => encode_scalars(out, values, f32::to_le_bytes),
        Array::Bool(values) => out.extend(values.iter().map(|&x| u8::from(x))),
        Array::String(texts) => texts.iter().for_each(|text| encode_text(out, text)),
        Array::U64(values) => encode_scalars(out, values, u64::to_le_bytes),
        Array::I64(values) => encode_scalars(out, values, i64::to_le_bytes),
        Array::F64(values) => encode_scalars(out, values, f64::to_le_bytes),
    }
}

fn encode_scalars<T: Copy, const N: usize>(
    out: &mut Vec<u8>,
    values: &[T],
    to_le_bytes: fn(T) -> [u8; N],
) {
    out.extend(values.iter().flat_map(|&value| to_le_bytes(value)));
}
