//! Several ranks against one process: here as threads, so that every build tests it; by the real
//! program under `mpirun` in `mpi`.

#[cfg(feature = "mpi")]
mod hosts;
#[cfg(feature = "mpi")]
mod mpi;

use std::path::Path;

use bitnet_format::tensors::TensorFile;
use bitnet_train::distributed::in_threads;
use bitnet_train::monitor::Silent;
use bitnet_train::platform::Signals;
use bitnet_train::recipe::{self, Plan};
use bitnet_train::run::{self, Resume, RunOptions, Summary};
use bitnet_train::train::TrainError;
use serde_json::Value;

use crate::parity;
use crate::runs::lab::{Lab, assert_same, metrics, result};
use crate::runs::stages;

/// Twenty steps over the phase switch, evaluated and saved on the way; batches of 4 in one piece.
const TWENTY: [&str; 5] = [
    "train.steps=20",
    "train.micro_batch=4",
    "optimizer.warmup_steps=2",
    "eval.every=10",
    "checkpoint.every=10",
];

/// Runs a recipe of the laboratory on several ranks; the result of each.
fn try_run(
    lab: &Lab,
    (recipe, ranks): (&str, usize),
    out: &Path,
    resume: &Resume,
    words: &[&str],
) -> Vec<Result<Summary, TrainError>> {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    let Plan::Single(recipe) = recipe::load(&lab.path(recipe), &words).unwrap() else {
        panic!("a recipe of one stage")
    };
    in_threads(ranks, |comm| {
        let options = RunOptions {
            out: out.to_owned(),
            resume: resume.clone(),
            allow_change: vec!["train.reduce_precision".to_owned()],
            force: false,
            command: "a test".to_owned(),
            signals: Signals::default(),
            comm,
        };
        run::run(&recipe, &options, &mut Silent)
    })
}

#[track_caller]
fn run(lab: &Lab, recipe: (&str, usize), out: &Path, words: &[&str]) {
    for summary in try_run(lab, recipe, out, &Resume::Auto, &[&TWENTY, words].concat()) {
        summary.unwrap();
    }
}

/// A figure of every step, or of every evaluation.
fn figures(out: &Path, of: impl Fn(&Value) -> Option<f64>) -> Vec<f64> {
    metrics(out).iter().filter_map(of).collect()
}

/// The largest difference between two lists, relative to the second.
fn largest(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    assert!(!found.is_empty());
    let relative = |(found, expected): (&f64, &f64)| (found - expected).abs() / expected.abs();
    found.iter().zip(expected).map(relative).fold(0.0, f64::max)
}

/// The distance of two final models, or adapters, over the size of the second, both as one long vector.
fn distance(found: &Path, expected: &Path) -> f64 {
    let open = |out: &Path| {
        let files = ["final/model.safetensors", "final/adapter_model.safetensors"];
        let mut files = files.into_iter().map(|file| out.join(file));
        TensorFile::open(&files.find(|file| file.exists()).unwrap()).unwrap()
    };
    let (found, expected) = (open(found), open(expected));
    let (mut apart, mut size) = (0.0, 0.0);
    for name in expected.names() {
        let shape = &expected.info(&name).unwrap().shape;
        let values = |file: &TensorFile| file.floats(&name, shape).unwrap();
        for (a, b) in values(&found).into_iter().zip(values(&expected)) {
            apart += f64::from(a - b).powi(2);
            size += f64::from(b).powi(2);
        }
    }
    (apart / size).sqrt()
}

/// Largest relative differences between two runs: loss, gradient norm, held-out loss, weights.
fn differences(found: &Path, expected: &Path) -> [f64; 4] {
    let of = |name: &'static str| {
        let figure = move |line: &Value| line[name].as_f64();
        largest(&figures(found, figure), &figures(expected, figure))
    };
    let held_out = |line: &Value| {
        let sets = line["eval"].as_object()?;
        sets.values().next()?["nll_per_token"].as_f64()
    };
    let held_out = largest(&figures(found, held_out), &figures(expected, held_out));
    [of("loss"), of("grad_norm"), held_out, distance(found, expected)]
}

