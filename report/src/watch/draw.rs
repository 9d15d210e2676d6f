//! The screen: a line a run, a chart, samples and events; less of it on a small terminal.

use bitnet_format::figures::grouped;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Borders, Chart, Clear, Dataset, GraphType, Paragraph, Wrap};

use super::figures::{fitted, label, status};
use super::screen::WatchScreen;
use crate::folder::RunFolder;

/// One a run, and again from the first.
const COLOURS: [Color; 6] =
    [Color::Cyan, Color::Yellow, Color::Green, Color::Magenta, Color::Red, Color::Blue];
/// Lines of runs at most.
const MOST_RUNS: u16 = 6;
/// Terminals lower than this have no chart.
const CHART_HEIGHT: u16 = 9;
/// Terminals lower than this have no samples.
const SAMPLE_HEIGHT: u16 = 20;
/// Terminals narrower than this have no events beside the samples.
const EVENT_WIDTH: u16 = 70;
/// Samples and events that are looked at from the newest.
const NEWEST: usize = 20;

const KEYS: &str = "q quit  ←/→ figure  s smooth  l log  ↑/↓ run  h help";
const HELP: [&str; 8] = [
    "←  →  Tab     another figure",
    "s             average over 0, 10, 50 or 200 steps",
    "l             logarithmic scale on and off",
    "↑  ↓          the run whose samples and events are shown",
    "h  ?          this help",
    "q  Esc        leave; the run goes on",
    "",
    "The figures come from the run's files, read once a second.",
];

impl WatchScreen {
    /// Draws everything.
    pub fn draw(&self, frame: &mut Frame) {
        let area = frame.area();
        let runs = (self.runs.len() as u16).min(MOST_RUNS).min(area.height);
        let has_chart = area.height >= CHART_HEIGHT;
        let below = if area.height >= SAMPLE_HEIGHT { area.height / 3 } else { 0 };
        // What a small terminal lacks gets the length 0, and the rest its room.
        let [head, chart, texts, keys] = Layout::vertical([
            Constraint::Length(runs),
            Constraint::Fill(u16::from(has_chart)),
            Constraint::Length(below),
            Constraint::Length(u16::from(area.height > runs)),
        ])
        .areas(area);
        self.lines(frame, head);
        if has_chart {
            self.chart(frame, chart);
        }
        if below > 0 {
            self.texts(frame, texts);
        }
        let keys_style = Style::new().add_modifier(Modifier::DIM);
        frame.render_widget(Paragraph::new(KEYS).style(keys_style), keys);
        if self.help {
            help(frame, area);
        }
    }

    /// The chosen run is always among the lines.
    fn lines(&self, frame: &mut Frame, area: Rect) {
        let rows = usize::from(area.height);
        // Scrolls only as far as the chosen run is from the top.
        let first = (self.chosen + 1).saturating_sub(rows);
        let lines = self.runs.iter().enumerate().skip(first).take(rows).map(|(at, run)| {
            let mark = if at == self.chosen && self.runs.len() > 1 { "▸" } else { " " };
            let text = fitted(&status(run), usize::from(area.width).saturating_sub(1));
            Line::from(vec![Span::raw(mark), Span::styled(text, colour(at))])
        });
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
    }

    fn chart(&self, frame: &mut Frame, area: Rect) {
        // A braille letter is two dots wide: more points would fall on the same dots.
        let most = usize::from(area.width).max(2) * 2;
        let curves: Vec<_> = self.runs.iter().map(|run| self.points(run, most)).collect();
        let title = format!(
            " {}{}{} ",
            self.series,
            if self.log { ", log10" } else { "" },
            if self.smoothing() > 0.0 {
                format!(", mean of {} steps", self.smoothing())
            } else {
                String::new()
            }
        );
        let block = Block::new().borders(Borders::TOP).title(title);
        let all = || curves.iter().flatten();
        let bounds = |of: fn(&(f64, f64)) -> f64| {
            let (low, high) =
                all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
                    (low.min(x), high.max(x))
                });
            // A flat curve still needs room.
            let room = if high > low { 0.0 } else { (high.abs() * 0.01).max(1e-9) };
            [low - room, high + room]
        };
        if all().next().is_none() {
            let nothing = format!("no {} yet", self.series);
            return frame.render_widget(Paragraph::new(nothing).block(block), area);
        }
        let (x, y) = (bounds(|point| point.0), bounds(|point| point.1));
        let middle = f64::midpoint;
        let steps =
            [x[0], middle(x[0], x[1]), x[1]].map(|step| grouped(step.round().max(0.0) as u64));
        let scale = |value: f64| label(if self.log { 10f64.powf(value) } else { value });
        let values = [y[0], middle(y[0], y[1]), y[1]].map(scale);
        let sets = curves.iter().enumerate().map(|(at, points)| {
            let set = Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line);
            set.style(colour(at)).data(points)
        });
        let chart = Chart::new(sets.collect())
            .block(block)
            .x_axis(Axis::default().bounds(x).labels(steps))
            .y_axis(Axis::default().bounds(y).labels(values));
        frame.render_widget(chart, area);
    }

    /// The points of the figure that is drawn; values that a logarithm lacks are left out.
    fn points(&self, run: &RunFolder, most: usize) -> Vec<(f64, f64)> {
        let Some(curve) = run.history.curve(&self.series) else { return Vec::new() };
        let smoothed =
            if self.smoothing() > 0.0 { curve.smoothed(self.smoothing()) } else { curve.clone() };
        let points = smoothed.thinned(most).into_iter().map(|(step, value)| (step as f64, value));
        // Points at or below 0 are left out and not drawn at the bottom, where they would set the
        // scale of the axis.
        if self.log {
            return points.filter(|point| point.1 > 0.0).map(|(x, y)| (x, y.log10())).collect();
        }
        points.collect()
    }

    fn texts(&self, frame: &mut Frame, area: Rect) {
        let Some(run) = self.runs.get(self.chosen) else { return };
        let events_width = if area.width >= EVENT_WIDTH { area.width / 3 } else { 0 };
        let [left, right] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Length(events_width)]).areas(area);
        // Newest at the top: what does not fit below is cut off.
        let samples = run.samples.iter().rev().take(NEWEST).map(|sample| {
            Line::from(vec![
                Span::styled(
                    format!("{:>6} ", sample.step),
                    Style::new().add_modifier(Modifier::DIM),
                ),
                Span::styled(one_line(&sample.prompt), Style::new().add_modifier(Modifier::BOLD)),
                Span::raw(one_line(&sample.text)),
            ])
        });
        let block = Block::new().borders(Borders::TOP).title(" samples ");
        let samples = Paragraph::new(samples.collect::<Vec<_>>()).block(block);
        frame.render_widget(samples.wrap(Wrap { trim: false }), left);
        if events_width > 0 {
            let block = Block::new().borders(Borders::TOP).title(" events ");
            frame.render_widget(Paragraph::new(events(run)).block(block), right);
        }
    }
}

