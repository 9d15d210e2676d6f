//! What is shown of runs: the page that each leaves, `report`, `runs` and `diff`.

use std::process::Output;

use serde_json::Value;

use super::lab::{Lab, assert_code, stderr};

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_run_leaves_its_page_and_runs_are_listed_compared_and_overlaid() {
    let lab = Lab::new();
    lab.finish(&lab.path("all/one"), &["telemetry.every=2"]);
    lab.finish(&lab.path("all/two"), &["seed=7", "report.html=false"]);
    let page = fs_err::read_to_string(lab.path("all/one/report.html")).unwrap();
    for part in
        ["Training loss", "Codes of all matrices", "Latents of layer 0", "Memory", "finished"]
    {
        assert!(page.contains(part), "{part}");
    }
    assert!(!lab.path("all/two/report.html").exists());

    let listed = json(&lab.tool(&["runs", "all", "--sort", "seed", "--json"]));
    assert_eq!(listed["runs"][1]["name"], "two");
    assert_eq!(listed["runs"][1]["keys"]["seed"], "7");
    assert_eq!(listed["runs"][0]["step"], listed["runs"][0]["steps"]);
    assert_code(&lab.tool(&["runs", "all", "--sort", "zzz"]), 2);
    assert_code(&lab.tool(&["runs", "nowhere"]), 4);

    let differ = json(&lab.tool(&["diff", "all/one", "all/two", "--json"]));
    let keys: Vec<_> = differ["differences"].as_array().unwrap().iter().collect();
    assert!(keys.iter().any(|it| it["key"] == "report.html"), "{keys:?}");

    let made = json(&lab.tool(&["report", "all", "--out", "both.html", "--json"]));
    let page = fs_err::read_to_string(lab.path("both.html")).unwrap();
    assert_eq!(made["bytes"], page.len());
    assert!(page.contains("Recipe keys that differ") && page.contains("report.html"));
    fs_err::write(lab.path("mine.html"), "<p>mine").unwrap();
    assert_code(&lab.tool(&["report", "all", "--out", "mine.html"]), 7);
    assert_code(&lab.tool(&["report", "nowhere"]), 4);
}
