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
//! 3: file_version: string, 5: summary, 7: session_log }`; a summary holds
//! `Value { 1: tag, 2: simple_value, 5: histogram, 8: tensor, 9: metadata }`. A protobuf field is a key (`number << 3 | wire type`) and its content; wire type 0 is a varint,
//! 1 eight bytes, 2 a length and as many bytes, 5 four bytes.

use std::io::{self, BufReader, ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fs_err::File;

use super::curves::{Point, missing, points};
use super::unwritten;
use bitnet_format::process::host_name;

/// Content of the first record of every file.
const FILE_VERSION: &str = "brain.Event:2";
/// `TFRecord` rotates each checksum and adds this: a CRC over data that itself contains CRCs would
/// otherwise lose its strength.
const MASK_DELTA: u32 = 0xa282_ead8;
/// Ours are far shorter; a longer one is not ours.
const LONGEST_RECORD: u64 = 16 << 20;

/// What a full disk may keep in memory; records beyond it are dropped.
const MOST_UNWRITTEN: usize = 8 << 20;

/// An open event file. Dropping it writes what is buffered. After a full disk, what it holds up is
/// written before what comes later.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    /// Records, the first of them perhaps in part in the file already.
    unwritten: Vec<u8>,
}

impl Drop for EventFile {
    fn drop(&mut self) {
        // Curves end no run, and the next one draws from the log what they lack.
        let _ = self.flush();
    }
}

impl EventFile {
    /// Creates a new file in `dir`, and `dir` if missing. Never overwrites a file.
    pub fn create(dir: &Path) -> io::Result<Self> {
        fs_err::create_dir_all(dir)?;
        let now = since_epoch();
        let file = create_new(dir, now.as_secs())?;
        let mut event = event_at(now);
        put_bytes(&mut event, 3, FILE_VERSION.as_bytes());
        let mut this = Self { file, unwritten: record(&event) };
        this.flush()?;
        Ok(this)
    }

    /// Creates a file for a run that goes on after step `last`. A viewer forgets what older files say
    /// of later steps, and what they lack of earlier ones is drawn from the `log`.
    pub fn resume(dir: &Path, log: &Path, last: u64) -> io::Result<Self> {
        let written = if dir.exists() { last_step(dir)? } else { 0 };
        let mut this = Self::create(dir)?;
        this.write(&restart_event(since_epoch(), last + 1))?;
        if log.exists() {
            for line in missing(log, written, last)? {
                this.line(&line)?;
            }
        }
        this.flush()?;
        Ok(this)
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Draws what a line of the log says.
    pub fn line(&mut self, line: &serde_json::Value) -> io::Result<()> {
        let Some((step, points)) = points(line) else { return Ok(()) };
        let values = points.iter().map(|(tag, point)| value_of(tag, point));
        let values: Vec<Vec<u8>> = values.collect();
        self.write(&summary_event(since_epoch(), step, &values))
    }

    /// Writes a text, shown as it is.
    pub fn text(&mut self, tag: &str, step: u64, text: &str) -> io::Result<()> {
        self.write(&summary_event(since_epoch(), step, &[text_value(tag, text)]))
    }

    fn write(&mut self, event: &[u8]) -> io::Result<()> {
        if self.unwritten.len() < MOST_UNWRITTEN {
            self.unwritten.extend(record(event));
        }
        self.flush()
    }

    /// Passes buffered records to the operating system, where a viewer can read them.
    pub fn flush(&mut self) -> io::Result<()> {
        unwritten::drain(&mut self.file, &mut self.unwritten)
    }
}

/// The last step that the files of a directory hold, 0 if none; a file is read as far as it is whole.
fn last_step(dir: &Path) -> io::Result<u64> {
    let mut paths = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        paths.push(entry?.path());
    }
    // Their names begin with the time.
    paths.sort();
    let mut last = 0;
    for path in paths.iter().filter(|path| path.is_file()) {
        let mut file = BufReader::new(File::open(path)?);
        while let Some(payload) = next_payload(&mut file)? {
            last = match parsed(&payload) {
                // As a viewer does: the session that starts at a step makes earlier ones from there
                // void.
                ParsedEvent { step, restart: true } => last.min(step.saturating_sub(1)),
                ParsedEvent { step, restart: false } => last.max(step),
            };
        }
    }
    Ok(last)
}

/// The next whole record; `None` at the end, at a torn record, and in a file of another kind.
fn next_payload(file: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 12];
    if !fill(file, &mut head)? {
        return Ok(None);
    }
    let (length, sum) = head.split_at(8);
    let whole = masked_crc(length).to_le_bytes() == sum;
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
    if !whole || length > LONGEST_RECORD {
        return Ok(None);
    }
    let mut rest = vec![0; length as usize + 4];
    if !fill(file, &mut rest)? {
        return Ok(None);
    }
    rest.truncate(length as usize);
    Ok(Some(rest))
}

