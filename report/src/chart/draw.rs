//! Draws charts and bars.

use super::frame::{BOTTOM, Frame, LEFT, RIGHT, SIZE, TOP};
use super::{Chart, ChartLine, Stroke};
use crate::html::escape;
use crate::ticks;

/// Series that the style sheet can switch off.
const SWITCHES: usize = 24;

/// A chart with its title and legend; nothing where there are no points.
pub(crate) fn chart(chart: &Chart) -> String {
    let Some(frame) = Frame::of(chart) else { return String::new() };
    let (width, height) = SIZE;
    let lines: String = (0..).zip(&chart.lines).map(|(at, line)| curve(&frame, line, at)).collect();
    let Frame { x, y } = frame;
    let edges = format!("{} {} {} {}", x.0, x.1, y.0, y.1);
    let plot = format!("{LEFT} {} {TOP} {}", width - RIGHT, height - BOTTOM);
    let across = if chart.across.is_empty() { "step" } else { &chart.across };
    format!(
        // Curves lie in an inner `svg`: the script zooms by its viewBox, which scales curves and
        // marks and leaves axes and labels alone. `data-edges` and `data-plot` are the values and
        // the places of the frame's edges, from which it computes values back.
        "<figure class=chart><figcaption><b>{title}</b> <span>{unit}</span></figcaption>{legend}\n\
         <svg viewBox=\"0 0 {width} {height}\" role=img aria-label=\"{title}\" data-edges=\"{edges}\" \
         data-plot=\"{plot}\">{axes}{phases}<svg class=zoom x={LEFT} y={TOP} width={w} height={h} \
         viewBox=\"{LEFT} {TOP} {w} {h}\" preserveAspectRatio=none>{lines}{marks}</svg>\
         <text class=across x={end} y={low}>{across}</text></svg></figure>\n",
        title = escape(&chart.title),
        unit = escape(&chart.unit),
        legend = legend(&chart.lines),
        w = width - LEFT - RIGHT,
        h = height - TOP - BOTTOM,
        axes = frame.axes(),
        phases = phases(&frame, &chart.phases),
        marks = marks(&frame, &chart.marks),
        // Beside the numbers, where no curve is.
        end = LEFT - 16.0,
        low = height - BOTTOM + 16.0,
        across = escape(across),
    )
}

fn curve(frame: &Frame, line: &ChartLine, at: usize) -> String {
    let place = |&(x, y): &(f64, f64)| format!("{:.1},{:.1} ", frame.across(x), frame.up(y));
    let places: String = line.points.iter().map(place).collect();
    let class = if line.stroke == Stroke::Raw { "raw" } else { "line" };
    let (colour, label) = (line.colour, escape(&line.label));
    let drawn = format!("<polyline class=\"{class} c{colour}\" points=\"{}\"/>", places.trim_end());
    let dot = |&(x, y): &(f64, f64)| {
        format!("<circle class=c{colour} cx={:.1} cy={:.1} r=2.5 />", frame.across(x), frame.up(y))
    };
    // A polyline of one point is invisible.
    let few = line.stroke == Stroke::Points && line.points.len() <= 60 || line.points.len() == 1;
    let dots: String = if few { line.points.iter().map(dot).collect() } else { String::new() };
    format!("<g class=\"s s{at}\" data-label=\"{label}\">{drawn}{dots}</g>")
}

/// A switch for each curve; the style sheet alone makes them work.
fn legend(lines: &[ChartLine]) -> String {
    if lines.len() < 2 {
        return String::new();
    }
    let entry = |(at, line): (usize, &ChartLine)| {
        let (label, colour) = (escape(&line.label), line.colour);
        let raw = if line.stroke == Stroke::Raw { " raw" } else { "" };
        format!(
            "<label><input type=checkbox class=t{at} checked><i class=\"k{colour}{raw}\"></i>{label}</label>"
        )
    };
    let entries: String = lines.iter().enumerate().take(SWITCHES).map(entry).collect();
    format!("<div class=legend>{entries}</div>")
}

