//! How the latents lie under their codes: the scale of each matrix, and for three layers a histogram
//! around the thresholds at which codes change.

use std::collections::BTreeMap;

use bitnet_format::TensorEntry;
use serde::Serialize;

use crate::distributed::Comm;

/// Bins of a histogram.
const BINS: usize = 24;
/// Scales that it reaches to both sides; what lies farther out counts in the outer bins.
const REACH: f32 = 3.0;

/// The latents of a model at a step.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct LatentReport {
    /// Mean of `|latent|` by kind of matrix (`q_proj`), one value a layer; over all groups where these have
    /// scales of their own.
    scale: BTreeMap<String, Vec<f64>>,
    /// Shares of the latents of a layer by `latent / scale`, with the scale of its group, from −3 to 3; a code changes at −0.5 and
    /// 0.5. The first, the middle and the last layer.
    histogram: BTreeMap<String, Vec<f64>>,
}

/// The layers that have a histogram: the first, the middle and the last.
#[derive(Debug)]
pub(super) struct DrawnLayers(Vec<usize>);

impl DrawnLayers {
    pub(super) fn of<'a>(all: impl Iterator<Item = &'a TensorEntry>) -> Self {
        let last = all.filter_map(layer).max();
        let mut layers: Vec<usize> =
            last.into_iter().flat_map(|last| [0, last / 2, last]).collect();
        layers.dedup();
        Self(layers)
    }

    /// Which of them a matrix belongs to.
    pub(super) fn place(&self, entry: &TensorEntry) -> Option<usize> {
        let layer = layer(entry)?;
        self.0.iter().position(|drawn| *drawn == layer)
    }
}

/// What one matrix adds: its scale, and its histogram where its layer has one.
#[derive(Clone, Debug)]
pub(super) struct MatrixLatents {
    scale: f64,
    bins: [u64; BINS],
}

impl MatrixLatents {
    /// The groups of a matrix have as many latents each, and the `scales` are theirs. The bins stay empty
    /// of a matrix that is not drawn.
    pub(super) fn of(latents: &[f32], scales: &[f32], is_drawn: bool) -> Self {
        let mut bins = [0; BINS];
        let groups = latents.chunks(latents.len().div_ceil(scales.len()).max(1)).zip(scales);
        for (group, scale) in groups.filter(|_| is_drawn) {
            let inverse = 1.0 / scale;
            for latent in group {
                let at = (latent * inverse + REACH) * (BINS as f32 / (2.0 * REACH));
                // A conversion to an integer stops at its ends and takes NaN for 0.
                bins[(at as usize).min(BINS - 1)] += 1;
            }
        }
        let sum: f64 = scales.iter().map(|&scale| f64::from(scale)).sum();
        Self { scale: sum / scales.len() as f64, bins }
    }
}

impl LatentReport {
    /// The report on all ternary matrices, of which this rank has counted `own`, by their numbers.
    pub(super) fn of(
        all: &[(usize, &TensorEntry)],
        drawn: &DrawnLayers,
        own: &[(usize, MatrixLatents)],
        comm: &Comm,
    ) -> Self {
        // One place for each matrix and bin, zero where another rank fills it in: their sum is the
        // union.
        let mut numbers = vec![0.0; all.len() + drawn.0.len() * BINS];
        for (number, latents) in own {
            numbers[*number] = latents.scale;
            let Some(at) = drawn.place(all[*number].1) else { continue };
            let bins = &mut numbers[all.len() + at * BINS..][..BINS];
            bins.iter_mut().zip(latents.bins).for_each(|(bin, count)| *bin += count as f64);
        }
        let numbers = comm.all_reduce_sum(&numbers);
        let (scales, bins) = numbers.split_at(all.len());
        let mut scale: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for ((_, entry), value) in all.iter().zip(scales) {
            scale.entry(kind_of(entry)).or_default().push(shortened(*value));
        }
        let histogram = drawn.0.iter().zip(bins.chunks(BINS));
        let histogram = histogram.map(|(layer, bins)| (layer.to_string(), shares(bins)));
        Self { scale, histogram: histogram.collect() }
    }
}

fn shares(bins: &[f64]) -> Vec<f64> {
    let all: f64 = bins.iter().sum();
    bins.iter().map(|bin| shortened(bin / all.max(1.0))).collect()
}

/// Four significant digits: enough for a drawing, and the log stays small.
fn shortened(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// The number in `model.layers.3.self_attn.q_proj.weight`.
fn layer(entry: &TensorEntry) -> Option<usize> {
    entry.name.split('.').find_map(|part| part.parse().ok())
}

/// The part of the name that says what the matrix does: `q_proj`.
pub(super) fn kind_of(entry: &TensorEntry) -> String {
    entry.name.rsplit('.').nth(1).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latents_are_counted_around_the_thresholds() {
        let latents = [-10.0, -0.6, -0.1, 0.1, 0.4, 0.6, 10.0, f32::NAN];
        let counted = MatrixLatents::of(&latents, &[1.0], true);
        let at = |bin: usize| counted.bins[bin];
        assert_eq!((at(0), at(9), at(11), at(12), at(13), at(14), at(23)), (2, 1, 1, 1, 1, 1, 1));
        assert_eq!(counted.bins.iter().sum::<u64>(), 8);
        assert_eq!(shares(&[1.0, 2.0, 0.0]), [0.3333, 0.6667, 0.0]);
    }

    #[test]
    fn each_group_has_thresholds_of_its_own() {
        let counted = MatrixLatents::of(&[0.6, 0.4, 6.0, 4.0], &[1.0, 10.0], true);
        let at = |bin: usize| counted.bins[bin];
        assert_eq!((at(13), at(14), counted.scale), (2, 2, 5.5));
    }
}
