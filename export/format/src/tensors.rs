//! Safetensors files, read strictly and written in name order.
//!
//! Parsing is the `safetensors` crate's. This room adds what that crate leaves open: duplicate
//! names, hostile names, element types we do not read, and conversion of BF16 and F16 to f32.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
pub use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{SafeTensorError, SafeTensors};
use serde::de::IgnoredAny;

use crate::FormatError;
use crate::pairs::Pairs;
use crate::parts::FileParts;
use crate::quant::first_not_finite;
use crate::writer::{Planned, TensorWriter, little_endian};

/// An open safetensors file whose header has been checked; its tensors are read on demand.
#[derive(Debug)]
pub struct TensorFile {
    file: FileParts,
    data_start: usize,
    header: Metadata,
}

impl TensorFile {
    /// Opens and checks the header.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        if !fs_err::metadata(path)?.is_file() {
            return Err(FormatError::container(path, "is not a regular file"));
        }
        Self::checked(FileParts::open(path)?)
    }

    /// Checks the header of a file.
    fn checked(file: FileParts) -> Result<Self, FormatError> {
        let path = file.path().to_owned();
        let broken = |what: String| FormatError::container(&path, what);
        let header_bytes = read_header(&file)?;
        let header: Metadata = match SafeTensors::read_metadata(&header_bytes) {
            Ok((_, header)) => header,
            // The header alone is all the library gets to see.
            Err(SafeTensorError::MetadataIncompleteBuffer) => {
                serde_json::from_slice(&header_bytes[8..])
                    .map_err(|error| broken(format!("not a safetensors file: {error}")))?
            }
            Err(error) => return Err(broken(format!("not a safetensors file: {error}"))),
        };
        check_header_names(&header_bytes[8..]).map_err(broken)?;
        let data = file.len() - header_bytes.len() as u64;
        if data != header.data_len() as u64 {
            let described = header.data_len();
            return Err(broken(format!(
                "the header describes {described} bytes of data, got {data}"
            )));
        }
        Ok(Self { file, data_start: header_bytes.len(), header })
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// All tensor names, in file order.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Whether a tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// Shape and element type of a tensor.
    pub fn info(&self, name: &str) -> Result<&TensorInfo, FormatError> {
        self.header.info(name).ok_or_else(|| FormatError::tensor(self.path(), name, "is missing"))
    }

    /// The raw little-endian bytes of a tensor of the expected shape and type.
    pub fn raw(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<Vec<u8>, FormatError> {
        let info = self.info(name)?;
        self.check_shape(name, info, shape)?;
        if info.dtype != dtype {
            let what = format!("has type {:?}; expected {dtype:?}", info.dtype);
            return Err(FormatError::tensor(self.path(), name, what));
        }
        self.read(info, 0..info.data_offsets.1 - info.data_offsets.0)
    }

    /// A tensor of F32, BF16 or F16 values as f32.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, FormatError> {
        let rows = shape.first().copied().unwrap_or(1);
        self.float_rows(name, shape, 0..rows)
    }

    /// Some rows of such a tensor, a row being what the first index picks.
    pub fn float_rows(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<Vec<f32>, FormatError> {
        let bytes = self.row_bytes(name, shape, rows)?;
        let dtype = self.info(name)?.dtype;
        to_f32(dtype, &bytes).ok_or_else(|| {
            let what = format!("has type {dtype:?}; expected F32, BF16 or F16");
            FormatError::tensor(self.path(), name, what)
        })
    }

    /// The bytes of some rows of a tensor, as they are stored.
    pub fn row_bytes(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<Vec<u8>, FormatError> {
        let info = self.info(name)?;
        self.check_shape(name, info, shape)?;
        let row_bytes = shape.iter().skip(1).product::<usize>() * info.dtype.bitsize() / 8;
        self.read(info, rows.start * row_bytes..rows.end * row_bytes)
    }

    /// Like [`TensorFile::floats`], refusing NaN and infinity.
    pub fn finite_floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, FormatError> {
        let rows = shape.first().copied().unwrap_or(1);
        self.finite_rows(name, shape, 0..rows)
    }

    /// Like [`TensorFile::float_rows`], refusing NaN and infinity.
    pub fn finite_rows(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<Vec<f32>, FormatError> {
        let first = rows.start * shape.iter().skip(1).product::<usize>();
        let values = self.float_rows(name, shape, rows)?;
        match first_not_finite(&values) {
            None => Ok(values),
            Some(at) => {
                let (value, index) = (values[at], first + at);
                let what = format!("holds {value} at index {index}; expected finite");
                Err(FormatError::tensor(self.path(), name, what))
            }
        }
    }

    fn check_shape(
        &self,
        name: &str,
        info: &TensorInfo,
        shape: &[usize],
    ) -> Result<(), FormatError> {
        if info.shape == shape {
            return Ok(());
        }
        let what = format!("has shape {:?}; expected {shape:?}", info.shape);
        Err(FormatError::tensor(self.path(), name, what))
    }

    /// Part of a tensor's bytes.
    fn read(&self, info: &TensorInfo, part: Range<usize>) -> Result<Vec<u8>, FormatError> {
        let start = self.data_start + info.data_offsets.0;
        let range = (start + part.start) as u64..(start + part.end) as u64;
        Ok(self.file.read(range)?)
    }
}

/// The length and the text of the header: as many bytes as the first eight say.
fn read_header(file: &FileParts) -> Result<Vec<u8>, FormatError> {
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

/// Little-endian values of a float type as f32; `None` for other types.
fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::F32 => {
            let words = bytes.chunks_exact(4);
            Some(words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        }
        Dtype::BF16 => Some(halves().map(|bits| bf16::from_bits(bits).to_f32()).collect()),
        Dtype::F16 => Some(halves().map(|bits| f16::from_bits(bits).to_f32()).collect()),
        _ => None,
    }
}

fn check_header_names(header: &[u8]) -> Result<(), String> {
    let Pairs(tensors) =
        serde_json::from_slice::<Pairs<IgnoredAny>>(header).map_err(|error| error.to_string())?;
    check_names(tensors.iter().map(|(name, _)| name.as_str()))
}

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

/// A tensor about to be written.
#[derive(Clone, Debug)]
pub struct TensorData<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> TensorData<'a> {
    /// f32 values as they are.
    pub fn f32(shape: &[usize], values: &'a [f32]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "one value for each place");
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes: little_endian(values) }
    }

    /// f32 values to keep.
    pub fn f32_owned(shape: &[usize], values: &[f32]) -> TensorData<'static> {
        let bytes = TensorData::f32(shape, values).bytes.into_owned();
        TensorData { dtype: Dtype::F32, shape: shape.to_vec(), bytes: Cow::Owned(bytes) }
    }

    /// f32 values rounded to BF16, to nearest, ties to even.
    pub fn bf16(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "one value for each place");
        let bytes = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        Self { dtype: Dtype::BF16, shape: shape.to_vec(), bytes: Cow::Owned(bytes) }
    }

    /// Bytes as they are.
    pub fn u8(shape: &[usize], bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        let bytes = bytes.into();
        assert_eq!(bytes.len(), shape.iter().product::<usize>(), "one byte for each place");
        Self { dtype: Dtype::U8, shape: shape.to_vec(), bytes }
    }
}

/// Writes a safetensors file. Equal tensors give equal bytes: no time, host or path is stored.
pub fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, TensorData<'a>)>,
) -> Result<(), FormatError> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let plan = tensors.iter().map(|(name, data)| Planned {
        name: name.clone(),
        dtype: data.dtype,
        shape: data.shape.clone(),
    });
    let mut writer = TensorWriter::create(path, plan.collect())?;
    for (name, data) in &tensors {
        writer.write_whole(name, &data.bytes)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(file.raw("c", &[2], Dtype::U8).unwrap(), [7, 8]);
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
        let dtype = file.raw("x", &[2], Dtype::U8).unwrap_err().to_string();
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
