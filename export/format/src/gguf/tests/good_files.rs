//! Frozen bytes, and what was written is read.

use super::raw::{Raw, array, text, words};
use super::{DType, GgufFile, GgufWriter, Metadata, TensorPlan, Value, bytes_of, open, plan};
use super::{sample_metadata, sample_tensors, written};

/// By hand from the GGUF v3 specification: one string, one f32 matrix `[2, 1]`.
#[rustfmt::skip]
const MINIMAL: &[u8] = &[
    b'G', b'G', b'U', b'F',
    3, 0, 0, 0,                                     // version
    1, 0, 0, 0, 0, 0, 0, 0,                         // one tensor
    1, 0, 0, 0, 0, 0, 0, 0,                         // one pair
    20, 0, 0, 0, 0, 0, 0, 0,                        // its key
    b'g', b'e', b'n', b'e', b'r', b'a', b'l', b'.', b'a', b'r',
    b'c', b'h', b'i', b't', b'e', b'c', b't', b'u', b'r', b'e',
    8, 0, 0, 0,                                     // a string
    1, 0, 0, 0, 0, 0, 0, 0, b'x',
    1, 0, 0, 0, 0, 0, 0, 0, b'w',                   // the tensor's name
    2, 0, 0, 0,                                     // two dimensions, `in` first
    1, 0, 0, 0, 0, 0, 0, 0,
    2, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0,                                     // F32
    0, 0, 0, 0, 0, 0, 0, 0,                         // its offset
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // 106 bytes so far: padded to 128
    0, 0, 0, 0, 0, 0,
    0x00, 0x00, 0x80, 0x3f, 0x00, 0x00, 0x00, 0xc0, // 1, -2
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,             // padded to 160
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

#[test]
fn layout_is_frozen() {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "x");
    let data = [1f32, -2.0].map(f32::to_le_bytes).concat();
    let bytes = written(&metadata, &[("w", &[2, 1], DType::F32, data.clone())]);
    assert_eq!(bytes, MINIMAL);
    let file = open(MINIMAL.to_vec()).unwrap();
    assert_eq!(file.metadata(), &metadata);
    let tensor = file.tensor("w").unwrap();
    assert_eq!((&*tensor.shape, tensor.dtype), (&[2, 1][..], DType::F32));
    assert_eq!(bytes_of(&file, tensor), data);
}

#[test]
fn what_was_written_is_read() {
    for alignment in [None, Some(8), Some(512)] {
        let mut metadata = sample_metadata();
        if let Some(alignment) = alignment {
            metadata.insert("general.alignment", Value::U32(alignment));
        }
        let bytes = written(&metadata, &sample_tensors());
        let file = open(bytes.clone()).unwrap();
        assert_eq!(file.metadata(), &metadata);
        assert_eq!(file.tensors().len(), DType::of_gguf().count());
        for (info, (name, shape, dtype, bytes)) in file.tensors().iter().zip(sample_tensors()) {
            assert_eq!((&*info.name, &*info.shape, info.dtype), (name, shape, dtype));
            assert_eq!(file.tensor(name), Some(info));
            assert_eq!(bytes_of(&file, info), bytes, "{name}");
        }
        assert_eq!(file.tensor("z"), None);
        assert_eq!(written(&metadata, &sample_tensors()), bytes, "equal input, equal bytes");
    }
}

#[test]
fn a_file_is_opened_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs_err::write(&path, MINIMAL).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.path(), path);
    assert_eq!(file.metadata().str("general.architecture").unwrap(), "x");
    let wrong = file.metadata().u32("general.architecture").unwrap_err().to_string();
    let expected = "m.gguf [general.architecture]: is a string; expected an integer from 0";
    assert!(wrong.contains(expected), "{wrong}");
    let folder = GgufFile::open(dir.path()).unwrap_err().to_string();
    assert!(folder.ends_with("is a directory; expected a regular file"), "{folder}");
    let missing = GgufFile::open(&dir.path().join("x")).unwrap_err().to_string();
    assert!(missing.contains("failed to"), "{missing}");
}

#[test]
fn files_without_tensors_or_end_padding_are_read() {
    assert!(open(Raw::default().bytes()).unwrap().tensors().is_empty());
    let bare = Raw::default().pair("k", 4, &[1, 0, 0, 0]).bytes();
    let mut padded = bare.clone();
    padded.resize(bare.len().next_multiple_of(32), 0);
    for bytes in [bare, padded] {
        assert_eq!(open(bytes).unwrap().metadata().u32("k").unwrap(), 1);
    }
    assert!(open(MINIMAL[..136].to_vec()).is_ok(), "no padding after the last tensor");
}

#[test]
fn version_2_has_the_same_layout() {
    let mut bytes = MINIMAL.to_vec();
    bytes[4] = 2;
    assert_eq!(open(bytes).unwrap().tensors().len(), 1);
}

#[test]
fn the_longest_names_are_read() {
    let (key, name) = ("k".repeat(65535), "n".repeat(64));
    let raw = Raw::default().pair(&key, 0, &[7]).tensor(&name, &[1], 0, 0).data(4);
    let file = open(raw.bytes()).unwrap();
    assert_eq!(file.metadata().u32(&key).unwrap(), 7);
    assert!(file.tensor(&name).is_some());
}

