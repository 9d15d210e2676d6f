//! `bitnet-train plan`: the schedule of a recipe before it is run.

use anyhow::Result;
use bitnet_train::recipe::{self, Length, Plan, Recipe, Schedule};
use bitnet_train::train::TrainError;

use super::print_line;
use crate::cli::PlanArgs;

/// Rows of the table beside the ends of phases and warm-up.
const ROWS: u64 = 16;

pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    match recipe::load(&args.recipe, &args.overrides).map_err(TrainError::from)? {
        Plan::Single(recipe) => show(&recipe),
        Plan::Pipeline(stages) => {
            for stage in stages {
                print_line(&format!("{}:", stage.display()));
            }
            Ok(())
        }
    }
}

fn show(recipe: &Recipe) -> Result<()> {
    let row_tokens = (recipe.train.batch * recipe.data.seq_len) as u64;
    let steps = match recipe.train.length {
        Length::Steps(steps) => steps,
        Length::Tokens(tokens) => tokens.div_ceil(row_tokens).max(1),
        Length::Epochs(_) => {
            let what = "counts epochs; the number of steps is known once the data is tokenised";
            let (path, field) = (recipe.path.clone(), "train.epochs");
            return Err(TrainError::Contradiction { path, field, what: what.to_owned() }.into());
        }
    };
    let schedule = Schedule::new(recipe, steps).map_err(TrainError::from)?;
    print_line(&format!("{steps} steps of {row_tokens} tokens: {} tokens", steps * row_tokens));
    print_line("    step  phase        learning rate  weight decay  data");
    for step in shown_steps(&schedule, recipe, steps) {
        let (phase, rates) = (schedule.phase_of(step), schedule.at(step));
        let phase = &recipe.phases[phase];
        let mix: Vec<String> = phase.data.iter().map(|(set, w)| format!("{set} {w}")).collect();
        print_line(&format!(
            "{step:>8}  {:<12} {:>13.3e}  {:>12.3}  {}",
            phase.name,
            rates.learning_rate,
            rates.weight_decay,
            mix.join(", ")
        ));
    }
    Ok(())
}

/// Evenly spread steps and both sides of every phase switch.
fn shown_steps(schedule: &Schedule, recipe: &Recipe, steps: u64) -> Vec<u64> {
    let mut shown: Vec<u64> = (0..=ROWS).map(|i| (steps * i / ROWS).max(1)).collect();
    for phase in 0..recipe.phases.len() {
        let range = schedule.phase_range(phase);
        shown.extend([range.start, range.end]);
    }
    shown.retain(|step| (1..=steps).contains(step));
    shown.sort_unstable();
    shown.dedup();
    shown
}
