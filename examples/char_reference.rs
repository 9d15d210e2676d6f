//! Repeats the character-level reference run made with PyTorch: same initial weights, same
//! batches, same schedule. The folder with the reference run holds the weights, the batch offsets
//! and the tokens.
//!
//! `cargo run --release --example char_reference -- --dir DIR --seed 0 [--dense] [--precision int8] --json`
//!
//! `--latents`, `--moments` and `--during` are the recipe keys of the same names, for less memory.
//!
//! With `--drawn` the weights and the batches are drawn here instead of read: the same run from any
//! seed, which says how much of a difference is chance.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use bitnet_format::tensors::TensorFile;
use bitnet_format::{ModelSpec, tensor_table};
use bitnet_train::latents::{LatentFormat, LeanSettings, MomentFormat, UpdateTime};
use bitnet_train::model::{ActivationMemory, LanguageModel, LinearWeight, SegmentStarts};
use bitnet_train::ops::{DrawPlace, GradientRounding, OpBackend};
use bitnet_train::random;
use bitnet_train::recipe::{Bf16Sums, GRADIENT_ROUNDING_WORDS, Precision};
use bitnet_train::train::{
    AdamWSettings, CrossEntropy, GradAccumulator, MuonSettings, StepRates, StepSettings,
    TokenBatch, UpdateDuring, batch_log_probs, lean_process,
};
use burn::module::Module;
use burn::tensor::Device;
use clap::Parser;
use rand::RngExt;
use serde_json::{Value, json};

/// Validation windows that are evaluated at once.
const WINDOWS_AT_ONCE: usize = 64;

/// What the schedule and the optimizer read from the reference's config.
const NUMBERS: [&str; 12] = [
    "warmup",
    "phase1_frac",
    "lr1",
    "lr1_end",
    "lr2",
    "lr2_end",
    "wd1",
    "wd2",
    "clip",
    "eps",
    "eval_every",
    "eval_windows",
];

#[derive(Parser)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
struct Args {
    /// The folder of the reference run.
    #[arg(long)]
    dir: PathBuf,
    /// Which initial weights and batches.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Draw the weights and batches of the seed instead of reading them.
    #[arg(long)]
    drawn: bool,
    /// Train the dense twin.
    #[arg(long)]
    dense: bool,
    /// What a step computes in: f32, bf16 or int8.
    #[arg(long, default_value = "f32", value_parser = word(Precision::WORDS))]
    precision: Precision,
    /// How 8-bit gradients are rounded: stochastic or nearest.
    #[arg(long, default_value = "stochastic", value_parser = word(GRADIENT_ROUNDING_WORDS))]
    gradient_rounding: GradientRounding,
    /// How latents are kept: f32, bf16, bf16+8 or block16.
    #[arg(long, default_value = "f32")]
    latents: LatentFormat,
    /// How moments are kept: f32, bf16 or 8bit.
    #[arg(long, default_value = "f32")]
    moments: MomentFormat,
    /// Update each block as soon as its gradients are there.
    #[arg(long)]
    during: bool,
    /// Train the matrices of blocks by Muon, at this many times the reference's rate.
    #[arg(long)]
    muon: Option<f64>,
    /// Steps to make instead of the reference's, for a quick look.
    #[arg(long)]
    steps: Option<usize>,
    /// Print the result as one JSON line.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let reference = Reference::open(&args)?;
    let curve =
        reference.train(args.steps.map_or(reference.steps, |steps| steps.min(reference.steps)))?;
    print(&args, &curve);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result belongs on stdout")]
fn print(args: &Args, curve: &Curve) {
    let Curve { losses, validation, validation_at_the_end } = curve;
    if args.json {
        let all = json!({"loss": losses, "val": validation,
            "val_full_final": validation_at_the_end});
        println!("{all}");
    } else {
        println!("validation loss over all windows: {validation_at_the_end:.4}");
    }
}

/// What a run gave.
struct Curve {
    /// The loss of every step's batch.
    losses: Vec<f32>,
    /// Steps, and the mean loss over the first windows after them.
    validation: Vec<(usize, f64)>,
    /// Over all windows, after the last step.
    validation_at_the_end: f64,
}

/// Where the weights of step 0 come from.
enum Start {
    Stored(TensorFile),
    Drawn(u64),
}

/// The reference run as its folder describes it.
struct Reference {
    spec: ModelSpec,
    start: Start,
    offsets: Vec<u32>,
    tokens: Vec<u16>,
    validation: Vec<u16>,
    train: Value,
    steps: usize,
    batch: usize,
    time: usize,
    backend: OpBackend,
    seed: u64,
    device: Device,
    lean: LeanSettings,
    muon: Option<MuonSettings>,
    update: UpdateTime,
}

impl Reference {
    fn open(args: &Args) -> Result<Self> {
        let path = |name: String| args.dir.join(name);
        let config: Value = serde_json::from_slice(&read(&path("config_char.json".into()))?)
            .context("config_char.json")?;
        let mut spec: ModelSpec =
            serde_json::from_value(config["model"].clone()).context("config_char.json [model]")?;
        spec.quantise = !args.dense;
        for key in NUMBERS {
            config["train"][key].as_f64().context(format!("config_char.json [train] {key}"))?;
        }
        let number = |key: &str| config["train"][key].as_u64().context(format!("[train] {key}"));
        let outside = args.during || args.latents != LatentFormat::F32;
        let latents = outside.then_some(args.latents);
        let lean = LeanSettings { latents, moments: args.moments, seed: args.seed };
        let of_ratio = |rate_ratio| MuonSettings { rate_ratio, ..MuonSettings::default() };
        let muon = args.muon.map(of_ratio);
        let update = if args.during { UpdateTime::During } else { UpdateTime::After };
        let tokens: Vec<u16> = numbers(&path("char_train.u16".into()))?;
        let [steps, batch, time] = ["steps", "batch", "seq"].map(number);
        let (steps, batch, time) = (steps? as usize, batch? as usize, time? as usize);
        let (start, offsets) = if args.drawn {
            let last = (tokens.len() - time - 1) as u32;
            (Start::Drawn(args.seed), drawn_offsets(args.seed, steps * batch, last))
        } else {
            let weights = path(format!("char_init_seed{}.safetensors", args.seed));
            let offsets = numbers(&path(format!("char_offsets_seed{}.u32", args.seed)))?;
            (Start::Stored(TensorFile::open(&weights)?), offsets)
        };
        Ok(Self {
            spec,
            start,
            offsets,
            tokens,
            validation: numbers(&path("char_val.u16".into()))?,
            steps,
            batch,
            time,
            train: config["train"].clone(),
            backend: OpBackend::native(args.precision.operands(Bf16Sums::Chain))
                .with_gradients(args.precision.gradients(args.gradient_rounding)),
            seed: args.seed,
            device: Device::flex().autodiff(),
            lean,
            muon,
            update,
        })
    }

