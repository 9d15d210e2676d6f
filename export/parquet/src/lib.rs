//! Rows of a Parquet file as JSON objects: lists of structs become lists of objects.
//!
//! Bytes that are text are text, whatever the writer said of them, and null otherwise. Dates and
//! times are the numbers that the file has; decimal numbers are text. JSON has no NaN: it is null.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_format::FormatError;
use bitnet_format::input::open_file;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

/// The rows of a file in their order.
pub struct ParquetRows {
    path: PathBuf,
    rows: RowIter<'static>,
    bytes: u64,
    total: u64,
    number: u64,
}

impl ParquetRows {
    /// Reads only the columns `wanted`, or all if that is empty or one of them is missing.
    ///
    /// # Errors
    /// Something else than a whole Parquet file.
    pub fn open(path: &Path, wanted: &[String]) -> Result<Self, FormatError> {
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

    /// The number of the last row that was read, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Bytes of the file that the rows so far took.
    pub fn done(&self) -> u64 {
        // By rows: columns are read in pieces from all over the file, so no position tells how far
        // it is.
        (u128::from(self.bytes) * u128::from(self.number) / u128::from(self.total.max(1))) as u64
    }
}

impl Iterator for ParquetRows {
    type Item = Result<Map<String, Value>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.rows.next()?;
        self.number += 1;
        Some(row.map(object).map_err(|error| damaged(&self.path, &error)))
    }
}

fn damaged(path: &Path, error: &ParquetError) -> FormatError {
    let what = format!("cannot be read; expected a whole Parquet file, got: {error}");
    FormatError::Container { path: path.to_owned(), what }
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

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::{
        ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type,
    };
    use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
    use parquet::schema::parser::parse_message_type;

    type Group<'a> = SerializedRowGroupWriter<'a, Vec<u8>>;

    /// Writes a column; `levels` says how deep each value is defined and where lists begin.
    fn column<T: DataType>(group: &mut Group<'_>, values: &[T::T], levels: [&[i16]; 2]) {
        let mut column = group.next_column().unwrap().unwrap();
        let levels = levels.map(|levels| Some(levels).filter(|levels| !levels.is_empty()));
        column.typed::<T>().write_batch(values, levels[0], levels[1]).unwrap();
        column.close().unwrap();
    }

    /// Two rows with a column of every kind.
    fn every_kind() -> Vec<u8> {
        let schema = "message rows { required binary text (UTF8); required binary bytes;
            required int32 day (DATE); required int64 time (TIMESTAMP(MILLIS,true));
            required int32 price (DECIMAL(5,2)); required double share; optional int64 n;
            optional group map (MAP) { repeated group key_value { required binary key (UTF8);
            optional int32 value; } } }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let bytes = |texts: [&[u8]; 2]| texts.map(|text| ByteArray::from(text.to_vec()));
        column::<ByteArrayType>(&mut group, &bytes([b"a", b"b"]), [&[], &[]]);
        column::<ByteArrayType>(&mut group, &bytes([b"\xc3\xa9", b"\xff"]), [&[], &[]]);
        column::<Int32Type>(&mut group, &[19_000, 0], [&[], &[]]);
        column::<Int64Type>(&mut group, &[1_700_000_000_000, 0], [&[], &[]]);
        column::<Int32Type>(&mut group, &[12_345, 5], [&[], &[]]);
        column::<DoubleType>(&mut group, &[0.5, f64::NAN], [&[], &[]]);
        column::<Int64Type>(&mut group, &[i64::MAX], [&[1, 0], &[]]);
        let defined: &[i16] = &[2, 2, 0];
        column::<ByteArrayType>(&mut group, &bytes([b"x", b"y"]), [defined, &[0, 1, 0]]);
        column::<Int32Type>(&mut group, &[3], [&[3, 2, 0], &[0, 1, 0]]);
        group.close().unwrap();
        writer.into_inner().unwrap()
    }

    fn read(bytes: &[u8], wanted: &[&str]) -> Result<Vec<String>, FormatError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        fs_err::write(&path, bytes).unwrap();
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let mut rows = ParquetRows::open(&path, &wanted)?;
        let texts = rows.by_ref().map(|row| Ok(Value::Object(row?).to_string())).collect();
        assert_eq!((rows.number(), rows.done()), (2, bytes.len() as u64));
        texts
    }

    #[test]
    fn every_kind_of_column_has_its_json() {
        let expected = [
            r#"{"text":"a","bytes":"é","day":19000,"time":1700000000000,"price":"123.45","share":0.5,"n":9223372036854775807,"map":{"x":3,"y":null}}"#,
            r#"{"text":"b","bytes":null,"day":0,"time":0,"price":"0.05","share":null,"n":null,"map":null}"#,
        ];
        assert_eq!(read(&every_kind(), &[]).unwrap(), expected);
    }

    #[test]
    fn only_wanted_columns_are_read_unless_one_is_missing() {
        let some = read(&every_kind(), &["n", "text"]).unwrap();
        assert_eq!(some[1], r#"{"n":null,"text":"b"}"#);
        assert_eq!(
            read(&every_kind(), &["text", "none"]).unwrap(),
            read(&every_kind(), &[]).unwrap()
        );
    }

    #[test]
    fn a_file_that_was_cut_is_an_error() {
        let whole = every_kind();
        for keep in [0, 3, whole.len() / 2, whole.len() - 1] {
            let error = read(&whole[..keep], &[]).unwrap_err().to_string();
            assert!(
                error.contains("rows.parquet: cannot be read; expected a whole Parquet"),
                "{error}"
            );
        }
    }
}
