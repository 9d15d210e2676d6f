//! Splits in Parquet as the hub lays them out: one file or several numbered ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bitnet_format::input::open_file;
use bitnet_format::{FormatError, Shown};
use bitnet_parquet::ParquetRows;
use serde_json::Value;

use crate::error::EvalError;

/// Why the numbered files of a split are not read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PartsProblem {
    /// These are not there.
    Missing(Vec<PathBuf>),
    /// Files of several downloads, one name of each: nothing says which are meant.
    Mixed(Vec<PathBuf>),
}

impl PartsProblem {
    /// The error of files that are mixed; the missing ones are for the caller to tell.
    pub(crate) fn mixed(names: &[PathBuf]) -> EvalError {
        let name =
            |path: &PathBuf| Path::new(path.file_name().unwrap_or_default()).shown().to_string();
        let all: Vec<String> = names.iter().map(name).collect();
        let what = format!(
            "holds files of several downloads of one split ({}); remove all but those of one",
            all.join(", ")
        );
        let folder = names.first().and_then(|path| path.parent()).unwrap_or(Path::new(""));
        FormatError::Container { path: folder.to_owned(), what }.into()
    }
}

/// The files of a split whose path without an ending is `stem`: `stem.parquet`,
/// `stem-00000-of-00002.parquet` with all that belong to it, or `stem/0000.parquet`,
/// `stem/0001.parquet`, …. Empty where there are none.
///
/// # Errors
/// The names of numbered files that are missing, or that contradict each other.
pub(crate) fn find(stem: &Path) -> Result<Vec<PathBuf>, PartsProblem> {
    let single = with_end(stem, ".parquet");
    if single.is_file() {
        return Ok(vec![single]);
    }
    // One numbered file says how many there must be: a download that is not finished is an error
    // and not a smaller data set.
    let declared = declared(stem);
    let count = match declared.iter().next() {
        None => return Ok(inside(stem)),
        Some((count, _)) if declared.len() == 1 => *count,
        Some(_) => return Err(PartsProblem::Mixed(declared.into_values().collect())),
    };
    let part = |at| with_end(stem, &format!("-{at:05}-of-{count:05}.parquet"));
    let (found, missing): (Vec<_>, Vec<_>) = (0..count).map(part).partition(|path| path.is_file());
    if missing.is_empty() { Ok(found) } else { Err(PartsProblem::Missing(missing)) }
}