/// Resumes, phases and skipped steps, the newest first.
fn events(run: &RunFolder) -> Vec<Line<'static>> {
    let history = &run.history;
    let marks = history.events.iter().map(|(step, what)| (*step, one_line(what)));
    let phases =
        history.phases.iter().map(|(step, name)| (*step, format!("phase {}", one_line(name))));
    let skipped = history.skipped.iter().map(|step| (*step, "skipped".to_owned()));
    let mut all: Vec<_> = marks.chain(phases).chain(skipped).collect();
    all.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    all.into_iter()
        .take(NEWEST)
        .map(|(step, what)| Line::raw(format!("{step:>6} {what}")))
        .collect()
}

/// A text without line breaks and other control characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn colour(at: usize) -> Style {
    Style::new().fg(COLOURS[at % COLOURS.len()])
}

fn help(frame: &mut Frame, area: Rect) {
    let width = 60.min(area.width);
    let height = (HELP.len() as u16 + 2).min(area.height);
    let centred = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, centred);
    let lines: Vec<_> = HELP.into_iter().map(Line::raw).collect();
    let block = Block::new().borders(Borders::ALL).title(" keys ");
    frame.render_widget(Paragraph::new(lines).block(block), centred);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent};

    use super::*;
    use crate::fixtures::small_run;

    fn drawn(screen: &WatchScreen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn every_size_has_what_fits_into_it() {
        let (one, other) = (small_run(20), small_run(10));
        let open = |dir: &tempfile::TempDir| RunFolder::open(dir.path()).unwrap();
        let screen = WatchScreen::new(vec![open(&one), open(&other)]);
        for (width, height) in [(20, 5), (1, 1), (80, 24), (120, 40), (300, 80), (40, 9)] {
            let text = drawn(&screen, width, height);
            assert_eq!(text.contains(" loss "), width > 9 && height >= CHART_HEIGHT, "{text}");
            assert_eq!(text.contains("upon a time"), height >= SAMPLE_HEIGHT, "{text}");
            assert_eq!(text.contains("phase cooldown"), width >= EVENT_WIDTH, "{text}");
        }
    }

    #[test]
    fn other_figures_scales_and_help_are_drawn_too() {
        let dir = small_run(20);
        let mut screen = WatchScreen::new(vec![RunFolder::open(dir.path()).unwrap()]);
        for key in ['l', 's'] {
            screen.key(KeyEvent::from(KeyCode::Char(key)));
        }
        for _ in 0..screen.all_series().len() {
            let text = drawn(&screen, 80, 24);
            assert!(text.contains(&format!("{}, log10", screen.series)), "{text}");
            screen.key(KeyEvent::from(KeyCode::Right));
        }
        screen.key(KeyEvent::from(KeyCode::Char('h')));
        assert!(drawn(&screen, 80, 24).contains("the run goes on"));
        drawn(&screen, 10, 3);
    }

    #[test]
    fn a_run_without_steps_says_so_and_control_characters_stay_out() {
        let dir = small_run(0);
        let run = RunFolder::open(dir.path()).unwrap();
        assert!(drawn(&WatchScreen::new(vec![run]), 80, 24).contains("no loss yet"));
        let dir = small_run(5);
        let sample = serde_json::json!({"step": 5, "prompt": "a\u{1b}[31m", "text": "b\nc"});
        fs_err::write(dir.path().join("samples.jsonl"), format!("{sample}\n")).unwrap();
        let run = RunFolder::open(dir.path()).unwrap();
        let text = drawn(&WatchScreen::new(vec![run]), 80, 24);
        assert!(text.contains("a [31mb c") && !text.contains('\u{1b}'), "{text}");
    }
}
