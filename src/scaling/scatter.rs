//! Points as characters, the x axis logarithmic.

/// Columns before the drawing.
const GUTTER: usize = 9;

/// A drawing of `height` lines of at most `width` characters above a line for the x axis. Each point is
/// `x` (above 0), `y` and its character; of two at one place the later is seen.
pub fn scatter(points: &[(f64, f64, char)], width: usize, height: usize) -> Vec<String> {
    let columns = width.saturating_sub(GUTTER).max(2);
    let (left, right) = range(points.iter().map(|point| point.0.log10()));
    let (low, high) = range(points.iter().map(|point| point.1));
    let mut cells = vec![vec![' '; columns]; height.max(2)];
    let rows = cells.len();
    for &(x, y, mark) in points {
        let column = place(x.log10(), left, right, columns);
        cells[rows - 1 - place(y, low, high, rows)][column] = mark;
    }
    let label = |row: usize| match row {
        0 => format!("{high:.3}"),
        row if row + 1 == rows => format!("{low:.3}"),
        _ => String::new(),
    };
    let line = |(row, cells): (usize, &Vec<char>)| {
        let drawn: String = cells.iter().collect();
        format!("{:>7} |{drawn}", label(row)).trim_end().to_owned()
    };
    let mut lines: Vec<String> = cells.iter().enumerate().map(line).collect();
    let (first, last) = (format!("{:.1e}", 10f64.powf(left)), format!("{:.1e}", 10f64.powf(right)));
    // `1$` is the second argument: `last` ends where the drawing does.
    lines.push(format!("{:9}{first}{last:>1$}", "", columns.saturating_sub(first.len())));
    lines
}

/// From the least to the greatest.
fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max))
}

/// Which of `cells` a value lies in; the middle one where all values are equal.
fn place(value: f64, low: f64, high: f64, cells: usize) -> usize {
    let share = (value - low) / (high - low);
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.5 };
    (share * (cells - 1) as f64).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_where_their_logarithms_do() {
        let points = [(1.0, 3.0, 'a'), (10.0, 2.0, 'b'), (100.0, 1.0, 'c')];
        let expected = [
            "  3.000 |a",
            "        |          b",
            "  1.000 |                    c",
            "         1.0e0           1.0e2",
        ];
        assert_eq!(scatter(&points, 30, 3), expected);
    }

    #[test]
    fn any_points_and_any_size_can_be_drawn() {
        for (width, height) in [(0, 0), (3, 1), (200, 2)] {
            for points in
                [&[][..], &[(1.0, 1.0, 'x')], &[(1e-300, 1e300, 'x'), (1e300, -1e300, 'y')]]
            {
                assert!(scatter(points, width, height).len() >= 3);
            }
        }
    }
}
