//! Gives a body to the errors that the HTTP library answers by itself, before any handler sees a
//! request: broken heads, too many headers, too long addresses.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::protocol_error;

/// A stream on which an error without a body gets one.
#[derive(Debug)]
pub(crate) struct BareErrors<S> {
    stream: S,
    /// What takes the place of such an error and is not written yet.
    waiting: Vec<u8>,
}

impl<S: AsyncWrite + Unpin> BareErrors<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, waiting: Vec::new() }
    }

    fn write_waiting(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.waiting))?;
            self.waiting.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

/// The whole answer in place of one whose body is empty; handlers of this server write none.
fn worded(bytes: &[u8]) -> Option<Vec<u8>> {
    // Asked at every write: an answer that is none of these fails at its first bytes.
    let head = std::str::from_utf8(bytes).ok()?.strip_prefix("HTTP/1.1 4")?;
    let head = head.strip_suffix("\r\n\r\n")?;
    let status = format!("4{}", head.get(..2)?).parse().ok()?;
    let is_empty = |line: &&str| line.eq_ignore_ascii_case("content-length: 0");
    head.lines().find(is_empty)?;
    let body = protocol_error(status)?;
    let others: Vec<&str> = head.lines().filter(|line| !is_empty(line)).collect();
    let length = body.len();
    let kept = others.join("\r\n");
    let text = format!(
        "HTTP/1.1 4{kept}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    Some(text.into_bytes())
}

impl<S: AsyncRead + Unpin> AsyncRead for BareErrors<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BareErrors<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.write_waiting(context))?;
        if let Some(worded) = worded(bytes) {
            // The library is told that its bytes are written; ours go out with the next write,
            // flush or shutdown.
            self.waiting = worded;
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A head without a body is one part.
        if let [head] = parts {
            return self.poll_write(context, head);
        }
        ready!(self.write_waiting(context))?;
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_waiting(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_waiting(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::worded;

    #[test]
    fn only_errors_without_a_body_get_one() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let text = String::from_utf8(worded(bare.as_bytes()).unwrap()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 431 Request") && head.contains("\r\nconnection: close\r\n")
        );
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "data: HTTP/1.1 400 x\r\ncontent-length: 0\r\n\r\n",
        ] {
            assert_eq!(worded(other.as_bytes()), None, "{other}");
        }
    }
}
