//! One `AdamW` update of a tensor whose latents or moments are kept in fewer bits than f32: each chunk is
//! brought to f32, updated as every other tensor is (`ops::adamw`), rounded and put back. No tensor ever
//! exists in f32 as a whole.
#![expect(clippy::inline_always, reason = "loops are compiled for each instruction set")]

use bitnet_kernels::{Kernel, RandomBits, SimdWork};
use rayon::prelude::*;

use super::moments::{Moment, MomentChunk};
use crate::latents::codec::{CHUNK, LatentChunk};
use crate::latents::rounding::RoundingKey;
use crate::ops::{AdamWUpdate, UpdateChunk};

/// First and second moment of a tensor.
pub(crate) type LeanMoments = [Moment; 2];

/// Updates latents and moments in place; `gradient` is flat. The rounding depends on `key` and the place
/// of an element only.
pub(crate) fn update(
    latents: Vec<LatentChunk>,
    moments: &mut LeanMoments,
    gradient: &[f32],
    (update, key): (AdamWUpdate, RoundingKey),
    kernel: Kernel,
) {
    let [first, second] = moments.each_mut().map(Moment::chunks);
    latents
        .into_par_iter()
        .zip(first)
        .zip(second)
        .zip(gradient.par_chunks(CHUNK))
        .enumerate()
        .for_each(|(index, (((latents, first), second), gradient))| {
            let key = key.chunk(index);
            kernel.dispatch(LeanChunk { latents, first, second, gradient, update, key });
        });
}

struct LeanChunk<'a> {
    latents: LatentChunk<'a>,
    first: MomentChunk<'a>,
    second: MomentChunk<'a>,
    gradient: &'a [f32],
    update: AdamWUpdate,
    key: RandomBits,
}

impl SimdWork for LeanChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { mut latents, first: mut firsts, second: mut seconds, gradient, update, key } =
            self;
        let count = gradient.len();
        let (mut value, mut first, mut second) = ([0.0; CHUNK], [0.0; CHUNK], [0.0; CHUNK]);
        let (value, first, second) =
            (&mut value[..count], &mut first[..count], &mut second[..count]);
        // Load, update in f32, store rounded: one chunk at a time, in the first cache.
        latents.load(value);
        firsts.load(first);
        seconds.load(second);
        UpdateChunk { value, gradient, first, second, update }.run();
        latents.store(value, key);
        firsts.store(first);
        seconds.store(second);
    }
}

#[cfg(test)]
mod tests {
    use super::super::moments::MomentKind;
    use super::*;
    use crate::latents::{LatentFormat, Latents, MomentFormat};
    use crate::ops::OpBackend;
    use crate::random;
    use bitnet_kernels::Operands;
    use rand_distr::{Distribution, Normal};

    const UPDATE: AdamWUpdate = AdamWUpdate {
        gradient: 0.5,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        keep: 0.999,
        step: 3e-3,
        root: 0.3,
    };

    fn draw(purpose: &str, count: usize) -> Vec<f32> {
        let normal = Normal::new(0.0f32, 0.02).unwrap();
        normal.sample_iter(random::keyed(1, purpose, 0, 0)).take(count).collect()
    }

    /// Latents after some updates in these formats.
    fn updated(latents: LatentFormat, moments: MomentFormat, shape: [usize; 2]) -> Vec<f32> {
        let count = shape[0] * shape[1];
        let kept = Latents::new(latents, shape, &draw("value", count));
        let mut state =
            [MomentKind::First, MomentKind::Second].map(|kind| Moment::zeros(moments, kind, count));
        let kernel = OpBackend::native(Operands::F32).kernel;
        for step in 0..3 {
            let gradient = draw(&format!("gradient {step}"), count);
            let key = RoundingKey::new(5, step, 2);
            kept.update(|chunks| update(chunks, &mut state, &gradient, (UPDATE, key), kernel));
        }
        kept.read().all()
    }

    const LATENTS: [LatentFormat; 4] =
        [LatentFormat::F32, LatentFormat::Bf16, LatentFormat::Bf16Plus8, LatentFormat::Block16];
    const MOMENTS: [MomentFormat; 3] =
        [MomentFormat::F32, MomentFormat::Bf16, MomentFormat::EightBit];

    #[test]
    fn every_format_follows_the_f32_update() {
        let shape = [70, 131];
        let exact = updated(LatentFormat::F32, MomentFormat::F32, shape);
        for latents in LATENTS {
            for moments in MOMENTS {
                let found = updated(latents, moments, shape);
                let errors = found.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2));
                let error = (errors.sum::<f64>() / exact.len() as f64).sqrt();
                // Three updates of 0.01 each; a moment in eight bits is off by 4.4 % at most.
                let moments_off = match moments {
                    MomentFormat::F32 => 0.0,
                    MomentFormat::Bf16 => 1e-4,
                    MomentFormat::EightBit => 2e-3,
                };
                let latents_off = if latents == LatentFormat::F32 { 0.0 } else { 2e-4 };
                assert!(error <= moments_off + latents_off, "{latents:?} {moments:?}: {error:e}");
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| updated(LatentFormat::Block16, MomentFormat::EightBit, [70, 131]))
        };
        assert_eq!(run(1), run(3));
    }
}
