//! Reading a request body in pieces, within limits on its size, its memory and its duration.

use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, Sleep};

use super::gzip::{Gunzip, Unpacked};
use super::rules::UploadRules;
use crate::web::budget::Reservation;
use crate::web::error::Problem;
use crate::web::http::{MIN_BYTES_PER_SECOND, drain_body};

/// How long an upload may be slower than [`MIN_BYTES_PER_SECOND`].
const SLOW_START: Duration = Duration::from_secs(10);

/// Reads a body piece by piece within its limits.
pub(super) struct BodyReader<'a> {
    body: Body,
    pub(super) rules: &'a UploadRules,
    /// Limits both the bytes that arrive and, for a compressed body, the bytes after decompression.
    max_bytes: u64,
    received_bytes: u64,
    /// When the upload is aborted for being too slow. Each byte extends it at the rate of [`MIN_BYTES_PER_SECOND`], to
    /// at most [`SLOW_START`] from now, however much has arrived. Time spent waiting for memory is added.
    deadline: Instant,
    /// When the last piece arrived. Time spent waiting for memory is added here, too.
    arrived_at: Instant,
    /// Fires at the earliest time at which the upload may have to be aborted. Pieces only move the two times above,
    /// because arming a timer for each of them would be expensive.
    timer: Pin<Box<Sleep>>,
    reservation: Reservation,
    has_ended: bool,
    gunzip: Option<Gunzip>,
}

impl<'a> BodyReader<'a> {
    /// `max_bytes` limits the body before and after decompression, and `is_gzip` says whether it is compressed.
    pub(super) fn new(body: Body, rules: &'a UploadRules, max_bytes: u64, is_gzip: bool) -> Self {
        let now = Instant::now();
        BodyReader {
            body,
            rules,
            max_bytes,
            received_bytes: 0,
            deadline: now + SLOW_START,
            arrived_at: now,
            timer: Box::pin(tokio::time::sleep_until(now + SLOW_START.min(rules.body_timeout))),
            reservation: rules.budget.begin(),
            has_ended: false,
            gunzip: is_gzip.then(|| Gunzip::new(max_bytes)),
        }
    }

    /// Reserves memory for `bytes` in total.
    ///
    /// # Errors
    /// 503 when it is not available.
    pub(super) async fn reserve(&mut self, bytes: usize) -> Result<(), Problem> {
        let began = Instant::now();
        let reserved = self.reservation.grow_to(bytes as u64).await;
        let waited = began.elapsed();
        self.deadline += waited;
        self.arrived_at += waited;
        reserved.map_err(|_| no_memory())
    }

    /// Returns the memory that is reserved.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reservation.bytes()
    }

    /// Returns the next bytes of the body, decompressed, or `None` at its end. They are never empty.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Problem> {
        let Some(mut gunzip) = self.gunzip.take() else { return self.frame().await };
        let chunk = loop {
            match gunzip.next()? {
                Unpacked::Bytes(bytes) => break Some(bytes),
                Unpacked::End => break None,
                Unpacked::NeedsMore => gunzip.push(self.frame().await?),
            }
        };
        self.gunzip = Some(gunzip);
        // A small piece may expand to a thousand times its size: let other tasks run.
        tokio::task::yield_now().await;
        Ok(chunk)
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let abort_at = match self.arrived_at.checked_add(self.rules.body_timeout) {
                Some(latest) => latest.min(self.deadline),
                None => self.deadline,
            };
            let frame = tokio::select! {
                biased;
                () = self.reservation.refused() => return Err(no_memory()),
                frame = self.body.frame() => frame,
                () = wait_until(self.timer.as_mut(), abort_at) => return Err(self.abort(Problem::body_timeout())),
            };
            let Some(frame) = frame else {
                self.has_ended = true;
                return Ok(None);
            };
            let frame =
                frame.map_err(|error| self.abort(Problem::malformed(format!("the body broke off: {error}"))))?;
            // Trailers are ignored.
            let Ok(data) = frame.into_data() else { continue };
            self.received_bytes += data.len() as u64;
            if self.received_bytes > self.max_bytes {
                return Err(Problem::too_large(self.rules.max_upload_bytes));
            }
            self.arrived_at = Instant::now();
            if self.arrived_at >= self.deadline {
                return Err(self.abort(Problem::body_timeout()));
            }
            let earned = Duration::from_micros(data.len() as u64 * 1_000_000 / MIN_BYTES_PER_SECOND);
            self.deadline = (self.deadline + earned).min(self.arrived_at + SLOW_START);
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }

    /// Records that nothing more can be read after this problem.
    fn abort(&mut self, problem: Problem) -> Problem {
        self.has_ended = true;
        problem
    }

    /// Returns the number of bytes to expect, decompressed. It is only an upper bound.
    ///
    /// # Errors
    /// 413 if the client announces more than the limit.
    pub(super) fn expected_bytes(&mut self, headers: &HeaderMap) -> Result<u64, Problem> {
        let announced = content_length(headers);
        if announced.is_some_and(|bytes| bytes > self.max_bytes) {
            // A client that asked before sending will send nothing.
            self.has_ended |= headers.contains_key(header::EXPECT);
            return Err(Problem::too_large(self.rules.max_upload_bytes));
        }
        Ok(announced.filter(|_| self.gunzip.is_none()).unwrap_or(self.max_bytes))
    }

    /// Ends the reading. After a refusal the rest of the body is read, within bounds. Returns what was received, and its
    /// memory.
    pub(super) async fn end<T>(self, received: Result<T, Problem>) -> Result<(T, Reservation), Problem> {
        match received {
            Ok(received) => Ok((received, self.into_reservation())),
            Err(problem) => {
                self.drain().await;
                Err(problem)
            }
        }
    }

    /// Releases the memory of a refused upload and reads the rest of its body, up to twice the limit, so that the
    /// client reads the answer.
    async fn drain(mut self) {
        drop(self.reservation);
        if !self.has_ended {
            drain_body(&mut self.body, (2 * self.max_bytes).saturating_sub(self.received_bytes)).await;
        }
    }

    /// Keeps the memory of an upload that has arrived completely. Other uploads cannot claim it any more.
    fn into_reservation(mut self) -> Reservation {
        self.reservation.complete();
        self.reservation
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Waits until `time`. Arms the timer again only when it fires before that.
async fn wait_until(mut timer: Pin<&mut Sleep>, time: Instant) {
    loop {
        timer.as_mut().await;
        if timer.deadline() >= time {
            return;
        }
        timer.as_mut().reset(time);
    }
}

fn no_memory() -> Problem {
    Problem::full("all memory for uploads is taken (--max-buffered-bytes); try again in a moment")
}
