//! The signals that end a server, on Unix; elsewhere Ctrl-C alone.

/// What made a server end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServeEnd {
    /// SIGINT, or Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

/// The signals that end a server.
pub(crate) struct EndSignals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl EndSignals {
    #[cfg(unix)]
    pub(crate) fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    #[cfg(unix)]
    pub(crate) async fn next(&mut self) -> ServeEnd {
        tokio::select! {
            _ = self.terminate.recv() => ServeEnd::Terminate,
            _ = self.interrupt.recv() => ServeEnd::Interrupt,
        }
    }

    #[cfg(not(unix))]
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    pub(crate) async fn next(&mut self) -> ServeEnd {
        let _ = tokio::signal::ctrl_c().await;
        ServeEnd::Interrupt
    }
}
