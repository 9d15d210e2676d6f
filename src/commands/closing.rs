//! What a run prints at its end: what the packed model says, what it can be asked, what to do next.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use bitnet_format::Shown;
use bitnet_format::adapter::AdapterKind;
use bitnet_format::figures::grouped;
use bitnet_stories::{Difficulty, StoryStyle};
use bitnet_train::exporter::adapter_path;
use bitnet_train::monitor::shown;
use bitnet_train::recipe::{DataSource, ModelSource, Recipe, StageKind};
use bitnet_train::run::{self, Summary};
use serde_json::{Value, json};

use super::chat_model::{ChatModel, ExactMatches, StoryQuestion};
use super::print_line;

/// Tokens generated for each prompt at the end of a run.
const GENERATED_TOKENS: usize = 60;
/// Held-out stories for the exact-match score at the end of a run.
const EVALUATED_STORIES: u64 = 200;
/// Held-out conversations that are shown.
const SHOWN_CONVERSATIONS: u64 = 2;
/// Characters of an answer that are shown.
const SHOWN_ANSWER: usize = 44;
/// Questions that are suggested.
const SUGGESTIONS: usize = 3;

/// A finished stage.
pub(crate) struct FinishedStage<'a> {
    recipe: &'a Recipe,
    summary: Summary,
    /// Exact matches on held-out stories, by difficulty.
    scores: BTreeMap<Difficulty, ExactMatches>,
}

impl<'a> FinishedStage<'a> {
    /// Scores the packed model of a stage that was trained on the synthetic stories.
    pub(crate) fn new(recipe: &'a Recipe, summary: Summary) -> Result<Self> {
        Ok(Self { scores: exact_match(recipe, &summary)?, recipe, summary })
    }

    fn packed(&self) -> Option<PackedExport> {
        PackedExport::of(self.recipe, &self.summary)
    }

    /// Whether its model answers questions about the synthetic stories.
    fn answers_questions(&self) -> bool {
        let generated = matches!(self.recipe.data.source, DataSource::Generate(_));
        generated && self.recipe.stage != StageKind::Pretrain
    }

    pub(crate) fn json(&self) -> Value {
        let path = |path: &PathBuf| json!(path.display().to_string());
        let exports = &self.summary.exports;
        let exports: serde_json::Map<_, _> =
            exports.iter().map(|(format, at)| (format.clone(), path(at))).collect();
        let mut line = json!({
            "out": path(&self.summary.out),
            "steps": self.summary.steps,
            "loss": self.summary.last_loss,
            "exports": exports,
            "peak_rss_bytes": bitnet_train::platform::peak_memory(),
        });
        for (difficulty, ExactMatches { asked, right }) in &self.scores {
            line["questions"][word(*difficulty)] = json!({"asked": asked, "right": right});
        }
        line
    }
}

/// What a run wrote to be run: a packed folder, and a side adapter beside it.
struct PackedExport {
    model: PathBuf,
    adapter: Option<PathBuf>,
}

impl PackedExport {
    fn of(recipe: &Recipe, summary: &Summary) -> Option<Self> {
        // `ChatModel` reads a folder, and only this format is a folder and packed.
        let mut exports = summary.exports.iter();
        let (_, model) = exports.find(|(format, _)| format == "hf-packed")?;
        let side = recipe.adapter.as_ref().filter(|adapter| adapter.kind == AdapterKind::Side);
        let adapter = side.map(|_| adapter_path(model));
        Some(Self { model: model.clone(), adapter })
    }

    fn open(&self) -> Result<ChatModel> {
        ChatModel::open(&self.model, self.adapter.as_deref())
    }

    /// As it is named on a command line.
    fn argument(&self) -> String {
        let model = shown(&self.model).shown().to_string();
        match &self.adapter {
            Some(adapter) => format!("{model} --adapter {}", shown(adapter).shown()),
            None => model,
        }
    }
}

/// Scores the packed model on held-out stories, if it was trained on the synthetic ones.
fn exact_match(recipe: &Recipe, summary: &Summary) -> Result<BTreeMap<Difficulty, ExactMatches>> {
    match (PackedExport::of(recipe, summary), &recipe.data.source) {
        // The worlds are those of the run's own seed; no scene of them is in the training stories.
        (Some(packed), DataSource::Generate(_)) => {
            packed.open()?.exact_match(recipe.seed, EVALUATED_STORIES)
        }
        _ => Ok(BTreeMap::new()),
    }
}

fn word(difficulty: Difficulty) -> &'static str {
    match difficulty {
        Difficulty::OneOfEach => "one_of_a_kind",
        Difficulty::ThreeOfEach => "three_of_a_kind",
        Difficulty::Outside => "outside",
    }
}

/// Prints the end of a pipeline.
pub(crate) fn print_closing(finished: &[FinishedStage]) -> Result<()> {
    let last = finished.last().expect("a pipeline has a stage");
    show(last)?;
    print_progress(finished)?;
    print_scores(finished);
    print_next_steps(last)
}

