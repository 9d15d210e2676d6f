//! JSON files that hold one object, such as `config.json`: read up to a limit, other programs'
//! files named, a byte-order mark accepted.

use std::path::Path;

use serde_json::{Map, Value};

use crate::FormatError;
use crate::foreign::{FileRole, refuse, without_mark_bytes};
use crate::input::{LARGEST_TEXT, read_bytes};

/// The object in a file.
///
/// # Errors
/// When the file cannot be read, or holds anything else.
pub fn read_object(path: &Path) -> Result<Map<String, Value>, FormatError> {
    refuse(path, FileRole::Json)?;
    object_of(path, &read_bytes(path, LARGEST_TEXT)?)
}

/// The object in the bytes of a file; `path` is for messages.
pub(crate) fn object_of(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>, FormatError> {
    let broken = |what: String| FormatError::config(path, "", what);
    match serde_json::from_slice(without_mark_bytes(bytes)) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(broken("is not a JSON object".to_owned())),
        Err(error) => Err(broken(error.to_string())),
    }
}
