//! Safetensors files, read strictly: one file, or several that together hold a model.
//!
//! The `safetensors` crate parses the header. This module adds what that crate leaves open:
//! duplicate names, names with control characters, element types we do not read, and conversion
//! of BF16 and F16 to f32. Tensors are read on demand, some rows at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use safetensors::{SafeTensorError, SafeTensors};
use serde::de::IgnoredAny;

use crate::blocks::dequantise;
use crate::foreign::{FileRole, refuse};
use crate::ordered_map::OrderedMap;
use crate::parts::FileParts;
use crate::quant::first_not_finite;
use crate::{DType, FormatError};

/// Open safetensors files that together hold each tensor once; their headers have been checked.
#[derive(Debug)]
pub struct TensorFile {
    /// The single file, or the index of the shards: what a missing tensor is missing from.
    pub(crate) source: PathBuf,
    files: Vec<FileParts>,
    /// In file order, shard after shard.
    names: Vec<String>,
    tensors: HashMap<String, StoredTensor>,
    /// What a single file says of itself (`__metadata__`); empty for shards.
    facts: BTreeMap<String, String>,
}

/// What a safetensors header says about one tensor.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// How its values are stored.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The position of its file in [`TensorFile::files`].
    file: usize,
    /// Where its values lie in that file.
    bytes: Range<u64>,
}

