//! Bytes on their way into a file of curves. A disk may fill up in the middle of them; what it took counts,
//! so the next attempt goes on behind it and writes nothing twice.

use std::io::{self, ErrorKind, Write};

/// Writes `unwritten` and takes from it what the file has.
pub(super) fn drain(file: &mut impl Write, unwritten: &mut Vec<u8>) -> io::Result<()> {
    while !unwritten.is_empty() {
        match file.write(unwritten) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(length) => drop(unwritten.drain(..length)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has room for some bytes, and takes three at a time.
    struct Disk(Vec<u8>, usize);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(3).min(self.1 - self.0.len());
            self.0.extend(&bytes[..count]);
            if count > 0 { Ok(count) } else { Err(ErrorKind::StorageFull.into()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_fills_up_gets_nothing_twice() {
        let (mut disk, mut unwritten) = (Disk(Vec::new(), 7), b"one line\n".to_vec());
        let error = drain(&mut disk, &mut unwritten).unwrap_err();
        assert_eq!((error.kind(), unwritten.len()), (ErrorKind::StorageFull, 2));
        disk.1 = 100;
        drain(&mut disk, &mut unwritten).unwrap();
        assert_eq!((disk.0.as_slice(), unwritten.len()), (&b"one line\n"[..], 0));
    }
}
