//! How a byte-level tokenizer cuts text into words before merging: the patterns that llama.cpp
//! knows by name, and the same as a `pre_tokenizer` of Hugging Face.
//!
//! A GGUF file names its pattern and does not describe it. A pattern is a list of regular
//! expressions. Each is applied to the pieces that the one before left: what matches becomes a
//! piece of its own, and so does what lies between two matches.

use serde_json::{Value, json};

use crate::train::SPLIT;

/// One way of cutting text into words: a row of the table below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitPattern(usize);

struct Row {
    /// llama.cpp's names. The first is written.
    names: &'static [&'static str],
    /// Applied one after the other.
    splits: &'static [&'static str],
    /// Whether a word that is a token stays one, whatever the merges say.
    ignores_merges: bool,
    /// Whether a text begins with BOS where the file does not say.
    adds_bos: bool,
}

pub(crate) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
pub(crate) const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Runs of punctuation and of the other signs of ASCII, as Hugging Face's `Punctuation` finds them.
const SIGNS: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const EVERY_DIGIT: &str = r"\p{N}";
const THREE_DIGITS: &str = r"\p{N}{1,3}";
const THREE_ASCII_DIGITS: &str = "[0-9][0-9][0-9]";
const CHINESE_AND_JAPANESE: &str = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+";
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const SPARK: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
);
/// Words of the scripts with two cases, as `DeepSeek` lists them.
const TWO_CASES: &str = concat!(
    r"\s?[",
    r"A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}",
    r"\x{295}-\x{2af}\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}",
    r"\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}",
    r"\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}",
    r"\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}",
    r"\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}",
    r"\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}",
    r"\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}",
    r"\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}",
    r"\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}",
    r"\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}",
    r"\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}",
    r"\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}",
    r"\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}",
    r"\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}",
    r"\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}",
    r"]+"
);
/// llama.cpp takes no space for a sign of these, whatever the ranges hold.
const EAST_ASIAN: &str = r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}&&\S]+";
const SENTENCE_PARTS: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
/// Words of capitals and small letters, with an English ending. llama.cpp knows only the cases of
/// ASCII.
const CASED: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const CASED_WITH_MARKS: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}&&[^a-z]]*[\p{L}\p{M}&&[^A-Z]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}&&[^a-z]]+[\p{L}\p{M}&&[^A-Z]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const YOUTU: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const TABLE: &[Row] = &[
    Row {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon_e",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        splits: &[SPLIT],
        ignores_merges: true,
        adds_bos: true,
    },
    Row { names: &["glm4", "glm5"], splits: &[SPLIT], ignores_merges: true, adds_bos: false },
    row(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[SPLIT]),
    row(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        &[GPT2],
    ),
    row(
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        &[EVERY_DIGIT, GPT2],
    ),
    row(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[QWEN2],
    ),
    row(
        &["qwen35"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    row(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", THREE_ASCII_DIGITS]),
    row(&["falcon"], &[SIGNS, GPT2, THREE_ASCII_DIGITS]),
    row(
        &["deepseek-llm"],
        &[
            r"[\r\n]",
            TWO_CASES,
            r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3001}-\x{3002}]+",
            r"\s+$",
            EAST_ASIAN,
            r"\p{N}+",
        ],
    ),
    row(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, EVERY_DIGIT]),
    row(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[THREE_DIGITS, CHINESE_AND_JAPANESE, DEEPSEEK3],
    ),
    row(&["spark2_5"], &[THREE_DIGITS, CHINESE_AND_JAPANESE, SPARK, EVERY_DIGIT]),
    Row {
        names: &["youtu"],
        splits: &[
            concat!(
                r"[\x{ac00}-\x{d7a3}\x{3131}-\x{318e}]+",
                r"|[\x{ff01}\x{2026}\x{201c}\x{201d}\x{2018}\x{2019}\x{2014}\x{ff1a}\x{ff1b}\x{ff0c}",
                r"\x{3001}-\x{303f}\x{fe30}-\x{fe4f}]+",
                r"|[\x{3105}-\x{312f}]+|[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+"
            ),
            YOUTU,
        ],
        ignores_merges: true,
        adds_bos: false,
    },
    row(&["poro-chat", "bloom", "gpt3-finnish"], &[SENTENCE_PARTS]),
    row(&["viking"], &[SENTENCE_PARTS, EVERY_DIGIT]),
    Row { names: &["tekken"], splits: &[TEKKEN], ignores_merges: true, adds_bos: true },
    row(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[CASED]),
    Row {
        names: &["granite-embed-multi-97m"],
        splits: &[CASED_WITH_MARKS],
        ignores_merges: true,
        adds_bos: false,
    },
    row(
        &["jais-2"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)",
            r"|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
        )],
    ),
    row(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[concat!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
    ),
    row(
        &["seed-coder"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}",
            r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    row(
        &["ufakzeka"],
        &[concat!(
            r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    ),
    row(&["laguna"], &[r"[^\n]+|[\n]+", QWEN2]),
    row(
        &["exaone-moe"],
        &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
    ),
    Row {
        names: &["minicpm5"],
        splits: &[
            THREE_DIGITS,
            concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+",
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
        ignores_merges: true,
        adds_bos: false,
    },
    Row {
        names: &["chameleon"],
        splits: &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            EVERY_DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
        ignores_merges: false,
        adds_bos: true,
    },
];

/// What llama.cpp knows and no list of regular expressions over byte-level text expresses.
const ELSEWHERE: [&str; 10] = [
    "afmoe",
    "tiny_aya",
    "cohere2moe",
    "kimi-k2",
    "superbpe",
    "gemma4",
    "granite-embed-multi-311m",
    "sarvam-moe",
    "whitespace",
    "hybriddna",
];

/// A row as most are: merges alone decide, and a text begins with BOS only where the file says so.
const fn row(names: &'static [&'static str], splits: &'static [&'static str]) -> Row {
    Row { names, splits, ignores_merges: false, adds_bos: false }
}

impl SplitPattern {
    /// The value of `tokenizer.ggml.pre`.
    pub fn name(self) -> &'static str {
        self.row().names[0]
    }

    /// The pattern of a name.
    ///
    /// # Errors
    /// Says why there is none.
    pub fn from_name(name: &str) -> Result<Self, String> {
        let found = TABLE.iter().position(|row| row.names.contains(&name));
        found.map(Self).ok_or_else(|| {
            if ELSEWHERE.contains(&name) {
                return format!("{name:?} splits text in a way that is not supported");
            }
            format!("{name:?} is unknown; expected a name of llama.cpp such as \"llama-bpe\"")
        })
    }

    /// Every pattern.
    #[cfg(test)]
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..TABLE.len()).map(Self)
    }

    /// All first names, for messages.
    pub(crate) fn names() -> String {
        TABLE.iter().map(|row| row.names[0]).collect::<Vec<_>>().join(", ")
    }

    fn row(self) -> &'static Row {
        &TABLE[self.0]
    }

    pub(crate) fn ignores_merges(self) -> bool {
        self.row().ignores_merges
    }

    /// Whether a text begins with BOS where the file does not say.
    pub(crate) fn adds_bos(self) -> bool {
        self.row().adds_bos
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub(crate) fn pre_tokenizer(self) -> Value {
        let bytes = |regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                   "use_regex": regex})
        };
        if self.row().splits == [GPT2] {
            return bytes(true);
        }
        let split = |regex: &&str| {
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated",
                   "invert": false})
        };
        let splits = self.row().splits.iter().map(split);
        json!({"type": "Sequence", "pretokenizers": splits.chain([bytes(false)]).collect::<Vec<_>>()})
    }

    /// The pattern of a `pre_tokenizer`, when it is one of them.
    pub(crate) fn of(pre_tokenizer: &Value, ignores_merges: bool) -> Option<Self> {
        let splits = splits_of(pre_tokenizer)?;
        let same = |row: &Row| row.ignores_merges == ignores_merges && row.splits == splits;
        TABLE.iter().position(same).map(Self)
    }
}

