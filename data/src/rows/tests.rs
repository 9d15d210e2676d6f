//! Every form of file, plain and packed, whole and broken.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;
use crate::row_json;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(name: &str, bytes: &[u8]) -> (Self, PathBuf) {
        let folder = Self(tempfile::tempdir().unwrap());
        let path = folder.0.path().join(name);
        fs_err::write(&path, bytes).unwrap();
        (folder, path)
    }
}

/// Line and content of each row; a row that is not an object shows what is wrong.
fn rows_with(
    name: &str,
    bytes: &[u8],
    options: &FileOptions,
) -> Result<Vec<(u64, String)>, String> {
    let (folder, path) = Folder::new(name, bytes);
    let shown = |error: DataError| {
        error.to_string().replace(&format!("{}/", folder.0.path().display()), "")
    };
    let mut rows = FileRows::open(&path, DocumentFormat::Text, options).map_err(shown)?;
    let mut found = Vec::new();
    while let Some((line, content)) = rows.next().map_err(shown)? {
        let text = match &content {
            RowContent::Text(text) => text.clone(),
            other => row_json::object(other).map_or_else(
                |fault| format!("{fault:?}"),
                |row| serde_json::to_string(&*row).unwrap(),
            ),
        };
        found.push((line, text));
    }
    assert!(name.contains("parquet") || rows.done() == bytes.len() as u64, "{name}");
    Ok(found)
}

fn rows(name: &str, bytes: &[u8]) -> Result<Vec<(u64, String)>, String> {
    rows_with(name, bytes, &FileOptions::default())
}

