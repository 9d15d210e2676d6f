//! Tests of the token cache: what is built when, and what is left behind.

use super::*;
use crate::fixtures::{byte_tokenizer, cached, data_outside_the_repository};
use crate::{
    BadRows, DocumentSource, ReadingRules, RowSelection, SplitSide, TokenFiles, TokenType,
};
use bitnet_text::Tokenizer;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

fn source(texts: &[&str]) -> DocumentSource {
    DocumentSource::in_memory("test", texts.iter().map(ToString::to_string).collect())
}

fn entries(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs_err::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().into_owned()
    };
    fs_err::read_dir(dir).unwrap().map(name).collect()
}

fn tokens(cache: &TokenCache, document: usize) -> Vec<i32> {
    let mut tokens = Vec::new();
    cache.extend(document, 0..cache.length(document) as usize, &mut tokens);
    tokens
}

#[test]
fn documents_stand_between_bos_and_eos_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let cache = cached(dir.path(), &source(&["ab", "", "é"]), &byte_tokenizer()).unwrap();
    assert_eq!(tokens(&cache, 0), [256, 64, 65, 257]);
    assert_eq!((tokens(&cache, 1).len(), cache.documents()), (4, 2));
    let statistics = cache.statistics();
    assert_eq!((statistics.documents, statistics.tokens, statistics.bytes), (2, 8, 4));
    assert_eq!((statistics.empty_documents, cache.location(1).line), (1, 3));
    assert_eq!(cache.origin(), &CacheOrigin::Built);
}

#[test]
fn files_are_named_as_they_were_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, whole) = (dir.path().join("a.jsonl"), dir.path().join("b.txt"));
    fs_err::write(&rows, "\n{\"text\":\"x\"}\n").unwrap();
    fs_err::write(&whole, "y").unwrap();
    let source = DocumentSource::files(vec![rows.clone(), whole.clone()]);
    let cache = cached(&dir.path().join("cache"), &source, &byte_tokenizer()).unwrap();
    let places = [0, 1].map(|document| cache.location(document).to_string());
    assert_eq!(places, [format!("{}:2", rows.display()), format!("{}:1", whole.display())]);
    assert_eq!(cache.fingerprint(), source.fingerprint(&|| false).unwrap());
}

#[test]
fn a_second_opening_reuses_the_cache_and_other_data_or_tokenizer_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let origin = |texts: &[&str], tokenizer: &Tokenizer| {
        cached(dir.path(), &source(texts), tokenizer).unwrap().origin().clone()
    };
    let tokenizer = byte_tokenizer();
    assert_eq!(origin(&["ab"], &tokenizer), CacheOrigin::Built);
    assert_eq!(origin(&["ab"], &tokenizer), CacheOrigin::Reused);
    assert_eq!(origin(&["ba"], &tokenizer), CacheOrigin::Built);
    let mut json = tokenizer.json().to_vec();
    json.push(b' ');
    let other = Tokenizer::from_bytes(Path::new("t.json"), &json).unwrap();
    assert_eq!(origin(&["ab"], &other), CacheOrigin::Built);
}

#[test]
fn a_damaged_cache_is_rebuilt_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (source, tokenizer) = (source(&["hello", "world"]), byte_tokenizer());
    let first = tokens(&cached(dir.path(), &source, &tokenizer).unwrap(), 1);
    let name = entries(dir.path()).into_iter().find(|name| !name.ends_with("lock")).unwrap();
    let path = dir.path().join(name).join("tokens.bin");
    let good = fs_err::read(&path).unwrap();
    for bad in [&good[..good.len() - 2], &[0; 28][..], b""] {
        fs_err::write(&path, bad).unwrap();
        let cache = cached(dir.path(), &source, &tokenizer).unwrap();
        let CacheOrigin::Rebuilt { why } = cache.origin() else { panic!("it was damaged") };
        assert!(why.starts_with("tokens.bin: "), "{why}");
        assert_eq!(
            (tokens(&cache, 1), fs_err::read(&path).unwrap()),
            (first.clone(), good.clone())
        );
    }
    assert_eq!(entries(dir.path()).len(), 2, "the cache and its lock");
}