impl TensorFile {
    /// Opens one file and checks its header.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        refuse(path, FileRole::Weights)?;
        Self::checked(FileParts::open(path)?)
    }

    /// The same for a file in memory; `path` is for messages.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, FormatError> {
        Self::checked(FileParts::in_memory(path, bytes))
    }

    /// Checks the header of a file.
    fn checked(file: FileParts) -> Result<Self, FormatError> {
        let path = file.path().to_owned();
        let broken = |what: String| FormatError::container(&path, what);
        let (header_len, header) = read_header(&file)?;
        // The header must account for every byte of data: a file that was cut, or has something
        // hidden behind its tensors, is refused here. After this no read can leave the file.
        let data = file.len() - header_len;
        if data != header.data_len() as u64 {
            let described = header.data_len();
            return Err(broken(format!(
                "the header describes {described} bytes of data, got {data}"
            )));
        }
        let names = header.offset_keys();
        let mut tensors = HashMap::with_capacity(names.len());
        for name in &names {
            let info = header.info(name).expect("a name of the header");
            let dtype = DType::from_safetensors(info.dtype).ok_or_else(|| {
                let what = format!("has type {:?}, which is not read", info.dtype);
                FormatError::tensor(&path, name, what)
            })?;
            let (start, end) = info.data_offsets;
            // Offsets in a header count from the end of the header; here they count from the start
            // of the file.
            let bytes = header_len + start as u64..header_len + end as u64;
            let tensor = StoredTensor { dtype, shape: info.shape.clone(), file: 0, bytes };
            tensors.insert(name.clone(), tensor);
        }
        let facts = header.metadata().iter().flatten();
        let facts = facts.map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(Self { source: path, files: vec![file], names, tensors, facts })
    }

    /// No tensors yet, for [`TensorFile::append`]; `source` is the index.
    pub(crate) fn empty(source: &Path) -> Self {
        let (files, names, tensors, facts) = Default::default();
        Self { source: source.to_owned(), files, names, tensors, facts }
    }

    /// Adds the tensors of another shard, none of which is here.
    pub(crate) fn append(&mut self, shard: Self) {
        let first = self.files.len();
        self.files.extend(shard.files);
        self.names.extend(shard.names);
        self.tensors.extend(shard.tensors.into_iter().map(|(name, mut tensor)| {
            // Shards are numbered in the order in which they are added.
            tensor.file += first;
            (name, tensor)
        }));
    }

    /// Gives every tensor the name that `plain` makes of its own, and forgets those for which it
    /// makes none. Returns whether that changed anything.
    pub(crate) fn rename(
        &mut self,
        plain: impl Fn(&str) -> Option<String>,
    ) -> Result<bool, FormatError> {
        let old = std::mem::take(&mut self.names);
        let mut tensors = HashMap::with_capacity(old.len());
        for name in &old {
            let Some(new) = plain(name) else { continue };
            if tensors.insert(new.clone(), self.tensors[name].clone()).is_some() {
                return Err(self.error(name, format!("occurs twice, also as {new}")));
            }
            self.names.push(new);
        }
        self.tensors = tensors;
        Ok(self.names != old)
    }

    /// The files in order of their names, for hashing.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path().to_owned()).collect()
    }

    /// The file that holds a tensor, for messages. For a tensor that is in none: the file that
    /// should name it.
    pub fn path_of(&self, name: &str) -> &Path {
        self.tensors.get(name).map_or(&self.source, |tensor| self.files[tensor.file].path())
    }

    /// What a single file says of itself under a key of its `__metadata__`.
    pub fn fact(&self, key: &str) -> Option<&str> {
        self.facts.get(key).map(String::as_str)
    }

    /// All tensor names, in file order.
    pub fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    /// Whether a tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape and element type of a tensor.
    pub fn info(&self, name: &str) -> Result<&StoredTensor, FormatError> {
        self.tensors.get(name).ok_or_else(|| self.error(name, "is missing"))
    }

    /// The raw little-endian bytes of a tensor of the expected shape and type.
    pub fn raw(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Vec<u8>, FormatError> {
        self.raw_rows(name, shape, dtype, 0..shape.first().copied().unwrap_or(1))
    }

    /// The raw little-endian bytes of some rows of a tensor of the expected shape and type.
    pub(crate) fn raw_rows(
        &self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        rows: Range<usize>,
    ) -> Result<Vec<u8>, FormatError> {
        let tensor = self.shaped(name, shape)?;
        if tensor.dtype != dtype {
            let (found, expected) = (tensor.dtype.name(), dtype.name());
            return Err(self.error(name, format!("has type {found}; expected {expected}")));
        }
        self.read(tensor, bytes_of_rows(tensor, shape, rows))
    }

    /// A tensor of F32, BF16 or F16 values as f32.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, FormatError> {
        let rows = shape.first().copied().unwrap_or(1);
        let (dtype, bytes) = self.float_rows(name, shape, 0..rows)?;
        dequantise(dtype, &bytes, shape.iter().product())
            .map_err(|error| self.error(name, error.to_string()))
    }

    /// Like [`TensorFile::floats`], refusing NaN and infinity.
    pub fn finite_floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, FormatError> {
        let values = self.floats(name, shape)?;
        match first_not_finite(&values) {
            None => Ok(values),
            Some(at) => {
                let what = format!("holds {} at index {at}; expected finite", values[at]);
                Err(self.error(name, what))
            }
        }
    }

    /// Some rows of a tensor of F32, BF16 or F16 values as they are stored, a row being what the
    /// first index picks.
    pub fn float_rows(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<(DType, Vec<u8>), FormatError> {
        let tensor = self.shaped(name, shape)?;
        let dtype = tensor.dtype;
        if !matches!(dtype, DType::F32 | DType::Bf16 | DType::F16) {
            let what = format!("has type {}; expected F32, BF16 or F16", dtype.name());
            return Err(self.error(name, what));
        }
        Ok((dtype, self.read(tensor, bytes_of_rows(tensor, shape, rows))?))
    }

    /// The file that holds a BF16 tensor of this shape, and its bytes there.
    pub(crate) fn bf16_place(&self, name: &str, shape: &[usize]) -> Option<(PathBuf, Range<u64>)> {
        let tensor = self.tensors.get(name)?;
        if tensor.dtype != DType::Bf16 || tensor.shape != shape {
            return None;
        }
        Some((self.files[tensor.file].path().to_owned(), tensor.bytes.clone()))
    }

    fn shaped(&self, name: &str, shape: &[usize]) -> Result<&StoredTensor, FormatError> {
        let tensor = self.info(name)?;
        if tensor.shape == shape {
            return Ok(tensor);
        }
        Err(self.error(name, format!("has shape {:?}; expected {shape:?}", tensor.shape)))
    }

    fn read(&self, tensor: &StoredTensor, bytes: Range<u64>) -> Result<Vec<u8>, FormatError> {
        Ok(self.files[tensor.file].read(bytes)?)
    }

    /// An error that names a tensor and its file.
    pub(crate) fn error(&self, name: &str, what: impl Into<String>) -> FormatError {
        FormatError::tensor(self.path_of(name), name, what)
    }
}

/// Where some rows of a tensor lie, a row being what the first index picks.
fn bytes_of_rows(tensor: &StoredTensor, shape: &[usize], rows: Range<usize>) -> Range<u64> {
    // Row-major: rows that follow each other are one range of bytes.
    let width = shape.iter().skip(1).product::<usize>() as u64;
    let at = |row: usize| {
        let bytes = tensor.dtype.bytes_of(row as u64 * width, 1);
        tensor.bytes.start + bytes.expect("a part of a checked tensor")
    };
    at(rows.start)..at(rows.end)
}

