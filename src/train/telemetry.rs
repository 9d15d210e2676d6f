//! Statistics of the ternary weights during training: shares of −1, 0 and +1, codes that changed since
//! the last report, codes that an adapter moved, dead rows. Reads the model and changes nothing.

use std::collections::BTreeMap;

use bitnet_format::grouped::GroupedTernary;
use bitnet_format::quant::{WeightScale, ternary_codes};
use bitnet_format::{ModelSpec, TensorEntry};
use rayon::prelude::*;

use super::latent_report::{DrawnLayers, LatentReport, MatrixLatents, kind_of};
use crate::distributed::Comm;
use crate::latents::codes::{pack, unpack};
use crate::model::{LanguageModel, is_factor, values};
use crate::monitor::TernaryShares;

/// Counts of one kind; sums over its matrices.
#[derive(Clone, Copy, Default)]
struct Counts {
    codes: u64,
    minus: u64,
    plus: u64,
    flipped: Option<u64>,
    moved: Option<u64>,
    dead_rows: u64,
}

/// Remembers the codes of the last report, four in a byte.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    last: Option<Vec<Vec<u8>>>,
}

impl Telemetry {
    /// Shares by kind (`q_proj`, …) and over all (`all`); empty for a dense model. Each
    /// rank counts the matrices it owns. One matrix for each thread is in memory as f32.
    pub(crate) fn report(
        &mut self,
        spec: &ModelSpec,
        model: &LanguageModel,
        comm: &Comm,
    ) -> (BTreeMap<String, TernaryShares>, LatentReport) {
        let table = model.table();
        let values = values(model);
        let is_counted = |entry: &TensorEntry| entry.is_ternary(spec) && !is_factor(entry);
        let ternary: Vec<(usize, &TensorEntry)> =
            table.iter().enumerate().filter(|(_, entry)| is_counted(entry)).collect();
        // Round robin over matrices: each rank quantises its share, and counts are added below.
        let own: Vec<usize> = (0..ternary.len()).filter(|number| comm.owns(*number)).collect();
        let last = self.last.as_deref();
        let drawn = DrawnLayers::of(ternary.iter().map(|(_, entry)| *entry));
        let count = |(at, &number): (usize, &usize)| {
            let (index, entry) = ternary[number];
            let latents = model.latents(index, &values);
            let (codes, scales) = quantised(spec, entry, &latents);
            let latents = MatrixLatents::of(&latents, &scales, drawn.place(entry).is_some());
            let before = last.map(|last| {
                let mut before = vec![0; codes.len()];
                unpack(&last[at], 0, &mut before);
                before
            });
            let counts = Counts {
                flipped: before.map(|before| differing(&codes, before)),
                moved: moved(model, index, &codes),
                ..Counts::of(&codes, table[index].shape[1])
            };
            (counts, (pack(&codes), (number, latents)))
        };
        let (counts, rest): (Vec<Counts>, Vec<_>) = own.par_iter().enumerate().map(count).unzip();
        let (packed, latents): (Vec<Vec<u8>>, Vec<_>) = rest.into_iter().unzip();
        let latents = LatentReport::of(&ternary, &drawn, &latents, comm);
        // Every rank needs all kinds, also those of which it owns no matrix.
        let names = ternary.iter().flat_map(|(_, entry)| [kind_of(entry), "all".to_owned()]);
        let mut kinds: BTreeMap<String, Counts> =
            names.map(|name| (name, Counts::default())).collect();
        for (&number, counts) in own.iter().zip(counts) {
            for kind in [kind_of(ternary[number].1), "all".to_owned()] {
                let so_far = kinds.entry(kind).or_default();
                *so_far = so_far.plus(counts);
            }
        }
        let compared = self.last.replace(packed).is_some();
        let adapted = model.merges_factors();
        // `kinds` is sorted by name and complete on every rank, so the numbers line up.
        let numbers: Vec<f64> = kinds.values().flat_map(|counts| counts.numbers()).collect();
        let all = comm.all_reduce_sum(&numbers);
        let (all, _) = all.as_chunks();
        let shares = |numbers| Counts::from_numbers(numbers, compared, adapted).shares();
        let kinds = kinds.into_keys().zip(all);
        (kinds.map(|(kind, numbers)| (kind, shares(numbers))).collect(), latents)
    }
}

/// Codes of entry `index` that are not those of the model under a latent adapter.
fn moved(model: &LanguageModel, index: usize, codes: &[i8]) -> Option<u64> {
    if !model.merges_factors() {
        return None;
    }
    let base = model.outside()[index].as_ref().expect("the model under an adapter lies outside");
    let base = base.read().all();
    Some(differing(codes, self::codes(&base)))
}

fn differing(codes: &[i8], others: impl IntoIterator<Item = i8>) -> u64 {
    codes.iter().zip(others).filter(|(code, other)| *code != other).count() as u64
}

