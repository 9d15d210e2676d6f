//! A conversation with a running server, over `/v1/chat/completions` of `bitnet serve` or of
//! another program that has it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use bitnet_chat::{Answer, ChatSettings, oldest_turn};
use bitnet_text::Role;
use serde_json::{Value, json};
use ureq::Body;
use ureq::http::Response;

use crate::chat_partner::{ChatPartner, PartnerReply, PieceSink};
use crate::failure::ServerFailed;
use crate::openai_server::{OpenAiServer, error_message};

/// A piece of an answer takes a few hundred bytes.
const LONGEST_EVENT: u64 = 1 << 20;
/// How often a waiting chat looks whether to go on.
const LOOK: Duration = Duration::from_millis(50);

/// A conversation that a server answers.
pub(crate) struct ServerChat {
    server: OpenAiServer,
    model: String,
    /// Prompt and answer together, where the server tells.
    context: Option<usize>,
    settings: ChatSettings,
    messages: Vec<Value>,
}

impl ServerChat {
    /// Asks the server for its model.
    pub(crate) fn open(
        address: &str,
        key_file: Option<&Path>,
        settings: ChatSettings,
    ) -> anyhow::Result<Self> {
        let server = OpenAiServer::new("--server", address, key_file)?;
        let (model, messages) = (String::new(), Vec::new());
        let mut chat = Self { server, model, context: None, settings, messages };
        chat.find_model()?;
        Ok(chat)
    }

    fn find_model(&mut self) -> Result<(), ServerFailed> {
        let answer = self.server.get("/v1/models")?;
        let models = self.server.whole(answer)?;
        let models = models.map_err(|error| self.failed(&error_message(&error)))?;
        let model = &models["data"][0];
        let name = model["id"].as_str().ok_or_else(|| self.failed(&"names no model"))?;
        name.clone_into(&mut self.model);
        self.context = model["context_length"].as_u64().map(|context| context as usize);
        Ok(())
    }

    fn failed(&self, what: &dyn std::fmt::Display) -> ServerFailed {
        self.server.failed(what)
    }

    /// What is asked for. At least half of a context is left to the conversation.
    fn body(&self) -> Value {
        let ChatSettings { sampler, max_tokens } = &self.settings;
        let most = self.context.map_or(usize::MAX, |context| context / 2).max(1);
        let mut body = json!({
            "model": self.model, "messages": self.messages, "stream": true,
            "stream_options": {"include_usage": true}, "max_tokens": most.min(*max_tokens),
            "temperature": sampler.temperature, "top_p": sampler.top_p, "seed": sampler.seed,
        });
        // Not every server knows these.
        if sampler.top_k > 0 {
            body["top_k"] = sampler.top_k.into();
        }
        if sampler.min_p > 0.0 {
            body["min_p"] = sampler.min_p.into();
        }
        if (sampler.repetition_penalty - 1.0).abs() > 0.0 {
            body["repetition_penalty"] = sampler.repetition_penalty.into();
        }
        body
    }

    /// The stream of an answer; the inner error is what the server refused.
    fn ask(&self) -> Result<Result<Response<Body>, Value>, ServerFailed> {
        let answer = self.server.post("/v1/chat/completions", &self.body())?;
        if answer.status().is_success() {
            return Ok(Ok(answer));
        }
        Ok(Err(self.server.whole(answer)?.unwrap_or_else(|error| error)))
    }

    /// The stream of an answer to as much of the conversation as fits, and how many messages were
    /// forgotten; `None` if the last message alone is too long.
    fn ask_fitting(&mut self) -> Result<Option<(Response<Body>, usize)>, ServerFailed> {
        let first = usize::from(self.messages.first().is_some_and(|it| it["role"] == "system"));
        let mut forgotten = 0;
        loop {
            match self.ask()? {
                Ok(answer) => return Ok(Some((answer, forgotten))),
                // OpenAI's code. The server alone knows how many tokens the messages are, so the
                // oldest turn is left out and it is asked again.
                Err(error) if error["error"]["code"] != "context_length_exceeded" => {
                    return Err(self.failed(&error_message(&error)));
                }
                Err(_) => {}
            }
            let turn = oldest_turn(self.messages[first..].iter().map(role));
            if turn == 0 {
                return Ok(None);
            }
            self.messages.drain(first..first + turn);
            forgotten += turn;
        }
    }

