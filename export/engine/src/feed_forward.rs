//! The gate of the feed-forward block: `act(gate) · up`.

use bitnet_format::HiddenAct;

use crate::ThreadPool;

/// What one gated value costs next to a multiply-add, roughly.
const COST: usize = 16;
/// The same with an exponential.
const SILU_COST: usize = 128;

/// Values that are computed together: a divisor of most widths.
const STRIP: usize = 128;

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
        HiddenAct::Relu2 => {
            gated_by(threads, COST, |x| HiddenAct::Relu2.value(x), gate_up, width, out);
        }
        HiddenAct::Silu => {
            gated_by(threads, SILU_COST, |x| HiddenAct::Silu.value(x), gate_up, width, out);
        }
    }
}

fn gated_by(
    threads: &ThreadPool,
    cost: usize,
    act: impl Fn(f32) -> f32 + Sync,
    gate_up: &[f32],
    width: usize,
    out: &mut [f32],
) {
    // Strips of a token, so that a single one is work for several threads too.
    let strip = if width.is_multiple_of(STRIP) { STRIP } else { width };
    threads.split(out, strip, cost * strip, |first, out| {
        for (out, first) in out.chunks_exact_mut(strip).zip((first * strip..).step_by(strip)) {
            let (token, column) = (first / width, first % width);
            let (gate, up) = gate_up[token * 2 * width..][..2 * width].split_at(width);
            let inputs = gate[column..].iter().zip(&up[column..]);
            for (out, (&gate, up)) in out.iter_mut().zip(inputs) {
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
    fn any_number_of_threads_computes_the_same() {
        for (tokens, width) in [(1, 16 * STRIP), (40, STRIP), (50, 100)] {
            let gate_up: Vec<f32> =
                (0..tokens * 2 * width).map(|i| (i % 97) as f32 - 40.0).collect();
            let many = ThreadPool::new(3).unwrap();
            let mut out = vec![7.0; tokens * width];
            gated(&many, HiddenAct::Silu, &gate_up, width, &mut out);
            assert_eq!(out, of(HiddenAct::Silu, &gate_up, width));
            let place = (tokens - 1) * 2 * width + width - 1;
            let expected = HiddenAct::Silu.value(gate_up[place]) * gate_up[place + width];
            assert_eq!(out.last().unwrap().to_bits(), expected.to_bits());
        }
    }

    #[test]
    fn silu_gates_too() {
        assert_eq!(of(HiddenAct::Silu, &[0.0, 1.0], 1), [0.0]);
    }
}
