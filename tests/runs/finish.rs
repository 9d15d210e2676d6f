//! A run is finished when everything its recipe asks for is there: what a stop between the last step
//! and the last export leaves out is made by the next `--resume auto`, alone and in a pipeline.

use bitnet_format::StoredModel;
use std::path::Path;

use super::kill::wait_until;
use super::lab::{Lab, assert_code, assert_same, result, stderr};

const SHORT: [&str; 3] = ["train.steps=6", "optimizer.warmup_steps=1", "eval.every=0"];
const EXPORTS: &str = "export.formats=[\"hf-bf16\", \"hf-packed\"]";

fn words<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&SHORT, more].concat()
}

fn exports(out: &Path) -> [bool; 2] {
    ["hf-bf16", "hf-packed"].map(|name| out.join("export").join(name).is_dir())
}

#[test]
fn a_failed_export_is_reported_and_made_by_the_next_resume() {
    let lab = Lab::new();
    let out = lab.path("out");
    lab.finish(&out, &words(&[]));
    let expected = result(&out);
    // Something is in the way of all exports.
    fs_err::write(out.join("export"), "not a folder").unwrap();
    for _ in 0..2 {
        let failed = lab.run(&out, &words(&["--resume", "auto", EXPORTS]));
        assert!(!failed.status.success() && stderr(&failed).contains("export"), "{failed:?}");
    }
    fs_err::remove_file(out.join("export")).unwrap();
    lab.finish(&out, &words(&["--resume", "auto", EXPORTS]));
    assert_eq!(exports(&out), [true, true]);
    assert_same(&result(&out), &expected, "after a failed export");
    // Somebody took one of them away: only that one is made again.
    let kept =
        fs_err::metadata(out.join("export/hf-bf16/config.json")).unwrap().modified().unwrap();
    fs_err::remove_dir_all(out.join("export/hf-packed")).unwrap();
    lab.finish(&out, &words(&["--resume", "auto", EXPORTS]));
    assert_eq!(exports(&out), [true, true]);
    let now = fs_err::metadata(out.join("export/hf-bf16/config.json")).unwrap().modified().unwrap();
    assert_eq!(kept, now, "what was there is left alone");
    // A file that was cut and a folder without its config are not what was published.
    fs_err::write(out.join("export/hf-packed/model.safetensors"), "").unwrap();
    fs_err::remove_file(out.join("final/config.json")).unwrap();
    lab.finish(&out, &words(&["--resume", "auto", EXPORTS]));
    assert_same(&result(&out), &expected, "after final/ was damaged");
    StoredModel::open(&out.join("export/hf-packed")).unwrap();
    let again = lab.finish(&out, &words(&["--resume", "auto", EXPORTS]));
    assert!(stderr(&again).contains("finished"), "{}", stderr(&again));
}

#[test]
fn a_run_that_goes_back_to_an_earlier_step_publishes_what_it_makes_from_there() {
    let lab = Lab::new();
    let out = lab.path("out");
    lab.finish(&out, &words(&[EXPORTS]));
    let weights = || {
        ["final", "export/hf-packed"]
            .map(|name| fs_err::read(out.join(name).join("model.safetensors")).unwrap())
    };
    let before = weights();
    let back = ["--resume", "step-000002", "optimizer.grad_clip=1e-3"];
    let allow = ["--allow-change", "optimizer.grad_clip", "--allow-change", "train", EXPORTS];
    lab.finish(&out, &words(&[&back[..], &allow].concat()));
    let after = weights();
    assert!(before[0] != after[0] && before[1] != after[1], "the old model was left there");
}

#[test]
fn a_run_killed_between_its_final_folder_and_its_exports_gets_them() {
    let lab = Lab::new();
    let straight = lab.path("straight");
    lab.finish(&straight, &words(&[EXPORTS]));
    let stages: [fn(&Path) -> bool; 2] = [|out| out.join("final").exists(), |out| exports(out)[0]];
    for (number, stage) in stages.into_iter().enumerate() {
        let out = lab.path(&format!("killed-{number}"));
        let mut child = lab.spawn(&out, &words(&[EXPORTS]));
        if wait_until(&mut child, || stage(&out)) {
            child.kill().unwrap();
        }
        child.wait().unwrap();
        lab.finish(&out, &words(&["--resume", "auto", EXPORTS]));
        assert_eq!(exports(&out), [true, true]);
        assert_same(&result(&out), &result(&straight), "a killed run");
        let packed =
            |out: &Path| fs_err::read(out.join("export/hf-packed/model.safetensors")).unwrap();
        assert!(packed(&out) == packed(&straight), "the export is that of the final folder");
        let left = |dir: &Path| {
            fs_err::read_dir(dir)
                .unwrap()
                .any(|entry| entry.unwrap().file_name().to_string_lossy().contains(".tmp-"))
        };
        assert!(!left(&out) && !left(&out.join("export")), "nothing half-written is left");
    }
}

#[test]
fn a_pipeline_stopped_before_the_exports_of_its_first_stage_goes_on() {
    let lab = Lab::new();
    fs_err::write(lab.path("all.toml"), "pipeline = [\"recipe.toml\", \"recipe2.toml\"]").unwrap();
    let recipe = fs_err::read_to_string(lab.path("recipe.toml")).unwrap();
    let start = recipe.find("[model]").unwrap();
    let data = recipe.find("[data]").unwrap();
    let second = format!("{}[model]\ninit = \"x\"\n{}", &recipe[..start], &recipe[data..]);
    fs_err::write(lab.path("recipe2.toml"), second).unwrap();
    let out = lab.path("out");
    let first = out.join("1-recipe");
    fs_err::create_dir_all(&first).unwrap();
    fs_err::write(first.join("train.log"), "a log is no obstacle").unwrap();
    let mut child = lab.spawn_recipe("all.toml", &out, &words(&[EXPORTS]));
    // In the way of the exports from the moment the final folder stands.
    let blocked = wait_until(&mut child, || {
        first.join("step-000006").exists() && fs_err::write(first.join("export"), "").is_ok()
    });
    let code = child.wait().unwrap().code();
    if blocked && code != Some(0) {
        fs_err::remove_file(first.join("export")).unwrap();
    }
    lab.finish_recipe("all.toml", &out, &words(&["--resume", "auto", EXPORTS]));
    assert_eq!((exports(&first), exports(&out.join("2-recipe2"))), ([true; 2], [true; 2]));
}

#[test]
fn a_checkpoint_that_is_not_of_this_run_is_refused_by_name() {
    let lab = Lab::new();
    let out = lab.path("out");
    lab.finish(&out, &words(&[]));
    fs_err::remove_dir_all(out.join("final")).unwrap();
    let resume = || lab.run(&out, &words(&["--resume", "auto"]));
    fs_err::rename(out.join("step-000006"), out.join("step-000099")).unwrap();
    let renamed = resume();
    assert_code(&renamed, 4);
    assert!(stderr(&renamed).contains("step-000099"), "{}", stderr(&renamed));
    fs_err::rename(out.join("step-000099"), out.join("step-000006")).unwrap();
    let record = out.join("run.json");
    let ours = fs_err::read_to_string(&record).unwrap();
    let mut other: serde_json::Value = serde_json::from_str(&ours).unwrap();
    other["run_id"] = "0123456789abcdef".into();
    fs_err::write(&record, other.to_string()).unwrap();
    let foreign = resume();
    assert_code(&foreign, 4);
    assert!(stderr(&foreign).contains("another run"), "{}", stderr(&foreign));
    fs_err::write(&record, ours).unwrap();
    lab.finish(&out, &words(&["--resume", "auto"]));
}
