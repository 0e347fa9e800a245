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
//! The same estimates tell a waiting job its position and when it is expected to end ([`progress`]), and the state of the
//! service ([`Admission::service_state`], with the last answers of [`recent`]).
//!
//! While no worker is ready, or none was measured yet, every caller is admitted: otherwise a service that scales from
//! zero would never start. `/v1/jobs` does not wait for an answer; only the depth of the queue limits it.

mod capacity;
mod estimate;
mod ledger;
mod progress;
mod recent;

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
use uuid::Uuid;

use self::capacity::Capacity;
pub use self::capacity::Fleet;
use self::estimate::{Decision, Estimate};
use self::ledger::Ledger;
pub(super) use self::progress::Progress;
#[cfg(test)]
pub(super) use self::progress::Stage;
use self::progress::{Presence, Situation};
use self::recent::RecentAnswers;
pub(super) use self::recent::RecentSummary;
use super::error::Problem;
use super::http::drain_body;
use super::metrics::METRICS;
use crate::clock;
use crate::protocol::{self, TimingsMs};
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
/// The shortest absence of workers that counts as one, where only readings of the queue show it.
const SHORTEST_ABSENCE: Duration = Duration::from_secs(1);
/// How much of the body of a refused request is read, and by how many tasks at a time.
const DRAIN_BYTES: u64 = 32 << 20;
const MAX_DRAINS: usize = 256;

/// The machine of the worker that sent a reply. Workers are named by their host and process.
fn machine_of(reply: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Signed {
        worker: String,
    }
    let Signed { worker } = serde_json::from_str(reply).ok()?;
    worker.rsplit_once('-').map(|(host, _process)| host.to_owned())
}

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
    presence: Mutex<Presence>,
    recent: Mutex<RecentAnswers>,
    /// The machines of workers are counted by their answers.
    counts_machines: bool,
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

/// The queue, the workers and the last answers, as this process sees them.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServiceState {
    /// Jobs that no worker holds.
    pub(super) waiting: u64,
    /// Jobs that workers hold.
    pub(super) in_flight: u64,
    /// The ready workers; `None` when they belong to another process.
    pub(super) workers: Option<usize>,
    /// How long a new job is expected to wait for a worker, if that is known.
    pub(super) expected_wait: Option<Duration>,
    pub(super) recent: RecentSummary,
}

/// The permit of one admitted job. Its caller counts as waiting until the permit is dropped.
pub(super) struct JobPermit {
    admission: Arc<Admission>,
    waits: bool,
}

impl Admission {
    /// `fleet` is `None` when the workers belong to another process.
    pub(super) fn new(
        transport: Arc<dyn Transport>,
        limits: AdmissionLimits,
        fleet: Option<Fleet>,
        counts_machines: bool,
    ) -> Self {
        let reading_interval = transport.depth_interval();
        let max_waiting = limits.max_connections - limits.max_connections / RESERVED_SHARE;
        let mut presence = Presence::default();
        if fleet.as_ref().is_some_and(|fleet| fleet.is_awaited) {
            // The first worker starts now, whether a job waits or not.
            presence.observe(false, Instant::now(), Duration::ZERO);
        }
        Admission {
            transport,
            max_queue_depth: limits.max_queue_depth,
            max_waiting: max_waiting as u64,
            reading_interval,
            capacity: fleet.map_or_else(|| Capacity::Replies(Mutex::default()), Capacity::Fleet),
            ledger: Mutex::default(),
            presence: Mutex::new(presence),
            recent: Mutex::default(),
            counts_machines,
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
                ledger.record_job(waits, clock::now());
                drop(ledger);
                self.observe_fleet();
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
            let mut pace = lock(pace);
            pace.record_end(Instant::now(), capacity::has_queued(timings));
            pace.record_timings(timings);
        }
    }

