//! Admission: whether a request is let in, decided by how long its answer would take.
//!
//! A queue that is longer than its callers wait makes every answer late: workers then classify for callers who have
//! left, and no caller is served. So a request that waits for its answer is refused at once when the work in front of it
//! takes longer than the caller waits. The caller hears 503 with a `Retry-After` that says when the work is done.
//!
//! The decision is pure ([`decide`]). The estimate behind it comes from three sources:
//!
//! - **jobs ahead**: what this process sent to the queue and has not seen ended, counted at once, and the depth of the
//!   queue, which is read while requests come ([`Admission::run`]);
//! - **service time and ready workers**, which `up` knows of its own workers ([`Fleet`]);
//! - **the pace of the replies** where the workers belong to somebody else ([`ReplyPace`]).
//!
//! While no worker is ready, or none has been measured yet, every caller is let in: otherwise a service that scales from
//! zero would never start. `/v1/jobs` does not wait for an answer; it is limited by the depth of the queue alone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::HttpBody as _;
use axum::extract::Request;
use axum::http::header;
use rand::Rng as _;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::Problem;
use super::metrics::METRICS;
use super::upload;
use crate::protocol::TimingsMs;
use crate::scaling::StepPolicy;
use crate::transport::Transport;

/// The share of a caller's wait that the estimate may fill. Under overload the queue stands at this limit, so what is
/// left has to cover the error of the estimate: without it about half of the callers would be answered too late.
const USABLE_SHARE: f64 = 0.85;
/// What is left for noise is at least this, or a tenth of the wait where that is less: of a short wait a pause of the machine
/// takes a larger share.
const NOISE: Duration = Duration::from_millis(250);
/// A depth that was read longer ago than this many periods says nothing about now.
const FRESH_PERIODS: u32 = 4;
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// One connection in so many is kept from callers that wait, so that there is always one left to refuse on.
const RESERVED_SHARE: usize = 64;
/// `Retry-After`, in seconds. Jitter lengthens it by up to a quarter, so that the refused do not come back together.
const MAX_RETRY_AFTER_SECONDS: f64 = 60.0;
const RETRY_JITTER: f64 = 0.25;
/// `Retry-After` of a full queue while nobody knows how fast it is worked off.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(10);
/// A full queue is worth another try once a hundredth of it is done.
const FULL_RETRY_SHARE: u64 = 100;
/// After a refusal a client may still be sending: so much is read, by so many tasks at a time.
const DRAIN_BYTES: u64 = 32 << 20;
const MAX_DRAINS: usize = 256;

/// What is known about the work in front of a new job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Jobs that were accepted and have not ended.
    pub jobs_ahead: u64,
    /// Mean time between two ends while all workers are busy: the service time divided by the number of ready workers.
    /// None while no worker is ready, or no service time was measured.
    pub time_per_job: Option<Duration>,
}

