//! What a teacher that runs beside the student adds to memory.

use bitnet_format::adapter::AdapterKind;
use bitnet_format::{ModelSpec, tensor_table};

use super::{F32, bytes_of_a_token, bytes_under_an_adapter};
use crate::model::ActivationMemory;

/// A teacher: weights that never change, and forward passes that keep nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TeacherLoad {
    /// Bytes of its weights, as they lie in the mapped files or as codes.
    weights: u64,
    /// Bytes of its largest dense matrix in f32, as a product reads it.
    matrix: u64,
    /// Bytes of a token on its way through a block.
    token: u64,
}

impl TeacherLoad {
    /// The load of a teacher of this shape.
    pub fn of(spec: &ModelSpec) -> Self {
        let dense = tensor_table(spec).into_iter().skip(1).filter(|entry| !entry.is_ternary(spec));
        let largest = dense.map(|entry| entry.elements()).max().unwrap_or(0) as u64;
        Self {
            // It is read as the model under a side adapter: codes, and BF16 for the rest. No part
            // of a micro-batch has anything of its own.
            weights: bytes_under_an_adapter(spec, AdapterKind::Side, 0),
            matrix: F32 * largest,
            token: bytes_of_a_token(spec, ActivationMemory::Recomputed),
        }
    }

    /// Bytes while `parts` of `tokens` each are computed at the same time.
    pub(super) fn memory(self, parts: u64, tokens: u64) -> u64 {
        let pass = self.matrix.saturating_add(self.token.saturating_mul(tokens));
        self.weights.saturating_add(pass.saturating_mul(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimate::{RankLayout, RankWorkload, memory};

    #[test]
    fn a_dense_teacher_costs_its_weights_in_bf16_and_a_ternary_one_fewer() {
        let config = include_str!("../../configs/m.toml");
        let student: ModelSpec = toml::from_str(config).unwrap();
        let dense: ModelSpec = toml::from_str(&format!("{config}\nquantise = false")).unwrap();
        let load = |teacher| RankWorkload {
            items: 1,
            rows_an_item: 1,
            seq_len: 64,
            micro_batches: 1,
            teacher,
            ..RankWorkload::default()
        };
        let of = |teacher| {
            let load = load(teacher);
            memory(&student, &[], load, RankLayout::SINGLE, &crate::device::cpu())
        };
        let (none, ternary) = (of(None), of(Some(TeacherLoad::of(&student))));
        let dense = of(Some(TeacherLoad::of(&dense)));
        let parameters = student.parameters() as u64;
        assert_eq!(none.teacher, 0);
        assert_eq!(dense.total() - dense.teacher, none.total());
        assert!(dense.teacher > 2 * parameters && dense.teacher < 4 * parameters, "{dense:?}");
        assert!(ternary.teacher < dense.teacher);
    }
}
