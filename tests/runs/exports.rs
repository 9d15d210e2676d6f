//! Export by the real program: every form of one model, what is refused, and what an interrupted
//! export leaves behind.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bitnet_engine::{GenerateRequest, Model, SamplerSettings, ThreadPool, generate};
use bitnet_text::Tokenizer;
use serde_json::Value;

use super::lab::{Lab, assert_code, stderr};

const SHAPE: &str = "hidden_size = 256\nintermediate_size = 256\nnum_hidden_layers = 2\n\
    num_attention_heads = 4\nnum_key_value_heads = 2\nvocab_size = 300\n\
    max_position_embeddings = 128\n";

const FORMATS: [&str; 5] = ["hf-bf16", "hf-packed", "gguf-i2_s", "gguf-tq1_0", "gguf-tq2_0"];

/// A random master with a tokenizer.
fn master(extra: &str) -> Lab {
    let lab = Lab::new();
    fs_err::write(lab.path("shape.toml"), format!("{SHAPE}{extra}")).unwrap();
    let text = "the cat sat on the mat and the rat sat too. Where was it? ".repeat(30);
    fs_err::write(lab.path("text.txt"), text).unwrap();
    let tokenizer = ["tokenizer", "--data", "text.txt", "--vocab-size", "290", "--out", "t.json"];
    let output = lab.tool(&tokenizer);
    assert!(output.status.success(), "{}", stderr(&output));
    let init = ["init", "--config", "shape.toml", "--tokenizer", "t.json", "--out", "master"];
    let output = lab.tool(&init);
    assert!(output.status.success(), "{}", stderr(&output));
    lab
}

fn export(lab: &Lab, model: &str, format: &str, out: &str, extra: &[&str]) -> Output {
    let arguments = ["export", "--model", model, "--format", format, "--out", out];
    lab.tool(&[&arguments[..], extra].concat())
}