/// What the four differences may be; a ternary code that flips moves every figure a little.
struct Allowed([f64; 4]);

impl Allowed {
    #[track_caller]
    fn check(&self, found: [f64; 4], what: &str) {
        let words = found.map(|figure| format!("{figure:.1e}")).join(" | ");
        println!("| {what} | {words} |");
        for (figure, allowed) in found.iter().zip(self.0) {
            assert!(*figure <= allowed, "{what}: {found:?}, allowed {:?}", self.0);
        }
    }
}

/// One, two and four ranks on a recipe of the laboratory.
fn agree_on(lab: &Lab, recipe: &str, words: &[&str], allowed: &Allowed) {
    let stem = recipe.trim_end_matches(".toml");
    let out = |ranks: usize, what: &str| lab.path(&format!("{stem}-{ranks}{what}"));
    run(lab, (recipe, 1), &out(1, ""), words);
    for ranks in [2, 4] {
        run(lab, (recipe, ranks), &out(ranks, ""), words);
        allowed.check(differences(&out(ranks, ""), &out(1, "")), &format!("{stem}, {ranks} ranks"));
        run(lab, (recipe, ranks), &out(ranks, "-again"), words);
        let first = result(&out(ranks, ""));
        assert_same(&result(&out(ranks, "-again")), &first, "the same number of ranks");
        let sharded = [words, &["train.shard_optimizer=true"]].concat();
        run(lab, (recipe, ranks), &out(ranks, "-sharded"), &sharded);
        assert_same(&result(&out(ranks, "-sharded")), &first, "a sharded optimizer");
        let lines = metrics(&out(ranks, ""));
        let last = lines.iter().rfind(|line| line["step"] == 20 && line["ranks"].is_u64()).unwrap();
        assert_eq!(last["ranks"], ranks);
        let (own, all) = (&last["tokens_this_rank"], &last["tokens"]);
        assert!(own.as_u64().unwrap() * 2 <= all.as_u64().unwrap() * 3 / 2, "{own} of {all}");
    }
}

const DENSE: &str = "model.quantise=false";
/// Rounding in f32.
const DENSE_TWIN: Allowed = Allowed([1e-6, 5e-6, 1e-6, 1e-6]);
/// The same and a code or a level that flips now and then.
const TERNARY: Allowed = Allowed([2e-4, 5e-3, 2e-4, 1e-3]);

#[test]
fn ranks_agree_with_one_process_in_pretraining() {
    let lab = Lab::new();
    agree_on(&lab, "recipe.toml", &[], &TERNARY);
    fs_err::copy(lab.path("recipe.toml"), lab.path("dense.toml")).unwrap();
    agree_on(&lab, "dense.toml", &[DENSE], &DENSE_TWIN);
}

#[test]
fn ranks_agree_with_one_process_in_fine_tuning_and_preference_training() {
    let lab = stages::lab();
    agree_on(&lab, "sft.toml", &["guard.spike_sigma=0"], &TERNARY);
    agree_on(&lab, "dpo.toml", &[], &TERNARY);
}

#[test]
fn ranks_agree_with_one_process_in_distillation() {
    let lab = stages::lab();
    let teacher = ["guard.spike_sigma=0", "distill.teacher=base/final"];
    agree_on(&lab, "sft.toml", &teacher, &TERNARY);
    fs_err::copy(lab.path("sft.toml"), lab.path("kept.toml")).unwrap();
    agree_on(&lab, "kept.toml", &[&teacher[..], &["distill.top_k=9"]].concat(), &TERNARY);
}

#[test]
fn settings_for_several_ranks_change_nothing_for_one() {
    let lab = Lab::new();
    let (plain, out) = (lab.path("plain"), lab.path("out"));
    run(&lab, ("recipe.toml", 1), &plain, &[]);
    let words = ["train.shard_optimizer=true", "train.reduce_precision=bf16"];
    run(&lab, ("recipe.toml", 1), &out, &words);
    assert_same(&result(&out), &result(&plain), "one process");
}

