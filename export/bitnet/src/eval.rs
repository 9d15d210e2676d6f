//! `bitnet eval`: benchmarks on a packed model, task after task; or the comparison of two runs.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Context;
use bitnet_eval::{
    ChatPrompts, CodeRunner, EvalError, Evaluator, OpenTask, REPORT, Selection, TaskGroup,
    TaskRecord, compare, harness_json, open, sample_json, stop_ids,
};
use bitnet_terminal::EtaLine;
use bitnet_text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};

use crate::cli::EvaluationArgs;
use crate::eval_settings;
use crate::eval_store::ResultStore;
use crate::eval_table::{difference_table, group_lines, header, suite_summary, task_lines};
use crate::open as opened;
use crate::output::{StdoutError, json_line, note, result_line};

pub(crate) fn run(args: &EvaluationArgs) -> anyhow::Result<()> {
    if let Some([a, b]) = args.compare.as_deref() {
        return run_comparison(a, b, args.json);
    }
    let path = args.positional.as_ref().or(args.model.as_ref()).expect("clap requires one of them");
    let (tasks, groups) = selected(args)?;
    let model = opened::model(path, args.head, &args.adapter)?;
    let tokenizer = opened::tokenizer(path, &model)?;
    let threads = opened::threads(&args.threads, &model)?;
    let stop_ids = stop_ids(&model, &tokenizer);
    let template = chat_template(args, path, &tokenizer)?;
    let code = code_runner(args)?;
    let evaluator = Evaluator {
        model: &model,
        tokenizer: &tokenizer,
        threads: &threads,
        bos: eval_settings::bos(args.bos),
        stop_ids: &stop_ids,
        chat: template.as_ref().map(|template| ChatPrompts {
            template,
            tokenizer: &tokenizer,
            fewshot_as_multiturn: args.asking.fewshot_as_multiturn,
        }),
        code: code.as_ref(),
    };
    // Before the first task runs: a setting that only the last one refuses would come after hours.
    for open in &tasks {
        of_task(&evaluator, args, open).check(&open.task)?;
    }
    let settings = eval_settings::of_run(args, path, &tokenizer, &stop_ids)?;
    let records = run_tasks(args, &evaluator, &tasks, &settings)?;
    if args.json {
        return Ok(json_line(&harness_json(&records, &groups, &settings))?);
    }
    group_lines(&groups, &records).iter().try_for_each(|line| result_line(line))?;
    if args.suite.is_some() {
        suite_summary(&REPORT, &records, &groups).iter().try_for_each(|line| result_line(line))?;
    }
    Ok(())
}

/// The model's own template, where prompts are conversations.
fn chat_template(
    args: &EvaluationArgs,
    path: &Path,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Option<ChatTemplate>> {
    let template = || ChatTemplate::of_model(path, tokenizer);
    let is_wanted = args.asking.apply_chat_template || args.suite.is_some();
    Ok(is_wanted.then(template).transpose()?)
}

/// A report says which of its tasks are asked as conversations.
fn of_task<'a>(evaluator: &Evaluator<'a>, args: &EvaluationArgs, open: &OpenTask) -> Evaluator<'a> {
    let name = open.task.name();
    // Without a suite `--apply_chat_template` has decided, and `evaluator.chat` says so.
    let as_chat = args.suite.is_none() || REPORT.iter().any(|row| row.as_chat && row.task == name);
    Evaluator { chat: evaluator.chat.filter(|_| as_chat), ..*evaluator }
}

fn code_runner(args: &EvaluationArgs) -> anyhow::Result<Option<CodeRunner>> {
    let Some(python) = &args.asking.allow_code_execution else { return Ok(None) };
    let runner = CodeRunner::new(python)?;
    if !runner.has_no_network() {
        note(
            "warning: programs of the model run with a network: this system makes no namespace for them",
        );
    }
    Ok(Some(runner))
}

fn run_comparison(a: &Path, b: &Path, as_json: bool) -> anyhow::Result<()> {
    let found = compare(a, b)?;
    if as_json {
        let one = |it: &bitnet_eval::Difference| {
            json!({"task": it.task, "metric": it.metric, "filter": it.filter, "rows": it.rows,
                "means": it.means, "difference": it.means[1] - it.means[0], "stderr": it.stderr,
                "mcnemar": it.mcnemar.map(|(a, b, p)| json!({"only_first": a, "only_second": b, "p": p}))})
        };
        return Ok(json_line(&json!({"differences": found.iter().map(one).collect::<Vec<_>>()}))?);
    }
    difference_table(&found).iter().try_for_each(|line| result_line(line))?;
    Ok(())
}