impl Estimate {
    /// How long a new job waits until a worker begins with it. None while that cannot be known.
    pub fn wait(&self) -> Option<Duration> {
        self.time_per_job.map(|time| times(time, self.jobs_ahead))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Admit,
    Refuse { expected_wait: Duration },
}

/// Decides on a caller that waits up to `max_wait` for its answer. Admits it while the expected wait is unknown.
pub fn decide(estimate: &Estimate, max_wait: Duration) -> Decision {
    let usable = max_wait.mul_f64(USABLE_SHARE).saturating_sub(NOISE.min(max_wait / 10));
    match estimate.wait() {
        Some(expected_wait) if expected_wait > usable && estimate.jobs_ahead > 0 => Decision::Refuse { expected_wait },
        Some(_) | None => Decision::Admit,
    }
}

/// Whole seconds for `Retry-After`, 1 to 60. `jitter` is 0 to 1.
fn retry_after_seconds(expected_wait: Duration, jitter: f64) -> u32 {
    let seconds = expected_wait.as_secs_f64() * (1.0 + RETRY_JITTER * jitter);
    seconds.ceil().clamp(1.0, MAX_RETRY_AFTER_SECONDS) as u32
}

fn times(time: Duration, count: u64) -> Duration {
    Duration::try_from_secs_f64(time.as_secs_f64() * count as f64).unwrap_or(Duration::MAX)
}

/// The workers of `up`, as its web tier sees them.
pub struct Fleet {
    /// How many workers are ready.
    pub ready: watch::Receiver<usize>,
    /// Whether the service is ready only once one of them is. False where the fleet may be empty.
    pub is_awaited: bool,
    /// What a worker needs for an image, measured over the last seconds. None where none has worked yet.
    pub service_time: Box<dyn Fn() -> Option<Duration> + Send + Sync>,
    /// Counts the requests that were refused because the workers are too few. The queue does not show them, and who
    /// decides on the number of workers has to know of them.
    pub refused: Arc<AtomicU64>,
}

/// How much may be let in.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionLimits {
    /// Jobs in the queue, waiting or in work.
    pub max_queue_depth: u64,
    pub max_connections: usize,
}

/// Lets requests in or refuses them.
pub struct Admission {
    transport: Arc<dyn Transport>,
    max_queue_depth: u64,
    max_waiting: u64,
    look_every: Duration,
    capacity: Capacity,
    ledger: Mutex<Ledger>,
    /// Held while the depth is read, so that there is one read at a time.
    looking: tokio::sync::Mutex<()>,
    look_wanted: Notify,
    drains: TaskTracker,
    drain_permits: Arc<Semaphore>,
}

/// Where the time per job comes from.
enum Capacity {
    Fleet(Fleet),
    Replies(Mutex<ReplyPace>),
}

/// Why a request was refused; the label of `imgcls_web_shed_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    ExpectedWait { expected_wait: Duration },
    QueueDepth { depth: u64 },
    Connections,
}

/// One job that was let in. It counts as a waiting caller until it is dropped.
pub struct Place {
    admission: Arc<Admission>,
    waits: bool,
}

impl Admission {
    /// `fleet` is None where the workers are not this process's own.
    pub fn new(transport: Arc<dyn Transport>, limits: AdmissionLimits, fleet: Option<Fleet>) -> Self {
        let look_every = transport.depth_interval();
        let max_waiting = limits.max_connections - limits.max_connections / RESERVED_SHARE;
        Admission {
            transport,
            max_queue_depth: limits.max_queue_depth,
            max_waiting: max_waiting as u64,
            look_every,
            capacity: fleet.map_or_else(|| Capacity::Replies(Mutex::default()), Capacity::Fleet),
            ledger: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
            look_wanted: Notify::new(),
            drains: TaskTracker::new(),
            drain_permits: Arc::new(Semaphore::new(MAX_DRAINS)),
        }
    }

    /// Decides on a request before its body is read. `max_wait` is zero for a caller who does not wait.
    ///
    /// # Errors
    /// 503 with `Retry-After`. What the client still sends is read beside the answer, so that the client can read that.
    pub async fn let_in(&self, request: Request, max_wait: Duration) -> Result<Request, Problem> {
        self.look_if_full().await;
        let checked = self.check(&self.ledger(), max_wait);
        let Err(reason) = checked else { return Ok(request) };
        self.drain(request);
        Err(self.refuse(reason))
    }

    /// Counts a job in, or refuses it after all: others may have come in while its body was read.
    ///
    /// # Errors
    /// As [`Admission::let_in`]; nothing was stored yet.
    pub fn enter(self: &Arc<Self>, max_wait: Duration) -> Result<Place, Problem> {
        let mut ledger = self.ledger();
        match self.check(&ledger, max_wait) {
            Ok(()) => {
                let waits = !max_wait.is_zero();
                ledger.enter(waits);
                Ok(Place { admission: Arc::clone(self), waits })
            }
            Err(reason) => {
                drop(ledger);
                Err(self.refuse(reason))
            }
        }
    }