/// Codes of a matrix, and the scales of its groups, one after the other.
fn quantised(spec: &ModelSpec, entry: &TensorEntry, latents: &[f32]) -> (Vec<i8>, Vec<f32>) {
    if entry.group_width(spec).is_none() {
        let scale = WeightScale::of_latents(latents);
        return (ternary_codes(latents, scale), vec![scale.multiplier()]);
    }
    let groups = GroupedTernary::of_latents(entry.shape[1], spec.quantiser.group, latents);
    (groups.codes().to_vec(), groups.scales().to_vec())
}

fn codes(latents: &[f32]) -> Vec<i8> {
    ternary_codes(latents, WeightScale::of_latents(latents))
}

impl Counts {
    fn of(codes: &[i8], columns: usize) -> Self {
        let count = |wanted: i8| codes.iter().filter(|&&code| code == wanted).count() as u64;
        let dead = |row: &&[i8]| row.iter().all(|&code| code == 0);
        Self {
            codes: codes.len() as u64,
            minus: count(-1),
            plus: count(1),
            flipped: None,
            moved: None,
            dead_rows: codes.chunks(columns).filter(dead).count() as u64,
        }
    }

    /// As numbers that can be summed over ranks.
    fn numbers(self) -> [f64; 6] {
        let Self { codes, minus, plus, flipped, moved, dead_rows } = self;
        let (flipped, moved) = (flipped.unwrap_or(0), moved.unwrap_or(0));
        [codes, minus, plus, flipped, moved, dead_rows].map(|count| count as f64)
    }

    fn from_numbers(numbers: &[f64; 6], compared: bool, adapted: bool) -> Self {
        let [codes, minus, plus, flipped, moved, dead_rows] = numbers.map(|count| count as u64);
        let (flipped, moved) = (compared.then_some(flipped), adapted.then_some(moved));
        Self { codes, minus, plus, flipped, moved, dead_rows }
    }

    fn plus(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| a.map(|a| a + b.unwrap_or(0));
        Self {
            codes: self.codes + other.codes,
            minus: self.minus + other.minus,
            plus: self.plus + other.plus,
            flipped: sum(other.flipped, self.flipped),
            moved: sum(other.moved, self.moved),
            dead_rows: self.dead_rows + other.dead_rows,
        }
    }

    fn shares(self) -> TernaryShares {
        let share = |count: u64| count as f64 / self.codes.max(1) as f64;
        TernaryShares {
            minus: share(self.minus),
            zero: share(self.codes - self.minus - self.plus),
            plus: share(self.plus),
            flipped: self.flipped.map(share),
            moved: self.moved.map(share),
            dead_rows: self.dead_rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_counted_with_flips_and_dead_rows() {
        let (first, second) = ([1, 0, 0, 0, -1, 1, 0, 0], [1, 0, 0, 1, -1, 1, -1, 0]);
        let flipped = Some(differing(&second, first));
        let first = Counts::of(&first, 2);
        let shares = first.shares();
        assert_eq!((shares.minus, shares.zero, shares.plus), (0.125, 0.625, 0.25));
        assert_eq!((shares.flipped, shares.dead_rows), (None, 2));
        let second = Counts { flipped, ..Counts::of(&second, 2) };
        assert_eq!(second.shares().flipped, Some(0.25));
        assert_eq!(Counts::default().plus(second).plus(second).shares().flipped, Some(0.25));
    }

    #[test]
    fn every_kind_and_all_are_reported_and_an_unchanged_model_flips_nothing() {
        let spec: ModelSpec = toml::from_str(
            "hidden_size = 8\nintermediate_size = 16\nnum_hidden_layers = 2\nvocab_size = 10\n\
             num_attention_heads = 2\nnum_key_value_heads = 1",
        )
        .unwrap();
        let model = LanguageModel::initial(&spec, 1, &burn::tensor::Device::flex());
        let mut telemetry = Telemetry::default();
        let (first, latents) = telemetry.report(&spec, &model, &Comm::single());
        let kinds: Vec<_> = first.keys().map(String::as_str).collect();
        let expected =
            ["all", "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
        assert_eq!(kinds, expected);
        assert_eq!(first["all"].flipped, None);
        let all = first["all"];
        assert!((all.minus + all.zero + all.plus - 1.0).abs() < 1e-12);
        assert!(all.zero > 0.2 && all.zero < 0.45, "a Gaussian has 31 % below half its absmean");
        assert_eq!(telemetry.report(&spec, &model, &Comm::single()).0["all"].flipped, Some(0.0));
        let latents = serde_json::to_value(&latents).unwrap();
        assert_eq!(latents["scale"]["q_proj"].as_array().unwrap().len(), 2);
        assert_eq!(latents["scale"].as_object().unwrap().len(), 7);
        let bins: Vec<f64> = serde_json::from_value(latents["histogram"]["1"].clone()).unwrap();
        assert!((bins.iter().sum::<f64>() - 1.0).abs() < 0.01);
        let zeros = bins[10..14].iter().sum::<f64>();
        assert!((zeros - all.zero).abs() < 0.1, "four bins lie between the thresholds: {zeros}");
    }
}
