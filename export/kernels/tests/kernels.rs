//! Every kernel of this CPU against the definitions: the same bits on any shape.
#![allow(clippy::float_cmp, reason = "tests state exact values")]

mod draws;

use std::sync::Arc;

use bitnet_format::DType;
use bitnet_format::packed::PackedTernary;
use bitnet_format::quant::{ActivationScale, WeightScale, quantise_row, ternary_codes};
use bitnet_kernels::attention::{Element, HeadLayout, HeadView, PAGE, QueryRow, attend};
use bitnet_kernels::{
    Activations, DenseMatrix, Int8Matrix, Kernel, MatrixA, MatrixB, OperandLayout, Operands,
    PackedB, Scale, Size, TernaryPanels, accumulate, float_product, matmul,
};
use half::{bf16, f16};
use proptest::prelude::*;

use draws::Draws;

const OPERANDS: [Operands; 3] = [Operands::F32, Operands::Bf16, Operands::Bf16Tiles];

impl Draws {
    fn ternary(&mut self, count: usize) -> Vec<i8> {
        (0..count).map(|_| (self.next() % 3) as i8 - 1).collect()
    }

    fn codes(&mut self, count: usize) -> Vec<i8> {
        (0..count).map(|_| self.next() as i8).collect()
    }

    /// Finite numbers of every magnitude, zeros and ties among them.
    fn floats(&mut self, count: usize) -> Vec<f32> {
        let mut one = || match self.next() % 8 {
            0 => 0.0,
            1 => (self.next() % 255) as f32 / 2.0 - 63.5,
            2 => f32::from_bits(self.next() % 0x0080_0000),
            _ => self.next() as f32 / 1e9 - 1.0,
        };
        (0..count).map(|_| one()).collect()
    }
}

fn scale(value: f32) -> WeightScale {
    WeightScale::from_stored(value).unwrap()
}

/// `Σ q·T` as its definition reads, `[T, N]`.
fn products(weights: &[i8], x: &Activations) -> Vec<i32> {
    let row = |token: usize| weights.chunks(x.columns()).map(move |w| product(w, x.codes(token)));
    (0..x.tokens()).flat_map(row).collect()
}

fn product(w: &[i8], x: &[i8]) -> i32 {
    w.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum()
}

fn accumulated(kernel: Kernel, panels: &TernaryPanels, x: &Activations) -> Vec<i32> {
    let mut out = vec![0; x.tokens() * panels.rows()];
    accumulate(kernel, panels, x, 0..panels.rows(), &mut out);
    out
}

#[test]
fn the_largest_sums_are_exact() {
    let columns = 8192;
    let one = ActivationScale::from_absmax(127.0);
    for weight in [1, -1] {
        let panels = TernaryPanels::from_codes(columns, &vec![weight; 33 * columns], scale(1.0));
        for code in [127, -127, -128] {
            let expected = columns as i32 * i32::from(weight) * i32::from(code);
            for tokens in 1..=5 {
                let codes = vec![code; tokens * columns];
                let x = Activations::from_codes(&codes, columns, &vec![one; tokens]);
                for kernel in Kernel::available() {
                    let sums = accumulated(kernel, &panels, &x);
                    assert!(sums.iter().all(|&sum| sum == expected), "{kernel:?} {code}");
                }
            }
        }
    }
}

#[test]
fn special_activations_quantise_alike() {
    let tie = |i: i32| (i - 20) as f32 + 0.5;
    let mut ties: Vec<f32> = (0..40).map(tie).collect();
    ties[39] = 127.0;
    let mut with_nan = ties.clone();
    (with_nan[3], with_nan[38]) = (f32::NAN, -f32::NAN);
    let mut with_infinity = ties.clone();
    with_infinity[5] = f32::NEG_INFINITY;
    let rows = [
        ties,
        with_nan,
        with_infinity,
        vec![0.0; 40],
        vec![-0.0; 33],
        vec![f32::MIN_POSITIVE / 4.0; 65],
        vec![f32::MAX, -f32::MAX, 1.0],
        vec![f32::NAN; 64],
        vec![9e-6; 32],
    ];
    for row in rows {
        check_quantiser(&row);
    }
}

