//! From a recipe's tree to a [`Recipe`]: every section in turn, then the rules between them (`rules`).

use std::path::{Path, PathBuf};

use super::batch_size::BatchWarmup;
use super::data::read_data;
use super::distill::read_distill;
use super::error::Problems;
use super::export_format::ExportFormat;
use super::item::{Bound, Item};
use super::model::{InitModel, ModelSource, Paths, read_model};
use super::phase::read_phases;
use super::rules::check_rules;
use super::schedule::default_warmup;
use super::section::Section;
use super::settings::{
    AdapterSettings, Bf16Sums, ChatFormat, Checkpoint, DpoSettings, Eval, EvalTasks, Export,
    GRADIENT_ROUNDING_WORDS, Guard, Length, LossSettings, Optimizer, OptimizerKind, Precision,
    REDUCE_PRECISION_WORDS, Recipe, ReportSettings, Sample, TelemetrySettings, TokenizerSource,
    Train,
};
use super::stage::{LossReduction, StageKind};
use super::ternary_warmup::TernaryWarmup;
use super::tree::Node;
use crate::latents::{LatentFormat, LeanSettings, MomentFormat, UpdateTime};
use crate::monitor::TrackerKind;
use crate::story_tasks::is_generated;
use crate::train::step::muon::MuonSettings;
use bitnet_format::adapter::LARGEST_RANK;
use bitnet_text::{MAX_VOCAB, MIN_VOCAB};

/// No run is longer.
const MOST_STEPS: u64 = 1_000_000_000_000;
/// Parts of a micro-batch.
const MOST_COPIES: u64 = 64;
/// Nor has one more text.
const MOST_TOKENS: u64 = 1_000_000_000_000_000;

/// Reads the whole tree of the recipe at `path`; what it returns is one only if `problems` stays
/// empty.
pub(super) fn read_recipe(tree: &Node, path: &Path, shown: &Path, problems: &Problems) -> Recipe {
    let nowhere = Path::new("");
    let base = path.parent().unwrap_or(nowhere);
    let paths = Paths { shown: shown.parent().unwrap_or(nowhere), base };
    let mut root = Section::root(tree, problems);
    // Four sections come first, for what later ones ask of them: of the stage its defaults,
    // of the model its rows for the tokenizer, of the data its sets for the phases, of
    // `[train]` the length.
    let stage = root.required("stage", "\"pretrain\", \"sft\" or \"dpo\"", |item| {
        item.choice(StageKind::WORDS)
    });
    let stage = stage.unwrap_or(StageKind::Pretrain);
    let (model, parametrisation) = read_model(&mut root, paths);
    let (tokenizer, chat) = read_tokenizer(&mut root, base, model.as_ref());
    let data = read_data(&mut root, stage, base);
    let (train, lean) = read_train(&mut root);
    let adapter = read_adapter(&mut root);
    let ternary_warmup = TernaryWarmup::read(&mut root, train.length.known_steps());
    let recipe = Recipe {
        path: path.to_owned(),
        name: root.optional("name", read_name).unwrap_or_else(|| stem(path)),
        stage,
        seed: root.value("seed", |item| item.whole(0)),
        device: root.value("device", read_device),
        model: model.unwrap_or_else(|| ModelSource::Init(InitModel::default())),
        parametrisation,
        tokenizer,
        chat,
        phases: read_phases(&mut root, stage, &data.sets(stage)),
        optimizer: read_optimizer(&mut root, train.length, lean),
        loss: read_loss(&mut root, stage),
        distill: read_distill(&mut root, base),
        dpo: read_dpo(&mut root),
        eval: read_eval(&mut root, data.has_validation(), base),
        checkpoint: read_checkpoint(&mut root),
        sample: read_sample(&mut root),
        export: read_export(&mut root),
        guard: read_guard(&mut root),
        telemetry: read_telemetry(&mut root),
        report: read_report(&mut root),
        data,
        train,
        adapter,
        ternary_warmup,
    };
    check_rules(&mut root, &recipe);
    root.finish();
    recipe
}

