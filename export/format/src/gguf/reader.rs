//! Opening a GGUF file: everything is checked once, here; tensors are then plain slices.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use super::cursor::HeaderCursor;
use super::layout::{
    Claim, LARGEST_HEADER, LONGEST_KEY, LONGEST_TENSOR_NAME, MAGIC, MOST_DIMENSIONS, MOST_PAIRS,
    MOST_TENSORS, VERSION, is_key, is_tensor_name, tensor_bytes,
};
use super::metadata::Metadata;
use super::two_bit::{SectionEnds, resolved};
use super::value::Value;
use crate::parts::FileParts;
use crate::{DType, FileBytes, FormatError};

/// The oldest version whose layout is that of [`VERSION`].
const OLDEST_VERSION: u32 = 2;

/// A length, one byte of key, a type, one byte of value.
const LEAST_PAIR_BYTES: u64 = 8 + 1 + 4 + 1;

/// A length, one byte of name, the number of dimensions, one dimension, a type, an offset.
const LEAST_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// An open GGUF file: its header is checked, and every tensor lies inside the file.
#[derive(Debug)]
pub struct GgufFile {
    file: FileParts,
    metadata: Metadata,
    tensors: Vec<GgufTensor>,
    /// The position in `tensors` of each name.
    places: HashMap<String, usize>,
}

/// What a GGUF file says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Unique in its file; plain printable ASCII.
    pub name: String,
    /// 1 to 4 dimensions, slowest first: `[out, in]`. The file has them in ggml's order, `in`
    /// first.
    pub shape: Vec<usize>,
    /// How the values are stored.
    pub dtype: DType,
    /// Where they lie, from the start of the file.
    bytes: Range<usize>,
}

impl GgufTensor {
    /// Bytes of the values, without padding.
    #[expect(clippy::len_without_is_empty, reason = "no tensor is empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl GgufFile {
    /// Opens a file and checks its header; its tensors are read on demand.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        // Where the header ends is known only after reading it, so it is mapped; tensors are not.
        let file = FileParts::open(path)?;
        Self::checked(file, &FileBytes::map(path)?)
    }

    /// Checks the content of a file that is in memory; `path` is for messages.
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, FormatError> {
        let header = bytes[..bytes.len().min(LARGEST_HEADER)].to_vec();
        Self::checked(FileParts::in_memory(path, bytes), &header)
    }

    fn checked(file: FileParts, bytes: &[u8]) -> Result<Self, FormatError> {
        let path = file.path();
        let header = &bytes[..bytes.len().min(LARGEST_HEADER)];
        // The parts of a file, in order:
        //
        //    magic, version, counts | key-value pairs | tensors: name, shape, type, offset | padding | data
        //
        // Each is read and checked before the next, because where it begins follows from the one
        // before.
        let mut header = Header { path, cursor: HeaderCursor::new(header) };
        header.check_version()?;
        let (tensor_count, pair_count) = header.counts()?;
        let metadata = header.metadata(pair_count)?;
        let claims = header.tensors(tensor_count)?;
        let header_len = header.cursor.position();
        let data = DataSection::behind(header_len, &metadata, file.len() as usize)?;
        let ends =
            SectionEnds { start: data.start, file_len: data.file_len, alignment: data.alignment };
        // Two types share an id; only where the next tensor begins tells which of them it is.
        let claims = resolved(path, claims, ends)?;
        let tensors = data.place(path, claims)?;
        let places = named_places(path, &tensors)?;
        Ok(Self { file, metadata, tensors, places })
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The key-value pairs.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.places.get(name).map(|&place| &self.tensors[place])
    }

    /// Part of the little-endian bytes of one of this file's tensors, without padding.
    ///
    /// # Errors
    /// When the file was cut since it was opened.
    pub fn part(&self, tensor: &GgufTensor, part: Range<usize>) -> Result<Vec<u8>, FormatError> {
        assert!(part.end <= tensor.len(), "a part of the tensor");
        let start = tensor.bytes.start as u64;
        Ok(self.file.read(start + part.start as u64..start + part.end as u64)?)
    }
}

/// The part of a file before the data, while it is being read.
struct Header<'a> {
    path: &'a Path,
    cursor: HeaderCursor<'a>,
}

