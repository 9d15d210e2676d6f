//! The choices of a recipe that trade bits for memory: `train.latents`, `optimizer.moments` and
//! `train.update`. `codec` and `train::step::moments` say what the formats mean.

use std::str::FromStr;

use super::codec::BLOCK;

/// How latents are kept, `train.latents`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LatentFormat {
    /// Single precision.
    #[default]
    F32,
    /// bf16, updated with stochastic rounding.
    Bf16,
    /// bf16 and eight more bits.
    Bf16Plus8,
    /// 16-bit codes with an exponent for each 256.
    Block16,
}

impl LatentFormat {
    /// The words for them in a recipe.
    pub(crate) const WORDS: &[(&str, Self)] = &[
        ("f32", Self::F32),
        ("bf16", Self::Bf16),
        ("bf16+8", Self::Bf16Plus8),
        ("block16", Self::Block16),
    ];

    /// The format of a matrix that is not trained: what is read of it in any other form is bf16.
    fn of_frozen(self) -> Self {
        if self == Self::F32 { Self::F32 } else { Self::Bf16 }
    }

    /// Bytes of this many latents.
    pub fn bytes(self, count: u64) -> u64 {
        match self {
            Self::F32 => count.saturating_mul(4),
            Self::Bf16 => count.saturating_mul(2),
            Self::Bf16Plus8 => count.saturating_mul(3),
            Self::Block16 => count.saturating_mul(2).saturating_add(count.div_ceil(BLOCK as u64)),
        }
    }
}

/// How the matrices of a model are kept that is trained.
#[derive(Clone, Copy, Default)]
pub struct MatrixStorage<'a> {
    /// The format of those outside of Burn's tensors; `None`: all are tensors.
    pub latents: Option<LatentFormat>,
    /// Entry `i` of the tensor table is not trained; where the list is short, the others are.
    pub frozen: &'a [bool],
    /// Whether BF16 matrices that are not trained stay in their file.
    pub mapped: bool,
}

impl MatrixStorage<'_> {
    /// The format of entry `index` of the tensor table.
    pub(crate) fn format(self, index: usize) -> Option<LatentFormat> {
        let of = |format: LatentFormat| {
            if self.is_frozen(index) { format.of_frozen() } else { format }
        };
        self.latents.map(of)
    }

    /// Whether entry `index` stays in its file, if that holds it in BF16.
    pub(crate) fn is_mapped(self, index: usize) -> bool {
        self.mapped && self.latents.is_some() && self.is_frozen(index)
    }

    fn is_frozen(self, index: usize) -> bool {
        self.frozen.get(index).is_some_and(|&frozen| frozen)
    }
}

impl From<Option<LatentFormat>> for MatrixStorage<'_> {
    /// All in one format.
    fn from(latents: Option<LatentFormat>) -> Self {
        Self { latents, ..Self::default() }
    }
}

impl FromStr for LatentFormat {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        of_word(Self::WORDS, word)
    }
}

impl FromStr for MomentFormat {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        of_word(Self::WORDS, word)
    }
}

fn of_word<T: Copy>(words: &[(&str, T)], word: &str) -> Result<T, String> {
    let found = words.iter().find(|(known, _)| *known == word).map(|(_, choice)| *choice);
    found.ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        format!("expected {}, got {word:?}", words.join(" or "))
    })
}

/// Values of an eight-bit moment that share a scale.
pub(crate) const MOMENT_BLOCK: usize = 128;

/// How moments are kept, `optimizer.moments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MomentFormat {
    /// Single precision.
    #[default]
    F32,
    /// bf16.
    Bf16,
    /// Eight bits on a log scale, with a scale for each 128.
    EightBit,
}

impl MomentFormat {
    /// The words for them in a recipe.
    pub(crate) const WORDS: &[(&str, Self)] =
        &[("f32", Self::F32), ("bf16", Self::Bf16), ("8bit", Self::EightBit)];

    /// Bytes of one moment of this many values.
    pub fn bytes(self, count: u64) -> u64 {
        match self {
            Self::F32 => count.saturating_mul(4),
            Self::Bf16 => count.saturating_mul(2),
            Self::EightBit => count.saturating_add(4 * count.div_ceil(MOMENT_BLOCK as u64)),
        }
    }
}

/// When parameters are updated, `train.update`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpdateTime {
    /// When all gradients are there.
    #[default]
    After,
    /// Each block as soon as its own are.
    During,
}

impl UpdateTime {
    /// The words for them in a recipe.
    pub(crate) const WORDS: &[(&str, Self)] = &[("after", Self::After), ("during", Self::During)];
}

/// Where a run keeps fewer bits than f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeanSettings {
    /// How the latents of matrices are kept outside of Burn's tensors; `None`: in tensors.
    pub latents: Option<LatentFormat>,
    /// How the moments of matrices are kept.
    pub moments: MomentFormat,
    /// The seed of stochastic rounding.
    pub seed: u64,
}

impl LeanSettings {
    /// `train.memory = "lean"`: the smallest that train as f32 does (docs/src/log.md, "A third of the
    /// memory").
    pub(crate) const PRESET: Self =
        Self { latents: Some(LatentFormat::Block16), moments: MomentFormat::EightBit, seed: 0 };

    /// How matrices are kept of which entry `i` of the tensor table is not trained where `frozen[i]`.
    pub fn storage(self, frozen: &[bool]) -> MatrixStorage<'_> {
        MatrixStorage { latents: self.latents, frozen, mapped: false }
    }

    /// Whether matrices are updated chunk by chunk, and not as tensors.
    pub fn is_lean(self) -> bool {
        self.latents.is_some() || self.moments != MomentFormat::F32
    }
}
