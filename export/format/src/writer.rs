//! Safetensors files written tensor by tensor, in any order, without holding more than a part.
//!
//! The header is the `safetensors` crate's own: element types by falling size, then names. Equal
//! tensors give equal bytes: no time, host or path is stored.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::FormatError;

/// A tensor that will be written: name, element type, shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Planned {
    /// Bytes of its values.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
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
    pub fn create(path: &Path, mut tensors: Vec<Planned>) -> Result<Self, FormatError> {
        tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        let (mut places, mut infos, mut end) = (BTreeMap::new(), Vec::new(), 0);
        for tensor in tensors {
            let start = end;
            end += tensor.bytes();
            let (dtype, shape) = (tensor.dtype, tensor.shape);
            let info = TensorInfo { dtype, shape, data_offsets: (start, end) };
            places.insert(tensor.name.clone(), start as u64..end as u64);
            infos.push((tensor.name, info));
        }
        assert_eq!(places.len(), infos.len(), "every name is planned once");
        let header = header_text(infos).map_err(|what| FormatError::container(path, what))?;
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
        let what = format!("failed to write {}: {error}", self.path.display());
        FormatError::Io(std::io::Error::new(error.kind(), what))
    }
}

/// f32 values as a file holds them.
pub(crate) fn little_endian(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

/// Padded with spaces so that the data starts at a multiple of eight.
fn header_text(infos: Vec<(String, TensorInfo)>) -> Result<Vec<u8>, String> {
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), infos).map_err(|error| error.to_string())?;
    let mut text = serde_json::to_vec(&header).map_err(|error| error.to_string())?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::TensorFile;

    fn planned(name: &str, dtype: Dtype, shape: &[usize]) -> Planned {
        Planned { name: name.to_owned(), dtype, shape: shape.to_vec() }
    }

    #[test]
    fn bytes_are_those_of_the_library_whatever_the_order_of_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let plan = vec![
            planned("a.weight", Dtype::U8, &[2, 3]),
            planned("b", Dtype::F32, &[1]),
            planned("c", Dtype::BF16, &[3]),
            planned("0", Dtype::BF16, &[1]),
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
        let plan = vec![planned("a", Dtype::U8, &[1])];
        let _ = TensorWriter::create(&dir.path().join("x"), plan).unwrap().finish();
    }
}