fn phases(frame: &Frame, phases: &[(u64, String)]) -> String {
    // One phase is the whole run: nothing to mark.
    if phases.len() < 2 {
        return String::new();
    }
    let bottom = SIZE.1 - BOTTOM;
    let starts = phases.iter().filter(|(step, _)| (*step as f64) < frame.x.1);
    let mut free = 0.0;
    let drawn = starts.map(|(step, name)| {
        let at = frame.across((*step as f64).max(frame.x.0));
        let line = format!("<path class=phase d=\"M{at:.1} {TOP}V{bottom}\"/>");
        // A name that would lie on the one before is left out.
        if at < free {
            return line;
        }
        // The width of text is not known here: about 6 units a letter in the page's font size.
        free = at + 8.0 + 6.0 * name.chars().count() as f64;
        format!("{line}<text class=phase x={:.1} y={}>{}</text>", at + 3.0, TOP - 5.0, escape(name))
    });
    format!("<g class=phases>{}</g>", drawn.collect::<String>())
}

fn marks(frame: &Frame, marks: &[u64]) -> String {
    let up = SIZE.1 - BOTTOM - 5.0;
    let cross = |step: &u64| {
        let at = frame.across(*step as f64);
        format!("<path class=skip d=\"M{:.1} {:.1}l6 6m0 -6l-6 6\"/>", at - 3.0, up - 3.0)
    };
    marks.iter().map(cross).collect()
}

/// Bars from `low` to `high`, with lines at `thresholds`.
pub(crate) fn bars(
    title: &str,
    unit: &str,
    range: (f64, f64),
    shares: &[f64],
    at: &[f64],
) -> String {
    let most = shares.iter().copied().fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    // Room above the highest bar.
    let frame = Frame { x: range, y: (0.0, most * 1.08) };
    let width = (range.1 - range.0) / shares.len() as f64;
    let bar = |(number, share): (usize, &f64)| {
        let left = range.0 + number as f64 * width;
        let (x, up) = (frame.across(left), frame.up(*share));
        let middle = left + width / 2.0;
        // Latents between the thresholds have the code 0 and a colour of their own.
        let class = if at.iter().any(|edge| middle.abs() < edge.abs()) { "zero" } else { "bar" };
        format!(
            "<rect class={class} x={x:.1} y={up:.1} width={:.1} height={:.1}><title>{}: {:.2} %</title></rect>",
            frame.across(left + width) - x - 1.0,
            SIZE.1 - BOTTOM - up,
            ticks::label(middle),
            share * 100.0
        )
    };
    let bars: String = shares.iter().enumerate().map(bar).collect();
    let edge = |x: &f64| {
        format!("<path class=edge d=\"M{:.1} {TOP}V{}\"/>", frame.across(*x), SIZE.1 - BOTTOM)
    };
    let edges: String = at.iter().map(edge).collect();
    format!(
        "<figure class=chart><figcaption><b>{}</b> <span>{}</span></figcaption>\n\
         <svg viewBox=\"0 0 {} {}\" role=img aria-label=\"{}\">{}{bars}{edges}</svg></figure>\n",
        escape(title),
        escape(unit),
        SIZE.0,
        SIZE.1,
        escape(title),
        frame.axes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> ChartLine {
        let label = "<loss>".to_owned();
        ChartLine { label, colour: 0, stroke: Stroke::Line, points: points.to_vec() }
    }

    #[test]
    fn a_curve_runs_from_edge_to_edge_and_its_label_is_text() {
        let drawn = chart(&Chart {
            title: "Loss".into(),
            lines: vec![line(&[(1.0, 4.0), (100.0, 2.0)]), line(&[(1.0, 3.0)])],
            phases: vec![(1, "main".into()), (50, "<b>".into())],
            marks: vec![70],
            ..Chart::default()
        });
        assert!(drawn.contains("points=\"52.0,") && drawn.contains(" 630.0,"), "{drawn}");
        assert!(drawn.contains("&lt;loss&gt;") && !drawn.contains("<loss>"));
        assert!(drawn.contains("&lt;b&gt;") && drawn.contains("class=skip"));
        assert_eq!(drawn.matches("type=checkbox").count(), 2);
    }

    #[test]
    fn a_flat_curve_and_one_of_a_single_point_are_drawn_and_none_is_nothing() {
        for points in [&[(1.0, 0.0), (2.0, 0.0)][..], &[(5.0, -3.0)]] {
            let drawn = chart(&Chart { lines: vec![line(points)], ..Chart::default() });
            assert!(drawn.contains("<polyline") && !drawn.contains("NaN"), "{drawn}");
        }
        assert_eq!(chart(&Chart::default()), "");
        assert_eq!(bars("", "", (-1.0, 1.0), &[0.0], &[]), "");
    }
}