fn with_end(stem: &Path, end: &str) -> PathBuf {
    let mut path = stem.as_os_str().to_owned();
    path.push(end);
    path.into()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// How many files a split has, as their names say, with the first name that says so. A folder into
/// which two versions of a data set were put says two numbers.
fn declared(stem: &Path) -> BTreeMap<usize, PathBuf> {
    let mut found = BTreeMap::new();
    let (Some(folder), Some(own)) = (stem.parent(), stem.file_name().and_then(|it| it.to_str()))
    else {
        return found;
    };
    let begin = format!("{own}-");
    let count = |name: &String| {
        let (number, count) =
            name.strip_prefix(&begin)?.strip_suffix(".parquet")?.split_once("-of-")?;
        number.parse::<usize>().ok().and(count.parse().ok())
    };
    let mut names = names(folder);
    // A folder has no order of its own.
    names.sort();
    for name in names {
        if let Some(count) = count(&name) {
            found.entry(count).or_insert_with(|| folder.join(name));
        }
    }
    found
}

/// Numbered files in a folder of the split's own.
fn inside(stem: &Path) -> Vec<PathBuf> {
    let is_number = |name: &String| {
        name.strip_suffix(".parquet").is_some_and(|stem| stem.parse::<usize>().is_ok())
    };
    let mut found: Vec<String> = names(stem).into_iter().filter(is_number).collect();
    // Numbers have leading zeros: their order is that of the letters.
    found.sort();
    found.iter().map(|name| stem.join(name)).collect()
}

/// Adds the rows of a file, and its bytes to the hash.
pub(crate) fn read(
    path: &Path,
    hasher: &mut blake3::Hasher,
    rows: &mut Vec<Value>,
) -> Result<(), EvalError> {
    // The file is read twice, once for its hash: Parquet is read from its end.
    hasher.update_reader(open_file(path)?)?;
    for row in ParquetRows::open(path, &[])? {
        rows.push(Value::Object(row?));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use serde_json::json;

    /// Rows with a question, a list of two choices and an answer, as the hub has them.
    pub(crate) fn write(path: &Path, questions: &[&str], codec: Compression) {
        let schema = "message rows { OPTIONAL BYTE_ARRAY question (STRING); OPTIONAL group choices (LIST) \
            { REPEATED group list { OPTIONAL BYTE_ARRAY element (STRING); } } OPTIONAL INT64 answer; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        let file = fs_err::File::create(path).unwrap().into_file();
        let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let bytes = |text: &str| ByteArray::from(text.as_bytes().to_vec());
        let count = questions.len();
        let texts: Vec<ByteArray> = questions.iter().map(|text| bytes(text)).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&vec![1; count]), None).unwrap();
        column.close().unwrap();
        let choices: Vec<ByteArray> =
            (0..count).flat_map(|_| [bytes("no"), bytes("yes")]).collect();
        let mut column = group.next_column().unwrap().unwrap();
        let (levels, repeated) = (vec![3; 2 * count], [0, 1].repeat(count));
        let typed = column.typed::<ByteArrayType>();
        typed.write_batch(&choices, Some(&levels), Some(&repeated)).unwrap();
        column.close().unwrap();
        let answers: Vec<i64> = (0..count as i64).map(|at| at % 2).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&answers, Some(&vec![1; count]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn rows_are_those_that_were_written_with_every_codec_of_the_hub() {
        let dir = tempfile::tempdir().unwrap();
        let zstd = Compression::ZSTD(parquet::basic::ZstdLevel::default());
        let gzip = Compression::GZIP(parquet::basic::GzipLevel::default());
        for codec in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd, gzip] {
            let path = dir.path().join("test.parquet");
            write(&path, &["Is it?", "Où?"], codec);
            let (mut hasher, mut rows) = (blake3::Hasher::new(), Vec::new());
            read(&path, &mut hasher, &mut rows).unwrap();
            let row = |question: &str, answer: i64| json!({"question": question, "choices": ["no", "yes"], "answer": answer});
            assert_eq!(rows, [row("Is it?", 0), row("Où?", 1)]);
            assert_eq!(hasher.finalize(), blake3::hash(&fs_err::read(&path).unwrap()));
        }
    }

    #[test]
    fn a_split_is_one_file_or_all_of_its_numbered_ones() {
        let dir = tempfile::tempdir().unwrap();
        let stem = dir.path().join("main/test");
        assert_eq!(find(&stem), Ok(vec![]));
        let at = |name: &str| dir.path().join("main").join(name);
        write(&at("test/0000.parquet"), &["a"], Compression::SNAPPY);
        assert_eq!(find(&stem), Ok(vec![at("test/0000.parquet")]));
        write(&at("test-00001-of-00002.parquet"), &["a"], Compression::SNAPPY);
        let missing = vec![at("test-00000-of-00002.parquet")];
        assert_eq!(find(&stem), Err(PartsProblem::Missing(missing)));
        write(&at("test-00000-of-00002.parquet"), &["a"], Compression::SNAPPY);
        let both = vec![at("test-00000-of-00002.parquet"), at("test-00001-of-00002.parquet")];
        assert_eq!(find(&stem), Ok(both));
        write(&at("test.parquet"), &["a"], Compression::SNAPPY);
        assert_eq!(find(&stem), Ok(vec![at("test.parquet")]));
    }

    #[test]
    fn files_of_two_downloads_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let stem = dir.path().join("test");
        let at = |name: &str| dir.path().join(name);
        for name in ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"] {
            write(&at(name), &["a"], Compression::SNAPPY);
        }
        assert_eq!(find(&stem).unwrap().len(), 2);
        write(&at("test-00000-of-00001.parquet"), &["a"], Compression::SNAPPY);
        let Err(PartsProblem::Mixed(names)) = find(&stem) else { panic!("two downloads") };
        let error = PartsProblem::mixed(&names).to_string();
        assert!(
            error.ends_with(
                ": holds files of several downloads of one split (test-00000-of-00001.parquet, \
                 test-00000-of-00002.parquet); remove all but those of one"
            ),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_was_cut_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("test.parquet");
        write(&path, &["a"; 50], Compression::SNAPPY);
        let whole = fs_err::read(&path).unwrap();
        for keep in [0, 3, whole.len() / 2, whole.len() - 1] {
            fs_err::write(&path, &whole[..keep]).unwrap();
            let error = read(&path, &mut blake3::Hasher::new(), &mut Vec::new()).unwrap_err();
            assert!(error.to_string().contains("expected a whole Parquet file"), "{error}");
        }
    }
}
