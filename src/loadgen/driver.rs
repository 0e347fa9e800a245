//! The load itself: lanes that take starts, send, and record.
//!
//! Closed and open loop are one mechanism. A lane is a connection with one request in flight at most; a start becomes
//! due, some lane takes it, and latency counts from the moment that was *intended* for it. In a closed loop all starts
//! are due at once and are intended for the moment a lane takes them. In an open loop a pacer makes each due at its
//! time: where no lane is free it stays due, and the time until one is counts as latency, since a stall of the target
//! must not slow down the load that measures it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Target};
use super::dialect::{Answer, Prepared};
use super::expect::Expectations;
use super::failure::Failure;
use super::measurement::Measurement;
use crate::workload::Offsets;

/// From the building of the lanes to the first intended start of an open loop.
const LEAD: Duration = Duration::from_millis(20);
/// How long answers are waited for once the load was stopped.
const GRACE: Duration = Duration::from_secs(2);
/// A lane that could not connect waits this long: a server that restarts must not turn the rest of the run into failures
/// within a blink.
const PAUSE_AFTER_REFUSAL: Duration = Duration::from_millis(100);
/// The pacer looks this often whether the load was stopped.
const PACER_NAP: Duration = Duration::from_millis(50);

/// What every lane needs.
pub struct Load {
    pub pictures: Vec<(String, Prepared)>,
    pub expectations: Expectations,
    pub observer: Box<dyn Observer>,
    measurement: Mutex<Measurement>,
}

/// Is told of every end; the default run prints nothing per image.
pub trait Observer: Send + Sync {
    fn answered(&self, name: &str, answer: &Answer<'_>);
    fn failed(&self, name: &str, failure: &Failure);
}

/// When requests start.
#[derive(Debug, Clone)]
pub enum Pace {
    Closed,
    Open(Box<Offsets>),
}

/// What came of a run.
pub struct Driven {
    pub measurement: Measurement,
    pub wall: Duration,
    /// Stopped before every request had been sent and answered.
    pub interrupted: bool,
}

impl Load {
    pub fn new(
        pictures: Vec<(String, Prepared)>,
        expectations: Expectations,
        observer: Box<dyn Observer>,
    ) -> Arc<Self> {
        Arc::new(Load { pictures, expectations, observer, measurement: Mutex::default() })
    }

    /// Held for the moment of a record, never across a wait.
    pub fn measurement(&self) -> MutexGuard<'_, Measurement> {
        self.measurement.lock().expect("nothing panics while it is held; this is a bug")
    }
}

