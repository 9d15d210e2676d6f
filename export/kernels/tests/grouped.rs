//! Products with groups: every kernel of this CPU against the definition, the same bits on any shape.

mod draws;

use bitnet_format::grouped::GroupedTernary;
use bitnet_format::quant::ActivationScale;
use bitnet_kernels::{Activations, GroupPanels, Kernel, TernaryPanels, grouped_product};
use half::f16;
use proptest::prelude::*;

use draws::Draws;

impl Draws {
    /// Codes of two bits, +2 among them.
    fn matrix(&mut self, rows: usize, columns: usize, width: usize) -> GroupedTernary {
        let codes = (0..rows * columns).map(|_| (self.next() % 4) as i8 - 1).collect();
        let mut scale =
            || f16::from_bits((self.next() % 0x4000) as u16 | (self.next() as u16 & 0x8000));
        let scales = (0..rows * columns / width).map(|_| scale().to_f32()).collect();
        GroupedTernary::new(columns, width, codes, scales)
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next() as f32 / 1e9 - 1.0).collect()
    }

    fn activations(&mut self, tokens: usize, columns: usize) -> Activations {
        let codes: Vec<i8> = (0..tokens * columns).map(|_| self.next() as i8).collect();
        let scales: Vec<_> = (0..tokens)
            .map(|_| ActivationScale::from_absmax((self.next() % 1000) as f32 / 37.0))
            .collect();
        Activations::from_codes(&codes, columns, &scales)
    }
}

/// The formula of the product, word for word.
fn defined(matrix: &GroupedTernary, x: &Activations) -> Vec<u32> {
    let (columns, width) = (matrix.columns(), matrix.width());
    let groups = columns / width;
    let one = |token: usize, row: usize| {
        let step = 1.0 / x.scale(token).multiplier();
        let mut acc = 0.0f32;
        for group in 0..groups {
            let at = group * width..(group + 1) * width;
            let codes = &matrix.codes()[row * columns..][at.clone()];
            let sum: i32 = codes
                .iter()
                .zip(&x.codes(token)[at])
                .map(|(&c, &q)| i32::from(c) * i32::from(q))
                .sum();
            acc += matrix.scales()[row * groups + group] * (step * sum as f32);
        }
        acc.to_bits()
    };
    let tokens = 0..x.tokens();
    tokens.flat_map(|token| (0..matrix.rows()).map(move |row| one(token, row))).collect()
}

