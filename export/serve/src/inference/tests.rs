//! Many at once: each answer is what it is alone.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use bitnet_engine::{
    CachePrecision, GenerateRequest, KvCache, Model, SamplerSettings, ThreadPool, generate,
};
use tokio::sync::mpsc;

use super::*;
use crate::energy::ServerEnergy;
use crate::metrics::Metrics;
use crate::tests::{model, tokenizer};

fn start(model: Model, slots: usize, cache_bytes: usize) -> (Inference, Arc<Metrics>) {
    let energy = ServerEnergy::open(model.spec(), CachePrecision::F32);
    let metrics = Arc::new(Metrics::new(energy));
    let limits = InferenceLimits { slots, cache_bytes, precision: CachePrecision::F32, threads: 2 };
    let parts = (Arc::new(tokenizer()), Arc::clone(&metrics));
    (Inference::start(model, parts.0, limits, parts.1).unwrap().0, metrics)
}

type Answers = mpsc::Receiver<(usize, JobEvent)>;

fn job(prompt: &[u32], seed: u64, max_tokens: usize) -> (GenerationJob, Answers) {
    let (events, answers) = mpsc::channel(max_tokens + 3);
    let sampler = SamplerSettings { seed, ..SamplerSettings::default() };
    let job = GenerationJob {
        request: RequestId::next(),
        choice: 0,
        prompt: prompt.into(),
        sampler,
        max_tokens,
        stop_ids: [].into(),
        stop_texts: Vec::new(),
        grammar: None,
        top: None,
        scores_prompt: false,
        events,
        arrived: Instant::now(),
    };
    (job, answers)
}

fn wait(mut answers: Answers) -> (Vec<u32>, JobEnd) {
    let mut ids = Vec::new();
    loop {
        match answers.blocking_recv().unwrap().1 {
            JobEvent::Token { token, .. } => ids.push(token.id),
            JobEvent::End(end) => return (ids, end),
            event => panic!("{event:?}"),
        }
    }
}

fn alone(model: &Model, prompt: &[u32], seed: u64, max_tokens: usize) -> Vec<u32> {
    let sampler = SamplerSettings { seed, ..SamplerSettings::default() };
    let request = GenerateRequest { sampler, stop_ids: Vec::new(), max_tokens };
    let pool = ThreadPool::new(1).unwrap();
    let mut cache = model.new_cache();
    let go_on = |_| ControlFlow::Continue(());
    generate(model, &mut cache, prompt, &request, &pool, go_on).unwrap().tokens
}

fn prompt(client: u64) -> Vec<u32> {
    // Half of them begin alike; the lengths go from one token to several chunks.
    let length = 1 + client * 23 % 300;
    let first = if client.is_multiple_of(2) { 0 } else { client };
    (0..length).map(|i| ((i * 7 + if i < 40 { first } else { client }) % 240) as u32).collect()
}

#[test]
fn sixteen_clients_together_each_get_what_they_get_alone() {
    let reference = model(512);
    let (inference, _) = start(model(512), 6, 64 << 20);
    let inference = &inference;
    std::thread::scope(|scope| {
        for client in 0..16u64 {
            let reference = &reference;
            scope.spawn(move || {
                for round in 0..2 {
                    let (prompt, count) = (prompt(client), 20 + client as usize * 3);
                    let (job, answers) = job(&prompt, client + round, count);
                    inference.submit(vec![job]).unwrap();
                    let expected = alone(reference, &prompt, client + round, count);
                    assert_eq!(wait(answers).0, expected, "client {client}");
                }
            });
        }
    });
}

#[test]
fn little_memory_makes_requests_wait_and_changes_no_answer() {
    let reference = model(512);
    // Two contexts of 256 tokens at one time.
    let bytes = 2 * KvCache::bytes_for(reference.spec(), CachePrecision::F32, 256);
    let (inference, _) = start(model(512), 8, bytes);
    let all: Vec<_> = (0..6)
        .map(|client| {
            let (job, answers) = job(&prompt(client), client, 9);
            inference.submit(vec![job]).unwrap();
            answers
        })
        .collect();
    for (client, answers) in (0..).zip(all) {
        assert_eq!(wait(answers).0, alone(&reference, &prompt(client), client, 9));
    }
}

#[test]
fn the_next_turn_computes_only_what_is_new() {
    let reference = model(512);
    let (inference, _) = start(model(512), 4, 64 << 20);
    let first: Vec<u32> = (0..100).collect();
    let (one, answers) = job(&first, 1, 10);
    inference.submit(vec![one]).unwrap();
    let (said, end) = wait(answers);
    assert_eq!(end.cached, 0);
    let next = [&first[..], &said, &[7, 8, 9]].concat();
    let (two, answers) = job(&next, 2, 10);
    inference.submit(vec![two]).unwrap();
    let (said, end) = wait(answers);
    // All but the last generated token, which was never computed.
    assert_eq!(end.cached, 109);
    assert_eq!(said, alone(&reference, &next, 2, 10));
}

