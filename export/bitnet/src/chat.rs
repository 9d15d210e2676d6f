//! `bitnet chat`: a conversation on a terminal, or one user turn a line in a pipe.
//!
//! The key-value cache is kept between turns: only what follows the longest common prefix of the old
//! and the new prompt is computed. The chat template turns messages into tokens.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitnet_engine::{GenerateRequest, KvCache, Model, ThreadPool, generate};
use bitnet_format::figures::significant;
use bitnet_text::{ChatTemplate, Message, Role, Tokenizer};

use crate::chat_input::{ChatInput, HELP, Typed};
use crate::cli::ChatArgs;
use crate::output::{StdoutError, note, spoken};
use crate::{generate as sampling, open};

/// A conversation with a model.
struct ChatSession<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    chat: ChatTemplate,
    threads: ThreadPool,
    request: GenerateRequest,
    messages: Vec<Message>,
    cache: KvCache,
    /// The tokens that the cache holds.
    cached: Vec<u32>,
}

pub(crate) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let model = open::model(args.model.path(), args.head)?;
    let tokenizer = open::tokenizer(args.model.path(), &model)?;
    let chat = ChatTemplate::of_model(args.model.path(), &tokenizer)?;
    let mut stop_ids = sampling::stop_ids(&model, &tokenizer);
    stop_ids.extend(chat.stop_ids(&tokenizer));
    let request = GenerateRequest {
        sampler: sampling::settings(&args.sampling),
        stop_ids,
        max_tokens: args.max_tokens,
    };
    let system = args.system.iter().map(|text| Message::new(Role::System, text)).collect();
    let mut session = ChatSession {
        cache: open::cache(&model, &args.cache),
        model: &model,
        tokenizer: &tokenizer,
        chat,
        threads: open::threads(&args.threads, &model)?,
        request,
        messages: system,
        cached: Vec::new(),
    };
    let interrupt = Interrupt::listen()?;
    converse(&mut session, &interrupt)
}

/// Reads turns until the input ends.
fn converse(session: &mut ChatSession, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut input = ChatInput::open();
    let terminal = input.is_terminal();
    if terminal {
        greet(&session.request);
    }
    loop {
        interrupt.let_through();
        let Some(line) = input.next_line()? else { return Ok(()) };
        match input.typed(&line) {
            Typed::Empty => {}
            Typed::Help => note(HELP),
            Typed::Reset => session.reset(),
            Typed::System(text) => session.set_system(text),
            Typed::Quit => return Ok(()),
            Typed::Unknown(command) => note(&format!("{command} is no command; /help lists them")),
            Typed::Message(text) => {
                interrupt.hold();
                let start = Instant::now();
                let tokens = session.answer(text, &mut spoken, &|| interrupt.is_asked())?;
                spoken("\n")?;
                if terminal {
                    note(&speed(tokens, start.elapsed()));
                }
            }
        }
    }
}

fn greet(request: &GenerateRequest) {
    note("/help lists the commands, /quit leaves, Ctrl-C stops an answer");
    if request.sampler.temperature == 0.0 {
        note("the most likely words are taken (greedy); --temperature 0.7 makes answers vary");
    }
}

fn speed(tokens: usize, time: Duration) -> String {
    let per_second = tokens as f64 / time.as_secs_f64().max(1e-9);
    format!("[{tokens} tokens, {} tokens/s]", significant(per_second))
}

impl ChatSession<'_> {
    /// Forgets all but the system message.
    fn reset(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
    }

    /// Begins anew with this system message; with none if it is empty.
    fn set_system(&mut self, text: &str) {
        self.messages.clear();
        if !text.is_empty() {
            self.messages.push(Message::new(Role::System, text));
        }
    }

    /// Adds the user's message, streams the answer to `out` and returns its number of tokens.
    fn answer(
        &mut self,
        text: &str,
        out: &mut dyn FnMut(&str) -> Result<(), StdoutError>,
        interrupted: &dyn Fn() -> bool,
    ) -> anyhow::Result<usize> {
        self.messages.push(Message::new(Role::User, text));
        let Some(prompt) = self.fitting_prompt()? else {
            self.messages.pop();
            let most = self.model.spec().max_position_embeddings;
            note(&format!(
                "this turn does not fit into the context of {most} tokens; it is left out"
            ));
            return Ok(0);
        };
        let held = self.reuse(&prompt);
        let free = self.model.spec().max_position_embeddings - prompt.len();
        let request = GenerateRequest {
            max_tokens: self.request.max_tokens.min(free),
            ..self.request.clone()
        };
        self.request.sampler.seed = self.request.sampler.seed.wrapping_add(1);
        let (mut stream, mut answer) = (self.tokenizer.stream(), String::new());
        let mut written = Ok(());
        let mut emit = |piece: &str| {
            let piece = if answer.is_empty() { piece.trim_start() } else { piece };
            answer.push_str(piece);
            written = out(piece);
            written.is_ok()
        };
        let (model, cache) = (self.model, &mut self.cache);
        let generated = generate(model, cache, &prompt[held..], &request, &self.threads, |id| {
            if emit(&stream.push(id)) && !interrupted() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        emit(&stream.finish());
        written?;
        let tokens = generated.tokens.len();
        // The cache holds the prompt and all generated tokens that were fed back.
        self.cached = prompt;
        self.cached.extend(generated.tokens);
        self.cached.truncate(self.cache.len());
        self.messages.push(Message::new(Role::Assistant, answer.trim_end()));
        Ok(tokens)
    }

    /// The prompt for the conversation, without its oldest turns if it would fill the context; `None`
    /// when the last message alone fills it.
    fn fitting_prompt(&mut self) -> anyhow::Result<Option<Vec<u32>>> {
        let first = usize::from(self.messages.first().is_some_and(|it| it.role == Role::System));
        let mut forgotten = 0;
        loop {
            let prompt = self.chat.prompt(self.tokenizer, &self.messages.clone().into())?;
            if prompt.len() < self.model.spec().max_position_embeddings {
                if forgotten > 0 {
                    let what = format!("the oldest {forgotten} turns are forgotten");
                    note(&format!("the context is full: {what}"));
                }
                return Ok(Some(prompt));
            }
            if self.messages.len() <= first + 1 {
                return Ok(None);
            }
            self.messages.remove(first);
            forgotten += 1;
        }
    }

    /// Truncates the cache to its common prefix with `prompt` and returns the prefix length. The last
    /// token is always computed again, since its logits are needed.
    fn reuse(&mut self, prompt: &[u32]) -> usize {
        let same = self.cached.iter().zip(prompt).take_while(|(held, new)| held == new).count();
        let held = same.min(prompt.len() - 1);
        self.cache.truncate(held);
        held
    }
}

/// Ctrl-C stops an answer; at the prompt it ends the program.
struct Interrupt {
    asked: Arc<AtomicBool>,
    /// Whether Ctrl-C ends the program.
    ends: Arc<AtomicBool>,
}

impl Interrupt {
    fn listen() -> std::io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let ends = Arc::new(AtomicBool::new(true));
        let signal = signal_hook::consts::SIGINT;
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&ends))?;
        signal_hook::flag::register(signal, Arc::clone(&asked))?;
        Ok(Self { asked, ends })
    }

    fn let_through(&self) {
        self.ends.store(true, Ordering::SeqCst);
    }

    fn hold(&self) {
        self.asked.store(false, Ordering::SeqCst);
        self.ends.store(false, Ordering::SeqCst);
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
}
