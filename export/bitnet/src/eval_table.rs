//! Scores as a table: a line a metric, with its standard error.

use bitnet_eval::{
    Difference, MetricResult, OpenTask, ReportRow, TaskGroup, TaskRecord, group_metrics,
};

/// The rows of the report that nothing here measures are part of its mean too.
const REPORT_MEAN: &str =
    "the report's 54.19 is the mean of 16 rows (867.06 / 16), MT-bench as 5.85";

/// Columns: task, examples, rows, metric, score in percent, standard error.
fn line(width: usize, cells: [&str; 6]) -> String {
    let [task, shots, rows, metric, score, error] = cells;
    format!("{task:<width$}  {shots:>5}  {rows:>6}  {metric:<28}  {score:>9}  {error:>8}")
        // An empty last column would leave spaces at the end of the line.
        .trim_end()
        .to_owned()
}

fn width(tasks: &[OpenTask]) -> usize {
    tasks.iter().map(|it| it.task.name().chars().count()).max().unwrap_or(0).max(4)
}

/// The names of the columns.
pub(crate) fn header(tasks: &[OpenTask]) -> String {
    line(width(tasks), ["task", "shots", "rows", "metric", "score", "± stderr"])
}

/// The lines of a finished task.
pub(crate) fn task_lines(tasks: &[OpenTask], record: &TaskRecord) -> Vec<String> {
    let (shots, rows) = (record.num_fewshot.to_string(), record.rows.0.to_string());
    lines(width(tasks), &record.name, &shots, &rows, &record.metrics)
}

/// The lines of all groups.
pub(crate) fn group_lines(groups: &[TaskGroup], records: &[TaskRecord]) -> Vec<String> {
    // At least as wide as the heading `task`.
    let width = records.iter().map(|it| it.name.chars().count()).max().unwrap_or(0).max(4);
    let of = |group: &TaskGroup| {
        let members = records.iter().filter(|record| group.members.contains(&record.name));
        let rows: usize = members.map(|record| record.rows.0).sum();
        lines(width, &group.name, "", &rows.to_string(), &group_metrics(group, records))
    };
    groups.iter().flat_map(of).collect()
}

fn lines(
    width: usize,
    name: &str,
    shots: &str,
    rows: &str,
    metrics: &[MetricResult],
) -> Vec<String> {
    let one = |metric: &MetricResult| {
        let label = match metric.filter.as_str() {
            "none" => metric.metric.clone(),
            filter => format!("{} ({filter})", metric.metric),
        };
        let error = metric.stderr.map(|error| shown(metric, error)).unwrap_or_default();
        line(width, [name, shots, rows, &label, &shown(metric, metric.score), &error])
    };
    metrics.iter().map(one).collect()
}

/// Shares in percent, all else as it is.
fn shown(metric: &MetricResult, value: f64) -> String {
    if metric.is_percent {
        return format!("{value:.2} %");
    }
    let is_no_share = |name: &&str| metric.metric.contains(name);
    if ["perplexity", "bits_per_byte", "mcc"].iter().any(is_no_share) {
        return format!("{value:.4}");
    }
    format!("{:.2} %", 100.0 * value)
}

/// Our scores beside the published ones, and the arithmetic of the mean.
pub(crate) fn suite_summary(
    report: &[ReportRow],
    records: &[TaskRecord],
    groups: &[TaskGroup],
) -> Vec<String> {
    let mut lines = vec![
        String::new(),
        format!("{:<16}  {:<12}  {:>6}  {:>6}", "task", "metric", "this", "2B4T"),
    ];
    let (mut own, mut published) = (Vec::new(), Vec::new());
    for row in report {
        let Some(score) = score_of(row, records, groups) else { continue };
        let ReportRow { task, metric, published: theirs, .. } = row;
        lines.push(format!("{task:<16}  {metric:<12}  {:>6.2}  {theirs:>6.2}", 100.0 * score));
        own.push(100.0 * score);
        published.push(*theirs);
    }
    lines.push(format!("mean of {} rows: this {}", own.len(), arithmetic(&own)));
    lines.push(format!("                 2B4T {}; {REPORT_MEAN}", arithmetic(&published)));
    lines
}

fn score_of(row: &ReportRow, records: &[TaskRecord], groups: &[TaskGroup]) -> Option<f64> {
    let of = |metrics: &[MetricResult]| {
        metrics.iter().find(|it| it.metric == row.metric).map(|metric| metric.score)
    };
    match groups.iter().find(|group| group.name == row.task) {
        Some(group) => of(&group_metrics(group, records)),
        None => of(&records.iter().find(|record| record.name == row.task)?.metrics),
    }
}

fn arithmetic(values: &[f64]) -> String {
    let sum: f64 = values.iter().sum();
    format!("{sum:.2} / {} = {:.2}", values.len(), sum / values.len() as f64)
}

/// The differences of two runs.
pub(crate) fn difference_table(found: &[Difference]) -> Vec<String> {
    let width = found.iter().map(|it| it.task.chars().count()).max().unwrap_or(0).max(4);
    let titles = ("task", "rows", "metric", "first", "second", "difference");
    let mut lines = vec![format!(
        "{:<width$}  {:>6}  {:<28}  {:>9}  {:>9}  {}",
        titles.0, titles.1, titles.2, titles.3, titles.4, titles.5
    )];
    for it in found {
        let label = match it.filter.as_str() {
            "none" => it.metric.clone(),
            filter => format!("{} ({filter})", it.metric),
        };
        let [first, second] = it.means.map(|mean| format!("{mean:.4}"));
        let error = it.stderr.map(|error| format!(" ± {error:.4}")).unwrap_or_default();
        let test = it
            .mcnemar
            .map(|(a, b, p)| format!(", McNemar {a} : {b}, p = {p:.3}"))
            .unwrap_or_default();
        let difference = it.means[1] - it.means[0];
        lines.push(format!(
            "{:<width$}  {:>6}  {label:<28}  {first:>9}  {second:>9}  {difference:+.4}{error}{test}",
            it.task, it.rows
        ));
    }
    lines
}
