//! What the tests of all formats share, and the bytes that no change may alter.

use half::f16;

use super::{i2_s, ptq1_0, q2_0, q6_k, q8_0, tq1_0, tq2_0};
use crate::packed::PackedTernary;
use crate::quant::WeightScale;

/// The draws of the generator of the golden vectors.
fn golden_draws() -> impl Iterator<Item = u32> {
    let next = |x: &u32| Some(x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(1), next).skip(1).take(8 * 256)
}

/// The spec's golden matrix `[8, 256]`.
pub(super) fn golden_codes() -> Vec<i8> {
    golden_draws().map(|x| ((x >> 16) % 3) as i8 - 1).collect()
}

/// A float matrix `[8, 256]` of the same draws, in -1..1; one row of zeros, one in one group only.
fn golden_values() -> Vec<f32> {
    let mut values: Vec<f32> =
        golden_draws().map(|x| (f32::from((x >> 16) as u16) - 32768.0) / 32768.0).collect();
    values[256..512].fill(0.0);
    values[512..752].fill(0.0);
    values
}

/// Pseudorandom numbers in 0..2³¹.
fn random(seed: u64) -> impl FnMut() -> u32 {
    let mut x = seed | 1;
    move || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (x >> 33) as u32
    }
}

pub(super) fn random_codes(length: usize, seed: u64) -> Vec<i8> {
    let mut draw = random(seed);
    (0..length).map(|_| (draw() % 3) as i8 - 1).collect()
}

/// Values of a standard Gaussian, by Box and Muller.
pub(super) fn gaussian(length: usize, seed: u64) -> Vec<f32> {
    let mut draw = random(seed);
    let mut uniform = || (f64::from(draw()) + 0.5) / f64::from(1u32 << 31);
    let mut value = || {
        let radius = (-2.0 * uniform().ln()).sqrt();
        (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
    };
    (0..length).map(|_| value()).collect()
}

/// The root mean square of the error, as a share of that of the values.
pub(super) fn relative_rms(values: &[f32], found: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = values.iter().zip(found).map(|(x, y)| square(x - y)).sum();
    (error / values.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

/// CRC-32 as in zip and PNG.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// Length, first 32 bytes and checksum.
fn summary(bytes: &[u8]) -> (usize, String, String) {
    let head = bytes[..32].iter().map(|byte| format!("{byte:02x}")).collect();
    (bytes.len(), head, format!("{:08x}", crc32(bytes)))
}

fn frozen(length: usize, head: &str, crc: &str) -> (usize, String, String) {
    (length, head.to_owned(), crc.to_owned())
}

fn golden_i2_s(layout: i2_s::I2sLayout) -> Vec<u8> {
    i2_s::pack(&golden_codes(), WeightScale::from_stored(0.375).unwrap(), layout)
}

#[test]
fn the_checksum_is_the_common_one() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn the_golden_matrix_is_that_of_the_spec() {
    let codes = golden_codes();
    let count = |wanted| codes.iter().filter(|&&code| code == wanted).count();
    assert_eq!([-1, 0, 1].map(count), [700, 685, 663]);
    assert_eq!(codes[..8], [0, 1, 0, 0, -1, -1, 1, -1]);
}

#[test]
fn hf_packed_layout_is_frozen() {
    let packed = PackedTernary::from_codes(8, 256, &golden_codes()).unwrap();
    let head = "61a2910998041284a46918469200209211aa5aaa6815204002280544505aa519";
    assert_eq!(summary(packed.bytes()), frozen(512, head, "db43ee90"));
}

#[test]
fn i2_s_layout_is_frozen() {
    let head = "52896a4a1925a22129400594902905a86690a58515650a219104462125884542";
    let bytes = golden_i2_s(i2_s::I2sLayout::Blocks128);
    assert_eq!(summary(&bytes), frozen(544, head, "58c749ac"));
}

#[test]
fn i2_s_layout_of_64_is_frozen() {
    let head = "56a16a60051a880a29401086862810981a84999995552a058510564111a45582";
    let bytes = golden_i2_s(i2_s::I2sLayout::Blocks64);
    assert_eq!(summary(&bytes), frozen(544, head, "b89cbac4"));
}

#[test]
fn tq1_0_layout_is_frozen() {
    let head = "7bc2a86f3547ec3f51580ed1c8500ef7a1caf2b82c9d1b3ecc0b663d47bf645e";
    let bytes = tq1_0::pack(&golden_codes(), f16::from_f32(0.375));
    assert_eq!(summary(&bytes), frozen(432, head, "d0fc3ce0"));
}

#[test]
fn tq2_0_layout_is_frozen() {
    let head = "8562a9a164588a48680150160668502a99065a525459a0484610914858225181";
    let bytes = tq2_0::pack(&golden_codes(), f16::from_f32(0.375));
    assert_eq!(summary(&bytes), frozen(528, head, "2872f7cb"));
}

/// Bytes of llama.cpp's `quantize_row_q2_0_ref`, as llama-cpp-sys-2 0.1.161 holds it, of the golden
/// codes times 0.375.
#[test]
fn q2_0_layout_is_frozen() {
    let head = "003659208482a904125821a94289268981020036a806529851251419a6651114";
    let bytes = q2_0::pack(&golden_codes(), &[f16::from_f32(0.375); 32], 64);
    assert_eq!(summary(&bytes), frozen(576, head, "a564ee5c"));
}

/// Bytes of another program that follows the fork's description; we had none of its own.
#[test]
fn ptq1_0_is_read_as_its_description_says() {
    let codes = golden_codes();
    let bytes = ptq1_0::pack(&codes, f16::from_f32(0.375));
    let head = "82e9aa910f37be1a52561ebcbb4e1edd6e26896a7d9ce00b9b230036fe9f1e08";
    assert_eq!(summary(&bytes), frozen(448, head, "ba30cf78"));
    assert_eq!(ptq1_0::unpack(&bytes, 2048), Ok((codes, vec![f16::from_f32(0.375); 16])));
}

/// Bytes of gguf-py 0.19.0, `gguf.quants.quantize(values, Q8_0)`.
#[test]
fn q8_0_layout_is_frozen() {
    let head = "cc1fbbde01368ade480f8125beec1858ba7e5fd33008b5988fd09f3616e0c242";
    assert_eq!(summary(&q8_0::quantise(&golden_values())), frozen(2176, head, "cb02b186"));
}

/// Bytes of `quantize_row_q6_K_ref` (llama.cpp), compiled without contraction of products.
#[test]
fn q6_k_layout_is_frozen() {
    let head = "df48f0ed03c832745129101b56766f0f965d333eb54ddf5d2b11bad9c1ce6117";
    assert_eq!(summary(&q6_k::quantise(&golden_values())), frozen(1680, head, "462e9cc2"));
}
