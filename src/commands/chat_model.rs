//! A packed model opened as any user would open it: it goes on with texts, answers in a chat, and
//! is asked about worlds it never saw.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Result;
use bitnet_engine::{GenerateRequest, Model, SamplerSettings, Threads, generate};
use bitnet_stories::{Difficulty, Probe, Split, StoryStyle, dialogue, story};
use bitnet_text::{ChatTemplate, Message, Role, Tokenizer};
use bitnet_train::train::TrainError;

/// Tokens that an answer may be longer than the right one.
const SPARE_TOKENS: usize = 12;

/// How many questions were answered exactly right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExactMatches {
    pub(crate) asked: usize,
    pub(crate) right: usize,
}

impl ExactMatches {
    fn count(&mut self, right: bool) {
        self.asked += 1;
        self.right += usize::from(right);
    }

    pub(crate) fn share(self) -> f64 {
        self.right as f64 / self.asked.max(1) as f64
    }
}

/// The packed model.
pub(crate) struct ChatModel {
    model: Model,
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    threads: Threads,
}

impl ChatModel {
    pub(crate) fn open(packed: &Path) -> Result<Self> {
        Ok(Self {
            model: Model::load(packed).map_err(TrainError::from)?,
            tokenizer: Tokenizer::from_file(&packed.join("tokenizer.json"))
                .map_err(TrainError::from)?,
            chat: ChatTemplate::of_folder(packed).map_err(TrainError::from)?,
            threads: Threads::new(rayon::current_num_threads())?,
        })
    }

    /// Goes on with a text.
    pub(crate) fn continue_text(&self, prompt: &str, max_tokens: usize) -> Result<String> {
        let mut ids: Vec<u32> = self.model.spec().bos_token_id.into_iter().collect();
        ids.extend(self.tokenizer.encode(prompt).map_err(TrainError::from)?);
        Ok(self.generate(&ids, max_tokens)?.unwrap_or_default())
    }

    /// The answer to the last turn of a conversation; `None` when it has no room in the context.
    pub(crate) fn answer(&self, messages: &[Message], max_tokens: usize) -> Result<Option<String>> {
        let ids = self.chat.prompt(&self.tokenizer, messages).map_err(TrainError::from)?;
        self.generate(&ids, max_tokens)
    }

    fn generate(&self, ids: &[u32], max_tokens: usize) -> Result<Option<String>> {
        let spec = self.model.spec();
        if ids.len() + max_tokens > spec.max_position_embeddings {
            return Ok(None);
        }
        let mut stop_ids = spec.eos_token_id.clone();
        stop_ids.extend(self.chat.stop_ids(&self.tokenizer));
        let request = GenerateRequest { sampler: SamplerSettings::greedy(), stop_ids, max_tokens };
        let mut cache = self.model.new_cache();
        let each = |_| ControlFlow::Continue(());
        let generated = generate(&self.model, &mut cache, ids, &request, &self.threads, each)
            .map_err(TrainError::from)?;
        Ok(Some(self.tokenizer.decode(&generated.tokens)))
    }

    /// Asks, in a chat, about stories of worlds that were never trained on. Only exactly the right
    /// answer counts; later questions follow the right answers to the earlier ones.
    ///
    /// By how many of a kind the story has.
    pub(crate) fn exact_match(
        &self,
        seed: u64,
        stories: u64,
    ) -> Result<BTreeMap<Difficulty, ExactMatches>> {
        let mut scores = BTreeMap::new();
        for index in 0..stories {
            let dialogue = dialogue(seed, Split::HeldOut, index);
            let mut said = Vec::new();
            for (at, exchange) in dialogue.turns.iter().enumerate() {
                said.push(turn(Role::User, &dialogue.user_message(at)));
                let room = self.length(&exchange.answer)? + SPARE_TOKENS;
                if let Some(answer) = self.answer(&said, room)? {
                    let score: &mut ExactMatches = scores.entry(dialogue.difficulty).or_default();
                    score.count(answer.trim() == exchange.answer);
                }
                said.push(turn(Role::Assistant, &exchange.answer));
            }
        }
        Ok(scores)
    }

    /// Lets the model finish sentences about stories of unseen worlds, as a pretrained model can.
    pub(crate) fn probe(&self, seed: u64, style: StoryStyle, stories: u64) -> Result<ExactMatches> {
        let mut score = ExactMatches::default();
        for index in 0..stories {
            for Probe { prompt, answer } in story(seed, Split::HeldOut, style, index).probes {
                let room = self.length(&answer)? + 2;
                let long = self.length(&prompt)? + room + 1;
                if long <= self.model.spec().max_position_embeddings {
                    score.count(self.continue_text(&prompt, room)?.starts_with(&answer));
                }
            }
        }
        Ok(score)
    }

    /// A conversation about one story with the model's own answers.
    pub(crate) fn converse(&self, seed: u64, index: u64) -> Result<Vec<Message>> {
        let dialogue = dialogue(seed, Split::HeldOut, index);
        let mut said = Vec::new();
        for at in 0..dialogue.turns.len() {
            said.push(turn(Role::User, &dialogue.user_message(at)));
            let room = self.length(&dialogue.turns[at].answer)? + SPARE_TOKENS;
            let Some(answer) = self.answer(&said, room)? else { break };
            said.push(turn(Role::Assistant, answer.trim()));
        }
        Ok(said)
    }

    fn length(&self, text: &str) -> Result<usize> {
        Ok(self.tokenizer.encode(text).map_err(TrainError::from)?.len())
    }
}

fn turn(role: Role, content: &str) -> Message {
    Message { role, content: content.to_owned() }
}
