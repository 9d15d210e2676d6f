//! The first bytes of files that other programs write.

/// A kind of file that is not read here, or not in every place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the name of a format")]
pub enum ForeignKind {
    Pickle,
    TorchArchive,
    Npz,
    OfficeDocument,
    Zip,
    Gzip,
    Bzip2,
    Xz,
    Zstandard,
    Lz4,
    SevenZip,
    Rar,
    Tar,
    Parquet,
    ArrowFile,
    ArrowStream,
    Avro,
    Npy,
    Hdf5,
    Sqlite,
    Onnx,
    TfLite,
    SentencePiece,
    Tiktoken,
    Gguf,
    Ggml,
    Safetensors,
    LfsPointer,
    Html,
    Xml,
    Pdf,
    Image,
    Executable,
    Utf16,
    Utf32,
}

use ForeignKind as K;

/// Beginnings that decide by themselves: no text has them. A longer one stands before those it
/// begins with.
const MAGIC: &[(&[u8], ForeignKind)] = &[
    (b"\x1f\x8b", K::Gzip),
    (b"\xfd7zXZ\0", K::Xz),
    (b"\x28\xb5\x2f\xfd", K::Zstandard),
    (b"\x04\x22\x4d\x18", K::Lz4),
    (b"7z\xbc\xaf\x27\x1c", K::SevenZip),
    (b"Rar!\x1a\x07", K::Rar),
    // The first page follows at once, and its header begins with 0x15; text may begin with PAR1.
    (b"PAR1\x15", K::Parquet),
    (b"ARROW1\0\0", K::ArrowFile),
    (b"FEA1", K::ArrowFile),
    (b"Obj\x01", K::Avro),
    (b"\x93NUMPY", K::Npy),
    (b"\x89HDF\r\n\x1a\n", K::Hdf5),
    (b"SQLite format 3\0", K::Sqlite),
    (b"lmgg", K::Ggml),
    (b"tjgg", K::Ggml),
    (b"fmgg", K::Ggml),
    (b"version https://git-lfs", K::LfsPointer),
    (b"%PDF-", K::Pdf),
    (b"\x89PNG\r\n", K::Image),
    (b"\xff\xd8\xff", K::Image),
    (b"GIF89a", K::Image),
    (b"GIF87a", K::Image),
    (b"\x7fELF", K::Executable),
    (b"\xff\xfe\0\0", K::Utf32),
    (b"\0\0\xfe\xff", K::Utf32),
    (b"\xff\xfe", K::Utf16),
    (b"\xfe\xff", K::Utf16),
];

/// A check that looks at more than a beginning.
type ShapeCheck = fn(&[u8]) -> bool;

const SHAPES: &[(ShapeCheck, ForeignKind)] = &[
    (is_bzip2, K::Bzip2),
    (is_gguf, K::Gguf),
    (is_pickle, K::Pickle),
    (is_tar, K::Tar),
    (is_arrow_stream, K::ArrowStream),
    (is_sentencepiece, K::SentencePiece),
    (is_onnx, K::Onnx),
    (|head| head.get(4..8) == Some(b"TFL3"), K::TfLite),
    (is_safetensors, K::Safetensors),
    (is_tiktoken, K::Tiktoken),
    (|head| begins_with_tag(head, &["<!doctype html", "<html"]), K::Html),
    (|head| begins_with_tag(head, &["<?xml"]), K::Xml),
];

impl ForeignKind {
    /// Recognises the beginning of a file.
    pub fn of(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
            return Some(zip_kind(head));
        }
        let magic = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, kind)| *kind);
        let shape = || SHAPES.iter().find(|(fits, _)| fits(head)).map(|(_, kind)| *kind);
        magic.or_else(shape)
    }

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pickle => {
                "a Python pickle (a PyTorch checkpoint of the old kind, or another object)"
            }
            Self::TorchArchive => "a PyTorch checkpoint (a pickle in a zip archive)",
            Self::Npz => "a NumPy archive (.npz)",
            Self::OfficeDocument => "an Office document",
            Self::Zip => "a zip archive",
            Self::Gzip => "a gzip file",
            Self::Bzip2 => "a bzip2 file",
            Self::Xz => "an xz file",
            Self::Zstandard => "a Zstandard file",
            Self::Lz4 => "an LZ4 file",
            Self::SevenZip => "a 7z archive",
            Self::Rar => "a RAR archive",
            Self::Tar => "a tar archive",
            Self::Parquet => "a Parquet file",
            Self::ArrowFile => "an Arrow file",
            Self::ArrowStream => "an Arrow stream",
            Self::Avro => "an Avro file",
            Self::Npy => "a NumPy array (.npy)",
            Self::Hdf5 => "an HDF5 file",
            Self::Sqlite => "an SQLite database",
            Self::Onnx => "an ONNX model",
            Self::TfLite => "a TensorFlow Lite model",
            Self::SentencePiece => "a SentencePiece model (tokenizer.model)",
            Self::Tiktoken => "a tiktoken vocabulary",
            Self::Gguf => "a GGUF model",
            Self::Ggml => "a model in the GGML format before GGUF",
            Self::Safetensors => "a safetensors file",
            Self::LfsPointer => "a Git LFS pointer, not the file it stands for",
            Self::Html => "an HTML page",
            Self::Xml => "an XML document",
            Self::Pdf => "a PDF document",
            Self::Image => "an image",
            Self::Executable => "a program",
            Self::Utf16 => "text in UTF-16",
            Self::Utf32 => "text in UTF-32",
        }
    }
}

