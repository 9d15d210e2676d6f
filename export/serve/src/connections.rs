//! Accepts connections, each with its limits in time, until the server ends.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::bare_errors::BareErrors;
use crate::options::{HEAD_TIME, MOST_CONNECTIONS, WRITE_TIME};
use crate::stall_guard::StallGuard;

/// How long to wait when the system gives no more connections.
const REST: Duration = Duration::from_millis(50);

/// Serves connections until `ending` changes, then until all are closed.
pub(crate) async fn serve_connections(
    listener: TcpListener,
    router: Router,
    mut ending: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ending.changed() => break,
        };
        match (accepted, Arc::clone(&places).try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) => {
                tokio::spawn(serve_one(stream, router.clone(), ending.clone(), place));
            }
            // One too many is closed; it may come again.
            (Ok(_), Err(_)) => {}
            (Err(_), _) => tokio::time::sleep(REST).await,
        }
    }
    // New connections are refused from here on; those that are open end by themselves.
    drop(listener);
    // All places together are free when the last connection has given its own back.
    let _all_closed = places.acquire_many(MOST_CONNECTIONS as u32).await;
}

/// Serves one connection; after `ending` it is closed after the answer in work.
async fn serve_one(
    stream: TcpStream,
    router: Router,
    mut ending: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
) {
    // Tokens are small and each should arrive at once.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(BareErrors::new(StallGuard::new(stream, WRITE_TIME)));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    let connection = builder.serve_connection(io, TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        // An error is a client that left or broke the protocol: nobody to tell.
        _ = connection.as_mut() => return,
        // An answer in work is still written, and the connection is not kept for another request.
        _ = ending.wait_for(|ending| *ending) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