/// The adapter to train, where the recipe has that section.
fn read_adapter(root: &mut Section<'_>) -> Option<AdapterSettings> {
    if !root.has("adapter") {
        // Asked for all the same: a message about an unknown key lists those that were asked for.
        root.item("adapter");
        return None;
    }
    let mut table = root.section("adapter");
    let kinds = AdapterSettings::KINDS;
    let kind = table.required("kind", "\"latent\" or \"side\"", |item| item.choice(kinds));
    let rank = table.value("rank", |item| item.whole_between(1, LARGEST_RANK)) as usize;
    let alpha = table.value("alpha", |item| item.number(Bound::Factor));
    let targets = table.optional("targets", |item| {
        let items = item.list("a list of matrices, such as [\"q_proj\", \"v_proj\"]")?;
        items.iter().map(Item::word).collect::<Option<Vec<_>>>()
    });
    let targets = targets.unwrap_or_else(|| AdapterSettings::ALL_TARGETS.map(str::to_owned).into());
    table.finish();
    Some(AdapterSettings { kind: kind?, rank, alpha, targets })
}

/// A device; `cpu` is another word for the one every build has.
fn read_device(item: &Item<'_>) -> Option<String> {
    let word = item.word()?;
    Some(if word == "cpu" { "flex".to_owned() } else { word })
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A name that can be a folder's.
fn read_name(item: &Item<'_>) -> Option<String> {
    let name = item.word()?;
    // It becomes a part of a path: `runs/NAME`, or `2-NAME` for a stage of a pipeline.
    if name.contains(['/', '\\', '\0']) || name == "." || name == ".." {
        item.problem(format!("not a name; expected one without slashes, got {name:?}"));
    }
    Some(name)
}

fn read_tokenizer(
    root: &mut Section<'_>,
    base: &Path,
    model: Option<&ModelSource>,
) -> (TokenizerSource, ChatFormat) {
    let rows = match model {
        Some(ModelSource::New { spec }) => spec.vocab_size(),
        _ => None,
    };
    // Asked of the tree and not of `model`, which is `None` too where `init` is there and wrong.
    let from_init = root.section("model").has("init");
    if from_init && !root.has("tokenizer") {
        root.item("tokenizer");
        return (TokenizerSource::FromInit, ChatFormat::Model);
    }
    let mut table = root.section("tokenizer");
    let chat = table.value("chat_template", |item| read_chat(item, base));
    let path = table.item("path");
    let train = table.item("train");
    let source = match (path, train) {
        (Some(item), None) => item.path(base).map(TokenizerSource::Path),
        (None, Some(item)) => read_tokenizer_size(&item, rows),
        (Some(_), Some(item)) => {
            let message = "`train` beside `path`; expected one or the other, got both";
            item.problem(message.into());
            None
        }
        (None, None) if from_init => Some(TokenizerSource::FromInit),
        (None, None) => {
            table.missing("path", "a tokenizer.json, or train = { vocab_size = … }");
            None
        }
    };
    table.finish();
    let source = source.unwrap_or(TokenizerSource::Path(PathBuf::new()));
    (source, chat)
}

/// The name of a built-in template, or a file.
fn read_chat(item: &Item<'_>, base: &Path) -> Option<ChatFormat> {
    let word = item.word()?;
    Some(match &*word {
        "model" => ChatFormat::Model,
        "b158" | "b158-joined" => ChatFormat::B158,
        "b158-apart" => ChatFormat::B158Apart,
        file => {
            let path = item.folder_of(file, base).join(file);
            if !path.is_file() {
                let message =
                    "no such template; expected model, b158, b158-apart or a Jinja file, got";
                item.problem(format!("{message} {file:?}"));
            }
            ChatFormat::Jinja(path)
        }
    })
}

/// Reads `{ vocab_size }`, at most as many tokens as the model has rows for.
fn read_tokenizer_size(item: &Item<'_>, rows: Option<usize>) -> Option<TokenizerSource> {
    let mut table = Section::of(item, "a table such as { vocab_size = 1024 }")?;
    let vocab_size = table.required("vocab_size", "tokens to learn", |item| {
        let size = item.count()?;
        if !(MIN_VOCAB..=MAX_VOCAB).contains(&size) {
            item.problem(format!("out of range; expected {MIN_VOCAB} to {MAX_VOCAB}, got {size}"));
            return None;
        }
        if let Some(rows) = rows.filter(|&rows| rows < size) {
            let message = "more tokens than the model has rows; expected at most its vocab_size";
            item.problem(format!("{message} {rows}, got {size}"));
        }
        Some(size)
    });
    table.finish();
    Some(TokenizerSource::Train { vocab_size: vocab_size? })
}

/// The section, and whether it asks for little memory.
fn read_train(root: &mut Section<'_>) -> (Train, bool) {
    // An adapter's own parameters are few, so `lean` leaves latents and updates as they are.
    let adapted = root.has("adapter");
    let mut table = root.section("train");
    let length = read_length(&mut table);
    let batch = table.required("batch", "sequences an optimizer step", Item::count);
    let micro_batch = table.optional("micro_batch", |item| read_micro_batch(item, batch));
    let rounding = |item: &Item<'_>| item.choice(GRADIENT_ROUNDING_WORDS);
    let minutes = |item: &Item<'_>| item.number(Bound::Minutes);
    let copies = |item: &Item<'_>| Some(item.whole_between(1, MOST_COPIES)? as usize);
    let lean = table.optional("memory", |item| item.choice(&[("standard", false), ("lean", true)]));
    let lean = lean.unwrap_or(false);
    // What a key says wins over what `memory` chooses for it.
    let recompute = table.optional("recompute", Item::boolean);
    let latents = table.optional("latents", |item| item.choice(LatentFormat::WORDS));
    let update = table.optional("update", |item| item.choice(UpdateTime::WORDS));
    let (small_latents, early) = match LeanSettings::PRESET.latents {
        Some(format) if lean && !adapted => (format, UpdateTime::During),
        _ => (LatentFormat::F32, UpdateTime::After),
    };
    let train = Train {
        length: length.unwrap_or(Length::Epochs(1.0)),
        batch: batch.unwrap_or(1),
        batch_warmup: table.optional("batch_warmup", |item| {
            BatchWarmup::read(item, batch, length.and_then(Length::known_steps))
        }),
        micro_batch: micro_batch.or(batch).unwrap_or(1),
        gradient_copies: table.value("gradient_copies", copies),
        precision: table.value("precision", |item| item.choice(Precision::WORDS)),
        bf16_sums: table.value("bf16_sums", |item| item.choice(Bf16Sums::WORDS)),
        gradient_rounding: table.value("gradient_rounding", rounding),
        recompute: recompute.unwrap_or(lean),
        latents: latents.unwrap_or(small_latents),
        update: update.unwrap_or(early),
        shard_optimizer: table.value("shard_optimizer", Item::boolean),
        reduce_precision: table
            .value("reduce_precision", |item| item.choice(REDUCE_PRECISION_WORDS)),
        max_minutes: Some(table.value("max_minutes", minutes)).filter(|&minutes| minutes > 0.0),
        freeze: table.value("freeze", read_freeze),
    };
    table.finish();
    (train, lean)
}

/// Names of tensors with wildcards.
fn read_freeze(item: &Item<'_>) -> Option<Vec<String>> {
    let items = item.list("a list of tensor names, such as [\"model.embed_tokens.*\"]")?;
    let read = |item: &Item<'_>| {
        let pattern = item.word()?;
        if let Err(error) = glob::Pattern::new(&pattern) {
            let message = format!("bad pattern: {}; expected a tensor name", error.msg);
            item.problem(format!("{message}, got {pattern:?}"));
        }
        Some(pattern)
    };
    items.iter().map(read).collect()
}

