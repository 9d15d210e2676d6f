//! `samples.jsonl`: what the model said while it trained.

use serde::Deserialize;

/// Samples that are kept, the newest.
const MOST: usize = 400;

/// A continuation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SampleText {
    /// After this step.
    pub step: u64,
    /// What it was given.
    pub prompt: String,
    /// What it said.
    pub text: String,
}

/// Takes a line; one of a step that is repeated replaces the earlier one.
pub(crate) fn take_sample(samples: &mut Vec<SampleText>, line: &[u8]) {
    let Ok(sample) = serde_json::from_slice::<SampleText>(line) else { return };
    let repeats = |other: &SampleText| {
        // Later steps too: this file has no mark of a resume, but a step that comes again says that
        // all after it will.
        other.step > sample.step || (other.step, &other.prompt) == (sample.step, &sample.prompt)
    };
    samples.retain(|other| !repeats(other));
    if samples.len() >= MOST {
        samples.remove(0);
    }
    samples.push(sample);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_samples_replace_those_of_their_step_and_after() {
        let mut samples = Vec::new();
        for (step, prompt, text) in
            [(1, "a", "x"), (2, "a", "old"), (2, "b", "old"), (3, "a", "old"), (2, "a", "new")]
        {
            let line = serde_json::json!({"step": step, "prompt": prompt, "text": text});
            take_sample(&mut samples, line.to_string().as_bytes());
        }
        take_sample(&mut samples, b"{\"step\":");
        let texts: Vec<_> = samples.iter().map(|sample| &*sample.text).collect();
        assert_eq!(texts, ["x", "old", "new"]);
    }
}
