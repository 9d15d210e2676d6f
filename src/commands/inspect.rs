//! `bitnet-train inspect`: a recipe's packed sequences as the model sees them, or a model's contents.

use std::path::Path;

use anyhow::Result;
use bitnet_format::Shown;
use bitnet_format::StoredModel;
use bitnet_format::report::{report, report_json};
use bitnet_terminal::{Stream, colours};
use bitnet_text::Tokenizer;
use bitnet_train::data::{PackedSequence, SourceLocation};
use bitnet_train::monitor::{Terminal, Verbosity, shown};
use bitnet_train::output::result_line;
use bitnet_train::platform::Signals;
use bitnet_train::recipe::{self, Plan, Recipe};
use bitnet_train::run::{self, Preview};
use bitnet_train::train::TrainError;
use serde_json::json;

use super::{print_json, print_line};
use crate::cli::{InspectDataArgs, InspectModelArgs};

/// Surrounds trained tokens: colour on a terminal, brackets elsewhere.
struct Marks {
    begin: &'static str,
    end: &'static str,
}

/// Documents of a row that are named.
const SHOWN_PLACES: usize = 2;

const COLOUR: Marks = Marks { begin: "\u{1b}[1;32m", end: "\u{1b}[0m" };
const BRACKETS: Marks = Marks { begin: "[[", end: "]]" };

pub(crate) fn data(args: &InspectDataArgs) -> Result<()> {
    let (recipe, settings) = args.recipe.read()?;
    match recipe::load(&recipe, &settings).map_err(TrainError::from)? {
        Plan::Single(recipe) => show_data(&recipe, args),
        Plan::Pipeline(files) => {
            // Any directory does: it gives the stages' paths, and nothing is run there.
            let stages = run::pipeline(&files, &settings, "runs".as_ref());
            let stages = stages.map_err(TrainError::from)?;
            if !args.json {
                let name = &stages[0].recipe.name;
                print_line(&format!("the first stage of {}: {name}", stages.len()));
            }
            show_data(&stages[0].recipe, args)
        }
    }
}

fn show_data(recipe: &Recipe, args: &InspectDataArgs) -> Result<()> {
    let signals = Signals::listen().map_err(TrainError::from)?;
    let monitor = &mut Terminal::new(Verbosity::Quiet);
    let preview = run::preview(recipe, args.rows, &signals, monitor)?;
    if args.json {
        print_json(&as_json(&preview));
    } else {
        print_preview(&preview);
    }
    Ok(())
}

/// The rows as numbers; `trained` says for each target whether it is.
fn as_json(preview: &Preview) -> serde_json::Value {
    let row = |(name, row): &(String, PackedSequence)| {
        let documents: Vec<_> = row.documents.iter().map(ToString::to_string).collect();
        let trained: Vec<_> = row.loss_mask.iter().map(|&mask| mask > 0.0).collect();
        json!({"name": name, "documents": documents, "tokens": row.tokens, "targets": row.targets,
            "trained": trained, "segment_starts": row.segment_starts})
    };
    let rows: Vec<_> = preview.rows.iter().map(row).collect();
    json!({"rows": rows, "statistics": preview.statistics})
}

fn print_preview(preview: &Preview) {
    let Preview { statistics, rows, tokenizer } = preview;
    let colour = colours(Stream::Stdout);
    let marks = if colour { COLOUR } else { BRACKETS };
    for (name, row) in rows {
        let trained = row.loss_mask.iter().filter(|&&mask| mask > 0.0).count();
        print_line(&format!(
            "{name}: {} tokens, {trained} of the targets trained, from {}",
            row.tokens.len(),
            places(&row.documents)
        ));
        for segment in segments(row) {
            result_line(&format!("  {}", rendered(tokenizer, row, segment, &marks)));
        }
    }
    for line in statistics {
        print_line(line);
    }
    let marks = if colour { "are green" } else { "are between [[ and ]]" };
    print_line(&format!("tokens are separated by |; trained tokens {marks}"));
}

/// The documents of a row: the first ones, and how many more.
fn places(documents: &[SourceLocation]) -> String {
    let name = |place: &SourceLocation| {
        format!("{}:{}", shown(Path::new(&*place.source)).shown(), place.line)
    };
    let named: Vec<_> = documents.iter().take(SHOWN_PLACES).map(name).collect();
    let more = documents.len() - named.len();
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    named.join(", ") + &rest
}

/// The parts of a row that do not see each other; padding is left out.
fn segments(row: &PackedSequence) -> Vec<std::ops::Range<usize>> {
    let length = row.tokens.len();
    // A segment's first token is the one whose segment begins at itself.
    let mut starts: Vec<usize> =
        (0..length).filter(|&at| row.segment_starts[at] as usize == at).collect();
    starts.push(length);
    let ranges = starts.windows(2).map(|ends| ends[0]..ends[1]);
    // Padding is a segment too: zeros that are not trained.
    let read = |range: &std::ops::Range<usize>| {
        range
            .clone()
            .any(|at| row.loss_mask[at] > 0.0 || row.tokens[at] != 0 || row.targets[at] != 0)
    };
    ranges.filter(read).collect()
}

/// A segment as text, its tokens separated by `|`.
fn rendered(
    tokenizer: &Tokenizer,
    row: &PackedSequence,
    segment: std::ops::Range<usize>,
    marks: &Marks,
) -> String {
    let last = segment.clone().rev().find(|&at| row.tokens[at] != 0 || row.targets[at] != 0);
    let end = last.map_or(segment.start, |last| last + 1);
    // Targets are the inputs one token further on: the first input and all targets are the text.
    let mut text = spelled(tokenizer, row.tokens[segment.start]);
    let mut open = false;
    for at in segment.start..end {
        let trained = row.loss_mask[at] > 0.0;
        if open && !trained {
            text.push_str(marks.end);
        }
        text.push('|');
        if trained && !open {
            text.push_str(marks.begin);
        }
        open = trained;
        text.push_str(&spelled(tokenizer, row.targets[at]));
    }
    if open {
        text.push_str(marks.end);
    }
    text
}

/// One token as text on one line.
fn spelled(tokenizer: &Tokenizer, id: i32) -> String {
    let text = tokenizer.decode(&[id as u32]);
    // Control tokens decode to nothing; they are shown under their own names.
    let text =
        if text.is_empty() { tokenizer.spelling(id as u32).unwrap_or_default() } else { text };
    // Quotes stay as they are: nothing is put between quotes here.
    text.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")
}

pub(crate) fn model(args: &InspectModelArgs) -> Result<()> {
    Signals::end_at_once().map_err(TrainError::from)?;
    let model = StoredModel::open(args.model.path()).map_err(TrainError::from)?;
    if args.json {
        print_json(&report_json(&model).map_err(TrainError::from)?);
    } else {
        report(&model, print_line).map_err(TrainError::from)?;
    }
    Ok(())
}