fn read_length(table: &mut Section<'_>) -> Option<Length> {
    let steps = table.item("steps");
    let tokens = table.item("tokens");
    let epochs = table.item("epochs");
    let given: Vec<_> = [&steps, &tokens, &epochs].into_iter().flatten().collect();
    if given.is_empty() {
        table.missing("steps", "exactly one of steps, tokens and epochs");
    }
    for item in given.iter().skip(1) {
        item.problem(
            "a second length; expected exactly one of steps, tokens and epochs, got more".into(),
        );
    }
    if let Some(item) = steps {
        return item.whole_between(1, MOST_STEPS).map(Length::Steps);
    }
    match tokens {
        Some(item) => item.whole_between(1, MOST_TOKENS).map(Length::Tokens),
        None => epochs?.number(Bound::Epochs).map(Length::Epochs),
    }
}

fn read_micro_batch(item: &Item<'_>, batch: Option<usize>) -> Option<usize> {
    let micro_batch = item.count()?;
    if let Some(batch) = batch.filter(|batch| !batch.is_multiple_of(micro_batch)) {
        let message = "does not divide the batch; expected a divisor of";
        item.problem(format!("{message} {batch}, got {micro_batch}"));
    }
    Some(micro_batch)
}

fn read_optimizer(root: &mut Section<'_>, length: Length, lean: bool) -> Optimizer {
    let mut table = root.section("optimizer");
    let kind = table.optional("kind", |item| item.choice(OptimizerKind::WORDS));
    let muon = read_muon(&mut table, kind == Some(OptimizerKind::Muon));
    let mut number = |key, bound| table.value(key, |item| item.number(bound));
    let beta1 = number("beta1", Bound::BelowOne);
    let beta2 = number("beta2", Bound::BelowOne);
    let eps = number("eps", Bound::Positive);
    let grad_clip = number("grad_clip", Bound::NonNegative);
    let moments = table.optional("moments", |item| item.choice(MomentFormat::WORDS));
    let small = if lean { LeanSettings::PRESET } else { LeanSettings::default() };
    let moments = moments.unwrap_or(small.moments);
    let warmup_steps = table.optional("warmup_steps", |item| read_warmup(item, length));
    table.finish();
    let warmup_steps = warmup_steps.or(length.known_steps().map(default_warmup));
    Optimizer { muon, beta1, beta2, eps, grad_clip, moments, warmup_steps }
}