/// A zip archive by the name of its first member.
fn zip_kind(head: &[u8]) -> ForeignKind {
    let length = head.get(26..28).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    let name = head.get(30..).unwrap_or_default();
    let name = String::from_utf8_lossy(&name[..name.len().min(length.into())]).into_owned();
    if name.ends_with("/data.pkl") || name.ends_with("/.format_version") {
        ForeignKind::TorchArchive
    } else if name.rsplit('.').next() == Some("npy") {
        ForeignKind::Npz
    } else if name == "[Content_Types].xml" {
        ForeignKind::OfficeDocument
    } else {
        ForeignKind::Zip
    }
}

/// Protocol 2 to 5, then an opcode that can come first.
fn is_pickle(head: &[u8]) -> bool {
    let [0x80, 2..=5, next, ..] = head else { return false };
    // FRAME, LONG1 (PyTorch's magic number), and the beginnings of dictionaries, lists, tuples,
    // classes and texts.
    [0x95, 0x8a, b'}', b']', b'(', b'c', b'X', 0x8c, b')'].contains(next)
}

/// A magic, the level of compression, the first block.
fn is_bzip2(head: &[u8]) -> bool {
    head.starts_with(b"BZh") && head.get(4..10) == Some(b"1AY&SY")
}

/// A magic and a small version, in either order of bytes: text may begin with these letters.
fn is_gguf(head: &[u8]) -> bool {
    head.starts_with(b"GGUF")
        && (head.get(5..8) == Some(&[0, 0, 0]) || head.get(4..7) == Some(&[0, 0, 0]))
}

fn is_tar(head: &[u8]) -> bool {
    head.get(257..262) == Some(b"ustar")
}

/// A continuation marker and the length of the first message.
fn is_arrow_stream(head: &[u8]) -> bool {
    let Some([0xff, 0xff, 0xff, 0xff, a, b, c, d]) = head.first_chunk::<8>() else { return false };
    let length = u32::from_le_bytes([*a, *b, *c, *d]);
    (8..1 << 24).contains(&length) && length.is_multiple_of(8)
}

/// A first piece with its score: fields 1 (text) and 2 (float) in field 1.
fn is_sentencepiece(head: &[u8]) -> bool {
    let [0x0a, whole, 0x0a, text, ..] = head else { return false };
    // Protocol buffers: tag and length of the piece, tag and length of its text, then 0x15, the tag
    // of a float. The unknown token comes first in such files, so both lengths are one byte.
    let score = 4 + usize::from(*text);
    head.get(score) == Some(&0x15) && usize::from(*whole) >= usize::from(*text) + 2 + 5
}

/// A version, then the name of the program that wrote it.
fn is_onnx(head: &[u8]) -> bool {
    let [0x08, 1..=20, 0x12, length, rest @ ..] = head else { return false };
    let name = rest.get(..usize::from(*length)).unwrap_or_default();
    !name.is_empty() && name.iter().all(|byte| (b' '..=b'~').contains(byte))
}

/// The length of a header, and the header's beginning.
fn is_safetensors(head: &[u8]) -> bool {
    let Some(length) = head.first_chunk::<8>() else { return false };
    let length = u64::from_le_bytes(*length);
    (2..=100 << 20).contains(&length) && head.get(8) == Some(&b'{')
}

/// Lines of a token in base64 and its rank, from 0.
fn is_tiktoken(head: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(head) else { return false };
    let whole: Vec<_> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect();
    let is_rank = |(rank, line): (usize, &&str)| {
        let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
        let parts = line.trim_end().split_once(' ');
        parts.is_some_and(|(token, number)| {
            number == rank.to_string() && token.len().is_multiple_of(4) && token.chars().all(base64)
        })
    };
    whole.len() >= 3 && whole.iter().enumerate().all(is_rank)
}

fn begins_with_tag(head: &[u8], tags: &[&str]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    tags.iter().any(|tag| {
        head.get(..tag.len()).is_some_and(|found| found.eq_ignore_ascii_case(tag.as_bytes()))
    })
}
