//! One conversation: its messages, and the cache of the tokens that the model has seen.

use std::ops::ControlFlow;

use bitnet_engine::{
    EngineError, FinishReason, GenerateRequest, KvCache, Model, SamplerSettings, ThreadPool,
    generate,
};
use bitnet_text::{ChatTemplate, Message, Role, TextError, Tokenizer};

/// How answers are made.
#[derive(Clone, Debug)]
pub struct ChatSettings {
    /// How tokens are drawn; the seed grows by one with each answer.
    pub sampler: SamplerSettings,
    /// The longest answer, in tokens.
    pub max_tokens: usize,
}

/// Why there is no answer. The conversation is then what it was before.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The chat template or the tokenizer refuses the messages.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model does not run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The message alone fills the context.
    #[error("this turn does not fit into the context of {limit} tokens; it is left out")]
    TooLong {
        /// `max_position_embeddings`.
        limit: usize,
    },
}

/// What came of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Tokens of the answer.
    pub tokens: usize,
    /// Messages that were forgotten, the oldest first, because the context was full.
    pub forgotten: usize,
}

/// A conversation with a model. The cache is kept between turns: only what follows the longest
/// common beginning of the old and the new prompt is computed.
pub struct ChatSession<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    template: ChatTemplate,
    threads: ThreadPool,
    settings: ChatSettings,
    stop_ids: Vec<u32>,
    messages: Vec<Message>,
    cache: KvCache,
    /// The tokens that the cache holds.
    cached: Vec<u32>,
}

impl<'a> ChatSession<'a> {
    /// A conversation that nobody has begun. An answer ends with a token that the model's config,
    /// the tokenizer or the template names as an end.
    pub fn new(
        model: &'a Model,
        tokenizer: &'a Tokenizer,
        template: ChatTemplate,
        threads: ThreadPool,
        settings: ChatSettings,
    ) -> Self {
        let cache = model.new_cache();
        let mut stop_ids = model.spec().eos_token_id.clone();
        stop_ids.extend(template.stop_ids(tokenizer));
        let (messages, cached) = (Vec::new(), Vec::new());
        Self { model, tokenizer, template, threads, settings, stop_ids, messages, cache, cached }
    }

    /// The same with this empty cache, for one of another precision.
    #[must_use]
    pub fn with_cache(self, cache: KvCache) -> Self {
        Self { cache, cached: Vec::new(), ..self }
    }

    /// What was said, the system's message first.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// How answers are made.
    pub fn settings(&self) -> &ChatSettings {
        &self.settings
    }

    /// Forgets all but the system's message.
    pub fn reset(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
    }

    /// Begins anew with this message of the system; with none if it is empty.
    pub fn set_system(&mut self, text: &str) {
        self.messages.clear();
        if !text.is_empty() {
            self.messages.push(Message::new(Role::System, text));
        }
    }