/// How many bytes lie before the data, and what they say of it.
fn read_header(file: &FileParts) -> Result<(u64, Metadata), FormatError> {
    let broken = |what: String| FormatError::container(file.path(), what);
    let bytes = header_bytes(file)?;
    let header = match SafeTensors::read_metadata(&bytes) {
        Ok((_, header)) => Ok(header),
        // The library sees the header without the data and has checked everything else.
        Err(SafeTensorError::MetadataIncompleteBuffer) => {
            serde_json::from_slice(&bytes[8..]).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    let header = header.map_err(|error| broken(format!("not a safetensors file: {error}")))?;
    let OrderedMap(tensors) = serde_json::from_slice::<OrderedMap<IgnoredAny>>(&bytes[8..])
        .map_err(|error| broken(error.to_string()))?;
    check_names(tensors.iter().map(|(name, _)| name.as_str())).map_err(broken)?;
    Ok((bytes.len() as u64, header))
}

/// The length and the text of the header: as many bytes as the first eight say.
fn header_bytes(file: &FileParts) -> Result<Vec<u8>, FormatError> {
    let broken =
        |what: &str| FormatError::container(file.path(), format!("not a safetensors file: {what}"));
    if file.len() < 8 {
        return Err(broken("header too small"));
    }
    let start = file.read(0..8)?;
    let length = u64::from_le_bytes(start.try_into().expect("eight bytes were read"));
    if length > LARGEST_HEADER {
        return Err(broken("header too large"));
    }
    if 8 + length > file.len() {
        return Err(broken("invalid header length"));
    }
    Ok(file.read(0..8 + length)?)
}

/// No header is larger: the `safetensors` crate says the same.
const LARGEST_HEADER: u64 = 100_000_000;

/// Refuses names that occur twice (parsers disagree on which one counts) and names that could
/// steer a terminal.
pub(crate) fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = HashSet::new();
    for name in names {
        if !name.chars().all(|c| c.is_ascii_graphic()) || name.len() > 256 {
            return Err(format!("the tensor name {name:?} is not plain printable text"));
        }
        if !seen.insert(name) {
            return Err(format!("the tensor name {name:?} occurs twice"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writer::{TensorData, write_tensors};
    use half::{bf16, f16};
    use serde_json::json;
    use std::path::PathBuf;

    fn written(tensors: Vec<(&str, TensorData)>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let named = tensors.into_iter().map(|(name, data)| (name.to_owned(), data));
        write_tensors(&path, named).unwrap();
        (dir, path)
    }

    fn raw_file(header: &str, data: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        fs_err::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn renaming_keeps_the_values_and_refuses_two_tensors_of_one_name() {
        let one = || TensorData::f32_owned(&[1], &[3.0]);
        let (_dir, path) = written(vec![("x.a", one()), ("b", one()), ("c", one())]);
        let short = |name: &str| (name != "c").then(|| name.replace("x.", ""));
        let mut file = TensorFile::open(&path).unwrap();
        assert!(file.rename(short).unwrap());
        assert!(!file.rename(short).unwrap());
        assert_eq!(file.floats("a", &[1]).unwrap(), [3.0]);
        assert!(!file.contains("x.a") && !file.contains("c"));
        let error = file.rename(|_| Some("a".to_owned())).unwrap_err().to_string();
        assert!(error.ends_with("occurs twice, also as a"), "{error}");
    }

    #[test]
    fn what_was_written_is_read() {
        let values = [1.0, -2.5, 3.0e-40];
        let (_dir, path) = written(vec![
            ("b", TensorData::f32(&[3], &values)),
            ("a", TensorData::bf16(&[1, 1], &[1.003_906_3])),
            ("c", TensorData::u8(&[2], vec![7, 8])),
        ]);
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.floats("b", &[3]).unwrap(), values);
        assert_eq!(file.floats("a", &[1, 1]).unwrap(), [1.0], "the tie goes to even");
        assert_eq!(file.raw("c", &[2], DType::U8).unwrap(), [7, 8]);
    }

    #[test]
    fn every_float_type_is_read_and_no_other() {
        // 1.5 and -0.25 are exact in each type; F64 is one we do not read.
        let f16_bytes = [1.5, -0.25].map(|x| f16::from_f32(x).to_le_bytes()).concat();
        let bf16_bytes = [1.5, -0.25].map(|x| bf16::from_f32(x).to_le_bytes()).concat();
        let f32_bytes = [1.5f32, -0.25].map(f32::to_le_bytes).concat();
        let f64_bytes = [1.5f64, -0.25].map(f64::to_le_bytes).concat();
        let open = |dtype: &str, bytes: &[u8]| {
            let entry = json!({"dtype": dtype, "shape": [2], "data_offsets": [0, bytes.len()]});
            let (_dir, path) = raw_file(&json!({"x": entry}).to_string(), bytes);
            TensorFile::open(&path).unwrap()
        };
        for (dtype, bytes) in [("F16", f16_bytes), ("BF16", bf16_bytes), ("F32", f32_bytes)] {
            assert_eq!(open(dtype, &bytes).floats("x", &[2]).unwrap(), [1.5, -0.25], "{dtype}");
        }
        let error = open("F64", &f64_bytes).floats("x", &[2]).unwrap_err().to_string();
        assert!(error.ends_with("[x]: has type F64; expected F32, BF16 or F16"), "{error}");
    }

    #[test]
    fn a_wrong_shape_or_type_names_both() {
        let (_dir, path) = written(vec![("x", TensorData::f32(&[2], &[0.0, f32::NAN]))]);
        let file = TensorFile::open(&path).unwrap();
        let shape = file.floats("x", &[3]).unwrap_err().to_string();
        assert!(shape.ends_with("[x]: has shape [2]; expected [3]"), "{shape}");
        let dtype = file.raw("x", &[2], DType::U8).unwrap_err().to_string();
        assert!(dtype.ends_with("[x]: has type F32; expected U8"), "{dtype}");
        let nan = file.finite_floats("x", &[2]).unwrap_err().to_string();
        assert!(nan.ends_with("[x]: holds NaN at index 1; expected finite"), "{nan}");
        assert!(file.floats("y", &[1]).unwrap_err().to_string().ends_with("[y]: is missing"));
    }

    #[test]
    fn a_name_that_occurs_twice_is_refused() {
        let tensor = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
        let (_dir, path) = raw_file(&format!(r#"{{"a":{tensor},"a":{tensor}}}"#), &[0]);
        let error = TensorFile::open(&path).unwrap_err().to_string();
        assert!(error.ends_with(r#"the tensor name "a" occurs twice"#), "{error}");
    }

    #[test]
    fn a_name_that_steers_a_terminal_is_refused() {
        let header = r#"{"a\u001b[2J":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
        let (_dir, path) = raw_file(header, &[0]);
        assert!(TensorFile::open(&path).unwrap_err().to_string().contains("not plain printable"));
    }

    #[test]
    fn cut_extended_and_empty_files_are_refused() {
        let (_dir, path) = written(vec![("x", TensorData::f32(&[2], &[1.0, 2.0]))]);
        let good = fs_err::read(&path).unwrap();
        let longer = [&good[..], &[0]].concat();
        for bad in [&good[..good.len() - 1], &good[..7], &[], &longer] {
            fs_err::write(&path, bad).unwrap();
            assert!(TensorFile::open(&path).is_err());
        }
    }

    #[test]
    fn a_mutated_file_never_panics() {
        let (_dir, path) = written(vec![
            ("b", TensorData::f32(&[3], &[1.0, -2.5, 3.0])),
            ("a", TensorData::bf16(&[1, 2], &[1.0, 2.0])),
            ("c", TensorData::u8(&[2, 2], vec![7, 8, 9, 10])),
        ]);
        let good = fs_err::read(&path).unwrap();
        crate::mutation::survive_all(&good, |bytes| {
            let file = TensorFile::checked(FileParts::in_memory(&path, bytes));
            file.is_ok_and(|file| read_all(&file))
        });
    }

    /// Touches every byte; true for the sake of an expression.
    fn read_all(file: &TensorFile) -> bool {
        for name in file.names() {
            let info = file.info(&name).unwrap();
            let raw = file.raw(&name, &info.shape, info.dtype).unwrap();
            let values = file.floats(&name, &info.shape);
            assert!(values.is_err() || values.unwrap().len() <= raw.len());
            let _ = file.finite_floats(&name, &info.shape);
        }
        true
    }

    proptest::proptest! {
        #[test]
        fn no_byte_string_panics_the_reader(bytes: Vec<u8>, header in "[{}\":a,0-9\\[\\]]{0,40}") {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x");
            fs_err::write(&path, &bytes).unwrap();
            let _ = TensorFile::open(&path);
            let (_dir, path) = raw_file(&header, &bytes);
            let _ = TensorFile::open(&path);
        }
    }
}
