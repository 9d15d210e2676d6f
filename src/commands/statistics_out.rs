//! What `bitnet-train data stats` prints.

use bitnet_format::figures::grouped;
use bitnet_train::data::TurnChanges;
use bitnet_train::data::corpus::{CorpusStatistics, FileShare, LengthBin};
use serde_json::{Value, json};

use super::{histogram, print_json, print_line};

/// Prints statistics in a unit of length, for people or as one JSON line.
pub(super) fn print(statistics: &CorpusStatistics, unit: &str, as_one_line: bool) {
    if as_one_line {
        print_json(&as_json(statistics, unit));
    } else {
        print_statistics(statistics, unit);
    }
}

fn as_json(statistics: &CorpusStatistics, unit: &str) -> Value {
    let CorpusStatistics { report, reordering, files, lengths, longest } = statistics;
    let file = |file: &FileShare| {
        let FileShare { name, rows, bytes, tokens } = file;
        json!({"file": name, "rows": rows, "bytes": bytes, "tokens": tokens})
    };
    let bin = |bin: &LengthBin| json!({"from": bin.from, "rows": bin.rows});
    json!({
        "rows": report.rows, "bad": report.bad, "shapes": report.shapes, "unit": unit,
        "turns": report.turns, "reordering": reordering,
        "files": files.iter().map(file).collect::<Vec<_>>(),
        "lengths": lengths.iter().map(bin).collect::<Vec<_>>(), "longest": longest,
    })
}

fn print_statistics(statistics: &CorpusStatistics, unit: &str) {
    let CorpusStatistics { report, reordering, files, lengths, longest } = statistics;
    let size = |file: &FileShare| if unit == "tokens" { file.tokens } else { file.bytes };
    let total = files.iter().map(size).sum::<u64>();
    for file in files {
        let share = 100.0 * size(file) as f64 / total.max(1) as f64;
        let (rows, size) = (grouped(file.rows), grouped(size(file)));
        print_line(&format!("{share:5.1} % {rows:>13} rows {size:>16} {unit}  {}", file.name));
    }
    let bytes = grouped(files.iter().map(|file| file.bytes).sum::<u64>());
    let tokens =
        if unit == "tokens" { format!(", {} tokens", grouped(total)) } else { String::new() };
    let rows = grouped(report.rows - report.bad);
    print_line(&format!(
        "{rows} rows, {bytes} bytes{tokens}; the longest {} {unit}",
        grouped(*longest)
    ));
    if *reordering != TurnChanges::default() {
        let words = reordering.words();
        print_line(&format!("turns, for a template that demands alternation: {words}"));
    }
    for line in report.lines().iter().chain(&histogram::lines(lengths, unit)) {
        print_line(line);
    }
}