#[test]
fn an_answer_of_no_tokens_counts_none() {
    let (inference, metrics) = start(model(512), 4, 64 << 20);
    let counts = |line: &str| metrics.text("m").lines().any(|found| found == line);
    let (mut none, mut answers) = job(&[1, 2, 3], 1, 0);
    (none.top, none.scores_prompt) = (Some(0), true);
    inference.submit(vec![none]).unwrap();
    assert!(matches!(answers.blocking_recv(), Some((0, JobEvent::Prompt(_)))));
    assert_eq!(wait(answers).1.generated, 0);
    let (three, answers) = job(&[1, 2, 3], 1, 3);
    inference.submit(vec![three]).unwrap();
    assert_eq!(wait(answers).0.len(), 3);
    // Tokens are told before they are counted.
    let begin = Instant::now();
    let all = ["bitnet_generated_tokens_total 3", "bitnet_time_to_first_token_seconds_count 1"];
    while !all.into_iter().all(counts) {
        assert!(begin.elapsed().as_secs() < 20, "{}", metrics.text("m"));
        std::thread::yield_now();
    }
}

/// The scores of a prompt that is asked about.
fn scores(mut answers: Answers) -> Vec<Option<f64>> {
    loop {
        if let JobEvent::Prompt(scored) = answers.blocking_recv().unwrap().1 {
            return scored.iter().map(|it| it.logprob).collect();
        }
    }
}

#[test]
fn prompts_that_part_have_scores_of_their_own_where_they_part() {
    let prompts: Vec<Vec<u32>> =
        [3, 4, 5, 3].map(|next| [few_shot_prompt(0), vec![next, 6, 7]].concat()).into();
    let ask = |inference: &Inference, prompts: &[Vec<u32>]| -> Vec<Vec<Option<f64>>> {
        let asked = prompts.iter().map(|prompt| {
            let (mut job, answers) = job(prompt, 0, 1);
            (job.top, job.scores_prompt) = (Some(1), true);
            (job, answers)
        });
        let (jobs, answers): (Vec<_>, Vec<_>) = asked.unzip();
        inference.submit(jobs).unwrap();
        answers.into_iter().map(scores).collect()
    };
    let alone = |prompt: &Vec<u32>| {
        let (inference, _) = start(model(512), 1, 64 << 20);
        ask(&inference, std::slice::from_ref(prompt)).remove(0)
    };
    let expected: Vec<_> = prompts.iter().map(alone).collect();
    assert_ne!(expected[0], expected[1]);
    let (inference, metrics) = start(model(512), 4, 64 << 20);
    assert_eq!(ask(&inference, &prompts), expected);
    assert_eq!(ask(&inference, &prompts), expected, "once more, from what is kept");
    assert!(metrics.cached_tokens() > 0);
}

#[test]
fn a_request_without_a_waiting_client_is_dropped_and_the_next_is_served() {
    let (inference, metrics) = start(model(1 << 16), 1, 256 << 20);
    let (endless, answers) = job(&[1, 2, 3], 1, 60_000);
    let (waiting, unread) = job(&[1, 2, 3], 1, 60_000);
    inference.submit(vec![endless, waiting]).unwrap();
    drop((answers, unread));
    let (next, answers) = job(&[4, 5], 1, 3);
    inference.submit(vec![next]).unwrap();
    assert_eq!(wait(answers).0.len(), 3);
    assert_eq!(metrics.cancelled_count(), 2);
    assert_eq!(inference.waiting(), 0);
}

/// A long beginning that is the same for all, as the examples of a benchmark are, and an end of its
/// own.
fn few_shot_prompt(client: u64) -> Vec<u32> {
    let end = (0..10 + client as u32).map(|i| (i * 11 + client as u32) % 240);
    (0..200).map(|i| i % 230).chain(end).collect()
}

#[test]
fn sixteen_clients_with_the_same_examples_share_their_pages() {
    let reference = model(512);
    let page = KvCache::bytes_for(reference.spec(), CachePrecision::F32, 1);
    // Without sharing they take 5 pages each and never run together; so little makes pages go in
    // between.
    let (inference, metrics) = start(model(512), 16, 24 * page);
    for round in 0..3 {
        let ask = |client: u64| {
            let (job, answers) = job(&few_shot_prompt(client), round, 30);
            inference.submit(vec![job]).unwrap();
            answers
        };
        let all: Vec<_> = (0..16).map(ask).collect();
        for (client, answers) in (0..).zip(all) {
            let expected = alone(&reference, &few_shot_prompt(client), round, 30);
            assert_eq!(wait(answers).0, expected, "client {client} in round {round}");
        }
        // Others come in between and take the memory.
        for client in 100..106 {
            let (job, answers) = job(&prompt(client), client, 20);
            inference.submit(vec![job]).unwrap();
            assert_eq!(wait(answers).0, alone(&reference, &prompt(client), client, 20));
        }
    }
    assert!(metrics.dropped_pages() > 0, "something had to go");
    assert!(metrics.pages() <= 24, "{} pages", metrics.pages());
    // All but the first of each round find three full pages at least.
    assert!(metrics.cached_tokens() >= 15 * 192, "{}", metrics.cached_tokens());
}