/// Runs the fine-tuning on two ranks, straight through and once more from the checkpoint in the middle;
/// saving compares the bits of all ranks.
fn assert_resumes_on_two_ranks(lab: &Lab, words: &[&str]) {
    let (straight, cut) = (lab.path("straight"), lab.path("cut"));
    run(lab, ("sft.toml", 2), &straight, words);
    run(lab, ("sft.toml", 2), &cut, words);
    fs_err::remove_dir_all(cut.join("step-000020")).unwrap();
    fs_err::remove_dir_all(cut.join("final")).unwrap();
    run(lab, ("sft.toml", 2), &cut, words);
    assert_same(&result(&cut), &result(&straight), "resumed on two ranks");
}

#[test]
fn ranks_with_fewer_bits_keep_the_same_bits_and_resume_to_them() {
    let lab = stages::lab();
    let words = ["train.latents=block16", "optimizer.moments=8bit", "guard.spike_sigma=0"];
    let words = [&words[..], &["optimizer.kind=muon"]].concat();
    assert_resumes_on_two_ranks(&lab, &words);
    let refused = |words: &[&str], named: &str| {
        let all = try_run(&lab, ("sft.toml", 2), &lab.path("no"), &Resume::Never, words);
        let all: Vec<_> = all.into_iter().map(Result::unwrap_err).collect();
        assert!(all.iter().all(|error| error.exit_code() == 3), "{all:?}");
        assert!(all.iter().any(|error| error.to_string().contains(named)), "{all:?}");
    };
    refused(&["train.memory=lean", "train.micro_batch=4"], "train.update");
}

#[test]
fn ranks_that_share_the_matrices_of_muon_keep_the_bits_of_those_that_do_not() {
    let lab = stages::lab();
    let words = ["optimizer.kind=muon", "guard.spike_sigma=0"];
    let sharded = [&words[..], &["train.shard_optimizer=true"]].concat();
    assert_resumes_on_two_ranks(&lab, &sharded);
    let (one, two) = (lab.path("one"), lab.path("two"));
    run(&lab, ("sft.toml", 2), &two, &words);
    assert_same(&result(&two), &result(&lab.path("straight")), "a sharded Muon");
    run(&lab, ("sft.toml", 1), &one, &words);
    TERNARY.check(differences(&two, &one), "Muon, 2 ranks");
}

#[test]
fn ranks_with_8_bit_gradients_keep_the_same_bits_and_resume_to_them() {
    let words = ["train.precision=int8", "guard.spike_sigma=0"];
    assert_resumes_on_two_ranks(&stages::lab(), &words);
}

#[test]
fn ranks_agree_with_one_process_on_adapters_and_resume_them_to_the_bit() {
    let lab = stages::lab();
    let words = ["adapter.kind=latent", "adapter.rank=4", "guard.spike_sigma=0"];
    let sharded = [&words[..], &["train.shard_optimizer=true"]].concat();
    assert_resumes_on_two_ranks(&lab, &sharded);
    let (one, two) = (lab.path("one"), lab.path("two"));
    run(&lab, ("sft.toml", 1), &one, &words);
    run(&lab, ("sft.toml", 2), &two, &words);
    assert_same(&result(&two), &result(&lab.path("straight")), "a sharded optimizer");
    TERNARY.check(differences(&two, &one), "a latent adapter, 2 ranks");
    let words = ["adapter.kind=side", "adapter.rank=4"];
    let (one, two) = (lab.path("side-one"), lab.path("side-two"));
    run(&lab, ("dpo.toml", 1), &one, &words);
    run(&lab, ("dpo.toml", 2), &two, &words);
    TERNARY.check(differences(&two, &one), "a side adapter, 2 ranks");
}

#[test]
fn gradients_in_bf16_cost_little() {
    let lab = Lab::new();
    let (one, two) = (lab.path("one"), lab.path("two"));
    run(&lab, ("recipe.toml", 1), &one, &[]);
    run(&lab, ("recipe.toml", 2), &two, &["train.reduce_precision=bf16"]);
    let found = differences(&two, &one);
    assert!(found[3] > 1e-6, "bf16 was not used: {found:?}");
    Allowed([5e-3, 1e-1, 5e-3, 2e-2]).check(found, "gradients in bf16, 2 ranks");
}