impl<'a> Header<'a> {
    fn check_version(&mut self) -> Result<(), FormatError> {
        let magic = self.cursor.scalar(|bytes: [u8; 4]| bytes);
        let magic = magic.map_err(|what| self.broken("the magic number", &what))?;
        if magic != MAGIC {
            let found = magic.escape_ascii();
            let what = format!("starts with \"{found}\"; expected \"GGUF\"");
            return Err(FormatError::container(self.path, what));
        }
        let version = self.cursor.u32().map_err(|what| self.broken("the version", &what))?;
        let readable = |version: u32| (OLDEST_VERSION..=VERSION).contains(&version);
        if readable(version) {
            return Ok(());
        }
        // Version 3 read backwards is 50,331,648: naming the byte order helps more than that
        // number.
        let found = if readable(version.swap_bytes()) {
            format!("{} in big-endian byte order", version.swap_bytes())
        } else {
            version.to_string()
        };
        let what = format!("has the version {found}; expected 2 or 3, little-endian");
        Err(FormatError::container(self.path, what))
    }

    /// The numbers of tensors and of pairs.
    fn counts(&mut self) -> Result<(u64, u64), FormatError> {
        let tensors = self.count("the number of tensors", MOST_TENSORS)?;
        let pairs = self.count("the number of metadata pairs", MOST_PAIRS)?;
        // A count is only a claim: a file too short for that many entries is refused before memory
        // is reserved for them.
        let fits = self.cursor.expect_items(pairs, LEAST_PAIR_BYTES);
        fits.map_err(|what| self.broken("the metadata", &what))?;
        let fits = self.cursor.expect_items(tensors, LEAST_TENSOR_BYTES);
        fits.map_err(|what| self.broken("the list of tensors", &what))?;
        Ok((tensors, pairs))
    }

    fn count(&mut self, field: &str, most: u64) -> Result<u64, FormatError> {
        match self.cursor.u64() {
            Ok(count) if count <= most => Ok(count),
            Ok(count) => Err(self.broken(field, &format!("is {count}; expected at most {most}"))),
            Err(what) => Err(self.broken(field, &what)),
        }
    }

    fn metadata(&mut self, count: u64) -> Result<Metadata, FormatError> {
        let mut keys = HashSet::new();
        let mut pairs = Vec::new();
        for index in 0..count {
            let key = self.key(index)?;
            if !keys.insert(key) {
                return Err(FormatError::config(self.path, key, "occurs twice"));
            }
            let value = Value::decode(&mut self.cursor)
                .map_err(|what| FormatError::config(self.path, key, what))?;
            pairs.push((key.to_owned(), value));
        }
        Ok(Metadata::from_pairs(self.path, pairs))
    }

    fn key(&mut self, index: u64) -> Result<&'a str, FormatError> {
        let field = || format!("the key of metadata pair {index}");
        let key = self.cursor.text(LONGEST_KEY).map_err(|what| self.broken(&field(), &what))?;
        if is_key(key) {
            return Ok(key);
        }
        Err(self.broken(&field(), &not_plain(key)))
    }

    fn tensors(&mut self, count: u64) -> Result<Vec<Claim>, FormatError> {
        (0..count).map(|index| self.tensor(index)).collect()
    }

    fn tensor(&mut self, index: u64) -> Result<Claim, FormatError> {
        let name = self.tensor_name(index)?;
        self.claim(name).map_err(|what| FormatError::tensor(self.path, name, what))
    }

    fn tensor_name(&mut self, index: u64) -> Result<&'a str, FormatError> {
        let field = || format!("the name of tensor {index}");
        let name = self.cursor.text(LONGEST_TENSOR_NAME);
        let name = name.map_err(|what| self.broken(&field(), &what))?;
        if is_tensor_name(name) {
            return Ok(name);
        }
        Err(self.broken(&field(), &not_plain(name)))
    }

    fn claim(&mut self, name: &str) -> Result<Claim, String> {
        let shape = self.shape()?;
        let dtype = tensor_type(self.cursor.u32()?)?;
        let len = tensor_bytes(&shape, dtype)?;
        let offset = self.cursor.u64()?;
        Ok(Claim { name: name.to_owned(), shape, dtype, offset, len })
    }

    /// `[out, in]`: the file has `in` first.
    fn shape(&mut self) -> Result<Vec<usize>, String> {
        let dimensions = self.cursor.u32()?;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            return Err(format!("has {dimensions} dimensions; expected 1 to {MOST_DIMENSIONS}"));
        }
        let extents = self.cursor.scalars(dimensions.into(), u64::from_le_bytes)?;
        // ggml counts dimensions from the one that lies densest in memory; we count as PyTorch
        // does.
        extents.into_iter().rev().map(extent).collect()
    }

    fn broken(&self, field: &str, what: &str) -> FormatError {
        FormatError::container(self.path, format!("{field} {what}"))
    }
}

