//! `TensorBoard` event files, written without a protobuf library. The training loop decides which
//! figures are written and when.
//!
//! A file is a sequence of `TFRecord` frames, all numbers little-endian:
//!
//! ```text
//! | length: u64 | masked CRC-32C of length: u32 | payload | masked CRC-32C of payload: u32 |
//! ```
//!
//! The payload is a protobuf message `Event { 1: wall_time: double, 2: step: int64,
//! 3: file_version: string, 5: summary }`; a summary holds `Value { 1: tag, 2: simple_value }`. A
//! protobuf field is a key (`number << 3 | wire type`) and its content; wire type 0 is a varint,
//! 1 eight bytes, 2 a length and as many bytes, 5 four bytes.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fs_err::File;

use crate::platform::host_name;

/// Content of the first record of every file.
const FILE_VERSION: &str = "brain.Event:2";
/// `TFRecord` rotates each checksum and adds this: a CRC over data that itself contains CRCs would
/// otherwise lose its strength.
const MASK_DELTA: u32 = 0xa282_ead8;

/// An open event file. Dropping it writes what is buffered; a killed process loses what was not
/// [flushed](EventFile::flush).
#[derive(Debug)]
pub struct EventFile {
    file: BufWriter<File>,
}

impl EventFile {
    /// Creates a new file in `dir`, and `dir` if missing. Never overwrites a file.
    pub fn create(dir: &Path) -> io::Result<Self> {
        fs_err::create_dir_all(dir)?;
        let now = since_epoch();
        let mut this = Self { file: BufWriter::new(create_new(dir, now.as_secs())?) };
        let mut event = event_at(now);
        put_bytes(&mut event, 3, FILE_VERSION.as_bytes());
        this.file.write_all(&record(&event))?;
        this.flush()?;
        Ok(this)
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        self.file.get_ref().path()
    }

    /// Writes one value of a step.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> io::Result<()> {
        self.scalars(step, &[(tag, value)])
    }

    /// Writes several values of a step as one event, in single precision.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        self.file.write_all(&record(&scalar_event(since_epoch(), step, values)))
    }

    /// Passes buffered records to the operating system, where a viewer can read them.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The first free name of this second, host and process.
fn create_new(dir: &Path, seconds: u64) -> io::Result<File> {
    let prefix =
        format!("events.out.tfevents.{seconds:010}.{}.{}", host_in_file_name(), std::process::id());
    let mut number = 0_u32;
    loop {
        match File::create_new(dir.join(format!("{prefix}.{number}"))) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            opened => return opened,
        }
    }
}

/// The name of this machine as part of a file name.
fn host_in_file_name() -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' };
    let name = host_name().unwrap_or_default();
    let name: String = name.chars().take(64).map(plain).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// An `Event` with nothing but its `wall_time`.
fn event_at(time: Duration) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(time.as_secs_f64().to_le_bytes());
    event
}

fn scalar_event(time: Duration, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, tag.as_bytes());
        entry.push(2 << 3 | 5);
        entry.extend((*value as f32).to_le_bytes());
        put_bytes(&mut summary, 1, &entry);
    }
    let mut event = event_at(time);
    event.push(2 << 3);
    put_varint(&mut event, step);
    put_bytes(&mut event, 5, &summary);
    event
}

/// A field with a length: a string or a message.
fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Length and payload, each followed by its checksum.
fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let (length_sum, payload_sum) = (masked_crc(&length), masked_crc(payload));
    [&length[..], &length_sum.to_le_bytes(), payload, &payload_sum.to_le_bytes()].concat()
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK_DELTA)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks and removes the framing of every record.
    fn payloads(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(bytes[8..12], masked_crc(&bytes[..8]).to_le_bytes());
            let (payload, rest) = bytes[12..].split_at(length);
            assert_eq!(rest[..4], masked_crc(payload).to_le_bytes());
            found.push(payload.to_vec());
            bytes = &rest[4..];
        }
        found
    }

    fn take_varint(bytes: &mut &[u8]) -> u64 {
        let end = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let (varint, rest) = bytes.split_at(end);
        *bytes = rest;
        varint.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
    }

    /// The fields of a message: number, and the content without its length.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = take_varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    let value = take_varint(&mut bytes);
                    found.push((key >> 3, value.to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => take_varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            let (content, rest) = bytes.split_at(length);
            found.push((key >> 3, content.to_vec()));
            bytes = rest;
        }
        found
    }

    /// Step, tag and value of every scalar of an event.
    fn scalars_of(event: &[u8]) -> Vec<(u64, String, f32)> {
        let event = fields(event);
        assert_eq!(event.iter().map(|(field, _)| *field).collect::<Vec<_>>(), [1, 2, 5]);
        let step = u64::from_le_bytes(event[1].1[..].try_into().unwrap());
        let values = fields(&event[2].1).into_iter().map(|(field, value)| {
            assert_eq!(field, 1);
            let value = fields(&value);
            let number = f32::from_le_bytes(value[1].1[..].try_into().unwrap());
            (step, String::from_utf8(value[0].1.clone()).unwrap(), number)
        });
        values.collect()
    }

    #[test]
    fn what_was_written_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(&dir.path().join("new/events")).unwrap();
        file.scalar("train/loss", 0, 2.5).unwrap();
        file.scalars(1 << 40, &[("lr", 1e-3), ("größe", f64::INFINITY)]).unwrap();
        file.flush().unwrap();
        let events = payloads(&fs_err::read(file.path()).unwrap());
        let first = fields(&events[0]);
        assert_eq!(first[1], (3, b"brain.Event:2".to_vec()));
        let time = f64::from_le_bytes(first[0].1[..].try_into().unwrap());
        assert!((since_epoch().as_secs_f64() - time).abs() < 600.0);
        assert_eq!(scalars_of(&events[1]), [(0, "train/loss".to_owned(), 2.5)]);
        let several =
            [(1 << 40, "lr".to_owned(), 1e-3), (1 << 40, "größe".to_owned(), f32::INFINITY)];
        assert_eq!(scalars_of(&events[2]), several);
        assert_eq!(events.len(), 3);
    }

    #[test]
    fn two_files_of_the_same_second_have_different_names() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<_> =
            (0..3).map(|_| create_new(dir.path(), 7).unwrap().path().to_owned()).collect();
        let suffix = |n| format!(".{}.{n}", std::process::id());
        for (n, path) in names.iter().enumerate() {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(name.starts_with("events.out.tfevents.0000000007."), "{name}");
            assert!(name.ends_with(&suffix(n)), "{name}");
        }
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_bytes_of_a_record_are_frozen() {
        let event = scalar_event(Duration::from_millis(1500), 300, &[("loss", 0.5)]);
        let length = b"\x1b\0\0\0\0\0\0\0\x1a\x0d\x9e\x13";
        let time_and_step = b"\x09\0\0\0\0\0\0\xf8\x3f\x10\xac\x02";
        let summary = b"\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\0\x3f";
        let expected = [&length[..], time_and_step, summary, b"\x69\xf9\x31\x5b"].concat();
        assert_eq!(record(&event), expected);
    }
}
