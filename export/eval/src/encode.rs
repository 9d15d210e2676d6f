//! Texts as token ids, split where the harness splits them.

use bitnet_text::Tokenizer;

use crate::error::EvalError;
use crate::python;

/// Whether a text begins with the token that begins a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BosPolicy {
    /// As the tokenizer does it.
    #[default]
    Auto,
    /// Where the tokenizer has one.
    Always,
    /// Never.
    Never,
}

impl BosPolicy {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// Tokens whose likelihood is asked for after others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// What comes before, at least one token.
    pub context: Vec<u32>,
    /// At least one token.
    pub continuation: Vec<u32>,
}

/// A tokenizer with the settings of an evaluation.
#[derive(Clone, Copy, Debug)]
pub struct RequestEncoder<'a> {
    /// The model's.
    pub tokenizer: &'a Tokenizer,
    /// What stands before each text.
    pub bos: BosPolicy,
    /// `max_position_embeddings`.
    pub max_length: usize,
}

impl RequestEncoder<'_> {
    fn first(&self) -> Option<u32> {
        match self.bos {
            BosPolicy::Auto => self.tokenizer.first(),
            BosPolicy::Always => self.tokenizer.bos(),
            BosPolicy::Never => None,
        }
    }

    /// The token that stands for an empty context.
    fn prefix(&self) -> Result<u32, EvalError> {
        let known = self.tokenizer.bos().or(self.tokenizer.eos_token());
        known.ok_or_else(|| EvalError::Setting {
            task: "tokenizer".to_owned(),
            what: "has neither a token that begins nor one that ends a document; an empty context \
                   needs one"
                .to_owned(),
        })
    }

    /// The ids of a text. One that already begins with BOS gets none.
    pub fn text(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        let spelled = self.tokenizer.bos().and_then(|bos| self.tokenizer.spelling(bos));
        let spelled = spelled.filter(|bos| text.starts_with(bos.as_str()));
        let (first, text) = match &spelled {
            Some(bos) => (self.tokenizer.bos(), &text[bos.len()..]),
            None => (self.first(), text),
        };
        // The spelled BOS was taken off: `encode` would read it as plain letters.
        let ids = self.tokenizer.encode(text)?;
        Ok(first.into_iter().chain(ids).collect())
    }

    /// A context and its continuations: spaces at the end of the context belong to the
    /// continuation, and both are encoded as one text that is cut after as many tokens as the
    /// context alone has.
    ///
    /// # Errors
    /// A continuation without a token.
    pub fn pairs(&self, context: &str, after: &[&str]) -> Result<Vec<TokenRequest>, EvalError> {
        if context.is_empty() {
            return after.iter().map(|after| self.after_nothing(after)).collect();
        }
        // Most tokenizers put a space at the beginning of a word's token (`Ġyes`). A context that
        // keeps its space would end in a token that no training text has there.
        let trimmed = context.trim_end_matches(python::is_space);
        let ids = self.text(trimmed)?;
        let pair = |after: &&str| {
            let whole = self.text(&format!("{context}{after}"))?;
            // Cut by number, not by content: where a token reaches across the border, `whole` does
            // not begin with `ids`. The harness cuts there all the same.
            self.request(ids.clone(), whole.get(ids.len()..).unwrap_or_default().to_vec())
        };
        after.iter().map(pair).collect()
    }

    /// A conversation's prompt and the answers after it, cut as [`RequestEncoder::pairs`] cuts.
    /// Special tokens are borders of texts: what stands before the prompt's last one is as it is.
    ///
    /// # Errors
    /// An answer without a token.
    pub fn answers(&self, prompt: &[u32], after: &[&str]) -> Result<Vec<TokenRequest>, EvalError> {
        let last = prompt.iter().rposition(|id| self.tokenizer.is_special(*id));
        let (head, tail) = prompt.split_at(last.map_or(0, |at| at + 1));
        let tail = self.tokenizer.decode(tail);
        let behind = |text: &str| -> Result<Vec<u32>, EvalError> {
            let ids = self.tokenizer.encode_behind(head.last().copied(), text)?;
            Ok([head, &ids].concat())
        };
        let ids = behind(tail.trim_end_matches(python::is_space))?;
        let pair = |after: &&str| {
            let whole = behind(&format!("{tail}{after}"))?;
            self.request(ids.clone(), whole.get(ids.len()..).unwrap_or_default().to_vec())
        };
        after.iter().map(pair).collect()
    }

    fn after_nothing(&self, after: &str) -> Result<TokenRequest, EvalError> {
        let (prefix, ids) = (self.prefix()?, self.tokenizer.encode(after)?);
        // A continuation that begins with the prefix brings its own.
        if ids.first() == Some(&prefix) {
            return self.request(vec![prefix], ids[1..].to_vec());
        }
        self.request(vec![prefix], ids)
    }

    fn request(
        &self,
        context: Vec<u32>,
        continuation: Vec<u32>,
    ) -> Result<TokenRequest, EvalError> {
        let refuse = |what: String| Err(EvalError::Request { what });
        if continuation.is_empty() {
            return refuse("a continuation has no token of its own after its context".to_owned());
        }
        if continuation.len() > self.max_length {
            let (got, most) = (continuation.len(), self.max_length);
            return refuse(format!(
                "a continuation has {got} tokens; the model's context is {most}"
            ));
        }
        // A context of nothing but spaces leaves none; the harness would stop here.
        let context = if context.is_empty() { vec![self.prefix()?] } else { context };
        Ok(TokenRequest { context, continuation })
    }

    /// A whole text in windows of the model's context, each token counted once.
    pub fn rolling(&self, text: &str) -> Result<Vec<TokenRequest>, EvalError> {
        let ids = self.text(text)?;
        let first = ids.len().min(self.max_length);
        let mut windows = Vec::new();
        if first > 0 {
            windows.push(self.request(vec![self.prefix()?], ids[..first].to_vec())?);
        }
        let mut done = first;
        while done < ids.len() {
            let end = ids.len().min(done + self.max_length);
            // As much context as fits beside the tokens that count; one where they fill it.
            let context = ids[(end - self.max_length).saturating_sub(1)..done].to_vec();
            windows.push(TokenRequest { context, continuation: ids[done..end].to_vec() });
            done = end;
        }
        Ok(windows)
    }

    /// The ids of a prompt that leaves room for `new` tokens, cut from the left; whether it was
    /// cut.
    ///
    /// # Errors
    /// No room.
    pub fn prompt(&self, mut ids: Vec<u32>, new: usize) -> Result<(Vec<u32>, bool), EvalError> {
        let Some(room) = self.max_length.checked_sub(new).filter(|room| *room > 0) else {
            let what = format!(
                "{new} new tokens leave no room for a prompt in the model's context of {}",
                self.max_length
            );
            return Err(EvalError::Setting { task: "request".to_owned(), what });
        };
        if ids.is_empty() {
            ids.push(self.prefix()?);
        }
        let cut = ids.len().saturating_sub(room);
        Ok((ids.split_off(cut), cut > 0))
    }
}

