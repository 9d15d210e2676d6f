//! Continuations of many prompts: several decode together, and a new one begins where one
//! ends.

use bitnet_engine::{KvCache, Model, Sampler, SamplerSettings, Sequence, ThreadPool, Workspace};
use bitnet_text::{TextStream, Tokenizer};

use crate::error::EvalError;
use crate::progress::{ProgressCallback, tell};

/// Prompts that are continued together.
// Decoding waits for the memory that weights come from, so several sequences cost little more than
// one.
const SLOTS: usize = 16;
/// Common beginnings from here on are copied from another slot's cache.
const WORTH_COPYING: usize = 32;

/// A prompt and where its continuation ends.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptRequest {
    /// At least one token; with `max_tokens` it fits the model's context.
    pub prompt: Vec<u32>,
    /// Texts that end the continuation and are not part of it.
    pub until: Vec<String>,
    /// The most new tokens.
    pub max_tokens: usize,
    /// How each is chosen. Penalties for tokens that are there already are not counted.
    pub sampler: SamplerSettings,
}

/// Continues all prompts, the longest first. Not a letter of a text depends on the others.
///
/// `progress` gets the prompts done and those in all, after each token.
///
/// # Errors
/// A prompt that does not fit the model, [`EvalError::Interrupted`].
pub fn continue_prompts(
    model: &Model,
    tokenizer: &Tokenizer,
    threads: &ThreadPool,
    requests: &[PromptRequest],
    stop_ids: &[u32],
    progress: ProgressCallback<'_>,
) -> Result<Vec<String>, EvalError> {
    let mut waiting: Vec<usize> = (0..requests.len()).collect();
    // Two sorts, the second stable, and taken from the end: the longest first, and prompts of one
    // length with a common beginning (examples) after each other, so that the cache of one serves
    // the next.
    waiting.sort_by(|a, b| requests[*a].prompt.cmp(&requests[*b].prompt));
    waiting.sort_by_key(|index| requests[*index].prompt.len());
    let mut workspace = Workspace::new(threads);
    let mut slots: Vec<Slot> = (0..SLOTS.min(requests.len())).map(|_| Slot::new(model)).collect();
    let mut texts = vec![String::new(); requests.len()];
    let mut done = 0;
    loop {
        // A slot that ended is filled before the next pass: the batch stays full to the end.
        begin_waiting(&mut slots, &mut waiting, requests, tokenizer)?;
        let mut active: Vec<&mut Slot> =
            slots.iter_mut().filter(|it| it.answer.is_some()).collect();
        if active.is_empty() {
            return Ok(texts);
        }
        let mut sequences: Vec<Sequence> = active.iter_mut().map(|slot| slot.sequence()).collect();
        let logits = model.forward_batch(&mut workspace, &mut sequences)?;
        let rows = logits.chunks_exact(model.spec().vocab_size);
        for (slot, row) in active.into_iter().zip(rows) {
            if let Some((request, ids)) = slot.push(row, requests, stop_ids) {
                // Decoded again as a whole: the text of the stream ends where the stop was noticed,
                // the harness cuts the whole text.
                texts[request] = cut(&tokenizer.decode(&ids), &requests[request].until);
                done += 1;
            }
        }
        tell(progress, done, requests.len())?;
    }
}

/// A cache and the continuation that it is used for.
struct Slot<'a> {
    cache: KvCache,
    /// What the cache holds, and after it what it is to be fed with.
    tokens: Vec<u32>,
    answer: Option<PartialAnswer<'a>>,
}

struct PartialAnswer<'a> {
    request: usize,
    sampler: Sampler,
    ids: Vec<u32>,
    stream: TextStream<'a>,
    text: String,
}

impl<'a> Slot<'a> {
    fn new(model: &Model) -> Self {
        Self { cache: model.new_cache(), tokens: Vec::new(), answer: None }
    }

    fn sequence(&mut self) -> Sequence<'_> {
        let held = self.cache.len();
        // At first the rest of the prompt, later the one token that was chosen last.
        Sequence { cache: &mut self.cache, tokens: &self.tokens[held..] }
    }

    fn begin(
        &mut self,
        request: usize,
        PromptRequest { prompt, sampler, .. }: &PromptRequest,
        tokenizer: &'a Tokenizer,
    ) -> Result<(), EvalError> {
        // One of its own: an answer must not depend on which others are in work.
        let sampler = Sampler::new(sampler.clone())?;
        // The last token is computed again: its logits are needed.
        let held = common(&self.tokens, prompt).min(prompt.len() - 1);
        self.cache.truncate(held);
        self.tokens.clone_from(prompt);
        let (ids, stream, text) = (Vec::new(), tokenizer.stream(), String::new());
        self.answer = Some(PartialAnswer { request, sampler, ids, stream, text });
        Ok(())
    }

    /// Chooses the next token by its logits; the continuation if it ends.
    fn push(
        &mut self,
        logits: &[f32],
        requests: &[PromptRequest],
        stop_ids: &[u32],
    ) -> Option<(usize, Vec<u32>)> {
        let answer = self.answer.as_mut()?;
        let PromptRequest { until, max_tokens, .. } = &requests[answer.request];
        let id = answer.sampler.sample(logits, &[]);
        let mut ends = stop_ids.contains(&id);
        if !ends {
            answer.ids.push(id);
            let piece = answer.stream.push(id);
            // A stop text may lie across pieces: the new piece is searched with as much of the text
            // before it as the longest one could take. Searching all of it each time would be
            // quadratic.
            let longest = until.iter().map(String::len).max().unwrap_or(0);
            answer.text.push_str(&piece);
            let from = answer.text.len().saturating_sub(piece.len() + longest);
            let from = (0..=from).rev().find(|at| answer.text.is_char_boundary(*at)).unwrap_or(0);
            let new = &answer.text[from..];
            ends = until.iter().any(|stop| !stop.is_empty() && new.contains(stop.as_str()));
            ends |= answer.ids.len() >= *max_tokens;
        }
        if !ends {
            self.tokens.push(id);
            return None;
        }
        // The slot keeps its cache: the next prompt may begin alike.
        self.tokens.truncate(self.cache.len());
        self.answer.take().map(|answer| (answer.request, answer.ids))
    }
}

