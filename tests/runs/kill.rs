//! SIGKILL at random moments, during saves and around the phase switch: a resumed run repeats the
//! uninterrupted one to the bit.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use super::lab::{Dice, Lab, assert_same, result};

/// Runs, each killed several times before it may finish.
const RUNS: u64 = 9;
const KILLS_A_RUN: u64 = 4;

#[test]
fn a_run_killed_at_any_moment_resumes_to_the_bit() {
    let lab = Lab::new();
    let straight = lab.path("straight");
    lab.finish(&straight, &[]);
    let began = Instant::now();
    lab.finish(&lab.path("timed"), &[]); // the token cache is there now, as it is for the resumes
    let duration = began.elapsed();
    let expected = result(&straight);
    assert_eq!(expected.losses.len(), 30);
    assert_same(&result(&lab.path("timed")), &expected, "an equal run");

    let mut dice = Dice(1);
    let (mut kills, mut during_saves, mut at_switch) = (0, 0, 0);
    for run in 0..RUNS {
        let out = lab.path(&format!("killed-{run}"));
        for kill in 0..KILLS_A_RUN {
            let mut child = lab.spawn(&out, &["--resume", "auto"]);
            let alive = match kill % 4 {
                0 => {
                    let pid = child.id();
                    wait_until(&mut child, || is_saving(&out, pid))
                }
                1 => wait_until(&mut child, || last_step(&out) == Some(15)),
                _ => wait_for(&mut child, duration.mul_f64(dice.below(700) as f64 / 1000.0)),
            };
            if alive {
                during_saves += u32::from(is_saving(&out, child.id()));
                at_switch += u32::from(matches!(last_step(&out), Some(14..=17)));
                child.kill().unwrap();
                kills += 1;
            }
            child.wait().unwrap();
            for (_, checkpoint) in bitnet_train::checkpoint::list(&out).unwrap_or_default() {
                bitnet_train::checkpoint::verify(&checkpoint).unwrap();
            }
        }
        lab.finish(&out, &["--resume", "auto"]);
        assert_same(&result(&out), &expected, &format!("run {run}"));
    }
    println!("{kills} kills, {during_saves} during a save, {at_switch} around the phase switch");
    assert!(kills >= 20, "only {kills} kills");
    assert!(during_saves >= 1 && at_switch >= 1);
}

/// Polls until `condition`; false when the child ended before.
pub(crate) fn wait_until(child: &mut Child, condition: impl Fn() -> bool) -> bool {
    poll(child, |_| condition())
}

fn poll(child: &mut Child, condition: impl Fn(&Child) -> bool) -> bool {
    while child.try_wait().unwrap().is_none() {
        if condition(child) {
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    false
}

pub(crate) fn wait_for(child: &mut Child, time: Duration) -> bool {
    let end = Instant::now() + time;
    wait_until(child, || Instant::now() >= end)
}

/// Kills a run `times` times: first when `first` holds, then a few steps on, at any moment within a step.
/// How many were still alive.
pub(crate) fn kill_repeatedly(
    (times, dice, out): (u32, &mut Dice, &Path),
    spawn: impl Fn() -> Child,
    first: impl Fn(&Child) -> bool,
) -> u32 {
    let mut kills = 0;
    for kill in 0..times {
        let mut child = spawn();
        let alive = if kill == 0 {
            poll(&mut child, &first)
        } else {
            let target = last_step(out).unwrap_or(0) + 1 + dice.below(5);
            wait_until(&mut child, || last_step(out).is_some_and(|step| step >= target))
                && wait_for(&mut child, Duration::from_micros(dice.below(30_000)))
        };
        if alive {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    kills
}

/// Whether process `pid` has a checkpoint under construction; leftovers of others do not count.
fn is_saving(out: &Path, pid: u32) -> bool {
    let Ok(entries) = fs_err::read_dir(out) else { return false };
    let staged = format!(".tmp-{pid}");
    entries.flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("step-") && name.ends_with(&staged)
    })
}

/// The step of the last whole line of the log.
pub(crate) fn last_step(out: &Path) -> Option<u64> {
    let text = fs_err::read_to_string(out.join("metrics.jsonl")).ok()?;
    let whole = &text[..=text.rfind('\n')?];
    let line: serde_json::Value = serde_json::from_str(whole.lines().last()?).ok()?;
    line["step"].as_u64()
}
