//! The gate of the feed-forward block: `act(gate) · up`.

use bitnet_format::HiddenAct;

use crate::ThreadPool;

/// What one gated value costs next to a multiply-add, roughly: `silu` needs an exponential.
const COST: usize = 16;

/// `gate_up [T, 2F]`, gate first → `out [T, F]`.
pub(crate) fn gated(
    threads: &ThreadPool,
    act: HiddenAct,
    gate_up: &[f32],
    width: usize,
    out: &mut [f32],
) {
    // One loop an activation, so that none asks which it is.
    match act {
        HiddenAct::Relu2 => gated_by(threads, |x| HiddenAct::Relu2.value(x), gate_up, width, out),
        HiddenAct::Silu => gated_by(threads, |x| HiddenAct::Silu.value(x), gate_up, width, out),
    }
}

fn gated_by(
    threads: &ThreadPool,
    act: impl Fn(f32) -> f32 + Sync,
    gate_up: &[f32],
    width: usize,
    out: &mut [f32],
) {
    threads.split(out, width, COST * width, |first, out| {
        let tokens = gate_up[first * 2 * width..].chunks_exact(2 * width);
        for (out, token) in out.chunks_exact_mut(width).zip(tokens) {
            let (gate, up) = token.split_at(width);
            for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = act(gate) * up;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(act: HiddenAct, gate_up: &[f32], width: usize) -> Vec<f32> {
        let mut out = vec![7.0; gate_up.len() / 2];
        gated(&ThreadPool::new(1).unwrap(), act, gate_up, width, &mut out);
        out
    }

    #[test]
    fn the_gate_is_the_first_half() {
        let gate_up = [2.0, -1.0, 10.0, 20.0, 3.0, 0.5, 1.0, 4.0];
        assert_eq!(of(HiddenAct::Relu2, &gate_up, 2), [40.0, 0.0, 9.0, 1.0]);
    }

    #[test]
    fn silu_gates_too() {
        assert_eq!(of(HiddenAct::Silu, &[0.0, 1.0], 1), [0.0]);
    }
}
