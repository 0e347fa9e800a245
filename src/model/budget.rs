//! Limits on the cost of one image: CPU time of the thread that decodes it, and memory of this process.
//!
//! No decoder is trusted to respect these limits by itself:
//! - A decoder reads the file through a [`Source`], which checks the clock every few kilobytes and fails the read once
//!   the time is spent. Our own loops call [`Budget::check`].
//! - The memory that a decoder needs is estimated from the header and reserved before it starts. The reservations of
//!   all threads share one limit, and a thread whose image does not fit waits until others have finished.
//!
//! A decoder that neither reads nor returns is handled by the worker's watchdog, because a thread cannot be stopped.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::error::PrepareError;
use crate::error::ImageFault;
use crate::limits::Limits;

/// Decoders get the file in pieces of at most this size, and the clock is checked once per piece.
pub(super) const PIECE_BYTES: usize = 16 << 10;

/// How many times the size of the file a decoder may read. Well-formed files have directories and blocks that are read
/// two or three times.
const MAX_READS_OF_A_FILE: u64 = 16;

/// The budget of one image, used only by the thread that decodes it.
pub(super) struct Budget {
    started_at: Duration,
    decode_timeout: Duration,
    max_decode_bytes: u64,
    /// The reason why the decoder was stopped, if it was.
    stopped: RefCell<Option<PrepareError>>,
    reserved: Cell<Option<Reservation<'static>>>,
}

impl Budget {
    /// Creates a budget. Its time starts now.
    pub(super) fn new(limits: &Limits) -> Budget {
        Budget {
            started_at: thread_cpu_time(),
            decode_timeout: limits.decode_timeout,
            max_decode_bytes: limits.max_decode_bytes,
            stopped: RefCell::new(None),
            reserved: Cell::new(None),
        }
    }

    /// Checks the clock.
    ///
    /// # Errors
    /// `DecodeTimeout` once the time is spent.
    pub(super) fn check(&self) -> Result<(), PrepareError> {
        if thread_cpu_time().saturating_sub(self.started_at) <= self.decode_timeout {
            return Ok(());
        }
        let message = timeout_message(self.decode_timeout);
        Err(self.stop(PrepareError::new(ImageFault::DecodeTimeout, message)))
    }

    /// Reserves memory, in place of what this budget reserved before. Waits while the reservations of other threads
    /// leave too little. The reservation ends with the budget.
    ///
    /// # Errors
    /// `TooLargeDecoded` if `bytes` exceeds the limit.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), PrepareError> {
        // Releasing first prevents a deadlock: a waiting thread holds nothing that another could wait for.
        drop(self.reserved.take());
        if bytes > self.max_decode_bytes {
            let limit = self.max_decode_bytes;
            let message = format!(
                "decoding the image needs {bytes} bytes of memory, more than the limit of {limit} (--max-decode-bytes)"
            );
            return Err(PrepareError::new(ImageFault::TooLargeDecoded, message));
        }
        self.reserved.set(Some(MEMORY.reserve(bytes, self.max_decode_bytes)));
        Ok(())
    }

    /// A reader of the concatenated parts that is subject to this budget.
    pub(super) fn source<'a>(&'a self, parts: [&'a [u8]; 2]) -> Source<'a> {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        Source { budget: self, parts, length, position: 0, unchecked: 0, read: 0 }
    }

    /// The reason why this budget stopped a decoder, whose own error says less. Returns `error` if it did not.
    pub(super) fn reason(&self, error: PrepareError) -> PrepareError {
        self.stopped.borrow().clone().unwrap_or(error)
    }

    fn stop(&self, error: PrepareError) -> PrepareError {
        self.stopped.borrow_mut().get_or_insert(error).clone()
    }
}

/// The message for a client whose image exceeded the decode timeout.
pub fn timeout_message(decode_timeout: Duration) -> String {
    format!("decoding the image takes longer than {decode_timeout:?} of CPU time (--decode-timeout)")
}

/// The CPU time that this thread has used.
pub fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A reader of a file in memory that is subject to a [`Budget`]. Every read fails once the budget is spent or the file
/// was read too often.
pub(super) struct Source<'a> {
    budget: &'a Budget,
    /// The file, and what is appended to it so that a decoder reads it to its end.
    parts: [&'a [u8]; 2],
    length: u64,
    position: u64,
    /// Bytes read since the clock was last checked.
    unchecked: usize,
    /// Bytes read in total.
    read: u64,
}