#[test]
fn leftovers_of_a_killed_process_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (source, tokenizer) = (source(&["x"]), byte_tokenizer());
    cached(dir.path(), &source, &tokenizer).unwrap();
    let name = entries(dir.path()).into_iter().find(|name| !name.ends_with("lock")).unwrap();
    fs_err::rename(dir.path().join(&name), dir.path().join(format!("{name}.tmp-1"))).unwrap();
    assert_eq!(cached(dir.path(), &source, &tokenizer).unwrap().origin(), &CacheOrigin::Built);
    assert_eq!(entries(dir.path()).len(), 2);
}

#[test]
fn an_interruption_at_any_moment_leaves_nothing_but_the_lock_file() {
    let dir = tempfile::tempdir().unwrap();
    let source = DocumentSource::generated("k".into(), 3, |_| "x".into());
    let open = |polls: usize| {
        let left = AtomicUsize::new(polls);
        let interrupted = || left.fetch_sub(1, Ordering::Relaxed) == 0;
        TokenCache::open_or_build(&CacheRequest {
            interrupted: &interrupted,
            ..CacheRequest::new(dir.path(), &source, &byte_tokenizer())
        })
    };
    // While waiting for the lock, before the first batch, after it.
    for polls in 0..3 {
        assert!(matches!(open(polls), Err(DataError::Interrupted)), "{polls}");
        assert!(entries(dir.path()).iter().all(|name| name.ends_with("lock")));
    }
    assert_eq!(open(3).unwrap().documents(), 3);
}

#[test]
fn progress_reaches_the_size_of_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs_err::write(&path, "{\"text\":\"x\"}\n\n").unwrap();
    let last = std::cell::Cell::new((0, 0));
    let (cache, source) = (dir.path().join("cache"), DocumentSource::files(vec![path]));
    TokenCache::open_or_build(&CacheRequest {
        progress: &|done, total| last.set((done, total)),
        ..CacheRequest::new(&cache, &source, &byte_tokenizer())
    })
    .unwrap();
    assert_eq!(last.get(), (14, 14));
}

#[test]
fn a_set_of_empty_documents_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs_err::write(&path, "{\"text\":\"\"}\n").unwrap();
    let source = DocumentSource::files(vec![path]);
    let error = cached(&dir.path().join("cache"), &source, &byte_tokenizer()).unwrap_err();
    assert!(matches!(error, DataError::NoDocuments { empty: 1, .. }));
    assert_eq!(entries(&dir.path().join("cache")).len(), 1);
}

#[test]
fn a_text_that_is_one_document_cannot_be_split_and_the_message_says_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs_err::write(&path, "one document").unwrap();
    let on_side = |held_out| {
        let source = DocumentSource::files(vec![path.clone()]);
        let side = Some(SplitSide { share: 0.3, seed: 1, held_out });
        let source = source.selecting(|selection| selection.side = side);
        cached(&dir.path().join("cache"), &source, &byte_tokenizer())
    };
    // One of the sides has it.
    let error = [true, false].into_iter().find_map(|held_out| on_side(held_out).err()).unwrap();
    assert!(error.to_string().contains("hint: too few rows for a held-out share"), "{error}");
}

#[test]
fn files_that_change_while_they_are_read_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    fs_err::write(&path, "before").unwrap();
    let source = DocumentSource::files(vec![path.clone()]);
    let error = TokenCache::open_or_build(&CacheRequest {
        progress: &|_, _| fs_err::write(&path, "after").unwrap(),
        ..CacheRequest::new(&dir.path().join("cache"), &source, &byte_tokenizer())
    })
    .unwrap_err();
    assert!(matches!(error, DataError::Changed { .. }), "{error}");
}

