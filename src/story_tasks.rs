//! Benchmarks of the generated stories: questions about worlds that no training has seen, asked as a chat. They
//! need no data, so the quickstart has benchmarks of its own.

use std::path::Path;

use bitnet_eval::{Benchmark, EvalError};
use bitnet_stories::{Difficulty, Split, StoryDialogue, dialogue, outside_dialogue};
use serde_json::{Value, json};

/// Stories with one person, one box and one thing, stories with three of each, and what no story tells.
const NAMES: [(&str, Difficulty); 3] = [
    ("stories_one", Difficulty::OneOfEach),
    ("stories_three", Difficulty::ThreeOfEach),
    ("stories_outside", Difficulty::Outside),
];

/// The same questions for every run, so that runs compare.
const SEED: u64 = 1;

/// Rows of a task about stories.
const ALL: usize = 1000;

/// Whether a task's rows are generated.
pub fn is_generated(name: &str) -> bool {
    NAMES.iter().any(|(known, _)| *known == name)
}

/// Finds tasks by name with their first `limit` rows: those of stories here, the others below `data`.
///
/// # Errors
/// An unknown task, a task without data, a broken row.
pub fn open_benchmark(
    names: &[String],
    data: Option<&Path>,
    limit: Option<usize>,
) -> Result<Benchmark, EvalError> {
    let others: Vec<String> = names.iter().filter(|name| !is_generated(name)).cloned().collect();
    let mut benchmark = Benchmark::open(&others, data.unwrap_or(Path::new("")), limit)?;
    for (name, difficulty) in NAMES {
        if names.iter().any(|wanted| wanted == name) {
            let rows = rows(difficulty, limit.unwrap_or(ALL).min(ALL));
            benchmark = benchmark.with_conversations(&task_file(name), rows)?;
        }
    }
    Ok(benchmark)
}

/// The first question about each held-out story of a difficulty.
fn rows(difficulty: Difficulty, count: usize) -> Vec<Value> {
    let row = |story: StoryDialogue| {
        let (question, answer) = (story.user_message(0), &story.turns[0].answer);
        json!({"question": question, "answer": answer})
    };
    if difficulty == Difficulty::Outside {
        return (0..count).map_while(|number| outside_dialogue(SEED, number)).map(row).collect();
    }
    let stories = (0..).map(|index| dialogue(SEED, Split::HeldOut, index));
    stories.filter(|story| story.difficulty == difficulty).take(count).map(row).collect()
}

/// An answer counts if it is the expected one, to the letter.
fn task_file(name: &str) -> String {
    format!(
        "task: {name}\n\
         output_type: generate_until\n\
         test_split: held_out\n\
         doc_to_text: question\n\
         doc_to_target: answer\n\
         generation_kwargs:\n  until: [\"\\n\"]\n  max_gen_toks: 32\n\
         filter_list:\n  - name: answer\n    filter:\n      - function: remove_whitespace\n      - function: take_first\n\
         metric_list:\n  - metric: exact_match\n\
         metadata:\n  version: 1\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_questions_of_their_difficulty() {
        let one = rows(Difficulty::OneOfEach, 3);
        assert_eq!(one.len(), 3);
        let three = rows(Difficulty::ThreeOfEach, 200);
        assert_eq!(three.len(), 200);
        let question = |row: &Value| row["question"].as_str().unwrap().to_owned();
        assert!(three.iter().all(|row| question(row).ends_with('?')));
        assert!(question(&one[0]).len() < question(&three[0]).len());
        assert_ne!(one[0], one[1]);
        let outside = rows(Difficulty::Outside, ALL);
        assert_eq!(outside.len(), bitnet_stories::OUTSIDE_QUESTIONS);
        assert!(outside.iter().all(|row| row["answer"] == "I do not know."));
    }

    #[test]
    fn they_open_without_data_and_others_do_not() {
        let names = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        open_benchmark(&names(&["stories_one", "stories_three", "stories_outside"]), None, Some(2))
            .unwrap();
        // No more than there are, whatever the limit.
        open_benchmark(&names(&["stories_one"]), None, Some(usize::MAX)).unwrap();
        let error = open_benchmark(&names(&["stories_one", "piqa"]), None, Some(2)).unwrap_err();
        assert!(error.to_string().contains("piqa"), "{error}");
    }
}
