//! Four ternary codes to a byte: what `I2_S`, `TQ2_0` and Hugging Face's layout have in common.

/// A layout of two-bit fields, each `T + 1`. The value 3 is never written.
///
/// In each run of `4 · lane` codes, byte `p` holds the codes `p`, `p + lane`, `p + 2·lane` and
/// `p + 3·lane`, the first of them at the first shift. So a vector load of `lane` bytes, shifted
/// and masked, gives `lane` consecutive codes.
pub(crate) struct Fields {
    /// Bytes that belong together.
    pub(crate) lane: usize,
    /// The lowest bits of the four fields in a byte.
    pub(crate) shifts: [u32; 4],
}

impl Fields {
    /// Appends the bytes of `codes`, whose number is a multiple of `4 · lane`.
    pub(crate) fn pack(&self, codes: &[i8], out: &mut Vec<u8>) {
        for group in codes.chunks_exact(4 * self.lane) {
            let start = out.len();
            out.resize(start + self.lane, 0);
            for (codes, shift) in group.chunks_exact(self.lane).zip(self.shifts) {
                for (byte, &code) in out[start..].iter_mut().zip(codes) {
                    *byte |= ((code + 1) as u8) << shift;
                }
            }
        }
    }

    /// Writes the codes of `bytes`, in which no field holds 3.
    pub(crate) fn unpack(&self, bytes: &[u8], codes: &mut [i8]) {
        let groups = bytes.chunks_exact(self.lane).zip(codes.chunks_exact_mut(4 * self.lane));
        for (bytes, group) in groups {
            for (codes, shift) in group.chunks_exact_mut(self.lane).zip(self.shifts) {
                for (code, byte) in codes.iter_mut().zip(bytes) {
                    *code = ((byte >> shift) & 3) as i8 - 1;
                }
            }
        }
    }
}

/// The first byte with a field that holds 3.
pub(crate) fn unused_code(bytes: &[u8]) -> Option<usize> {
    // Bit 2i of `b & b >> 1` is set exactly where field i holds 3.
    bytes.iter().position(|byte| byte & (byte >> 1) & 0x55 != 0)
}
