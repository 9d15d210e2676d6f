//! Token files of other trainers: ids in a row, without text.
//!
//! ```text
//! .bin              ids alone, little-endian; their type stands in the recipe       nanoGPT
//! .bin with header  256 numbers of 4 bytes: magic, version, count, …; then the ids  llm.c
//! .npy              a header with the type, then the ids                            NumPy
//! ```

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::unpack::{Bytes, read_error};
use crate::document::{RowContent, TokenDocument};
use crate::error::DataError;

/// Documents are cut here, so that memory stays bounded.
const LONGEST: usize = 1 << 20;
const NPY_MAGIC: &[u8] = b"\x93NUMPY";
/// llm.c's header: 256 numbers of four bytes.
const HEADER_BYTES: usize = 1024;
/// Magic and version of its two forms, with the type of their ids.
const LLM_C: [(u32, u32, TokenType); 2] =
    [(20_240_520, 1, TokenType::U16), (20_240_801, 7, TokenType::U32)];

/// The type of ids in a file, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenType {
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
    /// Eight bytes: what `NumPy` takes where no type is named.
    U64,
}

impl TokenType {
    /// What a recipe calls each.
    pub const WORDS: &'static [(&'static str, Self)] =
        &[("u16", Self::U16), ("u32", Self::U32), ("u64", Self::U64)];

    /// Bytes of an id.
    pub fn bytes(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
            Self::U64 => 8,
        }
    }
}

/// What a recipe says of files that hold tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenFiles {
    /// The type of the ids; a file with a header names its own.
    pub dtype: Option<TokenType>,
    /// The id before or after every document.
    pub document_separator: Option<u32>,
}

/// The documents of a token file, each with the byte that it begins at.
pub(super) struct TokenIds {
    path: PathBuf,
    bytes: Bytes,
    dtype: TokenType,
    separator: Option<u32>,
    /// Ids that the header promises.
    expected: Option<u64>,
    read: u64,
    /// Bytes of the header.
    header: u64,
    longest: usize,
}

impl TokenIds {
    /// Reads the header; `head` is the beginning of the file.
    pub(super) fn open(
        path: &Path,
        mut bytes: Bytes,
        head: &[u8],
        how: TokenFiles,
    ) -> Result<Self, DataError> {
        let found = if head.starts_with(NPY_MAGIC) { npy_header(head) } else { llm_c_header(head) };
        let found = found.map_err(|what| DataError::file(path, what))?;
        let contradicts = found.zip(how.dtype).filter(|(header, dtype)| header.dtype != *dtype);
        if let Some((header, dtype)) = contradicts {
            let what = format!("holds {:?}; expected {dtype:?} (data.tokens.dtype)", header.dtype);
            return Err(DataError::file(path, what));
        }
        let dtype = found.map(|header| header.dtype).or(how.dtype).ok_or_else(|| {
            let what = "ids without a header; expected data.tokens.dtype beside them, got none";
            DataError::file(path, what)
        })?;
        let header = found.map_or(0, |header| header.bytes);
        std::io::copy(&mut bytes.by_ref().take(header), &mut std::io::sink())
            .map_err(|error| read_error(path, error))?;
        let (path, separator) = (path.to_owned(), how.document_separator);
        let (expected, longest) = (found.map(|header| header.count), LONGEST);
        Ok(Self { path, bytes, dtype, separator, expected, read: 0, header, longest })
    }

    /// The next document that has tokens.
    pub(super) fn next(&mut self) -> Result<Option<(u64, RowContent)>, DataError> {
        loop {
            let (start, mut ids) = (self.read, Vec::new());
            let mut separated = false;
            while ids.len() < self.longest && !separated {
                let Some(id) = self.id()? else { break };
                separated = self.separator == Some(id);
                if !separated {
                    ids.push(id);
                }
            }
            // Not one id was left: the end of the file. A separator alone is an empty document,
            // which is left out.
            if ids.is_empty() && !separated {
                return self.check_count().map(|()| None);
            }
            if !ids.is_empty() {
                let width = self.dtype.bytes() as u64;
                let whole = self.separator.is_some();
                let content = RowContent::Tokens(TokenDocument { ids, width, whole });
                return Ok(Some((self.header + start * width, content)));
            }
        }
    }

