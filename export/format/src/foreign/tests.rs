//! Files of other programs are named, and files that are read are not.

use super::*;

/// The beginning of a file of each kind, as the programs write it.
fn samples() -> Vec<(Vec<u8>, ForeignKind)> {
    let zip = |name: &str| {
        let mut bytes = b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.extend((name.len() as u16).to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend(name.as_bytes());
        bytes
    };
    let mut tar = b"story.txt".to_vec();
    tar.resize(257, 0);
    tar.extend(b"ustar\x0000");
    let mut safetensors = 30_u64.to_le_bytes().to_vec();
    safetensors.extend(b"{\"a\":{\"dtype\":\"F32\"}}");
    vec![
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(), ForeignKind::Pickle),
        (b"\x80\x04\x95\x1a\0\0\0\0\0\0\0}".to_vec(), ForeignKind::Pickle),
        (zip("archive/data.pkl"), ForeignKind::TorchArchive),
        (zip("pytorch_model/data.pkl"), ForeignKind::TorchArchive),
        (zip("arr_0.npy"), ForeignKind::Npz),
        (zip("[Content_Types].xml"), ForeignKind::OfficeDocument),
        (zip("notes/a.txt"), ForeignKind::Zip),
        (b"\x1f\x8b\x08\0".to_vec(), ForeignKind::Gzip),
        (b"BZh91AY&SY".to_vec(), ForeignKind::Bzip2),
        (b"\xfd7zXZ\0\0".to_vec(), ForeignKind::Xz),
        (b"\x28\xb5\x2f\xfd\x04".to_vec(), ForeignKind::Zstandard),
        (tar, ForeignKind::Tar),
        (b"PAR1\x15\x04".to_vec(), ForeignKind::Parquet),
        (b"ARROW1\0\0".to_vec(), ForeignKind::ArrowFile),
        (b"\xff\xff\xff\xff\x80\x01\0\0\x10".to_vec(), ForeignKind::ArrowStream),
        (b"\x93NUMPY\x01\0v\0".to_vec(), ForeignKind::Npy),
        (b"\x89HDF\r\n\x1a\n\0".to_vec(), ForeignKind::Hdf5),
        (b"SQLite format 3\0".to_vec(), ForeignKind::Sqlite),
        (b"\x08\x07\x12\x07pytorch\x1a\x05".to_vec(), ForeignKind::Onnx),
        (b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02".to_vec(), ForeignKind::SentencePiece),
        (b"IQ== 0\nIg== 1\nIw== 2\nJA== 3".to_vec(), ForeignKind::Tiktoken),
        (b"GGUF\x03\0\0\0".to_vec(), ForeignKind::Gguf),
        (b"tjgg\x03\0\0\0".to_vec(), ForeignKind::Ggml),
        (safetensors, ForeignKind::Safetensors),
        (b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), ForeignKind::LfsPointer),
        (b"\n <!DOCTYPE html>\n<html>".to_vec(), ForeignKind::Html),
        (b"<HTML lang=en>".to_vec(), ForeignKind::Html),
        (b"<?xml version=\"1.0\"?>".to_vec(), ForeignKind::Xml),
        (b"%PDF-1.7".to_vec(), ForeignKind::Pdf),
        (b"\xff\xfeh\0i\0".to_vec(), ForeignKind::Utf16),
        (b"\xff\xfe\0\0h\0\0\0".to_vec(), ForeignKind::Utf32),
    ]
}

#[test]
fn every_kind_is_recognised_by_its_first_bytes() {
    for (bytes, kind) in samples() {
        assert_eq!(ForeignKind::of(&bytes), Some(kind), "{:?}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn texts_tokenizers_and_recipes_are_nothing_foreign() {
    for text in [
        "",
        "Once upon a time.",
        "{\"text\": \"<html>\"}",
        "\u{feff}{\"text\": 1}",
        "stage = \"sft\"\n",
        "{\n  \"version\": \"1.0\",\n  \"model\": {}}",
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "GGUF is a format",
        "BZhang",
        "PAR1 and PAR2",
        "a 0\nb 1\nc 2\n",
        "version https://example.org",
        "\n\x0c",
    ] {
        assert_eq!(ForeignKind::of(text.as_bytes()), None, "{text:?}");
    }
}

#[test]
fn every_refusal_names_the_file_the_kind_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("given");
    let roles = [
        FileRole::Data,
        FileRole::Model,
        FileRole::Weights,
        FileRole::Tokenizer,
        FileRole::Recipe,
        FileRole::Template,
        FileRole::Json,
    ];
    for (bytes, kind) in samples() {
        fs_err::write(&path, &bytes).unwrap();
        for role in roles.into_iter().filter(|role| !role.takes(kind)) {
            let message = refuse(&path, role).unwrap_err().to_string();
            assert!(message.starts_with(&path.display().to_string()), "{message}");
            for part in ["expected ", kind.name(), "\nhint: "] {
                assert!(message.contains(part), "{part}: {message}");
            }
        }
    }
    assert!(refuse(&dir.path().join("absent"), FileRole::Data).is_ok(), "its reader says so");
    assert!(refuse(dir.path(), FileRole::Data).is_ok(), "a folder is no file");
}

#[test]
fn a_folder_without_a_model_says_what_it_holds() {
    let said = |files: &[(&str, &[u8])]| {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, bytes).unwrap();
        }
        missing_model(dir.path()).to_string()
    };
    for (name, word) in [
        ("adapter_config.json", "--adapter"),
        ("m.gguf", "m.gguf"),
        ("snapshots/abc/config.json", "snapshots/abc"),
        ("params.json", "transformers' layout"),
        ("pytorch_model.bin", "AutoModelForCausalLM"),
    ] {
        let message = said(&[(name, b"x")]);
        assert!(message.contains(word), "{name}: {message}");
    }
    assert!(!said(&[("notes.txt", b"x")]).contains("hint"));
    let hub = missing_model(Path::new("owner/name")).to_string();
    assert!(hub.contains("hf:owner/name"), "{hub}");
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("tokenizer.model"), b"x").unwrap();
    let tokenizer = missing_tokenizer(dir.path(), "none").to_string();
    assert!(tokenizer.contains("tokenizer.model") && tokenizer.contains("AutoTokenizer"));
}
