//! A recipe written out: every default, every path absolute, so that running it repeats the run.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::batch_size::BatchWarmup;
use super::data::{DataSource, FileSet, FileSets, Generate, TRAIN};
use super::distill::DistillSettings;
use super::item::word;
use super::model::{InitModel, ModelSource, ModelTable};
use super::parametrisation::Parametrisation;
use super::phase::Phase;
use super::rate::Rate;
use super::reading::reading_words;
use super::settings::{
    AdapterSettings, Bf16Sums, ChatFormat, EvalTasks, GRADIENT_ROUNDING_WORDS, Length,
    OptimizerKind, REDUCE_PRECISION_WORDS, Recipe, TokenizerSource,
};
use super::ternary_warmup::TernaryWarmup;
use crate::data::{ReadingRules, TextMarkers, TextPattern, TokenFiles, TokenType};
use crate::latents::{LatentFormat, MomentFormat, UpdateTime};

impl Recipe {
    /// The complete recipe as TOML. Read from any folder it gives this recipe again (but for its
    /// own path); an event that is switched off has `every = 0`.
    pub fn resolved_toml(&self) -> String {
        toml::to_string(&self.table()).expect("tables, lists and plain values are TOML")
    }

    /// The complete recipe as a tree.
    pub(super) fn table(&self) -> Table {
        // A section that is `None` is left out: being there is what switches it on.
        let mut entries = table([
            ("name", text(&self.name)),
            ("stage", text(self.stage.name())),
            ("seed", whole(self.seed)),
            ("device", text(&self.device)),
            ("model", model(&self.model, self.parametrisation)),
        ]);
        entries.insert("tokenizer".into(), self.tokenizer_table());
        entries.extend(self.adapter.iter().map(|one| ("adapter".to_owned(), adapter(one))));
        let warmup = self.ternary_warmup;
        entries.extend(warmup.map(|one| ("ternary_warmup".to_owned(), ternary_warmup(one))));
        entries.extend(table([
            ("data", self.data_table()),
            ("train", self.train_table()),
            ("phase", Value::Array(self.phases.iter().map(phase).collect())),
            ("optimizer", self.optimizer_table()),
            ("loss", one("reduction", text(self.loss.reduction.name()))),
        ]));
        entries.extend(self.distill.iter().map(|one| ("distill".to_owned(), distill(one))));
        entries.extend(table([
            ("dpo", one("beta", Value::Float(self.dpo.beta))),
            ("eval", self.eval_table()),
            ("checkpoint", self.checkpoint_table()),
            ("sample", self.sample_table()),
            ("export", self.export_table()),
            ("guard", self.guard_table()),
            ("telemetry", one("every", whole(self.telemetry.every.unwrap_or(0)))),
            ("report", self.report_table()),
        ]));
        entries
    }

    /// Beside `model.init`, its tokenizer is the one that nothing names.
    fn tokenizer_table(&self) -> Value {
        let mut entries = match &self.tokenizer {
            TokenizerSource::Path(path) => table([("path", text(&path.to_string_lossy()))]),
            TokenizerSource::Train { vocab_size } => {
                table([("train", one("vocab_size", whole(*vocab_size as u64)))])
            }
            TokenizerSource::FromInit => Table::new(),
        };
        let template = match &self.chat {
            ChatFormat::Model => text("model"),
            ChatFormat::B158 => text("b158"),
            ChatFormat::B158Apart => text("b158-apart"),
            ChatFormat::Jinja(path) => text(&path.to_string_lossy()),
        };
        entries.insert("chat_template".into(), template);
        Value::Table(entries)
    }

    fn data_table(&self) -> Value {
        let data = &self.data;
        let mut entries = match &data.source {
            DataSource::Files { sets, validation } => files(sets, validation),
            DataSource::Generate(generate) => table([("generate", generated(*generate))]),
        };
        entries.insert("seq_len".into(), whole(data.seq_len as u64));
        entries.insert("long_rows".into(), text(data.long_rows_name()));
        entries.insert("validation_share".into(), Value::Float(data.validation_share));
        entries.extend(reading(&data.reading));
        if let Some(cache) = &data.cache {
            entries.insert("cache".into(), text(&cache.to_string_lossy()));
        }
        Value::Table(entries)
    }

