//! Task files of the harness: the keys that are known, and what each may hold.

use std::path::Path;

use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::error::EvalError;
use crate::filters::{ExactMatch, Filter, FilterChain};
use crate::functions::ResultsFunction;
use crate::metrics::Aggregation;
use crate::scoring;
use crate::task::{GenerationLimits, OutputType, ShotChoice, Splits, Task, TaskMetric};
use crate::task_keys::{Keys, plain_text, unknown_function};
use crate::yaml::FUNCTION;

/// New tokens where a file does not say how many.
const MAX_GEN_TOKS: usize = 256;

const KNOWN: [&str; 25] = [
    "task",
    "task_alias",
    "dataset_path",
    "dataset_name",
    "training_split",
    "validation_split",
    "test_split",
    "fewshot_split",
    "process_docs",
    "output_type",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "num_fewshot",
    "fewshot_config",
    "metric_list",
    "filter_list",
    "generation_kwargs",
    "process_results",
    "repeats",
    "metadata",
    "include",
];

/// Whether a name is one part of a path and can be shown.
fn is_plain(name: &str) -> bool {
    let odd = |letter: char| letter.is_control() || matches!(letter, '/' | '\\');
    !name.is_empty() && !name.starts_with('.') && !name.contains(odd)
}

/// Reads the keys of a task file; `path` is for messages.
pub(crate) fn task(path: &Path, fields: Map<String, Value>) -> Result<Task, EvalError> {
    let config = Value::Object(fields.clone());
    let mut keys = Keys { path, fields };
    let name =
        keys.text("task")?.ok_or_else(|| keys.wrong("task", "is missing; expected a name"))?;
    if !is_plain(&name) {
        // Scores are written under it.
        let what = format!("is {name:?}; expected a name that can be a file's");
        return Err(keys.wrong("task", what));
    }
    let dataset_path = keys.text("dataset_path")?.unwrap_or_else(|| name.clone());
    // `utils.process_docs` is another function in every folder of the harness; name and data set
    // together tell which is meant.
    let called = format!("{name} {dataset_path}");
    let output = output_type(&mut keys)?;
    let missing = |keys: &Keys, key: &str| keys.wrong(key, "is missing; expected a template");
    let fewshot = keys.value("fewshot_config").unwrap_or_default();
    let process_results = results_function(&mut keys, &called)?;
    let task = Task {
        alias: keys.text("task_alias")?.unwrap_or_else(|| name.clone()),
        dataset_name: keys.text("dataset_name")?,
        splits: splits(&mut keys)?,
        process_docs: keys.function("process_docs", &called)?,
        output,
        text: keys.source("doc_to_text", &called)?.ok_or_else(|| missing(&keys, "doc_to_text"))?,
        target: keys
            .source("doc_to_target", &called)?
            .ok_or_else(|| missing(&keys, "doc_to_target"))?,
        choice: keys.source("doc_to_choice", &called)?,
        description: match keys.text("description")? {
            Some(text) if !text.is_empty() => Some(keys.template("description", &text)?),
            _ => None,
        },
        target_delimiter: keys.text("target_delimiter")?.unwrap_or_else(|| " ".to_owned()),
        fewshot_delimiter: keys.text("fewshot_delimiter")?.unwrap_or_else(|| "\n\n".to_owned()),
        num_fewshot: keys.number("num_fewshot")?.unwrap_or(0),
        shot_choice: shot_choice(&keys, &fewshot)?,
        samples: samples(&keys, &fewshot)?,
        metrics: metrics(&mut keys, output, process_results)?,
        filters: filters(&mut keys)?,
        limits: limits(&mut keys)?,
        process_results,
        version: keys.value("metadata").map_or(Value::Null, |mut it| it["version"].take()),
        name,
        dataset_path,
        config,
    };
    if keys.number("repeats")?.is_some_and(|repeats| repeats != 1) {
        return Err(keys.wrong("repeats", "expected 1: answers are greedy and always the same"));
    }
    if task.output == OutputType::MultipleChoice && task.choice.is_none() {
        return Err(missing(&keys, "doc_to_choice"));
    }
    if task.splits.evaluated().is_none() {
        return Err(keys.wrong("test_split", "is missing; expected it or validation_split"));
    }
    // Last, when all known keys are taken: what is left would change the score in the harness and
    // do nothing here, so it is an error.
    keys.finish(&KNOWN)?;
    Ok(task)
}

