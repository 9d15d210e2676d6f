//! Distillation by the real program: a student beside its teacher and from the words that were kept of it,
//! killed and resumed, on several threads; and every teacher that is refused.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::kill::{kill_repeatedly, last_step};
use super::lab::{Dice, Lab, assert_code, assert_same, metrics, result, stderr};

const STUDENT: &str = r#"
stage = "pretrain"
seed = 4
[model]
config = "model.toml"
[tokenizer]
path = "teacher/final/tokenizer.json"
[data]
generate = { stories = 120, held_out = 12 }
seq_len = 48
cache = "cache"
[train]
steps = 60
batch = 8
micro_batch = 4
[[phase]]
name = "main"
share = 1.0
learning_rate = { shape = "linear", peak = 4e-3, end = 0.0, span = "run" }
data = { general = 1.0 }
[optimizer]
warmup_steps = 4
[eval]
every = 60
[checkpoint]
every = 2
[distill]
teacher = "teacher/final"
"#;

/// A dense teacher that has hardly begun, and the recipe of its ternary student.
fn lab() -> Lab {
    lab_with("train.steps=12")
}

/// With a teacher trained for `steps` steps.
fn lab_with(steps: &str) -> Lab {
    let lab = Lab::new();
    let teacher = ["model.quantise=false", steps, "train.batch=8", "eval.every=0"];
    let wide = ["model.hidden_size=48", "sample.every=0", "model.num_hidden_layers=3"];
    lab.finish(&lab.path("teacher"), &[&teacher[..], &wide].concat());
    fs_err::write(lab.path("student.toml"), STUDENT).unwrap();
    fs_err::write(lab.path("alone.toml"), STUDENT.split("[distill]").next().unwrap()).unwrap();
    lab
}

fn held_out(out: &Path) -> f64 {
    let lines = metrics(out);
    let eval = lines.iter().rfind(|line| line["eval"].is_object()).unwrap();
    eval["eval"]["general"]["nll_per_token"].as_f64().unwrap()
}

/// The first step's figure of this name.
fn figure(out: &Path, name: &str) -> f64 {
    metrics(out)[0][name].as_f64().unwrap_or_else(|| panic!("{name}"))
}

/// The mean training figure of the last steps.
fn last_figure(out: &Path, name: &str) -> f64 {
    let lines = metrics(out);
    let steps = lines.iter().filter(|line| line["step"].is_number());
    let values: Vec<f64> = steps.filter_map(|line| line[name].as_f64()).collect();
    let last = &values[values.len() - 10..];
    last.iter().sum::<f64>() / last.len() as f64
}

/// All words known: the loss of a whole teacher.
const ALL: &str = "distill.top_k=320";

#[test]
fn a_student_beside_its_teacher_or_its_words_learns_more_than_alone() {
    let lab = lab_with("train.steps=240");
    let [alone, beside, kept, again] =
        ["alone", "beside", "kept", "again"].map(|name| lab.path(name));
    // Far enough from the plateau of single words, which a small model leaves by chance.
    let long = ["train.steps=150", "eval.every=150", "checkpoint.every=0", "optimizer.kind=muon"];
    let taught = [&long[..], &["distill.logits=2", "distill.temperature=1"]].concat();
    let from_words = [&taught[..], &["distill.top_k=16"]].concat();
    lab.finish_recipe("alone.toml", &alone, &long);
    lab.finish_recipe("student.toml", &beside, &taught);
    let first = lab.finish_recipe("student.toml", &kept, &from_words);
    assert!(stderr(&first).contains("the teacher's words of general"), "{}", stderr(&first));
    let losses = [&alone, &beside, &kept].map(|out| held_out(out));
    println!("alone, beside, kept: {losses:?}");
    // On the machine where this was written 3.78, 3.56 and 3.58.
    assert!(losses[1] < losses[0] - 0.05 && losses[2] < losses[0] - 0.05, "{losses:?}");
    // The loss is the sum of its terms, and the divergence falls.
    let [loss, plain, kl] = ["loss", "cross_entropy", "distill_kl"].map(|it| figure(&beside, it));
    assert!((loss - plain - 2.0 * kl).abs() < 1e-4, "{loss} {plain} {kl}");
    assert!(last_figure(&beside, "distill_kl") < 0.7 * kl);
    // The words were made once.
    let second = lab.finish_recipe("student.toml", &again, &from_words);
    assert!(!stderr(&second).contains("the teacher's words"), "{}", stderr(&second));
    assert_same(&result(&again), &result(&kept), "with the kept words");
}

