//! Every key of a recipe: what it takes, its default, what it is for.
//!
//! The readers take their constant defaults from this table ([`Section::value`]), and the reference
//! page `docs/src/recipe-reference.md` is generated from it by [`super::reference`]. The tests hold the table to what the
//! readers accept and to what a resolved recipe says.
//!
//! [`Section::value`]: super::section::Section::value

use std::collections::BTreeMap;
use std::sync::LazyLock;

use KeyDefault::{Chosen, Required, Value};

use super::tree::{Node, parse_word};

/// What holds where a recipe does not name a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum KeyDefault {
    /// Nothing: the key must be there.
    Required,
    /// This TOML value, which the reader parses.
    Value(&'static str),
    /// Something that depends on other keys, in words.
    Chosen(&'static str),
}

/// One key.
#[derive(Debug)]
pub(super) struct RecipeKey {
    /// Its dotted name; `phase` stands for each `[[phase]]`.
    pub(super) name: &'static str,
    /// Its type, with the unit where it has one.
    pub(super) takes: &'static str,
    pub(super) default: KeyDefault,
    /// The stages that use it.
    pub(super) stages: &'static str,
    /// One sentence for the reference.
    pub(super) doc: &'static str,
}

const fn key(
    name: &'static str,
    takes: &'static str,
    default: KeyDefault,
    doc: &'static str,
) -> RecipeKey {
    RecipeKey { name, takes, default, stages: "all", doc }
}

const fn staged(stages: &'static str, key: RecipeKey) -> RecipeKey {
    RecipeKey { stages, ..key }
}

/// All keys, section by section, in the order of the reference. One key a line reads as the table it is.
#[rustfmt::skip]
pub(super) const KEYS: &[RecipeKey] = &[
    key("stage", "`\"pretrain\"`, `\"sft\"` or `\"dpo\"`", Required, "What the run trains, and so what a line of data holds."),
    key("name", "text without slashes", Chosen("the file's name without `.toml`"), "The name of the run."),
    key("seed", "whole number", Value("1"), "The seed of every random choice."),
    key("device", "text", Value("\"flex\""), "Where the run computes: see [Devices](devices.md)."),
    key("pipeline", "list of recipe files", Chosen("none"), "Runs these recipes in order, each from the model of the one before. A file with it holds nothing else."),
    key("model.init", "folder, or `\"hf:owner/name[@revision]\"`", Chosen("none: a new model"), "The weights to start from. They bring their own shape and, unless the recipe names one, their tokenizer."),
    key("model.config", "TOML file", Chosen("none"), "A file with the shape of a new model (`configs/`). Keys beside it in `[model]` override it."),
    key("model.insert_sub_norms", "true or false; beside `model.init`", Value("false"), "Gives a model without sub-norms both of them, with gains that leave its function as nearly as it was: see [Converting](converting.md)."),
    key("model.hidden_size", "whole number", Chosen("required for a new model"), "Width of the residual stream."),
    key("model.intermediate_size", "whole number", Chosen("required for a new model"), "Width of the feed-forward block."),
    key("model.num_hidden_layers", "whole number", Chosen("required for a new model"), "Number of blocks."),
    key("model.num_attention_heads", "whole number", Chosen("required for a new model"), "Query heads."),
    key("model.num_key_value_heads", "whole number", Chosen("required for a new model"), "Key and value heads; a divisor of the query heads."),
    key("model.head_dim", "even whole number", Chosen("`hidden_size / num_attention_heads`"), "Width of one head."),
    key("model.vocab_size", "whole number of tokens", Chosen("the tokenizer's size"), "Rows of the embedding."),
    key("model.hidden_act", "`\"relu2\"` or `\"silu\"`", Value("\"relu2\""), "Activation of the feed-forward gate."),
    key("model.rope_theta", "number above 0", Value("500000.0"), "Base of the rotary frequencies."),
    key("model.rope_scaling", "table", Chosen("none"), "How positions are scaled beyond the context that a model was trained with: `rope_type` (`\"linear\"`, `\"dynamic\"`, `\"llama3\"`, `\"yarn\"`), `factor` and the keys of the kind, as transformers names them."),
    key("model.attention_bias", "true or false", Value("false"), "Biases of queries, keys and values (Qwen2)."),
    key("model.qk_norm", "true or false", Value("false"), "Whether the queries and the keys of each head are normalised (Qwen3)."),
    key("model.rms_norm_eps", "number above 0", Value("1e-5"), "Added to the mean square in every RMSNorm."),
    key("model.tie_word_embeddings", "true or false", Value("true"), "Whether the output head is the embedding."),
    key("model.max_position_embeddings", "whole number of tokens", Value("4096"), "The longest context."),
    key("model.initializer_range", "number above 0", Value("0.02"), "Standard deviation of the initial matrices."),
    key("model.embedding_initializer_range", "number above 0", Chosen("`initializer_range`"), "Standard deviation of the initial embedding."),
    key("model.parametrisation", "`\"standard\"` or `\"mup\"`", Value("\"standard\""), "Whether initial values and rates go with the width, so that the best rate of a small model is that of a wider one: see [Optimizers](optimizers.md#widths)."),
    key("model.base_width", "whole number; with `parametrisation = \"mup\"`", Value("256"), "The `hidden_size` whose initial values and rates are those of the recipe."),
    key("model.bos_token_id", "token id", Chosen("the tokenizer's"), "The token that opens a document."),
    key("model.eos_token_id", "token id or list of them", Chosen("the tokenizer's"), "The tokens that end one."),
    key("model.sub_norms", "true or false", Value("true"), "Whether the attention output and the gated product are normalised."),
    key("model.quantise", "true or false", Value("true"), "Ternary weights and 8-bit activations; `false` trains the dense twin. Beside `model.init` it makes a dense model ternary; without it the model stays what it is."),
    key("model.quantiser", "table", Value("{ weights = \"absmean\", group = \"matrix\" }"), "The weights that share a scale, `group`: `\"matrix\"`, `\"row\"`, or 256, 128 or 64 consecutive weights of a row, which must divide the widths ([Scales of groups](formats.md#scales-of-groups))."),
    key("model.embedding", "`\"full\"` or `\"ternary\"`", Value("\"full\""), "Whether embedding and head are ternary too, with the scales of `quantiser`."),
    key("model.activations", "`\"int8\"` or `\"none\"`", Value("\"int8\""), "What ternary matrices are multiplied with: 8 bits with a scale a token, or floats as they are."),
    key("tokenizer.path", "`tokenizer.json`", Chosen("required unless `train` or `model.init` is given"), "The tokenizer to use."),
    key("tokenizer.train.vocab_size", "whole number of tokens", Required, "`train = { vocab_size = … }` learns a byte-level BPE from the training text before step 1."),
    staged("sft, dpo", key("tokenizer.chat_template", "`\"model\"`, `\"b158\"`, `\"b158-apart\"` or a Jinja file", Value("\"model\""), "How a conversation becomes text: as the model that the run starts from has it (`b158` where it has none), as 2B4T's template, the same with headers and contents encoded apart, or as a file says.")),
    key("data.train", "file, pattern or list of them", Chosen("required unless `sets` or `generate` is given"), "The training files; the set `train`. Names of [data sets of the hub](data.md#data-sets-of-the-hub) stand for their files, here and in `sets` and `validation`."),
    key("data.sets", "table of lists of files, or of tables", Chosen("none"), "Named sets that phases mix. A set that is a table has `files`, and any of the keys below from `field` to `max_bad_share` where it differs from `[data]`."),
    key("data.sets.*.files", "file, pattern or list of them", Required, "The files of a set."),
    key("data.sets.*.weight", "number of at least 0", Chosen("none"), "The weight of the set in phases without `data`. All sets have one, or none."),
    key("data.sets.*.max_epochs", "whole number", Chosen("no limit"), "How often the set is read at most. After that the other sets of a phase are drawn in its place; a run that would use up all of them is refused before its first step."),
    key("data.validation", "list of files, or table of lists or tables", Chosen("none"), "Held-out files, each set evaluated under its name. A table is read as one of `sets`."),
    key("data.generate.stories", "whole number", Value("20000"), "`generate = {}` trains on generated stories; this many in each set."),
    key("data.generate.held_out", "whole number", Value("200"), "Stories of each set kept for validation."),
    key("data.seq_len", "whole number of tokens", Required, "Length of a packed sequence."),
    key("data.long_rows", "`\"truncate\"`, `\"drop\"` or `\"split\"`", Chosen("`\"split\"` for pretrain, else `\"truncate\"`"), "What happens to a document longer than `seq_len`. DPO has no `split`."),
    key("data.field", "text", Chosen("`\"data\"` where that is a list"), "The key of the list of rows in a `.json` file that is one object."),
    key("data.columns", "table of texts", Chosen("none"), "Names of fields, each with the column that stands for it in the files: `{ instruction = \"Question\", output = \"Answer\" }`."),
    key("data.text_split", "`\"file\"` or `\"blank-line\"`", Value("\"file\""), "Whether a text file is one document, or documents end at blank lines."),
    key("data.on_unknown_role", "`\"error\"` or `\"drop\"`", Value("\"error\""), "What happens to a turn of an unknown role, and to calls and results of tools that the chat template does not read: the row is bad, or the turn is left out."),
    staged("sft, dpo", key("data.strict", "true or false", Value("false"), "Whether a row is bad of which turns would be left out, joined or moved to fit the chat template. Otherwise they are counted.")),
    staged("sft", key("data.text_markers.response", "text", Required, "`text_markers = {}`: in rows whose `text` a template has already made, an answer begins behind this; without markers all of the text is trained.")),
    staged("sft", key("data.text_markers.instruction", "text", Chosen("none: to the end of the text"), "What the user says begins with this, so that an answer ends before it.")),
    key("data.tokens.dtype", "`\"u16\"`, `\"u32\"` or `\"u64\"`", Chosen("what the file's header says"), "`tokens = {}`: the files hold token ids of another trainer, raw, with llm.c's header, or `.npy`; this is their type where they have no header."),
    key("data.tokens.document_separator", "token id", Chosen("none: a file is one text"), "The id between documents of token files. It is replaced by the tokens around a document of text."),
    key("data.dedup", "`\"none\"` or `\"exact\"`", Value("\"none\""), "Whether rows that say the same as one before in their set, but for white space, are left out."),
    key("data.min_chars", "whole number of characters", Value("0"), "Rows with less text are left out."),
    key("data.max_chars", "whole number of characters", Chosen("no limit"), "Rows with more text are left out."),
    key("data.keep_regex", "regular expression", Chosen("none"), "Rows without a match in their text are left out. The syntax is that of the crate `regex`."),
    key("data.drop_regex", "regular expression", Chosen("none"), "Rows with a match in their text are left out."),
    key("data.language", "code or list of codes, such as `\"en\"`", Chosen("all"), "Rows whose text is recognised as another language, or as none, are left out."),
    key("data.where", "table of texts or lists of texts", Chosen("none"), "Fields of which a row must have one of these values: `{ language = [\"en\", \"de\"], \"meta.source\" = \"wiki\" }`."),
    key("data.bad_rows", "`\"error\"` or `\"skip\"`", Value("\"error\""), "Whether a row that cannot be used ends the run before its first step, or is left out, counted and listed."),
    key("data.max_bad_share", "number from 0 to below 1", Value("0.01"), "With `bad_rows = \"skip\"` and a larger share of bad rows the run ends before its first step after all."),
    key("data.validation_share", "number from 0 to below 1", Value("0.0"), "Holds out this share of the rows of each set, by a hash of what they say, and evaluates on it; where no `validation` is given."),
    key("data.cache", "folder", Chosen("`~/.cache/bitnet-train`"), "Where tokenised text is kept."),
    key("train.steps", "whole number of optimizer steps", Chosen("exactly one of `steps`, `tokens`, `epochs` is required"), "Length of the run."),
    key("train.tokens", "whole number of trained tokens", Chosen("see `steps`"), "Length of the run."),
    key("train.epochs", "number of passes over the data", Chosen("see `steps`"), "Length of the run."),
    key("train.batch", "whole number of sequences (dpo: pairs)", Required, "Sequences of an optimizer step, over all ranks."),
    key("train.batch_warmup.start", "whole number of sequences (dpo: pairs)", Required, "`batch_warmup = { start = …, steps = … }` takes fewer sequences in the first steps: this many in step 1, `batch` behind the warm-up, in a straight line between, rounded down. `tokens` and `epochs` count what is taken."),
    key("train.batch_warmup.steps", "whole number of steps", Required, "Steps with fewer sequences than `batch`."),
    key("train.micro_batch", "whole number of sequences (dpo: pairs)", Chosen("`batch`"), "Sequences of one forward pass; a divisor of `batch`."),
    key("train.gradient_copies", "whole number from 1 to 64", Value("2"), "Into how many parts a micro-batch is cut that are computed side by side, each with gradients of its own; all threads share the work of each part. Another number is another order of sums; the number of threads is not. With 1 the gradients take least memory, and small models use several threads least well."),
    key("train.precision", "`\"f32\"`, `\"bf16\"` or `\"int8\"`", Value("\"f32\""), "Operands of the float products; `int8` is `bf16` with both backward products of the ternary layers in 8-bit integers: see [8-bit gradients](int8.md). It changes neither latents nor moments."),
    key("train.bf16_sums", "`\"chain\"` or `\"tiles\"`", Value("\"chain\""), "The order in which products in bf16 are added (`precision` `bf16` and `int8`): `tiles` is that of Intel's AMX, faster there and slower elsewhere, see [Speed](devices.md#intels-tiles). Every CPU gives the same bits in either order."),
    key("train.gradient_rounding", "`\"stochastic\"` or `\"nearest\"`", Value("\"stochastic\""), "How `precision = \"int8\"` rounds gradients to eight bits; other precisions do not."),
    key("train.recompute", "true or false", Chosen("`false`; `true` with `memory = \"lean\"`"), "Computes a block's activations again in the backward pass: less memory, more time."),
    key("train.memory", "`\"standard\"` or `\"lean\"`", Chosen("`\"standard\"`"), "`lean` changes the defaults of four keys to `recompute = true`, `latents = \"block16\"`, `update = \"during\"` and `moments = \"8bit\"`: see [Little memory](memory.md)."),
    key("train.latents", "`\"f32\"`, `\"bf16\"`, `\"bf16+8\"` or `\"block16\"`", Chosen("`\"f32\"`; `\"block16\"` with `memory = \"lean\"`"), "How latents are kept: 32, 16, 24 or 16 bits each, all but f32 updated with stochastic rounding. The device must be `flex`."),
    key("train.update", "`\"after\"` or `\"during\"`", Chosen("`\"after\"`; `\"during\"` with `memory = \"lean\"`"), "When parameters are updated: when all gradients are there, or each block as soon as its own are. `during` needs `recompute` and one micro-batch a step."),
    key("train.shard_optimizer", "true or false", Value("false"), "Each rank holds only its part of the moments."),
    key("train.reduce_precision", "`\"f32\"` or `\"bf16\"`", Value("\"f32\""), "In what ranks send each other gradients; they are added in f32."),
    key("train.max_minutes", "minutes; 0 = no limit", Value("0"), "Saves and stops after this time."),
    key("train.freeze", "list of tensor names with `*` and `?`", Value("[]"), "Tensors that are not trained."),
    key("adapter.kind", "`\"latent\"` or `\"side\"`", Required, "Trains low-rank factors of `model.init`, which stays as it is. `latent`: its latents plus `alpha / rank` times `B·A` are quantised as a whole, so that the merged model is an ordinary ternary one. `side`: `alpha / rank` times `B·A·x` is added to the ternary product, and the model may be packed."),
    key("adapter.rank", "whole number", Value("16"), "Rows of each `A` and columns of each `B`."),
    key("adapter.alpha", "number above 0", Value("32.0"), "`rank` times the scale of the product."),
    key("adapter.targets", "list of names", Chosen("all seven matrices of a block"), "The adapted matrices: names such as `q_proj`, or ends of their paths."),
    staged("pretrain, sft", key("ternary_warmup.steps", "whole number of steps", Chosen("a tenth of the run's"), "`[ternary_warmup]` blends latent and quantised weights and activations, `w + λ·(Q(w) − w)`; λ climbs from 0 and is 1 from this step on. What is evaluated, sampled and exported is ternary always.")),
    staged("pretrain, sft", key("ternary_warmup.shape", "`\"linear\"` or `\"sigmoid\"`", Value("\"linear\""), "How λ climbs.")),
    key("phase.name", "text", Required, "Name of the phase; unique. Without any `[[phase]]` the run is one phase `main`."),
    key("phase.share", "number above 0, up to 1", Chosen("required if there are several phases"), "Its part of all steps; the shares sum to 1."),
    key("phase.learning_rate", "a rate", Chosen("linear from 1.5e-3 (pretrain), 1e-4 (sft), 2e-7 (dpo) to 0 over the run"), "The learning rate."),
    key("phase.weight_decay", "a rate", Chosen("constant 0.1 for pretrain, else 0"), "Decoupled weight decay of matrices."),
    key("phase.data", "table of weights", Chosen("`{ train = 1.0 }`, if there is such a set"), "How often each set is drawn from."),
    key("phase.*.shape", "`\"constant\"`, `\"linear\"`, `\"cosine\"` or `\"1-sqrt\"`", Required, "The curve of a rate, `learning_rate` or `weight_decay`: see [Recipes](recipes.md)."),
    key("phase.*.value", "number of at least 0", Chosen("required for `constant`"), "The constant."),
    key("phase.*.peak", "number of at least 0", Chosen("required for a curve"), "Where the curve begins; the warm-up climbs to it."),
    key("phase.*.end", "number of at least 0", Value("0.0"), "Where the curve ends."),
    key("phase.*.span", "`\"run\"` or `\"phase\"`", Value("\"run\""), "The steps the curve covers."),
    key("optimizer.kind", "`\"adamw\"` or `\"muon\"`", Chosen("`\"adamw\"`"), "What updates the matrices of blocks: see [Optimizers](optimizers.md). Embedding, head and norms are AdamW's. The device must be `flex`."),
    key("optimizer.momentum", "number from 0 to below 1; with `kind = \"muon\"`", Value("0.95"), "Decay of Muon's momentum."),
    key("optimizer.rate_ratio", "number above 0; with `kind = \"muon\"`", Value("5.0"), "Muon's rate over the learning rate of the schedule."),
    key("optimizer.decay_ratio", "number of at least 0; with `kind = \"muon\"`", Value("1.0"), "Muon's weight decay over that of the schedule."),
    key("optimizer.newton_schulz_steps", "whole number from 1 to 20; with `kind = \"muon\"`", Value("5"), "Iterations that orthogonalise a step."),
    key("optimizer.beta1", "number from 0 to below 1", Value("0.9"), "Decay of AdamW's first moment."),
    key("optimizer.beta2", "number from 0 to below 1", Value("0.95"), "Decay of the second moment."),
    key("optimizer.eps", "number above 0", Value("1e-8"), "Added to the root of the second moment."),
    key("optimizer.grad_clip", "number of at least 0; 0 = off", Value("1.0"), "Largest global gradient norm."),
    key("optimizer.moments", "`\"f32\"`, `\"bf16\"` or `\"8bit\"`", Chosen("`\"f32\"`; `\"8bit\"` with `memory = \"lean\"`"), "How AdamW's moments of matrices are kept: 32, 16 or 8.25 bits each. The device must be `flex`."),
    key("optimizer.warmup_steps", "whole number of steps", Chosen("`min(375, steps / 20)`"), "Steps in which the learning rate climbs to its first peak; fewer than the run has."),
    staged("pretrain, sft", key("loss.reduction", "`\"mean\"` or `\"sum\"`", Chosen("`\"sum\"` for sft, else `\"mean\"`"), "How the losses of a step's tokens become one number.")),
    staged("pretrain, sft", key("distill.teacher", "folder, GGUF file, or `\"hf:owner/name[@revision]\"`", Required, "The model to learn from, dense or ternary, of any width and depth, with the tokenizer of the run: see [Distillation](distillation.md). It stays as it is.")),
    staged("pretrain, sft", key("distill.temperature", "number above 0", Value("2.0"), "Both models' logits are divided by it before they are compared. The divergence is not multiplied by its square.")),
    staged("pretrain, sft", key("distill.logits", "number of at least 0", Value("1.0"), "What the divergence of the student's next words from the teacher's is multiplied by.")),
    staged("pretrain, sft", key("distill.cross_entropy", "number of at least 0", Value("1.0"), "What the cross-entropy of the data is multiplied by.")),
    staged("pretrain, sft", key("distill.relations", "number of at least 0", Value("0.0"), "What the divergence of attention relations is multiplied by: how alike the positions of a document are, by their queries, keys and values in one block.")),
    staged("pretrain, sft", key("distill.relation_layer", "whole number; from the last block where negative", Value("-1"), "The student's block whose relations are compared.")),
    staged("pretrain, sft", key("distill.teacher_relation_layer", "whole number; from the last block where negative", Chosen("as far from the teacher's last block as `relation_layer` is from the student's"), "The teacher's block.")),
    staged("pretrain, sft", key("distill.relation_form", "`\"cosine\"` or `\"scaled\"`", Value("\"cosine\""), "How alike two positions are: by the cosine of their vectors, or by their product over the root of their width.")),
    staged("pretrain, sft", key("distill.top_k", "whole number of words; 0 = the teacher runs beside the student", Value("0"), "The teacher's most likely words of each token are computed before the first step and kept on disk, so that training needs no teacher.")),
    staged("dpo", key("dpo.beta", "number above 0", Value("0.1"), "How closely the model is held to its reference.")),
    key("eval.every", "whole number of steps; 0 = off", Value("0"), "Steps between two evaluations of `data.validation`."),
    key("eval.tasks", "list of tasks, groups and task files", Value("[]"), "Benchmarks that the packed model is asked after the last step, as `bitnet eval` asks them: see [Evaluation](evaluation.md). The model must be ternary."),
    key("eval.task_data", "folder", Chosen("required beside `tasks` that read rows"), "Where the rows of the tasks are."),
    key("eval.task_limit", "whole number of rows; 0 = all", Value("200"), "Rows of each task that are asked, from the first."),
    key("eval.task_every", "whole number of steps; 0 = after the last step only", Value("0"), "Steps between two rounds of the tasks."),
    key("checkpoint.every", "whole number of steps; 0 = off", Value("0"), "Steps between two checkpoints. There is always one at the end and on signals."),
    key("checkpoint.every_minutes", "minutes of wall clock; 0 = off", Value("30.0"), "Longest time between two checkpoints; no result depends on it."),
    key("checkpoint.keep", "whole number", Value("3"), "Checkpoints that stay on disk."),
    key("checkpoint.best", "true or false", Value("false"), "Also keeps the model with the lowest held-out loss."),
    key("sample.every", "whole number of steps; 0 = off", Value("0"), "Steps between two rounds of generated text."),
    key("sample.prompts", "list of texts", Value("[]"), "What each sample continues."),
    key("sample.max_tokens", "whole number of tokens", Value("48"), "The longest sample."),
    key("sample.temperature", "number of at least 0; 0 = most likely token", Value("0.0"), "Sampling temperature."),
    key("export.formats", "list of `\"hf-bf16\"`, `\"hf-packed\"`, `\"gguf-i2_s\"`, `\"gguf-tq1_0\"`, `\"gguf-tq2_0\"`, `\"gguf-q2_0\"`, `\"gguf-bf16\"`", Value("[]"), "Files written when the run ends: see [Export](export.md)."),
    key("guard.max_skipped_in_a_row", "whole number of steps", Value("3"), "The run ends after this many skipped steps in a row."),
    key("guard.max_skipped", "whole number of steps", Value("20"), "The run ends after this many skipped steps in all."),
    key("guard.spike_sigma", "standard deviations; 0 = off", Value("0.0"), "Skips a step whose loss or gradient norm lies this far above the mean of the window."),
    key("guard.spike_window", "whole number of steps", Value("128"), "Steps in that window."),
    key("telemetry.every", "whole number of steps; 0 = off", Value("10"), "Steps between two reports on the ternary weights."),
    key("report.html", "true or false", Value("true"), "Writes `report.html`, a page of the run, when it ends: see [Watching runs](watching.md)."),
    key("report.track", "list of `\"tensorboard\"`, `\"mlflow\"`", Value("[\"tensorboard\"]"), "Programs in whose form the curves are written too: see [Trackers](trackers.md)."),
    key("report.command", "command line", Chosen("none"), "A command that reads every line of `metrics.jsonl` from its standard input."),
];

/// The constant default of a key, as the recipe would hold it; a rate's keys are those of `phase.*`.
pub(super) fn default_of(name: &str) -> &'static Node {
    // Parsed once for the whole program: a reader borrows the node of a value.
    static DEFAULTS: LazyLock<BTreeMap<&str, Node>> = LazyLock::new(|| {
        let value = |key: &RecipeKey| match key.default {
            Value(text) => Some((key.name, parse_word(text))),
            Required | Chosen(_) => None,
        };
        KEYS.iter().filter_map(value).collect()
    });
    // Both rates of a phase have the keys of `phase.*`.
    let rate = ["phase.learning_rate.", "phase.weight_decay."];
    let name = match rate.iter().find_map(|rate| name.strip_prefix(rate)) {
        Some(key) => format!("phase.*.{key}"),
        None => name.to_owned(),
    };
    DEFAULTS.get(&*name).unwrap_or_else(|| panic!("{name} has no constant default"))
}