/// Everything is read before the first task runs.
fn selected(args: &EvaluationArgs) -> anyhow::Result<(Vec<OpenTask>, Vec<TaskGroup>)> {
    let data = args.data.as_deref().expect("clap requires it");
    if args.suite.is_none() {
        let selection = Selection::of(&args.tasks)?;
        let tasks = open(&selection, data, args.num_fewshot)?;
        return Ok((tasks, selection.groups));
    }
    let (mut tasks, mut groups) = (Vec::new(), Vec::new());
    for row in &REPORT {
        let selection = Selection::of(&[row.task.to_owned()])?;
        let may_run = args.asking.allow_code_execution.is_some();
        match open(&selection, data, Some(row.num_fewshot)) {
            Ok(found) if !may_run && found.iter().any(|it| it.task.runs_code()) => {
                note(&format!("left out: {}: needs --allow-code-execution", row.task));
            }
            Ok(found) => {
                tasks.extend(found);
                groups.extend(selection.groups);
            }
            // A suite runs what there is data for; a broken file of one is still an error.
            Err(missing @ EvalError::MissingData { .. }) => note(&format!("left out: {missing}")),
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::ensure!(
        !tasks.is_empty(),
        EvalError::Setting {
            task: "--suite report".to_owned(),
            what: "found data for none of its tasks".to_owned(),
        }
    );
    Ok((tasks, groups))
}

fn run_tasks(
    args: &EvaluationArgs,
    evaluator: &Evaluator,
    tasks: &[OpenTask],
    settings: &Map<String, Value>,
) -> anyhow::Result<Vec<TaskRecord>> {
    let mut store = ResultStore::open(args.out.as_deref(), args.log_samples.as_deref())?;
    if !args.json {
        result_line(&header(tasks))?;
    }
    let mut records = Vec::new();
    for open in tasks {
        let (name, evaluator) = (open.task.name(), of_task(evaluator, args, open));
        let details = eval_settings::of_task(args, &evaluator, open);
        let key = ResultStore::key(settings, &details, open.task.num_fewshot());
        let kept = if args.resume { store.finished(name, &key) } else { None };
        let rows_lack = kept.is_some() && !store.log_kept(name, &key)?;
        if rows_lack {
            note(&format!("{name}: is asked again, because --out holds no rows for --log-samples"));
        }
        let record = match kept.filter(|_| !rows_lack) {
            Some(record) => record,
            None => run_one(args.limit, &evaluator, open, (details, &key), &mut store)?,
        };
        // At once: a run that is killed later keeps what is done.
        store.save(&record, &key)?;
        show(&task_lines(tasks, &record), args.json)?;
        records.push(record);
    }
    store.finish().context("--log-samples")?;
    Ok(records)
}

/// Scores go to stdout; where that is for JSON, to stderr.
fn show(lines: &[String], as_json: bool) -> Result<(), StdoutError> {
    for line in lines {
        if as_json { note(line) } else { result_line(line)? }
    }
    Ok(())
}

fn run_one(
    limit: Option<u32>,
    evaluator: &Evaluator,
    OpenTask { task, data }: &OpenTask,
    (mut details, key): (Map<String, Value>, &str),
    store: &mut ResultStore,
) -> anyhow::Result<TaskRecord> {
    let mut line = EtaLine::new(task.name());
    let limit = limit.map(|limit| limit as usize);
    let ran = evaluator.run(task, data, limit, &mut |done, all| {
        line.show(done, all);
        ControlFlow::Continue(())
    });
    details.insert("seconds".into(), line.finish().into());
    let result = ran.map_err(|error| named(task.name(), error))?;
    let rows = result.samples.iter().map(|sample| sample_json(task.name(), sample));
    store.log(task.name(), key, rows)?;
    Ok(TaskRecord::new(task, &result, data.rows(), details))
}

/// Names the task in errors about single requests.
fn named(task: &str, error: EvalError) -> EvalError {
    match error {
        EvalError::Setting { what, .. } => EvalError::Setting { task: task.to_owned(), what },
        other => other,
    }
}