fn exported(lab: &Lab, model: &str, format: &str, out: &str, extra: &[&str]) -> Value {
    let output = export(lab, model, format, out, &[extra, &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the model at `path` says after a prompt.
fn generated(path: &Path) -> (Vec<u32>, String) {
    let tokenizer = Tokenizer::of_model(path).unwrap().unwrap();
    let model = Model::load(path).unwrap();
    let threads = ThreadPool::new(1).unwrap();
    let request = GenerateRequest {
        sampler: SamplerSettings::greedy(),
        stop_ids: Vec::new(),
        max_tokens: 12,
    };
    let ids = tokenizer.encode("the cat").unwrap();
    let each = |_| std::ops::ControlFlow::Continue(());
    let mut cache = model.new_cache();
    let tokens = generate(&model, &mut cache, &ids, &request, &threads, each).unwrap().tokens;
    let text = tokenizer.decode(&tokens);
    (tokens, text)
}

#[test]
fn every_format_holds_the_same_model_and_generates_the_same_text() {
    for extra in [
        "",
        "hidden_act = \"silu\"",
        "hidden_act = \"silu\"\nsub_norms = false\n\
        tie_word_embeddings = false",
    ] {
        let lab = master(extra);
        for format in FORMATS {
            let result = exported(&lab, "master", format, format, &[]);
            let verified = &result["verification"];
            assert_eq!(verified["code_differences"], 0, "{format}: {result}");
            assert!(verified["codes"].as_u64().unwrap() > 500_000, "{format}: {result}");
            // Three sequences of 48 tokens and one as long as the context.
            assert_eq!(verified["positions"], 3 * 48 + 128, "{format}: {result}");
            assert_eq!(verified["longest_sequence"], 128, "{format}: {result}");
            // A near-tie at the start of a sequence moves all of it, but not all three sequences.
            assert!(verified["close"].as_u64().unwrap() >= 48, "{format}: {result}");
            let largest = verified["largest_logit_difference"].as_f64().unwrap();
            assert!(largest < 0.02, "{format}: {result}");
        }
        let master = generated(&lab.path("master"));
        for format in FORMATS {
            assert_eq!(generated(&lab.path(format)), master, "{format} {extra}");
        }
    }
}

#[test]
fn an_embedding_may_be_smaller() {
    let lab = master("");
    let mut sizes = Vec::new();
    for table in ["f32", "f16", "q8_0", "q6_k"] {
        let result = exported(&lab, "master", "gguf-tq2_0", table, &["--embedding", table]);
        // Both programs compute with the values as the file holds them.
        let largest = result["verification"]["largest_logit_difference"].as_f64().unwrap();
        assert!(largest < 0.02, "{table}: {result}");
        sizes.push(result["bytes"].as_u64().unwrap());
    }
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
}

#[test]
fn a_master_is_copied_byte_for_byte_and_a_packed_model_goes_both_ways() {
    let lab = master("");
    exported(&lab, "master", "hf-bf16", "copy", &[]);
    let read = |path: &str| fs_err::read(lab.path(path)).unwrap();
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        assert!(read(&format!("master/{file}")) == read(&format!("copy/{file}")), "{file}");
    }
    exported(&lab, "master", "hf-packed", "packed", &[]);
    exported(&lab, "packed", "gguf-i2_s", "x.gguf", &["--embedding", "f32"]);
    exported(&lab, "x.gguf", "hf-packed", "again", &[]);
    assert!(read("packed/model.safetensors") == read("again/model.safetensors"));
    assert_eq!(generated(&lab.path("again")), generated(&lab.path("packed")));
    // What training changes is gone from a packed model.
    let refused = export(&lab, "packed", "hf-bf16", "no", &[]);
    assert_code(&refused, 4);
    assert!(stderr(&refused).contains("without the latent weights"), "{}", stderr(&refused));
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_is() {
    let lab = master("");
    let config = lab.path("master/config.json");
    let text = fs_err::read_to_string(&config).unwrap();
    for (arguments, code, part) in [
        (&["--embedding", "q9"][..], 2, "--embedding: expected f32 or f16 or bf16 or q8_0 or q6_k"),
        (&["--linear-class", "bitlinear"], 2, "--linear-class: only hf-packed"),
        (&["--out", "master"], 2, "cannot be used multiple times"),
    ] {
        let refused = export(&lab, "master", "gguf-i2_s", "x.gguf", arguments);
        assert_code(&refused, code);
        assert!(stderr(&refused).contains(part), "{}", stderr(&refused));
    }
    assert_code(&export(&lab, "nowhere", "gguf-i2_s", "x.gguf", &[]), 4);
    assert_code(&export(&lab, "master", "gguf-i2_s", "master", &["--force"]), 7);
    fs_err::write(&config, text.replace("\"intermediate_size\": 256", "\"intermediate_size\": 0"))
        .unwrap();
    let refused = export(&lab, "master", "gguf-i2_s", "x.gguf", &[]);
    assert_code(&refused, 4);
    assert!(stderr(&refused).contains("config.json: intermediate_size"), "{}", stderr(&refused));
    assert!(!lab.path("x.gguf").exists());
}

#[test]
fn a_gguf_file_of_the_other_layout_is_read_with_its_flag() {
    use bitnet_format::blocks::i2_s::{I2sLayout, pack};
    use bitnet_format::gguf::{GgufFile, GgufWriter};
    use bitnet_format::writer::TensorPlan;
    use bitnet_format::{DType, TensorSource};
    let lab = master("");
    exported(&lab, "master", "hf-packed", "packed", &[]);
    exported(&lab, "packed", "gguf-i2_s", "x.gguf", &["--embedding", "f32"]);
    // The same file as an ARM build writes it.
    let file = GgufFile::open(&lab.path("x.gguf")).unwrap();
    let model = bitnet_format::StoredModel::open(&lab.path("x.gguf")).unwrap();
    let plan: Vec<_> =
        file.tensors().iter().map(|t| TensorPlan::new(&t.name, t.dtype, &t.shape)).collect();
    let mut writer = GgufWriter::create(&lab.path("arm.gguf"), file.metadata(), &plan).unwrap();
    for (entry, info) in bitnet_format::tensor_table(model.spec()).iter().zip(file.tensors()) {
        if info.dtype == DType::I2S {
            let (codes, scale) = model.matrix(entry).unwrap().quantised();
            writer.write(&pack(&codes, scale, I2sLayout::Blocks64)).unwrap();
        } else {
            writer.write(&file.part(info, 0..info.len()).unwrap()).unwrap();
        }
        writer.end_tensor().unwrap();
    }
    writer.finish().unwrap();
    exported(&lab, "arm.gguf", "hf-packed", "again", &["--i2s-arm"]);
    let read = |path: &str| fs_err::read(lab.path(path)).unwrap();
    assert!(read("packed/model.safetensors") == read("again/model.safetensors"));
    exported(&lab, "arm.gguf", "hf-packed", "shuffled", &[]);
    assert!(read("packed/model.safetensors") != read("shuffled/model.safetensors"));
}

/// The start of a GGUF file: only an earlier export is replaced.
const OLD: &[u8] = b"GGUF, the old one";

#[test]
fn an_export_stopped_by_a_signal_leaves_the_old_target() {
    let lab = master("");
    fs_err::write(lab.path("large.toml"), SHAPE.replace("= 256", "= 1024")).unwrap();
    assert!(lab.tool(&["init", "--config", "large.toml", "--out", "large"]).status.success());
    fs_err::write(lab.path("x.gguf"), OLD).unwrap();
    let mut stopped = 0;
    for delay in (0..40).map(|turn| 4 * turn) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
        command.current_dir(lab.path("")).stdout(Stdio::null()).stderr(Stdio::null());
        command.args(["export", "--model", "large", "--format", "gguf-tq1_0", "--out", "x.gguf"]);
        let mut child = command.args(["--force", "--no-verify"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let id = child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status().unwrap();
        let status = child.wait().unwrap();
        if status.success() {
            break;
        }
        // 143, or the signal itself before a handler was in place.
        stopped += 1;
        assert!(matches!(status.code(), Some(143) | None), "{status:?}");
        assert_eq!(fs_err::read(lab.path("x.gguf")).unwrap(), OLD);
        let left = fs_err::read_dir(lab.path("")).unwrap();
        let left = left.filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().contains(".tmp-")
        });
        assert_eq!(left.count(), 0, "nothing is left behind");
    }
    assert!(stopped > 0);
}

#[test]
fn a_full_disk_leaves_the_old_target() {
    let lab = master("");
    let disk = lab.path("disk");
    fs_err::create_dir(&disk).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(&disk)
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        println!("skipped: this user cannot mount a small file system");
        return;
    }
    fs_err::write(disk.join("x.gguf"), OLD).unwrap();
    let gguf = export(&lab, "master", "gguf-i2_s", "disk/x.gguf", &["--force"]);
    let folder = export(&lab, "master", "hf-packed", "disk/folder", &[]);
    let left: Vec<_> = fs_err::read_dir(&disk).unwrap().map(|e| e.unwrap().file_name()).collect();
    let old = fs_err::read(disk.join("x.gguf"));
    let unmounted = Command::new("umount").arg(&disk).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    for output in [gguf, folder] {
        assert_code(&output, 5);
        assert!(stderr(&output).contains("disk/"), "the file is named: {}", stderr(&output));
    }
    assert_eq!(old.unwrap(), OLD);
    assert_eq!(left, ["x.gguf"]);
}
