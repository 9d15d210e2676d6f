//! Writes safetensors files tensor by tensor, in any order, a part of a tensor at a time.
//!
//! The header is the `safetensors` crate's own: element types by falling size, then names. Equal
//! tensors and facts give equal bytes: no time, host or path is stored.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use crate::Shown;
use crate::{DType, FormatError};

/// A tensor that a file will hold.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// How its values are stored.
    pub dtype: DType,
    /// Its shape, `[out, in]`.
    pub shape: Vec<usize>,
}

impl TensorPlan {
    /// A tensor of this name, type and shape.
    pub fn new(name: impl Into<String>, dtype: DType, shape: &[usize]) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec() }
    }
}

/// A safetensors file under construction.
#[derive(Debug)]
pub struct TensorWriter {
    path: PathBuf,
    file: BufWriter<fs_err::File>,
    data_start: u64,
    /// What is still to be written.
    places: BTreeMap<String, Range<u64>>,
    /// The rest of the tensor being written.
    open: Range<u64>,
}

impl TensorWriter {
    /// Creates the file with its header; its tensors follow in any order.
    ///
    /// # Panics
    /// If a name occurs twice or safetensors has no such type.
    pub fn create(path: &Path, tensors: Vec<TensorPlan>) -> Result<Self, FormatError> {
        Self::create_with(path, tensors, &[])
    }

    /// The same with facts, keys and values, that the file says of itself (`__metadata__`) after
    /// its `format`.
    ///
    /// # Panics
    /// As [`TensorWriter::create`].
    pub fn create_with(
        path: &Path,
        tensors: Vec<TensorPlan>,
        facts: &[(&str, &str)],
    ) -> Result<Self, FormatError> {
        let typed = |TensorPlan { name, dtype, shape }| {
            (DType::safetensors(dtype).expect("a type of safetensors"), name, shape)
        };
        let mut tensors: Vec<_> = tensors.into_iter().map(typed).collect();
        // The order of the crate's own serialiser: with falling sizes of the types every tensor
        // begins at a multiple of its own.
        tensors.sort_by(|(a, a_name, _), (b, b_name, _)| b.cmp(a).then_with(|| a_name.cmp(b_name)));
        let (mut places, mut infos, mut end) = (BTreeMap::new(), Vec::new(), 0);
        for (dtype, name, shape) in tensors {
            let start = end;
            end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
            places.insert(name.clone(), start as u64..end as u64);
            infos.push((name, TensorInfo { dtype, shape, data_offsets: (start, end) }));
        }
        assert_eq!(places.len(), infos.len(), "every name is planned once");
        let header =
            header_text(infos, facts).map_err(|what| FormatError::container(path, what))?;
        let mut file = BufWriter::with_capacity(1 << 20, fs_err::File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let data_start = 8 + header.len() as u64;
        Ok(Self { path: path.to_owned(), file, data_start, places, open: 0..0 })
    }

    /// Goes to a planned tensor that has not been written; the one before must be complete.
    pub fn start(&mut self, name: &str) -> Result<(), FormatError> {
        self.refuse_open();
        self.open = self.places.remove(name).expect("a planned tensor, not yet written");
        let place = SeekFrom::Start(self.data_start + self.open.start);
        // Places follow from the plan, so tensors may come in the order of a model and not of the
        // file.
        self.file.seek(place).map_err(|error| self.failed(&error))?;
        Ok(())
    }

    /// Writes the next bytes of the tensor that was started.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.open.start += bytes.len() as u64;
        assert!(self.open.start <= self.open.end, "no more bytes than the shape holds");
        self.file.write_all(bytes).map_err(|error| self.failed(&error))
    }

    /// Starts, writes and completes a tensor.
    pub fn write_whole(&mut self, name: &str, bytes: &[u8]) -> Result<(), FormatError> {
        self.start(name)?;
        self.write(bytes)
    }

    /// The same with f32 values.
    pub fn write_floats(&mut self, name: &str, values: &[f32]) -> Result<(), FormatError> {
        self.write_whole(name, &little_endian(values))
    }

    /// Completes the file, whose tensors must all be there.
    pub fn finish(mut self) -> Result<(), FormatError> {
        self.refuse_open();
        assert!(self.places.is_empty(), "every planned tensor is written");
        self.file.flush().map_err(|error| self.failed(&error))
    }

    fn refuse_open(&self) {
        assert!(self.open.is_empty(), "a tensor is written whole");
    }

    fn failed(&self, error: &std::io::Error) -> FormatError {
        let what = format!("failed to write {}: {error}", self.path.shown());
        FormatError::Io(std::io::Error::new(error.kind(), what))
    }
}

/// A tensor about to be written.
#[derive(Clone, Debug)]
pub struct TensorData<'a> {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl<'a> TensorData<'a> {
    /// f32 values as they are.
    pub fn f32(shape: &[usize], values: &'a [f32]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "one value for each element");
        Self { dtype: DType::F32, shape: shape.to_vec(), bytes: little_endian(values) }
    }

    /// f32 values to keep.
    pub fn f32_owned(shape: &[usize], values: &[f32]) -> TensorData<'static> {
        let bytes = TensorData::f32(shape, values).bytes.into_owned();
        TensorData { dtype: DType::F32, shape: shape.to_vec(), bytes: Cow::Owned(bytes) }
    }

    /// f32 values rounded to BF16, to nearest, ties to even.
    pub fn bf16(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "one value for each element");
        let bytes = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        Self { dtype: DType::Bf16, shape: shape.to_vec(), bytes: Cow::Owned(bytes) }
    }

    /// Bytes as they are.
    pub fn u8(shape: &[usize], bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        let bytes = bytes.into();
        assert_eq!(bytes.len(), shape.iter().product::<usize>(), "one byte for each element");
        Self { dtype: DType::U8, shape: shape.to_vec(), bytes }
    }
}