fn splits(keys: &mut Keys) -> Result<Splits, EvalError> {
    Ok(Splits {
        training: keys.text("training_split")?,
        validation: keys.text("validation_split")?,
        test: keys.text("test_split")?,
        fewshot: keys.text("fewshot_split")?,
    })
}

fn output_type(keys: &mut Keys) -> Result<OutputType, EvalError> {
    match keys.text("output_type")?.as_deref() {
        Some("multiple_choice") => Ok(OutputType::MultipleChoice),
        Some("loglikelihood") => Ok(OutputType::Loglikelihood),
        Some("loglikelihood_rolling") => Ok(OutputType::LoglikelihoodRolling),
        None | Some("generate_until") => Ok(OutputType::GenerateUntil),
        Some(other) => {
            let known = "multiple_choice, loglikelihood, loglikelihood_rolling or generate_until";
            Err(keys.wrong("output_type", format!("expected {known}, got {other:?}")))
        }
    }
}

fn shot_choice(keys: &Keys, config: &Value) -> Result<ShotChoice, EvalError> {
    let known = ["sampler", "samples"];
    let unknown =
        config.as_object().and_then(|it| it.keys().find(|key| !known.contains(&key.as_str())));
    if let Some(key) = unknown {
        let what = format!("{key} is not known; expected sampler or samples");
        return Err(keys.wrong("fewshot_config", what));
    }
    match config["sampler"].as_str() {
        None | Some("default") => Ok(ShotChoice::Drawn),
        Some("first_n") => Ok(ShotChoice::FirstN),
        Some(other) => {
            let what = format!("sampler: expected default or first_n, got {other:?}");
            Err(keys.wrong("fewshot_config", what))
        }
    }
}

fn samples(keys: &Keys, config: &Value) -> Result<Vec<Value>, EvalError> {
    match &config["samples"] {
        Value::Null => Ok(Vec::new()),
        Value::Array(rows) if rows.iter().all(Value::is_object) => Ok(rows.clone()),
        _ => Err(keys.wrong("fewshot_config", "samples: expected a list of mappings")),
    }
}

fn metrics(
    keys: &mut Keys,
    output: OutputType,
    function: Option<ResultsFunction>,
) -> Result<Vec<TaskMetric>, EvalError> {
    let Some(list) = keys.mappings("metric_list")? else {
        let names: &[&str] = match output {
            OutputType::MultipleChoice => &["acc", "acc_norm"],
            OutputType::Loglikelihood => &["perplexity", "acc"],
            OutputType::LoglikelihoodRolling => {
                &["word_perplexity", "byte_perplexity", "bits_per_byte"]
            }
            OutputType::GenerateUntil => &["exact_match"],
        };
        let empty = || Keys { path: keys.path, fields: Map::new() };
        return names.iter().map(|name| metric((*name).to_owned(), empty())).collect();
    };
    let computed = function.map_or_else(|| scoring::metrics(output), ResultsFunction::metrics);
    let one = |fields| {
        let mut inner = Keys { path: keys.path, fields };
        let name = inner.text("metric")?;
        let name = name.ok_or_else(|| keys.wrong("metric_list", "an entry has no metric"))?;
        // A metric that nothing computes would be missing among the scores without a word.
        if !computed.contains(&name.as_str()) {
            let expected = computed.join(", ");
            let what = format!(
                "metric {name:?} is not known for a task of this kind; expected {expected}"
            );
            return Err(keys.wrong("metric_list", what));
        }
        metric(name, inner)
    };
    list.into_iter().map(one).collect()
}

fn metric(name: String, mut keys: Keys) -> Result<TaskMetric, EvalError> {
    let aggregation = match keys.text("aggregation")? {
        None => Aggregation::of_metric(&name),
        Some(text) => Aggregation::named(text.trim_start_matches(FUNCTION)).ok_or_else(|| {
            keys.wrong("metric_list", format!("aggregation {text:?} is not known"))
        })?,
    };
    let lower = ["perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"];
    let given = keys.value("higher_is_better").and_then(|value| value.as_bool());
    let higher_is_better = given.unwrap_or(!lower.contains(&name.as_str()));
    let patterns = keys.value("regexes_to_ignore").unwrap_or_default();
    let patterns = patterns.as_array().cloned().unwrap_or_default();
    let exact_match = ExactMatch {
        ignored: patterns
            .iter()
            .map(|it| regex(&keys, "metric_list", it))
            .collect::<Result<_, _>>()?,
        ignore_case: keys.flag("ignore_case")?,
        ignore_punctuation: keys.flag("ignore_punctuation")?,
        ignore_numbers: keys.flag("ignore_numbers")?,
    };
    keys.finish(&[
        "metric",
        "aggregation",
        "higher_is_better",
        "regexes_to_ignore",
        "ignore_case",
    ])?;
    Ok(TaskMetric { name, aggregation, higher_is_better, exact_match })
}

