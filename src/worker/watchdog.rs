//! The last resort against a decoder that does not return: a thread cannot be killed, but a process can.
//!
//! A decoder is stopped from inside once it has used its CPU time (`model::prepare`). A decoder that does not stop is found
//! here after twice as long. Its image fails as `decode_timeout` like any other, so that no worker takes it again. Then this
//! worker drains and ends with an error, and its supervisor starts another.

use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::{Pid, gettid};
use tokio_util::sync::CancellationToken;

use crate::model;

/// A decoder counts as stuck after this many times its own limit.
const TIMES_THE_LIMIT: u32 = 2;

/// Watches the decoders of all inference threads. `T` is the delivery that a decoder works on.
pub(crate) struct Watchdog<T> {
    decode_timeout: Duration,
    slots: Mutex<Vec<Arc<Slot<T>>>>,
    stuck: OnceLock<()>,
}

/// The image that one thread decodes at the moment.
pub(crate) struct Slot<T>(Mutex<Option<Decoding<T>>>);

struct Decoding<T> {
    item: T,
    thread: Pid,
    began: Instant,
    cpu_time_at_begin: Duration,
}

impl<T> Watchdog<T> {
    pub(crate) fn new(decode_timeout: Duration) -> Watchdog<T> {
        Watchdog { decode_timeout, slots: Mutex::default(), stuck: OnceLock::new() }
    }

    /// A slot for one more thread.
    pub(crate) fn slot(&self) -> Arc<Slot<T>> {
        let slot = Arc::new(Slot(Mutex::new(None)));
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&slot));
        slot
    }

    /// Waits for a thread that is stuck, and takes its delivery. Returns `None` if `stop` came first.
    pub(crate) async fn wait(&self, stop: &CancellationToken) -> Option<T> {
        let often = (self.decode_timeout / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let mut ticks = tokio::time::interval(often);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                _ = ticks.tick() => {}
            }
            if let Some(item) = self.take_stuck() {
                return Some(item);
            }
        }
    }

    /// Returns true if a stuck thread was ever found.
    pub(crate) fn has_found_one(&self) -> bool {
        self.stuck.get().is_some()
    }

    /// Takes the delivery of a thread that is stuck, if there is one.
    pub(crate) fn take_stuck(&self) -> Option<T> {
        let limit = self.decode_timeout.saturating_mul(TIMES_THE_LIMIT);
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let item = slots.iter().find_map(|slot| slot.take_if_beyond(limit))?;
        self.stuck.get_or_init(|| ());
        Some(item)
    }
}

impl<T> Slot<T> {
    /// Records that this thread begins to decode.
    pub(crate) fn begin(&self, item: T) {
        let cpu_time_at_begin = model::thread_cpu_time();
        let decoding = Decoding { item, thread: gettid(), began: Instant::now(), cpu_time_at_begin };
        *self.state() = Some(decoding);
    }

    /// Records that this thread has decoded. Returns `None` if the watchdog has taken the delivery and decided its outcome.
    pub(crate) fn end(&self) -> Option<T> {
        self.state().take().map(|decoding| decoding.item)
    }

    fn take_if_beyond(&self, limit: Duration) -> Option<T> {
        let mut state = self.state();
        let decoding = state.as_ref()?;
        // A thread has never more CPU time than has passed, so the system is asked only about slow images.
        if decoding.began.elapsed() < limit {
            return None;
        }
        let spent = cpu_time(decoding.thread)?.saturating_sub(decoding.cpu_time_at_begin);
        if spent < limit {
            return None;
        }
        state.take().map(|decoding| decoding.item)
    }

    /// Each change is one assignment, so a poisoned lock still guards a consistent state.
    fn state(&self) -> MutexGuard<'_, Option<Decoding<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the CPU time that another thread of this process has used, or `None` if the system does not report it.
fn cpu_time(thread: Pid) -> Option<Duration> {
    let folder = format!("/proc/self/task/{}", thread.as_raw_nonzero());
    let nanoseconds = fs::read_to_string(format!("{folder}/schedstat")).ok().and_then(|text| first_number(&text));
    if let Some(nanoseconds) = nanoseconds.filter(|nanoseconds| *nanoseconds > 0) {
        return Some(Duration::from_nanos(nanoseconds));
    }
    // Without scheduler statistics: fields 14 and 15 in hundredths of a second, which begin after the name.
    let stat = fs::read_to_string(format!("{folder}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// One decoder does not end by itself, and one waits for something and uses no CPU time.
    #[tokio::test]
    async fn decoder_that_does_not_return_loses_its_image() {
        let watchdog: Watchdog<&str> = Watchdog::new(Duration::from_millis(20));
        let (spinning, waiting) = (watchdog.slot(), watchdog.slot());
        let give_up = Arc::new(AtomicBool::new(false));
        let threads = [(Arc::clone(&spinning), true), (Arc::clone(&waiting), false)].map(|(slot, spins)| {
            let give_up = Arc::clone(&give_up);
            std::thread::spawn(move || {
                slot.begin(if spins { "bomb" } else { "good" });
                while !give_up.load(Ordering::Relaxed) {
                    if !spins {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
                slot.end()
            })
        });
        assert!(!watchdog.has_found_one());
        assert_eq!(watchdog.wait(&CancellationToken::new()).await, Some("bomb"));
        assert!(watchdog.has_found_one());
        give_up.store(true, Ordering::Relaxed);
        // The thread that lost its image must not give it a second outcome.
        assert_eq!(threads.map(|thread| thread.join().unwrap()), [None, Some("good")]);
    }

    #[tokio::test]
    async fn slot_that_is_empty_again_is_ignored() {
        let watchdog: Watchdog<u8> = Watchdog::new(Duration::ZERO);
        let slot = watchdog.slot();
        slot.begin(7);
        assert_eq!(slot.end(), Some(7));
        assert_eq!(watchdog.take_stuck(), None);
        let stop = CancellationToken::new();
        stop.cancel();
        assert_eq!(watchdog.wait(&stop).await, None);
    }
}
