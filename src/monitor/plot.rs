//! Small plots made of characters. The caller adds title and x axis, and prints the lines.

/// Columns of the y axis's labels, fixed so that plots line up.
const LABEL_WIDTH: usize = 8;
/// Columns before the drawing: label, a space, the axis.
const GUTTER: usize = LABEL_WIDTH + 2;

/// Which characters a terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glyphs {
    /// Braille and block characters.
    Unicode,
    /// Nothing beyond ASCII.
    Ascii,
}

impl Glyphs {
    /// Dots of one character, across and down.
    fn dots(self) -> (usize, usize) {
        match self {
            Self::Unicode => (2, 4),
            Self::Ascii => (1, 1),
        }
    }

    /// A character with those dots set.
    fn cell(self, bits: u8) -> char {
        match (self, bits) {
            (_, 0) => ' ',
            (Self::Unicode, _) => char::from_u32(0x2800 + u32::from(bits)).unwrap_or('?'),
            (Self::Ascii, _) => '*',
        }
    }

    /// The y axis beside a label or beside none.
    fn axis(self, labelled: bool) -> char {
        match (self, labelled) {
            (Self::Unicode, true) => '┤',
            (Self::Unicode, false) => '│',
            (Self::Ascii, true) => '+',
            (Self::Ascii, false) => '|',
        }
    }
}

/// A line plot of `height` lines, none wider than `width` characters, with the highest and the
/// lowest drawn value as labels on the left; a constant series has one label, in the middle.
///
/// A long series is averaged in buckets, a short one interpolated. Non-finite values leave gaps.
/// A plot too narrow for labels has neither labels nor axis.
pub fn plot(series: &[f64], width: usize, height: usize, glyphs: Glyphs) -> Vec<String> {
    let gutter = if width > GUTTER { GUTTER } else { 0 };
    let (across, down) = glyphs.dots();
    let values = resample(series, (width - gutter) * across);
    let range = Range::of(&values);
    let cells = draw(&values, range, width - gutter, height, glyphs);
    let labels = range.map(|range| range.labels(height, down)).unwrap_or_default();
    let line = |row: usize| {
        let label = labels.iter().find(|(at, _)| *at == row).map(|(_, text)| text.as_str());
        let axis = glyphs.axis(label.is_some());
        let axis = format!("{:>LABEL_WIDTH$} {axis}", label.unwrap_or_default());
        let drawn = cells.iter().skip(row * (width - gutter)).take(width - gutter);
        let drawn: String = drawn.map(|bits| glyphs.cell(*bits)).collect();
        format!("{}{drawn}", if gutter > 0 { &axis } else { "" }).trim_end().to_owned()
    };
    (0..height).map(line).collect()
}

/// The lowest and the highest finite value.
#[derive(Clone, Copy)]
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    fn of(values: &[f64]) -> Option<Self> {
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let (low, high) = (finite().reduce(f64::min)?, finite().reduce(f64::max)?);
        Some(Self { low, high })
    }

    /// Which of `levels` a value lies on, from the lowest; the middle one of a constant series.
    fn level(self, value: f64, levels: usize) -> usize {
        let top = levels.saturating_sub(1);
        // Halved, because the difference of two finite numbers need not be finite.
        let share = (value / 2.0 - self.low / 2.0) / (self.high / 2.0 - self.low / 2.0);
        if share.is_finite() { ((share * top as f64).round() as usize).min(top) } else { top / 2 }
    }

    /// The lines that have a label, with its text.
    fn labels(self, height: usize, down: usize) -> Vec<(usize, String)> {
        let dots = height * down;
        let line = |value| (dots.saturating_sub(1) - self.level(value, dots)) / down;
        let [low, high] = label_pair(self.low, self.high);
        vec![(line(self.high), high), (line(self.low), low)]
    }
}

/// Labels of both ends: four digits, more where the two would be equal, fewer where they do not fit.
fn label_pair(low: f64, high: f64) -> [String; 2] {
    let pair = |digits| [short(low, digits), short(high, digits)];
    let fits = |pair: &[String; 2]| pair.iter().all(|text| text.len() <= LABEL_WIDTH);
    let mut precise = (4..8).map(pair).filter(fits);
    let distinct = precise.find(|[low, high]| low != high);
    distinct.or_else(|| (1..=4).rev().map(pair).find(fits)).unwrap_or_default()
}

/// A number with `digits` significant digits: plain from 0.001 to 99,999, else scientific.
fn short(value: f64, digits: usize) -> String {
    let scientific = format!("{value:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 {
        "0".to_owned()
    } else if (-3..5).contains(&exponent) {
        let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
        without_zeros(&format!("{value:.decimals$}")).to_owned()
    } else {
        format!("{}e{exponent}", without_zeros(mantissa))
    }
}

