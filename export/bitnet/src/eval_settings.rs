//! What the scores of `bitnet eval` depend on, by content: a file that was changed and kept its
//! name gives other scores, and `--resume` must not take the old ones for them.

use std::path::Path;

use bitnet_eval::{BosPolicy, Evaluator, OpenTask};
use bitnet_format::adapter::{ADAPTER_CONFIG_FILE, ADAPTER_MODEL_FILE};
use bitnet_format::input::open_file;
use bitnet_format::{FormatError, StoredModel, model_hash};
use bitnet_text::{TOKENIZER_CONFIG_FILE, Tokenizer};
use serde_json::{Map, Value, json};

use crate::cli::{BosArg, EvaluationArgs, HeadArg};

/// Keys that say where something lies; its hash stands beside it and names it wherever it is.
pub(crate) const PLACES: [&str; 2] = ["model", "adapter"];

pub(crate) fn bos(arg: BosArg) -> BosPolicy {
    match arg {
        BosArg::Auto => BosPolicy::Auto,
        BosArg::Always => BosPolicy::Always,
        BosArg::Never => BosPolicy::Never,
    }
}

/// What all scores of a run depend on.
pub(crate) fn of_run(
    args: &EvaluationArgs,
    path: &Path,
    tokenizer: &Tokenizer,
    stop_ids: &[u32],
) -> anyhow::Result<Map<String, Value>> {
    let hash = model_hash(path, &StoredModel::open(path)?)?;
    let adapter = args.adapter.adapter.as_deref();
    let all = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": path.to_string_lossy(),
        "model_hash": hash,
        "tokenizer_hash": blake3::hash(tokenizer.json()).to_hex().to_string(),
        "tokenizer_config_hash": files_hash(path, &[TOKENIZER_CONFIG_FILE])?,
        // `generation_config.json` and several other files have a say in these.
        "stop_ids": stop_ids,
        "adapter": adapter.map(Path::to_string_lossy),
        "adapter_hash": adapter_hash(adapter)?,
        "head": if args.head == HeadArg::Int8 { "int8" } else { "file" },
        "bos": bos(args.bos).name(),
        "limit": args.limit,
        "fewshot_as_multiturn": args.asking.fewshot_as_multiturn,
    });
    Ok(all.as_object().cloned().unwrap_or_default())
}

/// What the scores of one task depend on beside that.
pub(crate) fn of_task(
    args: &EvaluationArgs,
    evaluator: &Evaluator,
    OpenTask { task, data }: &OpenTask,
) -> Map<String, Value> {
    let template = evaluator.chat.map(|chat| chat.template.identity());
    let template_hash = template.map(|text| blake3::hash(text.as_bytes()).to_hex().to_string());
    let python = args.asking.allow_code_execution.as_ref().filter(|_| task.runs_code());
    let mut details = Map::new();
    details.insert("task_hash".into(), task.hash().into());
    details.insert("data_hash".into(), data.hash().into());
    details.insert("chat_template".into(), template_hash.is_some().into());
    // Keys of their own only where they say something.
    details.extend(template_hash.map(|hash| ("chat_template_hash".to_owned(), hash.into())));
    details.extend(python.map(|it| ("python".to_owned(), it.to_string_lossy().into())));
    details
}

/// Identifies an adapter by its files.
pub(crate) fn adapter_hash(adapter: Option<&Path>) -> Result<Option<String>, FormatError> {
    let files = [ADAPTER_CONFIG_FILE, ADAPTER_MODEL_FILE];
    Ok(adapter.map(|path| files_hash(path, &files)).transpose()?.flatten())
}

/// A hash of these files of a folder; `None` if there are none, as in a GGUF file, which holds all
/// itself.
fn files_hash(folder: &Path, names: &[&str]) -> Result<Option<String>, FormatError> {
    let mut hasher = blake3::Hasher::new();
    for name in names {
        let path = folder.join(name);
        if path.exists() {
            // The length first: bytes cannot move from one file to the next unnoticed.
            hasher.update(&fs_err::metadata(&path)?.len().to_le_bytes());
            hasher.update_reader(open_file(&path)?)?;
        }
    }
    Ok((hasher.count() > 0).then(|| hasher.finalize().to_hex().to_string()))
}
