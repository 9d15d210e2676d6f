//! Finds the answers in a rendered conversation: what the model has to say, and so is trained.
//!
//! A template that marks answers itself (`{% generation %}`) decides. For any other they are found
//! by rendering the conversation again with another answer, a mark, in the place of each:
//!
//! ```text
//! full       <turn>user hi<end><turn>assistant pear<end><turn>user …
//! replaced   <turn>user hi<end><turn>assistant ⊙<end><turn>user …     what stands around an answer
//! prompt     <turn>user hi<end><turn>assistant                        asks for the answer
//! cut        <turn>user hi<end><turn>assistant ⊙<end>                 ends with it
//! answer                                       pear<end>
//! ```
//!
//! An answer begins where the prompt for it ends; without a prompt, where `full` and `replaced`
//! part. The tokens that end its turn are those that `cut` has after it too.

use std::ops::Range;

use super::jinja::RenderInputs;
use super::marks::{Marks, Rendered};
use super::message::{Conversation, Message, Role, strip};
use super::renderer::Renderer;
use crate::error::TextError;

/// Longer conversations are not rendered once for each of their answers.
const MAX_MESSAGES: usize = 512;

/// The rendered conversation and the ranges of its text that are trained.
pub(super) fn find(
    renderer: Renderer,
    conversation: &Conversation,
) -> Result<(Rendered, Vec<Range<usize>>), TextError> {
    let search = Search::new(renderer, conversation)?;
    let marks_answers = renderer.template.marks_answers();
    // First all answers at once, in one call of the engine. That fails where a template writes an
    // answer or its surroundings according to what was said elsewhere; then each answer is found by
    // itself.
    let changed = if marks_answers { Vec::new() } else { search.all_replaced() };
    let inputs = std::iter::once(search.full.clone()).chain(changed).collect();
    let mut results = search.render(inputs)?.into_iter();
    let full = results.next().expect("one input, one result")?;
    let texts: Vec<String> = results.map(text_of).collect();
    let answers = match &texts[..] {
        _ if marks_answers => search.marked(&full)?,
        [replaced, prompt, bare, cut] => {
            match search.all_at_once(&full, [replaced, prompt, bare, cut]) {
                Some(answers) => answers,
                None => search.one_by_one(&full)?,
            }
        }
        _ => Vec::new(),
    };
    Ok((full, answers))
}

/// The text of a changed conversation. One that the template refuses shows nothing.
fn text_of(rendered: Result<Rendered, TextError>) -> String {
    rendered.map_or(String::new(), |rendered| rendered.text)
}

