//! How many tokens of prompts go beside answers in work, so that these hardly notice.
//!
//! A step that only decodes has a time `u`; every token of a prompt beside it adds about `a`. Both
//! are measured as the server runs, `u` for each number of answers, and a chunk is given as many
//! tokens as cost 0.6 of `u`: answers go on at more than half of their speed.

/// Tokens of prompts in a step that decodes nothing: as many as go through the blocks together.
const PREFILL_ALONE: usize = 128;

/// What a chunk may add to a step, as a share of `u`.
const SHARE: f64 = 0.6;

/// A chunk beside answers is never longer.
const MOST_BESIDE: usize = 64;

/// Tokens of the first chunk beside answers, before any was measured.
const FIRST_BESIDE: usize = 2;

/// After this many steps with a chunk comes one without: contexts grow, and so does the time of a
/// plain step.
const MEASURED: usize = 16;

/// What a new measurement counts.
const NEW: f64 = 0.25;

/// The measured times of steps.
#[derive(Debug, Default)]
pub(super) struct Pacing {
    /// `u` in seconds, by the number of answers.
    undisturbed: Vec<Option<f64>>,
    /// `a` in seconds.
    a_token: Option<f64>,
    /// Steps with a chunk since one without.
    disturbed: usize,
}

impl Pacing {
    /// Tokens of prompts that may go beside `decoding` answers.
    pub(super) fn beside(&self, decoding: usize) -> usize {
        if decoding == 0 {
            return PREFILL_ALONE;
        }
        match (self.undisturbed(decoding), self.a_token) {
            // Measure first: without `u` nobody knows what a chunk adds.
            (None, _) => 0,
            _ if self.disturbed >= MEASURED => 0,
            // Small: nobody knows yet how slow a token is here.
            (Some(_), None) => FIRST_BESIDE,
            (Some(step), Some(token)) => {
                // At least one: a prompt that never got a token would wait as long as others talk.
                ((SHARE * step / token).round() as usize).clamp(1, MOST_BESIDE)
            }
        }
    }

    /// A step with `decoding` answers and `beside` tokens of prompts took `seconds`.
    pub(super) fn took(&mut self, decoding: usize, beside: usize, seconds: f64) {
        if decoding == 0 {
            return;
        }
        if beside == 0 {
            self.disturbed = 0;
            let places = self.undisturbed.len().max(decoding + 1);
            self.undisturbed.resize(places, None);
            blend(&mut self.undisturbed[decoding], seconds);
        } else if let Some(step) = self.undisturbed(decoding) {
            self.disturbed += 1;
            // A step that was faster than one without a chunk says nothing of the chunk.
            let added = (seconds - step).max(step / MOST_BESIDE as f64);
            blend(&mut self.a_token, added / beside as f64);
        }
    }

    fn undisturbed(&self, decoding: usize) -> Option<f64> {
        self.undisturbed.get(decoding).copied().flatten()
    }
}

fn blend(known: &mut Option<f64>, seconds: f64) {
    *known = Some(known.map_or(seconds, |known| known + NEW * (seconds - known)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine where a step takes 20 ms and a token of a prompt 4 ms.
    fn run(pacing: &mut Pacing, steps: usize) -> Vec<usize> {
        let one = |_| {
            let beside = pacing.beside(1);
            pacing.took(1, beside, 0.020 + 0.004 * beside as f64);
            beside
        };
        (0..steps).map(one).collect()
    }

    #[test]
    fn a_chunk_adds_six_tenths_of_a_step() {
        let mut pacing = Pacing::default();
        assert_eq!(pacing.beside(0), 128);
        let chunks = run(&mut pacing, 40);
        assert_eq!(chunks[..4], [0, 2, 3, 3], "first a step alone, then a small chunk");
        assert_eq!(chunks.iter().filter(|chunk| **chunk == 0).count(), 3, "measured again");
        assert!(chunks.iter().all(|chunk| *chunk <= 3), "{chunks:?}");
    }

    #[test]
    fn one_slow_step_does_not_stop_prompts() {
        let mut pacing = Pacing::default();
        run(&mut pacing, 10);
        pacing.took(1, 4, 3.0);
        assert_eq!(pacing.beside(1), 1);
        assert_eq!(run(&mut pacing, 30).last(), Some(&3));
        assert_eq!(pacing.beside(3), 0, "another number of answers is measured first");
    }
}
