//! Run directories for the tests of this crate.

use serde_json::json;
use tempfile::TempDir;

const RECIPE: &str = "name = \"small\"\nstage = \"pretrain\"\nseed = 1\n[model]\nhidden_size = 64\n\
                      num_hidden_layers = 2\n[data]\nseq_len = 16\n[train]\nsteps = 20\nbatch = 8\n";

/// A line of a step, two seconds long.
pub(crate) fn step_line(step: u64) -> String {
    let loss = 8.0 / (1.0 + step as f64 / 10.0);
    json!({"step": step, "phase": if step <= 8 { "main" } else { "cooldown" }, "tokens": 100 * step,
        "loss": loss, "lr": 1e-3, "weight_decay": 0.1, "grad_norm": 1.5, "tokens_per_second": 50.0,
        "skipped": step == 7, "ranks": 1, "tokens_this_rank": 100 * step})
    .to_string()
}

/// A run after `steps` of its 20 steps, with every file that runs write.
pub(crate) fn small_run(steps: u64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut lines = Vec::new();
    let mut samples = Vec::new();
    for step in 1..=steps {
        lines.push(step_line(step));
        if step % 5 == 0 {
            let share = 0.3 + step as f64 / 1000.0;
            let shares = json!({"minus": 0.3, "zero": share, "plus": 0.7 - share, "flipped": 0.01, "dead_rows": 3});
            lines.push(
                json!({"step": step, "ternary": {"all": shares, "q_proj": shares}}).to_string(),
            );
            lines.push(
                json!({"step": step, "latents": {"scale": {"q_proj": [0.02, 0.03]},
                    "histogram": {"0": [0.1, 0.4, 0.4, 0.1]}}, "process": {"resident_bytes": 3e8}})
                .to_string(),
            );
            let eval = json!({"nll_per_token": 4.0 - step as f64 / 10.0, "perplexity": 9.0});
            lines.push(json!({"step": step, "eval": {"validation": eval}}).to_string());
            samples
                .push(json!({"step": step, "prompt": "Once", "text": " upon a time"}).to_string());
        }
    }
    let write = |name: &str, text: String| fs_err::write(dir.path().join(name), text).unwrap();
    let text = |lines: Vec<String>| lines.iter().map(|line| format!("{line}\n")).collect();
    write("metrics.jsonl", text(lines));
    write("samples.jsonl", text(samples));
    write("recipe.resolved.toml", RECIPE.to_owned());
    write("command.txt", "bitnet-train --recipe small.toml\n".to_owned());
    write("run.json", "{\"run_id\":\"a\"}\n".to_owned());
    dir
}
