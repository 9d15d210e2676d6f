//! Ids and texts of whole tokenizers, against the golden ones and against each other.

use super::*;
use crate::test_tokenizers::{
    load as sample, paragraphs, sentence_piece, tiny, tokenizers_outside_the_repository, trained,
};
use serde_json::{Value, json};

#[test]
fn the_bytes_of_tokens_make_the_text_and_special_tokens_are_spelled() {
    for tokenizer in [trained(300), sample(&sentence_piece())] {
        let ids = tokenizer.encode("where is é?").unwrap();
        assert_eq!(tokenizer.decode_with_special(&ids), tokenizer.decode(&ids));
        let end = tokenizer.eos().unwrap();
        let spelled = tokenizer.special_spelling(end).unwrap();
        assert_eq!(tokenizer.token_bytes(end), spelled.as_bytes());
        assert_eq!(tokenizer.special_id(spelled), Some(end));
        assert_eq!(tokenizer.special_id("where"), None);
        let all = [&ids[..], &[end]].concat();
        assert_eq!(tokenizer.decode_with_special(&all), tokenizer.decode(&ids) + spelled);
        assert!(tokenizer.token_bytes(9_999_999).is_empty());
    }
    let tokenizer = trained(300);
    let ids = tokenizer.encode("where is é?").unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).collect();
    assert_eq!(bytes, "where is é?".as_bytes());
}

fn golden(folder: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(folder.join("golden.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn tokenizers_outside_the_repository_give_the_golden_ids_and_texts() {
    let Some(shared) = tokenizers_outside_the_repository() else { return };
    for name in ["bpe4096", "bpe512", "gpt2", "dolma2"] {
        let tokenizer = Tokenizer::from_file(&shared.join(name).join("tokenizer.json")).unwrap();
        let rows = golden(&shared.join(name));
        assert_eq!(rows.len(), 52);
        for row in rows {
            let text = row["text"].as_str().unwrap();
            let ids = ids(&row["ids"]);
            let kept = ids.iter().filter(|id| tokenizer.plain_token(**id).is_none()).count();
            if kept == 0 {
                assert_eq!(tokenizer.encode(text).unwrap(), ids, "{name}: {text:?}");
                assert_eq!(tokenizer.decode(&ids), row["decoded_keep_special"], "{name}");
            }
            // Rows that spell special tokens are golden only for the library that reads them.
            let mut reading = tokenizer.inner.clone();
            reading.set_encode_special_tokens(false);
            assert_eq!(reading.encode_fast(text, false).unwrap().get_ids(), ids, "{name}");
            let decoded = reading.decode(&ids, false).unwrap();
            assert_eq!(decoded, row["decoded_keep_special"], "{name}");
        }
    }
}

#[test]
fn tokenizers_outside_the_repository_load_whole_and_their_template_is_bos_then_text() {
    let Some(shared) = tokenizers_outside_the_repository() else { return };
    for (name, size, bos, eos, eot) in [
        ("bpe4096", 4096, Some(4088), Some(4089), Some(4095)),
        ("bpe512", 512, Some(504), Some(505), Some(511)),
        ("gpt2", 50257, None, Some(50256), None),
        ("dolma2", 100_278, None, Some(100_257), None),
    ] {
        let path = shared.join(name).join("tokenizer.json");
        let tokenizer = Tokenizer::from_file(&path).unwrap();
        let got = (tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos(), tokenizer.eot());
        assert_eq!(got, (size, bos, eos, eot), "{name}");
        assert_eq!(tokenizer.json(), fs_err::read(&path).unwrap());
        for row in golden(&shared.join(name)) {
            let with: Vec<u32> = bos.into_iter().chain(ids(&row["ids"])).collect();
            assert_eq!(with, ids(&row["ids_with_special_tokens"]), "{name}");
        }
    }
}

#[test]
fn every_kind_of_text_survives_the_round_trip() {
    let tokenizer = trained(400);
    for text in [
        "",
        "plain ASCII, it's 1234567!",
        "emoji 👩\u{200d}👩\u{200d}👧 🏳\u{fe0f}\u{200d}🌈",
        "combining e\u{301} a\u{308}\u{323}",
        "lines\r\nand\rand\n\n  spaces   \r\n ",
        "separators\u{2028}\u{2029}\u{85}\u{a0}\u{3000}\u{feff}",
        "<|begin_of_text|><|eot_id|> <s>",
        "\0\u{1}\u{7f}\u{10ffff}",
    ] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text);
    }
}

#[test]
fn text_never_becomes_a_special_token() {
    let tokenizer = trained(400);
    for text in ["<|eot_id|>", "a<|eot_id|>b", "<|begin_of_text|><|end_of_text|>", " <|eom_id|> "] {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|id| *id < 400 - 8), "{text}: {ids:?}");
    }
}

#[test]
fn a_document_stands_between_bos_and_eos() {
    let tokenizer = trained(264);
    assert_eq!(tokenizer.encode_document("ab").unwrap(), [256, 64, 65, 257]);
    assert_eq!(sample(&tiny()).encode_document("ab").unwrap(), [2, 3]);
}

#[test]
fn decoding_skips_special_and_unknown_ids() {
    let tokenizer = trained(264);
    assert_eq!(tokenizer.decode(&[256, 64, 263, 65, 9999, 257]), "ab");
    assert_eq!(tokenizer.decode(&[]), "");
}

#[test]
fn many_threads_may_encode_at_once() {
    let tokenizer = trained(400);
    let texts: Vec<String> = paragraphs().collect();
    let one = |text: &String| tokenizer.encode(text).unwrap();
    let expected: Vec<Vec<u32>> = texts.iter().map(one).collect();
    std::thread::scope(|scope| {
        let work = || assert_eq!(texts.iter().map(one).collect::<Vec<_>>(), expected);
        (0..4).for_each(|_| drop(scope.spawn(work)));
    });
}

#[test]
fn truncation_and_padding_in_the_file_are_not_used() {
    let mut file = tiny();
    file["truncation"] = json!({
        "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0
    });
    file["padding"] = json!({
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a"
    });
    assert_eq!(sample(&file).encode("abba").unwrap(), [2, 1, 0]);
}

#[test]
fn endless_whitespace_is_an_error_and_not_other_ids() {
    assert_eq!(
        trained(264).encode(&(" ".repeat(900_001) + "x")).unwrap_err().to_string(),
        "trained.json: cannot encode the text: whitespace without end; \
         expected at most 900000 characters in a row, got more"
    );
}

#[test]
fn a_sentence_piece_tokenizer_loads_and_finds_its_control_tokens() {
    let tokenizer = sample(&sentence_piece());
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.eot()), (Some(1), Some(2), None));
    let ids = tokenizer.encode("a </s> ß日").unwrap();
    assert!(!ids.contains(&2));
    assert_eq!(tokenizer.decode(&ids), "a </s> ß日");
}

#[test]
fn a_missing_file_is_named() {
    let text = Tokenizer::from_file(Path::new("no/tokenizer.json")).unwrap_err().to_string();
    assert!(text.contains("no/tokenizer.json"), "{text}");
}
