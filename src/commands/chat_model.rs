//! The packed model of a finished run, opened as a user would: it continues texts, answers in a
//! chat, and is scored by exact match on held-out stories.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use anyhow::Result;
use bitnet_engine::{GenerateRequest, Model, SamplerSettings, ThreadPool, generate};
use bitnet_format::adapter::Adapter;
use bitnet_stories::{Difficulty, Probe, Split, StoryStyle, dialogue, outside_dialogue, story};
use bitnet_text::{ChatTemplate, Message, Role, Tokenizer};
use bitnet_train::train::TrainError;

/// Tokens by which an answer may exceed the expected one.
const SPARE_TOKENS: usize = 12;

/// Number of questions asked and of those answered exactly right.
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

/// A user's message about a story of the synthetic dataset, with its only right answer.
pub(crate) struct StoryQuestion {
    pub(crate) message: String,
    pub(crate) answer: String,
}

impl StoryQuestion {
    /// The first question about a held-out story.
    pub(crate) fn held_out(seed: u64, index: u64) -> Self {
        let dialogue = dialogue(seed, Split::HeldOut, index);
        Self { message: dialogue.user_message(0), answer: dialogue.turns[0].answer.clone() }
    }

    /// How it asks: `Where`, `Who`, `What`.
    fn kind(&self) -> &str {
        // The message is the story and then the question, so that its last sentence begins with
        // the kind.
        let question = self.message.trim_end_matches('?').rsplit(". ").next();
        question.and_then(|question| question.split(' ').next()).unwrap_or_default()
    }
}

/// A packed model with its tokenizer and chat template.
pub(crate) struct ChatModel {
    model: Model,
    tokenizer: Tokenizer,
    chat: ChatTemplate,
    threads: ThreadPool,
}

impl ChatModel {
    /// The model in a packed folder, with a side adapter if there is one.
    pub(crate) fn open(packed: &Path, adapter: Option<&Path>) -> Result<Self> {
        let tokenizer = Tokenizer::from_file(&packed.join("tokenizer.json"));
        let tokenizer = tokenizer.map_err(TrainError::from)?;
        let mut model = Model::load(packed).map_err(TrainError::from)?;
        if let Some(adapter) = adapter {
            let adapter = Adapter::open(adapter, model.spec()).map_err(TrainError::from)?;
            model = model.with_adapter(&adapter).map_err(TrainError::from)?;
        }
        Ok(Self {
            model,
            chat: ChatTemplate::of_model(packed, &tokenizer).map_err(TrainError::from)?,
            tokenizer,
            threads: ThreadPool::new(rayon::current_num_threads())?,
        })
    }

    /// Continues a text.
    pub(crate) fn continue_text(&self, prompt: &str, max_tokens: usize) -> Result<String> {
        let mut ids: Vec<u32> = self.tokenizer.first().into_iter().collect();
        ids.extend(self.tokenizer.encode(prompt).map_err(TrainError::from)?);
        Ok(self.generate(&ids, max_tokens)?.unwrap_or_default())
    }

    /// The answer to the last message; `None` when it might not fit into the context.
    pub(crate) fn answer(&self, messages: &[Message], max_tokens: usize) -> Result<Option<String>> {
        let conversation = messages.to_vec().into();
        let ids = self.chat.prompt(&self.tokenizer, &conversation).map_err(TrainError::from)?;
        // The space before the first word belongs to the answer's first token, not to the answer.
        let answer = self.generate(&ids, max_tokens)?;
        Ok(answer.map(|answer| answer.trim_start().to_owned()))
    }

    /// The answer to one message; empty when it might not fit into the context.
    pub(crate) fn reply(&self, message: &str, max_tokens: usize) -> Result<String> {
        let answer = self.answer(&[turn(Role::User, message)], max_tokens)?.unwrap_or_default();
        Ok(answer.trim().to_owned())
    }

