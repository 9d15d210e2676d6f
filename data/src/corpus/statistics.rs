//! Counts and lengths of rows.

use bitnet_text::Tokenizer;

use super::reader::{CorpusRequest, RowBatches};
use crate::error::DataError;
use crate::report::RowReport;
use crate::turn_order::TurnChanges;

/// What files hold.
#[derive(Clone, Debug)]
pub struct CorpusStatistics {
    /// Rows, and which of them can be used.
    pub report: RowReport,
    /// What a chat template that demands turns in alternation would do to the turns.
    pub reordering: TurnChanges,
    /// The files in order.
    pub files: Vec<FileShare>,
    /// Rows by length, the shortest first: in tokens with a tokenizer, else in bytes. Lengths
    /// double from one to the next.
    pub lengths: Vec<LengthBin>,
    /// The longest row.
    pub longest: u64,
}

/// The rows of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileShare {
    /// As it was asked for.
    pub name: String,
    /// Rows that can be used.
    pub rows: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Tokens of their text, without those of a chat template; 0 without a tokenizer.
    pub tokens: u64,
}

/// Rows of similar length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthBin {
    /// The shortest length.
    pub from: u64,
    /// How many rows.
    pub rows: u64,
}

/// Counts rows, bytes and, with a tokenizer, tokens.
///
/// # Errors
/// As [`convert`](super::convert()); also a text that cannot be tokenised.
pub fn statistics(
    request: &CorpusRequest<'_>,
    tokenizer: Option<&Tokenizer>,
) -> Result<CorpusStatistics, DataError> {
    let mut rows = RowBatches::of(request)?;
    let named =
        |name: &std::sync::Arc<str>| FileShare { name: name.to_string(), ..FileShare::default() };
    let mut files: Vec<FileShare> = rows.names().iter().map(named).collect();
    let mut bins = [0_u64; u64::BITS as usize + 1];
    let mut longest = 0;
    // Without a template: lengths of the text itself, whatever it will be trained with.
    let tokens = |text: &str| tokenizer.map_or(Ok(0), |one| one.encode(text).map(|ids| ids.len()));
    while let Some(batch) = rows.next(|_, row| {
        let text = row.text();
        (text.len() as u64, tokens(&text))
    })? {
        for (document, (bytes, tokens)) in batch {
            let tokens = tokens.map_err(|error| DataError::Encode {
                location: rows.place(&document),
                what: error.to_string(),
            })? as u64;
            let file = &mut files[document.file];
            (file.rows, file.bytes, file.tokens) =
                (file.rows + 1, file.bytes + bytes, file.tokens + tokens);
            let length = if tokenizer.is_some() { tokens } else { bytes };
            // Bin n has the lengths of n bits: 0, 1, 2–3, 4–7, …
            bins[(u64::BITS - length.leading_zeros()) as usize] += 1;
            longest = longest.max(length);
        }
    }
    let reordering = rows.reordering();
    Ok(CorpusStatistics {
        report: rows.finish()?,
        reordering,
        files,
        lengths: filled(&bins),
        longest,
    })
}

/// The bins from the first to the last that has rows.
fn filled(bins: &[u64]) -> Vec<LengthBin> {
    let Some(first) = bins.iter().position(|rows| *rows > 0) else { return Vec::new() };
    let last = bins.iter().rposition(|rows| *rows > 0).unwrap_or(first);
    let bin =
        |at: usize| LengthBin { from: if at == 0 { 0 } else { 1 << (at - 1) }, rows: bins[at] };
    (first..=last).map(bin).collect()
}