    /// Adds the user's message and passes the answer to `out`, piece by piece, until its end or
    /// until `out` breaks; what came until then stays part of the conversation.
    ///
    /// # Errors
    /// When the template refuses the message, or the context is too small for it.
    pub fn answer(
        &mut self,
        text: &str,
        out: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, ChatError> {
        // `fitting_prompt` forgets messages as it goes; a failed turn must bring them back.
        let before = self.messages.clone();
        self.messages.push(Message::new(Role::User, text));
        let answered = self.answer_last(out);
        if answered.is_err() {
            self.messages = before;
        }
        answered
    }

    fn answer_last(
        &mut self,
        out: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, ChatError> {
        let (prompt, forgotten) = self.fitting_prompt()?;
        let held = self.reuse(&prompt);
        let request = self.request(prompt.len());
        let (mut stream, mut answer) = (self.tokenizer.stream(), String::new());
        let mut emit = |piece: &str| {
            // The space after `Assistant:` is the model's to say (see `b158`) and nothing to show.
            let piece = if answer.is_empty() { piece.trim_start() } else { piece };
            answer.push_str(piece);
            out(piece)
        };
        let (model, cache) = (self.model, &mut self.cache);
        let each = |id| emit(&stream.push(id));
        let generated = generate(model, cache, &prompt[held..], &request, &self.threads, each)?;
        if generated.stop != FinishReason::Caller {
            // Nothing follows that could be stopped.
            let _ = emit(&stream.finish());
        }
        let tokens = generated.tokens.len();
        // The cache holds the prompt and all generated tokens that were fed back.
        self.cached = prompt;
        self.cached.extend(generated.tokens);
        self.cached.truncate(self.cache.len());
        self.messages.push(Message::new(Role::Assistant, answer.trim_end()));
        Ok(Answer { tokens, forgotten })
    }

    /// The request for the next answer after a prompt of `prompt` tokens.
    fn request(&mut self, prompt: usize) -> GenerateRequest {
        let free = self.model.spec().context_length() - prompt;
        let ChatSettings { sampler, max_tokens } = self.settings.clone();
        // The same question twice should have two answers.
        self.settings.sampler.seed = sampler.seed.wrapping_add(1);
        GenerateRequest {
            sampler,
            stop_ids: self.stop_ids.clone(),
            max_tokens: max_tokens.min(free),
        }
    }

    /// The prompt for the conversation, without its oldest messages if it would fill the context,
    /// and how many those are.
    fn fitting_prompt(&mut self) -> Result<(Vec<u32>, usize), ChatError> {
        let limit = self.model.spec().context_length();
        // The system's message stays: without it the rest would be another conversation.
        let first = usize::from(self.messages.first().is_some_and(|it| it.role == Role::System));
        let mut forgotten = 0;
        loop {
            let prompt = self.template.prompt(self.tokenizer, &self.messages.clone().into())?;
            // Less, not at most: the answer needs a place.
            if prompt.len() < limit {
                return Ok((prompt, forgotten));
            }
            let turn = oldest_turn(self.messages[first..].iter().map(|it| it.role));
            if turn == 0 {
                return Err(ChatError::TooLong { limit });
            }
            self.messages.drain(first..first + turn);
            forgotten += turn;
        }
    }

    /// Truncates the cache to its common beginning with `prompt` and returns the length of that.
    /// The last token is always computed again, since its logits are needed.
    fn reuse(&mut self, prompt: &[u32]) -> usize {
        let same = self.cached.iter().zip(prompt).take_while(|(held, new)| held == new).count();
        let held = same.min(prompt.len() - 1);
        self.cache.truncate(held);
        self.cached.truncate(held);
        held
    }
}

/// How many messages the oldest turn has, by the roles of all messages after the system's: those
/// before the second message of the user. 0 if the newest message would be among them.
///
/// Messages are forgotten by turns, because many templates refuse a conversation that begins with
/// an answer.
pub fn oldest_turn(roles: impl IntoIterator<Item = Role>) -> usize {
    let mut roles = roles.into_iter().enumerate().skip(1);
    roles.find(|(_, role)| *role == Role::User).map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use bitnet_engine::HeadPrecision;
    use bitnet_format::ModelSpec;
    use bitnet_text::train_bpe;

    use super::*;

    fn parts() -> (Model, Tokenizer) {
        let text = ["where is the key in the box ".repeat(40)].into_iter();
        let tokenizer = Tokenizer::from_bytes(
            std::path::Path::new("trained.json"),
            &train_bpe(text, 280).unwrap(),
        )
        .unwrap();
        let spec: ModelSpec = toml::from_str(&format!(
            "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 1\n\
             num_attention_heads = 2\nnum_key_value_heads = 1\nvocab_size = {}\n\
             max_position_embeddings = 128",
            tokenizer.vocab_size()
        ))
        .unwrap();
        (Model::random(&spec, HeadPrecision::File), tokenizer)
    }

    fn session<'a>(model: &'a Model, tokenizer: &'a Tokenizer) -> ChatSession<'a> {
        let settings = ChatSettings { sampler: SamplerSettings::greedy(), max_tokens: 5 };
        let threads = ThreadPool::new(1).unwrap();
        ChatSession::new(model, tokenizer, ChatTemplate::b158(), threads, settings)
    }

    fn say(session: &mut ChatSession, text: &str) -> (Answer, String) {
        let mut said = String::new();
        let answer = session.answer(text, &mut |piece| {
            said.push_str(piece);
            ControlFlow::Continue(())
        });
        (answer.unwrap(), said)
    }

    #[test]
    fn a_conversation_that_keeps_its_cache_says_what_one_without_says() {
        let (model, tokenizer) = parts();
        let (mut kept, mut emptied) = (session(&model, &tokenizer), session(&model, &tokenizer));
        for text in ["where is the key", "in the box"] {
            let first = say(&mut kept, text);
            let cache = model.new_cache();
            emptied = emptied.with_cache(cache);
            assert_eq!(say(&mut emptied, text), first);
        }
        assert_eq!(kept.messages().len(), 4);
        assert_eq!(kept.settings().sampler.seed, 2, "each answer has a seed of its own");
    }

    #[test]
    fn a_full_context_forgets_its_oldest_turns_and_refuses_what_alone_fills_it() {
        let (model, tokenizer) = parts();
        let mut session = session(&model, &tokenizer);
        session.set_system("the box");
        let forgotten: usize =
            (0..6).map(|_| say(&mut session, "where is the key").0.forgotten).sum();
        assert!(forgotten > 0);
        assert_eq!(session.messages()[0].role, Role::System);
        let before = session.messages().to_vec();
        let long = "where is the key in the box ".repeat(40);
        let refused = session.answer(&long, &mut |_| ControlFlow::Continue(()));
        assert!(matches!(refused, Err(ChatError::TooLong { limit: 128 })));
        assert_eq!(session.messages(), before);
        session.reset();
        assert_eq!(session.messages().len(), 1);
    }

    #[test]
    fn whole_turns_are_forgotten_so_that_no_template_meets_an_answer_first() {
        use Role::{Assistant, User};
        assert_eq!(oldest_turn([User, Assistant, User]), 2);
        assert_eq!(oldest_turn([User, Assistant, Assistant, User, Assistant, User]), 3);
        assert_eq!(oldest_turn([User]), 0);
        let (model, tokenizer) = parts();
        let alternating = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
            {{ raise_exception('turns must alternate') }}{% endif %}{{ m.content }}\n{% endfor %}";
        let path = std::path::Path::new("t.jinja");
        let settings = ChatSettings { sampler: SamplerSettings::greedy(), max_tokens: 5 };
        let threads = ThreadPool::new(1).unwrap();
        let template = ChatTemplate::jinja(path, alternating).unwrap();
        let mut session = ChatSession::new(&model, &tokenizer, template, threads, settings);
        let forgotten: Vec<usize> =
            (0..30).map(|_| say(&mut session, "where is the key").0.forgotten).collect();
        assert!(forgotten.iter().sum::<usize>() > 0);
        assert!(forgotten.iter().all(|count| count.is_multiple_of(2)), "{forgotten:?}");
        assert_eq!(session.messages()[0].role, Role::User);
    }

    #[test]
    fn an_answer_that_is_stopped_stays_part_of_the_conversation() {
        let (model, tokenizer) = parts();
        let mut session = session(&model, &tokenizer);
        let answer = session.answer("the key", &mut |_| ControlFlow::Break(())).unwrap();
        assert!(answer.tokens <= 1);
        assert_eq!(session.messages().len(), 2);
    }
}
