//! Admission: refuses a request at once when its answer would come too late (decision 18).
//!
//! When the queue is longer than its callers wait, every answer comes late: workers classify images for callers that
//! have left, and no caller is served. A request that waits for its answer is therefore refused when the work in front
//! of it takes longer than the caller waits. The answer is 503 with a `Retry-After` that says when the work is done.
//!
//! The decision is pure ([`estimate`]). It needs two estimates:
//!
//! - the jobs ahead ([`ledger`]): the jobs that this process sent and that have not ended, counted at once, and the
//!   depth of the queue, which is read while requests come ([`Admission::run`]);
//! - the time per job ([`capacity`]): `up` knows the service time and the number of its own workers. When the workers
//!   belong to another process, the pace of the replies shows it.
//!
//! While no worker is ready, or none was measured yet, every caller is admitted: otherwise a service that scales from
//! zero would never start. `/v1/jobs` does not wait for an answer; only the depth of the queue limits it.

mod capacity;
mod estimate;
mod ledger;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::HttpBody as _;
use axum::extract::Request;
use axum::http::header;
use rand::Rng as _;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::capacity::Capacity;
pub use self::capacity::Fleet;
use self::estimate::{Decision, Estimate};
use self::ledger::Ledger;
use super::error::Problem;
use super::http::drain_body;
use super::metrics::METRICS;
use crate::protocol::TimingsMs;
use crate::scaling_policy::StepPolicy;
use crate::transport::Transport;

/// A reading that is older than this many intervals is not used.
const FRESH_INTERVALS: u32 = 4;
const READING_TIMEOUT: Duration = Duration::from_secs(2);
/// One connection in this many is not given to callers that wait, so that one is left to refuse requests on.
const RESERVED_SHARE: usize = 64;
/// `Retry-After` of a full queue while the time per job is unknown.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(10);
/// A full queue is worth another try once one in this many of its jobs is done.
const FULL_RETRY_SHARE: u64 = 100;
/// How much of the body of a refused request is read, and by how many tasks at a time.
const DRAIN_BYTES: u64 = 32 << 20;
const MAX_DRAINS: usize = 256;

/// How much may be admitted.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdmissionLimits {
    /// The largest number of jobs in the queue, visible or in flight.
    pub(super) max_queue_depth: u64,
    pub(super) max_connections: usize,
}

/// Admits or refuses requests.
pub(super) struct Admission {
    transport: Arc<dyn Transport>,
    max_queue_depth: u64,
    max_waiting: u64,
    reading_interval: Duration,
    capacity: Capacity,
    ledger: Mutex<Ledger>,
    /// Held while the depth is read, so that there is one reading at a time.
    reading: tokio::sync::Mutex<()>,
    reading_wanted: Notify,
    drains: TaskTracker,
    drain_permits: Arc<Semaphore>,
}

/// Why a request was refused; the label of `imgcls_web_shed_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    ExpectedWait { expected_wait: Duration },
    QueueDepth { depth: u64 },
    Connections,
}

/// The permit of one admitted job. Its caller counts as waiting until the permit is dropped.
pub(super) struct JobPermit {
    admission: Arc<Admission>,
    waits: bool,
}

impl Admission {
    /// `fleet` is `None` when the workers belong to another process.
    pub(super) fn new(transport: Arc<dyn Transport>, limits: AdmissionLimits, fleet: Option<Fleet>) -> Self {
        let reading_interval = transport.depth_interval();
        let max_waiting = limits.max_connections - limits.max_connections / RESERVED_SHARE;
        Admission {
            transport,
            max_queue_depth: limits.max_queue_depth,
            max_waiting: max_waiting as u64,
            reading_interval,
            capacity: fleet.map_or_else(|| Capacity::Replies(Mutex::default()), Capacity::Fleet),
            ledger: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            reading_wanted: Notify::new(),
            drains: TaskTracker::new(),
            drain_permits: Arc::new(Semaphore::new(MAX_DRAINS)),
        }
    }

    /// Decides on a request before its body is read. `max_wait` is zero for a caller that does not wait.
    ///
    /// # Errors
    /// 503 with `Retry-After`. A task reads the rest of the body meanwhile, so that the client reads the answer.
    pub(super) async fn check_request(&self, request: Request, max_wait: Duration) -> Result<Request, Problem> {
        self.read_depth_if_full().await;
        let checked = self.check(&self.ledger(), max_wait);
        let Err(reason) = checked else { return Ok(request) };
        self.drain(request);
        Err(self.refuse(reason))
    }

    /// Counts a job whose body has arrived, or refuses it: other jobs may have been admitted while the body was read.
    ///
    /// # Errors
    /// As [`Admission::check_request`]; nothing was stored yet.
    pub(super) fn admit(self: &Arc<Self>, max_wait: Duration) -> Result<JobPermit, Problem> {
        let mut ledger = self.ledger();
        match self.check(&ledger, max_wait) {
            Ok(()) => {
                let waits = !max_wait.is_zero();
                ledger.record_job(waits);
                Ok(JobPermit { admission: Arc::clone(self), waits })
            }
            Err(reason) => {
                drop(ledger);
                Err(self.refuse(reason))
            }
        }
    }

    /// Counts the end of a job that this process sent. `timings` are those of its result, if the reply carried them.
    pub(super) fn record_end(&self, timings: Option<&TimingsMs>) {
        self.ledger().record_end();
        if let (Capacity::Replies(pace), Some(timings)) = (&self.capacity, timings) {
            lock(pace).record_end(Instant::now(), capacity::has_queued(timings));
        }
    }

