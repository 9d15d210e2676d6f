//! What the model thought of the tokens of a prompt.

use super::job::ScoredToken;

/// Scores of neighbouring tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PromptScores {
    /// How many of the most likely tokens are sent with each; `None`: nothing was scored.
    pub(crate) top: Option<usize>,
    pub(crate) tokens: Vec<ScoredToken>,
}

impl PromptScores {
    /// How many of `common` first tokens a request can take over that wants `top` of the most
    /// likely tokens with each; `None`: it wants no scores. The token after the last score is
    /// computed again, since the next score comes from it.
    pub(crate) fn usable(&self, common: usize, wanted: Option<usize>) -> usize {
        match wanted {
            None => common,
            // With more or fewer of the most likely tokens they are other scores.
            Some(_) if self.top != wanted => 0,
            Some(_) => common.min(self.tokens.len().saturating_sub(1)),
        }
    }

    /// The scores of at most `count` tokens from `first` on.
    pub(crate) fn part(&self, first: usize, count: usize) -> Self {
        let all = self.tokens.iter().skip(first).take(count);
        Self { top: self.top, tokens: all.cloned().collect() }
    }

    /// What they take in memory.
    pub(crate) fn bytes(&self) -> usize {
        let token = size_of::<ScoredToken>() + self.top.unwrap_or(0) * size_of::<(u32, f64)>();
        self.tokens.len() * token
    }
}
