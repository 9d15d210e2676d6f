//! Latents to ternary codes and scales of rows, of groups of columns or of a matrix, and back to weights
//! (`bitnet_format::grouped` has the definition): as tensors that carry their gradient, and on the CPU's
//! buffers, on all threads of the operation that asks.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_format::group::Group;
use bitnet_format::grouped::{GroupedTernary, group_scale};
use bitnet_format::quant::{SCALE_EPS, ternary_code};
use bitnet_kernels::SimdWork;
use burn::tensor::{FloatDType, Tensor, TensorData};

use crate::device;
use crate::host::to_host;
use crate::ops::OpBackend;
use crate::ops::bit_linear::straight_through;
use crate::ops::native::{in_rows, in_rows_with};

/// Ternary codes of latents `[out, in]` that carry their gradient, and their scales `[out, groups]`.
pub(super) fn group_codes(latents: Tensor<2>, group: Group) -> (Tensor<2>, Tensor<2>) {
    let values = latents.clone().detach();
    let scales = group_scales(&values, group);
    let width = values.dims()[1] / scales.dims()[1];
    let inverse = over_columns(scales.clone().recip(), width);
    let codes = (values * inverse.clone()).round().clamp(-1.0, 1.0);
    (straight_through(codes, &latents, &inverse), scales)
}

/// `[out, groups]` repeated for each of the `width` columns of a group, `[out, in]`.
pub(super) fn over_columns(scales: Tensor<2>, width: usize) -> Tensor<2> {
    let [out, groups] = scales.dims();
    scales.reshape([out, groups, 1]).expand([out, groups, width]).reshape([out, groups * width])
}

/// The scales of latents, `[out, groups]`. Where the host shares the device's memory they are the
/// format's own definition; elsewhere the device sums in f32 and in its own order, as in `bit_linear`.
fn group_scales(latents: &Tensor<2>, group: Group) -> Tensor<2> {
    let ([out, columns], device) = (latents.dims(), latents.device());
    if device::shares_memory(&device) {
        let values = to_host(latents.clone().inner().flatten::<1>(0, 1));
        let scales = host_scales(&values, columns, group);
        let groups = scales.len() / out;
        return Tensor::from_data(TensorData::new(scales, [out, groups]), &device);
    }
    device_scales(latents, group)
}

fn device_scales(latents: &Tensor<2>, group: Group) -> Tensor<2> {
    let [out, columns] = latents.dims();
    let Some(width) = group.width(columns) else {
        let scale = latents.clone().abs().mean_dim(1).mean_dim(0).clamp_min(SCALE_EPS);
        return scale.expand([out, 1]);
    };
    let groups = latents.clone().abs().reshape([out * columns / width, width]);
    let scales = groups.mean_dim(1).clamp_min(SCALE_EPS).reshape([out, columns / width]);
    match group {
        Group::Columns(_) => {
            let largest = half::f16::MAX.to_f32();
            scales.clamp_max(largest).cast(FloatDType::F16).cast(FloatDType::F32)
        }
        Group::Matrix | Group::Row => scales,
    }
}

/// The scale of each group of latents `[out, in]`, a matrix's for each of its rows.
fn host_scales(latents: &[f32], columns: usize, group: Group) -> Vec<f32> {
    let scale = |latents: &[f32]| group_scale(latents, group).multiplier();
    match group.width(columns) {
        Some(width) => latents.chunks_exact(width).map(scale).collect(),
        None => vec![scale(latents); latents.len() / columns],
    }
}

/// Codes and scales of matrices of latents `[outᵢ, in]`, one below the other.
pub(super) fn quantised_rows(
    matrices: &[&[f32]],
    columns: usize,
    group: Group,
    backend: OpBackend,
) -> GroupedTernary {
    let width = group.width(columns).unwrap_or(columns);
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for latents in matrices {
        let (mut own_codes, rows) = (vec![0; latents.len()], latents.len() / columns);
        let mut own_scales = vec![0.0; rows * (columns / width)];
        if group == Group::Matrix {
            own_scales.fill(group_scale(latents, group).multiplier());
        }
        let mut code_rows: Vec<&mut [i8]> = own_codes.chunks_exact_mut(columns).collect();
        in_rows_with(&mut own_scales, columns / width, &mut code_rows, |first, scales, codes| {
            let latents = &latents[first * columns..][..codes.len() * columns];
            backend.kernel.dispatch(Quantise { latents, width, group, scales, codes });
        });
        codes.append(&mut own_codes);
        scales.append(&mut own_scales);
    }
    GroupedTernary::new(columns, width, codes, scales)
}

/// Fills the codes of some rows, and their scales unless these are a matrix's.
struct Quantise<'a, 'c> {
    latents: &'a [f32],
    width: usize,
    group: Group,
    scales: &'a mut [f32],
    codes: &'a mut [&'c mut [i8]],
}

impl SimdWork for Quantise<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { latents, width, group, scales, codes } = self;
        let codes = codes.iter_mut().flat_map(|row| row.chunks_exact_mut(width));
        for ((codes, latents), scale) in codes.zip(latents.chunks_exact(width)).zip(scales) {
            if group != Group::Matrix {
                *scale = group_scale(latents, group).multiplier();
            }
            let inverse = 1.0 / *scale;
            for (code, &latent) in codes.iter_mut().zip(latents) {
                *code = ternary_code(latent, inverse);
            }
        }
    }
}

/// The weights as floats, codes times scales, `[out, in]`.
pub(super) fn dequantised(weights: &GroupedTernary, backend: OpBackend) -> Vec<f32> {
    let (columns, width) = (weights.columns(), weights.width());
    let mut values = vec![0.0; weights.codes().len()];
    in_rows(&mut values, columns, |first, values| {
        let codes = &weights.codes()[first * columns..][..values.len()];
        let scales = &weights.scales()[first * (columns / width)..];
        backend.kernel.dispatch(Dequantise { codes, scales, width, values });
    });
    values
}

struct Dequantise<'a> {
    codes: &'a [i8],
    scales: &'a [f32],
    width: usize,
    values: &'a mut [f32],
}

impl SimdWork for Dequantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { codes, scales, width, values } = self;
        let groups = values.chunks_exact_mut(width).zip(codes.chunks_exact(width)).zip(scales);
        for ((values, codes), scale) in groups {
            values
                .iter_mut()
                .zip(codes)
                .for_each(|(value, &code)| *value = f32::from(code) * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{draw, leaf};

    #[test]
    fn a_device_finds_the_scales_of_the_host_but_for_rounding() {
        for group in [Group::Matrix, Group::Row, Group::Columns(64), Group::Columns(128)] {
            let mut values = draw(1, "w", 9 * 256);
            values[..128].fill(0.0);
            values[300..600].iter_mut().for_each(|w| *w *= 1e-4);
            let expected = host_scales(&values, 256, group);
            let found = to_host(device_scales(&leaf(values, [9, 256]), group).inner());
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                // Another order of the sum may round to the next f16.
                assert!((found / expected - 1.0).abs() < 1.1e-3, "{group}: {found} {expected}");
            }
        }
    }
}
