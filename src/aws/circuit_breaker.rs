//! Limits the attempts at hosts that do not work.
//!
//! An attempt that gets no answer, or a server error, trips the circuit breaker of its host. While the breaker is open,
//! attempts wait. It is half-open whenever a probe is due: one attempt is then admitted, at growing intervals, until
//! one succeeds and closes the breaker. An outage therefore costs a process at most two attempts a second, however many
//! of its tasks retry, and calls resume at most [`PROBE_DELAYS`]`.longest` after the outage.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::retry::Schedule;

/// Delays between the probes of one host.
const PROBE_DELAYS: Schedule = Schedule::new(Duration::from_millis(100), Duration::from_millis(1_500));
/// Interval between the probes of all hosts. Queues, buckets and credentials may be on three failing hosts.
const PROCESS_PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Shared by the whole process: each queue and bucket has a client of its own, but several use the same host.
static BREAKERS: LazyLock<CircuitBreakers> = LazyLock::new(CircuitBreakers::default);

/// The circuit breaker of the host in a URL.
pub(super) fn of_host(url: &str) -> Arc<CircuitBreaker> {
    BREAKERS.of(url)
}

/// The circuit breakers of this process. Each host has its own, since the hosts of queues, buckets and credentials fail
/// independently.
#[derive(Debug, Default)]
struct CircuitBreakers {
    hosts: Mutex<HashMap<String, Arc<CircuitBreaker>>>,
    next_probe: Arc<NextProbe>,
}

/// The earliest time of the next probe of any host with an open breaker.
#[derive(Debug, Default)]
struct NextProbe(Mutex<Option<Instant>>);

impl CircuitBreakers {
    fn of(&self, url: &str) -> Arc<CircuitBreaker> {
        let host = url.parse::<http::Uri>().ok().and_then(|uri| uri.authority().map(ToString::to_string));
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let breaker =
            || Arc::new(CircuitBreaker { next_probe: Arc::clone(&self.next_probe), ..CircuitBreaker::default() });
        Arc::clone(hosts.entry(host.unwrap_or_default()).or_insert_with(breaker))
    }
}

/// The circuit breaker of one host.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    state: Mutex<BreakerState>,
    closed: Notify,
    next_probe: Arc<NextProbe>,
}

#[derive(Debug, Default)]
struct BreakerState {
    /// Consecutive failures. Attempts that were in flight at the same time count once.
    failures: u32,
    failed_at: Option<Instant>,
    /// The time of the next probe. The breaker is closed if this is absent.
    next: Option<Instant>,
}

impl CircuitBreaker {
    /// Waits until an attempt may be made: at once if the breaker is closed, else until it closes or the next probe is
    /// due.
    pub(super) async fn admit(&self) {
        loop {
            // Created before the state is read, so that no change in between is missed.
            let closed = self.closed.notified();
            let Some(at) = self.try_admit() else { return };
            tokio::select! {
                () = closed => {}
                () = tokio::time::sleep_until(at) => {}
            }
        }
    }

    fn try_admit(&self) -> Option<Instant> {
        let mut state = self.lock();
        let mut of_process = self.next_probe.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.try_admit(&mut of_process, Instant::now(), jitter())
    }

    /// Records a failed attempt, which trips the breaker.
    pub(super) fn trip(&self, started: Instant) {
        self.lock().record_failure(started, Instant::now(), jitter());
    }

    /// Closes the breaker: an attempt has succeeded.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        if state.next.is_some() {
            *state = BreakerState::default();
            self.closed.notify_waiters();
        }
    }

    /// Ignores poisoning: no panic can interrupt a change of the state.
    fn lock(&self) -> MutexGuard<'_, BreakerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BreakerState {
    /// Returns `None` if an attempt may be made now, and otherwise the time to ask again. An attempt while the breaker
    /// is half-open takes the probe. `of_process` is the time of the next probe of any host.
    fn try_admit(&mut self, of_process: &mut Option<Instant>, now: Instant, jitter: f64) -> Option<Instant> {
        let next = self.next.max(*of_process).filter(|_| self.next.is_some())?;
        if now < next {
            return Some(next);
        }
        self.next = Some(now + self.delay(jitter));
        *of_process = Some(now + PROCESS_PROBE_INTERVAL.mul_f64(jitter));
        None
    }

    /// Attempts that were in flight at the same time and failed count as one failure.
    fn record_failure(&mut self, started: Instant, now: Instant, jitter: f64) {
        if self.failed_at.is_none_or(|failed_at| started >= failed_at) {
            self.failures += 1;
            self.failed_at = Some(now);
            self.next = Some(now + self.delay(jitter));
        }
    }

    fn delay(&self, jitter: f64) -> Duration {
        PROBE_DELAYS.delay_after(self.failures).mul_f64(jitter)
    }
}

/// Lengthens delays at random, so that many processes do not probe at the same instant. It never shortens them.
fn jitter() -> f64 {
    rand::rng().random_range(1.0..=1.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The attempts within 30 s at hosts that all fail, one for each state, by tasks that try all the time.
    fn attempts_in_an_outage(states: &mut [BreakerState]) -> Vec<Instant> {
        let start = Instant::now();
        let mut of_process = None;
        let mut attempts = Vec::new();
        for ms in (1..30_000).step_by(10) {
            let now = start + Duration::from_millis(ms);
            for state in &mut *states {
                if state.try_admit(&mut of_process, now, 1.0).is_none() {
                    attempts.push(now);
                    state.record_failure(now, now, 1.0);
                }
            }
        }
        attempts
    }

    #[test]
    fn open_breaker_probes_ever_more_slowly_up_to_the_longest_delay() {
        let mut state = BreakerState::default();
        let start = Instant::now();
        assert_eq!(state.try_admit(&mut None, start, 1.0), None, "a closed breaker admits all");
        // Five attempts in flight fail: that counts as one failure.
        for ms in [1, 2, 3, 4, 5] {
            state.record_failure(start, start + Duration::from_millis(ms), 1.0);
        }
        assert_eq!(state.failures, 1);
        let next = start + Duration::from_millis(101);
        assert_eq!(state.try_admit(&mut None, start + Duration::from_millis(50), 1.0), Some(next));
        let attempts = attempts_in_an_outage(&mut [state]).len();
        assert!((20..=24).contains(&attempts), "{attempts} attempts in 30 s");
        let mut state = BreakerState::default();
        let of_process = Some(start + PROBE_DELAYS.longest);
        assert_eq!(state.try_admit(&mut { of_process }, start, 1.0), None, "the outage of another host");
    }

    #[test]
    fn failing_hosts_share_two_probes_a_second() {
        let start = Instant::now();
        let out = || {
            let mut state = BreakerState::default();
            state.record_failure(start, start, 1.0);
            state
        };
        let attempts = attempts_in_an_outage(&mut [out(), out(), out()]);
        assert!(attempts.len() > 50, "{} attempts in 30 s", attempts.len());
        assert!(attempts.windows(3).all(|three| three[2] - three[0] >= Duration::from_secs(1)), "{attempts:?}");
    }

    #[tokio::test]
    async fn waiting_attempts_are_admitted_when_the_breaker_closes() {
        let breaker = CircuitBreaker::default();
        for _ in 0..20 {
            breaker.trip(Instant::now());
        }
        let waiting = Instant::now();
        let close = async {
            tokio::task::yield_now().await;
            breaker.close();
        };
        let ((), (), ()) = tokio::join!(breaker.admit(), breaker.admit(), close);
        assert!(waiting.elapsed() < PROBE_DELAYS.longest, "{:?}", waiting.elapsed());
    }
}
