//! Repeats the character-level reference run made with PyTorch: same initial weights, same
//! batches, same schedule. `interface.md` says how it is called; the folder with the reference
//! brings the weights, the batch offsets and the tokens.
//!
//! `cargo run --release --example char_reference -- --dir DIR --seed 0 [--dense] [--bf16] --json`

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use bitnet_format::ModelSpec;
use bitnet_format::tensors::TensorFile;
use bitnet_kernels::Operands;
use bitnet_train::model::{Documents, LanguageModel, Weight};
use bitnet_train::ops::Compute;
use bitnet_train::train::{
    Accumulated, AdamW, AdamWSettings, Batch, CrossEntropy, Rates, StepSettings, batch_log_probs,
};
use burn::module::Module;
use burn::tensor::Device;
use clap::Parser;
use serde_json::{Value, json};

/// Validation windows that are evaluated at once.
const WINDOWS_AT_ONCE: usize = 64;

/// What the schedule and the optimizer read from the reference's config.
const NUMBERS: [&str; 10] =
    ["warmup", "phase1_frac", "lr1", "lr1_end", "lr2", "lr2_end", "wd1", "wd2", "clip", "eps"];

#[derive(Parser)]
struct Args {
    /// The folder of the reference run.
    #[arg(long)]
    dir: PathBuf,
    /// Which initial weights and batches.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Train the dense twin.
    #[arg(long)]
    dense: bool,
    /// Round the operands of the float products to bf16.
    #[arg(long)]
    bf16: bool,
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
    let (model, losses) =
        reference.train(args.steps.map_or(reference.steps, |steps| steps.min(reference.steps)))?;
    let validation = reference.validate(&model.valid());
    print(&args, &losses, validation);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result belongs on stdout")]
fn print(args: &Args, losses: &[f32], validation: f64) {
    if args.json {
        println!("{}", json!({"loss": losses, "val_full_final": validation}));
    } else {
        println!("validation loss over all windows: {validation:.4}");
    }
}

/// The reference run as its folder describes it.
struct Reference {
    spec: ModelSpec,
    weights: TensorFile,
    offsets: Vec<u32>,
    tokens: Vec<u16>,
    validation: Vec<u16>,
    train: Value,
    steps: usize,
    batch: usize,
    time: usize,
    compute: Compute,
    device: Device,
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
        Ok(Self {
            spec,
            weights: TensorFile::open(&path(format!("char_init_seed{}.safetensors", args.seed)))?,
            offsets: numbers(&path(format!("char_offsets_seed{}.u32", args.seed)))?,
            tokens: numbers(&path("char_train.u16".into()))?,
            validation: numbers(&path("char_val.u16".into()))?,
            steps: number("steps")? as usize,
            batch: number("batch")? as usize,
            time: number("seq")? as usize,
            train: config["train"].clone(),
            compute: Compute {
                operands: if args.bf16 { Operands::Bf16 } else { Operands::F32 },
                ..Compute::default()
            },
            device: Device::flex().autodiff(),
        })
    }

    fn number(&self, key: &str) -> f64 {
        self.train[key].as_f64().expect("`open` has checked every number")
    }

    /// Learning rate and weight decay of step `t`, from 1 (the reference's README).
    fn rates(&self, t: usize) -> Rates {
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
        Rates { learning_rate, weight_decay }
    }

    fn train(&self, steps: usize) -> Result<(LanguageModel, Vec<f32>)> {
        let form = if self.spec.quantise { Weight::Latent } else { Weight::Dense };
        let mut model = LanguageModel::from_source(&self.spec, &self.device, |entry| {
            self.weights.floats(&entry.name, &entry.shape).map(|values| (values, form))
        })?;
        model = model.computed_by(self.compute);
        let betas = &self.train["betas"];
        let adamw = AdamWSettings {
            beta1: betas[0].as_f64().context("[train] betas")?,
            beta2: betas[1].as_f64().context("[train] betas")?,
            eps: self.number("eps"),
        };
        let mut optimizer = AdamW::for_model(&self.spec, adamw, &self.device);
        let settings = StepSettings { grad_clip: self.number("clip"), ..StepSettings::default() };
        let (mut losses, began) = (Vec::new(), Instant::now());
        for t in 1..=steps {
            let batch = self.batch(t);
            let sum = Accumulated::of(&model, &CrossEntropy, &[batch], &self.device);
            let (next, report) = sum.apply(model, &mut optimizer, settings, self.rates(t));
            model = next;
            losses.push(report.loss);
            if t % 50 == 0 {
                let tokens = (t * self.batch * self.time) as f64;
                let speed = tokens / began.elapsed().as_secs_f64();
                eprintln!("step {t}/{steps} loss {:.4} {speed:.0} tokens/s", report.loss);
            }
        }
        Ok((model, losses))
    }

    fn batch(&self, t: usize) -> Batch {
        let starts = &self.offsets[(t - 1) * self.batch..t * self.batch];
        windows(&self.tokens, starts.iter().map(|&start| start as usize), self.time)
    }

    /// Mean loss over all windows of the validation text.
    fn validate(&self, model: &LanguageModel) -> f64 {
        let count = (self.validation.len() - 1) / self.time;
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

/// Rows of `time` inputs and targets that begin at `starts`.
fn windows(tokens: &[u16], starts: impl Iterator<Item = usize>, time: usize) -> Batch {
    let (mut inputs, mut targets, mut rows) = (Vec::new(), Vec::new(), 0);
    for start in starts {
        inputs.extend(tokens[start..start + time].iter().map(|&token| i32::from(token)));
        targets.extend(tokens[start + 1..=start + time].iter().map(|&token| i32::from(token)));
        rows += 1;
    }
    let loss_mask = vec![1.0; inputs.len()];
    let documents = Documents::whole_rows(rows, time);
    Batch { tokens: inputs, targets, loss_mask, documents }
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