#[test]
fn lent_threads_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let source =
        DocumentSource::generated("k".into(), 5_000, |i| "words and ".repeat(i as usize % 99));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let [own, lent] = [("own", None), ("lent", Some(&pool))].map(|(name, pool)| {
        let tokenizer = byte_tokenizer();
        let dir = dir.path().join(name);
        let request = CacheRequest { pool, ..CacheRequest::new(&dir, &source, &tokenizer) };
        let cache = TokenCache::open_or_build(&request).unwrap();
        let folder = dir.join(&cache.key()[..NAME_DIGITS]);
        ["tokens.bin", "documents.bin", "meta.json"]
            .map(|file| fs_err::read(folder.join(file)).unwrap())
    });
    assert!(own == lent);
}

#[test]
fn of_many_at_once_one_builds_and_the_others_use_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let (source, tokenizer) = (source(&["many", "at", "once"]), byte_tokenizer());
    let built = AtomicUsize::new(0);
    let open = || {
        let cache = cached(dir.path(), &source, &tokenizer).unwrap();
        built.fetch_add(usize::from(*cache.origin() == CacheOrigin::Built), Ordering::Relaxed);
        assert_eq!(cache.statistics().tokens, 16);
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(open))));
    assert_eq!(built.into_inner(), 1);
}

/// The manifest counts text without BOS and EOS; a cache holds both for each document. Only
/// files whose size is still the one in the manifest are compared.
#[test]
fn data_outside_the_repository_has_the_token_counts_of_its_manifest() {
    let Some(shared) = data_outside_the_repository() else { return };
    let path = shared.join("tokenizers/bpe4096/tokenizer.json");
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (file, documents, listed) in [
        ("val_general.jsonl", 41, 70_489),
        ("general-00004-of-00005.jsonl", 518, 990_199),
        ("tinyshakespeare.txt", 1, 405_693),
    ] {
        let source = DocumentSource::files(vec![shared.join("pretrain").join(file)]);
        let begun = Instant::now();
        let statistics = cached(dir.path(), &source, &tokenizer).unwrap().statistics();
        eprintln!("{file}: {statistics:?} in {:?}", begun.elapsed());
        let counted = statistics.tokens - 2 * documents;
        assert_eq!((statistics.documents, counted), (documents, listed), "{file}");
    }
}

#[test]
fn bad_rows_are_skipped_counted_and_listed_up_to_a_share() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs_err::write(
        &path,
        "{\"text\":\"x\"}\n{\"text\":3}\n{\"text\"\n{\"text\":\"\"}\n{\"text\":\"y\"}\n",
    )
    .unwrap();
    let open = |bad_rows, max_bad_share| {
        let rules = ReadingRules { bad_rows, max_bad_share, ..ReadingRules::default() };
        let source = DocumentSource::Files(vec![path.clone()], rules);
        cached(&dir.path().join("cache"), &source, &byte_tokenizer())
    };
    let error = open(BadRows::Error, 0.0).unwrap_err().to_string();
    assert!(error.contains("a.jsonl:2 [text]: wrong value"), "{error}");
    let cache = open(BadRows::Skip, 0.4).unwrap();
    let report = cache.report();
    assert_eq!((report.rows, report.bad, report.empty, cache.documents()), (5, 2, 1, 2));
    assert!(report.examples[1].contains("a.jsonl:3: invalid JSON"), "{report:?}");
    assert_eq!(report.lines()[0], "2 rows of text");
    assert!(report.lines()[1].starts_with("2 bad rows (40.000 %) skipped"), "{report:?}");
    // The cache is there, and the limit holds all the same.
    let error = open(BadRows::Skip, 0.3).unwrap_err().to_string();
    assert!(error.contains("2 of 5 rows cannot be used") && error.contains("a.jsonl:2"), "{error}");
}

