//! `bitnet-train data`: converts, counts, splits and cleans files of data.

use std::path::{Path, PathBuf};

use anyhow::Result;
use bitnet_eval::{Selection, open};
use bitnet_format::Shown;
use bitnet_format::figures::grouped;
use bitnet_format::output::OutputClaim;
use bitnet_format::staged::OnExisting;
use bitnet_text::Tokenizer;
use bitnet_train::data::corpus::{
    self, Contamination, CorpusRequest, ExactDuplicates, LeftOut, NearDuplicates, ReferenceTexts,
    RowFile, RowFilter, RowOutputs, SeparatedRows,
};
use bitnet_train::data::{
    BadRows, DataError, DocumentSource, FileOptions, HeldOutShare, ReadingRules, RowReport,
    TextSplit, UnknownRole,
};
use bitnet_train::monitor::{Monitor, Terminal, Verbosity};
use bitnet_train::output::note;
use bitnet_train::platform::Signals;
use bitnet_train::train::TrainError;
use serde_json::{Value, json};

use super::data_flag::expanded;
use super::{print_json, print_line, set_threads, statistics_out};
use crate::cli::{
    ConvertDataArgs, DataCommand, DataFiles, DataStatsArgs, DecontaminateDataArgs, DedupDataArgs,
    SplitDataArgs,
};
use crate::failure::Usage;

/// Rows left out that are shown where no list is written.
const SHOWN: usize = 10;

pub(crate) fn run(command: &DataCommand) -> Result<()> {
    match command {
        DataCommand::Convert(args) => convert(args),
        DataCommand::Stats(args) => stats(args),
        DataCommand::Split(args) => split(args),
        DataCommand::Dedup(args) => dedup(args),
        DataCommand::Decontaminate(args) => decontaminate(args),
        DataCommand::Fetch(args) => super::fetch::run(args),
    }
}

fn convert(args: &ConvertDataArgs) -> Result<()> {
    let job = Job::open(&args.files, args.to.force, &[&args.to.out])?;
    let report = job.run("converting", |request| corpus::convert(request, &args.to.out))?;
    print_report(&report);
    let (out, rows) = (args.to.out.display().to_string(), report.rows - report.bad);
    if args.files.json {
        print_json(&json!({"out": out, "rows": rows, "bad": report.bad, "shapes": report.shapes}));
    } else {
        print_line(&format!("{out}: {} rows", grouped(rows)));
    }
    Ok(())
}

fn split(args: &SplitDataArgs) -> Result<()> {
    let job = Job::open(&args.files, args.to.force, &[&args.to.out, &args.held_out])?;
    let outputs = RowOutputs { kept: Some(&args.to.out), left_out: Some(&args.held_out) };
    let mut filter = HeldOutShare::new(args.share, args.seed);
    let counts = job
        .run("splitting", |request| corpus::separate(request, &mut filter, outputs, &mut |_| {}))?;
    print_report(&counts.report);
    let SeparatedRows { kept, left_out, .. } = counts;
    if args.files.json {
        print_json(&json!({"rows": kept, "held_out": left_out, "bad": counts.report.bad}));
    } else {
        print_line(&format!("{}: {} rows", args.to.out.shown(), grouped(kept)));
        print_line(&format!("{}: {} rows held out", args.held_out.shown(), grouped(left_out)));
    }
    Ok(())
}

fn dedup(args: &DedupDataArgs) -> Result<()> {
    let job = Job::open(&args.files, args.to.force, &outputs(&args.to.out, args.list.as_ref()))?;
    match args.near {
        None => job.clean(
            &mut ExactDuplicates::default(),
            &args.to.out,
            args.list.as_deref(),
            "duplicates",
        ),
        Some(similarity) => {
            let mut filter = NearDuplicates::new(similarity);
            job.clean(&mut filter, &args.to.out, args.list.as_deref(), "near duplicates")
        }
    }
}

fn decontaminate(args: &DecontaminateDataArgs) -> Result<()> {
    let job = Job::open(&args.files, args.to.force, &outputs(&args.to.out, args.list.as_ref()))?;
    let texts = reference_texts(args, &job.signals)?;
    note(&format!(
        "{} different runs of {} words in the evaluation sets; {} of their rows have no text so long",
        grouped(texts.runs() as u64),
        args.words,
        grouped(texts.too_short())
    ));
    job.clean(&mut Contamination(&texts), &args.to.out, args.list.as_deref(), "contaminated rows")
}

fn reference_texts(args: &DecontaminateDataArgs, signals: &Signals) -> Result<ReferenceTexts> {
    let mut texts = ReferenceTexts::new(args.words as usize);
    if let Some(dir) = &args.task_data {
        let selection = Selection::of(&args.tasks).map_err(TrainError::from)?;
        // Without examples before each row: what is compared is the rows, not their prompts.
        for task in open(&selection, dir, Some(0)).map_err(TrainError::from)? {
            for (place, row) in task.data.places() {
                texts.add(format!("{} {place}", task.task.name()), corpus::texts_of(row));
            }
        }
    }
    if !args.against.is_empty() {
        let source = DocumentSource::files(expanded(&args.against, "--against", signals)?);
        texts.add_files(&source).map_err(TrainError::from)?;
    }
    Ok(texts)
}

fn outputs<'a>(out: &'a PathBuf, list: Option<&'a PathBuf>) -> Vec<&'a PathBuf> {
    std::iter::once(out).chain(list).collect()
}

/// A command at work: its files and what it may write.
struct Job {
    source: DocumentSource,
    signals: Signals,
    json: bool,
    _claims: Vec<OutputClaim>,
}

