//! The charts of a page, for one run or several.

use crate::chart::{COLOURS, Chart, ChartLine, Stroke, bars, chart};
use crate::folder::RunFolder;

/// A smoothed point hangs on this share of the run's steps.
const SMOOTHED_SHARE: f64 = 0.02;
/// Scales that histograms reach to both sides of 0.
const LATENTS_REACH: f64 = 3.0;

/// What makes a chart of runs.
struct Panel<'a> {
    title: &'a str,
    unit: &'a str,
    runs: &'a [RunFolder],
}

impl Panel<'_> {
    /// A chart of the figures that `of` finds in each run; one run has a colour a figure, several
    /// have one each.
    fn of(&self, figures: &[(&str, &str)], stroke: Stroke) -> Chart {
        let mut lines = Vec::new();
        for (number, run) in self.runs.iter().enumerate() {
            for (at, (name, label)) in figures.iter().enumerate() {
                let Some(curve) = run.history.curve(name) else { continue };
                let label = self.label(run, label, figures.len());
                // Beside other runs a run keeps one colour in all charts, so that one legend is
                // learned.
                let colour = if self.runs.len() > 1 { number } else { at };
                lines.push(ChartLine::of(&label, colour, stroke, curve));
            }
        }
        self.chart(lines)
    }

    fn chart(&self, lines: Vec<ChartLine>) -> Chart {
        let phases = match self.runs {
            // Phases of several runs begin at different steps: their lines would only be noise.
            [run] => run.history.phases.clone(),
            _ => Vec::new(),
        };
        let (title, unit) = (self.title.to_owned(), self.unit.to_owned());
        Chart { title, unit, lines, phases, ..Chart::default() }
    }

    fn label(&self, run: &RunFolder, figure: &str, figures: usize) -> String {
        match (self.runs.len(), figures) {
            (1, _) => figure.to_owned(),
            (_, 1) => run.name.clone(),
            _ => format!("{} {figure}", run.name),
        }
    }

    /// The figures below `prefix` that end in `ending`, of all runs.
    fn below(&self, prefix: &str, ending: &str, stroke: Stroke) -> Chart {
        let mut lines = Vec::new();
        for (number, run) in self.runs.iter().enumerate() {
            let found = run.history.below(prefix).filter_map(|(name, curve)| {
                let name = name.strip_suffix(ending)?;
                // What stands between prefix and ending is one name, as in `tasks/NAME/acc`; where
                // more stands there it is another figure.
                (!name.contains('/')).then_some((name, curve))
            });
            let found: Vec<_> = found.collect();
            for (at, (name, curve)) in found.iter().enumerate() {
                let label = match self.runs.len() {
                    1 => (*name).to_owned(),
                    _ => format!("{} {name}", run.name),
                };
                let colour = if self.runs.len() > 1 { number } else { at };
                lines.push(ChartLine::of(&label, colour, stroke, curve));
            }
        }
        self.chart(lines)
    }
}

/// Loss, held-out loss, rates, norms, speed, memory.
pub(crate) fn training(runs: &[RunFolder]) -> String {
    let panel = |title, unit| Panel { title, unit, runs };
    let skipped = match runs {
        [run] => run.history.skipped.clone(),
        _ => Vec::new(),
    };
    let held_out =
        panel("Held-out loss", "nats a token").below("eval/", "/nll_per_token", Stroke::Points);
    let norm = panel(
        "Gradient norm",
        if skipped.is_empty() { "before clipping" } else { "before clipping; × = skipped step" },
    )
    .of(&[("grad_norm", "norm")], Stroke::Line);
    let speed =
        panel("Speed", "tokens a second").of(&[("tokens_per_second", "speed")], Stroke::Line);
    let charts = [
        loss(runs),
        held_out,
        panel("Learning rate", "").of(&[("lr", "learning rate")], Stroke::Line),
        panel("Weight decay", "").of(&[("weight_decay", "weight decay")], Stroke::Line),
        Chart { marks: skipped, clipped: true, from_zero: true, ..norm },
        Chart { from_zero: true, ..speed },
        Chart { from_zero: true, ..memory(runs) },
    ];
    let zero = |mut chart: Chart| {
        chart.from_zero |= ["Learning rate", "Weight decay"].contains(&&*chart.title);
        chart
    };
    // Panels without points draw nothing, so a run has only the charts of what it logged.
    charts.into_iter().map(|it| chart(&zero(it))).collect::<String>() + &objective(runs)
}

/// The unit of losses: preference runs count pairs.
fn loss_unit(runs: &[RunFolder]) -> &'static str {
    let is_dpo =
        |run: &RunFolder| run.recipe.get("stage").and_then(|it| it.as_str()) == Some("dpo");
    if !runs.is_empty() && runs.iter().all(is_dpo) { "nats a pair" } else { "nats a token" }
}

/// Raw and smoothed; of several runs smoothed only.
fn loss(runs: &[RunFolder]) -> Chart {
    let panel = Panel { title: "Training loss", unit: loss_unit(runs), runs };
    let mut lines = Vec::new();
    for (number, run) in runs.iter().enumerate() {
        let Some(curve) = run.history.curve("loss") else { continue };
        // A share of the run and not a number of steps: a run of 200 steps and one of 200,000 are
        // then equally smooth on the same width of paper.
        let width = run.history.step() as f64 * SMOOTHED_SHARE;
        if let [_] = runs {
            lines.push(ChartLine::of("each step", number, Stroke::Raw, curve));
        }
        let label = panel.label(run, "smoothed", 1);
        lines.push(ChartLine::of(&label, number, Stroke::Line, &curve.smoothed(width)));
    }
    let unit =
        if runs.len() > 1 { format!("{}, smoothed", panel.unit) } else { panel.unit.to_owned() };
    Chart { unit, ..panel.chart(lines) }
}