impl Source<'_> {
    fn piece(&self) -> &[u8] {
        let [first, second] = self.parts;
        let position = usize::try_from(self.position).unwrap_or(usize::MAX);
        let rest = first.get(position..).filter(|rest| !rest.is_empty());
        let rest = rest.or_else(|| second.get(position.saturating_sub(first.len())..)).unwrap_or_default();
        &rest[..rest.len().min(PIECE_BYTES)]
    }

    fn account(&mut self, bytes: usize) -> io::Result<()> {
        self.read = self.read.saturating_add(bytes as u64);
        self.unchecked += bytes;
        if self.unchecked < PIECE_BYTES {
            return Ok(());
        }
        self.unchecked = 0;
        if self.read > self.length.saturating_mul(MAX_READS_OF_A_FILE).saturating_add(PIECE_BYTES as u64) {
            let message = "the image makes its decoder read the same bytes too often";
            self.budget.stop(PrepareError::new(ImageFault::DecodeTimeout, message));
            return Err(io::Error::other(message));
        }
        self.budget.check().map_err(io::Error::other)
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let piece = self.piece();
        let length = piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&piece[..length]);
        self.position += length as u64;
        self.account(length)?;
        Ok(length)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.account(0)?;
        Ok(self.piece())
    }

    fn consume(&mut self, bytes: usize) {
        self.position += bytes as u64;
        self.read = self.read.saturating_add(bytes as u64);
        self.unchecked += bytes;
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        // A seek counts as a small read, so that a decoder cannot seek forever.
        self.account(64)?;
        let (base, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::Current(offset) => (self.position, offset),
            SeekFrom::End(offset) => (self.length, offset),
        };
        let position = base.checked_add_signed(offset);
        self.position = position.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

/// Memory that all threads of the process have reserved for decoding.
static MEMORY: Memory =
    Memory { state: Mutex::new(MemoryState { reserved: 0, tickets: 0, served: 0 }), changed: Condvar::new() };

struct Memory {
    state: Mutex<MemoryState>,
    changed: Condvar,
}

struct MemoryState {
    reserved: u64,
    /// Threads are served in order of arrival, so that small images cannot starve a large one.
    tickets: u64,
    served: u64,
}

/// Reserved memory; dropping it releases the memory.
struct Reservation<'a> {
    memory: &'a Memory,
    bytes: u64,
}

impl Memory {
    /// Waits for `bytes`, which must not exceed `limit`.
    fn reserve(&self, bytes: u64, limit: u64) -> Reservation<'_> {
        let mut state = self.state();
        let ticket = state.tickets;
        state.tickets += 1;
        while state.served != ticket || state.reserved.saturating_add(bytes) > limit {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.served += 1;
        state.reserved += bytes;
        drop(state);
        self.changed.notify_all();
        Reservation { memory: self, bytes }
    }

    /// Each change is complete before the lock is released, so the state is valid even if the lock is poisoned.
    fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.memory.state().reserved -= self.bytes;
        self.memory.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn limits(decode_timeout: Duration, max_decode_bytes: u64) -> Limits {
        Limits { decode_timeout, max_decode_bytes, ..Limits::default() }
    }

    #[test]
    fn reads_fail_once_the_time_is_spent_and_the_reason_is_kept() {
        let budget = Budget::new(&limits(Duration::from_millis(20), 0));
        let bytes = vec![7; PIECE_BYTES];
        let mut source = budget.source([&bytes, b"end"]);
        let mut all = Vec::new();
        source.read_to_end(&mut all).unwrap();
        assert_eq!(all, [bytes.as_slice(), b"end"].concat());
        while budget.check().is_ok() {}
        source.rewind().unwrap();
        assert!(source.read_to_end(&mut all).is_err());
        let reason = budget.reason(PrepareError::new(ImageFault::Undecodable, "the decoder's own message"));
        assert_eq!(reason.fault, ImageFault::DecodeTimeout);
    }

    #[test]
    fn reading_a_file_too_often_fails() {
        let budget = Budget::new(&limits(Duration::MAX, 0));
        let bytes = vec![7; 3 * PIECE_BYTES];
        let mut source = budget.source([&bytes, b""]);
        let mut reads = 0;
        while source.rewind().and_then(|()| source.read_to_end(&mut Vec::new())).is_ok() {
            reads += 1;
            assert!(reads < 1_000, "never refused");
        }
        assert!(reads >= 10, "{reads}");
    }

    #[test]
    fn reservations_of_all_threads_stay_within_the_limit_and_all_are_served() {
        let memory =
            Memory { state: Mutex::new(MemoryState { reserved: 0, tickets: 0, served: 0 }), changed: Condvar::new() };
        let (held, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (memory, held, most) = (&memory, &held, &most);
                scope.spawn(move || {
                    for turn in 0..200 {
                        let bytes = if thread == 0 { 100 } else { 10 + turn % 30 };
                        let reserved = memory.reserve(bytes, 100);
                        most.fetch_max(held.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                        held.fetch_sub(bytes, Ordering::SeqCst);
                        drop(reserved);
                    }
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 100);
        assert_eq!(memory.state().reserved, 0);
    }

    #[test]
    fn reservation_above_the_limit_is_refused() {
        let budget = Budget::new(&limits(Duration::MAX, 1_000));
        budget.reserve(1_000).unwrap();
        let error = budget.reserve(1_001).unwrap_err();
        assert_eq!(error.fault, ImageFault::TooLargeDecoded);
        assert!(error.message.contains("1001") && error.message.contains("1000"), "{error}");
        budget.reserve(1_000).unwrap();
    }
}
