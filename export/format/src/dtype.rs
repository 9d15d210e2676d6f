//! The number formats of tensors: names, sizes, and their ids in GGUF and safetensors files.
//!
//! How the values lie inside a block is defined in [`crate::blocks`].

use safetensors::Dtype;

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "plain numbers are named after their type")]
pub enum DType {
    F32,
    F16,
    /// 32 8-bit values and one f16 scale in 34 bytes ([`crate::blocks::q8_0`]).
    Q8_0,
    /// 256 6-bit values and their scales in 210 bytes ([`crate::blocks::q6_k`]).
    Q6K,
    /// The upper half of an f32.
    Bf16,
    /// Ternary, five values a byte: 256 values in 54 bytes ([`crate::blocks::tq1_0`]).
    Tq1_0,
    /// Ternary, four values a byte: 256 values in 66 bytes ([`crate::blocks::tq2_0`]).
    Tq2_0,
    /// Ternary, four values a byte, one f32 scale for the tensor ([`crate::blocks::i2_s`]).
    I2S,
    /// Ternary, four values a byte: 64 values in 18 bytes ([`crate::blocks::q2_0`]).
    Q2_0,
    /// The same for 128 values in 34 bytes, in files of a fork.
    Pq2_0,
    /// Ternary, five values a byte: 128 values in 28 bytes ([`crate::blocks::ptq1_0`]).
    Ptq1_0,
    /// As [`DType::Pq2_0`], in older files of that fork: they say [`DType::Q2_0`].
    Q2_0Of128,
    F64,
    I64,
    I32,
    I16,
    /// A signed byte. In a [`crate::TensorView`] with a scale: one ternary code.
    I8,
    U64,
    U32,
    U16,
    /// A byte. With a scale, four ternary codes ([`crate::packed`]).
    U8,
    Bool,
}

/// What the files say of a type.
struct Description {
    dtype: DType,
    name: &'static str,
    /// Values in a block, and the bytes they take.
    block: (u64, u64),
    gguf_id: Option<u32>,
    safetensors: Option<Dtype>,
}

const fn gguf(
    dtype: DType,
    name: &'static str,
    block: (u64, u64),
    id: u32,
    safetensors: Option<Dtype>,
) -> Description {
    Description { dtype, name, block, gguf_id: Some(id), safetensors }
}

/// A type that only safetensors files hold.
const fn plain(dtype: DType, name: &'static str, bytes: u64, safetensors: Dtype) -> Description {
    Description { dtype, name, block: (1, bytes), gguf_id: None, safetensors: Some(safetensors) }
}

/// In the order of the enum; the types of GGUF come first, by their ids.
const TYPES: [Description; 22] = [
    gguf(DType::F32, "F32", (1, 4), 0, Some(Dtype::F32)),
    gguf(DType::F16, "F16", (1, 2), 1, Some(Dtype::F16)),
    gguf(DType::Q8_0, "Q8_0", (32, 34), 8, None),
    gguf(DType::Q6K, "Q6_K", (256, 210), 14, None),
    gguf(DType::Bf16, "BF16", (1, 2), 30, Some(Dtype::BF16)),
    gguf(DType::Tq1_0, "TQ1_0", (256, 54), 34, None),
    gguf(DType::Tq2_0, "TQ2_0", (256, 66), 35, None),
    gguf(DType::I2S, "I2_S", (128, 32), 36, None),
    gguf(DType::Q2_0, "Q2_0", (64, 18), 42, None),
    gguf(DType::Pq2_0, "PQ2_0", (128, 34), 142, None),
    gguf(DType::Ptq1_0, "PTQ1_0", (128, 28), 143, None),
    // No id of its own: the sizes of tensors tell it from Q2_0.
    Description {
        dtype: DType::Q2_0Of128,
        name: "Q2_0 (groups of 128)",
        block: (128, 34),
        gguf_id: None,
        safetensors: None,
    },
    plain(DType::F64, "F64", 8, Dtype::F64),
    plain(DType::I64, "I64", 8, Dtype::I64),
    plain(DType::I32, "I32", 4, Dtype::I32),
    plain(DType::I16, "I16", 2, Dtype::I16),
    plain(DType::I8, "I8", 1, Dtype::I8),
    plain(DType::U64, "U64", 8, Dtype::U64),
    plain(DType::U32, "U32", 4, Dtype::U32),
    plain(DType::U16, "U16", 2, Dtype::U16),
    plain(DType::U8, "U8", 1, Dtype::U8),
    plain(DType::Bool, "BOOL", 1, Dtype::BOOL),
];

/// The scale of an I2_S tensor and its filler.
const I2_S_TAIL_BYTES: u64 = 32;

impl DType {
    /// The types of GGUF files that we read, in order of their ids.
    pub fn of_gguf() -> impl Iterator<Item = Self> {
        TYPES.iter().filter(|row| row.gguf_id.is_some()).map(|row| row.dtype)
    }