/// The formula of the product with float tokens: blocks of so many columns, each with four sums.
fn defined_in_floats(matrix: &GroupedTernary, block: usize, x: &[f32]) -> Vec<u32> {
    let (columns, width) = (matrix.columns(), matrix.width());
    let one = |x: &[f32], row: usize| {
        let codes = &matrix.codes()[row * columns..][..columns];
        let scales = &matrix.scales()[row * (columns / width)..][..columns / width];
        let mut acc = 0.0f32;
        for (index, (codes, x)) in codes.chunks(block).zip(x.chunks(block)).enumerate() {
            let mut s = [0.0f32; 4];
            for (column, (&code, x)) in codes.iter().zip(x).enumerate() {
                s[column % 4] += f32::from(code) * x;
            }
            let sum = (s[0] + s[1]) + (s[2] + s[3]);
            acc += if width == block { scales[index] * sum } else { sum };
        }
        if width == block { acc } else { acc * scales[0] }.to_bits()
    };
    x.chunks_exact(columns).flat_map(|x| (0..matrix.rows()).map(move |row| one(x, row))).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn panels(matrix: &GroupedTernary) -> GroupPanels {
    let mut panels = GroupPanels::zeros(matrix.rows(), matrix.columns(), matrix.width());
    let middle = matrix.rows() / 2;
    panels.write(middle, &matrix.part(middle..matrix.rows()));
    panels.write(0, &matrix.part(0..middle));
    panels
}

fn products(kernel: Kernel, panels: &GroupPanels, x: &Activations) -> Vec<u32> {
    let mut out = vec![f32::NAN; x.tokens() * panels.rows()];
    grouped_product(kernel, panels, x, 0..panels.rows(), &mut out);
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn the_largest_sums_of_a_group_are_exact() {
    for width in [64, 128, 256] {
        for (code, q) in [(2, 127), (2, -128), (-1, -128), (2, -127)] {
            let matrix =
                GroupedTernary::new(512, width, vec![code; 33 * 512], vec![1.0; 33 * 512 / width]);
            let panels = panels(&matrix);
            for tokens in 1..=5 {
                let one = ActivationScale::ONE;
                let x = Activations::from_codes(&vec![q; tokens * 512], 512, &vec![one; tokens]);
                let expected = (512 * i32::from(code) * i32::from(q)) as f32;
                for kernel in Kernel::available() {
                    let found = products(kernel, &panels, &x);
                    assert!(
                        found.iter().all(|&bits| bits == expected.to_bits()),
                        "{kernel:?} {code}"
                    );
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "starts at a multiple of 32")]
fn a_row_range_within_a_pair_of_panels_is_refused() {
    let panels = GroupPanels::zeros(64, 64, 64);
    let x = Activations::quantise(Kernel::Scalar, &[1.0; 64], 64);
    grouped_product(Kernel::Scalar, &panels, &x, 16..64, &mut [0.0; 48]);
}

#[test]
fn a_matrix_with_a_scale_a_row_is_that_of_panels() {
    let mut draws = Draws(3);
    let codes: Vec<i8> = (0..37 * 83).map(|_| (draws.next() % 3) as i8 - 1).collect();
    let scales: Vec<f32> = (0..37).map(|row| 0.1 + row as f32).collect();
    let matrix = GroupedTernary::new(83, 83, codes, scales.clone());
    let panels = TernaryPanels::of_rows(&[matrix.part(0..20), matrix.part(20..37)]);
    assert_eq!(panels.scales(), scales);
    let mut row = vec![0.0; 83];
    for index in 0..37 {
        panels.copy_row(index, &mut row);
        assert_eq!(row, matrix.part(index..index + 1).values());
    }
}

proptest! {
    #[test]
    fn every_kernel_gives_the_bits_of_the_definition(
        rows in 1usize..70, groups in 1usize..12, size in 0usize..3, tokens in 0usize..45, seed: u64,
    ) {
        // Tiles multiply from twelve tokens on: one or two of tokens, and blocks of up to eight groups.
        let width = [64, 128, 256][size];
        let mut draws = Draws(seed);
        let matrix = draws.matrix(rows, groups * width, width);
        let x = draws.activations(tokens, groups * width);
        let expected = defined(&matrix, &x);
        let panels = panels(&matrix);
        for kernel in Kernel::available() {
            prop_assert_eq!(&products(kernel, &panels, &x), &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn many_tokens_and_ranges_of_rows_are_parts_of_the_whole(tokens in 60usize..140, seed: u64) {
        let mut draws = Draws(seed);
        let matrix = draws.matrix(70, 128, 64);
        let x = draws.activations(tokens, 128);
        let panels = panels(&matrix);
        let whole = products(Kernel::Scalar, &panels, &x);
        for kernel in Kernel::available() {
            let mut out = vec![0.0; tokens * 38];
            grouped_product(kernel, &panels, &x, 32..70, &mut out);
            for (token, out) in out.chunks(38).enumerate() {
                let bits: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                prop_assert_eq!(&bits, &whole[token * 70 + 32..][..38], "{:?}", kernel);
            }
        }
    }

    #[test]
    fn float_products_have_the_bits_of_their_definition(
        rows in 1usize..100, groups in 1usize..5, size in 0usize..3, tokens in 0usize..15, seed: u64,
    ) {
        let width = [64, 128, 256][size];
        let mut draws = Draws(seed);
        let matrix = draws.matrix(rows, groups * width, width);
        let x = draws.floats(tokens * groups * width);
        let expected = defined_in_floats(&matrix, width, &x);
        let panels = panels(&matrix);
        for kernel in Kernel::available() {
            let mut out = vec![f32::NAN; tokens * rows];
            panels.float_product(kernel, &x, 0..rows, &mut out);
            prop_assert_eq!(&bits(&out), &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn float_products_with_a_scale_a_row_have_the_bits_of_their_definition(
        rows in 1usize..100, columns in 1usize..700, tokens in 0usize..15, seed: u64,
    ) {
        let mut draws = Draws(seed);
        let codes: Vec<i8> = (0..rows * columns).map(|_| (draws.next() % 3) as i8 - 1).collect();
        let scales = (0..rows).map(|row| 0.1 + row as f32).collect();
        let matrix = GroupedTernary::new(columns, columns, codes, scales);
        let x = draws.floats(tokens * columns);
        let expected = defined_in_floats(&matrix, 256, &x);
        let panels = TernaryPanels::of_rows(std::slice::from_ref(&matrix));
        for kernel in Kernel::available() {
            let mut out = vec![f32::NAN; tokens * rows];
            panels.float_product(kernel, &x, 0..rows, &mut out);
            prop_assert_eq!(&bits(&out), &expected, "{:?}", kernel);
        }
    }
}

#[test]
fn float_products_of_many_tokens_and_of_ranges_of_rows_are_parts_of_the_whole() {
    let mut draws = Draws(5);
    let matrix = draws.matrix(70, 128, 64);
    let x = draws.floats(131 * 128);
    let (panels, expected) = (panels(&matrix), defined_in_floats(&matrix, 64, &x));
    for kernel in Kernel::available() {
        let mut out = vec![f32::NAN; 131 * 38];
        panels.float_product(kernel, &x, 32..70, &mut out);
        for (token, out) in out.chunks(38).enumerate() {
            assert_eq!(bits(out), expected[token * 70 + 32..][..38], "{kernel:?}");
        }
    }
}
