//! Lengths as bars for a terminal of 80 columns, or a pipe.

use bitnet_format::figures::grouped;
use bitnet_train::data::corpus::LengthBin;

/// Columns of the longest bar.
const BAR: u64 = 44;

/// A line for each range of lengths: the range, its rows, a bar. At most 80 columns.
pub(crate) fn lines(bins: &[LengthBin], unit: &str) -> Vec<String> {
    let most = bins.iter().map(|bin| bin.rows).max().unwrap_or(0).max(1);
    let line = |bin: &LengthBin| {
        // A range with rows has a bar that can be seen.
        let columns = (u128::from(bin.rows) * u128::from(BAR)).div_ceil(u128::from(most));
        let bar = "#".repeat(columns as usize);
        format!("{:>13} {:>13} {bar}", grouped(bin.from), grouped(bin.rows)).trim_end().to_owned()
    };
    let head = format!("{:>13} {:>13}", format!("{unit} from"), "rows");
    std::iter::once(head).chain(bins.iter().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_in_proportion_and_lines_fit_a_terminal() {
        let bins = [(1, 1_000_000_000_u64), (2, 500_000_000), (4, 0), (8, 1)];
        let lines = lines(&bins.map(|(from, rows)| LengthBin { from, rows }), "tokens");
        let bar = |line: &String| line.matches('#').count();
        assert_eq!(lines.iter().map(bar).collect::<Vec<_>>(), [0, 44, 22, 0, 1]);
        assert!(lines.iter().all(|line| line.len() <= 80));
        assert_eq!(lines[4], "            8             1 #");
    }
}
