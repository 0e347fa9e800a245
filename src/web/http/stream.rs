//! The byte stream of one connection. It cuts off a client that does not read its answer, and adds a problem document
//! to the few answers that the HTTP library makes itself, which have no body.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use bytes::{Buf as _, Bytes};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep};

use super::idle::IdleTracker;
use super::tls::Socket;
use crate::web::error::Problem;
use crate::web::metrics::METRICS;

/// The slowest transfer that a client may keep up, in either direction. A slower one uses up its time and is cut off.
pub(crate) const MIN_BYTES_PER_SECOND: u64 = 1 << 10;

/// A connection with a limit on how long writing may be blocked.
pub(super) struct ClientStream {
    io: TokioIo<Socket>,
    idle: Arc<IdleTracker>,
    write_timeout: Duration,
    /// How much longer writing may be blocked, at most `write_timeout`. Blocked time is subtracted; written bytes add
    /// time at the rate of [`MIN_BYTES_PER_SECOND`].
    time_left: Duration,
    blocked_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// The unsent part of the answer that replaces one of the library.
    replacement: Option<Bytes>,
    /// Bytes that were taken from the socket before, to be read first.
    first: Bytes,
    /// True if what is written are frames, none of which is replaced.
    is_http2: bool,
}

impl ClientStream {
    pub(super) fn new(stream: Socket, idle: Arc<IdleTracker>, write_timeout: Duration) -> ClientStream {
        ClientStream {
            io: TokioIo::new(stream),
            idle,
            write_timeout,
            time_left: write_timeout,
            blocked_since: None,
            timer: None,
            replacement: None,
            first: Bytes::new(),
            is_http2: false,
        }
    }

    /// Reads `first` before anything else.
    pub(super) fn that_begins_with(self, first: Bytes) -> ClientStream {
        ClientStream { first, ..self }
    }

    /// The same for a connection of HTTP/2.
    pub(super) fn of_http2(self, first: Bytes) -> ClientStream {
        ClientStream { first, is_http2: true, ..self }
    }

    fn after_write(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(done) => {
                self.credit(done.as_ref().map_or(0, |bytes| *bytes as u64));
                Poll::Ready(done)
            }
            Poll::Pending => {
                ready!(self.poll_timeout(cx));
                METRICS.closed.with_label_values(&["write_timeout"]).inc();
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
            }
        }
    }

    fn credit(&mut self, bytes: u64) {
        if let Some(since) = self.blocked_since.take() {
            self.idle.set_write_blocked(false);
            self.time_left = self.time_left.saturating_sub(since.elapsed());
        }
        if self.time_left < self.write_timeout {
            let earned = Duration::from_millis(bytes * 1_000 / MIN_BYTES_PER_SECOND);
            self.time_left = (self.time_left + earned).min(self.write_timeout);
        }
    }

    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.blocked_since.is_none() {
            let now = Instant::now();
            self.blocked_since = Some(now);
            self.idle.set_write_blocked(true);
            let deadline = now + self.time_left;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(deadline),
                None => self.timer = Some(Box::pin(tokio::time::sleep_until(deadline))),
            }
        }
        self.timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
    }

    /// Sends the replacement. Once it is sent, reports `bytes` as written.
    fn poll_replacement(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<io::Result<usize>> {
        while let Some(replacement) = self.replacement.as_mut().filter(|replacement| !replacement.is_empty()) {
            let outcome = Pin::new(&mut self.io).poll_write(cx, replacement);
            if let Poll::Ready(Ok(written)) = outcome {
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                replacement.advance(written);
            }
            ready!(self.after_write(cx, outcome))?;
        }
        self.replacement = None;
        Poll::Ready(Ok(bytes))
    }
}

impl Read for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let read = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first.split_to(read));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored_or_replacement(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored_or_replacement(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        // The library flushes once all of its buffer is written.
        if let Poll::Ready(Ok(())) = flushed {
            self.idle.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl ClientStream {
    fn poll_write_vectored_or_replacement(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.first().map_or(&[][..], |slice| slice);
        // An uploaded image may contain bytes that look like such an answer, so a handler's answer is never replaced.
        if self.replacement.is_none() && !self.is_http2 && !self.idle.writes_answer() {
            self.replacement = with_body(first);
        }
        if self.replacement.is_some() {
            return self.poll_replacement(cx, first.len());
        }
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.after_write(cx, outcome)
    }
}

/// Returns the answer to send in place of `answer` when the library made that one for a request that it could not read:
/// a client error without a body, which no handler returns. Returns `None` for every other answer.
fn with_body(answer: &[u8]) -> Option<Bytes> {
    const EMPTY: &str = "content-length: 0\r\n";
    if !answer.starts_with(b"HTTP/1.1 4") && !answer.starts_with(b"HTTP/1.0 4") {
        return None;
    }
    let head = std::str::from_utf8(answer.strip_suffix(b"\r\n\r\n")?).ok()?;
    let lines: Vec<&str> = head.split("\r\n").collect();
    let status = StatusCode::from_bytes(head.get(9..12)?.as_bytes()).ok()?;
    if !lines.contains(&EMPTY.trim_end())
        || lines.iter().any(|line| line.is_empty() || line.starts_with("content-type"))
    {
        return None;
    }
    let body = Problem::of_connection(status).to_json();
    let kept: Vec<&str> = lines.into_iter().filter(|line| *line != EMPTY.trim_end()).collect();
    let head = kept.join("\r\n");
    let length = body.len();
    Some(Bytes::from(format!(
        "{head}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n\
         content-length: {length}\r\n\r\n{body}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_of_the_library_get_a_problem_body() {
        let own = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let replaced = with_body(own).unwrap();
        let text = std::str::from_utf8(&replaced).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ndate: x\r\n"),
            "{text}"
        );
        assert!(
            head.ends_with(&format!("content-length: {}", body.len())) && body.contains("\"status\":431"),
            "{text}"
        );
        for other in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 404 Not Found\r\ncontent-type: application/problem+json\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\nHTTP/1.1 400 Bad Request\r\n\r\n",
            b"HTTP/1.1 4",
            b"",
        ] {
            assert_eq!(with_body(other), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