#[test]
fn an_array_of_empty_strings_is_read() {
    let value = array(8, 3, &words(&[0, 0, 0]));
    let file = open(Raw::default().pair("k", 9, &value).pair("s", 8, &text(b"")).bytes()).unwrap();
    assert_eq!(file.metadata().strings("k").unwrap(), ["", "", ""]);
    assert_eq!(file.metadata().str("s").unwrap(), "");
}

#[test]
fn a_writer_takes_exactly_the_bytes_of_each_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let tensors = [("a", &[2][..], DType::F16, vec![]), ("b", &[1], DType::F32, vec![])];
    let mut writer = GgufWriter::create(&path, &Metadata::new(), &plan(&tensors)).unwrap();
    let message = |result: Result<(), crate::FormatError>| result.unwrap_err().to_string();
    let more = message(writer.write(&[0; 5]));
    assert!(more.ends_with("m.gguf [a]: is given 5 bytes; expected 4"), "{more}");
    writer.write(&[0; 3]).unwrap();
    let fewer = message(writer.end_tensor());
    assert!(fewer.ends_with("m.gguf [a]: is given 3 bytes; expected 4"), "{fewer}");
    writer.write(&[0]).unwrap();
    writer.end_tensor().unwrap();
    writer.write(&[0; 4]).unwrap();
    writer.end_tensor().unwrap();
    let after = message(writer.write(&[0]));
    assert!(after.ends_with("m.gguf: all 2 tensors are written already"), "{after}");
    writer.finish().unwrap();
    let unfinished = GgufWriter::create(&path, &Metadata::new(), &plan(&tensors)).unwrap();
    let unfinished = message(unfinished.finish());
    assert!(unfinished.ends_with("m.gguf [a]: was not written to its end"), "{unfinished}");
}

#[test]
fn a_writer_refuses_what_the_reader_would() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let longest = "n".repeat(64);
    let f32 = DType::F32;
    for (tensors, part) in [
        (vec![("", vec![1], f32)], "m.gguf: the tensor name \"\" is not possible"),
        (vec![("a b", vec![1], f32)], "the tensor name \"a b\" is not possible"),
        (vec![(&*longest, vec![1], f32)], "expected 1 to 63 bytes"),
        (vec![("a", vec![1], f32), ("a", vec![1], f32)], "[a]: occurs twice"),
        (vec![("a", vec![], f32)], "[a]: has no dimensions"),
        (vec![("a", vec![1; 5], f32)], "[a]: has 5 dimensions"),
        (vec![("a", vec![1, 0], f32)], "[a]: has shape [1, 0]"),
        (vec![("a", vec![2, 128], DType::Tq1_0)], "[a]: has shape [2, 128]; expected a"),
        (vec![("a", vec![1 << 61], f32), ("b", vec![1 << 61], f32)], "[b]: ends beyond"),
    ] {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, shape, dtype)| TensorPlan::new(*name, *dtype, shape))
            .collect();
        let error = GgufWriter::create(&path, &Metadata::new(), &tensors).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
        assert!(!path.exists(), "nothing is created");
    }
    let mut metadata = Metadata::new();
    metadata.insert("general.alignment", 12);
    let error = GgufWriter::create(&path, &metadata, &[]).unwrap_err().to_string();
    assert!(error.contains("[general.alignment]: is 12 (u32); expected a power of two"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_names_the_file() {
    let path = std::path::Path::new("/dev/full");
    let tensors = plan(&[("a", &[1 << 16], DType::F32, vec![])]);
    let mut writer = GgufWriter::create(path, &Metadata::new(), &tensors).unwrap();
    let error = writer.write(&vec![0; 4 << 16]).unwrap_err().to_string();
    assert!(error.contains("/dev/full"), "{error}");
}

proptest::proptest! {
    #[test]
    fn any_pairs_and_tensors_come_back(
        texts: Vec<(String, Vec<String>)>,
        numbers: Vec<i32>,
        lengths in proptest::collection::vec(1usize..70, 0..5),
    ) {
        let mut metadata = Metadata::new();
        for (index, (text, texts)) in texts.into_iter().enumerate() {
            metadata.insert(format!("text.{index}"), text);
            metadata.insert(format!("texts.{index}"), texts);
        }
        metadata.insert("numbers", numbers);
        let names = ["a", "b", "c", "d", "e"];
        let plan: Vec<_> = names.iter().zip(&lengths)
            .map(|(name, &length)| TensorPlan::new(*name, DType::F16, &[length])).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let mut writer = GgufWriter::create(&path, &metadata, &plan).unwrap();
        for &length in &lengths {
            writer.write(&vec![length as u8; 2 * length]).unwrap();
            writer.end_tensor().unwrap();
        }
        writer.finish().unwrap();
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.metadata(), &metadata);
        for (info, &length) in file.tensors().iter().zip(&lengths) {
            assert_eq!(bytes_of(&file, info), vec![length as u8; 2 * length]);
        }
    }

    #[test]
    fn no_byte_string_panics_the_reader(bytes: Vec<u8>) {
        let _ = open(bytes.clone());
        let _ = open([&MINIMAL[..24], &bytes].concat());
    }
}