    /// Counts the end of a job that this process sent. `timings`: of its result, where the reply carried it.
    pub fn ended(&self, timings: Option<&TimingsMs>) {
        self.ledger().end();
        if let (Capacity::Replies(pace), Some(timings)) = (&self.capacity, timings) {
            lock(pace).ended(Instant::now(), has_queued(timings));
        }
    }

    /// Whether [`Admission::ended`] has a use for the timings of a result.
    pub fn reads_timings(&self) -> bool {
        matches!(self.capacity, Capacity::Replies(_))
    }

    /// Sets the gauge of the expected wait.
    pub fn observe(&self) {
        let wait = self.estimate(&self.ledger()).wait().unwrap_or_default();
        METRICS.expected_wait.set(wait.as_secs_f64());
    }

    /// Reads the depth of the queue while requests come, until `stop`; then waits for what it has spawned.
    pub async fn run(&self, stop: CancellationToken) {
        let looking = async {
            loop {
                self.look().await;
                tokio::time::sleep(self.look_every).await;
                self.look_wanted.notified().await;
            }
        };
        let _: Option<()> = stop.run_until_cancelled(looking).await;
        self.drains.close();
        self.drains.wait().await;
    }

    fn check(&self, ledger: &Ledger, max_wait: Duration) -> Result<(), Reason> {
        if ledger.is_older_than(self.look_every) {
            self.look_wanted.notify_one();
        }
        let depth = ledger.depth();
        if depth >= self.max_queue_depth {
            return Err(Reason::QueueDepth { depth });
        }
        if max_wait.is_zero() {
            return Ok(());
        }
        if ledger.waiting >= self.max_waiting {
            return Err(Reason::Connections);
        }
        match decide(&self.estimate(ledger), max_wait) {
            Decision::Admit => Ok(()),
            Decision::Refuse { expected_wait } => Err(Reason::ExpectedWait { expected_wait }),
        }
    }

    fn estimate(&self, ledger: &Ledger) -> Estimate {
        let is_fresh = !ledger.is_older_than(self.look_every * FRESH_PERIODS);
        match &self.capacity {
            Capacity::Fleet(fleet) => Estimate {
                jobs_ahead: if is_fresh { ledger.depth() } else { ledger.outstanding },
                time_per_job: fleet.time_per_job(),
            },
            // Replies tell the pace of this process's own jobs, so its own jobs are counted too: where several web tiers
            // share the workers, each sees its part of both.
            Capacity::Replies(pace) => Estimate {
                jobs_ahead: ledger.outstanding,
                // Who adds workers looks at the visible messages. As long as they are too few for that, refusing would
                // keep the fleet at the size that is too small.
                time_per_job: lock(pace)
                    .time_per_job(Instant::now())
                    .filter(|_| is_fresh && ledger.visible() > StepPolicy::ORIGINAL.scale_out_above),
            },
        }
    }

    fn refuse(&self, reason: Reason) -> Problem {
        METRICS.shed.with_label_values(&[reason.label()]).inc();
        let time_per_job = self.estimate(&self.ledger()).time_per_job;
        let (detail, wait) = match reason {
            Reason::ExpectedWait { expected_wait } => {
                if let Capacity::Fleet(fleet) = &self.capacity {
                    fleet.refused.fetch_add(1, Ordering::Relaxed);
                }
                let seconds = expected_wait.as_secs_f64();
                let detail = format!(
                    "the work ahead takes about {seconds:.1} s, longer than this request waits; nothing was stored: send it \
                     again later, wait longer (POST /v1/classify?wait=), or use POST /v1/jobs, which does not wait"
                );
                (detail, expected_wait)
            }
            Reason::QueueDepth { depth } => {
                let excess = depth.saturating_sub(self.max_queue_depth) + self.max_queue_depth / FULL_RETRY_SHARE;
                let detail = format!(
                    "{depth} images wait or are in work, and at most {} are taken (--max-queue-depth); nothing was \
                     stored: send it again later",
                    self.max_queue_depth
                );
                (detail, time_per_job.map_or(FULL_RETRY_AFTER, |time| times(time, excess)))
            }
            Reason::Connections => {
                let detail = "nearly all connections wait for an answer (--max-connections); nothing was stored: send it \
                              again later, or use POST /v1/jobs, which does not wait";
                (detail.to_owned(), Duration::from_secs(1))
            }
        };
        let mut problem = Problem::full(detail);
        problem.closes_connection = reason == Reason::Connections;
        problem.retry_after_seconds = Some(retry_after_seconds(wait, rand::rng().random_range(0.0..=1.0)));
        problem
    }

