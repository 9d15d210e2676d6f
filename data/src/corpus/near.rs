//! Rows that say nearly the same as one before: `MinHash` with locality-sensitive hashing.
//!
//! A text is the set of its runs of five words (letters and digits, small letters). Its signature
//! holds 128 minima of hashes of the set; the share of equal values in two signatures estimates the
//! Jaccard similarity of the sets, with a standard deviation of at most 0.045. Rows are compared
//! where one of 16 bands of eight values agrees: with a similarity of 0.8 in 95 % of all cases,
//! with 0.9 always but once in 10,000, with 0.5 in 6 %. Of several kept rows with the same band the
//! first stands for all.

use std::collections::HashMap;
use std::sync::Arc;

use super::filter::RowFilter;
use crate::document::SourceLocation;
use crate::normal::{mixed, run_hash, word_hashes};

/// Words of a run.
const SHINGLE_WORDS: usize = 5;
/// Values of a signature.
const SIGNATURE_VALUES: usize = 128;
/// Bands of a signature.
const BANDS: usize = 16;
const BAND_VALUES: usize = SIGNATURE_VALUES / BANDS;

/// The low halves of the minima: two that differ agree in one of 65,536 cases.
type Signature = [u16; SIGNATURE_VALUES];

/// Leaves out rows whose estimated similarity to a kept one is at least a threshold. It holds about
/// 1.1 KB for each kept row.
#[derive(Debug)]
pub struct NearDuplicates {
    /// Equal values that make a duplicate.
    least: usize,
    kept: Vec<(Signature, SourceLocation)>,
    /// The first kept row of each band.
    bands: [HashMap<u64, u32>; BANDS],
}

impl NearDuplicates {
    /// A threshold from 0 to 1.
    pub fn new(similarity: f64) -> Self {
        let least = (similarity * SIGNATURE_VALUES as f64).ceil() as usize;
        Self { least, kept: Vec::new(), bands: std::array::from_fn(|_| HashMap::new()) }
    }
}

/// A signature with the hashes of its bands; `None` of a text without words.
#[derive(Debug)]
pub struct NearMark {
    signature: Signature,
    bands: [u64; BANDS],
}

impl RowFilter for NearDuplicates {
    type Mark = Option<NearMark>;

    fn mark(&self, text: &str) -> Option<NearMark> {
        let words = word_hashes(text);
        // Texts of fewer than five words are one run.
        let runs = words.windows(SHINGLE_WORDS.min(words.len()).max(1)).map(run_hash);
        let minima = minima(runs)?;
        let band = |at: usize| {
            let values = minima[at * BAND_VALUES..].iter().take(BAND_VALUES);
            values.fold(0, |hash, value| mixed(hash ^ u64::from(*value)))
        };
        let signature = minima.map(|value| value as u16);
        Some(NearMark { signature, bands: std::array::from_fn(band) })
    }

    fn reason(&mut self, mark: Option<NearMark>, place: &SourceLocation) -> Option<String> {
        let NearMark { signature, bands } = mark?;
        // At most 16 rows are compared, one a band, instead of all that were kept.
        let candidates = self.bands.iter().zip(bands).filter_map(|(rows, band)| rows.get(&band));
        let equal = |row: &u32| {
            let values = self.kept[*row as usize].0.iter().zip(&signature);
            values.filter(|(a, b)| a == b).count()
        };
        let nearest = candidates.map(|row| (equal(row), *row)).max_by_key(|(equal, _)| *equal);
        if let Some((equal, row)) = nearest.filter(|(equal, _)| *equal >= self.least) {
            let similarity = equal as f64 / SIGNATURE_VALUES as f64;
            return Some(format!("{similarity:.2} of {}", self.kept[row as usize].1));
        }
        let row = self.kept.len() as u32;
        let place = SourceLocation { source: Arc::clone(&place.source), line: place.line };
        self.kept.push((signature, place));
        for (rows, band) in self.bands.iter_mut().zip(bands) {
            // The first row of a band stays: later ones are like it, or another band tells them
            // apart.
            rows.entry(band).or_insert(row);
        }
        None
    }
}

/// What each hash function multiplies by, once it is odd, and what it adds.
static FACTORS: [u64; SIGNATURE_VALUES] = every_second(0);
static OFFSETS: [u64; SIGNATURE_VALUES] = every_second(1);

const fn every_second(first: u64) -> [u64; SIGNATURE_VALUES] {
    let mut numbers = [0; SIGNATURE_VALUES];
    let mut at = 0;
    while at < SIGNATURE_VALUES {
        numbers[at] = mixed(2 * at as u64 + first);
        at += 1;
    }
    numbers
}

/// For each of 128 hash functions the least value over the runs; `None` without runs. A function
/// multiplies by an odd number and adds another: its high half is the value.
fn minima(runs: impl Iterator<Item = u64>) -> Option<[u32; SIGNATURE_VALUES]> {
    let mut least = None;
    for run in runs {
        let least = least.get_or_insert([u32::MAX; SIGNATURE_VALUES]);
        for at in 0..SIGNATURE_VALUES {
            // Multiply and add: an odd factor loses no bit, and the high half depends on all lower
            // ones.
            let value = run.wrapping_mul(FACTORS[at] | 1).wrapping_add(OFFSETS[at]) >> 32;
            least[at] = least[at].min(value as u32);
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(line: u64) -> SourceLocation {
        SourceLocation { source: "a.jsonl".into(), line }
    }

    fn reasons(texts: &[String], similarity: f64) -> Vec<Option<String>> {
        let mut filter = NearDuplicates::new(similarity);
        let mut reason = |(at, text): (usize, &String)| {
            let mark = filter.mark(text);
            filter.reason(mark, &place(at as u64 + 1))
        };
        texts.iter().enumerate().map(&mut reason).collect()
    }

    fn words(range: std::ops::Range<u32>) -> String {
        range.map(|n| format!("word{n} ")).collect()
    }

    #[test]
    fn case_and_punctuation_make_no_other_text_and_one_word_of_a_thousand_hardly() {
        let long = words(0..1000);
        let texts = [
            long.clone(),
            long.to_uppercase().replace(' ', ", "),
            long.replace("word500 ", "other "),
            words(1000..2000),
            String::new(),
            String::new(),
        ];
        let reasons = reasons(&texts, 0.8);
        assert_eq!(reasons[1].as_deref(), Some("1.00 of a.jsonl:1"));
        assert!(reasons[2].as_ref().is_some_and(|reason| reason.ends_with("of a.jsonl:1")));
        assert_eq!([&reasons[0], &reasons[3], &reasons[4], &reasons[5]], [&None; 4]);
    }

    #[test]
    fn equal_values_estimate_the_similarity() {
        let filter = NearDuplicates::new(0.8);
        let mark = |range| filter.mark(&words(range)).unwrap().signature;
        // 1,996 runs each, of which 996 and 1,796 are shared: 0.33 and 0.82.
        for (start, similarity) in [(1000, 0.332), (200, 0.818)] {
            let (a, b) = (mark(0..2000), mark(start..start + 2000));
            let equal = a.iter().zip(&b).filter(|(a, b)| a == b).count();
            let found = equal as f64 / SIGNATURE_VALUES as f64;
            assert!((found - similarity).abs() < 0.15, "{found}: within four deviations");
        }
    }
}
