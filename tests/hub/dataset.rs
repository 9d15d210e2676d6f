//! Data sets of the hub: which files are chosen, and how they come.

use std::path::PathBuf;
use std::time::Duration;

use bitnet_train::hub::{HubDataset, HubError, HubSettings};

use super::server::{COMMIT, CONVERTED};
use super::{Bench, PATIENT, bench, bytes, names};

const TRAIN: &str = "data/train-00000-of-00002.parquet";
const MORE: &str = "data/train-00001-of-00002.parquet";

/// Files that hold their own names.
fn named(names: &[&'static str]) -> Vec<(&'static str, Vec<u8>)> {
    names.iter().map(|name| (*name, name.as_bytes().to_vec())).collect()
}

fn with_readme(readme: &str, names: &[&'static str]) -> Bench {
    let mut files = named(names);
    files.push(("README.md", format!("---\n{readme}\n---\n# Text").into_bytes()));
    bench(files)
}

fn dataset(text: &str) -> HubDataset {
    HubDataset::parse(text).unwrap().unwrap()
}

impl Bench {
    fn files(&self, text: &str) -> Result<Vec<PathBuf>, HubError> {
        self.settings.dataset(&dataset(text), PATIENT)
    }

    /// The chosen files by name, each of which is here and is what the hub has.
    fn chosen(&self, text: &str) -> Vec<String> {
        let folder = self.repository_of("datasets").join("snapshots");
        let name = |path: PathBuf| {
            let inside = path.strip_prefix(&folder).unwrap();
            let name = inside.iter().skip(1).collect::<PathBuf>().to_str().unwrap().to_owned();
            assert_eq!(fs_err::read_to_string(&path).unwrap(), name);
            name
        };
        self.files(text).unwrap().into_iter().map(name).collect()
    }

    fn refusal(&self, text: &str) -> String {
        self.files(text).unwrap_err().to_string()
    }

    fn repository_of(&self, kind: &str) -> PathBuf {
        self.settings.cache.join(format!("{kind}--owner--name"))
    }
}

#[test]
fn names_of_data_sets_are_parsed() {
    for (text, revision, config, split) in [
        ("hf-dataset:owner/name", "main", None, None),
        ("hf-dataset:owner/name/test", "main", None, Some("test")),
        ("hf-dataset:owner/name@v1/test", "v1", None, Some("test")),
        ("hf-dataset:owner/name@refs/pr/1", "refs/pr/1", None, None),
        ("hf-dataset:owner/name@refs/pr/1/test", "refs/pr/1", None, Some("test")),
        ("hf-dataset:owner/name:20231101.en", "main", Some("20231101.en"), None),
        ("hf-dataset:owner/name@a/b:en us/dev.x", "a/b", Some("en us"), Some("dev.x")),
    ] {
        let read = dataset(text);
        let parts = (read.config.as_deref(), read.split.as_deref());
        assert_eq!((&*read.repository.revision, parts), (revision, (config, split)), "{text}");
        assert_eq!((&*read.repository.name, read.to_string().as_str()), ("owner/name", text));
    }
    assert_eq!(HubDataset::parse("data/hf-dataset:a/b"), None);
}

#[test]
fn wrong_names_of_data_sets_are_refused() {
    for rest in [
        "",
        "a",
        "a/",
        "/b",
        "../b",
        "a/..",
        "a/b@",
        "a/b@..",
        "a/b@x/../y:c",
        "a/b:",
        "a/b:c/",
        "a/b:c/..",
        "a/b/",
        "a/b/c/d",
        "a/b:c:d",
        "a/b:c/d/e",
        "a/b:c\\d",
        "a/b?c",
        "a/b@/etc:c",
    ] {
        let message = HubDataset::parse(&format!("hf-dataset:{rest}")).unwrap().unwrap_err();
        assert!(message.contains("[@revision][:config][/split]\", got"), "{rest}: {message}");
    }
}

#[test]
fn names_of_files_tell_the_splits() {
    let test = "data/test-00000-of-00001.parquet";
    let layouts: &[(&[&'static str], &str, &[&str])] = &[
        (&[MORE, TRAIN, test], "train", &[TRAIN, MORE]),
        (&[MORE, TRAIN, test], "test", &[test]),
        (
            &["data/held.out-00000-of-00001-abc.parquet", TRAIN],
            "held.out",
            &["data/held.out-00000-of-00001-abc.parquet"],
        ),
        (
            &["en/train-00000-of-00001.parquet", "de/test.parquet"],
            "train",
            &["en/train-00000-of-00001.parquet"],
        ),
        (&["train.jsonl", "dev.jsonl", "LICENSE.txt"], "validation", &["dev.jsonl"]),
        (
            &["train/a.json", "train/test.json", "test_2/b.json"],
            "train",
            &["train/a.json", "train/test.json"],
        ),
        (&["train/a.json", "my-eval/b.json"], "test", &["my-eval/b.json"]),
        // `training` stands for itself, and `restrained` for nothing.
        (&["x_training_1.csv", "restrained.csv"], "train", &["x_training_1.csv"]),
        (
            &[
                "a.jsonl",
                "deep/b.jsonl.gz",
                "c.csv",
                "note.txt",
                ".hidden/d.jsonl",
                "dataset_infos.json",
            ],
            "train",
            &["a.jsonl", "deep/b.jsonl.gz"],
        ),
        // As many of one kind as of another.
        (&["a.csv", "b.parquet"], "train", &["b.parquet"]),
        (&["lang=en/a+b.jsonl"], "train", &["lang=en/a+b.jsonl"]),
    ];
    for (there, split, expected) in layouts {
        let chosen = bench(named(there)).chosen(&format!("hf-dataset:owner/name/{split}"));
        assert_eq!(chosen, *expected, "{there:?}");
    }
}

#[test]
fn a_config_without_a_readme_is_a_folder() {
    let bench = bench(named(&["en/train.jsonl", "en/test.jsonl", "de/train.jsonl"]));
    assert_eq!(bench.chosen("hf-dataset:owner/name:en"), ["en/train.jsonl"]);
    // The library does not tell folders apart by itself either.
    assert_eq!(bench.chosen("hf-dataset:owner/name"), ["de/train.jsonl", "en/train.jsonl"]);
    assert_eq!(bench.chosen("hf-dataset:owner/name:default/test"), ["en/test.jsonl"]);
    let message = bench.refusal("hf-dataset:owner/name:fr");
    assert!(
        message.ends_with("no such config; expected one of default, de, en; got \"fr\""),
        "{message}"
    );
}

#[test]
fn a_readme_tells_configs_and_splits() {
    let readme = "license: mit\nweird: [\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    \
         path: en/**.jsonl\n  - split: held\n    path: [\"x/[ab].jsonl\", x/c.jsonl]\n\
         - config_name: 2020\n  data_files: \"*.csv\"\n# more\n- config_name: all\n  default: true\n  \
         data_files:\n  - a.csv\n  - ./en/2/b.jsonl\n- config_name: dir\n  data_dir: sub\n\
         - config_name: both\n  data_dir: sub/\n  data_files: t*\nsize: 3";
    let bench = with_readme(
        readme,
        &[
            "a.csv",
            "deep/b.csv",
            "en/1.jsonl",
            "en/2/b.jsonl",
            "x/a.jsonl",
            "x/b.jsonl",
            "x/c.jsonl",
            "x/d.jsonl",
            "sub/train.jsonl",
            "sub/test.jsonl",
            "train.jsonl",
        ],
    );
    for (named, expected) in [
        (":en", vec!["en/1.jsonl", "en/2/b.jsonl"]),
        (":en/held", vec!["x/a.jsonl", "x/b.jsonl", "x/c.jsonl"]),
        (":2020", vec!["a.csv"]),
        (":dir", vec!["sub/train.jsonl"]),
        (":dir/test", vec!["sub/test.jsonl"]),
        (":both", vec!["sub/test.jsonl", "sub/train.jsonl"]),
    ] {
        assert_eq!(bench.chosen(&format!("hf-dataset:owner/name{named}")), expected, "{named}");
    }
    // Files of two kinds, one of each: JSON comes first.
    assert_eq!(bench.chosen("hf-dataset:owner/name"), ["en/2/b.jsonl"]);
    let message = bench.refusal("hf-dataset:owner/name:fr");
    assert!(message.ends_with("expected one of en, 2020, all, dir, both; got \"fr\""), "{message}");
    let message = bench.refusal("hf-dataset:owner/name:en/test");
    assert_eq!(
        message,
        "hf-dataset:owner/name:en/test: has no such split; expected one of held, train; got \"test\""
    );
}

#[test]
fn several_configs_and_none_named_are_listed() {
    let readme = |second: &str| {
        format!(
            "configs:\n- config_name: en\n  data_files: a.csv\n- config_name: {second}\n  data_files: b.csv"
        )
    };
    let bench = with_readme(&readme("de"), &["a.csv", "b.csv"]);
    let message = bench.refusal("hf-dataset:owner/name");
    let expected =
        "has several configs; expected one of them as hf-dataset:owner/name:CONFIG: en, de";
    assert!(message.ends_with(expected), "{message}");
    let bench = with_readme(&readme("default"), &["a.csv", "b.csv"]);
    assert_eq!(bench.chosen("hf-dataset:owner/name"), ["b.csv"]);
}

#[test]
fn a_readme_that_cannot_be_read_is_an_error() {
    for (readme, expected) in [
        ("configs: 3", "expected a list of configs"),
        ("configs:\n- config_name: en\n  data_files: {a: b}", "config \"en\" cannot be read"),
        ("configs:\n- config_name: en\n  data_files:\n  - split: train", "config \"en\" cannot"),
        ("configs:\n- [", "configs of README.md cannot be read: "),
        ("configs:\n- config_name: en\n  data_files: \"[a\"", "bad pattern \"[a\""),
    ] {
        let message = with_readme(readme, &["a.csv"]).refusal("hf-dataset:owner/name");
        assert!(message.contains(expected), "{readme}: {message}");
    }
}

#[test]
fn what_is_not_read_here_comes_from_the_converted_branch() {
    for there in [vec!["train.zip"], vec!["train.jsonl", "name.py"]] {
        let bench = bench(named(&there));
        let message = bench.refusal("hf-dataset:owner/name");
        assert!(message.contains("no file of data that is read here"), "{message}");
        bench.server.convert(named(&[
            "default/train/0000.parquet",
            "default/train/0001.parquet",
            "default/partial-test/0000.parquet",
        ]));
        let files = ["default/train/0000.parquet", "default/train/0001.parquet"];
        assert_eq!(bench.chosen("hf-dataset:owner/name"), files);
        let message = bench.refusal("hf-dataset:owner/name/test");
        assert!(message.ends_with("one of partial-test, train; got \"test\""), "{message}");
        let asked = bench.server.asked();
        assert_eq!(bench.chosen("hf-dataset:owner/name"), files);
        assert_eq!(bench.server.asked(), asked);
        // The branch is of `main`, so that another revision has no use of it.
        let message = bench.refusal("hf-dataset:owner/name@v1");
        assert!(message.ends_with("or .txt, got none"), "{message}");
        let refs = bench.repository_of("datasets").join("refs");
        let commit = fs_err::read_to_string(refs.join("refs/convert/parquet")).unwrap();
        assert_eq!(commit, CONVERTED);
    }
    let several = bench(named(&["a.zip"]));
    several.server.convert(named(&["de/train/0000.parquet", "en/train/0000.parquet"]));
    assert!(several.refusal("hf-dataset:owner/name").ends_with(":CONFIG: de, en"));
    assert_eq!(several.chosen("hf-dataset:owner/name:en"), ["en/train/0000.parquet"]);
}

#[test]
fn files_arrive_in_the_standard_layout_and_need_no_network_again() {
    let mut bench = bench(named(&[TRAIN, MORE, "README.md", "other.bin"]));
    let files = bench.files("hf-dataset:owner/name").unwrap();
    let repository = bench.repository_of("datasets");
    assert_eq!(names(&repository), ["blobs", "lists", "refs", "snapshots"]);
    assert_eq!(files[0], repository.join("snapshots").join(COMMIT).join(TRAIN));
    let blob = fs_err::canonicalize(&files[0]).unwrap();
    assert!(blob.starts_with(fs_err::canonicalize(repository.join("blobs")).unwrap()));
    assert_eq!(fs_err::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    assert!(!bench.server.asked().iter().any(|line| line.contains("other.bin")));
    let asked = bench.server.asked().len();
    bench.unplug();
    assert_eq!(bench.files("hf-dataset:owner/name").unwrap(), files);
    assert_eq!(bench.files(&format!("hf-dataset:owner/name@{COMMIT}")).unwrap(), files);
    bench.settings.offline = true;
    assert_eq!(bench.files("hf-dataset:owner/name").unwrap(), files);
    assert_eq!(bench.server.asked().len(), asked);
    fs_err::remove_file(&files[1]).unwrap();
    let message = bench.refusal("hf-dataset:owner/name");
    assert!(
        message.contains("HF_HUB_OFFLINE is set") && message.ends_with("and name its files"),
        "{message}"
    );
}

#[test]
fn all_splits_are_of_the_commit_that_came_first() {
    let bench = bench(named(&["train.jsonl", "test.jsonl"]));
    let train = bench.files("hf-dataset:owner/name").unwrap();
    bench.server.move_to(&"b".repeat(40));
    let test = bench.files("hf-dataset:owner/name/test").unwrap();
    assert_eq!(train[0].parent(), test[0].parent());
    let next = bench.files("hf-dataset:owner/name@next/test").unwrap();
    assert_ne!(next[0].parent(), test[0].parent());
    // The same bytes came once.
    assert_eq!(bench.server.starts("test.jsonl").len(), 1);
}

#[test]
fn a_download_of_data_that_breaks_off_goes_on() {
    let bench = bench(vec![(TRAIN, bytes(3_000_000, 1))]);
    bench.server.break_off(TRAIN, 5);
    let message = bench.refusal("hf-dataset:owner/name");
    assert!(message.contains(&format!("the download of {TRAIN} broke off (")), "{message}");
    assert!(!bench.repository_of("datasets").join("refs/main").exists());
    let files = bench.files("hf-dataset:owner/name").unwrap();
    assert_eq!(fs_err::read(&files[0]).unwrap(), bytes(3_000_000, 1));
    let starts = bench.server.starts(TRAIN);
    assert!(starts.len() == 6 && starts.is_sorted() && starts[4] > 0, "{starts:?}");
}

#[test]
fn refusals_of_data_sets_ask_for_a_token() {
    let mut bench = bench(named(&["train.jsonl"]));
    bench.server.require_token("hf_right");
    let message = bench.refusal("hf-dataset:owner/name");
    assert!(message.contains("(status 401)") && message.contains("HF_TOKEN"), "{message}");
    bench.settings.token = Some("hf_right".to_owned());
    assert_eq!(bench.chosen("hf-dataset:owner/name"), ["train.jsonl"]);
    let message = bench.refusal("hf-dataset:owner/other");
    let end = "no such repository or revision on the hub (status 404)";
    assert_eq!(message, format!("hf-dataset:owner/other: {end}"));
}

#[test]
fn hostile_names_of_files_are_never_asked_for() {
    for name in ["../train.jsonl", "a/../../train.jsonl", ".hidden/train.jsonl"] {
        let bench = bench(named(&[name, "train.jsonl"]));
        assert_eq!(bench.chosen("hf-dataset:owner/name"), ["train.jsonl"]);
        assert!(
            !bench.server.asked().iter().any(|line| line.contains("..") || line.contains("/."))
        );
    }
    for name in [
        "/etc/train.jsonl",
        "a\\b/train.jsonl",
        "a/b..c/train.jsonl",
        "a//train.jsonl",
        "C:/train.jsonl",
        "train.#.jsonl",
        "train.%2e.jsonl",
        "a b/train.jsonl",
        "train.jsonl?x.jsonl",
        "a\0/train.jsonl",
    ] {
        let bench = bench(named(&[name, "train.jsonl"]));
        let message = bench.refusal("hf-dataset:owner/name");
        assert!(message.contains("unexpected answer for the list of files: "), "{name}: {message}");
        assert_eq!(bench.server.asked().len(), 1, "{:?}", bench.server.asked());
        // The list in the cache is not trusted either.
        let offline = HubSettings { offline: true, ..bench.settings.clone() };
        let again = offline.dataset(&dataset(&format!("hf-dataset:owner/name@{COMMIT}")), PATIENT);
        assert!(matches!(again, Err(HubError::Answer { .. })), "{again:?}");
    }
    let moved = bench(named(&["train.jsonl"]));
    moved.server.move_to("../../elsewhere");
    assert!(moved.refusal("hf-dataset:owner/name").contains("sha is \"../../elsewhere\""));
    assert_eq!(names(&moved.settings.cache), [".locks"]);
}

#[test]
fn several_processes_bring_a_file_once() {
    let bench = bench(named(&["train.jsonl"]));
    bench.server.break_off("train.jsonl", 1);
    let slow = HubSettings { pause: Duration::from_millis(300), ..bench.settings.clone() };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| slow.dataset(&dataset("hf-dataset:owner/name"), PATIENT).unwrap());
        }
    });
    assert_eq!(bench.server.starts("train.jsonl").len(), 2);
}