/// Muon's settings; none of them may stand where nothing reads it.
fn read_muon(table: &mut Section<'_>, is_muon: bool) -> Option<MuonSettings> {
    for key in ["momentum", "rate_ratio", "decay_ratio", "newton_schulz_steps"] {
        if !is_muon && table.has(key) {
            let message = "is one of Muon's settings; expected kind = \"muon\" beside it, got none";
            table.problem(key, message.to_owned());
        }
    }
    // Read without Muon too, so that the keys are known; the values are dropped then.
    let mut number = |key, bound| table.value(key, |item| item.number(bound));
    let momentum = number("momentum", Bound::BelowOne);
    let rate_ratio = number("rate_ratio", Bound::Positive);
    let decay_ratio = number("decay_ratio", Bound::NonNegative);
    let iterations = table.value("newton_schulz_steps", |item| item.whole_between(1, 20)) as usize;
    is_muon.then_some(MuonSettings { momentum, iterations, rate_ratio, decay_ratio })
}

fn read_warmup(item: &Item<'_>, length: Length) -> Option<u64> {
    let warmup = item.whole(0)?;
    // Tokens and epochs become steps only later; `Schedule::new` checks the warm-up again.
    if let Length::Steps(steps) = length
        && warmup >= steps
    {
        let message = "the warm-up fills the run; expected fewer than its";
        item.problem(format!("{message} {steps} steps, got {warmup}"));
    }
    Some(warmup)
}

fn read_loss(root: &mut Section<'_>, stage: StageKind) -> LossSettings {
    let mut table = root.section("loss");
    let reduction = table.optional("reduction", |item| item.choice(LossReduction::WORDS));
    table.finish();
    LossSettings { reduction: reduction.unwrap_or_else(|| stage.default_reduction()) }
}

fn read_dpo(root: &mut Section<'_>) -> DpoSettings {
    let mut table = root.section("dpo");
    let beta = table.value("beta", |item| item.number(Bound::Factor));
    table.finish();
    DpoSettings { beta }
}

/// Steps between two events; 0 switches them off.
fn read_every(table: &mut Section<'_>) -> Option<u64> {
    Some(table.value("every", |item| item.whole(0))).filter(|&steps| steps > 0)
}

fn read_eval(root: &mut Section<'_>, has_validation: bool, base: &Path) -> Eval {
    let mut table = root.section("eval");
    let tasks = read_tasks(&mut table, base);
    let every = read_every(&mut table);
    if every.is_some() && !has_validation {
        let message = "nothing to evaluate; expected data.validation beside it, got none";
        table.problem("every", message.into());
    }
    table.finish();
    Eval { every, tasks }
}

