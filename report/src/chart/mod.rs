//! A chart as SVG that needs no script: axes with units, curves, phases, marks. The page's few
//! lines of script find the values for hovering in the drawn points themselves.

mod draw;
mod frame;

pub(crate) use draw::{bars, chart};

/// Points of a curve in the page; the extremes are among them.
const POINTS: usize = 1000;
/// Colours of the style sheet.
pub(crate) const COLOURS: usize = 8;

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stroke {
    /// Strong.
    Line,
    /// Pale, behind the others.
    Raw,
    /// Strong, with its points: few and far between.
    Points,
}

/// A curve of a chart.
#[derive(Clone, Debug)]
pub(crate) struct ChartLine {
    pub(crate) label: String,
    pub(crate) colour: usize,
    pub(crate) stroke: Stroke,
    pub(crate) points: Vec<(f64, f64)>,
}

impl ChartLine {
    pub(crate) fn of(label: &str, colour: usize, stroke: Stroke, curve: &crate::Curve) -> Self {
        let points = curve.thinned(POINTS).into_iter();
        let points = points.map(|(step, value)| (step as f64, value)).collect();
        Self { label: label.to_owned(), colour: colour % COLOURS, stroke, points }
    }
}

/// A chart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chart {
    pub(crate) title: String,
    /// Unit of the values: `nats a token`.
    pub(crate) unit: String,
    /// Unit of the other axis; steps where empty.
    pub(crate) across: String,
    pub(crate) lines: Vec<ChartLine>,
    /// Where phases begin.
    pub(crate) phases: Vec<(u64, String)>,
    /// Skipped steps.
    pub(crate) marks: Vec<u64>,
    /// Whether 0 belongs to the axis.
    pub(crate) from_zero: bool,
    /// Whether the largest twentieth may run out of the picture: peaks of the gradient norm.
    pub(crate) clipped: bool,
}
