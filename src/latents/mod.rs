//! Matrices outside of Burn's tensors: latents in fewer bits than f32, updated chunk by chunk where they
//! lie, and the weights of a model that an adapter leaves as they are.
//!
//! A [`Latents`] is one matrix. The model reads it (`read`, `scale`), the optimizer rewrites it
//! (`update`), and nobody ever holds all of it as f32. Copies of a model share their latents: the
//! update of one is the update of all.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

pub(crate) mod codec;
pub(crate) mod codes;
mod formats;
mod frozen;
pub(crate) mod rounding;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard};

use bitnet_format::DType;
use bitnet_format::quant::{Absmean, WeightScale};
use bitnet_format::writer::little_endian;
use bitnet_kernels::{Kernel, SimdWork, unwritten};
use rayon::prelude::*;

pub(crate) use formats::MOMENT_BLOCK;
pub use formats::{LatentFormat, LeanSettings, MatrixStorage, MomentFormat, UpdateTime};
pub(crate) use frozen::{FrozenWords, MappedFiles};

use codec::{BLOCK, CHUNK, LatentChunk, bf16_bits, load_blocks, widen};

/// The latents of one matrix, shared by all copies of a model.
#[derive(Clone, Debug)]
pub struct Latents(Arc<RwLock<Matrix>>);

#[derive(Debug)]
struct Matrix {
    shape: [usize; 2],
    words: Words,
    /// The scale of the weights, known until the next update.
    scale: OnceLock<WeightScale>,
}

#[derive(Debug)]
enum Words {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    Bf16Plus8 { high: Vec<u16>, low: Vec<i8> },
    Block16 { codes: Vec<i16>, exponents: Vec<i8> },
    Frozen(FrozenWords),
}

/// A tensor of a checkpoint: the part of latents that a BF16 file does not hold.
pub(crate) struct LatentPart<'a> {
    /// What comes before the matrix's name.
    pub(crate) prefix: &'static str,
    pub(crate) dtype: DType,
    /// Elements.
    pub(crate) count: usize,
    pub(crate) bytes: Cow<'a, [u8]>,
}

impl Latents {
    /// Keeps `values [out, in]`, each rounded to the nearest.
    pub fn new(format: LatentFormat, shape: [usize; 2], values: &[f32]) -> Self {
        let count = shape[0] * shape[1];
        assert_eq!(values.len(), count, "one value for each element");
        let mut words = Words::zeros(format, count);
        let chunks = words.chunks().into_par_iter().zip(values.par_chunks(CHUNK));
        // To the nearest: random rounding is for updates, which have to add up.
        chunks.for_each(|(mut chunk, values)| chunk.store_nearest(values));
        Self::of_words(shape, words)
    }

    /// Weights `[out, in]` that are never updated.
    pub(crate) fn frozen(shape: [usize; 2], words: FrozenWords) -> Self {
        Self::of_words(shape, Words::Frozen(words))
    }

    fn of_words(shape: [usize; 2], words: Words) -> Self {
        Self(Arc::new(RwLock::new(Matrix { shape, words, scale: OnceLock::new() })))
    }