fn read_tasks(table: &mut Section<'_>, base: &Path) -> EvalTasks {
    let expected = "a list of tasks, such as [\"arc_easy\"]";
    // A task file is a path, a task is a name.
    let name = |item: &Item<'_>| {
        let name = item.word()?;
        let is_file = Path::new(&name).extension().is_some_and(|it| it == "yaml" || it == "yml");
        if is_file { Some(item.path(base)?.to_string_lossy().into_owned()) } else { Some(name) }
    };
    let names = |item: &Item<'_>| item.list(expected)?.iter().map(name).collect();
    let names: Vec<String> = table.value("tasks", names);
    let data = table.optional("task_data", |item| item.path(base));
    let limit = table.value("task_limit", |item| item.whole(0)) as usize;
    let every = table.value("task_every", |item| item.whole(0));
    // The program makes the rows of its story tasks itself. No task at all needs none either.
    if data.is_none() && !names.iter().all(|name| is_generated(name)) {
        table.missing("task_data", "the folder with the rows of the tasks");
    }
    let (limit, every) = (Some(limit).filter(|&it| it > 0), Some(every).filter(|&it| it > 0));
    EvalTasks { names, data, limit, every }
}

fn read_checkpoint(root: &mut Section<'_>) -> Checkpoint {
    let mut table = root.section("checkpoint");
    let every = read_every(&mut table);
    let minutes = table.value("every_minutes", |item| item.number(Bound::Minutes));
    let every_minutes = Some(minutes).filter(|&minutes| minutes > 0.0);
    let keep = table.value("keep", Item::count);
    let best = table.value("best", Item::boolean);
    table.finish();
    Checkpoint { every, every_minutes, keep, best }
}

fn read_guard(root: &mut Section<'_>) -> Guard {
    let mut table = root.section("guard");
    // `Item::count` ends at `u32::MAX`, so the casts cut nothing off.
    let guard = Guard {
        max_skipped_in_a_row: table.value("max_skipped_in_a_row", Item::count) as u32,
        max_skipped: table.value("max_skipped", Item::count) as u32,
        spike_sigma: table.value("spike_sigma", |item| item.number(Bound::NonNegative)),
        spike_window: table.value("spike_window", Item::count),
    };
    table.finish();
    guard
}

/// A report every ten steps, the default, costs less than 1 % of the time.
fn read_telemetry(root: &mut Section<'_>) -> TelemetrySettings {
    let mut table = root.section("telemetry");
    let every = read_every(&mut table);
    table.finish();
    TelemetrySettings { every }
}

fn read_report(root: &mut Section<'_>) -> ReportSettings {
    let mut table = root.section("report");
    let html = table.value("html", Item::boolean);
    let track = table.value("track", |item| {
        let items = item.list("a list of trackers, such as [\"tensorboard\"]")?;
        items.iter().map(|item| item.choice(TrackerKind::WORDS)).collect::<Option<Vec<_>>>()
    });
    let command = table.optional("command", Item::text);
    table.finish();
    ReportSettings { html, track, command }
}

fn read_sample(root: &mut Section<'_>) -> Sample {
    let mut table = root.section("sample");
    let every = read_every(&mut table);
    let prompts = table.value("prompts", |item| {
        item.list("a list of texts")?.iter().map(Item::text).collect::<Option<Vec<_>>>()
    });
    let max_tokens = table.value("max_tokens", Item::count);
    let temperature = table.value("temperature", |item| item.number(Bound::Temperature));
    if every.is_some() && !table.has("prompts") {
        table.missing("prompts", "what the samples continue, such as [\"Once upon a time\"]");
    }
    table.finish();
    Sample { every, prompts, max_tokens, temperature }
}

fn read_export(root: &mut Section<'_>) -> Export {
    let mut table = root.section("export");
    let formats = table.value("formats", |item| {
        let items = item.list("a list of formats, such as [\"hf-packed\"]")?;
        items.iter().map(|item| item.choice(ExportFormat::WORDS)).collect::<Option<Vec<_>>>()
    });
    table.finish();
    Export { formats }
}