    /// A queue is called full by a fresh reading only: what it is full of may have been done by others.
    async fn look_if_full(&self) {
        let is_full = self.ledger().depth() >= self.max_queue_depth;
        if is_full {
            self.look().await;
        }
    }

    /// Reads the depth, unless that was tried within the period.
    async fn look(&self) {
        let _one_at_a_time = self.looking.lock().await;
        let Some((sent, ended)) = self.ledger().begin_look(self.look_every) else { return };
        match tokio::time::timeout(LOOK_TIMEOUT, self.transport.depth()).await {
            Ok(Ok(depth)) => {
                let jobs = depth.visible + depth.in_flight + depth.delayed;
                let reading = Reading { at: Instant::now(), jobs, visible: depth.visible, sent, ended };
                self.ledger().read(reading);
            }
            Ok(Err(error)) => tracing::debug!(%error, "cannot read the depth of the queue; callers are let in"),
            Err(_) => tracing::debug!("the depth of the queue was not read in time; callers are let in"),
        }
    }

    /// Reads what a refused client still sends, beside the answer.
    fn drain(&self, request: Request) {
        let (parts, mut body) = request.into_parts();
        // A client that asked first (`Expect: 100-continue`) sends nothing after a refusal.
        if parts.headers.contains_key(header::EXPECT) || body.is_end_stream() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.drain_permits).try_acquire_owned() else { return };
        self.drains.spawn(async move {
            upload::read_off(&mut body, DRAIN_BYTES).await;
            drop(permit);
        });
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }
}

/// No code panics while it holds one of these locks, so a poisoned one still guards a whole value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    /// Takes the job out of the count: it was not sent after all, or nobody waits for it and no reply will tell its end.
    pub fn leave(&self) {
        self.admission.ended(None);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.waits {
            let mut ledger = self.admission.ledger();
            ledger.waiting = ledger.waiting.saturating_sub(1);
        }
    }
}

impl Fleet {
    fn time_per_job(&self) -> Option<Duration> {
        let ready = u32::try_from(*self.ready.borrow()).unwrap_or(u32::MAX);
        (self.service_time)()?.checked_div(ready)
    }
}

impl Reason {
    fn label(self) -> &'static str {
        match self {
            Reason::ExpectedWait { .. } => "expected_wait",
            Reason::QueueDepth { .. } => "queue_depth",
            Reason::Connections => "connections",
        }
    }
}

/// What this process knows about the queue: its own sends and ends at once, everybody's from time to time.
#[derive(Debug, Default)]
struct Ledger {
    sent: u64,
    ended: u64,
    /// Jobs that this process sent and has not seen ended.
    outstanding: u64,
    /// Callers that wait for an answer.
    waiting: u64,
    /// When the depth was read last, or the read failed.
    looked_at: Option<Instant>,
    reading: Option<Reading>,
}

/// The depth of the queue at one moment, and what had been counted before it was read.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    jobs: u64,
    visible: u64,
    sent: u64,
    ended: u64,
}

