//! Every defect that has brought a GGUF reader down somewhere, by hand: each is refused with a
//! message that names the file and the field. Numbers are issues of llama.cpp.

use super::raw::{Raw, array, text, text_of_length, words};
use super::{open, sample_metadata, sample_tensors, written};

const F32: u32 = 0;
const U32_VALUE: u32 = 4;
const STRING_VALUE: u32 = 8;
const ARRAY_VALUE: u32 = 9;

/// A file with one pair.
fn pair(key: &str, type_id: u32, value: &[u8]) -> Raw {
    Raw::default().pair(key, type_id, value)
}

/// A file with one tensor and as much data.
fn tensor(extents: &[u64], kind: u32, offset: u64, data: usize) -> Raw {
    Raw::default().tensor("w", extents, kind, offset).data(data)
}

/// A pair whose key is these bytes behind this length.
fn keyed(length: u64, key: &[u8]) -> Raw {
    let pairs = [text_of_length(length, key), vec![0, 0, 0, 0, 7]].concat();
    Raw { pair_count: 1, pairs, ..Raw::default() }.data(32)
}

/// A tensor whose name is these bytes behind this length.
fn named(length: u64, name: &[u8]) -> Raw {
    let rest = [&1u32.to_le_bytes()[..], &words(&[1]), &[0; 12]].concat();
    let tensors = [text_of_length(length, name), rest].concat();
    Raw { tensor_count: 1, tensors, ..Raw::default() }.data(32)
}

