//! Bad input gets one clear message, the documented exit code, and nothing written or changed.

use super::lab::{Lab, assert_code, stderr};

/// Runs with the recipe edited and expects a code and words of the message.
#[track_caller]
fn expect(edit: (&str, &str), code: i32, words: &[&str]) {
    let lab = Lab::new();
    let path = lab.path("recipe.toml");
    let text = fs_err::read_to_string(&path).unwrap();
    assert!(text.contains(edit.0), "the recipe holds {:?}", edit.0);
    fs_err::write(&path, text.replace(edit.0, edit.1)).unwrap();
    let output = lab.run(&lab.path("out"), &[]);
    assert_code(&output, code);
    let message = stderr(&output);
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
    assert!(!lab.path("out/final").exists());
}

#[test]
fn a_mistyped_key_is_answered_with_a_suggestion() {
    expect(("seq_len", "seq_length"), 3, &["recipe.toml:", "seq_length", "seq_len"]);
}

#[test]
fn all_problems_of_a_recipe_are_reported_at_once() {
    let edit = ("micro_batch = 2", "micro_batch = 3\nprecison = \"f32\"");
    expect(edit, 3, &["micro_batch", "divisor of 4", "precison", "precision"]);
}

#[test]
fn a_missing_config_is_named() {
    expect(("\"model.toml\"", "\"nowhere.toml\""), 3, &["nowhere.toml"]);
}

#[test]
fn a_model_too_short_for_the_rows_is_refused() {
    expect(("seq_len = 48", "seq_len = 500"), 3, &["seq_len", "500", "max_position_embeddings"]);
}

#[test]
fn an_unknown_device_lists_the_built_ones() {
    expect(("seed = 3", "seed = 3\ndevice = \"cuda:0\""), 5, &["cuda:0", "flex"]);
}

#[test]
fn missing_and_broken_data_files_are_named_with_their_line() {
    let files = "train = [\"text.jsonl\"]";
    let generated = "generate = { stories = 120, held_out = 6 }";
    expect((generated, files), 3, &["general", "train"]);
    let lab = Lab::new();
    let recipe = fs_err::read_to_string(lab.path("recipe.toml")).unwrap();
    let recipe = recipe.replace(generated, files);
    let recipe = recipe
        .replace("data = { general = 1.0 }", "")
        .replace("data = { general = 0.3, hq = 0.7 }", "");
    let recipe = recipe.replace("[eval]\nevery = 7\n", "");
    fs_err::write(lab.path("recipe.toml"), recipe).unwrap();
    fs_err::write(lab.path("text.jsonl"), "{\"text\": \"fine\"}\n{\"txt\": 1}\n").unwrap();
    let output = lab.run(&lab.path("out"), &[]);
    assert_code(&output, 4);
    assert!(stderr(&output).contains("text.jsonl:2"), "{}", stderr(&output));
    assert!(stderr(&output).contains("text"), "{}", stderr(&output));
}

#[test]
fn a_broken_tokenizer_is_named() {
    let lab = Lab::new();
    fs_err::write(lab.path("tok.json"), "{\"model\": 3}").unwrap();
    let output = lab.run(&lab.path("out"), &["tokenizer.path=tok.json"]);
    assert!(matches!(output.status.code(), Some(3 | 4)), "{}", stderr(&output));
    assert!(stderr(&output).contains("tok"), "{}", stderr(&output));
}

#[test]
fn a_run_that_diverges_stops_with_its_own_code() {
    let lab = Lab::new();
    let out = lab.path("out");
    let output = lab.run(&out, &["phase.main.learning_rate.peak=1e30"]);
    assert_code(&output, 6);
    let message = stderr(&output);
    assert!(
        message.contains("skipped (not finite); its documents: ")
            && message.contains("learning rate"),
        "{message}"
    );
    let skipped = super::lab::metrics(&out).iter().filter(|line| line["skipped"] == true).count();
    assert_eq!(skipped, 3, "three in a row, then it gives up");
    let lines = super::lab::metrics(&out);
    let left_out = lines.iter().find(|line| line["skipped"] == true).unwrap();
    assert!(left_out["rows"][0].as_str().unwrap().contains("tiny world"), "{left_out}");
    for (_, checkpoint) in bitnet_train::checkpoint::list(&out).unwrap() {
        bitnet_train::checkpoint::verify(&checkpoint).unwrap();
    }
}

#[test]
fn unknown_arguments_are_usage_errors() {
    let lab = Lab::new();
    assert_code(&lab.run(&lab.path("out"), &["--no-such-flag"]), 2);
    assert_code(&lab.run(&lab.path("out"), &["--threads", "many"]), 2);
}

#[test]
fn a_format_that_cannot_be_written_is_refused_before_training() {
    let edit = ("[optimizer]", "[export]\nformats = [\"gguf-i2_s\"]\n[optimizer]");
    let what = "has 32 columns; I2_S needs a multiple of 128";
    expect(edit, 3, &["[export.formats]: gguf-i2_s: ", "layers.0.self_attn.q_proj.weight", what]);
}