/// Writes a safetensors file. Equal tensors give equal bytes: no time, host or path is stored.
pub fn write_tensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, TensorData<'a>)>,
) -> Result<(), FormatError> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let plan = tensors.iter().map(|(name, data)| TensorPlan::new(name, data.dtype, &data.shape));
    let mut writer = TensorWriter::create(path, plan.collect())?;
    for (name, data) in &tensors {
        writer.write_whole(name, &data.bytes)?;
    }
    writer.finish()
}

/// Numbers as a file holds them.
pub fn little_endian<T: bytemuck::NoUninit>(values: &[T]) -> Cow<'_, [u8]> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    if cfg!(target_endian = "little") {
        return Cow::Borrowed(bytes);
    }
    let swapped = bytes.chunks(size_of::<T>()).flat_map(|number| number.iter().rev());
    Cow::Owned(swapped.copied().collect())
}

/// Padded with spaces so that the data starts at a multiple of eight.
fn header_text(
    infos: Vec<(String, TensorInfo)>,
    facts: &[(&str, &str)],
) -> Result<Vec<u8>, String> {
    let header = Metadata::new(None, infos).map_err(|error| error.to_string())?;
    let tensors = serde_json::to_string(&header).map_err(|error| error.to_string())?;
    // The library keeps facts in a hash map, whose order differs from run to run.
    let mut text = r#"{"__metadata__":{"format":"pt""#.to_owned();
    for (key, value) in facts {
        write!(text, ",{}:{}", Value::from(*key), Value::from(*value)).expect("a string grows");
    }
    text.push('}');
    if tensors != "{}" {
        text.push(',');
    }
    text.push_str(&tensors[1..]);
    let mut text = text.into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::TensorFile;
    use safetensors::Dtype;
    use std::collections::HashMap;

    #[test]
    fn facts_are_read_back_and_stand_in_the_order_they_are_given_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let plan = vec![TensorPlan::new("a", DType::U8, &[1])];
        let facts = [("z", "1"), ("b \"quoted\"", "naïve\n")];
        let mut writer = TensorWriter::create_with(&path, plan, &facts).unwrap();
        writer.write_whole("a", &[7]).unwrap();
        writer.finish().unwrap();
        let file = TensorFile::open(&path).unwrap();
        for (key, value) in facts {
            assert_eq!(file.fact(key), Some(value));
        }
        assert_eq!((file.fact("format"), file.fact("c")), (Some("pt"), None));
        let text = fs_err::read(&path).unwrap();
        let start = br#"{"__metadata__":{"format":"pt","z":"1","b"#;
        assert_eq!(&text[8..][..start.len()], start);
        let empty = dir.path().join("empty");
        TensorWriter::create(&empty, Vec::new()).unwrap().finish().unwrap();
        assert_eq!(TensorFile::open(&empty).unwrap().names(), [""; 0]);
    }

    #[test]
    fn bytes_are_those_of_the_library_whatever_the_order_of_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let plan = vec![
            TensorPlan::new("a.weight", DType::U8, &[2, 3]),
            TensorPlan::new("b", DType::F32, &[1]),
            TensorPlan::new("c", DType::Bf16, &[3]),
            TensorPlan::new("0", DType::Bf16, &[1]),
        ];
        let mut writer = TensorWriter::create(&path, plan).unwrap();
        writer.start("a.weight").unwrap();
        writer.write(&[1, 2, 3]).unwrap();
        writer.write(&[4, 5, 6]).unwrap();
        writer.write_whole("0", &[7, 8]).unwrap();
        writer.write_whole("c", &[1; 6]).unwrap();
        writer.write_whole("b", &1.5f32.to_le_bytes()).unwrap();
        writer.finish().unwrap();

        let view = |dtype, shape: &[usize], data: &'static [u8]| {
            safetensors::tensor::TensorView::new(dtype, shape.to_vec(), data).unwrap()
        };
        let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let expected = safetensors::serialize(
            [
                ("a.weight", view(Dtype::U8, &[2, 3], &[1, 2, 3, 4, 5, 6])),
                ("b", view(Dtype::F32, &[1], &[0, 0, 0xc0, 0x3f])),
                ("c", view(Dtype::BF16, &[3], &[1; 6])),
                ("0", view(Dtype::BF16, &[1], &[7, 8])),
            ],
            Some(format),
        );
        assert_eq!(fs_err::read(&path).unwrap(), expected.unwrap());
        assert_eq!(TensorFile::open(&path).unwrap().names(), ["b", "0", "c", "a.weight"]);
    }

    #[test]
    #[should_panic(expected = "every planned tensor is written")]
    fn a_file_with_a_hole_is_never_finished() {
        let dir = tempfile::tempdir().unwrap();
        let plan = vec![TensorPlan::new("a", DType::U8, &[1])];
        let _ = TensorWriter::create(&dir.path().join("x"), plan).unwrap().finish();
    }
}