    /// Opens them for reading; they are not updated meanwhile.
    pub fn read(&self) -> LatentsView<'_> {
        LatentsView(self.0.read().expect("no update has panicked"))
    }

    /// Rewrites every chunk: `work` gets all of them, in order.
    pub(crate) fn update(&self, mut work: impl FnMut(Vec<LatentChunk>)) {
        let mut matrix = self.0.write().expect("no update has panicked");
        // The absmean of what is overwritten now; the next forward pass finds the new one.
        matrix.scale = OnceLock::new();
        work(matrix.words.chunks());
    }

    /// `[out, in]`
    pub fn shape(&self) -> [usize; 2] {
        self.read().0.shape
    }

    /// Replaces all bits by those of [`LatentsView::bytes`].
    pub(crate) fn set_bytes(&self, bytes: &[u8]) {
        let mut matrix = self.0.write().expect("no update has panicked");
        matrix.scale = OnceLock::new();
        match &mut matrix.words {
            Words::F32(values) => read_words(bytes, values, f32::from_le_bytes),
            Words::Bf16(words) => read_words(bytes, words, u16::from_le_bytes),
            Words::Bf16Plus8 { high, low } => {
                let (words, rest) = bytes.split_at(2 * high.len());
                read_words(words, high, u16::from_le_bytes);
                low.copy_from_slice(bytemuck::cast_slice(rest));
            }
            Words::Block16 { codes, exponents } => {
                let (words, rest) = bytes.split_at(2 * codes.len());
                read_words(words, codes, i16::from_le_bytes);
                exponents.copy_from_slice(bytemuck::cast_slice(rest));
            }
            Words::Frozen(_) => unreachable!("{FROZEN}"),
        }
    }

    /// Replaces the parts that lie in a checkpoint's optimizer file ([`LatentsView::parts`]), in their
    /// order.
    pub(crate) fn set_parts(&self, parts: &[Vec<u8>]) {
        let mut matrix = self.0.write().expect("no update has panicked");
        matrix.scale = OnceLock::new();
        match (&mut matrix.words, parts) {
            // `high` is what the model's BF16 file holds, and was read from there.
            (Words::Bf16Plus8 { low, .. }, [bytes]) => {
                low.copy_from_slice(bytemuck::cast_slice(bytes));
            }
            // All bits anew: bf16 does not hold every code, so the file gave only the nearest.
            (Words::Block16 { codes, exponents }, [code_bytes, exponent_bytes]) => {
                read_words(code_bytes, codes, i16::from_le_bytes);
                exponents.copy_from_slice(bytemuck::cast_slice(exponent_bytes));
            }
            (_, parts) => assert!(parts.is_empty(), "the parts of these latents"),
        }
    }
}

const FROZEN: &str = "frozen weights are never rewritten";

/// Latents that are being read.
pub struct LatentsView<'a>(RwLockReadGuard<'a, Matrix>);