    fn train_table(&self) -> Value {
        let train = &self.train;
        let length = match train.length {
            Length::Steps(steps) => ("steps", whole(steps)),
            Length::Tokens(tokens) => ("tokens", whole(tokens)),
            Length::Epochs(epochs) => ("epochs", Value::Float(epochs)),
        };
        let mut entries = table([
            length,
            ("batch", whole(train.batch as u64)),
            ("micro_batch", whole(train.micro_batch as u64)),
            ("gradient_copies", whole(train.gradient_copies as u64)),
            ("precision", text(train.precision.name())),
            ("bf16_sums", text(word(Bf16Sums::WORDS, train.bf16_sums))),
            ("gradient_rounding", text(word(GRADIENT_ROUNDING_WORDS, train.gradient_rounding))),
            ("recompute", Value::Boolean(train.recompute)),
            ("latents", text(word(LatentFormat::WORDS, train.latents))),
            ("update", text(word(UpdateTime::WORDS, train.update))),
            ("shard_optimizer", Value::Boolean(train.shard_optimizer)),
            ("reduce_precision", text(word(REDUCE_PRECISION_WORDS, train.reduce_precision))),
            ("max_minutes", Value::Float(train.max_minutes.unwrap_or(0.0))),
            ("freeze", Value::Array(train.freeze.iter().map(|name| text(name)).collect())),
        ]);
        if let Some(BatchWarmup { start, steps }) = train.batch_warmup {
            let warmup = table([("start", whole(start as u64)), ("steps", whole(steps))]);
            entries.insert("batch_warmup".to_owned(), Value::Table(warmup));
        }
        Value::Table(entries)
    }

    fn eval_table(&self) -> Value {
        let EvalTasks { names, data, limit, every } = &self.eval.tasks;
        let mut entries = table([
            ("every", whole(self.eval.every.unwrap_or(0))),
            ("tasks", Value::Array(names.iter().map(|name| text(name)).collect())),
            ("task_limit", whole(limit.unwrap_or(0) as u64)),
            ("task_every", whole(every.unwrap_or(0))),
        ]);
        if let Some(data) = data {
            entries.insert("task_data".to_owned(), text(&data.to_string_lossy()));
        }
        Value::Table(entries)
    }

    fn optimizer_table(&self) -> Value {
        let optimizer = &self.optimizer;
        let mut entries = table([
            ("beta1", Value::Float(optimizer.beta1)),
            ("beta2", Value::Float(optimizer.beta2)),
            ("eps", Value::Float(optimizer.eps)),
            ("grad_clip", Value::Float(optimizer.grad_clip)),
            ("moments", text(word(MomentFormat::WORDS, optimizer.moments))),
        ]);
        let kind =
            if optimizer.muon.is_some() { OptimizerKind::Muon } else { OptimizerKind::AdamW };
        entries.insert("kind".into(), text(word(OptimizerKind::WORDS, kind)));
        // Beside AdamW they are refused.
        if let Some(muon) = optimizer.muon {
            entries.extend(table([
                ("momentum", Value::Float(muon.momentum)),
                ("rate_ratio", Value::Float(muon.rate_ratio)),
                ("decay_ratio", Value::Float(muon.decay_ratio)),
                ("newton_schulz_steps", whole(muon.iterations as u64)),
            ]));
        }
        if let Some(steps) = optimizer.warmup_steps {
            entries.insert("warmup_steps".into(), whole(steps));
        }
        Value::Table(entries)
    }

    fn checkpoint_table(&self) -> Value {
        let checkpoint = &self.checkpoint;
        Value::Table(table([
            ("every", whole(checkpoint.every.unwrap_or(0))),
            ("every_minutes", Value::Float(checkpoint.every_minutes.unwrap_or(0.0))),
            ("keep", whole(checkpoint.keep as u64)),
            ("best", Value::Boolean(checkpoint.best)),
        ]))
    }

    fn guard_table(&self) -> Value {
        let guard = &self.guard;
        Value::Table(table([
            ("max_skipped_in_a_row", whole(u64::from(guard.max_skipped_in_a_row))),
            ("max_skipped", whole(u64::from(guard.max_skipped))),
            ("spike_sigma", Value::Float(guard.spike_sigma)),
            ("spike_window", whole(guard.spike_window as u64)),
        ]))
    }

