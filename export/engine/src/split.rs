//! How one product or one loop is divided over the threads of the current pool.
//!
//! Work is split statically into runs of whole units (a pair of panels, a token, a head). Each
//! unit is computed by one thread in one order, so the split never shows in the result.

use rayon::prelude::*;

/// Multiply-adds below which a task is not worth handing to another thread: about 10 µs.
const SMALLEST_TASK: usize = 1 << 18;

/// Calls `compute(first unit, places)` until all of `out` is covered.
///
/// `unit` places belong together and cost `cost` multiply-adds; the last unit may be shorter.
pub(crate) fn split(
    out: &mut [f32],
    unit: usize,
    cost: usize,
    compute: impl Fn(usize, &mut [f32]) + Sync,
) {
    let units = out.len().div_ceil(unit);
    let share = units.div_ceil(rayon::current_num_threads());
    let run = share.max(SMALLEST_TASK.div_ceil(cost.max(1)));
    if run >= units {
        return compute(0, out);
    }
    out.par_chunks_mut(run * unit)
        .enumerate()
        .for_each(|(index, places)| compute(index * run, places));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_computed_once_whatever_the_number_of_threads() {
        for threads in 1..=3 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0.0; 23];
            pool.install(|| {
                split(&mut out, 5, SMALLEST_TASK, |first, places| {
                    for (place, value) in places.iter_mut().zip(first * 5..) {
                        *place += value as f32;
                    }
                });
            });
            assert!(out.iter().enumerate().all(|(i, &value)| value == i as f32));
        }
    }
}