impl Ledger {
    fn enter(&mut self, waits: bool) {
        self.sent += 1;
        self.outstanding += 1;
        self.waiting += u64::from(waits);
    }

    fn end(&mut self) {
        self.ended += 1;
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    /// Jobs in the queue: as it was read last, and what this process did since.
    fn depth(&self) -> u64 {
        match &self.reading {
            Some(reading) => (reading.jobs + (self.sent - reading.sent)).saturating_sub(self.ended - reading.ended),
            None => self.outstanding,
        }
    }

    fn visible(&self) -> u64 {
        self.reading.map_or(0, |reading| reading.visible)
    }

    /// The counts before the read, or None where the last one was within `period`.
    fn begin_look(&mut self, period: Duration) -> Option<(u64, u64)> {
        if self.looked_at.is_some_and(|at| at.elapsed() < period) {
            return None;
        }
        self.looked_at = Some(Instant::now());
        Some((self.sent, self.ended))
    }

    fn read(&mut self, reading: Reading) {
        self.reading = Some(reading);
        // A job whose reply was lost ended unseen. No more can be outstanding than there is.
        self.outstanding = self.outstanding.min(self.depth());
    }

    fn is_older_than(&self, age: Duration) -> bool {
        self.reading.is_none_or(|reading| reading.at.elapsed() > age)
    }
}

/// Whether a job waited in the queue for longer than it took: then no worker was free when it came.
fn has_queued(timings: &TimingsMs) -> bool {
    const MIN_QUEUED_MS: f64 = 50.0;
    timings.queued > MIN_QUEUED_MS.max(2.0 * (timings.decoded + timings.inferred))
}

/// How fast the jobs of this process end while there is a backlog, measured from replies. Only an unbroken run of jobs
/// that had to queue tells it: without a backlog, jobs end as fast as they come, and the workers may be far faster.
#[derive(Debug, Default)]
struct ReplyPace {
    /// When the last jobs ended, oldest first; all of them had queued.
    ends: VecDeque<Instant>,
    measured: Option<(Duration, Instant)>,
}

impl ReplyPace {
    const MAX_ENDS: usize = 256;
    const MIN_ENDS: usize = 8;
    /// A measurement is of the last seconds, and is forgotten after a minute without another.
    const WINDOW: Duration = Duration::from_secs(5);
    const MEMORY: Duration = Duration::from_mins(1);

    fn ended(&mut self, now: Instant, has_queued: bool) {
        if !has_queued {
            self.ends.clear();
            return;
        }
        self.ends.push_back(now);
        let is_old = |at: &Instant| now.saturating_duration_since(*at) > Self::WINDOW;
        while self.ends.len() > Self::MAX_ENDS
            || self.ends.len() > Self::MIN_ENDS && self.ends.front().is_some_and(is_old)
        {
            self.ends.pop_front();
        }
        if let Some(first) = self.ends.front()
            && self.ends.len() >= Self::MIN_ENDS
        {
            let span = now.saturating_duration_since(*first);
            self.measured = Some((span.div_f64((self.ends.len() - 1) as f64), now));
        }
    }