    /// Questions about held-out stories that the model answers right, of as many kinds as there are.
    pub(crate) fn answered(
        &self,
        seed: u64,
        stories: Range<u64>,
        count: usize,
    ) -> Result<Vec<StoryQuestion>> {
        let mut found: Vec<StoryQuestion> = Vec::new();
        for index in stories {
            let asked = StoryQuestion::held_out(seed, index);
            if found.len() == count || found.iter().any(|other| other.kind() == asked.kind()) {
                continue;
            }
            let limit = self.token_count(&asked.answer)? + SPARE_TOKENS;
            if self.reply(&asked.message, limit)? == asked.answer {
                found.push(asked);
            }
        }
        Ok(found)
    }

    fn generate(&self, ids: &[u32], max_tokens: usize) -> Result<Option<String>> {
        let spec = self.model.spec();
        if ids.len() + max_tokens > spec.context_length() {
            return Ok(None);
        }
        let mut stop_ids = spec.eos_token_id.clone();
        stop_ids.extend(self.chat.stop_ids(&self.tokenizer));
        // Greedy, so that a model has the same score every time.
        let request = GenerateRequest { sampler: SamplerSettings::greedy(), stop_ids, max_tokens };
        let mut cache = self.model.new_cache();
        let each = |_| ControlFlow::Continue(());
        let generated = generate(&self.model, &mut cache, ids, &request, &self.threads, each)
            .map_err(TrainError::from)?;
        Ok(Some(self.tokenizer.decode(&generated.tokens)))
    }

    /// Asks questions about held-out stories, and about what no story tells, in a chat and counts exact
    /// matches by difficulty. The history of each question has the expected answers, not the model's own.
    pub(crate) fn exact_match(
        &self,
        seed: u64,
        stories: u64,
    ) -> Result<BTreeMap<Difficulty, ExactMatches>> {
        let mut scores = BTreeMap::new();
        let about_stories = (0..stories).map(|index| dialogue(seed, Split::HeldOut, index));
        let outside = (0..).map_while(|number| outside_dialogue(seed, number));
        for dialogue in about_stories.chain(outside) {
            let mut messages = Vec::new();
            for (at, exchange) in dialogue.turns.iter().enumerate() {
                messages.push(turn(Role::User, &dialogue.user_message(at)));
                let limit = self.token_count(&exchange.answer)? + SPARE_TOKENS;
                // A question that does not fit into the context is not asked, and not counted as
                // wrong.
                if let Some(answer) = self.answer(&messages, limit)? {
                    let score: &mut ExactMatches = scores.entry(dialogue.difficulty).or_default();
                    score.count(answer.trim() == exchange.answer);
                }
                // The expected answer: a wrong one would spoil the questions that follow.
                messages.push(turn(Role::Assistant, &exchange.answer));
            }
        }
        Ok(scores)
    }

    /// Exact matches of a pretrained model that finishes sentences about held-out stories.
    pub(crate) fn probe(&self, seed: u64, style: StoryStyle, stories: u64) -> Result<ExactMatches> {
        let mut score = ExactMatches::default();
        for index in 0..stories {
            for Probe { prompt, answer } in story(seed, Split::HeldOut, style, index).probes {
                // Only the beginning has to be the answer, so little more is generated than that.
                let limit = self.token_count(&answer)? + 2;
                // One more for the token that a document begins with.
                let total = self.token_count(&prompt)? + limit + 1;
                if total <= self.model.spec().context_length() {
                    score.count(self.continue_text(&prompt, limit)?.starts_with(&answer));
                }
            }
        }
        Ok(score)
    }

    /// A conversation about one held-out story with the model's own answers.
    pub(crate) fn converse(&self, seed: u64, index: u64) -> Result<Vec<Message>> {
        let dialogue = dialogue(seed, Split::HeldOut, index);
        let mut messages = Vec::new();
        for at in 0..dialogue.turns.len() {
            messages.push(turn(Role::User, &dialogue.user_message(at)));
            let limit = self.token_count(&dialogue.turns[at].answer)? + SPARE_TOKENS;
            let Some(answer) = self.answer(&messages, limit)? else { break };
            messages.push(turn(Role::Assistant, answer.trim()));
        }
        Ok(messages)
    }

    fn token_count(&self, text: &str) -> Result<usize> {
        Ok(self.tokenizer.encode(text).map_err(TrainError::from)?.len())
    }
}

fn turn(role: Role, content: &str) -> Message {
    Message::new(role, content)
}
