//! For tests: damages a good file in thousands of ways and watches a reader take it.
//!
//! A fuzzer without a fuzzer: it runs on stable Rust with every `cargo test`, always over the
//! same files. `BITNET_MUTATIONS` asks for another number of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

const DEFAULT_RUNS: u64 = 20_000;

/// A guard against readers that hang, not a measurement: a malformed file is answered in this
/// time on a busy machine too.
const LONGEST: Duration = Duration::from_secs(10);

/// Gives `read` damaged copies of `good`; it says whether it could read them. A panic is
/// reported with the number and the bytes of the file.
pub(crate) fn survive_all(good: &[u8], read: impl Fn(Vec<u8>) -> bool) {
    assert!(read(good.to_vec()), "the undamaged file is read");
    let runs = std::env::var("BITNET_MUTATIONS").map_or(DEFAULT_RUNS, |runs| runs.parse().unwrap());
    let mut readable = 0;
    let mut slowest = Duration::ZERO;
    for run in 0..runs {
        let bytes = mutated(good, &mut Random(run));
        let started = Instant::now();
        let Ok(was_read) = catch_unwind(AssertUnwindSafe(|| read(bytes.clone()))) else {
            panic!("file {run} brought the reader down: {bytes:02x?}");
        };
        readable += u64::from(was_read);
        slowest = slowest.max(started.elapsed());
        assert!(slowest < LONGEST, "file {run} took {slowest:?}");
    }
    eprintln!("{runs} damaged files, {readable} still readable, slowest {slowest:?}");
    assert!(readable < runs, "the damage was noticed");
    if let Some(peak) = crate::process::peak_memory() {
        assert!(peak < 1 << 30, "the process once held {peak} bytes");
    }
}

/// One to three damages, one after the other.
fn mutated(good: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=random.below(3) {
        damage(&mut bytes, good, random);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, good: &[u8], random: &mut Random) {
    let at = random.below(bytes.len());
    match random.below(8) {
        0 => overwrite(bytes, at, |byte, random| byte ^ (1 << random.below(8)), random),
        1 => overwrite(bytes, at, |_, random| [0, 0x7f, 0x80, 0xff][random.below(4)], random),
        2 => overwrite(bytes, at, |_, random| random.next() as u8, random),
        3 | 4 => replace(bytes, at, &extreme(random)),
        5 => bytes.truncate(at),
        6 => {
            let inserted = piece(good, random).to_vec();
            bytes.splice(at..at, inserted);
        }
        _ => replace(bytes, at, piece(good, random)),
    }
}

fn overwrite(
    bytes: &mut [u8],
    at: usize,
    change: impl Fn(u8, &mut Random) -> u8,
    random: &mut Random,
) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = change(*byte, random);
    }
}

/// As many of `new` as there is room for.
fn replace(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..].iter_mut().zip(new).for_each(|(byte, &new)| *byte = new);
}

/// Up to 64 bytes of the good file.
fn piece<'a>(good: &'a [u8], random: &mut Random) -> &'a [u8] {
    let start = random.below(good.len());
    let end = good.len().min(start + random.below(65));
    &good[start..end]
}

/// The little-endian integers that sizes and counts go wrong at, 4 or 8 bytes long.
fn extreme(random: &mut Random) -> Vec<u8> {
    let power = 1u64 << random.below(64);
    let value = [0, 1, power, power - 1, u64::MAX, u64::MAX - 31, power.wrapping_neg()];
    let value = value[random.below(7)];
    let len = [4, 8][random.below(2)];
    value.to_le_bytes()[..len].to_vec()
}

/// `SplitMix64` (Steele et al. 2014): any seed will do.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `end - 1`, nearly uniform; 0 when `end` is.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % (end.max(1) as u64)) as usize
    }
}
