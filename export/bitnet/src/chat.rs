//! `bitnet chat`: a conversation on a terminal, or one user turn a line in a pipe.
//!
//! The conversation itself is `bitnet_chat`, or a server's; this is the terminal around it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitnet_chat::{Answer, ChatSession, ChatSettings};
use bitnet_format::figures::significant;
use bitnet_text::ChatTemplate;

use crate::chat_input::{ChatInput, HELP, Typed};
use crate::chat_partner::{ChatPartner, PartnerReply};
use crate::cli::ChatArgs;
use crate::output::{generated_text, note};
use crate::server_chat::ServerChat;
use crate::{generate as sampling, open};

pub(crate) fn run(args: &ChatArgs) -> anyhow::Result<()> {
    let (sampler, max_tokens) = (sampling::settings(&args.sampling), args.max_tokens);
    let settings = ChatSettings { sampler, max_tokens };
    match &args.model.server {
        Some(address) => {
            let key = args.api_key_file.as_deref();
            begin(&mut ServerChat::open(address, key, settings)?, args)
        }
        None => with_model(args, settings),
    }
}

/// A chat with a model of this process.
fn with_model(args: &ChatArgs, settings: ChatSettings) -> anyhow::Result<()> {
    let model = open::model(args.model.path(), args.head, &args.adapter)?;
    let tokenizer = open::tokenizer(args.model.path(), &model)?;
    let chat = ChatTemplate::of_model(args.model.path(), &tokenizer)?;
    let threads = open::threads(&args.threads, &model)?;
    let session = ChatSession::new(&model, &tokenizer, chat, threads, settings);
    begin(&mut session.with_cache(open::cache(&model, &args.cache)), args)
}

fn begin(partner: &mut dyn ChatPartner, args: &ChatArgs) -> anyhow::Result<()> {
    partner.set_system(args.system.as_deref().unwrap_or_default());
    let interrupt = Interrupt::listen()?;
    converse(partner, &interrupt)
}

/// Reads turns until the input ends.
fn converse(partner: &mut dyn ChatPartner, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut input = ChatInput::open();
    let terminal = input.is_terminal();
    if terminal {
        greet(partner.is_greedy());
    }
    loop {
        // At the prompt Ctrl-C ends the program, while an answer comes it ends the answer.
        interrupt.let_through();
        let Some(line) = input.next_line()? else { return Ok(()) };
        match input.typed(&line) {
            Typed::Empty => {}
            Typed::Help => note(HELP),
            Typed::Reset => partner.reset(),
            Typed::System(text) => partner.set_system(text),
            Typed::Quit => return Ok(()),
            Typed::Unknown(command) => note(&format!("{command} is no command; /help lists them")),
            Typed::Message(text) => {
                interrupt.hold();
                let start = Instant::now();
                let tokens = answer(partner, text, interrupt)?;
                if terminal {
                    note(&speed(tokens, start.elapsed()));
                }
            }
        }
    }
}

/// Prints the answer to a message, until Ctrl-C; the number of its tokens.
fn answer(
    partner: &mut dyn ChatPartner,
    text: &str,
    interrupt: &Interrupt,
) -> anyhow::Result<usize> {
    let mut written = Ok(());
    let answered = partner.answer(text, &mut |piece| {
        // Kept and not returned at once: the partner must first put its conversation in order.
        written = generated_text(piece);
        let goes_on = written.is_ok() && !interrupt.is_asked();
        if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    written?;
    let answer = match answered? {
        PartnerReply::Answered(answer) => answer,
        PartnerReply::LeftOut(why) => {
            note(&why);
            Answer { tokens: 0, forgotten: 0 }
        }
    };
    generated_text("\n")?;
    if answer.forgotten > 0 {
        let count = answer.forgotten;
        note(&format!("the context is full: the oldest {count} messages are forgotten"));
    }
    Ok(answer.tokens)
}

fn greet(greedy: bool) {
    note("/help lists the commands, /quit leaves, Ctrl-C stops an answer");
    if greedy {
        note("the most likely words are taken (greedy); --temperature 0.7 makes answers vary");
    }
}

fn speed(tokens: usize, time: Duration) -> String {
    let per_second = tokens as f64 / time.as_secs_f64().max(1e-9);
    format!("[{tokens} tokens, {} tokens/s]", significant(per_second))
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
        // 128 + SIGINT, as shells tell it.
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
