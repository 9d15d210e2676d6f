//! Chooses a kernel. Each candidate first computes a small problem and is compared with the scalar
//! reference: a CPU, an emulator or a compiler that gets it wrong costs speed, never results.

use bitnet_format::grouped::GroupedTernary;
use bitnet_format::quant::{ActivationScale, WeightScale};

use crate::{
    Activations, GroupPanels, Int8Matrix, Kernel, TernaryPanels, accumulate, grouped_product,
};

impl Kernel {
    /// The fastest kernel that this CPU runs and that gives the scalar kernel's results on it.
    pub fn detect() -> Self {
        let fastest_first = Self::available().into_iter().rev();
        fastest_first.into_iter().find(|kernel| agrees(*kernel)).unwrap_or(Self::Scalar)
    }
}

/// Rows, columns and tokens with tails in every direction.
const SHAPE: [usize; 3] = [37, 83, 35];

/// Whether `kernel` gives the scalar kernel's results on a small problem.
fn agrees(kernel: Kernel) -> bool {
    let [rows, columns, tokens] = SHAPE;
    let code = |i: usize| ((i * 7919 + i / 3) % 3) as i8 - 1;
    let codes: Vec<i8> = (0..rows * columns).map(code).collect();
    let scale = WeightScale::from_stored(1.0).expect("a positive number");
    let panels = TernaryPanels::from_codes(columns, &codes, scale);
    let x: Vec<i8> = (0..tokens * columns).map(|i| ((i * 31) % 255) as u8 as i8).collect();
    let one = ActivationScale::from_absmax(127.0);
    (1..=tokens).step_by(tokens - 1).all(|count| {
        let x = Activations::from_codes(&x[..count * columns], columns, &vec![one; count]);
        let sums = |kernel| {
            let mut sums = vec![0; count * rows];
            accumulate(kernel, &panels, &x, 0..rows, &mut sums);
            sums
        };
        sums(kernel) == sums(Kernel::Scalar) && head(kernel, &x) == head(Kernel::Scalar, &x)
    }) && groups(kernel) == groups(Kernel::Scalar)
}

/// Products of one token and of several with groups, the code +2 among them.
fn groups(kernel: Kernel) -> Vec<u32> {
    const ROWS: usize = 37;
    const COLUMNS: usize = 256;
    const TOKENS: usize = 7;
    let codes = (0..ROWS * COLUMNS).map(|i| ((i * 7919 + i / 3) % 4) as i8 - 1).collect();
    let scales = (0..ROWS * COLUMNS / 128).map(|i| (i % 13) as f32 * 0.125 - 0.25).collect();
    let mut panels = GroupPanels::zeros(ROWS, COLUMNS, 128);
    panels.write(0, &GroupedTernary::new(COLUMNS, 128, codes, scales));
    let x: Vec<f32> = (0..TOKENS * COLUMNS).map(|i| ((i * 31) % 255) as f32 - 127.0).collect();
    let products = |x: &[f32]| {
        let x = Activations::quantise(Kernel::Scalar, x, COLUMNS);
        let mut out = vec![0.0; x.tokens() * ROWS];
        grouped_product(kernel, &panels, &x, 0..ROWS, &mut out);
        out.into_iter().map(f32::to_bits)
    };
    products(&x).chain(products(&x[..COLUMNS])).collect()
}

fn head(kernel: Kernel, x: &Activations) -> Vec<u32> {
    let [rows, columns, _] = SHAPE;
    let values: Vec<f32> = (0..rows * columns).map(|i| (i * 41 % 97) as f32 - 48.0).collect();
    let mut matrix = Int8Matrix::new(rows, columns);
    matrix.push_rows(&values);
    let mut out = vec![0.0; x.tokens() * rows];
    matrix.matmul(kernel, x, 0..rows, &mut out);
    out.into_iter().map(f32::to_bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_this_machine_passes() {
        assert!(Kernel::available().into_iter().all(agrees));
        assert_eq!(Some(&Kernel::detect()), Kernel::available().last());
    }
}
