//! Sends the load: a fixed number of senders take starts, send requests and record the results.
//!
//! Closed and open loop share one mechanism. A sender owns a connection and has at most one request in flight. When a
//! start becomes due, an idle sender takes it. Latency counts from the *intended* start. In a closed loop all starts
//! are due at once, and the intended start is the moment at which a sender takes it. In an open loop a pacer makes each
//! start due at its time. If no sender is idle, the start stays due, and the wait counts as latency: a stall of the
//! target must not slow down the load that measures it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Target};
use super::dialect::{Answer, Prepared};
use super::expect::{Expectations, Verdict};
use super::failure::Failure;
use super::measurement::Measurement;
use crate::workload::Offsets;

/// Delay from the creation of the senders to the first intended start of an open loop.
const START_DELAY: Duration = Duration::from_millis(20);
/// How long to wait for outstanding answers after the load was stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// Delay of a sender that could not connect, so that a restart of the server does not turn the rest of the run into
/// failures at once.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(100);
/// Maximum sleep of the pacer, so that it notices soon that the load was stopped.
const PACER_MAX_SLEEP: Duration = Duration::from_millis(50);

/// Shared by all senders.
pub(super) struct Load {
    pub images: Vec<(String, Prepared)>,
    pub expectations: Expectations,
    /// Each is notified of every answer and failure. The default run has none.
    pub observers: Vec<Arc<dyn Observer>>,
    measurement: Mutex<Measurement>,
}

/// Notified of every answer and failure.
pub(super) trait Observer: Send + Sync {
    fn answered(&self, request: &Request<'_>, answer: &Answer<'_>, verdict: &Verdict);
    fn failed(&self, request: &Request<'_>, failure: &Failure);
}

/// A request that has ended.
pub(super) struct Request<'a> {
    /// The name of the image.
    pub name: &'a str,
    /// From the intended start.
    pub latency: Duration,
    /// The expected answer as it is shown; `None` if there is none.
    pub expected: Option<String>,
}

/// When requests start.
#[derive(Debug, Clone)]
pub(super) enum Pace {
    Closed,
    Open(Box<Offsets>),
}

/// How much is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// The most requests.
    pub num_request: u64,
    /// The most requests in flight.
    pub concurrency: usize,
    /// No request of a closed loop starts later than this. The arrivals of an open loop end by themselves.
    pub duration: Option<Duration>,
}

/// The result of a run.
pub(super) struct RunResult {
    pub measurement: Measurement,
    pub wall: Duration,
    /// The number of requests that the run was to send; those that it sent if its duration ended it.
    pub planned: u64,
    /// True if the run was stopped before every request was sent and answered.
    pub interrupted: bool,
}

impl Load {
    pub(super) fn new(
        images: Vec<(String, Prepared)>,
        expectations: Expectations,
        observers: Vec<Arc<dyn Observer>>,
    ) -> Arc<Self> {
        Arc::new(Load { images, expectations, observers, measurement: Mutex::default() })
    }

    fn notify(&self, image: usize, name: &str, latency: Duration, of: impl Fn(&dyn Observer, &Request<'_>)) {
        if self.observers.is_empty() {
            return;
        }
        let request = Request { name, latency, expected: self.expectations.shown(image) };
        self.observers.iter().for_each(|observer| of(observer.as_ref(), &request));
    }

    /// Locks the measurement. Callers hold the lock for one record and never across an await.
    pub(super) fn measurement(&self) -> MutexGuard<'_, Measurement> {
        self.measurement.lock().expect("nothing panics while it is held; this is a bug")
    }
}

