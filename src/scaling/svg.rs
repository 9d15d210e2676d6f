//! Losses and curves as a picture: loss against tokens, a curve for each size, both axes logarithmic.

use std::fmt::Write;

/// Size of the drawing and its margins in pixels.
const SIZE: (f64, f64) = (720.0, 440.0);
const MARGIN: (f64, f64) = (70.0, 50.0);
/// Points of a curve.
const CURVE_POINTS: usize = 60;

/// What belongs together: the runs of one size and kind, and the curve of their law.
pub struct Series<'a> {
    /// What it is called.
    pub name: String,
    /// A CSS colour.
    pub colour: &'a str,
    /// Whether the curve is dashed.
    pub dashed: bool,
    /// Tokens and losses, all above 0.
    pub points: Vec<(f64, f64)>,
    /// The loss that the law gives for a number of tokens.
    pub curve: Box<dyn Fn(f64) -> f64 + 'a>,
}

/// An SVG file with all series; an empty drawing without points.
pub fn draw_svg(title: &str, series: &[Series]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        SIZE.0, SIZE.1
    );
    text(&mut svg, (SIZE.0 / 2.0, 22.0), "middle", title);
    if let Some(axes) = Axes::of(series) {
        axes.draw(&mut svg);
        for (at, one) in series.iter().enumerate() {
            axes.draw_series(&mut svg, one);
            let y = MARGIN.1 + 16.0 * at as f64;
            text(&mut svg, (SIZE.0 - MARGIN.0 - 4.0, y), "end", &one.name);
            let (x, y) = (SIZE.0 - MARGIN.0 + 8.0, y - 4.0);
            circle(&mut svg, (x, y), one.colour);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// The logarithms that both axes cover.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn of(series: &[Series]) -> Option<Self> {
        let points = || series.iter().flat_map(|one| &one.points);
        points().next()?;
        let range = |value: fn(&(f64, f64)) -> f64| {
            let logs = || points().map(value).map(f64::ln);
            let (low, high) =
                (logs().fold(f64::INFINITY, f64::min), logs().fold(f64::NEG_INFINITY, f64::max));
            let room = 0.06 * (high - low).max(0.1);
            (low - room, high + room)
        };
        Some(Self { x: range(|point| point.0), y: range(|point| point.1) })
    }

    /// Where a point lies, in pixels.
    fn pixel(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let share = |value: f64, (low, high): (f64, f64)| (value.ln() - low) / (high - low);
        let (width, height) = (SIZE.0 - 2.0 * MARGIN.0, SIZE.1 - 2.0 * MARGIN.1);
        // SVG counts `y` downwards.
        (MARGIN.0 + width * share(x, self.x), SIZE.1 - MARGIN.1 - height * share(y, self.y))
    }

    fn draw(&self, svg: &mut String) {
        let (left, bottom) = (MARGIN.0, SIZE.1 - MARGIN.1);
        let path = format!("M{left},{} V{bottom} H{}", MARGIN.1, SIZE.0 - MARGIN.0);
        stroke(svg, &path, "black", false);
        for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let at = |(low, high): (f64, f64)| (low + share * (high - low)).exp();
            let (x, y) = (at(self.x), at(self.y));
            let (across, up) = self.pixel((x, y));
            text(svg, (across, bottom + 18.0), "middle", &format!("{x:.2e}"));
            text(svg, (left - 6.0, up + 4.0), "end", &format!("{y:.2}"));
        }
        text(svg, (SIZE.0 / 2.0, SIZE.1 - 10.0), "middle", "trained tokens");
        text(svg, (left, MARGIN.1 - 8.0), "middle", "loss, nats a token");
    }

    fn draw_series(&self, svg: &mut String, series: &Series) {
        let at = |i: usize| {
            let share = i as f64 / (CURVE_POINTS - 1) as f64;
            let x = (self.x.0 + share * (self.x.1 - self.x.0)).exp();
            self.pixel((x, (series.curve)(x)))
        };
        // The axes cover the points; the curve of a law may leave them at the top or the bottom.
        let inside = |&(_, y): &(f64, f64)| (MARGIN.1..=SIZE.1 - MARGIN.1).contains(&y);
        let pixels = (0..CURVE_POINTS).map(at).filter(inside);
        let pairs: Vec<String> = pixels.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        if !pairs.is_empty() {
            stroke(svg, &format!("M{}", pairs.join(" L")), series.colour, series.dashed);
        }
        for &point in &series.points {
            circle(svg, self.pixel(point), series.colour);
        }
    }
}

fn stroke(svg: &mut String, path: &str, colour: &str, dashed: bool) {
    let dashes = if dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\"{dashes}/>");
}

fn circle(svg: &mut String, (x, y): (f64, f64), colour: &str) {
    let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    // The words stand between tags, where quotes need no escape.
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ =
        writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_a_circle_and_every_series_a_curve_with_a_name() {
        let series = |name: &str, dashed| Series {
            name: name.to_owned(),
            colour: "#0a0",
            dashed,
            points: vec![(1e5, 4.0), (1e6, 3.0)],
            curve: Box::new(|tokens: f64| 9.0 - tokens.log10()),
        };
        let svg = draw_svg("a < b", &[series("0.4 M ternary", false), series("dense", true)]);
        // Two points of each, and one in the legend.
        assert_eq!(svg.matches("<circle").count(), 6);
        assert_eq!(svg.matches("stroke-dasharray").count(), 1);
        assert!(svg.contains("a &lt; b") && svg.contains("0.4 M ternary"));
        assert!(!svg.contains("NaN") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn no_points_are_an_empty_drawing() {
        assert!(!draw_svg("nothing", &[]).contains("<path"));
    }
}
