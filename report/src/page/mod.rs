//! The page: one HTML file with everything in it. It asks no network for anything and works without
//! scripts; the few lines of script add values under the pointer and zoom.

mod cards;
mod comparison;

use crate::folder::RunFolder;
use crate::html::{escape, section};
use crate::panels;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// What every page of ours begins with.
const HEAD: &str = "<!doctype html>\n<html lang=en><meta charset=utf-8>\
                    <meta name=generator content=bitnet-train>";

/// Whether a text is a page of ours, which may be replaced.
pub fn is_page(text: &str) -> bool {
    text.starts_with(HEAD)
}

/// The page of these runs, overlaid where there are several.
pub fn page(runs: &[RunFolder]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| &*run.name).collect();
    let title = escape(&names.join(", "));
    let body = match runs {
        [run] => single(run),
        _ => several(runs),
    };
    format!(
        // The policy lets the page load nothing, neither images nor scripts: what `escape` might
        // miss in the texts of a run could reach no other machine that way.
        "{HEAD}<meta name=viewport content=\"width=device-width\">\
         <meta name=color-scheme content=\"light dark\">\
         <meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\
         <title>{title} · bitnet-train</title>\n<style>\n{STYLE}</style>\n\
         <header><h1>{title}</h1>{states}</header>\n<main>\n{body}</main>\n\
         <footer>Made by bitnet-train {version} from the files of the run. Drag across a chart to zoom, \
         double-click to see all of it.</footer>\n<script>\n{SCRIPT}</script>\n</html>\n",
        states = states(runs),
        version = env!("CARGO_PKG_VERSION"),
    )
}

fn states(runs: &[RunFolder]) -> String {
    match runs {
        [run] => format!("<span class=\"state {0}\">{0}</span>", run.state.name()),
        _ => format!("<span class=state>{} runs</span>", runs.len()),
    }
}

fn single(run: &RunFolder) -> String {
    let alone = std::slice::from_ref(run);
    let parts = [
        cards::summary(run),
        charts("Training", &panels::training(alone)),
        charts("Ternary codes", &panels::codes(alone)),
        charts("Latents", &panels::latents(run)),
        section("Evaluation", &cards::evaluation(run)),
        charts("", &panels::tasks(alone)),
        section("Samples", &cards::samples(run)),
        section("Events", &cards::events(run)),
        section("Recipe", &cards::recipe(run)),
        section("Machine and command", &cards::machine(run)),
    ];
    parts.concat()
}

fn several(runs: &[RunFolder]) -> String {
    let parts = [
        section("Final figures", &comparison::figures(runs)),
        section("Recipe keys that differ", &comparison::keys(runs)),
        charts("Training", &panels::training(runs)),
        charts("Ternary codes", &panels::codes(runs)),
        charts("Evaluation tasks", &panels::tasks(runs)),
        section("Last samples", &comparison::samples(runs)),
        section("Machines and commands", &comparison::machines(runs)),
    ];
    parts.concat()
}

fn charts(title: &str, drawn: &str) -> String {
    if drawn.is_empty() {
        return String::new();
    }
    let body = format!("<div class=charts>\n{drawn}</div>");
    if title.is_empty() { format!("<section>{body}</section>") } else { section(title, &body) }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::fixtures::{small_run, step_line};

    #[test]
    fn a_page_of_one_run_has_every_panel_and_asks_for_nothing() {
        let dir = small_run(20);
        let page = page(&[RunFolder::open(dir.path()).unwrap()]);
        for part in [
            "Training loss",
            "Held-out loss",
            "Learning rate",
            "Weight decay",
            "Gradient norm",
            "skipped step",
            "Speed",
            "Codes of all matrices",
            "q_proj",
            "Codes flipped",
            "Dead rows",
            "Latents of layer 0",
            "Scale of each layer",
            "upon a time",
            "hidden_size",
            "cooldown",
            "bitnet-train --recipe small.toml",
            "20 of 20",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for foreign in ["http://", "https://", "src=", "@import", "url(", "NaN", "inf "] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(is_page(&page));
    }

    #[test]
    fn hostile_files_become_text() {
        let dir = small_run(10);
        let hostile = "</script><script>alert(1)</script><img onerror=x>";
        let write = |name: &str, text: String| fs_err::write(dir.path().join(name), text).unwrap();
        let sample = serde_json::json!({"step": 5, "prompt": hostile, "text": hostile});
        write("samples.jsonl", format!("{sample}\n"));
        write("command.txt", format!("{hostile}\n"));
        write("run.json", serde_json::json!({"machine": {"cpu": hostile}}).to_string());
        write("recipe.resolved.toml", format!("name = '{hostile}'\n'{hostile}' = 1\n"));
        let mut log = fs_err::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        log += &step_line(11).replace("cooldown", hostile);
        let _ = writeln!(log, "\n{}", serde_json::json!({"event": hostile}));
        for group in ["eval", "tasks", "ternary", "latents"] {
            let value = serde_json::json!({hostile: {"nll_per_token": 1.0, "acc": 0.5, "zero": 0.3, hostile: 1.0}});
            let _ = writeln!(log, "{}", serde_json::json!({"step": 11, group: value}));
        }
        write("metrics.jsonl", log);
        let run = || RunFolder::open(dir.path()).unwrap();
        for page in [page(&[run()]), page(&[run(), run()])] {
            assert!(page.contains("&lt;img onerror=x&gt;"));
            assert_eq!(page.matches("<script").count(), 1);
            assert!(!page.contains("<img"));
        }
    }

    #[test]
    fn runs_without_figures_and_torn_logs_have_pages() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("metrics.jsonl"), "{\"step\":1,\"lo").unwrap();
        let page_of = || page(&[RunFolder::open(dir.path()).unwrap()]);
        assert!(page_of().contains("empty"));
        fs_err::write(dir.path().join("metrics.jsonl"), step_line(1) + "\n").unwrap();
        let page = page_of();
        assert!(page.contains("Training loss") && !page.contains("Ternary codes"));
    }

    #[test]
    fn several_runs_are_overlaid_with_their_figures_and_keys() {
        let (a, b) = (small_run(20), small_run(10));
        let recipe = b.path().join("recipe.resolved.toml");
        let text = fs_err::read_to_string(&recipe).unwrap().replace("batch = 8", "batch = 32");
        fs_err::write(&recipe, text).unwrap();
        let runs = [&a, &b].map(|dir| RunFolder::open(dir.path()).unwrap());
        let page = page(&runs);
        assert!(page.contains("train.batch") && page.contains(">32<") && page.contains(">8<"));
        assert!(!page.contains("hidden_size"), "that one is the same");
        for run in &runs {
            assert!(page.matches(&run.name).count() > 3);
        }
        assert!(page.contains("Share of 0"));
    }

    #[test]
    fn a_page_of_a_long_run_stays_small() {
        let dir = tempfile::tempdir().unwrap();
        let lines: String = (1..=20_000).map(|step| step_line(step) + "\n").collect();
        fs_err::write(dir.path().join("metrics.jsonl"), lines).unwrap();
        let page = page(&[RunFolder::open(dir.path()).unwrap()]);
        assert!(page.len() < 200_000, "{}", page.len());
    }
}