/// Sends `num_request` pictures in turn over at most `concurrency` connections, of which `first` is one.
pub async fn drive(
    load: &Arc<Load>,
    target: &Arc<Target>,
    first: Client,
    (num_request, concurrency): (u64, usize),
    pace: Pace,
    shutdown: &CancellationToken,
) -> Driven {
    let lanes = concurrency.min(usize::try_from(num_request).unwrap_or(usize::MAX));
    let open = matches!(pace, Pace::Open(_));
    let began = Instant::now() + if open { LEAD } else { Duration::ZERO };
    let (starts, pacer) = Starts::new(num_request, lanes, pace, began);

    let mut running = JoinSet::new();
    let clients = std::iter::once(first).chain((1..lanes).map(|number| Client::new(target.clone(), number)));
    for client in clients {
        running.spawn(lane(load.clone(), starts.clone(), client));
    }
    let all_done = tokio::select! {
        () = joined(&mut running) => true,
        () = shutdown.cancelled() => {
            starts.stop();
            tokio::time::timeout(GRACE, joined(&mut running)).await.is_ok()
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
    Driven {
        wall: measurement.last_end.map_or(Duration::ZERO, |end| end.saturating_duration_since(began)),
        interrupted: ended < num_request,
        measurement,
    }
}

async fn joined(lanes: &mut JoinSet<()>) {
    while let Some(lane) = lanes.join_next().await {
        if let Err(error) = lane
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

async fn lane(load: Arc<Load>, starts: Arc<Starts>, mut client: Client) {
    while let Some(start) = starts.next(&mut client).await {
        load.measurement().started += 1;
        let picture = (start.index % load.pictures.len() as u64) as usize;
        let (name, prepared) = &load.pictures[picture];
        let refused = match client.classify(prepared).await {
            Ok(answer) => {
                let latency = start.intended.elapsed();
                let verdict = load.expectations.judge(picture, &answer.predictions);
                load.observer.answered(name, &answer);
                let mut measurement = load.measurement();
                measurement.record_answer(latency, answer.timings, verdict, picture);
                measurement.last_end = Some(Instant::now());
                start.record_lag(&mut measurement);
                false
            }
            Err(failure) => {
                load.observer.failed(name, &failure);
                let refused = failure.reason.is_connect();
                let mut measurement = load.measurement();
                measurement.record_failure(failure);
                measurement.last_end = Some(Instant::now());
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

/// The starts of a run, in order, to whichever lane asks next.
struct Starts {
    /// A permit for every start that has come due, and at the end one for every lane, to find that there are no more.
    due: Semaphore,
    lanes: usize,
    open: bool,
    stopped: AtomicBool,
    /// The pacer walks the same seeded arrivals, so that nothing but a count passes between it and the lanes.
    intended: Mutex<Box<dyn Iterator<Item = (u64, Instant)> + Send>>,
}

struct Start {
    index: u64,
    intended: Instant,
    /// Of an open loop: how late it left.
    lag: Option<Departure>,
}

/// Whether a lane was waiting for this start, and how far behind it was then; none where all lanes were busy.
struct Departure(Option<Duration>);

impl Starts {
    fn new(
        num_request: u64,
        lanes: usize,
        pace: Pace,
        began: Instant,
    ) -> (Arc<Self>, Option<tokio::task::JoinHandle<()>>) {
        let make = |intended, due, open| {
            let intended = Mutex::new(intended);
            Arc::new(Starts { due: Semaphore::new(due), lanes, open, stopped: AtomicBool::new(false), intended })
        };
        match pace {
            Pace::Closed => {
                let intended = (0..num_request).map(|index| (index, Instant::now()));
                let due = usize::try_from(num_request).unwrap_or(usize::MAX).saturating_add(lanes);
                (make(Box::new(intended), due.min(Semaphore::MAX_PERMITS - lanes), false), None)
            }
            Pace::Open(offsets) => {
                // An arrival that no clock reaches is the end of the load.
                let intended = (0..num_request).zip(offsets.map_while(move |offset| began.checked_add(offset)));
                let starts = make(Box::new(intended.clone()), 0, true);
                let pacer = starts.clone();
                (starts, Some(tokio::task::spawn_blocking(move || pacer.pace(intended))))
            }
        }
    }

    /// The next start once it is due; none after the last.
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
        let lag = self.open.then(|| Departure(waited.then(|| intended.elapsed())));
        Some(Start { index, intended, lag })
    }

    /// No start is given out any more.
    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        *self.intended() = Box::new(std::iter::empty());
        self.due.add_permits(self.lanes);
    }

    /// Makes each start due at its time. On a thread of its own: the runtime's timer knows whole milliseconds only,
    /// as long as a whole answer may take.
    fn pace(&self, intended: impl Iterator<Item = (u64, Instant)>) {
        for (_index, due) in intended {
            while let Some(early) = due.checked_duration_since(Instant::now()).filter(|early| !early.is_zero()) {
                if self.stopped.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(early.min(PACER_NAP));
            }
            self.due.add_permits(1);
        }
        self.due.add_permits(self.lanes);
    }

    fn intended(&self) -> MutexGuard<'_, Box<dyn Iterator<Item = (u64, Instant)> + Send>> {
        self.intended.lock().expect("nothing panics while it is held; this is a bug")
    }
}

impl Start {
    fn record_lag(&self, measurement: &mut Measurement) {
        if let Some(Departure(behind)) = self.lag {
            measurement.lag.record(behind);
        }
    }
}
