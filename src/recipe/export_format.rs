//! The file formats of finished models, `export.formats`.

use std::str::FromStr;

use super::item::word;

/// A file format of finished models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// A Hugging Face folder in BF16.
    HfBf16,
    /// A Hugging Face folder with packed ternary matrices.
    HfPacked,
    /// GGUF as bitnet.cpp reads it.
    GgufI2S,
    /// GGUF with llama.cpp's 1.6875 bits a weight.
    GgufTq1,
    /// GGUF with llama.cpp's 2.0625 bits a weight.
    GgufTq2,
    /// GGUF of a dense model.
    GgufBf16,
    /// GGUF with llama.cpp's 2.25 bits a weight, for models whose scales belong to groups.
    GgufQ2,
}

impl ExportFormat {
    pub(super) const WORDS: &[(&str, Self)] = &[
        ("hf-bf16", Self::HfBf16),
        ("hf-packed", Self::HfPacked),
        ("gguf-i2_s", Self::GgufI2S),
        ("gguf-tq1_0", Self::GgufTq1),
        ("gguf-tq2_0", Self::GgufTq2),
        ("gguf-bf16", Self::GgufBf16),
        ("gguf-q2_0", Self::GgufQ2),
    ];

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::WORDS.iter().map(|(_, format)| *format)
    }

    /// The word for it in a recipe and on the command line.
    pub fn name(self) -> &'static str {
        word(Self::WORDS, self)
    }

    /// The folder or file in a run's `export/`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::HfBf16 | Self::HfPacked => self.name(),
            Self::GgufI2S => "model-i2_s.gguf",
            Self::GgufTq1 => "model-tq1_0.gguf",
            Self::GgufTq2 => "model-tq2_0.gguf",
            Self::GgufBf16 => "model-bf16.gguf",
            Self::GgufQ2 => "model-q2_0.gguf",
        }
    }
}

impl FromStr for ExportFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::WORDS.iter().find(|(word, _)| *word == text);
        found.map(|(_, format)| *format).ok_or_else(|| {
            let words: Vec<_> = Self::WORDS.iter().map(|(word, _)| *word).collect();
            format!("unknown format; expected {}, got {text:?}", words.join(" or "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_the_word_of_the_interface() {
        for (word, format) in ExportFormat::WORDS {
            assert_eq!(word.parse::<ExportFormat>().unwrap(), *format);
            assert_eq!(format.name(), *word);
        }
        assert!("gguf".parse::<ExportFormat>().unwrap_err().contains("gguf-i2_s or gguf-tq1_0"));
    }
}
