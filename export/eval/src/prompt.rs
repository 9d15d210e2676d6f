//! Contexts as the harness writes them: description, few-shot examples, question; and what is asked
//! of the model after them.

use crate::data::DataFile;
use crate::document::{RightAnswer, RowDocument, RowQuestion};
use crate::error::EvalError;
use crate::mersenne::PythonRandom;
use crate::task::{OutputType, ShotChoice, Task};

/// The harness's seed for few-shot examples.
const FEWSHOT_SEED: u32 = 1234;

/// What a row asks of the model, as texts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RowRequest {
    /// Contexts with their continuations.
    Score(Vec<(String, String)>),
    /// Conversations, each with the answers that are scored after it.
    ScoreAnswers(Vec<(ChatPrompt, Vec<String>)>),
    Rolling(String),
    Generate(String),
    Prompt(ChatPrompt),
}

/// A conversation in a chat template, as tokens and as it reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChatPrompt {
    pub(crate) ids: Vec<u32>,
    pub(crate) text: String,
}

/// An example.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shot {
    pub(crate) question: String,
    /// Empty where it has none.
    pub(crate) answer: String,
}

impl Shot {
    /// As it stands before a question.
    pub(crate) fn text(&self, task: &Task) -> String {
        let Self { question, answer } = self;
        if answer.is_empty() {
            return question.clone();
        }
        [question, task.target_delimiter.as_str(), answer, &task.fewshot_delimiter].concat()
    }
}

/// The examples of each of `count` rows, as indices into `pool`.
pub(crate) fn shots(
    task: &Task,
    rows: &DataFile,
    count: usize,
    pool: &DataFile,
) -> Result<Vec<Vec<usize>>, EvalError> {
    let (wanted, size) = (task.num_fewshot, pool.rows.len());
    if wanted == 0 {
        return Ok(vec![Vec::new(); count]);
    }
    let own = task.splits.shots_may_hold_the_row();
    // One more is needed where the row itself may be drawn and is then left out.
    if wanted + usize::from(own) > size {
        let what = format!("--num-fewshot {wanted}: only {size} rows to take examples from");
        return Err(EvalError::Setting { task: task.name.clone(), what });
    }
    // One generator for all rows, in their order: the harness seeds it once a task, so the examples
    // of row 7 depend on the draws before it. For the same reason rows cannot be drawn in parallel,
    // and a limit changes no example of the rows that are left.
    let mut random = PythonRandom::new(FEWSHOT_SEED);
    let one = |row: usize| {
        let differs = |at: &usize| !own || pool.rows[*at] != rows.rows[row];
        let drawn = match task.shot_choice {
            ShotChoice::FirstN => (0..size).collect(),
            // Drawn with one in reserve even where the row is not among them: what is drawn is then
            // what the harness draws.
            ShotChoice::Drawn => random.sample(size, wanted + usize::from(own)),
        };
        let mut kept: Vec<usize> = drawn.into_iter().filter(differs).take(wanted).collect();
        if kept.len() < wanted {
            // Copies of the row were drawn more than once.
            let rest: Vec<usize> = (0..size).filter(differs).collect();
            kept = random.sample(rest.len(), wanted).into_iter().map(|at| rest[at]).collect();
        }
        kept
    };
    Ok((0..count).map(one).collect())
}

/// An example with its answer.
pub(crate) fn shot(document: &RowDocument) -> Result<Shot, String> {
    let question = match &document.question {
        RowQuestion::Text(text) => text,
        RowQuestion::Contexts(right) => {
            document.choices.get(*right).ok_or("its answer is no choice")?
        }
    };
    let is_contexts = matches!(document.question, RowQuestion::Contexts(_));
    let answer = match &document.answer {
        RightAnswer::Text(text) => text.clone(),
        RightAnswer::Choice(index) if !is_contexts => {
            // With contexts (Winogrande) the example is the right context and its continuation;
            // with anything else the question and the right choice.
            let choice = usize::try_from(*index).ok().and_then(|at| document.choices.get(at));
            choice.ok_or("its answer is no choice")?.clone()
        }
        RightAnswer::Any(items) => items
            .first()
            .and_then(|it| it.as_str())
            .ok_or("has no answer that is a text")?
            .to_owned(),
        RightAnswer::Choice(_) => return Err("its answer is a number; expected a text".to_owned()),
    };
    Ok(Shot { question: question.clone(), answer })
}

/// The questions about a row, each with the continuations that are scored after it.
pub(crate) fn questions<'a>(
    task: &Task,
    document: &'a RowDocument,
) -> Result<Vec<(&'a str, Vec<&'a str>)>, String> {
    let choices = document.choices.iter().map(String::as_str);
    let text = match &document.question {
        RowQuestion::Text(text) => Ok(text.as_str()),
        RowQuestion::Contexts(_) => Err("the question is a number; expected a text".to_owned()),
    };
    Ok(match task.output {
        OutputType::GenerateUntil | OutputType::LoglikelihoodRolling => vec![(text?, Vec::new())],
        OutputType::Loglikelihood => vec![(text?, vec![answer_text(document)?])],
        // Contexts differ and the continuation is the same.
        OutputType::MultipleChoice if text.is_err() => {
            let after = answer_text(document)?;
            choices.map(|context| (context, vec![after])).collect()
        }
        OutputType::MultipleChoice => vec![(text?, choices.collect())],
    })
}

/// The question about a row after its examples.
pub(crate) fn request(
    task: &Task,
    document: &RowDocument,
    shots: &[&Shot],
) -> Result<RowRequest, String> {
    if task.output == OutputType::LoglikelihoodRolling {
        return Ok(RowRequest::Rolling(answer_text(document)?.to_owned()));
    }
    let shots: String = shots.iter().map(|shot| shot.text(task)).collect();
    let before = format!("{}{shots}", document.description);
    let questions = questions(task, document)?;
    if task.output == OutputType::GenerateUntil {
        return Ok(RowRequest::Generate(before + questions[0].0));
    }
    // One continuation by itself (LAMBADA) brings its own delimiter.
    let is_choice = task.output == OutputType::MultipleChoice;
    let delimiter = if is_choice { task.target_delimiter.as_str() } else { "" };
    let pairs = questions.into_iter().flat_map(|(question, after)| {
        let context = format!("{before}{question}");
        after.into_iter().map(move |after| (context.clone(), format!("{delimiter}{after}")))
    });
    Ok(RowRequest::Score(pairs.collect()))
}

fn answer_text(document: &RowDocument) -> Result<&str, String> {
    match &document.answer {
        RightAnswer::Text(text) => Ok(text),
        _ => Err("the answer is a number or a list; expected a text".to_owned()),
    }
}
