//! Puts the parts together: the inference thread, the endpoints, the listener, and how it all ends.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use bitnet_engine::Model;
use bitnet_text::{ChatTemplate, Tokenizer};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::connections::serve_connections;
use crate::energy::{LONGEST_UNREAD, ServerEnergy};
use crate::grammar::Grammars;
use crate::http::{AppState, now, router};
use crate::inference::{Inference, InferenceLimits};
use crate::metrics::Metrics;
use crate::options::{ServeOptions, ServedModel};
use crate::signals::{EndSignals, ServeEnd};

/// Threads for connections; the engine has its own.
const HTTP_THREADS: usize = 2;

/// Why a server does not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("{address}: cannot listen here: {error}")]
    Listen {
        /// Host and port.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// A thread or a socket cannot be had.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The inference thread ended by itself.
    #[error("the inference thread ended")]
    InferenceEnded,
}

/// A listener on the address of the options.
///
/// # Errors
/// When the address cannot be had.
pub fn listen(options: &ServeOptions) -> Result<StdListener, ServeError> {
    let address = SocketAddr::new(options.host, options.port);
    let listener = StdListener::bind(address).and_then(|listener| {
        // What tokio asks of a listener that it takes over.
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|error| ServeError::Listen { address, error })
}

/// Serves a model on a listener until SIGINT or SIGTERM, and then until the answers in work are
/// complete or the drain timeout is over. `ready` is called when requests are answered.
///
/// # Errors
/// When threads or signals cannot be had, or a fault of this program ends the inference thread.
pub fn serve(
    listener: StdListener,
    served: ServedModel,
    options: &ServeOptions,
    ready: impl FnOnce(),
) -> Result<ServeEnd, ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .thread_name("http")
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let signals = EndSignals::listen()?;
        // Signals first: one that comes while the rest starts must not be lost.
        let (state, stopped) = start(served, options)?;
        let listener = TcpListener::from_std(listener)?;
        ready();
        run(listener, state, options, signals, stopped).await
    });
    // Handlers that still wait for an answer are given up.
    runtime.shutdown_background();
    ended
}

/// Starts the inference thread. The receiver learns when it ends.
pub(crate) fn start(
    served: ServedModel,
    options: &ServeOptions,
) -> Result<(Arc<AppState>, oneshot::Receiver<()>), ServeError> {
    let ServedModel { name, model, tokenizer, template } = served;
    let energy = ServerEnergy::open(model.spec(), options.cache);
    let (tokenizer, metrics) = (Arc::new(tokenizer), Arc::new(Metrics::new(energy)));
    let stop_ids = document_stops(&model, &tokenizer);
    // Two lists: a turn's end also ends an answer in a conversation, but stands inside of a
    // document that is a conversation.
    let chat_stop_ids = chat_stops(&model, &tokenizer, &template);
    let limit = model.spec().context_length();
    let context = options.context.map_or(limit, |context| context.min(limit));
    let vocab_size = model.spec().vocab_size;
    let limits = InferenceLimits {
        slots: options.slots,
        cache_bytes: options.cache_bytes,
        precision: options.cache,
        threads: options.threads,
    };
    let (inference, thread) =
        Inference::start(model, Arc::clone(&tokenizer), limits, Arc::clone(&metrics))?;
    let (tell, stopped) = oneshot::channel();
    std::thread::Builder::new().name("inference-end".to_owned()).spawn(move || {
        // Joining blocks, so it has a thread of its own; the runtime hears of the end by the
        // channel.
        let _ = thread.join();
        let _ = tell.send(());
    })?;
    let grammars = Grammars::new(Arc::clone(&tokenizer), vocab_size, Arc::clone(&chat_stop_ids));
    let state = AppState {
        model: name,
        created: now(),
        tokenizer,
        template,
        vocab_size,
        context,
        stop_ids: stop_ids.into(),
        chat_stop_ids,
        bos: options.bos,
        grammars,
        inference,
        metrics,
    };
    Ok((Arc::new(state), stopped))
}

/// The ids that end an answer in a conversation: the config's, and those of the template.
fn chat_stops(model: &Model, tokenizer: &Tokenizer, template: &ChatTemplate) -> Arc<[u32]> {
    let vocab_size = model.spec().vocab_size;
    let all = [&model.spec().eos_token_id[..], &template.stop_ids(tokenizer)].concat();
    let mut ids: Vec<u32> = Vec::new();
    for id in all {
        // A tokenizer may have more tokens than the model has rows.
        if (id as usize) < vocab_size && !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids.into()
}

/// The config's stop ids; the tokenizer's where the config names none.
fn document_stops(model: &Model, tokenizer: &Tokenizer) -> Vec<u32> {
    match &model.spec().eos_token_id[..] {
        [] => tokenizer.eos().into_iter().chain(tokenizer.eot()).collect(),
        ids => ids.to_vec(),
    }
}

async fn run(
    listener: TcpListener,
    state: Arc<AppState>,
    options: &ServeOptions,
    mut signals: EndSignals,
    stopped: oneshot::Receiver<()>,
) -> Result<ServeEnd, ServeError> {
    let (end, ending) = watch::channel(false);
    let router = router(&state, options);
    // Ends with the runtime. Not in the inference thread, which sleeps while nobody asks.
    tokio::spawn(Arc::clone(&state.metrics).keep_energy(LONGEST_UNREAD));
    let connections = tokio::spawn(serve_connections(listener, router, ending));
    let why = tokio::select! {
        why = signals.next() => why,
        _ = stopped => return Err(ServeError::InferenceEnded),
    };
    let _ = end.send(true);
    tokio::select! {
        _ = timeout(options.drain_timeout, connections) => {}
        // Asked twice: at once.
        _ = signals.next() => {}
    }
    Ok(why)
}
