//! Little-endian fields, one after the other, from bytes that may end anywhere.
//!
//! Errors are the end of a sentence: the caller knows which field was being read.

/// A position in the header of a file.
#[derive(Debug)]
pub(super) struct HeaderCursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> HeaderCursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.scalar(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.scalar(u64::from_le_bytes)
    }

    /// One value of `N` bytes.
    pub(super) fn scalar<T, const N: usize>(
        &mut self,
        from_le_bytes: fn([u8; N]) -> T,
    ) -> Result<T, String> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64)?);
        Ok(from_le_bytes(bytes))
    }

    /// `count` values of `N` bytes.
    pub(super) fn scalars<T, const N: usize>(
        &mut self,
        count: u64,
        from_le_bytes: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, String> {
        let bytes = self.take(count.saturating_mul(N as u64))?;
        Ok(bytes.as_chunks().0.iter().map(|&bytes| from_le_bytes(bytes)).collect())
    }

    /// Text of at most `longest` bytes, after its length.
    pub(super) fn text(&mut self, longest: u64) -> Result<&'a str, String> {
        let length = self.u64()?;
        if length > longest {
            return Err(format!("is {length} bytes long; expected at most {longest}"));
        }
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|error| format!("is not UTF-8: {error}"))
    }

    /// Refuses a count of things that cannot all follow.
    pub(super) fn expect_items(&self, count: u64, least_bytes_each: u64) -> Result<(), String> {
        self.expect(count.saturating_mul(least_bytes_each))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        self.expect(count)?;
        // No truncation: `expect` has compared it with a length in memory.
        let bytes = &self.bytes[self.position..][..count as usize];
        self.position += bytes.len();
        Ok(bytes)
    }

    fn expect(&self, count: u64) -> Result<(), String> {
        let left = self.bytes.len() - self.position;
        if count <= left as u64 {
            return Ok(());
        }
        Err(format!("is cut off: it takes {count} bytes, {left} are left"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order_and_never_past_the_end() {
        let mut cursor = HeaderCursor::new(&[1, 0, 0, 0, 2, 0, 3, 0, 9]);
        assert_eq!(cursor.u32(), Ok(1));
        assert_eq!(cursor.scalars(2, u16::from_le_bytes), Ok(vec![2, 3]));
        let cut = cursor.u32().unwrap_err();
        assert_eq!(cut, "is cut off: it takes 4 bytes, 1 are left");
        assert_eq!(cursor.position(), 8, "a failed read takes nothing");
        assert!(cursor.scalars(u64::MAX, u64::from_le_bytes).is_err());
        assert!(cursor.expect_items(u64::MAX, 2).is_err());
        assert!(cursor.expect_items(1, 1).is_ok());
    }

    #[test]
    fn text_is_short_and_utf8() {
        let text = |length: u64, bytes: &[u8]| {
            let bytes = [&length.to_le_bytes(), bytes].concat();
            HeaderCursor::new(&bytes).text(8).map(str::to_owned)
        };
        assert_eq!(text(2, b"hi").unwrap(), "hi");
        assert_eq!(text(0, b"").unwrap(), "");
        assert!(text(2, b"h").unwrap_err().contains("is cut off"));
        assert!(text(9, b"123456789").unwrap_err().contains("expected at most 8"));
        assert!(text(u64::MAX, b"").unwrap_err().contains("is 18446744073709551615 bytes long"));
        assert!(text(2, &[b'a', 0xff]).unwrap_err().contains("is not UTF-8"));
    }
}