#[track_caller]
fn refused(bytes: Vec<u8>, expected: &str) {
    let error = open(bytes).map(|_| ()).expect_err(expected).to_string();
    let expected = format!("m.gguf{expected}");
    assert!(error.starts_with(&expected), "expected {expected:?}, got {error:?}");
    assert!(error.len() < 400, "{error}");
    assert!(error.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{error:?}");
}

#[test]
fn a_wrong_header_is_refused() {
    for (raw, expected) in [
        (Raw { magic: *b"GGJT", ..Raw::default() }, ": starts with \"GGJT\"; expected \"GGUF\""),
        (Raw { magic: [27; 4], ..Raw::default() }, ": starts with \"\\x1b\\x1b\\x1b\\x1b\"; "),
        (Raw { version: [0; 4], ..Raw::default() }, ": has the version 0; expected 2 or 3"),
        (Raw { version: [1, 0, 0, 0], ..Raw::default() }, ": has the version 1; expected"),
        (Raw { version: [4, 0, 0, 0], ..Raw::default() }, ": has the version 4; expected"),
        (
            Raw { version: [0, 0, 0, 3], ..Raw::default() },
            ": has the version 3 in big-endian byte order; expected 2 or 3, little-endian",
        ),
        (
            Raw { tensor_count: u64::MAX, ..Raw::default() },
            ": the number of tensors is 18446744073709551615; expected at most 262144",
        ),
        (
            Raw { pair_count: u64::MAX, ..Raw::default() },
            ": the number of metadata pairs is 18446744073709551615; expected at most 65536",
        ),
        (
            Raw { tensor_count: 9, ..Raw::default() },
            ": the list of tensors is cut off: it takes 297 bytes, 0 are left",
        ),
        (
            Raw { pair_count: 9, ..Raw::default() },
            ": the metadata is cut off: it takes 126 bytes, 0 are left",
        ),
    ] {
        refused(raw.bytes(), expected);
    }
    refused(vec![], ": the magic number is cut off: it takes 4 bytes, 0 are left");
    refused(b"GGUF".to_vec(), ": the version is cut off");
}

#[test]
fn a_bad_key_is_refused() {
    let long = "k".repeat(65536);
    for (raw, expected) in [
        (keyed(u64::MAX, b"k"), " is 18446744073709551615 bytes long; expected at most 65535"),
        (keyed(65536, long.as_bytes()), " is 65536 bytes long; expected at most 65535"),
        (keyed(100, b"k"), " is cut off: it takes 100 bytes, 64 are left"),
        (keyed(0, b""), " is \"\"; expected plain printable ASCII"),
        (keyed(2, &[b'k', 0xff]), " is not UTF-8"),
        (keyed(4, b"\x1b[2J"), " is \"\\u{1b}[2J\"; expected plain"),
        (keyed(3, b"a\nb"), " is \"a\\nb\"; expected plain"),
    ] {
        refused(raw.bytes(), &format!(": the key of metadata pair 0{expected}"));
    }
    let twice = pair("k", U32_VALUE, &[0; 4]).pair("k", STRING_VALUE, &text(b""));
    refused(twice.bytes(), " [k]: occurs twice");
}

#[test]
fn a_bad_value_is_refused() {
    let most = u64::MAX;
    for (raw, expected) in [
        (pair("k", 13, &[0; 8]), "has the value type 13; expected 0 to 12"),
        (pair("k", u32::MAX, &[0; 8]), "has the value type 4294967295; expected 0 to 12"),
        (pair("k", 7, &[2]), "holds 2 as a boolean; expected 0 or 1"),
        (pair("k", 10, &[0; 7]), "is cut off: it takes 8 bytes, 7 are left"),
        (pair("k", 8, &text_of_length(most, b"x")), "is 18446744073709551615 bytes long; "),
        (pair("k", 8, &text_of_length(1 << 30, b"x")), "is 1073741824 bytes long; "),
        (pair("k", 8, &text_of_length(2, b"x")), "is cut off: it takes 2 bytes, 1 are left"),
        (pair("k", 8, &text(&[0xc3, 0x28])), "is not UTF-8"),
        (pair("k", 9, &array(13, 0, &[])), "has the value type 13; expected 0 to 12"),
        (pair("k", 9, &array(9, 1, &array(0, 1, &[0]))), "is an array of arrays"),
        (pair("k", 9, &array(0, 1 << 40, &[0])), "is cut off: it takes 1099511627776 bytes"),
        (pair("k", 9, &array(10, most, &[0; 8])), "is cut off: it takes 18446744073709551615"),
        // 2^61 times 8 bytes wraps around to 0.
        (pair("k", 9, &array(10, 1 << 61, &[])), "is cut off: it takes 18446744073709551615"),
        (pair("k", 9, &array(8, 1 << 61, &[])), "is cut off: it takes 18446744073709551615"),
        (pair("k", 9, &array(8, 1 << 40, &[0; 8])), "is cut off: it takes 8796093022208 bytes"),
        (pair("k", 9, &array(8, 1, &words(&[most]))), "element 0 is 18446744073709551615 bytes"),
        (pair("k", 9, &array(8, 1, &text(&[0xff]))), "element 0 is not UTF-8"),
        (pair("k", 9, &array(7, 2, &[1, 2])), "holds 2 as a boolean; expected 0 or 1"),
    ] {
        refused(raw.bytes(), &format!(" [k]: {expected}"));
    }
}

/// gguf-py recursed until the interpreter stopped it.
#[test]
fn arrays_nested_ten_thousand_deep_are_refused() {
    let value = array(ARRAY_VALUE, 1, &[]).repeat(10_000);
    refused(pair("k", ARRAY_VALUE, &value).bytes(), " [k]: is an array of arrays");
}

/// #26318 and gguf-py: zero, odd, or of another type.
#[test]
fn a_bad_alignment_is_refused() {
    for (type_id, value, found) in [
        (U32_VALUE, &[0, 0, 0, 0][..], "0 (u32)"),
        (U32_VALUE, &[4, 0, 0, 0], "4 (u32)"),
        (U32_VALUE, &[13, 0, 0, 0], "13 (u32)"),
        (U32_VALUE, &[255, 255, 255, 255], "4294967295 (u32)"),
        (10, &[32, 0, 0, 0, 0, 0, 0, 0], "32 (u64)"),
        (5, &[32, 0, 0, 0], "32 (i32)"),
        (STRING_VALUE, &text(b"32"), "a string"),
    ] {
        let raw = pair("general.alignment", type_id, value).tensor("w", &[1], F32, 0).data(32);
        let expected = format!(" [general.alignment]: is {found}; expected a power of two from 8");
        refused(raw.bytes(), &expected);
    }
}

#[test]
fn the_largest_alignment_only_moves_the_end() {
    let raw = pair("general.alignment", U32_VALUE, &(1u32 << 31).to_le_bytes());
    let raw = raw.tensor("w", &[1], F32, 0).data(32);
    refused(raw.bytes(), " [w]: is cut off: it takes 4 bytes from 2147483648, the file has ");
}

#[test]
fn a_bad_tensor_name_is_refused() {
    let long = "n".repeat(65);
    for (raw, expected) in [
        (named(u64::MAX, b"n"), " is 18446744073709551615 bytes long; expected at most 64"),
        (named(65, long.as_bytes()), " is 65 bytes long; expected at most 64"),
        (named(0, b""), " is \"\"; expected plain printable ASCII"),
        (named(1, &[0xff]), " is not UTF-8"),
        (named(4, b"\x1b[2J"), " is \"\\u{1b}[2J\"; expected plain"),
        (named(2, b"\r\n"), " is \"\\r\\n\"; expected plain"),
    ] {
        refused(raw.bytes(), &format!(": the name of tensor 0{expected}"));
    }
    let twice = Raw::default().tensor("w", &[8], F32, 0).tensor("w", &[8], F32, 32).data(64);
    refused(twice.bytes(), " [w]: occurs twice");
}

#[test]
fn a_bad_shape_is_refused() {
    let five = [1; 5];
    for (extents, kind, expected) in [
        (&[][..], F32, "has 0 dimensions; expected 1 to 4"),
        (&five, F32, "has 5 dimensions; expected 1 to 4"),
        // #24263: a division by zero.
        (&[0], F32, "has a dimension of 0; expected 1 to 9223372036854775807"),
        (&[4, 0, 2], F32, "has a dimension of 0; expected 1 to"),
        (&[u64::MAX], F32, "has a dimension of 18446744073709551615; expected 1 to"),
        (&[1 << 63, 2], F32, "has a dimension of 9223372036854775808; expected 1 to"),
        // #14595, #18674: the product of the dimensions wraps around, here to 0.
        (&[1 << 32, 1 << 32], F32, "has shape [4294967296, 4294967296], which overflows"),
        (&[1 << 22, (1 << 42) + 1], F32, "has shape [4398046511105, 4194304], which overflows"),
        // The product fits, the bytes do not.
        (&[1 << 62], F32, "has shape [4611686018427387904]; expected a multiple of 1 columns"),
        (&[48, 32], 8, "has shape [32, 48]; expected a multiple of 32 columns for Q8_0"),
        (&[128, 2], 14, "has shape [2, 128]; expected a multiple of 256 columns for Q6_K"),
        (&[128, 2], 34, "has shape [2, 128]; expected a multiple of 256 columns for TQ1_0"),
        (&[128, 2], 35, "has shape [2, 128]; expected a multiple of 256 columns for TQ2_0"),
        (&[64, 3], 36, "has shape [3, 64]; expected a multiple of 128 values for I2_S"),
    ] {
        refused(tensor(extents, kind, 0, 1024).bytes(), &format!(" [w]: {expected}"));
    }
    let tensors = [text(b"w"), u32::MAX.to_le_bytes().to_vec(), vec![0; 64]].concat();
    refused(
        Raw { tensor_count: 1, tensors, ..Raw::default() }.bytes(),
        " [w]: has 4294967295 dimensions; expected 1 to 4",
    );
}

#[test]
fn a_type_that_is_not_read_is_named() {
    for (id, name) in [
        (2, " (Q4_0)"),
        (4, ""),
        (12, " (Q4_K)"),
        (31, " (a retired layout of Q4_0)"),
        (37, " (bitnet.cpp's I8_S, or a retired layout of IQ4_NL)"),
        (38, " (bitnet.cpp's TL1, or a retired layout of IQ4_NL)"),
        (39, " (bitnet.cpp's TL2, or llama.cpp's MXFP4)"),
        (135, " (ik_llama.cpp's IQ2_BN)"),
        (u32::MAX, ""),
    ] {
        let expected =
            format!(" [w]: has the type id {id}{name}; expected one of F32, F16, Q8_0, ");
        refused(tensor(&[256], id, 0, 1024).bytes(), &expected);
    }
}

#[test]
fn a_bad_offset_is_refused() {
    let two = |second: u64| {
        Raw::default().tensor("a", &[9], F32, 0).tensor("w", &[1], F32, second).data(96)
    };
    assert!(open(two(64).bytes()).is_ok());
    let from = "from the start of the data; expected";
    // Unaligned, an overlap, a second time the first, a gap, beyond any file.
    for offset in [65, 32, 0, 96, u64::MAX] {
        refused(two(offset).bytes(), &format!(" [w]: has the offset {offset} {from} 64"));
    }
    refused(tensor(&[1], F32, 32, 64).bytes(), &format!(" [w]: has the offset 32 {from} 0"));
}

/// CVE-2025-53630, CVE-2026-27940: the sum of the padded sizes wraps around.
#[test]
fn sizes_whose_sum_overflows_are_refused() {
    let huge = 1u64 << 61; // 2^63 bytes of F32
    let raw = Raw::default().tensor("w", &[huge], F32, 0).tensor("x", &[huge], F32, 1 << 63);
    refused(raw.data(32).bytes(), " [w]: is cut off: it takes 9223372036854775808 bytes from ");
    // 2^64 - 8 bytes: padding that alone wraps around.
    let raw = tensor(&[(1 << 62) - 2], F32, 0, 32);
    refused(raw.bytes(), " [w]: is cut off: it takes 18446744073709551608 bytes from ");
}

#[test]
fn data_that_is_cut_or_too_long_is_refused() {
    refused(tensor(&[9], F32, 0, 35).bytes(), " [w]: is cut off: it takes 36 bytes from 64, the");
    refused(tensor(&[9], F32, 0, 0).bytes(), " [w]: is cut off: it takes 36 bytes from 64, the");
    refused(tensor(&[9], F32, 0, 65).bytes(), ": has 129 bytes; expected 128 at most");
    assert!(open(tensor(&[9], F32, 0, 64).bytes()).is_ok());
    let longer = [Raw::default().bytes(), vec![0; 9]].concat();
    refused(longer, ": has 33 bytes; expected 32 at most");
}

/// Wherever a file ends, that is an error: only the padding behind the last tensor may be absent.
#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = written(&sample_metadata(), &sample_tensors());
    let file = open(bytes.clone()).unwrap();
    let last = file.tensors().last().unwrap().len();
    let padding = last.next_multiple_of(32) - last;
    for len in 0..bytes.len() - padding {
        let error = open(bytes[..len].to_vec()).unwrap_err().to_string();
        assert!(error.starts_with("m.gguf") && error.contains("cut off"), "{len}: {error}");
    }
}

/// #19856 and #19919: limits must not be checked by looking at everything again and again.
#[test]
fn as_many_pairs_and_tensors_as_allowed_are_read_and_one_more_is_not() {
    let pair_count = 1 << 16;
    let mut raw = (0..pair_count).fold(Raw::default(), |raw, i| raw.pair(&format!("{i}"), 0, &[0]));
    assert_eq!(open(raw.bytes()).unwrap().metadata().len(), pair_count);
    raw = raw.pair("k", 0, &[0]);
    refused(raw.bytes(), ": the number of metadata pairs is 65537; expected at most 65536");
}