    fn time_per_job(&self, now: Instant) -> Option<Duration> {
        let (time, at) = self.measured?;
        (now.saturating_duration_since(at) <= Self::MEMORY).then_some(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn estimate(jobs_ahead: u64, time_per_job_ms: u32) -> Estimate {
        Estimate { jobs_ahead, time_per_job: Some(MS * time_per_job_ms) }
    }

    #[test]
    fn caller_is_refused_when_the_work_ahead_takes_longer_than_it_waits() {
        let seconds = Duration::from_secs;
        assert_eq!(decide(&estimate(2_500, 10), seconds(30)), Decision::Admit, "answered after 25 of 30 seconds");
        assert_eq!(decide(&estimate(2_900, 10), seconds(30)), Decision::Refuse { expected_wait: seconds(29) });
        assert_eq!(decide(&estimate(150, 10), seconds(2)), Decision::Admit);
        assert_eq!(decide(&estimate(200, 10), seconds(2)), Decision::Refuse { expected_wait: seconds(2) });
        assert_eq!(
            decide(&estimate(u64::MAX, u32::MAX), seconds(600)),
            Decision::Refuse { expected_wait: Duration::MAX }
        );
    }

    #[test]
    fn idle_service_and_unknown_wait_admit_everybody() {
        assert_eq!(decide(&estimate(0, 5_000), MS), Decision::Admit);
        let unknown = Estimate { jobs_ahead: u64::MAX, time_per_job: None };
        assert_eq!(decide(&unknown, MS), Decision::Admit);
    }

    #[test]
    fn retry_after_is_the_expected_wait_within_a_minute() {
        let at = |millis: u32, jitter| retry_after_seconds(MS * millis, jitter);
        assert_eq!([at(0, 0.0), at(1_000, 0.0), at(1_001, 0.0), at(12_000, 0.0)], [1, 1, 2, 12]);
        assert_eq!([at(12_000, 1.0), at(59_000, 1.0)], [15, 60]);
        assert_eq!(retry_after_seconds(Duration::MAX, 1.0), 60);
    }

    #[test]
    fn depth_is_the_last_reading_and_what_was_sent_and_ended_since() {
        let mut ledger = Ledger::default();
        ledger.enter(true);
        assert_eq!((ledger.depth(), ledger.outstanding, ledger.waiting), (1, 1, 1));
        let (sent, ended) = ledger.begin_look(MS).expect("never read");
        ledger.enter(false);
        ledger.read(Reading { at: Instant::now(), jobs: 40, visible: 30, sent, ended });
        assert_eq!((ledger.depth(), ledger.outstanding, ledger.visible()), (41, 2, 30));
        (0..50).for_each(|_| ledger.end());
        assert_eq!((ledger.depth(), ledger.outstanding), (0, 0));
    }

    #[test]
    fn jobs_that_ended_unseen_are_forgotten_with_the_next_reading() {
        let mut ledger = Ledger::default();
        (0..10).for_each(|_| ledger.enter(true));
        ledger.read(Reading { at: Instant::now(), jobs: 3, visible: 0, sent: 10, ended: 0 });
        assert_eq!(ledger.outstanding, 3);
        assert!(ledger.begin_look(Duration::ZERO).is_some());
        assert!(ledger.begin_look(Duration::from_secs(60)).is_none(), "looked at a moment ago");
    }

    #[test]
    fn pace_is_measured_over_jobs_that_queued_only() {
        let start = Instant::now();
        let mut pace = ReplyPace::default();
        (0..100).for_each(|end| pace.ended(start + MS * 500 * end, false));
        assert_eq!(pace.time_per_job(start), None, "without a backlog nothing is known");
        (0..1_000).for_each(|end| pace.ended(start + MS * 20 * end, true));
        let end = start + MS * 20_000;
        assert_eq!(pace.time_per_job(end), Some(MS * 20));
        pace.ended(end, false);
        assert_eq!(pace.time_per_job(end), Some(MS * 20), "what was measured is kept");
        assert_eq!(pace.time_per_job(end + ReplyPace::MEMORY), None, "but not for long");
        (0..20).for_each(|second| pace.ended(end + MS * 3_000 * second, true));
        assert_eq!(pace.time_per_job(end + MS * 60_000), Some(MS * 3_000), "slow jobs are measured too");
    }

    #[test]
    fn a_job_has_queued_when_it_waited_longer_than_it_took() {
        let timings = |queued, decoded, inferred| TimingsMs { queued, decoded, inferred, ..TimingsMs::default() };
        assert!(has_queued(&timings(500.0, 5.0, 10.0)));
        assert!(!has_queued(&timings(40.0, 1.0, 2.0)));
        assert!(!has_queued(&timings(500.0, 300.0, 10.0)));
    }
}