/// What one search works on.
struct Search<'a> {
    renderer: Renderer<'a>,
    conversation: &'a Conversation,
    marks: Marks,
    full: RenderInputs,
    /// The turns of the assistant.
    turns: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(renderer: Renderer<'a>, conversation: &'a Conversation) -> Result<Self, TextError> {
        let marks = renderer.marks(conversation)?;
        let is_answer = |turn: &usize| conversation.messages[*turn].role == Role::Assistant;
        Ok(Self {
            renderer,
            conversation,
            marks,
            full: renderer.inputs(conversation, marks, false),
            turns: (0..conversation.messages.len()).filter(is_answer).collect(),
        })
    }

    fn render(
        &self,
        inputs: Vec<RenderInputs>,
    ) -> Result<Vec<Result<Rendered, TextError>>, TextError> {
        let read = |raw: String| Rendered::read(&raw, self.marks, self.renderer.tokenizer);
        Ok(self.renderer.render(inputs)?.into_iter().map(|raw| raw.map(read)).collect())
    }

    fn is_trained(&self, turn: usize) -> bool {
        self.conversation.messages[turn].is_trained()
    }

    /// The messages before `end`, with the generation prompt or without.
    fn up_to(&self, end: usize, generation_prompt: bool) -> RenderInputs {
        let messages = self.full.messages[..end].to_vec();
        RenderInputs { messages, generation_prompt, ..self.full.clone() }
    }

    /// The first `end` messages with marks in the place of the answers `turns`.
    fn replaced(&self, turns: &[usize], end: usize) -> RenderInputs {
        let mut inputs = self.up_to(end, false);
        for &turn in turns {
            inputs.messages[turn] = replacement(&self.conversation.messages[turn], self.marks);
        }
        inputs
    }

    /// The parts that the template marks, without those of turns that are not trained.
    fn marked(&self, full: &Rendered) -> Result<Vec<Range<usize>>, TextError> {
        let trained: Vec<bool> = self.turns.iter().map(|turn| self.is_trained(*turn)).collect();
        if trained.iter().all(|trained| *trained) {
            return Ok(full.marked.clone());
        }
        if trained.len() != full.marked.len() {
            let what = "marks several parts of an answer, so that an answer which is not trained \
                        cannot be left out; expected one {% generation %} block for each answer";
            return Err(self.renderer.template.error(None, what.to_owned()));
        }
        let kept = full.marked.iter().zip(trained).filter(|(_, trained)| *trained);
        Ok(kept.map(|(range, _)| range.clone()).collect())
    }

    /// All answers replaced at once, and what surrounds the first; empty without answers.
    fn all_replaced(&self) -> Vec<RenderInputs> {
        let Some(&first) = self.turns.first() else { return Vec::new() };
        vec![
            self.replaced(&self.turns, self.full.messages.len()),
            self.up_to(first, true),
            self.up_to(first, false),
            self.replaced(&[first], first + 1),
        ]
    }

    /// The answers by the texts of [`Search::all_replaced`]. `None` where what stands around an
    /// answer depends on the answer.
    fn all_at_once(
        &self,
        full: &Rendered,
        [replaced, prompt, bare, cut]: [&String; 4],
    ) -> Option<Vec<Range<usize>>> {
        let literals: Vec<&str> = replaced.split(self.marks.answer).collect();
        // What the generation prompt adds to the same messages without one.
        let asks = prompt.strip_prefix(bare.as_str()).unwrap_or_default();
        let after = cut.split_once(self.marks.answer).map_or("", |(_, after)| after);
        let contents = between(&full.text, &literals)?;
        if contents.len() != self.turns.len() {
            return None;
        }
        let found = contents.into_iter().zip(literals).zip(&self.turns);
        let trained = found.filter(|(_, turn)| self.is_trained(**turn));
        let answers = trained.filter_map(|((content, before), _)| {
            let begin = match before.rfind(asks) {
                // What the template writes between prompt and content, such as empty thoughts, is
                // the model's to say and belongs to the answer.
                Some(at) if !asks.is_empty() => content.start - before.len() + at + asks.len(),
                _ => content.start,
            };
            answer(full, begin..content.end, after)
        });
        Some(answers.collect())
    }

    /// Replaces one answer at a time.
    fn one_by_one(&self, full: &Rendered) -> Result<Vec<Range<usize>>, TextError> {
        let count = self.full.messages.len();
        if count > MAX_MESSAGES {
            let what = format!(
                "{count} messages; expected at most {MAX_MESSAGES} of a template whose turns depend \
                 on each other"
            );
            return Err(self.renderer.template.error(None, what));
        }
        let mut answers = Vec::new();
        for &turn in self.turns.iter().filter(|turn| self.is_trained(**turn)) {
            let changed = vec![
                self.up_to(turn, true),
                self.up_to(turn, false),
                self.replaced(&[turn], count),
                self.replaced(&[turn], turn + 1),
            ];
            let texts: Vec<String> = self.render(changed)?.into_iter().map(text_of).collect();
            let [prompt, bare, replaced, cut] = &texts[..] else { unreachable!("four inputs") };
            // A template that does not write this answer at all shows nothing to train.
            let Some((_, rest)) = replaced.split_once(self.marks.answer) else { continue };
            let asks = prompt != bare && full.text.starts_with(prompt.as_str());
            let begin = if asks { prompt.len() } else { common_prefix(&full.text, replaced) };
            // Prefix and suffix overlap where an answer repeats what stands around it.
            let end = begin.max(full.text.len() - common_suffix(&full.text, rest));
            let after = cut.split_once(self.marks.answer).map_or("", |(_, after)| after);
            answers.extend(answer(full, begin..end, after));
        }
        Ok(answers)
    }
}

/// Another answer of the assistant: one mark, no thoughts and no calls.
fn replacement(message: &Message, marks: Marks) -> serde_json::Value {
    let name = message.fields.get("name").cloned();
    let mut other = Message::new(message.role, marks.answer);
    // The name stays: templates write it into the header, and the header must not change.
    other.fields.extend(name.map(|name| ("name".to_owned(), name)));
    other.to_json()
}

/// What `text` has between the literals, which must begin it, follow each other, and end it.
fn between(text: &str, literals: &[&str]) -> Option<Vec<Range<usize>>> {
    let (first, rest) = literals.split_first()?;
    let (last, middle) = rest.split_last()?;
    let mut at = text.starts_with(first).then_some(first.len())?;
    let mut found = Vec::with_capacity(rest.len());
    for literal in middle {
        let end = at + text[at..].find(literal)?;
        found.push(at..end);
        at = end + literal.len();
    }
    let end = text.ends_with(last).then(|| text.len() - last.len())?;
    found.push((at <= end).then_some(at..end)?);
    Some(found)
}

/// An answer with the tokens that end its turn: those that stand after it here and at the end of a
/// conversation.
fn answer(full: &Rendered, content: Range<usize>, after: &str) -> Option<Range<usize>> {
    let end = content.end + common_prefix(&full.text[content.end..], after);
    let end = turn_end(full, content.end..end).unwrap_or(content.end);
    (content.start < end).then_some(content.start..end)
}

/// Where the last special token of `range` ends. Where words follow it, or there is none, the words
/// end the turn.
fn turn_end(full: &Rendered, range: Range<usize>) -> Option<usize> {
    let inside = full.parts.iter().filter(|(part, special)| {
        special.is_some() && part.start >= range.start && part.end <= range.end
    });
    // What follows the last special token, such as a line end, comes after the model has stopped.
    let last = inside.map(|(part, _)| part.end).next_back();
    let words = range.start + full.text[range.clone()].trim_end().len();
    let end = last.filter(|last| strip(&full.text[*last..range.end]).is_empty()).unwrap_or(words);
    (end > range.start).then_some(end)
}

fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    same.map(|(letter, _)| letter.len_utf8()).sum()
}

fn common_suffix(a: &str, b: &str) -> usize {
    let same = a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b);
    same.map(|(letter, _)| letter.len_utf8()).sum()
}
