//! The frame of a chart: which values it spans, where they lie, its ticks.

use std::fmt::Write;

use super::Chart;
use crate::ticks;

/// Size of the picture and of the margins around its frame.
pub(super) const SIZE: (f64, f64) = (640.0, 240.0);
pub(super) const LEFT: f64 = 52.0;
pub(super) const RIGHT: f64 = 10.0;
pub(super) const TOP: f64 = 18.0;
pub(super) const BOTTOM: f64 = 26.0;

/// The values at the edges of a chart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) x: (f64, f64),
    pub(super) y: (f64, f64),
}

impl Frame {
    /// Around all points of a chart; `None` where there are none.
    pub(super) fn of(chart: &Chart) -> Option<Self> {
        let all = || chart.lines.iter().flat_map(|line| line.points.iter().copied());
        let x = span(all().map(|point| point.0))?;
        let (mut low, mut high) = span(all().map(|point| point.1))?;
        if chart.clipped {
            high = most_of(all().map(|point| point.1)).max(low);
        }
        if chart.from_zero {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        let room = (high - low) * 0.05;
        let flat = if high > low { 0.0 } else { (high.abs() * 0.1).max(1e-6) };
        // A curve from 0 stands on the axis; all others have 5 % of room, flat ones a tenth of
        // their value, since a span of 0 would divide by 0 below.
        let bottom = if chart.from_zero && low == 0.0 { 0.0 } else { low - room - flat };
        let x = if x.1 > x.0 { x } else { (x.0 - 1.0, x.1 + 1.0) };
        Some(Self { x, y: (bottom, high + room + flat) })
    }

    pub(super) fn across(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (SIZE.0 - LEFT - RIGHT)
    }

    pub(super) fn up(&self, y: f64) -> f64 {
        let height = SIZE.1 - TOP - BOTTOM;
        let up = TOP + height - (y - self.y.0) / (self.y.1 - self.y.0) * height;
        // What runs out of the picture is cut off there, far enough to be out.
        up.clamp(-SIZE.1, 2.0 * SIZE.1)
    }

    /// Lines and labels of both axes.
    pub(super) fn axes(&self) -> String {
        let (right, bottom) = (SIZE.0 - RIGHT, SIZE.1 - BOTTOM);
        let mut axes = String::new();
        for tick in ticks::linear(self.y.0, self.y.1, 5) {
            let up = self.up(tick);
            let _ = write!(
                axes,
                "<path class=grid d=\"M{LEFT} {up:.1}H{right}\"/><text class=ty x={:.0} y={:.1}>{}</text>",
                LEFT - 6.0,
                up + 3.5,
                ticks::label(tick)
            );
        }
        axes += "<g class=tx>";
        for tick in ticks::linear(self.x.0, self.x.1, 6) {
            let across = self.across(tick);
            let _ = write!(
                axes,
                "<path class=tick d=\"M{across:.1} {bottom}v4\"/><text x={across:.1} y={}>{}</text>",
                bottom + 16.0,
                ticks::label(tick)
            );
        }
        axes + &format!("</g><path class=axis d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>")
    }
}

fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |span: Option<(f64, f64)>, value| {
        let (low, high) = span.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// A value that 95 % of the values do not exceed.
fn most_of(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[(values.len() * 95 / 100).min(values.len() - 1)]
}