fn without_zeros(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

/// One value for every column.
fn resample(series: &[f64], columns: usize) -> Vec<f64> {
    match series.len() {
        0 | 1 => series.iter().copied().take(columns).collect(),
        length if length >= columns => average(series, columns),
        length => {
            // The first and the last value fall on the first and the last column.
            let scale = (length - 1) as f64 / (columns - 1) as f64;
            (0..columns).map(|column| interpolate(series, column as f64 * scale)).collect()
        }
    }
}

/// Means of the finite values of `buckets` equal parts.
fn average(series: &[f64], buckets: usize) -> Vec<f64> {
    // There are no more buckets than values, so none is empty.
    let start = |bucket| bucket * series.len() / buckets;
    (0..buckets).map(|bucket| mean(&series[start(bucket)..start(bucket + 1)])).collect()
}

fn mean(values: &[f64]) -> f64 {
    let finite = || values.iter().filter(|value| value.is_finite());
    let count = finite().count();
    // Divided before they are added: the sum of two finite numbers need not be finite.
    if count == 0 { f64::NAN } else { finite().map(|value| value / count as f64).sum() }
}

/// Linear interpolation; next to a gap, the nearer value.
fn interpolate(series: &[f64], position: f64) -> f64 {
    let left = (position as usize).min(series.len() - 1);
    let right = (left + 1).min(series.len() - 1);
    let share = position - left as f64;
    let between = series[left] * (1.0 - share) + series[right] * share;
    match between.is_finite() {
        true => between,
        false if share < 0.5 => series[left],
        false => series[right],
    }
}

/// The dots of every cell, row by row. Vertical strokes join neighbouring columns.
fn draw(
    values: &[f64],
    range: Option<Range>,
    width: usize,
    height: usize,
    glyphs: Glyphs,
) -> Vec<u8> {
    let mut cells = vec![0; width * height];
    let (across, down) = glyphs.dots();
    let Some(range) = range.filter(|_| height > 0) else { return cells };
    let mut before = None;
    for (x, value) in values.iter().enumerate() {
        let here =
            value.is_finite().then(|| height * down - 1 - range.level(*value, height * down));
        for y in here.map(|here| stroke(before, here)).into_iter().flatten() {
            cells[y / down * width + x / across] |= dot(x % across, y % down);
        }
        // Nothing is joined across a gap.
        before = here;
    }
    cells
}

/// The rows that a column fills, from its left neighbour's row to its own.
fn stroke(before: Option<usize>, here: usize) -> std::ops::RangeInclusive<usize> {
    match before {
        Some(before) if before < here => before + 1..=here,
        Some(before) if before > here => here..=before - 1,
        _ => here..=here,
    }
}

/// A dot's bit in a Unicode braille pattern (U+2800 and on): the bottom row came later and has the
/// two high bits.
///
/// ```text
/// 01 08
/// 02 10
/// 04 20
/// 40 80
/// ```
fn dot(x: usize, y: usize) -> u8 {
    [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]][y][x]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f64 = f64::NAN;
    const INF: f64 = f64::INFINITY;

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, -0.0, 2.5, 10.0, -3.21159, 12345.6, 123_456.0, 3e-4, 0.00123, -2e-300];
        let texts = texts.map(|value| short(value, 4));
        let expected =
            ["0", "0", "2.5", "10", "-3.212", "12346", "1.235e5", "3e-4", "0.00123", "-2e-300"];
        assert_eq!(texts, expected);
        assert_eq!(label_pair(2.345_11, 2.345_12), ["2.34511", "2.34512"]);
        assert_eq!(label_pair(-1.234_5e-200, 1.0), ["-1e-200", "1"]);
    }

    #[test]
    fn a_falling_loss_falls() {
        let loss: Vec<f64> =
            (0..3000).map(|step| 9.0 / (1.0 + f64::from(step) / 100.0) + 2.0).collect();
        let unicode = [
            "   9.328 ┤⢱",
            "         │⠸⡀",
            "         │ ⢣",
            "         │  ⠑⢄⡀",
            "   2.293 ┤    ⠈⠉⠑⠒⠒⠢⠤⠤⠤⠤⠤⠤⠤⠤⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀",
        ];
        assert_eq!(plot(&loss, 40, 5, Glyphs::Unicode), unicode);
        let ascii = [
            "   8.261 +*",
            "         | *",
            "         | **",
            "         |   *****",
            "   2.295 +        **********************",
        ];
        assert_eq!(plot(&loss, 40, 5, Glyphs::Ascii), ascii);
    }

    #[test]
    fn non_finite_values_are_gaps() {
        let expected = ["       4 +     **", "         |       *", "       1 +***"];
        assert_eq!(plot(&[1.0, 1.0, NAN, 4.0, 3.0], 18, 3, Glyphs::Ascii), expected);
        let nothing = plot(&[NAN, INF], 18, 2, Glyphs::Ascii);
        assert_eq!(nothing, ["         |", "         |"]);
    }

    #[test]
    fn constant_single_and_empty_series_are_fine() {
        let expected = ["         │", "       5 ┤⠤⠤⠤", "         │"];
        assert_eq!(plot(&[5.0; 9], 13, 3, Glyphs::Unicode), expected);
        assert_eq!(plot(&[7.0], 13, 1, Glyphs::Ascii), ["       7 +*"]);
        assert_eq!(plot(&[], 13, 1, Glyphs::Unicode), ["         │"]);
    }

    #[test]
    fn any_size_and_any_number_can_be_drawn() {
        let series = [f64::MIN, 1e-300, NAN, 0.0, f64::MAX];
        for (width, height) in (0..30).flat_map(|width| (0..4).map(move |height| (width, height))) {
            for glyphs in [Glyphs::Unicode, Glyphs::Ascii] {
                let lines = plot(&series, width, height, glyphs);
                assert_eq!(lines.len(), height);
                assert!(lines.iter().all(|line| line.chars().count() <= width));
            }
        }
        assert_eq!(plot(&[1.0, 2.0], 3, 1, Glyphs::Ascii), ["***"]);
    }
}