/// Whether all of `bytes` could be read.
fn fill(file: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// What is read of an event.
struct ParsedEvent {
    step: u64,
    /// Whether a session began, so that later steps of before are void.
    restart: bool,
}

/// Reads the fields that we write, in our order: the time, a step, then what happened.
fn parsed(event: &[u8]) -> ParsedEvent {
    // A byte of key and eight of time.
    let after_time = event.get(9..).unwrap_or_default();
    let (mut step, mut shift, mut at) = (0, 0, 1);
    if after_time.first() == Some(&(2 << 3)) {
        // 64 bits, seven in each byte.
        for &byte in after_time[1..].iter().take(10) {
            step |= u64::from(byte & 0x7f) << shift;
            (shift, at) = (shift + 7, at + 1);
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    ParsedEvent { step, restart: after_time.get(at) == Some(&(7 << 3 | 2)) }
}

/// The first free name of this second, host and process.
fn create_new(dir: &Path, seconds: u64) -> io::Result<File> {
    // TensorBoard takes a file for one of events by `tfevents` in its name.
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

/// An `Event` with only its `wall_time`.
fn event_at(time: Duration) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1];
    event.extend(time.as_secs_f64().to_le_bytes());
    event
}

/// An event of a step with these values of its summary.
fn summary_event(time: Duration, step: u64, values: &[Vec<u8>]) -> Vec<u8> {
    let mut summary = Vec::new();
    for value in values {
        put_bytes(&mut summary, 1, value);
    }
    let mut event = event_of_step(time, step);
    put_bytes(&mut event, 5, &summary);
    event
}

fn event_of_step(time: Duration, step: u64) -> Vec<u8> {
    let mut event = event_at(time);
    event.push(2 << 3);
    put_varint(&mut event, step);
    event
}

/// A session that starts at a step: `SessionLog { 1: status = START }`.
fn restart_event(time: Duration, step: u64) -> Vec<u8> {
    let mut event = event_of_step(time, step);
    put_bytes(&mut event, 7, &[1 << 3, 1]);
    event
}

fn value_of(tag: &str, point: &Point) -> Vec<u8> {
    let mut value = Vec::new();
    put_bytes(&mut value, 1, tag.as_bytes());
    match point {
        Point::Scalar(number) => {
            value.push(2 << 3 | 5);
            value.extend((*number as f32).to_le_bytes());
        }
        Point::Codes(shares) => put_bytes(&mut value, 5, &histogram(*shares)),
    }
    value
}

/// `HistogramProto { 1: min, 2: max, 3: num, 4: sum, 5: sum_squares, 6: bucket_limit, 7: bucket }` of
/// the codes −1, 0 and +1, each in the middle of its bucket.
fn histogram([minus, zero, plus]: [f64; 3]) -> Vec<u8> {
    let mut message = Vec::new();
    let figures = [-1.0, 1.0, minus + zero + plus, plus - minus, plus + minus];
    for (field, figure) in (1..).zip(figures) {
        message.push(field << 3 | 1);
        message.extend(f64::to_le_bytes(figure));
    }
    for (field, doubles) in [(6, [-1.5, -0.5, 0.5, 1.5]), (7, [0.0, minus, zero, plus])] {
        put_bytes(&mut message, field, doubles.map(f64::to_le_bytes).as_flattened());
    }
    message
}

/// A value of the text plugin: `TensorProto { 1: dtype = STRING, 2: shape, 8: string_val }` with
/// `SummaryMetadata { 1: plugin { 1: name } }`. The viewer takes Markdown; four spaces keep a line as
/// it is.
fn text_value(tag: &str, text: &str) -> Vec<u8> {
    const DT_STRING: u8 = 7;
    let lines: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
    let mut tensor = vec![1 << 3, DT_STRING];
    // An empty shape is that of a single value.
    put_bytes(&mut tensor, 2, &[]);
    put_bytes(&mut tensor, 8, lines.join("\n").as_bytes());
    let (mut plugin, mut metadata, mut value) = (Vec::new(), Vec::new(), Vec::new());
    put_bytes(&mut plugin, 1, b"text");
    put_bytes(&mut metadata, 1, &plugin);
    put_bytes(&mut value, 1, tag.as_bytes());
    put_bytes(&mut value, 8, &tensor);
    put_bytes(&mut value, 9, &metadata);
    value
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
    use serde_json::json;

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
        file.line(&json!({"step": 0, "loss": 2.5})).unwrap();
        file.line(&json!({"step": 1_u64 << 40, "lr": 1e-3, "größe": null})).unwrap();
        file.flush().unwrap();
        let events = payloads(&fs_err::read(file.path()).unwrap());
        let first = fields(&events[0]);
        assert_eq!(first[1], (3, b"brain.Event:2".to_vec()));
        let time = f64::from_le_bytes(first[0].1[..].try_into().unwrap());
        assert!((since_epoch().as_secs_f64() - time).abs() < 600.0);
        assert_eq!(scalars_of(&events[1]), [(0, "train/loss".to_owned(), 2.5)]);
        let [rate, nan] = &scalars_of(&events[2])[..] else { panic!("two values") };
        assert_eq!(*rate, (1 << 40, "train/learning_rate".to_owned(), 1e-3));
        assert!(nan.1 == "train/größe" && nan.2.is_nan());
        assert_eq!(events.len(), 3);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_full_disk_held_up_is_written_before_what_comes_later() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(dir.path()).unwrap();
        let full = fs_err::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let file = std::mem::replace(&mut events.file, full);
        let error = events.line(&json!({"step": 1, "loss": 2.5})).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        events.file = file;
        events.line(&json!({"step": 2, "loss": 2.25})).unwrap();
        events.flush().unwrap();
        let steps = payloads(&fs_err::read(events.path()).unwrap());
        let steps: Vec<u64> = steps[1..].iter().map(|event| scalars_of(event)[0].0).collect();
        assert_eq!(steps, [1, 2]);
    }

    #[test]
    fn codes_and_texts_have_the_form_that_viewers_read() {
        let codes = value_of("codes/all", &Point::Codes([0.25, 0.5, 0.25]));
        let histogram = fields(&fields(&codes)[1].1);
        let numbers = |bytes: &[u8]| -> Vec<f64> {
            bytes.chunks(8).map(|one| f64::from_le_bytes(one.try_into().unwrap())).collect()
        };
        assert_eq!(numbers(&histogram[2].1), [1.0]);
        assert_eq!(numbers(&histogram[5].1), [-1.5, -0.5, 0.5, 1.5]);
        assert_eq!(numbers(&histogram[6].1), [0.0, 0.25, 0.5, 0.25]);
        let text = fields(&text_value("recipe", "a = 1\nb = 2"));
        let numbers: Vec<_> = text.iter().map(|(field, _)| *field).collect();
        assert_eq!(numbers, [1, 8, 9]);
        let tensor = fields(&text[1].1);
        assert_eq!(tensor[2], (8, b"    a = 1\n    b = 2".to_vec()));
        assert_eq!(text[2].1, b"\x0a\x06\x0a\x04text");
    }

    #[test]
    fn a_resumed_run_draws_what_a_kill_lost_and_voids_what_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let (events, log) = (dir.path().join("events"), dir.path().join("metrics.jsonl"));
        let mut killed = EventFile::create(&events).unwrap();
        for step in [1, 2, 8, 9] {
            killed.line(&json!({"step": step, "loss": 1.0})).unwrap();
        }
        killed.flush().unwrap();
        // The log says more, and the run goes on after step 6: steps 8 and 9 are void.
        let lines = (1..=9).map(|step| format!("{{\"step\":{step},\"loss\":1}}\n"));
        fs_err::write(&log, lines.collect::<String>()).unwrap();
        let first = EventFile::resume(&events, &log, 6).unwrap();
        let found = payloads(&fs_err::read(first.path()).unwrap());
        let start = parsed(&found[1]);
        assert!(start.restart && start.step == 7, "what viewers purge begins at step 7");
        assert_eq!(found.len(), 2, "9 was the last step drawn");
        drop(first);
        // Torn by a kill, and again resumed: 7 to 8 are missing now.
        let second = EventFile::resume(&events, &log, 8).unwrap();
        let found = payloads(&fs_err::read(second.path()).unwrap());
        let steps: Vec<_> = found[2..].iter().map(|event| parsed(event).step).collect();
        assert_eq!(steps, [7, 8]);
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
        let value = value_of("loss", &Point::Scalar(0.5));
        let event = summary_event(Duration::from_millis(1500), 300, &[value]);
        let length = b"\x1b\0\0\0\0\0\0\0\x1a\x0d\x9e\x13";
        let time_and_step = b"\x09\0\0\0\0\0\0\xf8\x3f\x10\xac\x02";
        let summary = b"\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\0\x3f";
        let expected = [&length[..], time_and_step, summary, b"\x69\xf9\x31\x5b"].concat();
        assert_eq!(record(&event), expected);
    }
}