    /// The type of a GGUF type id; `None` for those we do not read.
    pub fn from_gguf(id: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.gguf_id == Some(id)).map(|row| row.dtype)
    }

    /// The type id in a GGUF file: ggml's, and bitnet.cpp's 36.
    pub fn gguf_id(self) -> Option<u32> {
        self.description().gguf_id
    }

    pub(crate) fn from_safetensors(dtype: Dtype) -> Option<Self> {
        TYPES.iter().find(|row| row.safetensors == Some(dtype)).map(|row| row.dtype)
    }

    pub(crate) fn safetensors(self) -> Option<Dtype> {
        self.description().safetensors
    }

    /// The name other tools print.
    pub fn name(self) -> &'static str {
        self.description().name
    }

    /// Whether it holds ternary codes and nothing else.
    pub fn is_ternary(self) -> bool {
        self == Self::I2S || self.is_grouped()
    }

    /// Whether it holds ternary codes in blocks that have a scale each.
    pub fn is_grouped(self) -> bool {
        let of_fork = matches!(self, Self::Q2_0Of128 | Self::Pq2_0 | Self::Ptq1_0);
        of_fork || matches!(self, Self::Tq1_0 | Self::Tq2_0 | Self::Q2_0)
    }

    /// Whether its values lie in blocks that have a scale.
    pub fn is_block_quantised(self) -> bool {
        self.block() > 1
    }

    /// Values that are stored together: rows hold a multiple of this. I2_S packs the tensor as a
    /// whole, regardless of rows.
    pub fn block(self) -> u64 {
        self.description().block.0
    }

    /// Bytes of a tensor of `elements` values in rows of `row_length`, without padding; `None`
    /// when the rows do not divide into blocks or the size overflows.
    pub fn bytes_of(self, elements: u64, row_length: u64) -> Option<u64> {
        let (values, bytes) = self.description().block;
        // A block of any other type lies within a row, so that a reader can begin at each of them.
        let packed_together = if self == Self::I2S { elements } else { row_length };
        if !elements.is_multiple_of(row_length) || !packed_together.is_multiple_of(values) {
            return None;
        }
        let tail = if self == Self::I2S { I2_S_TAIL_BYTES } else { 0 };
        (elements / values).checked_mul(bytes)?.checked_add(tail)
    }

    fn description(self) -> &'static Description {
        // The table is in the order of the enum, so the discriminant is the row; a test compares
        // them.
        &TYPES[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_frozen() {
        let table: Vec<_> = DType::of_gguf().map(|dtype| (dtype.gguf_id(), dtype.name())).collect();
        let expected = [
            (0, "F32"),
            (1, "F16"),
            (8, "Q8_0"),
            (14, "Q6_K"),
            (30, "BF16"),
            (34, "TQ1_0"),
            (35, "TQ2_0"),
            (36, "I2_S"),
            (42, "Q2_0"),
            (142, "PQ2_0"),
            (143, "PTQ1_0"),
        ];
        assert_eq!(table, expected.map(|(id, name)| (Some(id), name)));
        for dtype in DType::of_gguf() {
            assert_eq!(dtype.gguf_id().and_then(DType::from_gguf), Some(dtype));
        }
        assert_eq!(DType::from_gguf(37), None);
        assert_eq!(DType::from_gguf(u32::MAX), None);
    }

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_agrees_with_safetensors() {
        for (index, row) in TYPES.iter().enumerate() {
            assert_eq!(row.dtype as usize, index);
            if let Some(foreign) = row.safetensors {
                assert_eq!(format!("{foreign:?}"), row.name);
                assert_eq!(foreign.bitsize() as u64, 8 * row.block.1);
                assert_eq!(DType::from_safetensors(foreign), Some(row.dtype));
            }
        }
    }

    #[test]
    fn sizes_of_an_8_by_256_matrix() {
        let sizes: Vec<_> = DType::of_gguf().map(|dtype| dtype.bytes_of(8 * 256, 256)).collect();
        assert_eq!(sizes, [8192, 4096, 2176, 1680, 4096, 432, 528, 544, 576, 544, 448].map(Some));
    }

    #[test]
    fn rows_that_do_not_divide_into_blocks_have_no_size() {
        // The tensor as a whole would divide: it is the rows that count.
        assert_eq!(DType::Q8_0.bytes_of(32 * 48, 48), None);
        assert_eq!(DType::Q6K.bytes_of(256 * 32, 32), None);
        assert_eq!(DType::Tq1_0.bytes_of(2 * 128, 128), None);
        assert_eq!(DType::Tq2_0.bytes_of(2 * 128, 128), None);
        assert_eq!(DType::I2S.bytes_of(2 * 64, 64), Some(64));
        assert_eq!(DType::I2S.bytes_of(3 * 64, 64), None);
        assert_eq!(DType::F32.bytes_of(7, 2), None);
        assert_eq!(DType::F32.bytes_of(7, 0), None);
    }

    #[test]
    fn sizes_that_overflow_are_none() {
        let most = u64::MAX - 255;
        assert_eq!(DType::F32.bytes_of(1 << 62, 1 << 62), None);
        assert_eq!(DType::F16.bytes_of(1 << 63, 1), None);
        assert_eq!(DType::Q8_0.bytes_of(most, most), None);
        assert_eq!(DType::Q6K.bytes_of(most, most), Some(most / 256 * 210));
        assert_eq!(DType::I2S.bytes_of(most, most), Some(most / 4 + 32));
    }
}
