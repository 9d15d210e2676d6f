//! From a conversation to token ids through a Jinja template.
//!
//! `renderer` runs the template and encodes the text, `answers` finds what is trained. Questions
//! about a template are answered with a short conversation.

use super::answers;
use super::jinja::{Jinja, RenderInputs};
use super::marks::{Marks, Rendered};
use super::message::{Conversation, Dialogue, Message, Role};
use super::renderer::Renderer;
use crate::error::TextError;

impl Renderer<'_> {
    pub(super) fn encode(self, conversation: &Conversation) -> Result<Dialogue, TextError> {
        let (rendered, spans) = answers::find(self, conversation)?;
        self.tokens(&rendered, &spans)
    }

    pub(super) fn prompt(self, conversation: &Conversation) -> Result<Vec<u32>, TextError> {
        let marks = self.marks(conversation)?;
        let raw = self.render(vec![self.inputs(conversation, marks, true)])?;
        let raw = raw.into_iter().next().expect("one result for each input")?;
        Ok(self.tokens(&Rendered::read(&raw, marks, self.tokenizer), &[])?.ids)
    }

    /// Whether the tokenizer begins texts with a token that this template leaves out.
    pub(super) fn lacks_bos(self) -> bool {
        self.tokenizer.adds_bos() && self.sample().is_some_and(|text| !self.writes_bos(&text))
    }

    /// The token that ends an answer.
    pub(super) fn turn_end(self) -> Option<u32> {
        // Without a system's message first: more templates take that.
        let talks = [&SAMPLE[1..], &SAMPLE[..]];
        let dialogue = talks.into_iter().find_map(|talk| self.encode(&sample(talk)).ok())?;
        let is_special = |id: &u32| self.tokenizer.special_token(*id).is_some();
        let last = dialogue.trained.iter().rposition(|trained| *trained)?;
        // The last run of trained tokens is the answer.
        let first = dialogue.trained[..last].iter().rposition(|trained| !trained)?;
        let answer = &dialogue.ids[first + 1..=last];
        let end = answer.iter().rposition(is_special)?;
        // Where several special tokens end it (`<|eot|><|sep|>`), the first of them is what stops
        // the model.
        let begin = answer[..end].iter().rposition(|id| !is_special(id)).map_or(0, |at| at + 1);
        Some(answer[begin])
    }

    /// A short conversation, rendered.
    fn sample(self) -> Option<Rendered> {
        let talks = [&SAMPLE[1..], &SAMPLE[..]];
        talks
            .into_iter()
            .find_map(|talk| answers::find(self, &sample(talk)).ok().map(|(rendered, _)| rendered))
    }
}

/// A conversation for questions about a template; some want the first message, some refuse it.
const SAMPLE: [Role; 4] = [Role::System, Role::User, Role::Assistant, Role::User];

fn sample(roles: &[Role]) -> Conversation {
    roles.iter().map(|role| Message::new(*role, "hi")).collect::<Vec<_>>().into()
}

/// Renders a short conversation with and without the generation prompt. A template that refuses
/// system messages is still accepted, for conversations without one.
pub(super) fn probe(template: &Jinja) -> Result<(), TextError> {
    match probe_with(template, &SAMPLE) {
        Err(TextError::ChatTemplate { .. }) => probe_with(template, &SAMPLE[1..]),
        result => result,
    }
}

fn probe_with(template: &Jinja, roles: &[Role]) -> Result<(), TextError> {
    const WORDS: [&str; 4] = ["one", "two", "three", "four"];
    let marks = Marks::absent_from(&[template.source()]).expect("templates are short");
    let said: Vec<_> = roles.iter().zip(WORDS).collect();
    let inputs = |generation_prompt, count| RenderInputs {
        messages: said[..count]
            .iter()
            .map(|(role, word)| Message::new(**role, *word).to_json())
            .collect(),
        tools: Vec::new(),
        bos: "<s>".to_owned(),
        eos: "</s>".to_owned(),
        others: Vec::new(),
        generation_prompt,
        marks,
    };
    let both = vec![inputs(false, roles.len() - 1), inputs(true, roles.len())];
    let texts = template.render(both)?.into_iter().collect::<Result<Vec<_>, _>>()?;
    // The last message is that of the user to answer.
    let lost = |(role, word): &&(&Role, &str)| **role != Role::System && !texts[1].contains(word);
    match said.iter().find(lost) {
        Some((role, _)) => {
            let what = format!("leaves out what the {} says; expected its content", role.name());
            Err(template.error(None, what))
        }
        None => Ok(()),
    }
}
