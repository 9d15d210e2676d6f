//! Files of keys: one a line; empty lines and those that begin with `#` are left out.

use std::path::Path;

use bitnet_format::Shown;
use bitnet_format::input::{LARGEST_TEXT, read_text};

use crate::failure::BadInput;

/// The keys of a file, at least one.
pub(crate) fn keys(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = read_text(path, LARGEST_TEXT)?;
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let key = line.trim();
        if key.is_empty() || key.starts_with('#') {
            continue;
        }
        if !key.chars().all(|letter| letter.is_ascii_graphic()) {
            let what = "expected a key of printable ASCII characters without spaces";
            return Err(BadInput(format!("{}:{number}: {what}", path.shown())).into());
        }
        keys.push(key.to_owned());
    }
    if keys.is_empty() {
        let what = "holds no key; expected one a line";
        return Err(BadInput(format!("{}: {what}", path.shown())).into());
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lines_and_a_file_without_any_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let read = |text: &str| {
            fs_err::write(&path, text).unwrap();
            keys(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read("# mine\none\n\n two \n").unwrap(), ["one", "two"]);
        assert!(read("# nothing\n").unwrap_err().ends_with("holds no key; expected one a line"));
        assert!(read("one\nt wo\n").unwrap_err().contains("keys:2: expected a key"));
    }
}