#[test]
fn all_words_kept_by_document_are_what_a_teacher_beside_the_student_says() {
    let lab = lab();
    let (beside, kept) = (lab.path("beside"), lab.path("kept"));
    // Whole documents in rows: with text that is split, a teacher of documents sees more.
    let words = ["data.long_rows=truncate", "train.steps=6", "eval.every=0"];
    lab.finish_recipe("student.toml", &beside, &words);
    lab.finish_recipe("student.toml", &kept, &[&words[..], &[ALL]].concat());
    for name in ["loss", "cross_entropy", "distill_kl"] {
        let (beside, kept) = (figure(&beside, name), figure(&kept, name));
        assert!((beside - kept).abs() < 1e-4 * (1.0 + beside), "{name}: {beside} {kept}");
    }
}

/// Kills a run several times and compares it with one that was not.
fn kill(words: &[&str], seed: u64) {
    let lab = lab();
    let words = [words, &["train.steps=24", "eval.every=5"]].concat();
    let straight = lab.path("straight");
    lab.finish_recipe("student.toml", &straight, &words);
    let resume = [&["--resume", "auto", "data.cache=another"], &words[..]].concat();
    let out = lab.path("killed");
    let spawn = || lab.spawn_recipe("student.toml", &out, &resume);
    // While words are computed, or soon after.
    let computes = |_: &Child| {
        let entries = fs_err::read_dir(lab.path("another")).into_iter().flatten().flatten();
        let is_part = |path: PathBuf| path.extension().is_some_and(|it| it == "part");
        entries.map(|entry| entry.path()).any(is_part) || last_step(&out).is_some()
    };
    let kills = kill_repeatedly((4, &mut Dice(seed), &out), spawn, computes);
    lab.finish_recipe("student.toml", &out, &resume);
    assert_same(&result(&out), &result(&straight), &format!("{words:?}"));
    assert!(kills >= 2, "only {kills} kills");
}

#[test]
fn a_killed_distillation_resumes_to_the_bit() {
    kill(&[], 21);
}

#[test]
fn a_killed_distillation_from_kept_words_resumes_to_the_bit() {
    kill(&["distill.top_k=12"], 22);
}

#[test]
fn threads_and_recomputation_change_no_bit_of_a_distillation() {
    let lab = lab();
    let words = ["train.steps=6", "eval.every=0"];
    for (name, more) in [("beside", ""), ("kept", "distill.top_k=9")] {
        let more: Vec<&str> = [more].into_iter().filter(|word| !word.is_empty()).collect();
        let of = |way: &str, extra: &[&str]| {
            let out = lab.path(&format!("{name}-{way}"));
            lab.finish_recipe("student.toml", &out, &[&words, &*more, extra].concat());
            result(&out)
        };
        let expected = of("one", &[]);
        assert_same(&of("three", &["--threads", "3"]), &expected, "threads");
        assert_same(&of("again", &["train.recompute=true"]), &expected, "recomputation");
    }
    // Queries, keys and values of the last block, of models of different widths and depths.
    let relations = ["distill.relations=3.0", "distill.relation_form=scaled"];
    for form in [&relations[..1], &relations[..]] {
        let of = |way: &str, extra: &[&str]| {
            let out = lab.path(&format!("relations-{}-{way}", form.len()));
            lab.finish_recipe("student.toml", &out, &[&words, form, extra].concat());
            out
        };
        let (one, three) = (of("one", &[]), of("three", &["--threads", "3"]));
        assert_same(&result(&three), &result(&one), "threads");
        let names = ["loss", "cross_entropy", "distill_kl", "distill_relations"];
        let [loss, plain, kl, relations] = names.map(|name| figure(&one, name));
        assert!(relations > 0.0, "{form:?}");
        assert!((loss - plain - kl - 3.0 * relations).abs() < 1e-4, "{form:?}");
    }
}