fn memory(runs: &[RunFolder]) -> Chart {
    let panel = Panel { title: "Memory", unit: "GB, of the training process", runs };
    let mut chart = panel
        .of(&[("process/resident_bytes", "now"), ("process/peak_bytes", "peak")], Stroke::Line);
    for point in chart.lines.iter_mut().flat_map(|line| &mut line.points) {
        point.1 /= 1e9;
    }
    chart
}

/// What else the objective measures in each step.
fn objective(runs: &[RunFolder]) -> String {
    let names: std::collections::BTreeSet<String> =
        runs.iter().flat_map(|run| run.history.others().map(|(name, _)| name.to_owned())).collect();
    let drawn = names.iter().map(String::as_str).map(|name| {
        chart(&Panel { title: name, unit: "", runs }.of(&[(name, name)], Stroke::Line))
    });
    drawn.collect()
}

/// Benchmarks over time.
pub(crate) fn tasks(runs: &[RunFolder]) -> String {
    let panel = Panel { title: "Evaluation tasks", unit: "accuracy", runs };
    chart(&panel.below("tasks/", "/acc", Stroke::Points))
}

/// The ternary codes: shares by kind, flips, dead rows.
pub(crate) fn codes(runs: &[RunFolder]) -> String {
    let panel = |title, unit| Panel { title, unit, runs };
    let mut charts = match runs {
        [run] => shares(run),
        _ => chart(
            &panel("Share of 0", "of all codes").of(&[("ternary/all/zero", "0")], Stroke::Line),
        ),
    };
    let flips = per_step(
        runs,
        panel("Codes flipped", "share of all codes, each step").below(
            "ternary/",
            "/flipped",
            Stroke::Line,
        ),
    );
    charts += &chart(&Chart { from_zero: true, ..flips });
    let dead = panel("Dead rows", "outputs that are always 0").below(
        "ternary/",
        "/dead_rows",
        Stroke::Line,
    );
    charts += &chart(&Chart { from_zero: true, ..dead });
    let moved =
        panel("Codes moved by the adapter", "share").below("ternary/", "/moved", Stroke::Line);
    charts += &chart(&Chart { from_zero: true, ..moved });
    let rounded = panel("Rounded to zero", "share of 8-bit gradients").below(
        "rounded_away/",
        "",
        Stroke::Line,
    );
    charts + &chart(&Chart { from_zero: true, ..rounded })
}

/// Flips between two reports as flips a step.
fn per_step(runs: &[RunFolder], mut chart: Chart) -> Chart {
    let every = runs.iter().filter_map(|run| {
        crate::recipe_keys::whole(&run.recipe, &["telemetry", "every"]).filter(|every| *every > 0)
    });
    let every: Vec<u64> = every.collect();
    let same = every.len() == runs.len() && every.iter().all(|other| *other == every[0]);
    // The log counts flips since the report before; only where all runs report equally often do
    // their curves have one unit.
    match every.first() {
        Some(every) if same => {
            let points = chart.lines.iter_mut().flat_map(|line| &mut line.points);
            points.for_each(|point| point.1 /= *every as f64);
        }
        _ => "share of all codes, between two reports".clone_into(&mut chart.unit),
    }
    chart
}

/// A chart of −1, 0 and +1 for each kind of matrix, that over all kinds first.
fn shares(run: &RunFolder) -> String {
    let kinds = run.history.below("ternary/").filter_map(|(name, _)| name.strip_suffix("/zero"));
    let drawn = kinds.map(|kind| {
        let title = if kind == "all" { "Codes of all matrices" } else { kind };
        let names = ["minus", "zero", "plus"].map(|code| format!("ternary/{kind}/{code}"));
        let figures = [(&*names[0], "−1"), (&*names[1], "0"), (&*names[2], "+1")];
        let panel = Panel { title, unit: "share of codes", runs: std::slice::from_ref(run) };
        chart(&Chart { from_zero: true, ..panel.of(&figures, Stroke::Line) })
    });
    drawn.collect()
}

/// The latents under the codes: how they lie around the threshold, the scale of each layer.
pub(crate) fn latents(run: &RunFolder) -> String {
    let history = &run.history;
    let drawn = history.histograms.iter().map(|(layer, shares)| {
        let title = format!("Latents of layer {layer}");
        let unit = "share, by latent / scale; codes change at the lines";
        // `round(w / m)` changes from 0 to ±1 at half the scale.
        bars(&title, unit, (-LATENTS_REACH, LATENTS_REACH), shares, &[-0.5, 0.5])
    });
    let drawn: String = drawn.collect();
    drawn + &scales(run)
}

fn scales(run: &RunFolder) -> String {
    let lines = run.history.scales.iter().enumerate().map(|(at, (kind, scales))| {
        let points = (0..).zip(scales).map(|(layer, scale)| (f64::from(layer), *scale));
        let (label, colour) = (kind.clone(), at % COLOURS);
        ChartLine { label, colour, stroke: Stroke::Points, points: points.collect() }
    });
    let (title, unit) =
        ("Scale of each layer".to_owned(), "mean of |latent|, last report".to_owned());
    let across = "layer".to_owned();
    chart(&Chart {
        title,
        unit,
        across,
        lines: lines.collect(),
        from_zero: true,
        ..Chart::default()
    })
}