fn filters(keys: &mut Keys) -> Result<Vec<FilterChain>, EvalError> {
    let Some(list) = keys.mappings("filter_list")? else { return Ok(vec![FilterChain::none()]) };
    let chain = |fields| {
        let mut inner = Keys { path: keys.path, fields };
        let name = inner.text("name")?.ok_or_else(|| inner.wrong("filter_list", "has no name"))?;
        let steps = inner.mappings("filter")?.unwrap_or_default();
        let step = |fields| filter(Keys { path: keys.path, fields });
        Ok(FilterChain { name, steps: steps.into_iter().map(step).collect::<Result<_, _>>()? })
    };
    list.into_iter().map(chain).collect()
}

fn filter(mut keys: Keys) -> Result<Filter, EvalError> {
    let name = keys.text("function")?.unwrap_or_default();
    let made = match name.as_str() {
        "take_first" => Filter::TakeFirst,
        "remove_whitespace" => Filter::RemoveWhitespace,
        "lowercase" => Filter::Lowercase,
        "uppercase" => Filter::Uppercase,
        "regex" => {
            let pattern = keys.value("regex_pattern");
            let pattern = pattern.unwrap_or_else(|| r"#### (\-?[0-9\.\,]+)".into());
            Filter::Regex {
                regex: regex(&keys, "filter_list", &pattern)?,
                select: keys.value("group_select").and_then(|it| it.as_i64()).unwrap_or(0),
                fallback: keys.text("fallback")?.unwrap_or_else(|| "[invalid]".to_owned()),
            }
        }
        "map" => {
            let pairs = keys.value("mapping_dict").unwrap_or_default();
            let pairs = pairs.as_object().cloned().unwrap_or_default();
            let text = |value: &Value| plain_text(value).unwrap_or_default();
            let pairs = pairs.iter().map(|(from, to)| (from.clone(), text(to))).collect();
            Filter::Map(pairs, keys.value("default_value").map_or("None".into(), |it| text(&it)))
        }
        other => {
            let known = "take_first, remove_whitespace, lowercase, uppercase, regex, map";
            let what = format!("function {other:?} is not known; expected {known}");
            return Err(keys.wrong("filter_list", what));
        }
    };
    keys.finish(&["function", "regex_pattern", "group_select", "fallback"])?;
    Ok(made)
}

fn regex(keys: &Keys, key: &str, pattern: &Value) -> Result<Regex, EvalError> {
    let text = pattern.as_str().unwrap_or_default();
    Regex::new(text).map_err(|error| keys.wrong(key, format!("pattern {text:?}: {error}")))
}

fn limits(keys: &mut Keys) -> Result<GenerationLimits, EvalError> {
    let fields = keys.value("generation_kwargs").unwrap_or_default();
    let mut inner =
        Keys { path: keys.path, fields: fields.as_object().cloned().unwrap_or_default() };
    let until = match inner.value("until") {
        None => Vec::new(),
        Some(Value::Array(items)) => items.iter().filter_map(plain_text).collect(),
        Some(one) => plain_text(&one).into_iter().collect(),
    };
    let mut max_tokens = None;
    // All are read, also after the first: one that stayed would be an unknown key below.
    for key in ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"] {
        max_tokens = max_tokens.or(inner.number(key)?);
    }
    if inner.flag("do_sample")?
        || inner.value("temperature").is_some_and(|it| it.as_f64() != Some(0.0))
    {
        return Err(
            keys.wrong("generation_kwargs", "asks for random answers; expected greedy ones")
        );
    }
    inner.finish(&["until", "max_gen_toks", "do_sample", "temperature"])?;
    Ok(GenerationLimits { until, max_tokens: max_tokens.unwrap_or(MAX_GEN_TOKS) })
}

fn results_function(keys: &mut Keys, task: &str) -> Result<Option<ResultsFunction>, EvalError> {
    let Some(text) = keys.text("process_results")? else { return Ok(None) };
    let name = text.strip_prefix(FUNCTION).unwrap_or(&text);
    let found = ResultsFunction::named(name, task);
    found.map(Some).ok_or_else(|| keys.wrong("process_results", unknown_function(name)))
}
