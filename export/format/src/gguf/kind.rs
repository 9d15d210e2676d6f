//! The tensor types we read and write: ids, names, sizes. What lies inside a block is elsewhere.

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorKind {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Blocks of 32 bytes with one f16 scale: 34 bytes for 32 values.
    Q8_0,
    /// llama.cpp's 6-bit type: 210 bytes for 256 values.
    Q6K,
    /// Ternary, five values in a byte: 54 bytes for 256 values.
    Tq1_0,
    /// Ternary, four values in a byte: 66 bytes for 256 values.
    Tq2_0,
    /// bitnet.cpp's ternary type: four values in a byte, then one f32 scale for the whole tensor
    /// and 28 bytes of filler.
    I2S,
}

/// `values` values in a row take `bytes` bytes.
struct Block {
    values: u64,
    bytes: u64,
}

/// I2_S packs 128 values of the whole tensor, regardless of rows, into 32 bytes.
const I2_S_GROUP: u64 = 128;

/// The scale of an I2_S tensor and its filler.
const I2_S_TAIL_BYTES: u64 = 32;

impl TensorKind {
    /// All kinds, in order of their ids.
    pub const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::Q8_0,
        Self::Q6K,
        Self::Bf16,
        Self::Tq1_0,
        Self::Tq2_0,
        Self::I2S,
    ];

    /// The kind of a type id; `None` for those we do not read.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    /// The type id in the file: ggml's, and bitnet.cpp's 36.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Q6K => 14,
            Self::Bf16 => 30,
            Self::Tq1_0 => 34,
            Self::Tq2_0 => 35,
            Self::I2S => 36,
        }
    }

    /// The name other tools print.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q6K => "Q6_K",
            Self::Tq1_0 => "TQ1_0",
            Self::Tq2_0 => "TQ2_0",
            Self::I2S => "I2_S",
        }
    }

    /// Bytes of a tensor of `elements` values in rows of `row_length`, without padding; `None`
    /// when the rows do not divide into blocks or the size overflows.
    pub fn bytes_of(self, elements: u64, row_length: u64) -> Option<u64> {
        if !elements.is_multiple_of(row_length) {
            return None;
        }
        if self == Self::I2S {
            let whole = elements.is_multiple_of(I2_S_GROUP);
            return whole.then(|| (elements / 4).checked_add(I2_S_TAIL_BYTES)).flatten();
        }
        let block = self.block();
        let whole = row_length.is_multiple_of(block.values);
        whole.then(|| (elements / block.values).checked_mul(block.bytes)).flatten()
    }

    /// What a row (or, for I2_S, the tensor) must be a multiple of.
    pub(super) fn group(self) -> u64 {
        if self == Self::I2S { I2_S_GROUP } else { self.block().values }
    }

    fn block(self) -> Block {
        let (values, bytes) = match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q6K => (256, 210),
            Self::Tq1_0 => (256, 54),
            Self::Tq2_0 => (256, 66),
            Self::I2S => (I2_S_GROUP, I2_S_GROUP / 4),
        };
        Block { values, bytes }
    }
}

/// What other programs call a type id that we do not read, for the message.
pub(super) fn foreign_name(id: u32) -> Option<&'static str> {
    Some(match id {
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        31..=33 => "a retired layout of Q4_0",
        37 => "bitnet.cpp's I8_S, or a retired layout of IQ4_NL",
        38 => "bitnet.cpp's TL1, or a retired layout of IQ4_NL",
        39 => "bitnet.cpp's TL2, or llama.cpp's MXFP4",
        134 => "ik_llama.cpp's IQ1_BN",
        135 => "ik_llama.cpp's IQ2_BN",
        335 => "ik_llama.cpp's IQ2_BN_R4",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_are_frozen() {
        let table = TensorKind::ALL.map(|kind| (kind.id(), kind.name()));
        assert_eq!(
            table,
            [
                (0, "F32"),
                (1, "F16"),
                (8, "Q8_0"),
                (14, "Q6_K"),
                (30, "BF16"),
                (34, "TQ1_0"),
                (35, "TQ2_0"),
                (36, "I2_S")
            ]
        );
        for kind in TensorKind::ALL {
            assert_eq!(TensorKind::from_id(kind.id()), Some(kind));
            assert_eq!(foreign_name(kind.id()), None);
        }
        assert_eq!(TensorKind::from_id(37), None);
        assert_eq!(TensorKind::from_id(u32::MAX), None);
    }

    #[test]
    fn sizes_of_an_8_by_256_matrix() {
        // The ternary ones are those of the vectors in bitnet-b158.md §3.0.
        let sizes = TensorKind::ALL.map(|kind| kind.bytes_of(8 * 256, 256));
        let expected = [8192, 4096, 2176, 1680, 4096, 432, 528, 544].map(Some);
        assert_eq!(sizes, expected);
    }

    #[test]
    fn rows_that_do_not_divide_into_blocks_have_no_size() {
        // The tensor as a whole would divide: it is the rows that count.
        assert_eq!(TensorKind::Q8_0.bytes_of(32 * 48, 48), None);
        assert_eq!(TensorKind::Q6K.bytes_of(256 * 32, 32), None);
        assert_eq!(TensorKind::Tq1_0.bytes_of(2 * 128, 128), None);
        assert_eq!(TensorKind::Tq2_0.bytes_of(2 * 128, 128), None);
        assert_eq!(TensorKind::I2S.bytes_of(2 * 64, 64), Some(64));
        assert_eq!(TensorKind::I2S.bytes_of(3 * 64, 64), None);
        assert_eq!(TensorKind::F32.bytes_of(7, 2), None);
        assert_eq!(TensorKind::F32.bytes_of(7, 0), None);
    }

    #[test]
    fn sizes_that_overflow_are_none() {
        let most = u64::MAX - 255;
        assert_eq!(TensorKind::F32.bytes_of(1 << 62, 1 << 62), None);
        assert_eq!(TensorKind::F16.bytes_of(1 << 63, 1), None);
        assert_eq!(TensorKind::Q8_0.bytes_of(most, most), None);
        assert_eq!(TensorKind::Q6K.bytes_of(most, most), Some(most / 256 * 210));
        assert_eq!(TensorKind::I2S.bytes_of(most, most), Some(most / 4 + 32));
    }
}
