//! Models in several safetensors files, and the index that lists them.
//!
//! The index (`model.safetensors.index.json`) maps tensor names to files in its `weight_map`. It
//! comes from elsewhere, so a file name in it is checked before any file is opened: one plain name
//! beside the index, nothing that leaves the folder. A file under such a name may be a symbolic
//! link; Hugging Face's cache is made of them. Index and shards must agree on every tensor, so the
//! index adds nothing to what the shards hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::FormatError;
use crate::Shown;
use crate::input::{LARGEST_TEXT, read_bytes};
use crate::ordered_map::OrderedMap;
use crate::tensors::{TensorFile, check_names};

impl TensorFile {
    /// Opens the shards that an index names, each once, and checks them against the index.
    pub fn open_sharded(index: &Path) -> Result<Self, FormatError> {
        let weight_map = read_index(index)?;
        // In order of their names, so that hashes and messages do not depend on the order of the
        // index.
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in &weight_map {
            shards.entry(shard).or_default().push(tensor);
        }
        let open = |(shard, tensors): (&&str, &Vec<&str>)| open_shard(index, shard, tensors);
        let files = shards.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let mut all = Self::empty(index);
        for (file, shard) in files.into_iter().zip(shards.keys()) {
            // One direction was checked when the shard was opened (listed, but not there), this is
            // the other.
            refuse_unlisted(index, &file, shard, &weight_map)?;
            all.append(file);
        }
        Ok(all)
    }
}

/// The names of the files that an index lists, each checked: a plain name, safe to open beside
/// the index on every system.
///
/// # Errors
/// What is wrong with the index. The files themselves are not looked at.
pub fn shard_files(index: &Path) -> Result<BTreeSet<String>, FormatError> {
    Ok(read_index(index)?.into_values().collect())
}

fn open_shard(index: &Path, shard: &str, tensors: &[&str]) -> Result<TensorFile, FormatError> {
    let path = index.with_file_name(shard);
    if !path.exists() {
        let what = format!("{shard:?} is missing; expected every file of the weight_map");
        return Err(FormatError::container(index, what));
    }
    let file = TensorFile::open(&path)?;
    match tensors.iter().find(|name| !file.contains(name)) {
        Some(name) => Err(FormatError::tensor(&path, name, "is missing; the index puts it here")),
        None => Ok(file),
    }
}