    /// Passes a stream on; the text and the number of its tokens.
    fn listen(
        &self,
        answer: Response<Body>,
        out: PieceSink,
    ) -> Result<(String, usize), ServerFailed> {
        let (mut said, mut tokens) = (String::new(), 0);
        let events = events(answer.into_body().into_reader());
        loop {
            let piece = match events.recv_timeout(LOOK) {
                Ok(Ok(event)) if event.get("error").is_some() => {
                    return Err(self.failed(&error_message(&event)));
                }
                Ok(Ok(event)) => {
                    let piece =
                        event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                    tokens += usize::from(!piece.is_empty());
                    // Pieces are counted until the server tells the number: a piece may be several
                    // tokens.
                    let told = event["usage"]["completion_tokens"].as_u64();
                    tokens = told.map_or(tokens, |told| told as usize);
                    piece.to_owned()
                }
                Ok(Err(error)) => return Err(self.failed(&error)),
                // Nothing came: `out` is asked all the same, so that Ctrl-C is noticed.
                Err(RecvTimeoutError::Timeout) => String::new(),
                Err(RecvTimeoutError::Disconnected) => return Ok((said, tokens)),
            };
            said += &piece;
            if out(&piece).is_break() {
                return Ok((said, tokens));
            }
        }
    }
}

impl ChatPartner for ServerChat {
    fn is_greedy(&self) -> bool {
        self.settings.sampler.temperature == 0.0
    }

    fn reset(&mut self) {
        self.messages.retain(|message| message["role"] == "system");
    }

    fn set_system(&mut self, text: &str) {
        self.messages.clear();
        if !text.is_empty() {
            self.messages.push(json!({"role": "system", "content": text}));
        }
    }

    fn answer(&mut self, text: &str, out: PieceSink) -> anyhow::Result<PartnerReply> {
        let before = self.messages.clone();
        self.messages.push(json!({"role": "user", "content": text}));
        let Some((answer, forgotten)) = self.ask_fitting()? else {
            self.messages = before;
            let limit =
                self.context.map_or_else(String::new, |limit| format!(" of {limit} tokens"));
            let what = format!("this turn does not fit into the context{limit}; it is left out");
            return Ok(PartnerReply::LeftOut(what));
        };
        let (said, tokens) = self.listen(answer, out)?;
        self.messages.push(json!({"role": "assistant", "content": said}));
        // As in a chat with a model of this process, each answer has random numbers of its own.
        let seed = &mut self.settings.sampler.seed;
        *seed = seed.wrapping_add(1);
        Ok(PartnerReply::Answered(Answer { tokens, forgotten }))
    }
}

/// Reads the events of a stream on a thread of their own, so that waiting for one can be given up:
/// when the receiver goes, the thread ends with the next event, and with it the connection.
fn events(stream: impl Read + Send + 'static) -> Receiver<Result<Value, String>> {
    // Bounded: a server that sends without end fills no memory.
    let (sender, receiver) = sync_channel(64);
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        while let Some(line) = next_line(&mut stream).transpose() {
            let event = match line {
                Ok(line) => match line.strip_prefix("data:").map(str::trim) {
                    None => continue,
                    Some("[DONE]") => return,
                    Some(data) => serde_json::from_str(data).map_err(|error| error.to_string()),
                },
                Err(error) => Err(error),
            };
            let failed = event.is_err();
            if sender.send(event).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// The next line of a stream; `None` at its end.
fn next_line(stream: &mut impl BufRead) -> Result<Option<String>, String> {
    let mut line = Vec::new();
    let read = stream.take(LONGEST_EVENT + 1).read_until(b'\n', &mut line);
    match read.map_err(|error| error.to_string())? {
        0 => Ok(None),
        // A server that never ends a line fills no memory either.
        read if read as u64 > LONGEST_EVENT => {
            Err(format!("sends a line of more than {LONGEST_EVENT} bytes"))
        }
        _ => String::from_utf8(line).map(Some).map_err(|error| error.to_string()),
    }
}

/// Who said a message of this chat.
fn role(message: &Value) -> Role {
    if message["role"] == "user" { Role::User } else { Role::Assistant }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_line_by_line_and_a_line_without_end_is_an_error() {
        let stream = "data: {\"a\": 1}\n\n: ping\ndata: [DONE]\ndata: {}\n";
        let all: Vec<_> = events(stream.as_bytes()).into_iter().collect();
        assert_eq!(all, [Ok(json!({"a": 1}))]);
        let endless = events(std::io::repeat(b'x')).recv().unwrap().unwrap_err();
        assert_eq!(endless, "sends a line of more than 1048576 bytes");
    }
}
