//! Conversations that are text already, since another program ran the template, and prompts that
//! spell special tokens.

use std::ops::Range;

use super::marks::{Marks, Rendered};
use super::message::Dialogue;
use crate::error::TextError;
use crate::tokenizer::Tokenizer;

impl Tokenizer {
    /// The ids of a prompt that its writer puts together: special tokens that it spells are those
    /// tokens. The token that begins a document comes first where the tokenizer adds it and the
    /// prompt does not spell it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        Ok(self.read_special(text)?.tokens(self, &[])?.ids)
    }

    /// The ids of a plain text that stands behind a special token, which may swallow the spaces
    /// that the text begins with.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_behind(&self, special: Option<u32>, text: &str) -> Result<Vec<u32>, TextError> {
        let swallows = special.and_then(|id| self.special_token(id)).is_some_and(|it| it.rstrip);
        self.encode(if swallows { text.trim_start() } else { text })
    }

    fn read_special(&self, text: &str) -> Result<Rendered, TextError> {
        let marks = Marks::absent_from(&[text])
            .ok_or_else(|| self.encode_error("every private-use character is in use".to_owned()))?;
        Ok(Rendered::read(text, marks, self))
    }

    /// The ids of a text that a chat template made: special tokens that it spells are those tokens.
    /// Trained is what reaches into a range of `answers`, in bytes.
    ///
    /// The token that begins a document is added where the tokenizer adds it and the text does not
    /// begin with it. Where the text ends in no special token, the one that ends a document
    /// follows; it is trained with an answer that reaches to the end.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_templated(
        &self,
        text: &str,
        answers: &[Range<usize>],
    ) -> Result<Dialogue, TextError> {
        let rendered = self.read_special(text)?;
        let mut dialogue = rendered.tokens(self, answers)?;
        let is_blank = |part: &Range<usize>| rendered.text[part.clone()].trim().is_empty();
        // A line end after the last special token does not make the text one without an end.
        let last = rendered.parts.iter().rfind(|(part, id)| id.is_some() || !is_blank(part));
        if last.is_none_or(|(_, id)| id.is_none()) {
            dialogue.push(self.eos(), answers.last().is_some_and(|one| one.end >= text.len()));
        }
        Ok(dialogue)
    }
}

#[cfg(test)]
mod tests {
    use crate::test_tokenizers::trained;

    #[test]
    fn special_tokens_of_a_ready_text_are_tokens_and_an_end_is_added_where_none_is() {
        let tokenizer = trained(300);
        let id = |token: &str| tokenizer.token_id(token).unwrap();
        let (bos, eot, eos) = (id("<|begin_of_text|>"), id("<|eot_id|>"), id("<|end_of_text|>"));
        let text = "Q: a<|eot_id|>A: b<|eot_id|>\n";
        let answer = text.find("A:").unwrap() + 2..text.len();
        let dialogue = tokenizer.encode_templated(text, &[answer]).unwrap();
        assert_eq!(dialogue.ids[0], bos);
        assert_eq!(dialogue.ids.iter().filter(|id| **id == eot).count(), 2);
        assert!(!dialogue.ids.contains(&eos));
        let said: Vec<u32> = dialogue
            .ids
            .iter()
            .zip(&dialogue.trained)
            .filter(|(_, on)| **on)
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(tokenizer.decode_with_special(&said), " b<|eot_id|>\n");
        let plain = tokenizer
            .encode_templated("<|begin_of_text|>ab", std::slice::from_ref(&(0..19)))
            .unwrap();
        assert_eq!((plain.ids[0], plain.ids.last()), (bos, Some(&eos)));
        assert_eq!(plain.ids.iter().filter(|id| **id == bos).count(), 1);
        assert_eq!(plain.trained.last(), Some(&true));
        let prompt = tokenizer.encode_prompt("<|end_of_text|>ab<|begin_of_text|>").unwrap();
        assert_eq!((prompt[0], prompt[1], prompt.last()), (bos, eos, Some(&bos)));
        assert_eq!(
            tokenizer.encode_prompt("ab").unwrap(),
            [&[bos], &*tokenizer.encode("ab").unwrap()].concat()
        );
        let none = tokenizer.encode_templated("ab", &[]).unwrap();
        assert!(none.trained.iter().all(|trained| !trained));
    }
}