    fn report_table(&self) -> Value {
        let track = self.report.track.iter().map(|kind| text(kind.name())).collect();
        let html = Value::Boolean(self.report.html);
        let mut entries = table([("html", html), ("track", Value::Array(track))]);
        entries.extend(
            self.report.command.iter().map(|command| ("command".to_owned(), text(command))),
        );
        Value::Table(entries)
    }

    fn sample_table(&self) -> Value {
        let sample = &self.sample;
        Value::Table(table([
            ("every", whole(sample.every.unwrap_or(0))),
            ("prompts", Value::Array(sample.prompts.iter().map(|prompt| text(prompt)).collect())),
            ("max_tokens", whole(sample.max_tokens as u64)),
            ("temperature", Value::Float(sample.temperature)),
        ]))
    }

    fn export_table(&self) -> Value {
        let formats = self.export.formats.iter().map(|format| text(format.name()));
        one("formats", Value::Array(formats.collect()))
    }
}

/// How files are read and which rows are used.
fn reading(rules: &ReadingRules) -> Table {
    let ReadingRules { files, selection, max_bad_share, .. } = rules;
    let words = reading_words(rules).map(|(key, word)| (key, text(word)));
    let mut entries = table(words);
    entries.insert("strict".into(), Value::Boolean(rules.strict));
    entries.insert("max_bad_share".into(), Value::Float(*max_bad_share));
    entries.insert("min_chars".into(), whole(selection.min_chars));
    let named = |pairs: &BTreeMap<String, String>| {
        Value::Table(pairs.iter().map(|(name, value)| (name.clone(), text(value))).collect())
    };
    let codes = || texts(selection.languages.iter().map(|language| language.code()));
    let fields = || {
        let field = |(name, values): (&String, &Vec<String>)| {
            (name.clone(), texts(values.iter().map(String::as_str)))
        };
        Value::Table(selection.fields.iter().map(field).collect())
    };
    let pattern = |pattern: &TextPattern| text(pattern.as_str());
    // TOML has no null: what is not set is not named.
    let optional = [
        ("max_chars", selection.max_chars.map(whole)),
        ("keep_regex", selection.keep_regex.as_ref().map(pattern)),
        ("drop_regex", selection.drop_regex.as_ref().map(pattern)),
        ("language", (!selection.languages.is_empty()).then(codes)),
        ("text_markers", rules.text_markers.as_ref().map(markers)),
        ("tokens", files.tokens.map(token_files)),
        ("field", files.field.as_deref().map(text)),
        ("where", (!selection.fields.is_empty()).then(fields)),
        ("columns", (!files.columns.is_empty()).then(|| named(&files.columns))),
    ];
    let given = optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    entries.extend(given);
    entries
}

fn markers(markers: &TextMarkers) -> Value {
    let mut entries = table([("response", text(&markers.response))]);
    entries.extend(markers.instruction.iter().map(|one| ("instruction".to_owned(), text(one))));
    Value::Table(entries)
}

fn texts<'a>(words: impl Iterator<Item = &'a str>) -> Value {
    Value::Array(words.map(text).collect())
}

fn adapter(settings: &AdapterSettings) -> Value {
    Value::Table(table([
        ("kind", text(settings.kind.name())),
        ("rank", whole(settings.rank as u64)),
        ("alpha", Value::Float(settings.alpha)),
        ("targets", Value::Array(settings.targets.iter().map(|name| text(name)).collect())),
    ]))
}

fn ternary_warmup(TernaryWarmup { steps, shape }: TernaryWarmup) -> Value {
    let mut entries = table([("shape", text(shape.name()))]);
    entries.extend(steps.map(|steps| ("steps".to_owned(), whole(steps))));
    Value::Table(entries)
}