    fn number(&self, key: &str) -> f64 {
        self.train[key].as_f64().expect("`open` has checked every number")
    }

    /// Learning rate and weight decay of step `t`, from 1 (the reference's README).
    fn rates(&self, t: usize) -> StepRates {
        let (t, warmup) = (t as f64, self.number("warmup"));
        let switch = (self.number("phase1_frac") * self.steps as f64).floor();
        let between = |from: f64, to: f64, part: f64| from + (to - from) * part;
        let (learning_rate, weight_decay) = if t <= warmup {
            (self.number("lr1") * t / warmup, self.number("wd1"))
        } else if t <= switch {
            let part = (t - warmup) / (switch - warmup);
            (between(self.number("lr1"), self.number("lr1_end"), part), self.number("wd1"))
        } else {
            let part = (t - switch) / (self.steps as f64 - switch);
            (between(self.number("lr2"), self.number("lr2_end"), part), self.number("wd2"))
        };
        StepRates { learning_rate, weight_decay }
    }

    fn initial_model(&self) -> Result<LanguageModel> {
        let form = if self.spec.quantise { LinearWeight::Latent } else { LinearWeight::Dense };
        let model = match &self.start {
            Start::Drawn(seed) => LanguageModel::initial_with(
                &self.spec,
                *seed,
                &self.device,
                self.lean.latents.into(),
            ),
            Start::Stored(weights) => {
                let latents = self.lean.latents;
                LanguageModel::with_storage(&self.spec, &self.device, latents.into(), |entry| {
                    weights.floats(&entry.name, &entry.shape).map(|values| (values, form))
                })?
            }
        };
        let activations = match self.update {
            UpdateTime::After => ActivationMemory::Kept,
            UpdateTime::During => ActivationMemory::Recomputed,
        };
        Ok(model.with_backend(self.backend).with_activations(activations))
    }