/// Names are shown escaped and in part.
fn not_plain(name: &str) -> String {
    let shown: String = name.chars().take(40).collect();
    format!("is {shown:?}; expected plain printable ASCII")
}

/// ggml's dimensions are signed; one that is negative there is refused here too.
fn extent(claimed: u64) -> Result<usize, String> {
    match i64::try_from(claimed).ok().and_then(|extent| usize::try_from(extent).ok()) {
        Some(extent @ 1..) => Ok(extent),
        _ => Err(format!("has a dimension of {claimed}; expected 1 to {}", i64::MAX)),
    }
}

fn tensor_type(id: u32) -> Result<DType, String> {
    DType::from_gguf(id).ok_or_else(|| {
        let foreign = foreign_name(id).map(|name| format!(" ({name})")).unwrap_or_default();
        let ours: Vec<_> = DType::of_gguf().map(DType::name).collect();
        format!("has the type id {id}{foreign}; expected one of {}", ours.join(", "))
    })
}

/// What other programs call a type id that we do not read, for the message.
fn foreign_name(id: u32) -> Option<&'static str> {
    Some(match id {
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        31..=33 => "a retired layout of Q4_0",
        37 => "bitnet.cpp's I8_S, or a retired layout of IQ4_NL",
        38 => "bitnet.cpp's TL1, or a retired layout of IQ4_NL",
        39 => "bitnet.cpp's TL2, or llama.cpp's MXFP4",
        134 => "ik_llama.cpp's IQ1_BN",
        135 => "ik_llama.cpp's IQ2_BN",
        335 => "ik_llama.cpp's IQ2_BN_R4",
        _ => return None,
    })
}

/// The part of a file that holds the tensors.
struct DataSection {
    /// Where it starts: the end of the header, padded.
    start: u64,
    file_len: u64,
    alignment: u64,
}

impl DataSection {
    fn behind(
        header_len: usize,
        metadata: &Metadata,
        file_len: usize,
    ) -> Result<Self, FormatError> {
        let alignment = metadata.alignment()?;
        // No overflow: the header is in memory, the alignment a u32.
        let start = (header_len as u64).next_multiple_of(alignment);
        Ok(Self { start, file_len: file_len as u64, alignment })
    }

    /// Tensors follow each other in the order of their infos, each padded to the alignment. So
    /// there is one right offset for each, and neither gap nor overlap can hide.
    fn place(&self, path: &Path, claims: Vec<Claim>) -> Result<Vec<GgufTensor>, FormatError> {
        let mut next = 0;
        let mut tensors = Vec::with_capacity(claims.len());
        for claim in claims {
            let bytes = self
                .range(&claim, next)
                .map_err(|what| FormatError::tensor(path, &claim.name, what))?;
            // No overflow: the range ends inside the file.
            next = (claim.offset + claim.len).next_multiple_of(self.alignment);
            let Claim { name, shape, dtype, .. } = claim;
            tensors.push(GgufTensor { name, shape, dtype, bytes });
        }
        let end = self.start + next;
        if self.file_len > end {
            let what = format!("has {} bytes; expected {end} at most", self.file_len);
            return Err(FormatError::container(path, what));
        }
        Ok(tensors)
    }

    /// Where a tensor that should start at `expected` lies in the file.
    fn range(&self, claim: &Claim, expected: u64) -> Result<Range<usize>, String> {
        let Claim { offset, len, .. } = *claim;
        if offset != expected {
            let from = "from the start of the data";
            return Err(format!("has the offset {offset} {from}; expected {expected}"));
        }
        let start = self.start + offset;
        match start.checked_add(len) {
            Some(end) if end <= self.file_len => Ok(start as usize..end as usize),
            _ => {
                let file_len = self.file_len;
                Err(format!(
                    "is cut off: it takes {len} bytes from {start}, the file has {file_len}"
                ))
            }
        }
    }
}

fn named_places(
    path: &Path,
    tensors: &[GgufTensor],
) -> Result<HashMap<String, usize>, FormatError> {
    let mut places = HashMap::with_capacity(tensors.len());
    for (place, tensor) in tensors.iter().enumerate() {
        if places.insert(tensor.name.clone(), place).is_some() {
            return Err(FormatError::tensor(path, &tensor.name, "occurs twice"));
        }
    }
    Ok(places)
}