    /// The next id; one beyond four bytes is in no vocabulary and becomes the largest.
    fn id(&mut self) -> Result<Option<u32>, DataError> {
        // The bytes beyond the width stay 0: any width is then the low end of a u64.
        let mut cell = [0; 8];
        let width = self.dtype.bytes();
        let mut got = 0;
        while got < width {
            let read = self.bytes.read(&mut cell[got..width]);
            match read.map_err(|error| read_error(&self.path, error))? {
                0 => break,
                read => got += read,
            }
        }
        if got == 0 || self.expected == Some(self.read) && got == width {
            // Nothing may follow the last id that the header promises.
            return if got == 0 { Ok(None) } else { Err(self.count_error("more")) };
        }
        if got < width {
            let what = format!("{got} bytes at its end; expected ids of {width} bytes each");
            return Err(self.at(what));
        }
        self.read += 1;
        Ok(Some(u32::try_from(u64::from_le_bytes(cell)).unwrap_or(u32::MAX)))
    }

    fn check_count(&self) -> Result<(), DataError> {
        match self.expected {
            Some(expected) if expected != self.read => {
                Err(self.count_error(&self.read.to_string()))
            }
            _ => Ok(()),
        }
    }

    fn count_error(&self, got: &str) -> DataError {
        let expected = self.expected.unwrap_or_default();
        self.at(format!(
            "another number of ids than its header says; expected {expected}, got {got}"
        ))
    }