#[test]
fn other_precisions_little_memory_sft_and_adapters_learn_from_a_teacher_too() {
    let lab = lab();
    let short = ["train.steps=3", "eval.every=0", "optimizer.warmup_steps=1"];
    for (number, words) in [
        &["train.precision=bf16"][..],
        &["train.precision=int8"],
        &["train.memory=lean", "train.micro_batch=8"],
        &["train.memory=lean", "train.micro_batch=8", "distill.top_k=4"],
        &["stage=sft", "phase.main.data={ questions = 1.0 }", "data.seq_len=96"],
        &["stage=sft", "phase.main.data={ questions = 1.0 }", "distill.top_k=4"],
    ]
    .into_iter()
    .enumerate()
    {
        let out = lab.path(&format!("way-{number}"));
        lab.finish_recipe("student.toml", &out, &[&short, words].concat());
        assert!(figure(&out, "distill_kl") > 0.0, "{words:?}");
    }
    let base = lab.path("base");
    lab.finish_recipe("alone.toml", &base, &short);
    let adapter = STUDENT.replace("config = \"model.toml\"", "init = \"base/final\"");
    let adapter = adapter + "[adapter]\nkind = \"latent\"\nrank = 4\n";
    fs_err::write(lab.path("adapter.toml"), adapter).unwrap();
    let out = lab.path("adapter");
    lab.finish_recipe("adapter.toml", &out, &short);
    assert!(figure(&out, "distill_kl") > 0.0);
}

#[test]
fn a_plan_counts_the_teacher_that_runs_beside_the_student_and_a_dry_run_asks_it() {
    let lab = lab();
    let recipe = lab.path("student.toml");
    let memory = |extra: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
        program.args(["plan", "--json", "--recipe"]).arg(&recipe).args(extra);
        let output = program.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        line["memory"]["teacher"].as_u64().unwrap()
    };
    assert!(memory(&[]) > 100_000);
    assert_eq!(memory(&["distill.top_k=4"]), 0);
    let out = lab.path("out");
    let dry = lab.finish_recipe("student.toml", &out, &["--dry-run"]);
    assert!(stderr(&dry).contains("nothing was written"), "{}", stderr(&dry));
    assert!(!out.exists());
}

#[test]
fn teachers_that_cannot_teach_are_refused_by_name() {
    let lab = lab();
    let refused = |words: &[&str], code: i32, expected: &[&str]| {
        let out = lab.path("refused");
        let output = lab.run_recipe("student.toml", &out, words);
        let message = stderr(&output);
        assert_code(&output, code);
        for word in expected {
            assert!(message.contains(word), "{word:?} is not in: {message}");
        }
        assert!(!message.contains("panicked") && !out.join("metrics.jsonl").exists());
    };
    refused(&["distill.teacher=nowhere"], 4, &["nowhere", "distill.teacher", "no such model"]);
    refused(&["distill.top_k=321"], 3, &["[distill.top_k]", "321", "320"]);
    let relations = "distill.relations=1";
    refused(&[relations, "distill.relation_layer=2"], 3, &["[distill.relation_layer]", "0 to 1"]);
    refused(&[relations, "distill.relation_layer=-3"], 3, &["[distill.relation_layer]", "-3"]);
    refused(
        &[relations, "distill.teacher_relation_layer=3"],
        3,
        &["[distill.teacher_relation_layer]", "0 to 2"],
    );
    let long = ["data.seq_len=200", "model.max_position_embeddings=256"];
    refused(&long, 3, &["[distill.teacher]", "reads 128 tokens", "200"]);
    // Another vocabulary, and no tokenizer at all.
    let smaller = ["tokenizer.train.vocab_size=300", "train.steps=6", "eval.every=0"];
    lab.finish(&lab.path("other"), &smaller);
    let other = "distill.teacher=other/final";
    refused(&[other], 3, &["[distill.teacher]", "other/final", "of 300 tokens", "of 320"]);
    fs_err::remove_file(lab.path("other/final/tokenizer.json")).unwrap();
    refused(&[other], 3, &["[distill.teacher]", "has no tokenizer"]);
}