/// The regular expressions that a `pre_tokenizer` applies before it writes words as bytes.
pub(crate) fn splits_of(pre_tokenizer: &Value) -> Option<Vec<String>> {
    let parts = match pre_tokenizer.get("pretokenizers").and_then(Value::as_array) {
        Some(parts) => parts.as_slice(),
        None => std::slice::from_ref(pre_tokenizer),
    };
    let (bytes, splits) = parts.split_last()?;
    if bytes["type"] != "ByteLevel" || bytes["add_prefix_space"] != false {
        return None;
    }
    let mut splits = splits.iter().map(split_of).collect::<Option<Vec<_>>>()?;
    if bytes.get("use_regex").is_none_or(|uses| uses == true) {
        splits.push(GPT2.to_owned());
    }
    Some(splits)
}

/// The regular expression of one part of a `pre_tokenizer`, in the spelling of the table.
fn split_of(part: &Value) -> Option<String> {
    match part["type"].as_str()? {
        "Digits" if part["individual_digits"] == true => Some(EVERY_DIGIT.to_owned()),
        "Punctuation" if part["behavior"] == "Contiguous" => Some(SIGNS.to_owned()),
        "Split" => {
            let regex = part["pattern"]["Regex"].as_str()?.replace(ENDINGS_BY_LETTER, ENDINGS);
            let isolated = part["behavior"] == "Isolated" && part["invert"] == false;
            // Keeping the matches and dropping what lies between them is the same where all
            // matches.
            let removed = part["behavior"] == "Removed" && part["invert"] == true;
            (isolated || removed && regex.ends_with(r"|\s+(?!\S)|\s+")).then_some(regex)
        }
        _ => None,
    }
}