#[test]
fn a_step_that_is_left_out_names_the_documents_of_all_ranks() {
    let lab = stages::lab();
    let left_out = |ranks: usize| {
        let out = lab.path(&format!("skips-{ranks}"));
        let words = ["train.steps=24", "guard.spike_sigma=1.0", "train.micro_batch=4"];
        run(&lab, ("sft.toml", ranks), &out, &words);
        let rows = |line: &Value| Some((line["step"].as_u64()?, line.get("rows")?.to_string()));
        metrics(&out).iter().filter_map(rows).collect::<Vec<_>>()
    };
    let expected = left_out(1);
    assert!(!expected.is_empty());
    assert_eq!(left_out(2), expected);
    assert_eq!(left_out(4), expected);
}

#[test]
fn a_batch_smaller_than_the_ranks_is_refused_on_all() {
    let lab = Lab::new();
    let words = ["train.batch=2", "train.micro_batch=2"];
    let ended = try_run(&lab, ("recipe.toml", 3), &lab.path("out"), &Resume::Never, &words);
    let errors: Vec<_> = ended.into_iter().map(Result::unwrap_err).collect();
    assert!(errors.iter().all(|error| error.exit_code() == 3 && error.is_shared()));
    let told = errors[0].to_string();
    assert!(
        told.contains("[train.batch]: is 2; expected at least one for each of the 3 ranks"),
        "{told}"
    );
    assert!(!lab.path("out").exists());
}

/// The documents of preference training are judged by all ranks and by one alike.
#[test]
fn reference_log_probabilities_are_the_same_bits_on_any_number_of_ranks() {
    let lab = stages::lab();
    let files = |ranks: usize| {
        let (out, cache) = (lab.path(&format!("r-{ranks}")), lab.path(&format!("cache-{ranks}")));
        let cache_word = format!("data.cache=\"{}\"", cache.display());
        let words = ["train.steps=1", "optimizer.warmup_steps=0", &cache_word];
        for summary in try_run(&lab, ("dpo.toml", ranks), &out, &Resume::Never, &words) {
            summary.unwrap();
        }
        let names = fs_err::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<_> =
            names.filter(|path| path.extension().is_some_and(|e| e == "logp")).collect();
        names.sort();
        names.iter().map(|path| fs_err::read(path).unwrap()).collect::<Vec<_>>()
    };
    let expected = files(1);
    assert_eq!(expected.len(), 2, "training and validation");
    assert!(files(2) == expected && files(3) == expected);
}

#[cfg(not(feature = "mpi"))]
#[test]
fn several_processes_in_a_build_without_mpi_are_refused() {
    let lab = Lab::new();
    let mut command = lab.command(&lab.path("out"), &[]);
    let output = command.env("OMPI_COMM_WORLD_SIZE", "4").output().unwrap();
    crate::runs::lab::assert_code(&output, 5);
    let told = crate::runs::lab::stderr(&output);
    assert!(told.contains("4 processes") && told.contains("--features mpi"), "{told}");
    assert!(!lab.path("out").exists());
}

/// A CPU is shared; of other devices each rank of a machine has its own, or none starts.
#[test]
fn parity_of_two_ranks_on_each_device() {
    let lab = Lab::new();
    for (name, device) in parity::devices() {
        let out = |ranks: usize| lab.path(&format!("{name}-{ranks}"));
        let word = format!("device=\"{name}\"");
        let words = [&TWENTY[..], &[&word, "train.steps=6", "eval.every=3"]].concat();
        if bitnet_train::device::shares_memory(&device.clone().inner()) {
            for ranks in [1, 2] {
                let recipe = ("recipe.toml", ranks);
                for summary in try_run(&lab, recipe, &out(ranks), &Resume::Never, &words) {
                    summary.unwrap();
                }
            }
            TERNARY.check(differences(&out(2), &out(1)), &format!("{name}, 2 ranks"));
            continue;
        }
        let error = bitnet_train::device::open_one_of(name, 0, 64).unwrap_err();
        let told = error.to_string();
        assert!(told.contains("each of the 64 ranks on this machine needs its own"), "{told}");
        assert_eq!(TrainError::from(error).exit_code(), 5);
    }
}