    /// Returns whether [`Admission::record_end`] uses the timings of a result.
    pub(super) fn uses_timings(&self) -> bool {
        matches!(self.capacity, Capacity::Replies(_))
    }

    /// Returns when a client whose job waits should ask for the result, in whole seconds: when the work ahead is done, as
    /// far as that is known.
    pub(super) fn retry_after_seconds(&self) -> u32 {
        let wait = self.estimate(&self.ledger()).wait().unwrap_or_default();
        estimate::retry_after_seconds(wait, 0.0)
    }

    /// Sets the gauge of the expected wait.
    pub(super) fn update_gauge(&self) {
        let wait = self.estimate(&self.ledger()).wait().unwrap_or_default();
        METRICS.expected_wait.set(wait.as_secs_f64());
    }

    /// Reads the depth of the queue while requests come, until `stop`. Then waits for the tasks that it has spawned.
    pub(super) async fn run(&self, stop: CancellationToken) {
        let reading = async {
            loop {
                self.read_depth().await;
                tokio::time::sleep(self.reading_interval).await;
                self.reading_wanted.notified().await;
            }
        };
        let _: Option<()> = stop.run_until_cancelled(reading).await;
        self.drains.close();
        self.drains.wait().await;
    }

    fn check(&self, ledger: &Ledger, max_wait: Duration) -> Result<(), Reason> {
        if ledger.is_older_than(self.reading_interval) {
            self.reading_wanted.notify_one();
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
        match estimate::decide(&self.estimate(ledger), max_wait) {
            Decision::Admit => Ok(()),
            Decision::Refuse { expected_wait } => Err(Reason::ExpectedWait { expected_wait }),
        }
    }

    fn estimate(&self, ledger: &Ledger) -> Estimate {
        let is_fresh = !ledger.is_older_than(self.reading_interval * FRESH_INTERVALS);
        match &self.capacity {
            Capacity::Fleet(fleet) => Estimate {
                jobs_ahead: if is_fresh { ledger.depth() } else { ledger.outstanding },
                time_per_job: fleet.time_per_job(),
            },
            // Replies show the pace of this process's own jobs, so only its own jobs are counted. When several web
            // tiers share the workers, each sees its part of both.
            Capacity::Replies(pace) => Estimate {
                jobs_ahead: ledger.outstanding,
                // Scaling adds workers by the number of visible messages. Refusing requests before there are enough of
                // them would keep the fleet too small.
                time_per_job: lock(pace)
                    .time_per_job(Instant::now())
                    .filter(|_| is_fresh && ledger.visible() > StepPolicy::LEGACY.scale_out_above),
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
                    "the work ahead takes about {seconds:.1} s, longer than this request waits; nothing was stored: \
                     try again later, wait longer (POST /v1/classify?wait=), or use POST /v1/jobs, which does not wait"
                );
                (detail, expected_wait)
            }
            Reason::QueueDepth { depth } => {
                let excess = depth.saturating_sub(self.max_queue_depth) + self.max_queue_depth / FULL_RETRY_SHARE;
                let detail = format!(
                    "the queue has {depth} images and takes at most {} (--max-queue-depth); nothing was stored: try \
                     again later",
                    self.max_queue_depth
                );
                (detail, time_per_job.map_or(FULL_RETRY_AFTER, |time| estimate::times(time, excess)))
            }
            Reason::Connections => {
                let detail = "nearly all connections wait for an answer (--max-connections); nothing was stored: try \
                              again later, or use POST /v1/jobs, which does not wait";
                (detail.to_owned(), Duration::from_secs(1))
            }
        };
        let mut problem = Problem::full(detail);
        problem.closes_connection = reason == Reason::Connections;
        problem.retry_after_seconds = Some(estimate::retry_after_seconds(wait, rand::rng().random_range(0.0..=1.0)));
        problem
    }

    /// Reads the depth if the queue seems full: other processes may have worked on it since the last reading.
    async fn read_depth_if_full(&self) {
        let is_full = self.ledger().depth() >= self.max_queue_depth;
        if is_full {
            self.read_depth().await;
        }
    }

    /// Reads the depth, unless that was tried within the interval.
    async fn read_depth(&self) {
        let _one_at_a_time = self.reading.lock().await;
        let Some(counts) = self.ledger().begin_reading(self.reading_interval) else { return };
        match tokio::time::timeout(READING_TIMEOUT, self.transport.depth()).await {
            Ok(Ok(depth)) => {
                let jobs = depth.visible + depth.in_flight + depth.delayed;
                self.ledger().end_reading(jobs, depth.visible, counts);
            }
            Ok(Err(error)) => tracing::debug!(%error, "cannot read the depth of the queue; callers are admitted"),
            Err(_) => tracing::debug!("reading the depth of the queue timed out; callers are admitted"),
        }
    }

    /// Spawns a task that reads the rest of a refused request while the answer is sent.
    fn drain(&self, request: Request) {
        let (parts, mut body) = request.into_parts();
        // A client that asked before sending (`Expect: 100-continue`) sends nothing after a refusal.
        if parts.headers.contains_key(header::EXPECT) || body.is_end_stream() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.drain_permits).try_acquire_owned() else { return };
        self.drains.spawn(async move {
            drain_body(&mut body, DRAIN_BYTES).await;
            drop(permit);
        });
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }
}

/// No code panics while it holds one of these locks, so a poisoned one still guards a consistent value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl JobPermit {
    /// Removes the job from the count of outstanding jobs: it was not sent, or no reply will report its end.
    pub(super) fn forget_job(&self) {
        self.admission.record_end(None);
    }
}

impl Drop for JobPermit {
    fn drop(&mut self) {
        if self.waits {
            self.admission.ledger().stop_waiting();
        }
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