const ENDINGS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const ENDINGS_BY_LETTER: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
    };

    /// The lengths of words that llama.cpp's own splitting gives, by the names of its patterns.
    #[derive(serde::Deserialize)]
    struct Known {
        texts: Vec<String>,
        patterns: Vec<KnownPattern>,
    }

    #[derive(serde::Deserialize)]
    struct KnownPattern {
        names: Vec<String>,
        ignores_merges: bool,
        adds_bos: bool,
        lengths: Vec<Vec<usize>>,
    }

    fn known() -> Known {
        serde_json::from_str(include_str!("../tests/splits.json")).unwrap()
    }

    fn lengths(splitter: &PreTokenizerWrapper, text: &str) -> Vec<usize> {
        let mut pieces = PreTokenizedString::from(text);
        splitter.pre_tokenize(&mut pieces).unwrap();
        let pieces = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(_, (from, to), _)| to - from).collect()
    }

    #[test]
    fn every_pattern_cuts_as_llama_cpp_does() {
        let Known { texts, patterns } = known();
        for known in patterns {
            for name in known.names {
                let pattern = SplitPattern::from_name(&name).unwrap();
                let says = (pattern.ignores_merges(), pattern.adds_bos());
                assert_eq!(says, (known.ignores_merges, known.adds_bos), "{name}");
                let splitter = serde_json::from_value(pattern.pre_tokenizer()).unwrap();
                for (text, expected) in texts.iter().zip(&known.lengths) {
                    assert_eq!(lengths(&splitter, text), *expected, "{name}: {text:?}");
                }
            }
        }
    }

    #[test]
    fn every_pattern_is_recognised_in_its_own_pre_tokenizer() {
        for pattern in SplitPattern::all() {
            let again = SplitPattern::of(&pattern.pre_tokenizer(), pattern.ignores_merges());
            let parts = |pattern: SplitPattern| (pattern.row().splits, pattern.ignores_merges());
            assert_eq!(again.map(parts), Some(parts(pattern)), "{}", pattern.name());
        }
    }

    #[test]
    fn other_spellings_of_a_pattern_are_recognised() {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false});
        let of = |parts: &[Value]| {
            let parts = parts.iter().chain([&bytes]).collect::<Vec<_>>();
            let pre = json!({"type": "Sequence", "pretokenizers": parts});
            SplitPattern::of(&pre, false).map(SplitPattern::name)
        };
        let digits = |each: bool| json!({"type": "Digits", "individual_digits": each});
        assert_eq!(of(&[digits(true)]), Some("smollm"));
        assert_eq!(of(&[digits(false)]), None);
        let split = |regex: &str, behavior: &str, invert: bool| {
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior,
                   "invert": invert})
        };
        let signs = json!({"type": "Punctuation", "behavior": "Contiguous"});
        assert_eq!(of(&[signs]), None);
        let rest = QWEN2.strip_prefix(ENDINGS).unwrap();
        let by_letter = split(&format!("{ENDINGS_BY_LETTER}{rest}"), "Removed", true);
        let mut pre = json!({"type": "Sequence", "pretokenizers": [by_letter, bytes]});
        pre["pretokenizers"][1]["use_regex"] = json!(false);
        assert_eq!(SplitPattern::of(&pre, false).map(SplitPattern::name), Some("qwen2"));
        pre["pretokenizers"][0]["behavior"] = json!("MergedWithNext");
        assert_eq!(SplitPattern::of(&pre, false), None);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = |name: &str| SplitPattern::from_name(name).unwrap_err();
        assert!(error("kimi-k2").starts_with("\"kimi-k2\" splits text in a way"));
        assert!(error("newest").starts_with("\"newest\" is unknown"));
    }
}