/// Sends images in turn over at most `size.concurrency` connections, of which `first` is one.
pub(super) async fn drive(
    load: &Arc<Load>,
    target: &Arc<Target>,
    first: Client,
    size: Size,
    pace: Pace,
    shutdown: &CancellationToken,
) -> RunResult {
    let Size { num_request, concurrency, duration } = size;
    let senders = concurrency.min(usize::try_from(num_request).unwrap_or(usize::MAX));
    let open = matches!(pace, Pace::Open(_));
    let began = Instant::now() + if open { START_DELAY } else { Duration::ZERO };
    load.measurement().timeline.begin(began);
    let (starts, pacer) = Starts::new(num_request, senders, pace, began);
    // An open loop would lose starts that are due and wait for a connection.
    let time_up = async {
        match duration.filter(|_| !open) {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };

    let mut running = JoinSet::new();
    let clients = std::iter::once(first).chain((1..senders).map(|number| Client::new(target.clone(), number)));
    for client in clients {
        running.spawn(sender(load.clone(), starts.clone(), client));
    }
    let mut is_time_up = false;
    let all_answered = async {
        tokio::select! {
            () = joined(&mut running) => return,
            () = time_up => {}
        }
        is_time_up = true;
        starts.stop();
        joined(&mut running).await;
    };
    let all_done = tokio::select! {
        () = all_answered => true,
        () = shutdown.cancelled() => {
            starts.stop();
            tokio::time::timeout(STOP_TIMEOUT, joined(&mut running)).await.is_ok()
        }
    };
    if !all_done {
        running.shutdown().await;
    }
    if let Some(pacer) = pacer {
        pacer.await.expect("the pacer only sleeps and counts; this is a bug");
    }

    let measurement = load.measurement().clone();
    let ended = measurement.ok() + measurement.failures();
    let planned = if is_time_up { measurement.started } else { num_request };
    RunResult {
        wall: measurement.last_end.map_or(Duration::ZERO, |end| end.saturating_duration_since(began)),
        interrupted: ended < planned || is_time_up && shutdown.is_cancelled(),
        planned,
        measurement,
    }
}

async fn joined(senders: &mut JoinSet<()>) {
    while let Some(sender) = senders.join_next().await {
        if let Err(error) = sender
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

async fn sender(load: Arc<Load>, starts: Arc<Starts>, mut client: Client) {
    while let Some(start) = starts.next(&mut client).await {
        load.measurement().started += 1;
        let image = (start.index % load.images.len() as u64) as usize;
        let (name, prepared) = &load.images[image];
        let refused = match client.classify(prepared).await {
            Ok(answer) => {
                let latency = start.intended.elapsed();
                let verdict = load.expectations.judge(image, &answer.predictions);
                load.notify(image, name, latency, |observer, request| observer.answered(request, &answer, &verdict));
                let mut measurement = load.measurement();
                measurement.record_answer(latency, answer.timings, verdict, image);
                start.record_lag(&mut measurement);
                false
            }
            Err(failure) => {
                let latency = start.intended.elapsed();
                load.notify(image, name, latency, |observer, request| observer.failed(request, &failure));
                let refused = failure.reason.is_connect();
                let mut measurement = load.measurement();
                measurement.record_failure(failure);
                start.record_lag(&mut measurement);
                refused
            }
        };
        if refused {
            tokio::time::sleep(PAUSE_AFTER_REFUSAL).await;
        }
    }
    load.measurement().add_counts(client.counts);
}

/// Hands out the starts of a run, in order, to the next idle sender.
struct Starts {
    /// One permit for every start that is due, and at the end one for every sender, so that each finds that no start is
    /// left.
    due: Semaphore,
    senders: usize,
    open: bool,
    stopped: AtomicBool,
    /// The pacer iterates over a copy of the same seeded arrivals, so only a count passes between it and the senders.
    intended: Mutex<Box<dyn Iterator<Item = (u64, Instant)> + Send>>,
}

struct Start {
    index: u64,
    intended: Instant,
    /// How late an open loop sent it; `None` in a closed loop.
    lag: Option<Lateness>,
}

/// How late a start was when an idle sender took it; `None` if all senders were busy when it became due.
struct Lateness(Option<Duration>);

impl Starts {
    fn new(
        num_request: u64,
        senders: usize,
        pace: Pace,
        began: Instant,
    ) -> (Arc<Self>, Option<tokio::task::JoinHandle<()>>) {
        let make = |intended, due, open| {
            let intended = Mutex::new(intended);
            Arc::new(Starts { due: Semaphore::new(due), senders, open, stopped: AtomicBool::new(false), intended })
        };
        match pace {
            Pace::Closed => {
                let intended = (0..num_request).map(|index| (index, Instant::now()));
                let due = usize::try_from(num_request).unwrap_or(usize::MAX).saturating_add(senders);
                (make(Box::new(intended), due.min(Semaphore::MAX_PERMITS - senders), false), None)
            }
            Pace::Open(offsets) => {
                // The load ends at an arrival that is too far away for the clock.
                let intended = (0..num_request).zip(offsets.map_while(move |offset| began.checked_add(offset)));
                let starts = make(Box::new(intended.clone()), 0, true);
                let pacer = starts.clone();
                (starts, Some(tokio::task::spawn_blocking(move || pacer.pace(intended))))
            }
        }
    }

    /// Waits until the next start is due. Returns `None` after the last.
    async fn next(&self, client: &mut Client) -> Option<Start> {
        let waited = match self.due.try_acquire() {
            Ok(permit) => {
                permit.forget();
                false
            }
            Err(_none_due) => {
                let permit = client.idle_until(self.due.acquire()).await;
                permit.expect("it is never closed; this is a bug").forget();
                true
            }
        };
        let (index, intended) = self.intended().next()?;
        let lag = self.open.then(|| Lateness(waited.then(|| intended.elapsed())));
        Some(Start { index, intended, lag })
    }

    /// Ends the load: no more starts are handed out. It may be called again.
    fn stop(&self) {
        if self.stopped.swap(true, Ordering::Relaxed) {
            return;
        }
        *self.intended() = Box::new(std::iter::empty());
        self.due.add_permits(self.senders);
    }

    /// Makes each start due at its time. It runs on its own thread, because the timer of the runtime has a resolution
    /// of a millisecond, which can be as long as a whole answer takes.
    fn pace(&self, intended: impl Iterator<Item = (u64, Instant)>) {
        for (_index, due) in intended {
            while let Some(early) = due.checked_duration_since(Instant::now()).filter(|early| !early.is_zero()) {
                if self.stopped.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(early.min(PACER_MAX_SLEEP));
            }
            self.due.add_permits(1);
        }
        self.due.add_permits(self.senders);
    }

    fn intended(&self) -> MutexGuard<'_, Box<dyn Iterator<Item = (u64, Instant)> + Send>> {
        self.intended.lock().expect("nothing panics while it is held; this is a bug")
    }
}

impl Start {
    fn record_lag(&self, measurement: &mut Measurement) {
        if let Some(Lateness(behind)) = self.lag {
            measurement.lag.record(behind);
        }
    }
}
