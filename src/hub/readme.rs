//! The `configs:` at the head of a data set's README.md: which files are which split of which
//! configuration.

use saphyr::{LoadableYamlNode, Scalar, Yaml};

/// A configuration that the README declares.
#[derive(Debug)]
pub(super) struct ReadmeConfig {
    pub(super) name: String,
    /// Whether the README makes it the default one.
    pub(super) is_default: bool,
    /// The folder that its patterns count from, with a slash at its end, or nothing.
    pub(super) folder: String,
    /// Patterns of each split; none where names of files tell the splits.
    pub(super) splits: Vec<(String, Vec<String>)>,
}

/// The configurations that a README declares, in its order.
///
/// # Errors
/// Says what is no configuration.
pub(super) fn readme_configs(text: &str) -> Result<Vec<ReadmeConfig>, String> {
    let Some(block) = block_of(text) else { return Ok(Vec::new()) };
    let documents = Yaml::load_from_str(&block)
        .map_err(|error| format!("configs of README.md cannot be read: {}", error.info()))?;
    let configs = documents.first().and_then(|head| head.as_mapping_get("configs"));
    let configs =
        configs.and_then(Yaml::as_sequence).ok_or("README.md: expected a list of configs")?;
    configs.iter().map(|config| read_config(config).ok_or_else(|| unusual(config))).collect()
}

fn unusual(config: &Yaml<'_>) -> String {
    let name = config.as_mapping_get("config_name").and_then(text_of);
    let name = name.map_or(String::new(), |name| format!(" {name:?}"));
    format!(
        "README.md: config{name} cannot be read; expected config_name, and data_files as a \
         pattern, a list of them, or a list of split and path"
    )
}

/// The lines of the key `configs` in the YAML between the first `---` and the next. The rest is not
/// ours to understand: people write much there that no parser takes.
fn block_of(text: &str) -> Option<String> {
    let mut lines = text.trim_start_matches('\u{feff}').lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let head = lines.take_while(|line| line.trim_end() != "---");
    let mut from_key = head.skip_while(|line| !line.starts_with("configs:"));
    let key = from_key.next()?;
    // A list may stand under its key without being moved in.
    let inside = |line: &&str| line.is_empty() || line.starts_with([' ', '-', '#', '\r']);
    let block: Vec<&str> = std::iter::once(key).chain(from_key.take_while(inside)).collect();
    Some(block.join("\n"))
}

fn read_config(config: &Yaml<'_>) -> Option<ReadmeConfig> {
    let name = text_of(config.as_mapping_get("config_name")?)?;
    let is_default = config.as_mapping_get("default").and_then(Yaml::as_bool).unwrap_or(false);
    let folder = match config.as_mapping_get("data_dir") {
        None => String::new(),
        Some(folder) => below(&format!("{}/", text_of(folder)?.trim_end_matches('/'))),
    };
    let splits = config.as_mapping_get("data_files").map_or(Some(Vec::new()), read_splits)?;
    Some(ReadmeConfig { name, is_default, folder, splits })
}

/// `data_files` without splits are all of `train`.
fn read_splits(files: &Yaml<'_>) -> Option<Vec<(String, Vec<String>)>> {
    let items = files.as_sequence();
    match items.filter(|items| items.iter().any(|item| item.as_mapping().is_some())) {
        None => Some(vec![("train".to_owned(), patterns(files)?)]),
        Some(items) => items.iter().map(read_split).collect(),
    }
}

fn read_split(item: &Yaml<'_>) -> Option<(String, Vec<String>)> {
    let split = text_of(item.as_mapping_get("split")?)?;
    Some((split, patterns(item.as_mapping_get("path")?)?))
}

/// A pattern, or a list of them.
fn patterns(yaml: &Yaml<'_>) -> Option<Vec<String>> {
    let pattern = |yaml: &Yaml<'_>| text_of(yaml).map(|text| below(&text));
    match yaml.as_sequence() {
        Some(items) => items.iter().map(pattern).collect(),
        None => Some(vec![pattern(yaml)?]),
    }
}

fn below(path: &str) -> String {
    path.trim_start_matches("./").to_owned()
}

/// A name, also where YAML takes it for a number.
fn text_of(yaml: &Yaml<'_>) -> Option<String> {
    match yaml {
        Yaml::Value(Scalar::String(text)) => Some(text.as_ref().to_owned()),
        Yaml::Value(Scalar::Integer(number)) => Some(number.to_string()),
        Yaml::Value(Scalar::FloatingPoint(number)) => Some(number.to_string()),
        Yaml::Value(Scalar::Boolean(answer)) => Some(answer.to_string()),
        _ => None,
    }
}
