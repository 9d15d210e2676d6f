//! Whole files: separated by each filter, counted, and refused.

use std::path::PathBuf;

use super::*;
use crate::fixtures::byte_tokenizer;
use crate::{BadRows, DataError, DocumentSource, ReadingRules};

fn files(contents: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let write = |(name, text): &(&str, &str)| {
        let path = dir.path().join(name);
        fs_err::write(&path, text).unwrap();
        path
    };
    let paths = contents.iter().map(write).collect();
    (dir, paths)
}

fn request(source: &DocumentSource) -> CorpusRequest<'_> {
    CorpusRequest { source, interrupted: &|| false, progress: &|_, _| {} }
}

#[test]
fn rows_go_as_they_were_read_to_the_kept_or_the_left_out() {
    let (dir, paths) = files(&[
        ("a.jsonl", "{\"text\": \"one\", \"id\": 1}\n{\"text\": \" one \"}\n"),
        ("b.jsonl", "{\"text\": \"two\"}\n{\"text\":\"one\"}\n"),
    ]);
    let (kept, left) = (dir.path().join("kept.jsonl"), dir.path().join("left.jsonl"));
    let source = DocumentSource::files(paths);
    let outputs = RowOutputs { kept: Some(&kept), left_out: Some(&left) };
    let mut listed = Vec::new();
    let mut list = |row: LeftOut| listed.push(format!("{} {}", row.place, row.reason));
    let counts =
        separate(&request(&source), &mut ExactDuplicates::default(), outputs, &mut list).unwrap();
    assert_eq!((counts.kept, counts.left_out, counts.report.rows), (2, 2, 4));
    let dir = dir.path().display();
    let expected = [(1, 2), (2, 2)].map(|(file, line)| {
        let name = if file == 1 { "a" } else { "b" };
        format!("{dir}/{name}.jsonl:{line} as {dir}/a.jsonl:1")
    });
    assert_eq!(listed, expected);
    let read = |path| fs_err::read_to_string(path).unwrap();
    assert_eq!(read(kept), "{\"text\": \"one\", \"id\": 1}\n{\"text\": \"two\"}\n");
    assert_eq!(read(left), "{\"text\": \" one \"}\n{\"text\":\"one\"}\n");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let row = |n: u32| format!("{{\"text\":\"row {} of many more words than five\"}}\n", n % 700);
    let (_dir, paths) = files(&[("a.jsonl", &(0..3000).map(row).collect::<String>())]);
    let source = DocumentSource::files(paths);
    let listed = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (mut rows, mut filter) = (Vec::new(), NearDuplicates::new(0.9));
            let outputs = RowOutputs::default();
            separate(&request(&source), &mut filter, outputs, &mut |row| rows.push(row)).unwrap();
            rows
        })
    };
    let one = listed(1);
    assert!(one.len() >= 2300, "each text comes at least four times: {}", one.len());
    assert_eq!(one, listed(3));
}

#[test]
fn statistics_count_rows_bytes_and_tokens_by_file() {
    let (_dir, paths) = files(&[
        ("a.jsonl", "{\"text\":\"abc\"}\n{\"text\":\"\"}\n{\"question\":\"q\",\"answer\":\"a\"}\n"),
        ("b.txt", "abcdefgh"),
    ]);
    let source = DocumentSource::files(paths);
    let tokenizer = byte_tokenizer();
    for tokenizer in [None, Some(&tokenizer)] {
        let CorpusStatistics { report, files, lengths, longest, .. } =
            statistics(&request(&source), tokenizer).unwrap();
        assert_eq!((report.rows, longest, report.shapes["question, answer"]), (4, 8, 1));
        let bytes: Vec<_> = files.iter().map(|file| (file.rows, file.bytes)).collect();
        assert_eq!(bytes, [(3, 6), (1, 8)]);
        let tokens = if tokenizer.is_some() { [6, 8] } else { [0, 0] };
        assert_eq!([files[0].tokens, files[1].tokens], tokens, "a token a byte");
        let bins: Vec<_> = lengths.iter().map(|bin| (bin.from, bin.rows)).collect();
        assert_eq!(bins, [(0, 1), (1, 0), (2, 2), (4, 0), (8, 1)]);
    }
}

#[test]
fn bad_rows_are_listed_with_their_share_and_reading_ends_after_ten() {
    let good = "{\"text\":\"a\"}\n".repeat(6);
    let refused = |bad: usize, rules: ReadingRules| {
        let (_dir, paths) = files(&[("a.jsonl", &(good.clone() + &"{\"x\":1}\n".repeat(bad)))]);
        statistics(&request(&DocumentSource::Files(paths, rules)), None).unwrap_err()
    };
    assert!(matches!(refused(1, ReadingRules::default()), DataError::Field { line: 7, .. }));
    let two = refused(2, ReadingRules::default()).to_string();
    assert!(two.contains("a.jsonl:7 ") && two.contains("a.jsonl:8 "), "{two}");
    assert!(two.contains("\n2 of the 8 rows read cannot be used (a share of 0.2500)"), "{two}");
    let many = refused(40, ReadingRules::default()).to_string();
    assert_eq!(many.matches("a.jsonl:").count(), 10, "{many}");
    assert!(many.contains("rows read so far cannot"), "{many}");
    let skipped =
        ReadingRules { bad_rows: BadRows::Skip, max_bad_share: 0.1, ..ReadingRules::default() };
    assert!(matches!(refused(2, skipped), DataError::TooManyBad { bad: 2, rows: 8, .. }));
}

#[test]
fn an_interruption_leaves_no_file() {
    let (dir, paths) = files(&[("a.jsonl", "{\"text\":\"a\"}\n")]);
    let source = DocumentSource::files(paths);
    let request = CorpusRequest { interrupted: &|| true, ..request(&source) };
    let stopped = convert(&request, &dir.path().join("b.jsonl"));
    assert!(matches!(stopped, Err(DataError::Interrupted)));
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1);
}
