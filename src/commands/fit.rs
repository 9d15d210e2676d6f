//! `bitnet-train fit`: the scaling law of finished runs, ternary and dense beside each other, with
//! intervals, drawings and what it would mean for large models.

use anyhow::Result;
use bitnet_format::figures::{grouped, significant};
use bitnet_format::output::OutputClaim;
use bitnet_format::staged::{OnExisting, write_file};
use bitnet_format::{Shown, input::read_text};
use bitnet_train::output::note;
use bitnet_train::scaling::{
    Bootstrap, FoundRuns, Interval, LossPoint, MeasuredRun, ScalingLaw, Series, WeightKind,
    bootstrap, draw_svg, read_runs, scatter,
};
use bitnet_train::train::TrainError;
use serde_json::{Value, json};

use super::sweep::table;
use super::{print_json, print_line, print_lines};
use crate::cli::FitArgs;

/// Sizes that people ask about: name and parameters.
const LARGE: [(&str, f64); 3] = [("2B", 2.41e9), ("7B", 7e9), ("13B", 13e9)];
/// Tokens a parameter that Hoffmann et al. found to be the best use of compute.
const TOKENS_A_PARAMETER: f64 = 20.0;
/// What 2B4T was trained on.
const MANY_TOKENS: f64 = 4e12;
/// A share of the smallest loss below which `E` counts as none.
const HARDLY_A_FLOOR: f64 = 0.01;
/// Columns and lines of the drawing in a terminal.
const PLOT: (usize, usize) = (72, 18);
/// Colours of sizes, smallest first.
const COLOURS: [&str; 6] = ["#1b6ca8", "#c1440e", "#3a7d34", "#7b3fa0", "#a67c00", "#444444"];

/// The runs of one kind and their law.
struct KindFit {
    kind: WeightKind,
    points: Vec<LossPoint>,
    fit: Bootstrap,
}

pub(crate) fn run(args: &FitArgs) -> Result<()> {
    let found = read_runs(&args.runs, args.set.as_deref())?;
    for path in &found.unfinished {
        note(&format!("note: {}: not finished, left out", path.shown()));
    }
    let fits = fit_all(args, &found)?;
    if let Some(path) = &args.svg {
        let on_existing = if args.force { OnExisting::Replace } else { OnExisting::Refuse };
        // --force replaces an earlier drawing, and nothing else.
        let is_svg = |path: &std::path::Path| {
            read_text(path, 1 << 24).is_ok_and(|text| text.starts_with("<svg"))
        };
        let claim = OutputClaim::of(path, on_existing, &[], is_svg);
        let _claim = claim.map_err(TrainError::from)?;
        let drawn = picture(&fits);
        write_file(path, drawn.as_bytes(), on_existing).map_err(TrainError::from)?;
    }
    if args.json {
        print_json(&json!({"fits": fits.iter().map(KindFit::json).collect::<Vec<_>>()}));
        return Ok(());
    }
    print_lines(&table(&found.measured));
    print_drawing(&fits);
    fits.iter().for_each(KindFit::print);
    print_warning(&found);
    Ok(())
}

/// A fit for each kind that there are runs of. A kind with too few is left out where another has
/// enough.
fn fit_all(args: &FitArgs, found: &FoundRuns) -> Result<Vec<KindFit>> {
    let (mut fits, mut reasons) = (Vec::new(), Vec::new());
    for kind in [WeightKind::Ternary, WeightKind::Dense] {
        let of_kind = |run: &&MeasuredRun| run.kind == kind;
        let points: Vec<_> = found.measured.iter().filter(of_kind).map(|run| run.point).collect();
        if points.is_empty() {
            continue;
        }
        match bootstrap(&points, args.samples as usize, args.seed) {
            Ok(fit) => fits.push(KindFit { kind, points, fit }),
            Err(reason) => reasons.push(format!("{} runs: {reason}", kind.name())),
        }
    }
    if fits.is_empty() {
        let reason =
            if reasons.is_empty() { "no finished run".to_owned() } else { reasons.join("; ") };
        return Err(TrainError::Refused(format!("no law is fitted: {reason}")).into());
    }
    for reason in &reasons {
        note(&format!("note: {reason}"));
    }
    Ok(fits)
}

