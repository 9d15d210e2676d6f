//! Joules of a trained token, estimated from the work of a step.

use bitnet_energy::{EnergyEstimate, TrainingProducts, TrainingWork};
use bitnet_format::ModelSpec;
use bitnet_format::figures::significant;

use super::{MemoryEstimate, RankWorkload};
use crate::model::ActivationMemory;
use crate::recipe::Precision;

/// The energy of a token of the data, on one rank.
pub fn energy(
    spec: &ModelSpec,
    precision: Precision,
    load: RankWorkload,
    memory: &MemoryEstimate,
) -> EnergyEstimate {
    // What an update reads and writes; activations are counted from the shape.
    let state = memory.weights + memory.gradients + memory.moments;
    let micro_batches = load.micro_batches as f64;
    let work = TrainingWork {
        spec,
        products: match precision {
            Precision::F32 => TrainingProducts::F32,
            Precision::Bf16 => TrainingProducts::Bf16,
            Precision::Int8 => TrainingProducts::Int8,
        },
        tokens: load.rows() as f64 * load.seq_len as f64 * micro_batches,
        seq_len: load.seq_len as f64,
        micro_batches,
        recompute: load.activations == ActivationMemory::Recomputed,
        state_bytes: state as f64 / spec.parameters() as f64,
    };
    work.estimate()
}

/// In words, said to be an estimate.
pub fn energy_in_words(estimate: EnergyEstimate) -> String {
    format!(
        "energy: about {} J/token, an estimate ({} arithmetic, {} memory)",
        significant(estimate.total()),
        significant(estimate.arithmetic),
        significant(estimate.memory)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::{RankLayout, memory};

    #[test]
    fn more_rows_a_step_share_the_optimizer_and_the_words_say_estimate() {
        let spec: ModelSpec = toml::from_str(include_str!("../../configs/s.toml")).unwrap();
        let of = |micro_batches| {
            let load = RankWorkload {
                items: 8,
                rows_an_item: 1,
                seq_len: 256,
                micro_batches,
                ..RankWorkload::default()
            };
            let memory = memory(&spec, &[], load, RankLayout::SINGLE, &crate::device::cpu());
            energy(&spec, Precision::Bf16, load, &memory)
        };
        let (one, eight) = (of(1), of(8));
        assert!((one.arithmetic / eight.arithmetic - 1.0).abs() < 1e-9, "{one:?} {eight:?}");
        assert!(one.memory > 4.0 * eight.memory, "{one:?} {eight:?}");
        assert!(energy_in_words(one).contains("estimate"));
    }
}