impl Job {
    fn open(files: &DataFiles, force: bool, outputs: &[&PathBuf]) -> Result<Self> {
        set_threads(files.threads)?;
        let signals = Signals::listen().map_err(TrainError::from)?;
        let inputs = expanded(&files.data, "--data", &signals)?;
        let on_existing = if force { OnExisting::Replace } else { OnExisting::Refuse };
        // Held while the command works, so that no other process writes to the same names.
        let mut claims = Vec::new();
        for (at, out) in outputs.iter().enumerate() {
            if outputs[..at].contains(out) {
                let what = format!("{}: expected a file for each output", out.shown());
                return Err(Usage(what).into());
            }
            // A file of rows has no mark of its own, so with --force any file would be replaced.
            // The ending keeps a mistyped option from hitting a model or a tokenizer.
            if out.extension().is_none_or(|end| end != "jsonl") {
                let what = format!("{}: expected a name that ends in .jsonl", out.shown());
                return Err(Usage(what).into());
            }
            // No output may be one of the files that are read.
            let inputs: Vec<_> = inputs.iter().map(PathBuf::as_path).collect();
            let claim = OutputClaim::of(out, on_existing, &inputs, Path::is_file);
            claims.push(claim.map_err(TrainError::from)?);
        }
        let source = DocumentSource::Files(inputs, rules(files));
        Ok(Self { source, signals, json: files.json, _claims: claims })
    }

    /// Works on the files with progress and signals.
    fn run<T>(
        &self,
        what: &str,
        work: impl FnOnce(&CorpusRequest<'_>) -> Result<T, DataError>,
    ) -> Result<T> {
        let terminal = std::cell::RefCell::new(Terminal::new(Verbosity::Normal));
        let request = CorpusRequest {
            source: &self.source,
            interrupted: &|| self.signals.stop().is_some(),
            progress: &|done, total| terminal.borrow_mut().progress(what, done, total),
        };
        // After a signal, whatever went wrong counts as the stop that was asked for.
        let stopped =
            |error| self.signals.stop().map_or(TrainError::from(error), TrainError::ExportStopped);
        Ok(work(&request).map_err(stopped)?)
    }

    /// Writes the rows that a filter keeps, and lists the others.
    fn clean<F: RowFilter>(
        &self,
        filter: &mut F,
        out: &Path,
        list: Option<&Path>,
        what: &str,
    ) -> Result<()> {
        let mut list = LeftOutList::create(list)?;
        let outputs = RowOutputs { kept: Some(out), left_out: None };
        let counts = self.run("reading", |request| {
            corpus::separate(request, filter, outputs, &mut |row| list.add(row))
        })?;
        print_report(&counts.report);
        let SeparatedRows { kept, left_out, .. } = counts;
        let shown = list.finish()?;
        if self.json {
            print_json(
                &json!({"out": out.display().to_string(), "rows": kept, "left_out": left_out,
                "bad": counts.report.bad, "first": shown}),
            );
            return Ok(());
        }
        let share = 100.0 * left_out as f64 / (kept + left_out).max(1) as f64;
        let kept = grouped(kept);
        print_line(&format!(
            "{}: {kept} rows; {} {what} ({share:.2} %) left out",
            out.shown(),
            grouped(left_out)
        ));
        for row in shown {
            print_line(&format!("  {}: {}", text(&row, "place"), text(&row, "reason")));
        }
        Ok(())
    }
}

/// Says what was found in the rows.
fn print_report(report: &RowReport) {
    for line in report.lines() {
        note(&line);
    }
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

fn rules(files: &DataFiles) -> ReadingRules {
    let options = FileOptions {
        field: files.field.clone(),
        columns: files.column.iter().cloned().collect(),
        text_split: if files.blank_lines { TextSplit::BlankLine } else { TextSplit::File },
        ..FileOptions::default()
    };
    ReadingRules {
        files: options,
        unknown_role: if files.drop_unknown_roles { UnknownRole::Drop } else { UnknownRole::Error },
        strict: files.strict,
        bad_rows: if files.skip_bad { BadRows::Skip } else { BadRows::Error },
        max_bad_share: files.max_bad_share,
        ..ReadingRules::default()
    }
}

/// The rows that were left out: the first ones in memory, all of them in a file where one is named.
struct LeftOutList {
    first: Vec<Value>,
    file: Option<RowFile>,
    failed: Option<DataError>,
}

impl LeftOutList {
    fn create(path: Option<&Path>) -> Result<Self> {
        let file = path.map(RowFile::create).transpose().map_err(TrainError::from)?;
        Ok(Self { first: Vec::new(), file, failed: None })
    }

    fn add(&mut self, LeftOut { place, reason }: LeftOut) {
        let row = json!({"place": place.to_string(), "reason": reason});
        // Nobody takes an error for a single row: the first one waits for `finish`.
        if let (Some(file), None) = (&mut self.file, &self.failed) {
            self.failed = file.write(row.to_string().as_bytes()).err();
        }
        if self.first.len() < SHOWN {
            self.first.push(row);
        }
    }

    /// Gives the file its name; the first rows.
    fn finish(self) -> Result<Vec<Value>> {
        let published = match self.failed {
            Some(error) => Err(error),
            None => self.file.map_or(Ok(()), RowFile::publish),
        };
        published.map_err(TrainError::from)?;
        Ok(self.first)
    }
}

fn stats(args: &DataStatsArgs) -> Result<()> {
    let job = Job::open(&args.files, false, &[])?;
    let tokenizer = args.tokenizer.as_deref().map(Tokenizer::from_file).transpose();
    let tokenizer = tokenizer.map_err(TrainError::from)?;
    let statistics =
        job.run("counting", |request| corpus::statistics(request, tokenizer.as_ref()))?;
    let unit = if tokenizer.is_some() { "tokens" } else { "bytes" };
    statistics_out::print(&statistics, unit, args.files.json);
    Ok(())
}