    fn at(&self, what: String) -> DataError {
        let line = self.header + self.read * self.dtype.bytes() as u64;
        DataError::Unreadable { path: self.path.clone(), line, what }
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TokenHeader {
    bytes: u64,
    dtype: TokenType,
    count: u64,
}

fn llm_c_header(head: &[u8]) -> Result<Option<TokenHeader>, String> {
    let number = |at: usize| {
        let bytes = head.get(4 * at..4 * at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().expect("four bytes were cut")))
    };
    let [Some(magic), Some(version), Some(count)] = [0, 1, 2].map(number) else { return Ok(None) };
    let Some((_, known, dtype)) = LLM_C.into_iter().find(|(known, ..)| *known == magic) else {
        return Ok(None);
    };
    if version != known {
        return Err(format!("a header of version {version}; expected version {known} of llm.c's"));
    }
    Ok(Some(TokenHeader { bytes: HEADER_BYTES as u64, dtype, count: u64::from(count) }))
}

/// `\x93NUMPY`, version, length, and a dictionary as Python writes it.
fn npy_header(head: &[u8]) -> Result<Option<TokenHeader>, String> {
    let cut = || "its header is cut; expected a whole .npy file".to_owned();
    let version = *head.get(6).ok_or_else(cut)?;
    let (start, length) = match (version, head.get(8..12).ok_or_else(cut)?) {
        (1, length) => (10, usize::from(length[0]) | usize::from(length[1]) << 8),
        (_, length) => {
            (12, u32::from_le_bytes(length.try_into().expect("four bytes were cut")) as usize)
        }
    };
    let text = head.get(start..start + length).ok_or_else(cut)?;
    // `{'descr': '<u2', 'fortran_order': False, 'shape': (1000,), }`: NumPy's writer varies only
    // its spaces.
    let text = String::from_utf8_lossy(text).replace(' ', "");
    let after = |key: &str| text.split_once(&format!("'{key}':")).map(|(_, rest)| rest);
    let descr = after("descr").unwrap_or_default();
    let dtypes = [
        ("'<u2'", TokenType::U16),
        ("'<u4'", TokenType::U32),
        // Signed types hold the same bytes for ids, which are never negative.
        ("'<i4'", TokenType::U32),
        ("'<u8'", TokenType::U64),
        ("'<i8'", TokenType::U64),
    ];
    let dtype = dtypes.iter().find(|(word, _)| descr.starts_with(word)).map(|(_, dtype)| *dtype);
    let dtype = dtype.ok_or_else(|| {
        let got = descr.split(',').next().unwrap_or_default();
        format!("an array of {got}; expected ids of type <u2, <u4, <i4, <u8 or <i8")
    })?;
    let shape = after("shape").and_then(|rest| rest.strip_prefix('(')?.split(')').next());
    let sizes = shape.unwrap_or_default().split(',').filter(|size| !size.is_empty());
    let count = sizes.map(|size| size.parse::<u64>().ok()).collect::<Option<Vec<_>>>();
    let count = count.filter(|sizes| sizes.len() == 1).map(|sizes| sizes[0]);
    let count = count.ok_or_else(|| {
        format!("an array of shape ({}); expected one row of ids", shape.unwrap_or_default())
    })?;
    Ok(Some(TokenHeader { bytes: (start + length) as u64, dtype, count }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(bytes: &[u8], how: TokenFiles) -> Result<Vec<(u64, Vec<u32>)>, String> {
        let read: Bytes = Box::new(std::io::Cursor::new(bytes.to_vec()));
        let mut ids =
            TokenIds::open("a.bin".as_ref(), read, bytes, how).map_err(|e| e.to_string())?;
        ids.longest = 4;
        let mut found = Vec::new();
        while let Some((start, content)) = ids.next().map_err(|error| error.to_string())? {
            let RowContent::Tokens(document) = content else { panic!("tokens") };
            found.push((start, document.ids));
        }
        Ok(found)
    }

    fn how(dtype: TokenType, document_separator: Option<u32>) -> TokenFiles {
        TokenFiles { dtype: Some(dtype), document_separator }
    }

    fn narrow(ids: &[u16]) -> Vec<u8> {
        ids.iter().flat_map(|id| id.to_le_bytes()).collect()
    }

    fn llm_c(count: u32, ids: &[u16]) -> Vec<u8> {
        let mut header = vec![0; 256];
        header[..3].copy_from_slice(&[20_240_520, 1, count]);
        let header: Vec<u8> = header.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        [header, narrow(ids)].concat()
    }

    fn npy(head: &str, ids: &[u8]) -> Vec<u8> {
        let length = (head.len() as u16).to_le_bytes();
        [b"\x93NUMPY\x01\0", &length[..], head.as_bytes(), ids].concat()
    }

    #[test]
    fn documents_end_at_the_separator_wherever_it_stands() {
        let how = how(TokenType::U16, Some(9));
        let one = vec![(2, vec![1, 2]), (8, vec![3])];
        assert_eq!(documents(&narrow(&[9, 1, 2, 9, 3]), how), Ok(one));
        let two = vec![(0, vec![1, 2]), (6, vec![3])];
        assert_eq!(documents(&narrow(&[1, 2, 9, 3, 9, 9]), how), Ok(two));
        assert_eq!(documents(&[], how), Ok(vec![]));
    }

    #[test]
    fn without_a_separator_a_file_is_cut_where_memory_asks() {
        let how = how(TokenType::U32, None);
        let bytes: Vec<u8> = (0..6_u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(documents(&bytes, how), Ok(vec![(0, vec![0, 1, 2, 3]), (16, vec![4, 5])]));
    }

    #[test]
    fn headers_name_type_and_count() {
        let none = TokenFiles::default();
        assert_eq!(documents(&llm_c(2, &[7, 8]), none), Ok(vec![(1024, vec![7, 8])]));
        let head = "{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }\n";
        let wide: Vec<u8> = [5_i64, -1].iter().flat_map(|id| id.to_le_bytes()).collect();
        let start = 10 + head.len() as u64;
        assert_eq!(documents(&npy(head, &wide), none), Ok(vec![(start, vec![5, u32::MAX])]));
        for (bytes, what) in [
            (llm_c(3, &[7, 8]), "a.bin:1028: a row that cannot be read; another number of ids"),
            (llm_c(1, &[7, 8]), "expected 1, got more"),
            (npy("{'descr': '<f4', 'shape': (1,)}", &[0; 4]), "an array of '<f4'"),
            (npy("{'descr': '<u2', 'shape': (2, 2)}", &[0; 8]), "shape (2,2)"),
            (npy("{'descr'", &[])[..12].to_vec(), "its header is cut"),
            (narrow(&[1]), "data.tokens.dtype"),
        ] {
            let error = documents(&bytes, none).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
        let error = documents(&llm_c(2, &[7, 8]), how(TokenType::U32, None)).unwrap_err();
        assert!(error.contains("holds U16; expected U32"), "{error}");
        let error = documents(&[1, 0, 2], how(TokenType::U16, None)).unwrap_err();
        assert!(error.starts_with("a.bin:2: ") && error.contains("1 bytes at its end"), "{error}");
    }
}
