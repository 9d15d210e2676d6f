//! Rows of a Parquet file as JSON objects: lists of structs become lists of objects.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_format::input::open_file;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

use crate::document::RowContent;
use crate::error::DataError;

pub(super) struct ParquetRows {
    path: PathBuf,
    rows: RowIter<'static>,
    /// Bytes and rows of the file, and rows that were read.
    bytes: u64,
    total: u64,
    number: u64,
}

impl ParquetRows {
    /// Reads only the columns `wanted`, or all if that is empty or one of them is missing.
    pub(super) fn open(path: &Path, wanted: &[String]) -> Result<Self, DataError> {
        let file = open_file(path)?;
        let bytes = file.metadata()?.len();
        let damaged = |error| damaged(path, &error);
        let reader = SerializedFileReader::new(file.into_file()).map_err(damaged)?;
        let metadata = reader.metadata().file_metadata();
        let (total, schema) = (metadata.num_rows().max(0) as u64, metadata.schema_descr());
        let projection = projection(schema.root_schema(), wanted);
        let rows = RowIter::from_file_into(Box::new(reader)).project(projection);
        let (path, rows) = (path.to_owned(), rows.map_err(damaged)?);
        Ok(Self { path, rows, bytes, total, number: 0 })
    }

    pub(super) fn done(&self) -> u64 {
        // By rows: columns are read in pieces from all over the file, so no position tells how far
        // it is.
        (u128::from(self.bytes) * u128::from(self.number) / u128::from(self.total.max(1))) as u64
    }

    /// The next row with its number, from 1.
    pub(super) fn next(&mut self) -> Result<Option<(u64, RowContent)>, DataError> {
        let Some(row) = self.rows.next() else { return Ok(None) };
        let row = row.map_err(|error| damaged(&self.path, &error))?;
        self.number += 1;
        Ok(Some((self.number, RowContent::Object(object(row)))))
    }
}

fn damaged(path: &Path, error: &ParquetError) -> DataError {
    let what = format!("cannot be read; expected a whole Parquet file, got: {error}");
    DataError::file(path, what)
}

fn projection(schema: &Type, wanted: &[String]) -> Option<Type> {
    let field = |name: &String| schema.get_fields().iter().find(|field| field.name() == name);
    let fields: Option<Vec<Arc<Type>>> = wanted.iter().map(|name| field(name).cloned()).collect();
    // Where a column is missing all are read, and the row's reader names the missing one.
    let fields = fields.filter(|fields| !fields.is_empty())?;
    Type::group_type_builder(schema.name()).with_fields(fields).build().ok()
}

fn object(row: Row) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect()
}

fn value(field: Field) -> Value {
    match field {
        Field::Str(text) => Value::String(text),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            let name = |key: &Field| match key {
                Field::Str(text) => text.clone(),
                other => other.to_string(),
            };
            let pairs = map.entries().iter();
            Value::Object(pairs.map(|(key, field)| (name(key), value(field.clone()))).collect())
        }
        // Some writers leave out that their bytes are text.
        Field::Bytes(bytes) => {
            String::from_utf8(bytes.data().to_vec()).map_or(Value::Null, Value::String)
        }
        Field::Null => Value::Null,
        Field::Bool(answer) => Value::Bool(answer),
        other => number(&other),
    }
}

fn number(field: &Field) -> Value {
    // JSON has no NaN: null, as in rows of JSON.
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    match *field {
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) | Field::Date(number) | Field::TimeMillis(number) => number.into(),
        Field::Long(number)
        | Field::TimeMicros(number)
        | Field::TimestampMillis(number)
        | Field::TimestampMicros(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::Float16(number) => float(f64::from(f32::from(number))),
        Field::Float(number) => float(f64::from(number)),
        Field::Double(number) => float(number),
        _ => Value::String(field.to_string()),
    }
}