impl LatentsView<'_> {
    /// Whether no update ever changes them.
    pub(crate) fn is_frozen(&self) -> bool {
        matches!(self.0.words, Words::Frozen(_))
    }

    /// `[out, in]`
    pub fn shape(&self) -> [usize; 2] {
        self.0.shape
    }

    /// The weights that the model multiplies with, some elements in row-major order: the latents, in
    /// all forms but f32 rounded to the nearest bf16.
    #[inline(always)]
    pub fn weights(&self, range: Range<usize>, out: &mut [f32]) {
        match &self.0.words {
            Words::F32(values) => out.copy_from_slice(&values[range]),
            Words::Bf16(words) | Words::Bf16Plus8 { high: words, .. } => widen(&words[range], out),
            Words::Block16 { codes, exponents } => {
                let mut exact = [0.0; BLOCK];
                let mut at = range.start;
                let mut rest = out;
                while at < range.end {
                    // A range may cut blocks at both ends; each piece lies in one block.
                    let end = range.end.min((at / BLOCK + 1) * BLOCK);
                    let (part, after) = rest.split_at_mut(end - at);
                    let exact = &mut exact[..part.len()];
                    load_blocks(&codes[at..end], &exponents[at / BLOCK..=at / BLOCK], exact);
                    // What a BF16 file can hold, so that other programs quantise the same numbers.
                    let nearest = |(out, exact): (&mut f32, &f32)| {
                        *out = f32::from_bits(u32::from(bf16_bits(*exact)) << 16);
                    };
                    part.iter_mut().zip(exact.iter()).for_each(nearest);
                    (at, rest) = (end, after);
                }
            }
            Words::Frozen(words) => words.weights(range, out),
        }
    }

    /// Copies the ternary codes of a row, where the matrix is kept as codes.
    pub(crate) fn copy_codes(&self, row: usize, out: &mut [i8], kernel: Kernel) -> bool {
        match &self.0.words {
            Words::Frozen(words) => {
                kernel.dispatch(CopyCodes { words, first: row * out.len(), out })
            }
            _ => false,
        }
    }

    /// Some rows of the weights.
    pub fn rows(&self, rows: Range<usize>, out: &mut [f32], kernel: Kernel) {
        let width = self.0.shape[1];
        let range = rows.start * width..rows.end * width;
        kernel.dispatch(ReadWeights { view: self, range, out });
    }

    /// All weights as f32.
    pub fn all(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.0.shape[0] * self.0.shape[1]];
        let chunks = values.par_chunks_mut(CHUNK).enumerate();
        chunks.for_each(|(index, out)| {
            let first = index * CHUNK;
            self.weights(first..first + out.len(), out);
        });
        values
    }

    /// The scale of the weights: their absmean, in the order that defines it.
    pub fn scale(&self, kernel: Kernel) -> WeightScale {
        // The absmean of the codes' values would be smaller, by the share of zeros.
        if let Words::Frozen(FrozenWords::Ternary { scale, .. }) = &self.0.words {
            return *scale;
        }
        // Not summed inside `get_or_init`: a thread that waits there for others may take up another part
        // of the micro-batch, which asks for this scale too. All who sum find the same.
        let known = self.0.scale.get().copied();
        let scale = known.unwrap_or_else(|| WeightScale::from_absmean(self.absmean(kernel)));
        *self.0.scale.get_or_init(|| scale)
    }

    /// One thread adds up, since the order of the sum is part of its definition; the others bring the next
    /// part to f32 meanwhile, which is most of the work.
    fn absmean(&self, kernel: Kernel) -> f64 {
        let count = self.0.shape[0] * self.0.shape[1];
        let part = |first: usize| SUMMED_AT_ONCE.min(count.saturating_sub(first));
        let read = |first: usize, out: &mut [f32]| {
            out[..part(first)].par_chunks_mut(CHUNK).enumerate().for_each(|(index, out)| {
                let first = first + index * CHUNK;
                let range = first..first + out.len();
                kernel.dispatch(ReadWeights { view: self, range, out });
            });
        };
        let mut sum = Absmean::default();
        let [mut values, mut next] = [0, 1].map(|_| unwritten(part(0)));
        read(0, &mut values);
        // Parts are whole sixteens, the lanes of the sum.
        for first in (0..count).step_by(SUMMED_AT_ONCE) {
            let add =
                || kernel.dispatch(AddMagnitudes { sum: &mut sum, values: &values[..part(first)] });
            rayon::join(add, || read(first + SUMMED_AT_ONCE, &mut next));
            std::mem::swap(&mut values, &mut next);
        }
        sum.finish()
    }

    /// The type of the weights in a model file.
    pub(crate) fn dtype(&self) -> DType {
        match self.0.words {
            // Codes times an f32 scale need not be bf16 numbers.
            Words::F32(_) | Words::Frozen(FrozenWords::Ternary { .. }) => DType::F32,
            _ => DType::Bf16,
        }
    }

    /// Hands over the bytes of the weights as a model file holds them, piece by piece.
    pub(crate) fn write<E>(&self, write: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match &self.0.words {
            Words::F32(values) => write(&little_endian(values)),
            Words::Bf16(words) | Words::Bf16Plus8 { high: words, .. } => {
                write(&little_endian(words))
            }
            Words::Block16 { .. } | Words::Frozen(_) => self.write_weights(write),
        }
    }

    fn write_weights<E>(&self, write: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let [rows, columns] = self.0.shape;
        let mut values = [0.0; CHUNK];
        for first in (0..rows * columns).step_by(CHUNK) {
            let values = &mut values[..CHUNK.min(rows * columns - first)];
            self.weights(first..first + values.len(), values);
            if self.dtype() == DType::F32 {
                write(&little_endian(values))?;
            } else {
                let words: Vec<u16> = values.iter().map(|&value| bf16_bits(value)).collect();
                write(&little_endian(&words))?;
            }
        }
        Ok(())
    }

    /// Whether every latent is finite.
    pub(crate) fn is_finite(&self) -> bool {
        match &self.0.words {
            Words::F32(values) => values.par_iter().all(|value| value.is_finite()),
            Words::Bf16(words) | Words::Bf16Plus8 { high: words, .. } => {
                // Infinities and NaN are the words whose exponent bits are all set.
                words.par_iter().all(|word| word & 0x7f80 != 0x7f80)
            }
            // Frozen weights were checked when they were read.
            Words::Block16 { .. } | Words::Frozen(_) => true,
        }
    }

    /// All bits, to be sent to other ranks.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match &self.0.words {
            Words::F32(values) => little_endian(values).into_owned(),
            Words::Bf16(words) => little_endian(words).into_owned(),
            Words::Bf16Plus8 { high, low } => {
                [little_endian(high), bytemuck::cast_slice(low).into()].concat()
            }
            Words::Block16 { codes, exponents } => {
                [little_endian(codes), bytemuck::cast_slice(exponents).into()].concat()
            }
            // Each rank reads frozen weights for itself; they are never sent.
            Words::Frozen(_) => unreachable!("{FROZEN}"),
        }
    }

    /// The parts of a checkpoint beside the model's own file.
    pub(crate) fn parts(&self) -> Vec<LatentPart<'_>> {
        let part = |prefix, dtype, count, bytes| LatentPart { prefix, dtype, count, bytes };
        match &self.0.words {
            Words::F32(_) | Words::Bf16(_) | Words::Frozen(_) => Vec::new(),
            Words::Bf16Plus8 { low, .. } => {
                vec![part(LOW, DType::I8, low.len(), bytemuck::cast_slice(low).into())]
            }
            Words::Block16 { codes, exponents } => vec![
                part(CODES, DType::I16, codes.len(), little_endian(codes)),
                part(EXPONENTS, DType::I8, exponents.len(), bytemuck::cast_slice(exponents).into()),
            ],
        }
    }
}