fn distill(settings: &DistillSettings) -> Value {
    let mut entries = table([
        ("teacher", text(&settings.teacher)),
        ("temperature", Value::Float(settings.temperature)),
        ("logits", Value::Float(settings.logits)),
        ("cross_entropy", Value::Float(settings.cross_entropy)),
        ("relations", Value::Float(settings.relations)),
        ("relation_layer", Value::Integer(settings.relation_layer)),
        ("relation_form", text(settings.relation_form.name())),
        ("top_k", whole(settings.top_k.unwrap_or(0) as u64)),
    ]);
    if let Some(layer) = settings.teacher_relation_layer {
        entries.insert("teacher_relation_layer".into(), Value::Integer(layer));
    }
    Value::Table(entries)
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Table {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn one(key: &str, value: Value) -> Value {
    Value::Table(table([(key, value)]))
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}

fn whole(number: u64) -> Value {
    // Every whole number of a recipe was an i64 of TOML or is far smaller.
    Value::Integer(number as i64)
}

fn model(source: &ModelSource, parametrisation: Parametrisation) -> Value {
    let mut entries = match source {
        ModelSource::New { spec } => new_model(spec),
        ModelSource::Init(init) => init_model(init),
    };
    entries.insert("parametrisation".to_owned(), text(parametrisation.name()));
    if let Parametrisation::Mup { base_width } = parametrisation {
        entries.insert("base_width".to_owned(), whole(base_width as u64));
    }
    Value::Table(entries)
}

/// A config file leaves out what most ternary models have; here every default stands.
fn new_model(shape: &ModelTable) -> Table {
    let mut entries = shape.table();
    if shape.blocks().quantise {
        let absmean = table([("weights", text("absmean")), ("group", text("matrix"))]);
        let defaults = [
            ("quantiser", Value::Table(absmean)),
            ("embedding", text("full")),
            ("activations", text("int8")),
        ];
        for (key, value) in defaults {
            entries.entry(key).or_insert(value);
        }
    }
    entries
}

/// Only what the recipe asks for: a key of the shape beside `init` asks for a conversion.
fn init_model(InitModel { path, conversion }: &InitModel) -> Table {
    let mut entries = table([("init", text(path))]);
    entries.extend(conversion.quantiser.clone());
    entries.insert("insert_sub_norms".to_owned(), Value::Boolean(conversion.insert_sub_norms));
    entries
}

/// `data.train` stays a list of its own, so that a phase without weights finds it.
fn files(sets: &FileSets, validation: &FileSets) -> Table {
    let mut named = file_table(sets);
    let mut entries = Table::new();
    if let Some(train) = named.remove(TRAIN) {
        entries.insert("train".into(), train);
    }
    if !named.is_empty() {
        entries.insert("sets".into(), Value::Table(named));
    }
    if !validation.is_empty() {
        entries.insert("validation".into(), Value::Table(file_table(validation)));
    }
    entries
}

fn file_table(sets: &FileSets) -> Table {
    sets.iter().map(|(name, set)| (name.clone(), file_set(set))).collect()
}

/// A list of files where the set says nothing else.
fn file_set(set: &FileSet) -> Value {
    let files = Value::Array(set.files.iter().map(|pattern| text(pattern.as_str())).collect());
    let Some(rules) = &set.reading else { return files };
    let mut entries = table([("files", files)]);
    entries.extend(set.weight.map(|weight| ("weight".to_owned(), Value::Float(weight))));
    entries.extend(set.max_epochs.map(|most| ("max_epochs".to_owned(), whole(most))));
    entries.extend(reading(rules));
    Value::Table(entries)
}

fn generated(generate: Generate) -> Value {
    Value::Table(table([
        ("stories", whole(generate.stories as u64)),
        ("held_out", whole(generate.held_out as u64)),
    ]))
}

fn phase(phase: &Phase) -> Value {
    let data = phase.data.iter().map(|(name, weight)| (name.clone(), Value::Float(*weight)));
    Value::Table(table([
        ("name", text(&phase.name)),
        ("share", Value::Float(phase.share)),
        ("learning_rate", rate(phase.learning_rate)),
        ("weight_decay", rate(phase.weight_decay)),
        ("data", Value::Table(data.collect())),
    ]))
}

fn rate(rate: Rate) -> Value {
    Value::Table(match rate {
        Rate::Constant { value } => {
            table([("shape", text("constant")), ("value", Value::Float(value))])
        }
        Rate::Curve { shape, peak, end, span } => table([
            ("shape", text(shape.name())),
            ("peak", Value::Float(peak)),
            ("end", Value::Float(end)),
            ("span", text(span.name())),
        ]),
    })
}

fn token_files(tokens: TokenFiles) -> Value {
    let TokenFiles { dtype, document_separator } = tokens;
    let dtype = dtype.map(|dtype| ("dtype", text(word(TokenType::WORDS, dtype))));
    let separator = document_separator.map(|id| ("document_separator", whole(id.into())));
    Value::Table(
        dtype.into_iter().chain(separator).map(|(key, value)| (key.to_owned(), value)).collect(),
    )
}