/// Refuses a tensor that the index does not place in this shard: it would be a hidden duplicate,
/// or never be read.
fn refuse_unlisted(
    index: &Path,
    file: &TensorFile,
    shard: &str,
    weight_map: &BTreeMap<String, String>,
) -> Result<(), FormatError> {
    for name in file.names() {
        match weight_map.get(&name) {
            Some(listed) if listed == shard => {}
            Some(other) => {
                let other = index.with_file_name(other);
                let what = format!("occurs twice; the index puts it into {}", other.shown());
                return Err(file.error(&name, what));
            }
            None => return Err(file.error(&name, "is not in the index")),
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Index {
    weight_map: OrderedMap<String>,
}

/// The shard of each tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, FormatError> {
    let text = read_bytes(path, LARGEST_TEXT)?;
    let Index { weight_map: OrderedMap(pairs) } = serde_json::from_slice(&text)
        .map_err(|error| FormatError::config(path, "", error.to_string()))?;
    // A plain map would keep the last of two equal names, and a shard would be read that nobody
    // checked.
    check_names(pairs.iter().map(|(name, _)| name.as_str()))
        .map_err(|what| FormatError::container(path, what))?;
    if let Some((tensor, file)) = pairs.iter().find(|(_, file)| !is_shard_name(file)) {
        let expected = "expected a plain file name that ends in .safetensors";
        let what = format!("is put into the file {file:?}; {expected}");
        return Err(FormatError::tensor(path, tensor, what));
    }
    Ok(pairs.into_iter().collect())
}

/// One plain file name on every system: no separator, drive, stream, hidden file or device.
fn is_shard_name(file: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !"/\\:*?\"<>|".contains(c);
    file.strip_suffix(".safetensors").is_some_and(|stem| !stem.is_empty())
        && file.len() <= 255
        && file.chars().all(plain)
        && !file.starts_with('.')
        && !file.contains("..")
        && !is_device_name(file)
}

/// Windows opens a device under these names, whatever follows the first dot.
fn is_device_name(file: &str) -> bool {
    let stem = file.split('.').next().unwrap_or_default().to_ascii_uppercase();
    let numbered = |name: &str| {
        let digit = stem.strip_prefix(name).filter(|rest| rest.len() == 1);
        digit.is_some_and(|digit| digit.as_bytes()[0].is_ascii_digit())
    };
    ["CON", "PRN", "AUX", "NUL"].contains(&&*stem) || numbered("COM") || numbered("LPT")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::writer::{TensorData, write_tensors};
    use serde_json::json;
    use std::path::PathBuf;

    struct Folder(tempfile::TempDir);

    impl Folder {
        /// Two shards: `a` = [1] and `b` = [2, 3] in the first, `c` = [4] in the second.
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            folder.shard("1.safetensors", &[("a", &[1.0]), ("b", &[2.0, 3.0])]);
            folder.shard("2.safetensors", &[("c", &[4.0])]);
            folder
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn shard(&self, name: &str, tensors: &[(&str, &[f32])]) {
            let data = |values: &[f32]| TensorData::f32_owned(&[values.len()], values);
            let named = tensors.iter().map(|(name, values)| ((*name).to_owned(), data(values)));
            write_tensors(&self.path(name), named).unwrap();
        }

        fn open_text(&self, index: &str) -> Result<TensorFile, String> {
            let path = self.path("model.safetensors.index.json");
            fs_err::write(&path, index).unwrap();
            TensorFile::open_sharded(&path).map_err(|error| error.to_string())
        }

        fn open(&self, weight_map: serde_json::Value) -> Result<TensorFile, String> {
            let index = json!({"metadata": {"total_size": 16}, "weight_map": weight_map});
            self.open_text(&index.to_string())
        }

        fn error(&self, weight_map: serde_json::Value) -> String {
            self.open(weight_map).unwrap_err()
        }
    }

    fn good() -> serde_json::Value {
        json!({"c": "2.safetensors", "a": "1.safetensors", "b": "1.safetensors"})
    }

    #[test]
    fn a_tensor_is_read_from_its_shard() {
        let folder = Folder::new();
        let set = folder.open(good()).unwrap();
        assert_eq!(set.paths(), [folder.path("1.safetensors"), folder.path("2.safetensors")]);
        let mut names = set.names();
        names.sort();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(set.floats("b", &[2]).unwrap(), [2.0, 3.0]);
        assert_eq!(set.finite_floats("c", &[1]).unwrap(), [4.0]);
        assert_eq!(set.raw("a", &[1], DType::F32).unwrap(), 1f32.to_le_bytes());
        assert_eq!(set.info("c").unwrap().shape, [1]);
        assert!(set.contains("c") && !set.contains("d"));
    }

    #[test]
    fn messages_name_the_shard_or_the_index() {
        let folder = Folder::new();
        let set = folder.open(good()).unwrap();
        let shape = set.floats("c", &[2]).unwrap_err().to_string();
        assert!(shape.ends_with("2.safetensors [c]: has shape [1]; expected [2]"), "{shape}");
        let missing = set.info("d").unwrap_err().to_string();
        assert!(missing.ends_with("model.safetensors.index.json [d]: is missing"), "{missing}");
        assert_eq!(set.path_of("c"), folder.path("2.safetensors"));
        assert_eq!(set.path_of("d"), folder.path("model.safetensors.index.json"));
    }

    #[test]
    fn index_and_shards_must_agree() {
        let folder = Folder::new();
        let mut map = good();
        map["c"] = json!("1.safetensors");
        let error = folder.error(map);
        assert!(
            error.ends_with("1.safetensors [c]: is missing; the index puts it here"),
            "{error}"
        );
        let error = folder.error(json!({"c": "2.safetensors", "a": "1.safetensors"}));
        assert!(error.ends_with("1.safetensors [b]: is not in the index"), "{error}");
        folder.shard("2.safetensors", &[("a", &[1.0]), ("c", &[4.0])]);
        let error = folder.error(good());
        assert!(error.contains("2.safetensors [a]: occurs twice; the index puts it"), "{error}");
        assert!(error.ends_with("1.safetensors"), "{error}");
    }

    #[test]
    fn a_missing_shard_is_named() {
        let folder = Folder::new();
        fs_err::remove_file(folder.path("2.safetensors")).unwrap();
        let error = folder.error(good());
        let expected = "index.json: \"2.safetensors\" is missing; expected every file";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_shard_that_is_not_a_file_is_refused() {
        let folder = Folder::new();
        fs_err::remove_file(folder.path("2.safetensors")).unwrap();
        fs_err::create_dir(folder.path("2.safetensors")).unwrap();
        let error = folder.error(good());
        assert!(
            error.ends_with("2.safetensors: is a directory; expected a regular file"),
            "{error}"
        );
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        let folder = Folder::new();
        for bad in [
            "",
            ".safetensors",
            "..",
            "../1.safetensors",
            "..\\1.safetensors",
            "./1.safetensors",
            "sub/1.safetensors",
            "/tmp/1.safetensors",
            "C:1.safetensors",
            "\\\\host\\1.safetensors",
            "1.safetensors\0",
            "1\0.safetensors",
            "1\n.safetensors",
            "1..safetensors",
            "1.safetensors/",
            "1.bin",
            "nul.safetensors",
            "COM1.x.safetensors",
        ] {
            let mut map = good();
            map["b"] = json!(bad);
            let error = folder.error(map);
            let expected = format!("index.json [b]: is put into the file {bad:?}; expected a");
            assert!(error.contains(&expected), "{bad:?}: {error}");
        }
        for name in ["model-00001-of-00002.safetensors", "model.fp16-1.safetensors"] {
            assert!(is_shard_name(name), "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_shard_may_be_a_link_into_a_cache() {
        let folder = Folder::new();
        let snapshot = folder.path("snapshots/main");
        fs_err::create_dir_all(&snapshot).unwrap();
        for shard in ["1.safetensors", "2.safetensors"] {
            let blob = Path::new("../..").join(shard);
            std::os::unix::fs::symlink(blob, snapshot.join(shard)).unwrap();
        }
        let index = snapshot.join("index.json");
        fs_err::write(&index, json!({"weight_map": good()}).to_string()).unwrap();
        assert_eq!(TensorFile::open_sharded(&index).unwrap().floats("c", &[1]).unwrap(), [4.0]);
        fs_err::remove_file(folder.path("2.safetensors")).unwrap();
        let error = TensorFile::open_sharded(&index).unwrap_err().to_string();
        assert!(error.contains("\"2.safetensors\" is missing"), "{error}");
    }

    #[test]
    fn an_index_that_is_ambiguous_or_no_index_is_refused() {
        let folder = Folder::new();
        for (text, part) in [
            (
                r#"{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}"#,
                r#"the tensor name "a" occurs twice"#,
            ),
            (r#"{"weight_map": {"\u001b[2J": "1.safetensors"}}"#, "not plain printable text"),
            (r#"{"weight_map": {}, "weight_map": {}}"#, "duplicate field `weight_map`"),
            (r#"{"weight_map": {"a": 1}}"#, "expected a string"),
            (r#"{"weight_map": ["a"]}"#, "expected a JSON object"),
            (r#"{"metadata": {}}"#, "missing field `weight_map`"),
            (r#"{"weight_map": {}"#, "EOF"),
            ("", "EOF"),
        ] {
            let error = folder.open_text(text).unwrap_err();
            assert!(error.contains("index.json: ") && error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_huge_index_is_not_read() {
        let folder = Folder::new();
        let path = folder.path("index.json");
        fs_err::File::create(&path).unwrap().set_len(LARGEST_TEXT + 1).unwrap();
        let error = TensorFile::open_sharded(&path).unwrap_err().to_string();
        assert!(error.ends_with("is too large; expected at most 67108864 bytes, got more"));
    }

    #[test]
    fn one_file_is_a_set_too() {
        let folder = Folder::new();
        let set = TensorFile::open(&folder.path("1.safetensors")).unwrap();
        assert_eq!(set.paths(), [folder.path("1.safetensors")]);
        assert_eq!(set.floats("a", &[1]).unwrap(), [1.0]);
        let missing = set.floats("c", &[1]).unwrap_err().to_string();
        assert!(missing.ends_with("1.safetensors [c]: is missing"), "{missing}");
    }

    proptest::proptest! {
        #[test]
        fn no_index_panics_the_reader(text in "[{}\":a,0-9\\[\\]./]{0,60}", file: String) {
            let folder = Folder::new();
            let _ = folder.open_text(&text);
            let _ = folder.open_text(&format!("{{\"weight_map\":{text}}}"));
            let _ = folder.open(json!({"a": file}));
        }
    }
}