/// Weights that are in f32 while their magnitudes are summed: a megabyte, which a second cache holds.
pub(crate) const SUMMED_AT_ONCE: usize = 256 * CHUNK;

/// [`LatentsView::weights`] with a kernel's instructions.
struct ReadWeights<'a, 'b> {
    view: &'a LatentsView<'b>,
    range: Range<usize>,
    out: &'a mut [f32],
}

impl SimdWork for ReadWeights<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.view.weights(self.range, self.out);
    }
}

/// [`FrozenWords::copy_codes`] with a kernel's instructions.
struct CopyCodes<'a> {
    words: &'a FrozenWords,
    first: usize,
    out: &'a mut [i8],
}

impl SimdWork for CopyCodes<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        self.words.copy_codes(self.first, self.out)
    }
}

/// [`Absmean::add`] with a kernel's instructions.
pub(crate) struct AddMagnitudes<'a> {
    pub(crate) sum: &'a mut Absmean,
    pub(crate) values: &'a [f32],
}

impl SimdWork for AddMagnitudes<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.sum.add(self.values);
    }
}

/// The names of the parts of a checkpoint.
const LOW: &str = "low";
const CODES: &str = "codes";
const EXPONENTS: &str = "exponents";

/// Little-endian numbers of `N` bytes.
fn read_words<T, const N: usize>(bytes: &[u8], out: &mut [T], read: impl Fn([u8; N]) -> T) {
    let (words, _) = bytes.as_chunks();
    assert_eq!(words.len(), out.len(), "as many numbers as there is room for");
    out.iter_mut().zip(words).for_each(|(out, &word)| *out = read(word));
}

impl Words {
    fn zeros(format: LatentFormat, count: usize) -> Self {
        match format {
            LatentFormat::F32 => Self::F32(vec![0.0; count]),
            LatentFormat::Bf16 => Self::Bf16(vec![0; count]),
            LatentFormat::Bf16Plus8 => {
                Self::Bf16Plus8 { high: vec![0; count], low: vec![0; count] }
            }
            LatentFormat::Block16 => {
                let exponents = vec![0; count.div_ceil(BLOCK)];
                Self::Block16 { codes: vec![0; count], exponents }
            }
        }
    }

    fn chunks(&mut self) -> Vec<LatentChunk<'_>> {
        match self {
            Self::F32(values) => values.chunks_mut(CHUNK).map(LatentChunk::F32).collect(),
            Self::Bf16(words) => words.chunks_mut(CHUNK).map(LatentChunk::Bf16).collect(),
            Self::Bf16Plus8 { high, low } => {
                let pairs = high.chunks_mut(CHUNK).zip(low.chunks_mut(CHUNK));
                pairs.map(|(high, low)| LatentChunk::Bf16Plus8(high, low)).collect()
            }
            Self::Block16 { codes, exponents } => {
                let pairs = codes.chunks_mut(CHUNK).zip(exponents.chunks_mut(CHUNK / BLOCK));
                pairs.map(|(codes, exponents)| LatentChunk::Block16(codes, exponents)).collect()
            }
            Self::Frozen(_) => unreachable!("{FROZEN}"),
        }
    }
}