fn pairs(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    expected.iter().map(|(line, text)| (*line, (*text).to_owned())).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn one_form_is_as_good_as_another() {
    let expected = pairs(&[(1, r#"{"text":"a"}"#), (2, r#"{"text":"b"}"#)]);
    let lines = b"{\"text\":\"a\"}\n{\"text\":\"b\"}\n";
    let list = br#"[{"text":"a"}, {"text" : "b"}]"#;
    for (name, bytes) in [
        ("a.jsonl", &lines[..]),
        ("a.ndjson", lines),
        ("a.json", lines),
        ("unnamed", lines),
        ("a.json", list),
        ("a.jsonl", list),
        ("a.json", br#"{"version": "[1]", "data": [{"text":"a"},{"text":"b"}], "n": {}}"#),
        ("a.jsonl", b"\xef\xbb\xbf{\"text\":\"a\"}\r\n{\"text\":\"b\"}"),
        ("a.json.gz", &gzip(list)),
        ("named-wrongly.jsonl", &gzip(lines)),
        ("a.jsonl.zst", &zstd::encode_all(&lines[..], 1).unwrap()),
        ("two-members.jsonl.gz", &[gzip(&lines[..13]), gzip(&lines[13..])].concat()),
    ] {
        assert_eq!(rows(name, bytes), Ok(expected.clone()), "{name}");
    }
}

#[test]
fn tables_have_a_header_and_any_separator() {
    let expected =
        pairs(&[(2, r#"{"text":"a, \"b\"\nc","n":"1"}"#), (4, r#"{"text":"d","n":""}"#)]);
    for (name, table) in [
        ("a.csv", "text,n\n\"a, \"\"b\"\"\nc\",1\nd,\n"),
        ("a.csv", "\u{feff}text;n\r\n\"a, \"\"b\"\"\nc\";1\r\nd;\r\n"),
        ("a.tsv", "text\tn\n\"a, \"\"b\"\"\nc\"\t1\nd\t"),
    ] {
        assert_eq!(rows(name, table.as_bytes()), Ok(expected.clone()), "{table}");
    }
    let uneven = rows("a.csv", b"text,n\na\nb,2\n").unwrap();
    assert!(uneven[0].1.contains("expected 2 cells, got 1") && uneven[1].0 == 3, "{uneven:?}");
    assert_eq!(rows("a.csv", b""), Ok(Vec::new()));
    // A quote that nobody closed makes one cell of the rest; a quote within a cell is a letter.
    let torn = rows("a.csv", b"text\nfirst\n\"second\nthird\n").unwrap_err();
    assert!(torn.contains("a.csv:3") && torn.contains("torn"), "{torn}");
    assert_eq!(rows("a.csv", b"text\n5\" pipe"), Ok(pairs(&[(2, r#"{"text":"5\" pipe"}"#)])));
    assert!(rows("a.csv", b"text,,\na,b,c\n").is_ok());
    let twice = rows("a.csv", b"text,n,text\na,b,c\n").unwrap_err();
    assert!(twice.contains("two columns \"text\""), "{twice}");
}

#[test]
fn text_is_one_document_or_one_between_blank_lines() {
    let text = "one\nline\n\n\n \r\ntwo\n";
    assert_eq!(rows("a.txt", text.as_bytes()), Ok(pairs(&[(1, text)])));
    let options = FileOptions { text_split: TextSplit::BlankLine, ..FileOptions::default() };
    for bytes in [text.as_bytes(), &gzip(text.as_bytes())] {
        let blocks = rows_with("a.txt.gz", bytes, &options);
        assert_eq!(blocks, Ok(pairs(&[(1, "one\nline"), (6, "two")])));
    }
}

#[test]
fn objects_over_several_lines_are_found() {
    let text = b"{\n \"text\": \"a } ]\\\"\"\n}\n\n{\"text\": [1, {}]}\n";
    let expected = pairs(&[(1, r#"{"text":"a } ]\""}"#), (5, r#"{"text":[1,{}]}"#)]);
    assert_eq!(rows("a.json", text), Ok(expected));
    let options = FileOptions { field: Some("rows".into()), ..FileOptions::default() };
    let nested = br#"{"a": {"rows": [1]}, "rows": [{"text": "x"}]}"#;
    assert_eq!(rows_with("a.json", nested, &options), Ok(pairs(&[(1, r#"{"text":"x"}"#)])));
    let absent = rows_with("a.json", br#"{"a": 1}"#, &options).unwrap_err();
    assert!(absent.contains("data.field") && absent.contains("rows"), "{absent}");
}

#[test]
fn nothing_may_stand_behind_a_list() {
    let options = FileOptions { field: Some("data".into()), ..FileOptions::default() };
    let expected = Ok(pairs(&[(1, r#"{"text":"a"}"#)]));
    for rest in ["}", ", \"x\": [1, {\"data\": []}], \"y\": null }\n"] {
        let file = format!(r#"{{"data": [{{"text":"a"}}]{rest}"#);
        assert_eq!(rows_with("a.json", file.as_bytes(), &options), expected, "{rest}");
    }
    for rest in ["", ", ", ", \"x\": [1,", " \"x\": 1}", "} {}", ", \"data\": []}"] {
        let file = format!(r#"{{"data": [{{"text":"a"}}]{rest}"#);
        assert!(rows_with("a.json", file.as_bytes(), &options).is_err(), "{rest}");
    }
    for rest in ["[]", "\n{\"text\":\"b\"}", "junk", "]"] {
        let file = format!(r#"[{{"text":"a"}}]{rest}"#);
        let error = rows("a.json", file.as_bytes()).unwrap_err();
        assert!(error.contains("the end of the file behind the list"), "{error}");
    }
    for list in [r#"[{"a":1} {"a":2}]"#, r#"[{"a":1},,{"a":2}]"#, r#"[{"a":1},]"#] {
        assert!(rows("a.json", list.as_bytes()).is_err(), "{list}");
    }
}

#[test]
fn a_list_that_is_cut_or_spoilt_is_an_error() {
    for bytes in [&br#"[{"text":"a"},"#[..], br#"[{"text":"a"#, br#"{"data": [{}"#, b"["] {
        let error = rows("a.json", bytes).unwrap_err();
        assert!(error.contains("torn"), "{error}");
    }
    let odd = rows("a.json", br#"[1, "x", {"a" 1}, {"text":"b"}]"#).unwrap();
    assert_eq!((odd.len(), odd[3].0), (4, 4), "the next item is found: {odd:?}");
    assert!(odd[..3].iter().all(|(_, what)| what.starts_with("Json")), "{odd:?}");
}

#[test]
fn what_cannot_be_read_says_what_to_do() {
    for (name, bytes, expected) in [
        ("a.jsonl", &b"\xff\xfe{\0}\0"[..], "iconv"),
        ("a.docx", b"nothing known", "expected .jsonl"),
        ("a.jsonl.gz", &gzip(b"{}\n{}\n")[..12], "cannot be unpacked"),
        ("a.jsonl.xz", b"\xfd7zXZ\0\0", "unpack it"),
        ("a.parquet", b"PAR1\x15\x04\x15\x10PAR1", "Parquet"),
        ("a.txt", b"first\nse\xc3cond", "a.txt:2: not UTF-8 at column 3"),
    ] {
        let error = rows(name, bytes).unwrap_err();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

/// Two rows: a conversation of two turns, and one without turns.
fn parquet() -> Vec<u8> {
    let schema = "message rows { required binary text (UTF8); optional group messages (LIST) {
        repeated group list { optional group element {
            optional binary role (UTF8); optional int64 n; } } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties =
        WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let texts =
        |texts: &[&str]| texts.iter().map(|text| ByteArray::from(*text)).collect::<Vec<_>>();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&texts(&["a", "b"]), None, None).unwrap();
    column.close().unwrap();
    let (defined, repeated): (&[i16], &[i16]) = (&[4, 4, 0], &[0, 1, 0]);
    let mut column = group.next_column().unwrap().unwrap();
    let roles = texts(&["user", "assistant"]);
    column.typed::<ByteArrayType>().write_batch(&roles, Some(defined), Some(repeated)).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let numbers = column.typed::<parquet::data_type::Int64Type>();
    numbers.write_batch(&[7], Some(&[4, 3, 0]), Some(repeated)).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn parquet_gives_objects_with_lists_of_objects() {
    let (_folder, path) = Folder::new("named.jsonl", &parquet());
    let mut rows =
        FileRows::open(&path, DocumentFormat::JsonLine, &FileOptions::default()).unwrap();
    let mut next = || match rows.next().unwrap() {
        Some((line, RowContent::Object(row))) => (line, serde_json::to_string(&row).unwrap()),
        other => panic!("{other:?}"),
    };
    let first = r#"{"text":"a","messages":[{"role":"user","n":7},{"role":"assistant","n":null}]}"#;
    assert_eq!(next(), (1, first.to_owned()));
    assert_eq!(next(), (2, r#"{"text":"b","messages":null}"#.to_owned()));
    // Pretraining reads the one column that it wants.
    let only = super::tests::rows("a.parquet", &parquet()).unwrap();
    assert_eq!(only, pairs(&[(1, r#"{"text":"a"}"#), (2, r#"{"text":"b"}"#)]));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes: Vec<u8>, name in "a\\.(jsonl|json|csv|txt)") {
        let (_folder, path) = Folder::new(&name, &bytes);
        if let Ok(mut rows) = FileRows::open(&path, DocumentFormat::Text, &FileOptions::default()) {
            while let Ok(Some((_, content))) = rows.next() {
                let _ = row_json::text(&content, "text");
            }
        }
    }
}