    fn train(&self, steps: usize) -> Result<Curve> {
        let mut model = self.initial_model()?;
        let betas = &self.train["betas"];
        let adamw = AdamWSettings {
            beta1: betas[0].as_f64().context("[train] betas")?,
            beta2: betas[1].as_f64().context("[train] betas")?,
            eps: self.number("eps"),
            muon: self.muon,
            ..AdamWSettings::default()
        };
        let table = tensor_table(&self.spec);
        let frozen = vec![false; table.len()];
        let stepper = lean_process(self.backend, frozen, (self.lean, self.update), true);
        let mut optimizer = stepper.new_optimizer(&table, adamw, &self.device);
        let settings = StepSettings { grad_clip: self.number("clip"), ..StepSettings::default() };
        let (every, few) =
            (self.number("eval_every") as usize, self.number("eval_windows") as usize);
        let (mut losses, mut validation, began) = (Vec::new(), Vec::new(), Instant::now());
        for t in 1..=steps {
            let batch = self.batch(t);
            let rates = self.rates(t);
            let (seed, step) = (self.seed, t as u64);
            model =
                model.with_backend(self.backend.drawing(|place| DrawPlace { seed, step, ..place }));
            let sum = match self.update {
                UpdateTime::After => {
                    GradAccumulator::of(&model, &CrossEntropy, &[batch], &self.device)
                }
                UpdateTime::During => {
                    let updates = UpdateDuring::new(&mut optimizer, settings, rates);
                    let device = &self.device;
                    GradAccumulator::updating(&model, &CrossEntropy, &batch, device, &updates)
                }
            };
            let (next, pending) = stepper.step(sum, model, &mut optimizer, settings, rates);
            let report = stepper.sync(pending, &mut optimizer);
            model = next;
            losses.push(report.loss);
            if t % every == 0 {
                validation.push((t, self.validate(&model.valid(), few)));
            }
            if t % 50 == 0 {
                let tokens = (t * self.batch * self.time) as f64;
                let speed = tokens / began.elapsed().as_secs_f64();
                eprintln!("step {t}/{steps} loss {:.4} {speed:.0} tokens/s", report.loss);
            }
        }
        let validation_at_the_end = self.validate(&model.valid(), usize::MAX);
        Ok(Curve { losses, validation, validation_at_the_end })
    }

    fn batch(&self, t: usize) -> TokenBatch {
        let starts = &self.offsets[(t - 1) * self.batch..t * self.batch];
        windows(&self.tokens, starts.iter().map(|&start| start as usize), self.time)
    }

    /// Mean loss over the first windows of the validation text.
    fn validate(&self, model: &LanguageModel, windows_at_most: usize) -> f64 {
        let count = windows_at_most.min((self.validation.len() - 1) / self.time);
        let starts: Vec<usize> = (0..count).map(|window| window * self.time).collect();
        let sum: f64 = starts
            .chunks(WINDOWS_AT_ONCE)
            .map(|starts| {
                let batch = windows(&self.validation, starts.iter().copied(), self.time);
                let log_probs = batch_log_probs(model, &batch, &Device::flex());
                -log_probs.into_data().iter::<f64>().sum::<f64>()
            })
            .sum();
        sum / (count * self.time) as f64
    }
}

/// Parses one of the words of a recipe.
fn word<T: Copy + Send + Sync>(
    words: &'static [(&'static str, T)],
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let found = words.iter().find(|(word, _)| *word == text);
        let names = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        found.map(|(_, value)| *value).ok_or_else(|| format!("expected one of {}", names()))
    }
}

/// Where the rows of all batches begin, each below `end`.
fn drawn_offsets(seed: u64, count: usize, end: u32) -> Vec<u32> {
    let mut random = random::keyed(seed, "batches", 0, 0);
    (0..count).map(|_| random.random_range(0..end)).collect()
}

/// Rows of `time` inputs and targets that begin at `starts`.
fn windows(tokens: &[u16], starts: impl Iterator<Item = usize>, time: usize) -> TokenBatch {
    let (mut inputs, mut targets, mut rows) = (Vec::new(), Vec::new(), 0);
    for start in starts {
        inputs.extend(tokens[start..start + time].iter().map(|&token| i32::from(token)));
        targets.extend(tokens[start + 1..=start + time].iter().map(|&token| i32::from(token)));
        rows += 1;
    }
    let loss_mask = vec![1.0; inputs.len()];
    let documents = SegmentStarts::whole_rows(rows, time);
    TokenBatch { tokens: inputs, targets, loss_mask, documents }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs_err::read(path).map_err(Into::into)
}

/// A file of little-endian numbers.
fn numbers<N: bytemuck::Pod>(path: &Path) -> Result<Vec<N>> {
    let bytes = read(path)?;
    let count = bytes.len() / size_of::<N>();
    anyhow::ensure!(bytes.len() == count * size_of::<N>(), "{}: a torn number", path.display());
    Ok(bytemuck::pod_collect_to_vec(&bytes))
}