impl TokenRequest {
    /// What the model reads: all but the last token, cut from the left to `max_length`; and whether
    /// something was cut.
    pub(crate) fn input(&self, max_length: usize) -> (Vec<u32>, bool) {
        // The last token is only predicted, so one token more than `max_length` fits.
        let mut all = [self.context.as_slice(), &self.continuation].concat();
        all.pop();
        let cut = all.len().saturating_sub(max_length);
        (all.split_off(cut), cut > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_text::train_bpe;
    use std::path::Path;

    fn tokenizer() -> Tokenizer {
        let text = ["where is the key in the box, on the mat ".repeat(40)].into_iter();
        Tokenizer::from_bytes(Path::new("trained.json"), &train_bpe(text, 290).unwrap()).unwrap()
    }

    fn encoder(tokenizer: &Tokenizer, bos: BosPolicy, max_length: usize) -> RequestEncoder<'_> {
        RequestEncoder { tokenizer, bos, max_length }
    }

    #[test]
    fn spaces_at_the_end_of_a_context_belong_to_the_continuation() {
        let tokenizer = tokenizer();
        let encoder = encoder(&tokenizer, BosPolicy::Never, 64);
        for (context, after) in
            [("where is the key", " in the box"), ("where is the key  ", "in the box")]
        {
            let pair = encoder.pairs(context, &[after]).unwrap().remove(0);
            assert_eq!(pair.context, tokenizer.encode("where is the key").unwrap());
            let whole = [pair.context.as_slice(), &pair.continuation].concat();
            assert_eq!(whole, tokenizer.encode(&format!("{context}{after}")).unwrap());
        }
        let error = encoder.pairs("where", &[""]).unwrap_err().to_string();
        assert!(error.contains("no token of its own"), "{error}");
    }

    #[test]
    fn bos_is_written_on_request_and_never_twice() {
        let tokenizer = tokenizer();
        let bos = tokenizer.bos().unwrap();
        let ids = |policy, text: &str| encoder(&tokenizer, policy, 64).text(text).unwrap();
        let plain = tokenizer.encode("the key").unwrap();
        let with = [&[bos], plain.as_slice()].concat();
        assert_eq!(ids(BosPolicy::Never, "the key"), plain);
        assert_eq!(ids(BosPolicy::Always, "the key"), with);
        let own = if tokenizer.first().is_some() { &with } else { &plain };
        assert_eq!(&ids(BosPolicy::Auto, "the key"), own);
        let spelled = format!("{}the key", tokenizer.spelling(bos).unwrap());
        assert_eq!(ids(BosPolicy::Always, &spelled), with);
        // Nothing before: the token that begins a document stands for the context.
        let pair =
            encoder(&tokenizer, BosPolicy::Never, 64).pairs("", &["the key"]).unwrap().remove(0);
        assert_eq!((pair.context, pair.continuation), (vec![bos], plain));
    }

    /// Context and continuation lengths as `get_rolling_token_windows` and `make_disjoint_window`
    /// of the harness give them for 10 tokens and a context of 4.
    #[test]
    fn a_whole_text_is_read_in_windows_that_count_each_token_once() {
        let tokenizer = tokenizer();
        let encoder = encoder(&tokenizer, BosPolicy::Never, 4);
        let mut text = String::new();
        while tokenizer.encode(&text).unwrap().len() < 10 {
            text.push('q');
        }
        let ids = tokenizer.encode(&text).unwrap();
        let windows = encoder.rolling(&text).unwrap();
        let lengths: Vec<_> =
            windows.iter().map(|it| (it.context.len(), it.continuation.len())).collect();
        assert_eq!(lengths, [(1, 4), (1, 4), (3, 2)]);
        let counted: Vec<u32> = windows.iter().flat_map(|it| it.continuation.clone()).collect();
        assert_eq!(counted, ids);
        assert_eq!(windows[2].context, ids[5..8]);
        assert!(windows.iter().all(|window| window.input(4) == (window.input(99).0, false)));
        assert!(encoder.rolling("").unwrap().is_empty());
    }

    #[test]
    fn a_prompt_that_is_too_long_is_cut_from_the_left_and_counted() {
        let tokenizer = tokenizer();
        let encoder = encoder(&tokenizer, BosPolicy::Never, 8);
        let ids = tokenizer.encode("the key in the box, on the mat, where is the key").unwrap();
        let (prompt, cut) = encoder.prompt(ids.clone(), 3).unwrap();
        assert_eq!((prompt.as_slice(), cut), (&ids[ids.len() - 5..], true));
        assert!(!encoder.prompt(vec![7], 3).unwrap().1);
        let error = encoder.prompt(vec![7], 8).unwrap_err().to_string();
        assert!(error.contains("8 new tokens leave no room"), "{error}");
        let request = TokenRequest { context: vec![1, 2, 3, 4], continuation: vec![5, 6] };
        assert_eq!(request.input(5), (vec![1, 2, 3, 4, 5], false));
        assert_eq!(request.input(3), (vec![3, 4, 5], true));
    }
}