fn check_quantiser(row: &[f32]) {
    let mut expected = vec![0; row.len()];
    let scale = quantise_row(row, &mut expected);
    for kernel in Kernel::available() {
        let x = Activations::quantise(kernel, row, row.len());
        assert_eq!(x.codes(0), expected, "{kernel:?} on {row:?}");
        assert_eq!(x.scale(0).multiplier().to_bits(), scale.multiplier().to_bits());
    }
}

#[test]
fn a_kernel_is_found_by_its_name() {
    assert_eq!(Kernel::named("scalar"), Some(Kernel::Scalar));
    assert_eq!(Kernel::named("quantum"), None);
    assert_eq!(Kernel::available().last(), Some(&Kernel::detect()));
}

#[test]
#[should_panic(expected = "starts at a multiple of 32")]
fn a_row_range_within_a_pair_of_panels_is_refused() {
    let panels = TernaryPanels::from_codes(1, &[0; 64], scale(1.0));
    let x = Activations::quantise(Kernel::Scalar, &[1.0], 1);
    matmul(Kernel::Scalar, &panels, &x, 16..64, &mut [0.0; 48]);
}

proptest! {
    #[test]
    fn sums_are_those_of_the_definition(
        rows in 1usize..100, columns in 1usize..700, tokens in prop_oneof![0usize..10, 10usize..150],
        seed: u64,
    ) {
        let mut draws = Draws(seed);
        let weights = draws.ternary(rows * columns);
        let codes = draws.codes(tokens * columns);
        let one = ActivationScale::from_absmax(127.0);
        let x = Activations::from_codes(&codes, columns, &vec![one; tokens]);
        let panels = TernaryPanels::from_codes(columns, &weights, scale(1.0));
        let expected = products(&weights, &x);
        for kernel in Kernel::available() {
            prop_assert_eq!(&accumulated(kernel, &panels, &x), &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn outputs_are_rescaled_by_each_matrix_s_own_scale(
        quarters in prop::collection::vec(1usize..20, 1..4), columns in 1usize..80,
        tokens in 1usize..6, seed: u64,
    ) {
        let mut draws = Draws(seed);
        let mut matrices = Vec::new();
        let mut weights = Vec::new();
        let mut scales = Vec::new();
        for (index, quarters) in quarters.iter().enumerate() {
            let codes = draws.ternary(4 * quarters * columns);
            let scale = scale(0.3 + index as f32);
            let packed = PackedTernary::from_codes(4 * quarters, columns, &codes).unwrap();
            matrices.push((packed, scale));
            weights.extend(codes);
            scales.extend(vec![scale; 4 * quarters]);
        }
        let panels = TernaryPanels::stack(&matrices);
        let values = draws.floats(tokens * columns);
        for kernel in Kernel::available() {
            let x = Activations::quantise(kernel, &values, columns);
            let rescale = |(i, &sum): (usize, &i32)| {
                x.scale(i / panels.rows()).rescale(sum, scales[i % panels.rows()]).to_bits()
            };
            let expected: Vec<u32> = products(&weights, &x).iter().enumerate().map(rescale).collect();
            prop_assert_eq!(by_ranges(kernel, &panels, &x), expected, "{:?}", kernel);
        }
    }

    #[test]
    fn latents_quantise_as_the_format_says(
        rows in prop::collection::vec(1usize..40, 1..4), columns in 1usize..80, seed: u64,
    ) {
        let mut draws = Draws(seed);
        let matrices: Vec<Vec<f32>> =
            rows.iter().map(|rows| draws.floats(rows * columns)).collect();
        let borrowed: Vec<&[f32]> = matrices.iter().map(Vec::as_slice).collect();
        let scales: Vec<WeightScale> =
            borrowed.iter().map(|matrix| WeightScale::of_latents(matrix)).collect();
        let expected: Vec<i8> = borrowed.iter().zip(&scales)
            .flat_map(|(matrix, scale)| ternary_codes(matrix, *scale)).collect();
        let of_row: Vec<f32> = rows.iter().zip(&scales)
            .flat_map(|(rows, scale)| vec![scale.multiplier(); *rows]).collect();
        let x = Activations::from_codes(
            &draws.codes(columns), columns, &[ActivationScale::from_absmax(127.0)],
        );
        let sums = products(&expected, &x);
        for kernel in Kernel::available() {
            let (panels, codes) = TernaryPanels::of_latents(kernel, &borrowed, columns);
            prop_assert_eq!(&codes, &expected, "{:?}", kernel);
            prop_assert_eq!(panels.scales(), &of_row[..]);
            prop_assert_eq!(&accumulated(kernel, &panels, &x), &sums, "{:?}", kernel);
        }
    }

    #[test]
    fn activations_quantise_as_the_format_says(columns in 1usize..200, seed: u64) {
        check_quantiser(&Draws(seed).floats(columns));
    }

    #[test]
    fn products_with_8_bit_rows_have_the_same_bits(
        columns in 1usize..300, rows in 1usize..50, tokens in prop_oneof![1usize..4, 4usize..70],
        seed: u64,
    ) {
        let mut draws = Draws(seed);
        let values = draws.floats(rows * columns);
        let mut matrix = Int8Matrix::new(rows, columns);
        matrix.push_rows(&values);
        let codes = draws.codes(tokens * columns);
        let one = ActivationScale::from_absmax(127.0);
        let x = Activations::from_codes(&codes, columns, &vec![one; tokens]);
        let mut expected = Vec::new();
        for token in 0..tokens {
            for row in values.chunks(columns) {
                let step = row.iter().fold(0.0f32, |max, w| max.max(w.abs())) / 127.0;
                let code = |w: &f32| (w / step).round_ties_even().clamp(-127.0, 127.0) as i32;
                let code = |w| if step == 0.0 { 0 } else { code(w) };
                let sum: i32 =
                    row.iter().zip(x.codes(token)).map(|(w, &q)| code(w) * i32::from(q)).sum();
                expected.push((sum as f32 * step / one.multiplier()).to_bits());
            }
        }
        for kernel in Kernel::available() {
            let mut out = vec![0.0; tokens * rows];
            matrix.matmul(kernel, &x, 0..rows, &mut out);
            let bits: Vec<u32> = out.into_iter().map(f32::to_bits).collect();
            prop_assert_eq!(&bits, &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn attention_is_that_of_the_definition_and_has_the_same_bits(
        count in 1usize..9, width in 1usize..90, seen in 1usize..150, seed: u64,
    ) {
        let mut draws = Draws(seed);
        let mut small = |count: usize| -> Vec<f32> {
            (0..count).map(|_| draws.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
        };
        let (queries, keys, values) =
            (small(count * width), small(seen * width), small(seen * width));
        let visible = |row: usize| 1 + (row * 31 + seen / 2) % seen;
        let layout = HeadLayout { width };
        let padded = layout.padded();
        // A head that does not lie at the beginning of a page.
        let first = layout.elements();
        let mut pages = vec![vec![9.0; 2 * first]; seen.div_ceil(PAGE)];
        for t in 0..seen {
            let part = &mut pages[t / PAGE][first..];
            let at = t % PAGE;
            for d in 0..width {
                part[layout.keys(at / 16)][16 * d + at % 16] = keys[t * width + d];
            }
            part[layout.values(at..at + 1)][..width].copy_from_slice(&values[t * width..][..width]);
        }
        let exact_pages: Vec<_> = pages.iter().cloned().map(Arc::new).collect();
        let head = HeadView { pages: &exact_pages, first, layout };
        let rows: Vec<QueryRow> = queries.chunks(width).enumerate()
            .map(|(row, query)| QueryRow { query, visible: visible(row) }).collect();
        let mut expected_bits = None;
        for kernel in Kernel::available() {
            let (mut scratch, mut out) = (Vec::new(), vec![7.0; count * padded]);
            attend(kernel, &rows, head, &mut scratch, &mut out);
            for (row, (query, out)) in queries.chunks(width).zip(out.chunks(padded)).enumerate() {
                let exact = exact_attention(query, &keys, &values, visible(row));
                for (a, b) in exact.iter().zip(out) {
                    prop_assert!((a - f64::from(*b)).abs() < 1e-5, "{:?}: {} and {}", kernel, a, b);
                }
                // A row is the same alone.
                let mut alone = vec![0.0; padded];
                attend(kernel, &rows[row..=row], head, &mut scratch, &mut alone);
                prop_assert_eq!(&alone, out);
            }
            let bits: Vec<u32> = out.into_iter().map(f32::to_bits).collect();
            prop_assert_eq!(expected_bits.get_or_insert(bits.clone()), &bits, "{:?}", kernel);
        }
        // Held in half precision it is that of the rounded keys and values.
        let halves = |values: &Vec<f32>| -> Arc<Vec<f16>> {
            Arc::new(values.iter().map(|x| f16::nearest(*x)).collect())
        };
        let half_pages: Vec<_> = pages.iter().map(halves).collect();
        let back = |values: &Arc<Vec<f16>>| Arc::new(values.iter().map(|x| x.to_f32()).collect());
        let rounded_pages: Vec<_> = half_pages.iter().map(back).collect();
        let rounded = HeadView { pages: &rounded_pages, first, layout };
        let half = HeadView { pages: &half_pages, first, layout };
        let (mut scratch, mut expected) = (Vec::new(), vec![7.0; count * padded]);
        attend(Kernel::Scalar, &rows, rounded, &mut scratch, &mut expected);
        for kernel in Kernel::available() {
            let mut out = vec![7.0; count * padded];
            attend(kernel, &rows, half, &mut scratch, &mut out);
            prop_assert_eq!(&out, &expected, "{:?}", kernel);
        }
    }

    #[test]
    fn half_precision_rounds_to_nearest_and_never_to_infinity(x: f32) {
        let half = f16::nearest(x);
        prop_assert!(half.is_finite() || x.is_nan());
        if x.abs() < 65504.0 {
            prop_assert_eq!(half, f16::from_f32(x));
        }
    }

    #[test]
    fn dot_products_have_the_same_bits(columns in 1usize..300, rows in 1usize..5, seed: u64) {
        let mut draws = Draws(seed);
        let x = draws.floats(2 * columns);
        let fine = draws.floats(rows * columns);
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let mut matrix = DenseMatrix::empty(columns, dtype);
            matrix.push_rows(&fine);
            let product = |kernel| {
                let mut out = vec![0.0; 2 * rows];
                matrix.matmul(kernel, &x, 0..rows, &mut out);
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            for kernel in Kernel::available() {
                prop_assert_eq!(product(kernel), product(Kernel::Scalar), "{:?}", kernel);
            }
        }
    }
}

/// `[depth, columns]` in this order, and the same as the beginning of a larger operand of that size.
fn beginning_of_larger(
    floats: &[f32],
    (depth, columns): (usize, usize),
    (deeper, wider): (usize, usize),
    order: OperandLayout,
) -> Vec<f32> {
    let place = |at: usize, column: usize, depth: usize, columns: usize| match order {
        OperandLayout::KInner => column * depth + at,
        OperandLayout::KOuter => at * columns + column,
    };
    let mut larger: Vec<f32> = (0..deeper * wider).map(|i| i as f32 / 512.0 - 1.0).collect();
    for at in 0..depth {
        for column in 0..columns {
            let value = floats[place(at, column, depth, columns)];
            larger[place(at, column, deeper, wider)] = value;
        }
    }
    larger
}

/// A product of random values, as every kernel computes it, and in f64 from the rounded operands.
fn check_product(
    size: Size,
    operands: Operands,
    a_layout: OperandLayout,
    b_layout: Option<OperandLayout>,
    each: bool,
    seed: u64,
) {
    let Size { rows, depth, columns } = size;
    let mut draws = Draws(seed);
    let mut small = |count: usize| -> Vec<f32> {
        (0..count).map(|_| draws.next() as f32 / (1u64 << 30) as f32 - 1.0).collect()
    };
    let (before, first) = (small(rows * columns), 3);
    let (stride, count) = match a_layout {
        OperandLayout::KInner => (depth + 2, rows * (depth + 2)),
        OperandLayout::KOuter => (rows + 5, depth * (rows + 5)),
    };
    let (values, factors, floats) = (small(count), small(depth), small(depth * columns));
    let codes: Vec<i8> = floats.iter().map(|x| (x * 128.0) as i8).collect();
    let scale = if each { Scale::Each(&factors) } else { Scale::All(0.75) };
    let first = if a_layout == OperandLayout::KOuter { first } else { 0 };
    let matrix_a = MatrixA { values: &values, layout: a_layout, stride, first, scale };
    let matrix_b = match b_layout {
        Some(order) => MatrixB::Floats(&floats, order),
        None => MatrixB::Codes(&codes),
    };
    let [deeper, wider] = [depth + 37, columns + 21];
    let order = b_layout.unwrap_or(OperandLayout::KOuter);
    let larger = beginning_of_larger(&floats, (depth, columns), (deeper, wider), order);
    let larger_codes: Vec<i8> = larger.iter().map(|x| (x * 128.0) as i8).collect();
    let larger_b = match b_layout {
        Some(order) => MatrixB::Floats(&larger, order),
        None => MatrixB::Codes(&larger_codes),
    };
    let round = |x: f32| match operands {
        Operands::F32 => f64::from(x),
        Operands::Bf16 | Operands::Bf16Tiles => bf16::from_f32(x).to_f64(),
    };
    let a = |row: usize, at: usize| {
        let value = match a_layout {
            OperandLayout::KInner => values[row * stride + at],
            OperandLayout::KOuter => values[at * stride + first + row],
        };
        round(value * if each { factors[at] } else { 0.75 })
    };
    let b = |at: usize, column: usize| match b_layout {
        Some(OperandLayout::KOuter) => round(floats[at * columns + column]),
        Some(OperandLayout::KInner) => round(floats[column * depth + at]),
        None => f64::from(codes[at * columns + column]),
    };
    let mut bits = None;
    for kernel in Kernel::available() {
        for add in [false, true] {
            let mut out = before.clone();
            float_product(kernel, operands, size, matrix_a, matrix_b, add, &mut out);
            for (depth, columns, b) in [(depth, columns, matrix_b), (deeper, wider, larger_b)] {
                let packed = PackedB::new(kernel, operands, depth, columns, b);
                let mut shared = before.clone();
                let b = MatrixB::PackedB(&packed);
                float_product(kernel, operands, size, matrix_a, b, add, &mut shared);
                assert_eq!(out, shared, "{kernel:?}: packed beforehand, {depth} x {columns}");
            }
            if add {
                let bits: &Vec<u32> =
                    bits.get_or_insert_with(|| out.iter().map(|x| x.to_bits()).collect());
                assert!(out.iter().map(|x| x.to_bits()).eq(bits.iter().copied()), "{kernel:?}");
            }
            for (i, (found, before)) in out.iter().zip(&before).enumerate() {
                let (row, column) = (i / columns, i % columns);
                let terms = || (0..depth).map(|at| a(row, at) * b(at, column));
                let exact = terms().sum::<f64>() + if add { f64::from(*before) } else { 0.0 };
                let size = terms().map(f64::abs).sum::<f64>() + 1.0;
                let error = (exact - f64::from(*found)).abs();
                assert!(error <= size * 2e-6, "{kernel:?} {row} {column}: {found} for {exact}");
            }
        }
    }
}

#[test]
fn a_reduction_of_several_blocks_has_the_same_bits() {
    for operands in OPERANDS {
        let size = Size { rows: 9, depth: 1100, columns: 17 };
        check_product(size, operands, OperandLayout::KInner, None, false, 1);
        check_product(size, operands, OperandLayout::KOuter, Some(OperandLayout::KOuter), true, 2);
        check_product(size, operands, OperandLayout::KInner, Some(OperandLayout::KInner), false, 3);
        // More rows than a group, and more columns than are packed together.
        for (rows, columns) in [(133, 17), (9, 790)] {
            let size = Size { rows, depth: 520, columns };
            check_product(size, operands, OperandLayout::KOuter, None, true, 4);
        }
    }
    // Both at once: long under emulation, and no matter of the operands.
    let wide = Size { rows: 133, depth: 260, columns: 790 };
    check_product(wide, Operands::F32, OperandLayout::KOuter, None, true, 5);
}

#[test]
fn a_value_that_is_no_number_stays_one() {
    let size = Size { rows: 1, depth: 2, columns: 1 };
    for (value, other) in [(f32::NAN, 1.0), (f32::INFINITY, -f32::INFINITY)] {
        for operands in OPERANDS {
            for kernel in Kernel::available() {
                let (scale, order) = (Scale::All(1.0), OperandLayout::KInner);
                let a =
                    MatrixA { values: &[value, other], layout: order, stride: 2, first: 0, scale };
                let mut out = [0.0];
                let b = MatrixB::Codes(&[1, 1]);
                float_product(kernel, operands, size, a, b, false, &mut out);
                assert!(out[0].is_nan(), "{kernel:?} {operands:?}: {}", out[0]);
            }
        }
    }
}

proptest! {
    #[test]
    fn float_products_are_those_of_the_definition_and_have_the_same_bits(
        rows in 1usize..40, depth in 1usize..90, columns in 1usize..150,
        operands in 0..3usize, a_outer: bool, b in 0..3, each: bool, seed: u64,
    ) {
        let size = Size { rows, depth, columns };
        let operands = OPERANDS[operands];
        let a = if a_outer { OperandLayout::KOuter } else { OperandLayout::KInner };
        let b = [None, Some(OperandLayout::KOuter), Some(OperandLayout::KInner)][b as usize];
        check_product(size, operands, a, b, each, seed);
    }
}

fn exact_attention(query: &[f32], keys: &[f32], values: &[f32], visible: usize) -> Vec<f64> {
    let width = query.len();
    let dot = |key: &[f32]| -> f64 {
        query.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum()
    };
    let scores: Vec<f64> =
        keys.chunks(width).take(visible).map(|key| dot(key) / (width as f64).sqrt()).collect();
    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let of = |d: usize| {
        let parts = values.chunks(width).zip(&weights).map(|(value, w)| f64::from(value[d]) * w);
        parts.sum::<f64>() / sum
    };
    (0..width).map(of).collect()
}

/// The whole product `[T, N]`, computed one pair of panels at a time.
fn by_ranges(kernel: Kernel, panels: &TernaryPanels, x: &Activations) -> Vec<u32> {
    let mut whole = vec![0; x.tokens() * panels.rows()];
    for start in (0..panels.rows()).step_by(32) {
        let rows = start..panels.rows().min(start + 32);
        let mut part = vec![0.0; x.tokens() * rows.len()];
        matmul(kernel, panels, x, rows.clone(), &mut part);
        for (token, part) in part.chunks(rows.len()).enumerate() {
            let bits = part.iter().map(|value| value.to_bits());
            let places = &mut whole[token * panels.rows()..][rows.clone()];
            places.iter_mut().zip(bits).for_each(|(place, bits)| *place = bits);
        }
    }
    whole
}