/// Prints what the packed model generates.
pub(crate) fn show(stage: &FinishedStage) -> Result<()> {
    let Some(packed) = stage.packed() else { return Ok(()) };
    let (recipe, model) = (stage.recipe, packed.open()?);
    for prompt in &recipe.sample.prompts {
        if recipe.stage == StageKind::Pretrain {
            print_line(&format!("> {prompt}{}", model.continue_text(prompt, GENERATED_TOKENS)?));
        } else {
            let answer = model.reply(prompt, GENERATED_TOKENS)?;
            print_line(&format!("User: {prompt}\nAssistant: {answer}"));
        }
    }
    // A stage on questions is shown in a conversation, one on plain text by sentences it finishes.
    if stage.answers_questions() {
        return show_conversations(&model, recipe.seed);
    }
    if matches!(recipe.data.source, DataSource::Generate(_)) {
        print_probes(&model, recipe.seed)?;
    }
    Ok(())
}

fn print_probes(model: &ChatModel, seed: u64) -> Result<()> {
    for (what, style) in [("plain", StoryStyle::Plain), ("eventful", StoryStyle::Hq)] {
        let ExactMatches { asked, right } = model.probe(seed, style, EVALUATED_STORIES)?;
        print_line(&format!(
            "sentences about held-out {what} stories completed exactly: {right} of {asked}"
        ));
    }
    Ok(())
}

fn show_conversations(model: &ChatModel, seed: u64) -> Result<()> {
    for index in 0..SHOWN_CONVERSATIONS {
        print_line("");
        for message in model.converse(seed, index)? {
            let word = match message.role {
                bitnet_text::Role::Assistant => "Assistant",
                _ => "User",
            };
            print_line(&format!("{word}: {}", message.content));
        }
    }
    Ok(())
}

/// Prints what the packed model of each stage answers to the same question.
fn print_progress(finished: &[FinishedStage]) -> Result<()> {
    let last = finished.last().expect("a pipeline has a stage");
    if finished.len() < 2 || !last.answers_questions() {
        return Ok(());
    }
    let StoryQuestion { message, answer } = StoryQuestion::held_out(last.recipe.seed, 0);
    print_line("\nThe same question after each stage, about a story that was in no training data:");
    print_line(&format!("  User: {message}"));
    for stage in finished {
        let Some(packed) = stage.packed() else { continue };
        let said = packed.open()?.reply(&message, GENERATED_TOKENS)?;
        let verdict = if said == answer { "right" } else { "wrong" };
        let said = shortened(&said, SHOWN_ANSWER);
        print_line(&format!("  after {:<9} {said}  ({verdict})", stage.recipe.name));
    }
    Ok(())
}

/// The beginning of a text as one line.
fn shortened(text: &str, most: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // By characters: a cut within one would panic.
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

fn print_scores(finished: &[FinishedStage]) {
    if finished.iter().all(|stage| stage.scores.is_empty()) {
        return;
    }
    print_line("\nQuestions about held-out stories, answered exactly right by the packed model:");
    print_line("                    one of each kind       three of each      about other things");
    for stage in finished {
        let cell = |difficulty: Difficulty| {
            let score = stage.scores.get(&difficulty).copied().unwrap_or_default();
            format!("{:>4} of {} ({:>5.1} %)", score.right, score.asked, 100.0 * score.share())
        };
        print_line(&format!(
            "  after {:<10} {:>20} {:>20} {:>20}",
            stage.recipe.name,
            cell(Difficulty::OneOfEach),
            cell(Difficulty::ThreeOfEach),
            cell(Difficulty::Outside)
        ));
    }
}

pub(crate) fn print_next_steps(stage: &FinishedStage) -> Result<()> {
    let final_dir = run::final_dir(&stage.summary.out);
    let final_dir = shown(&final_dir);
    let steps = grouped(stage.summary.steps);
    let at = final_dir.shown();
    // An adapter is packed with the model that it was trained on.
    let (what, model) = match (&stage.recipe.adapter, &stage.recipe.model) {
        (Some(_), ModelSource::Init(base)) => ("adapter", format!("{} --adapter {at}", base.path)),
        _ => ("model", at.to_string()),
    };
    print_line(&format!("\nThe {what} after {steps} steps: {at}"));
    let Some(packed) = stage.packed() else {
        print_line("Pack it to run it:");
        print_line(&format!(
            "  bitnet-train export --model {model} --format hf-packed --out packed"
        ));
        return Ok(());
    };
    let at = packed.argument();
    print_line(&format!("Packed, two bits a weight: {}", shown(&packed.model).shown()));
    if stage.recipe.stage == StageKind::Pretrain {
        print_line("Continue a text of your own:");
        print_line(&format!(
            "  cargo run --release -p bitnet -- generate --model {at} --prompt \"Once upon a time\"",
        ));
        return Ok(());
    }
    print_line("Talk to it:");
    print_line(&format!("  cargo run --release -p bitnet -- chat --model {at}"));
    if stage.answers_questions() { print_suggestions(&packed, stage.recipe.seed) } else { Ok(()) }
}

/// Prints questions that the model was just seen to answer, and what it cannot do.
fn print_suggestions(packed: &PackedExport, seed: u64) -> Result<()> {
    // The first ones were shown as conversations already.
    let stories = SHOWN_CONVERSATIONS..EVALUATED_STORIES;
    let answered = packed.open()?.answered(seed, stories, SUGGESTIONS)?;
    if !answered.is_empty() {
        print_line("Tell it a story in one line and ask about it; these it answers right:");
    }
    for StoryQuestion { message, answer } in &answered {
        print_line(&format!("  {message}\n    {answer}"));
    }
    print_line(
        "It knows nothing but such stories, and was taught to say so when asked about anything else.",
    );
    Ok(())
}