/// Fills free slots from the end of `waiting`; a beginning that another slot holds is copied from
/// it.
fn begin_waiting<'a>(
    slots: &mut [Slot<'a>],
    waiting: &mut Vec<usize>,
    requests: &[PromptRequest],
    tokenizer: &'a Tokenizer,
) -> Result<(), EvalError> {
    for free in 0..slots.len() {
        if slots[free].answer.is_some() {
            continue;
        }
        let Some(request) = waiting.pop() else { return Ok(()) };
        let prompt = &requests[request].prompt;
        let held = |slot: &Slot| common(&slot.tokens[..slot.cache.len()], prompt);
        let own = held(&slots[free]);
        // Slots in work serve as well, with what their caches hold so far.
        let best = (0..slots.len()).max_by_key(|at| held(&slots[*at])).unwrap_or(free);
        // A copy shares the full pages of its original and computes nothing.
        if held(&slots[best]) >= own + WORTH_COPYING {
            let cache = slots[best].cache.clone();
            slots[free].tokens = slots[best].tokens[..cache.len()].to_vec();
            slots[free].cache = cache;
        }
        slots[free].begin(request, &requests[request], tokenizer)?;
    }
    Ok(())
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Cuts a text before each of the stop texts, one after the other.
fn cut(text: &str, until: &[String]) -> String {
    let before = |text, stop: &String| match stop.as_str() {
        "" => text,
        stop => str::split(text, stop).next().unwrap_or(text),
    };
    until.iter().fold(text, before).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::random_model;
    use bitnet_engine::{GenerateRequest, generate};
    use std::ops::ControlFlow;

    #[test]
    fn prompts_together_are_continued_as_each_alone() {
        let (model, tokenizer) = random_model(128);
        let threads = ThreadPool::new(1).unwrap();
        let prefix: Vec<u32> = (0..40).map(|i| i * 7 % 250).collect();
        let prompt = |i: u32| [prefix.as_slice(), &[i, i + 1, i * 3 % 250]].concat();
        let requests: Vec<PromptRequest> = (0..20)
            .map(|i| PromptRequest {
                prompt: prompt(i),
                until: vec![],
                max_tokens: 5 + i as usize % 4,
                sampler: SamplerSettings {
                    // Every third is drawn, with random numbers of its own.
                    temperature: if i % 3 == 0 { 1.5 } else { 0.0 },
                    seed: u64::from(i),
                    ..SamplerSettings::default()
                },
            })
            .collect();
        let mut last = (0, 0);
        let texts = continue_prompts(&model, &tokenizer, &threads, &requests, &[], &mut |a, b| {
            last = (a, b);
            ControlFlow::Continue(())
        });
        for (request, text) in requests.iter().zip(texts.unwrap()) {
            let alone = GenerateRequest {
                sampler: request.sampler.clone(),
                stop_ids: vec![],
                max_tokens: request.max_tokens,
            };
            let mut cache = model.new_cache();
            let on_token = |_| ControlFlow::Continue(());
            let ids = generate(&model, &mut cache, &request.prompt, &alone, &threads, on_token);
            assert_eq!(tokenizer.decode(&ids.unwrap().tokens), text);
        }
        assert_eq!(last, (20, 20));
    }

    #[test]
    fn stop_texts_and_stop_ids_end_a_continuation() {
        let (model, tokenizer) = random_model(128);
        let threads = ThreadPool::new(1).unwrap();
        let ask = |until: Vec<String>, stop_ids: &[u32]| {
            let sampler = SamplerSettings::greedy();
            let requests = [PromptRequest { prompt: vec![3, 4], until, max_tokens: 12, sampler }];
            continue_prompts(&model, &tokenizer, &threads, &requests, stop_ids, &mut |_, _| {
                ControlFlow::Continue(())
            })
            .unwrap()
            .remove(0)
        };
        let whole = ask(vec![], &[]);
        let stop: String = whole.chars().skip(3).take(2).collect();
        let found = ask(vec![stop.clone()], &[]);
        assert_eq!(found, whole.split(&stop).next().unwrap());
        let first = tokenizer.encode(&whole).unwrap();
        assert!(ask(vec![], &first).len() < whole.len());
        assert_eq!(cut("a. b\nc", &["\n".to_owned(), ".".to_owned(), String::new()]), "a");
    }
}