/// A figure of a law by its name.
type Figure = (&'static str, fn(&ScalingLaw) -> f64);

const FIGURES: [Figure; 5] = [
    ("E", |law| law.e),
    ("A", |law| law.a),
    ("alpha", |law| law.alpha),
    ("B", |law| law.b),
    ("beta", |law| law.beta),
];

/// Large models after the tokens that suit them, and after as many as 2B4T's.
fn predictions() -> impl Iterator<Item = (&'static str, f64, f64)> {
    let tokens = |n: f64| [TOKENS_A_PARAMETER * n, MANY_TOKENS];
    LARGE.into_iter().flat_map(move |(name, n)| tokens(n).map(|d| (name, n, d)))
}

impl KindFit {
    /// The mean distance between law and runs, as a share of the loss.
    fn residual(&self) -> f64 {
        let share = |point: &LossPoint| {
            // The logarithm of a ratio near 1 is the relative difference, and the same either way
            // round.
            (self.fit.law.loss(point.parameters, point.tokens) / point.loss).ln().abs()
        };
        self.points.iter().map(share).sum::<f64>() / self.points.len() as f64
    }

    /// Whether some samples have no floor at all, or hardly one.
    fn floor_is_unknown(&self) -> bool {
        let least = self.points.iter().map(|point| point.loss).fold(f64::INFINITY, f64::min);
        self.fit.interval(|law| law.e).low < HARDLY_A_FLOOR * least
    }

    fn print(&self) {
        let runs = self.points.len();
        print_line(&format!(
            "\n{}: L = E + A / N^alpha + B / D^beta, {runs} runs, {:.2} % away on average",
            self.kind.name(),
            100.0 * self.residual()
        ));
        for (name, figure) in FIGURES {
            let Interval { low, high } = self.fit.interval(figure);
            let [value, low, high] = [figure(&self.fit.law), low, high].map(significant);
            print_line(&format!("  {name:<6} {value:>10}   95 %: {low} to {high}"));
        }
        if self.floor_is_unknown() {
            print_line("  E is not determined: the losses are too far above it, and it may be 0");
        }
        print_line("  extrapolated loss, nats a token");
        for (name, n, d) in predictions() {
            let Interval { low, high } = self.fit.interval(|law| law.loss(n, d));
            print_line(&format!(
                "  {name:>4} after {:>8} tokens: {:.3}   95 %: {low:.3} to {high:.3}",
                format!("{:.1e}", d),
                self.fit.law.loss(n, d)
            ));
        }
    }

    fn json(&self) -> Value {
        let figure = |(name, figure): Figure| {
            let value =
                json!({"value": figure(&self.fit.law), "interval": self.fit.interval(figure)});
            (name.to_owned(), value)
        };
        let prediction = |(name, n, d): (&str, f64, f64)| {
            let law = |law: &ScalingLaw| law.loss(n, d);
            json!({"model": name, "parameters": n, "tokens": d, "nll_per_token": law(&self.fit.law),
                "interval": self.fit.interval(law)})
        };
        let figures: serde_json::Map<String, Value> = FIGURES.into_iter().map(figure).collect();
        json!({"weights": self.kind.name(), "runs": self.points.len(),
            "mean_residual": self.residual(), "floor_is_unknown": self.floor_is_unknown(), "law": figures,
            "extrapolations": predictions().map(prediction).collect::<Vec<_>>()})
    }
}

/// The runs in the terminal, over the compute they took.
fn print_drawing(fits: &[KindFit]) {
    let marks = fits.iter().flat_map(|fit| {
        let mark = if fit.kind == WeightKind::Ternary { 't' } else { 'd' };
        // 6 N D: two operations a parameter and token forward, four backward.
        fit.points.iter().map(move |p| (6.0 * p.parameters * p.tokens, p.loss, mark))
    });
    print_line("\nloss (nats a token) over training compute (6 N D floating-point operations):");
    print_line("t ternary, d dense");
    let marks: Vec<_> = marks.collect();
    print_lines(&scatter(&marks, PLOT.0, PLOT.1));
}

fn picture(fits: &[KindFit]) -> String {
    let series: Vec<Series> = fits.iter().flat_map(KindFit::series).collect();
    draw_svg("Held-out loss and the fitted laws", &series)
}

impl KindFit {
    /// A series for each size.
    fn series(&self) -> Vec<Series<'_>> {
        let mut sizes: Vec<f64> = self.points.iter().map(|point| point.parameters).collect();
        sizes.sort_unstable_by(f64::total_cmp);
        sizes.dedup();
        let series = |(at, n): (usize, f64)| Series {
            name: format!("{:.2} M {}", n / 1e6, self.kind.name()),
            colour: COLOURS[at % COLOURS.len()],
            dashed: self.kind == WeightKind::Dense,
            points: self
                .points
                .iter()
                // `n` is one of these very numbers, so its bits are equal where the size is.
                .filter(|p| p.parameters.to_bits() == n.to_bits())
                .map(|p| (p.tokens, p.loss))
                .collect(),
            curve: Box::new(move |tokens| self.fit.law.loss(n, tokens)),
        };
        sizes.into_iter().enumerate().map(series).collect()
    }
}

/// How far the predictions lie beyond what was measured.
fn print_warning(found: &FoundRuns) {
    let most = |value: fn(&LossPoint) -> f64| {
        found.measured.iter().map(|run| value(&run.point)).fold(0.0, f64::max)
    };
    let (n, d) = (most(|point| point.parameters), most(|point| point.tokens));
    print_line(&format!(
        "\nThe largest run has {} parameters and {} tokens; the 2B model has {} times the parameters. What \
         stands under \"extrapolated\" is the curve continued and no measurement: the intervals hold the \
         spread of these runs only, not that the law may end, that other data have another E, or that \
         the recipe suits one size better than another.",
        grouped(n as u64),
        grouped(d as u64),
        grouped((LARGE[0].1 / n) as u64)
    ));
}