    /// Records the reply to a job that was submitted `took` ago: a worker runs. `text` is that of the reply.
    pub(super) fn record_answer(&self, took: Duration, text: &str) {
        let now = Instant::now();
        let machine = self.counts_machines.then(|| machine_of(text)).flatten();
        lock(&self.recent).record(now, took, machine);
        lock(&self.presence).observe(true, now, self.shortest_start());
    }

    /// Returns how far a job is that has no result yet. The depth of the queue is read in the background for the next call.
    pub(super) fn progress(&self, id: Uuid) -> Progress {
        let submitted_at = protocol::submitted_at(id).unwrap_or_else(clock::now);
        let position = {
            let ledger = self.ledger();
            if ledger.is_older_than(self.reading_interval) {
                self.reading_wanted.notify_one();
            }
            ledger.position(submitted_at)
        };
        self.observe_fleet();
        let now = Instant::now();
        let (time_per_job, service_time) = self.capacity.measured(now);
        let (absent_for, start_time) = {
            let presence = lock(&self.presence);
            (presence.absent_for(now).filter(|absent| *absent >= self.shortest_start()), presence.start_time())
        };
        Progress::of(Situation { position, time_per_job, service_time, absent_for, start_time })
    }

    /// Returns the state of the queue and of the workers, after reading the depth of the queue.
    pub(super) async fn service_state(&self) -> ServiceState {
        self.read_depth().await;
        let now = Instant::now();
        let recent = lock(&self.recent).summary(now);
        let (waiting, in_flight) = {
            let ledger = self.ledger();
            (ledger.depth().saturating_sub(ledger.in_flight()), ledger.in_flight())
        };
        let workers = match &self.capacity {
            Capacity::Fleet(fleet) => Some(*fleet.ready.borrow()),
            Capacity::Replies(_) => None,
        };
        let expected_wait = self.estimate(&self.ledger()).wait();
        ServiceState { waiting, in_flight, workers, expected_wait, recent }
    }

    /// How long workers have to be absent until that means something. The workers of `up` are known at once.
    fn shortest_start(&self) -> Duration {
        match &self.capacity {
            Capacity::Fleet(_) => Duration::ZERO,
            Capacity::Replies(_) => SHORTEST_ABSENCE.max(self.reading_interval),
        }
    }

    /// Records whether a worker of `up` is ready while jobs wait.
    fn observe_fleet(&self) {
        let Some(has_worker) = self.capacity.has_worker() else { return };
        let has_jobs = self.ledger().depth() > 0;
        let mut presence = lock(&self.presence);
        if has_worker || has_jobs {
            presence.observe(has_worker, Instant::now(), Duration::ZERO);
        } else {
            presence.idle();
        }
    }

    /// Records what a reading of the queue says about workers of other processes: an idle worker takes a visible message at
    /// once.
    fn observe_reading(&self, visible: u64, in_flight: u64) {
        if self.capacity.has_worker().is_some() {
            return;
        }
        let mut presence = lock(&self.presence);
        match (visible, in_flight) {
            (0, 0) => presence.idle(),
            _ => presence.observe(in_flight > 0, Instant::now(), self.shortest_start()),
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
        let both = async { tokio::join!(reading, self.follow_fleet()) };
        let _: Option<((), ())> = stop.run_until_cancelled(both).await;
        self.drains.close();
        self.drains.wait().await;
    }

    /// Notices when a worker of `up` becomes ready, so that its start is measured whether a client asks or not.
    async fn follow_fleet(&self) {
        let Capacity::Fleet(fleet) = &self.capacity else { return };
        let mut ready = fleet.ready.clone();
        while ready.changed().await.is_ok() {
            self.observe_fleet();
        }
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
        match tokio::time::timeout(READING_TIMEOUT, self.transport.interactive_depth()).await {
            Ok(Ok(depth)) => {
                let jobs = depth.visible + depth.in_flight + depth.delayed;
                self.ledger().end_reading(jobs, depth.visible, counts);
                self.observe_reading(depth.visible, depth.in_flight);
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
