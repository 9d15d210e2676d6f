//! The bytes of a file, unpacked where it is a gzip or Zstandard file, whatever its name says.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bitnet_format::input::open_file;
use flate2::bufread::MultiGzDecoder;
use fs_err::File;

use crate::error::DataError;

/// Bytes that are read at once.
const BUFFER: usize = 1 << 18;
/// Beyond zstd's default of 2^27: archives of web text are written with `--long=31`.
const LARGEST_WINDOW: u32 = 31;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Bytes without a byte-order mark.
pub(super) type Bytes = Box<dyn BufRead + Send>;

/// A count that the reader of a file adds to.
#[derive(Clone, Debug, Default)]
pub(super) struct BytesRead(Arc<AtomicU64>);

impl BytesRead {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A file open at its first byte of content.
pub(super) struct Unpacked {
    pub(super) bytes: Bytes,
    pub(super) read: BytesRead,
    /// The beginning of the content.
    pub(super) head: Vec<u8>,
    /// Whether the file itself is packed.
    pub(super) packed: bool,
}

struct Counted {
    file: File,
    read: BytesRead,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.read.0.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

impl Unpacked {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let read = BytesRead::default();
        let counted = Counted { file: open_file(path)?, read: read.clone() };
        let mut file = BufReader::with_capacity(BUFFER, counted);
        let magic = file.fill_buf()?;
        let (mut bytes, packed): (Bytes, bool) = if magic.starts_with(b"\x1f\x8b") {
            // Multi: files that were joined (`cat a.gz b.gz`) have several members.
            (Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(file))), true)
        } else if magic.starts_with(b"\x28\xb5\x2f\xfd") {
            let mut decoder = zstd::Decoder::with_buffer(file)?;
            decoder.window_log_max(LARGEST_WINDOW)?;
            (Box::new(BufReader::with_capacity(BUFFER, decoder)), true)
        } else {
            (Box::new(file), false)
        };
        let marked = fill(path, &mut bytes)?.starts_with(BYTE_ORDER_MARK);
        if marked {
            bytes.consume(BYTE_ORDER_MARK.len());
        }
        // Looked at and not consumed: the rows begin with it.
        let head = fill(path, &mut bytes)?.to_vec();
        Ok(Self { bytes, read, head, packed })
    }
}

/// What is buffered; empty at the end of the file.
pub(super) fn fill<'a>(path: &Path, bytes: &'a mut Bytes) -> Result<&'a [u8], DataError> {
    bytes.fill_buf().map_err(|error| read_error(path, error))
}

/// A packed file that is damaged is a bad file; all else is the operating system's.
pub(super) fn read_error(path: &Path, error: io::Error) -> DataError {
    use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    match error.kind() {
        InvalidData | InvalidInput | Other | UnexpectedEof => {
            let what = format!("cannot be unpacked; expected a whole file, got: {error}");
            DataError::file(path, what)
        }
        _ => error.into(),
    }
}
