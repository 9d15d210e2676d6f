//! The tensors of a model folder as one set: a single file, or shards with an index.
//!
//! The index (`model.safetensors.index.json`) maps tensor names to files in its `weight_map`. It
//! is somebody else's text, so a file name in it is checked before it meets the file system: one
//! plain name beside the index, nothing that leaves the folder. A file under such a name may be
//! a symbolic link; Hugging Face's cache is made of them. Index and shards must then agree on
//! every tensor, so the index adds nothing to what the shards hold.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use crate::FormatError;
use crate::pairs::Pairs;
use crate::tensors::{TensorFile, check_names};

/// No index is larger: a million tensors fit.
const LARGEST_INDEX: u64 = 64 << 20;

/// Open safetensors files that together hold each tensor once.
#[derive(Debug)]
pub struct TensorSet {
    /// The single file or the index: what a missing tensor is missing from.
    source: PathBuf,
    files: Vec<TensorFile>,
    /// The position in `files` of each tensor.
    places: BTreeMap<String, usize>,
}

impl TensorSet {
    /// All tensors of one file.
    pub fn single(path: &Path) -> Result<Self, FormatError> {
        let file = TensorFile::open(path)?;
        let places = file.names().into_iter().map(|name| (name, 0)).collect();
        Ok(Self { source: path.to_owned(), files: vec![file], places })
    }

    /// The shards that an index names, each opened once and checked against the index.
    pub fn sharded(index: &Path) -> Result<Self, FormatError> {
        let mut set = Self { source: index.to_owned(), files: Vec::new(), places: BTreeMap::new() };
        for (shard, tensors) in read_index(index)? {
            set.add_shard(&shard, tensors)?;
        }
        set.refuse_unlisted()?;
        Ok(set)
    }

    /// The files in order of their names, for hashing.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path().to_owned()).collect()
    }

    /// The file that holds a tensor; of a tensor that is nowhere, the file that should name it.
    pub fn path_of(&self, name: &str) -> &Path {
        self.places.get(name).map_or(&self.source, |&place| self.files[place].path())
    }

    /// All tensor names, file after file.
    pub fn names(&self) -> Vec<String> {
        self.files.iter().flat_map(TensorFile::names).collect()
    }

    /// Whether a tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Shape and element type of a tensor.
    pub fn info(&self, name: &str) -> Result<&TensorInfo, FormatError> {
        self.file_of(name)?.info(name)
    }

    /// As [`TensorFile::raw`].
    pub fn raw(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<Vec<u8>, FormatError> {
        self.file_of(name)?.raw(name, shape, dtype)
    }

    /// As [`TensorFile::floats`].
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, FormatError> {
        self.file_of(name)?.floats(name, shape)
    }

    /// As [`TensorFile::finite_floats`].
    pub fn finite_floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, FormatError> {
        self.file_of(name)?.finite_floats(name, shape)
    }

    /// As [`TensorFile::row_bytes`].
    pub fn row_bytes(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<Vec<u8>, FormatError> {
        self.file_of(name)?.row_bytes(name, shape, rows)
    }

    /// As [`TensorFile::finite_rows`].
    pub fn finite_rows(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
    ) -> Result<Vec<f32>, FormatError> {
        self.file_of(name)?.finite_rows(name, shape, rows)
    }

    fn file_of(&self, name: &str) -> Result<&TensorFile, FormatError> {
        match self.places.get(name) {
            Some(&place) => Ok(&self.files[place]),
            None => Err(FormatError::tensor(&self.source, name, "is missing")),
        }
    }

    fn add_shard(&mut self, shard: &str, tensors: Vec<String>) -> Result<(), FormatError> {
        let path = self.source.with_file_name(shard);
        if !path.exists() {
            let what = format!("{shard:?} is missing; expected every file of the weight_map");
            return Err(FormatError::container(&self.source, what));
        }
        let file = TensorFile::open(&path)?;
        if let Some(name) = tensors.iter().find(|name| !file.contains(name)) {
            return Err(FormatError::tensor(&path, name, "is missing; the index puts it here"));
        }
        let place = self.files.len();
        self.places.extend(tensors.into_iter().map(|name| (name, place)));
        self.files.push(file);
        Ok(())
    }

    /// A tensor of a shard that the index does not know there would be a second, hidden one.
    fn refuse_unlisted(&self) -> Result<(), FormatError> {
        for (place, file) in self.files.iter().enumerate() {
            let listed = |name: &String| self.places.get(name) == Some(&place);
            let names = file.names();
            let Some(name) = names.iter().find(|name| !listed(name)) else { continue };
            let what = match self.places.get(name) {
                None => "is not in the index".to_owned(),
                Some(&other) => {
                    let other = self.files[other].path().display();
                    format!("occurs twice; the index puts it into {other}")
                }
            };
            return Err(FormatError::tensor(file.path(), name, what));
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: Pairs<String>,
}

/// The tensors of each shard, by the shard's file name.
fn read_index(path: &Path) -> Result<BTreeMap<String, Vec<String>>, FormatError> {
    let meta = fs_err::metadata(path)?;
    if !meta.is_file() || meta.len() > LARGEST_INDEX {
        let what = format!("expected a file of at most {LARGEST_INDEX} bytes, got {}", meta.len());
        return Err(FormatError::container(path, what));
    }
    let Index { weight_map: Pairs(pairs) } = serde_json::from_slice(&fs_err::read(path)?)
        .map_err(|error| FormatError::config(path, "", error.to_string()))?;
    check_names(pairs.iter().map(|(name, _)| name.as_str()))
        .map_err(|what| FormatError::container(path, what))?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in pairs {
        if !is_shard_name(&file) {
            let expected = "expected a plain file name that ends in .safetensors";
            let what = format!("is put into the file {file:?}; {expected}");
            return Err(FormatError::tensor(path, &tensor, what));
        }
        shards.entry(file).or_default().push(tensor);
    }
    Ok(shards)
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
    use crate::tensors::{TensorData, write_tensors};
    use serde_json::json;

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

        fn open_text(&self, index: &str) -> Result<TensorSet, String> {
            let path = self.path("model.safetensors.index.json");
            fs_err::write(&path, index).unwrap();
            TensorSet::sharded(&path).map_err(|error| error.to_string())
        }

        fn open(&self, weight_map: serde_json::Value) -> Result<TensorSet, String> {
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
        assert_eq!(set.raw("a", &[1], Dtype::F32).unwrap(), 1f32.to_le_bytes());
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
        assert!(error.ends_with("2.safetensors: is not a regular file"), "{error}");
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
        assert_eq!(TensorSet::sharded(&index).unwrap().floats("c", &[1]).unwrap(), [4.0]);
        fs_err::remove_file(folder.path("2.safetensors")).unwrap();
        let error = TensorSet::sharded(&index).unwrap_err().to_string();
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
        fs_err::File::create(&path).unwrap().set_len(LARGEST_INDEX + 1).unwrap();
        let error = TensorSet::sharded(&path).unwrap_err().to_string();
        assert!(error.ends_with("expected a file of at most 67108864 bytes, got 67108865"));
    }

    #[test]
    fn one_file_is_a_set_too() {
        let folder = Folder::new();
        let set = TensorSet::single(&folder.path("1.safetensors")).unwrap();
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