#[test]
fn a_set_uses_each_text_once_and_one_side_of_a_split() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    let row = |n: u32| format!("{{\"text\":\"row {}\"}}\n", n % 50);
    fs_err::write(&path, (0..100).map(row).collect::<String>()).unwrap();
    let of = |selection| {
        let rules = ReadingRules { selection, ..ReadingRules::default() };
        let source = DocumentSource::Files(vec![path.clone()], rules);
        cached(&dir.path().join("cache"), &source, &byte_tokenizer()).unwrap()
    };
    let side = |held_out| RowSelection {
        deduplicated: true,
        side: Some(SplitSide { share: 0.3, seed: 1, held_out }),
        ..RowSelection::default()
    };
    let (train, held_out) = (of(side(false)), of(side(true)));
    assert_eq!(train.documents() + held_out.documents(), 50);
    assert_eq!(train.report().other_side, 2 * held_out.documents() as u64);
    assert_eq!(train.report().duplicates, train.documents() as u64);
    let long = of(RowSelection { min_chars: 6, ..RowSelection::default() });
    assert_eq!((long.documents(), long.report().filtered), (80, 20));
}

#[test]
fn token_files_become_documents_and_a_wrong_id_is_reported_with_its_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.bin");
    let of = |ids: &[u16], document_separator| {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        fs_err::write(&path, bytes).unwrap();
        let mut rules = ReadingRules::default();
        let dtype = Some(TokenType::U16);
        rules.files.tokens = Some(TokenFiles { dtype, document_separator });
        let source = DocumentSource::Files(vec![path.clone()], rules);
        cached(&dir.path().join("cache"), &source, &byte_tokenizer())
    };
    let cache = of(&[64, 65, 257, 66, 257], Some(257)).unwrap();
    assert_eq!(tokens(&cache, 0), [256, 64, 65, 257], "as the text \"ab\" would be");
    assert_eq!(tokens(&cache, 1), [256, 66, 257]);
    assert_eq!((cache.location(1).line, cache.statistics().bytes), (6, 3));
    assert_eq!(tokens(&of(&[64, 65, 66], None).unwrap(), 0), [64, 65, 66]);
    let error = of(&[64, 257, 65, 999], Some(257)).unwrap_err().to_string();
    let expected =
        format!("{}:6: token id out of range; expected below 264, got 999", path.display());
    assert_eq!(error, expected);
}

#[test]
fn every_form_of_file_gives_the_same_cache_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let texts: Vec<String> =
        (0..400_u32).map(|n| format!("row {n} ").repeat(n as usize % 97)).collect();
    let rows: Vec<String> =
        texts.iter().map(|text| serde_json::json!({"text": text}).to_string()).collect();
    let lines = rows.join("\n");
    fs_err::write(path("a.jsonl"), &lines).unwrap();
    fs_err::write(path("a.json"), format!("[{}]", rows.join(","))).unwrap();
    fs_err::write(path("a.jsonl.zst"), zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    fs_err::write(path("a.parquet"), parquet_of_texts(&texts)).unwrap();
    let tokenizer = byte_tokenizer();
    let mut first: Option<[Vec<u8>; 2]> = None;
    for name in ["a.jsonl", "a.json", "a.jsonl.zst", "a.parquet"] {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let folder = path(&format!("{name}-{threads}"));
            let source = DocumentSource::files(vec![path(name)]);
            pool.install(|| cached(&folder, &source, &tokenizer)).unwrap();
            let name = entries(&folder).into_iter().find(|name| !name.ends_with("lock")).unwrap();
            let read = |file| fs_err::read(folder.join(&name).join(file)).unwrap();
            let found = ["tokens.bin", "documents.bin"].map(read);
            assert!(*first.get_or_insert_with(|| found.clone()) == found, "{name} {threads}");
        }
    }
}

/// A file of one column `text`, in groups of 64 rows.
fn parquet_of_texts(texts: &[&str]) -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    let schema = "message rows { REQUIRED BYTE_ARRAY text (STRING); }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    for texts in texts.chunks(64) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}
