//! Measures how busy the sessions of a worker are and how long their work takes. From that follow the batches, how much
//! the worker takes ahead ([`super::batch_policy`]), and when it asks the queue for more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::watch;

use super::batch_policy::{BatchCosts, Batching, Facts, Plan, TunedVersion};
use crate::protocol::Worked;
use crate::transport::WorkerLoad;

/// How long it takes from the call of the transport until its message is here, if it has one: a timer that is late by up
/// to a millisecond, a transaction, and a thread that has to be woken while the sessions use the cores (decision 36).
const CALL_TIME: Duration = Duration::from_millis(2);
/// The weight of one measurement in a moving average is one divided by this, since images differ.
const SMOOTHING: u32 = 4;

/// The sessions of one worker.
pub(crate) struct SessionLoad {
    batching: Batching,
    sessions: usize,
    state: watch::Sender<State>,
    /// The measurements of each model, by its place in the list of models.
    costs: Mutex<HashMap<usize, Measured>>,
}

/// The measurements of one version of a model.
struct Measured {
    digest: String,
    costs: BatchCosts,
}

impl Measured {
    /// Begins with what `imgcls tune` measured of the version.
    fn new(version: &TunedVersion) -> Measured {
        Measured { digest: version.digest.clone(), costs: BatchCosts::new(&version.batches) }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Sessions that have no batch, of which one waits for an image and the others for their turn to wait.
    without_batch: usize,
    /// Sessions that wait for an image.
    waiting: usize,
    /// The batch that each thread began last.
    begun: HashMap<ThreadId, Begun>,
    /// How long an image takes a session, measured over the last batches. `None` until it was measured.
    service_time: Option<Duration>,
    /// How long an image takes from its message to the sessions.
    fetch_time: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Begun {
    model: usize,
    expected_end: Instant,
    /// The session began it without waiting for an image, so this worker had enough to do.
    at_once: bool,
    inferred: Duration,
}

impl SessionLoad {
    /// The load of `sessions` sessions that run these versions, in the order of the list of models.
    pub(crate) fn new(batching: Batching, sessions: usize, versions: &[Arc<TunedVersion>]) -> SessionLoad {
        let costs = versions.iter().map(|version| Measured::new(version)).enumerate().collect();
        let single = versions.first().and_then(|first| first.batches.iter().find(|time| time.size == 1));
        let service_time = single.and_then(|time| Duration::try_from_secs_f64(time.batch_ms / 1e3).ok());
        let state = State { service_time, ..State::default() };
        SessionLoad { batching, sessions, state: watch::Sender::new(state), costs: Mutex::new(costs) }
    }

    /// The most images of the next batch of a model.
    pub(crate) fn max_batch_size(&self, model: usize) -> usize {
        let batch_size = self.costs().get(&model).map_or(1, |measured| measured.costs.size_limit());
        self.plan_for(batch_size).max_batch_size
    }

    /// How many images are taken together now. The worker holds what the model with the largest batches needs.
    pub(crate) fn plan(&self) -> Plan {
        let batch_size = self.costs().values().map(|measured| measured.costs.size_limit()).max().unwrap_or(1);
        self.plan_for(batch_size)
    }

    fn plan_for(&self, batch_size: usize) -> Plan {
        let (service_time, receive_time, idle_sessions) = {
            let state = self.state.borrow();
            (state.service_time, state.receive_time(), state.without_batch)
        };
        let sessions = self.sessions;
        self.batching.plan(&Facts { sessions, idle_sessions, batch_size, service_time, receive_time })
    }

    /// Most images that wait in this worker, whatever will be measured.
    pub(crate) fn most_ahead(&self) -> usize {
        self.batching.most_ahead(self.sessions)
    }

    /// Waits for an image, and reports meanwhile that a session is free.
    pub(crate) async fn waiting<T>(&self, image: impl Future<Output = T>) -> T {
        self.state.send_modify(|state| state.waiting += 1);
        let image = image.await;
        self.set_quietly(|state| state.waiting -= 1);
        image
    }

    /// The session of this thread wants a batch. [`SessionLoad::begin`] follows.
    pub(crate) fn wants_batch(&self) {
        self.set_quietly(|state| state.without_batch += 1);
    }

    /// The session of this thread begins a batch. `at_once` is true if it did not wait for an image.
    pub(crate) fn begin(&self, model: usize, images: usize, at_once: bool) {
        if at_once
            && let Some(Measured { digest, costs }) = self.costs().get_mut(&model)
            && let Some(images) = costs.begin()
        {
            tracing::debug!(model = digest, images, "the largest batch that saves time has changed");
        }
        self.set_quietly(|state| {
            let expected_end = Instant::now() + state.service_time.unwrap_or_default() * images as u32;
            let begun = Begun { model, expected_end, at_once, inferred: Duration::ZERO };
            state.without_batch = state.without_batch.saturating_sub(1);
            state.begun.insert(thread::current().id(), begun);
        });
    }

    /// The session of this thread ran this version of its model.
    pub(crate) fn inferred(&self, version: &TunedVersion, images: usize, time: Duration) {
        let mut begun = None;
        self.set_quietly(|state| {
            begun = state.begun.get_mut(&thread::current().id()).map(|begun| {
                begun.inferred += time;
                *begun
            });
        });
        // A session that had to wait may run alone on a machine that is idle otherwise. Its times would make every batch of
        // busier minutes look slow.
        let Some(Begun { model, .. }) = begun.filter(|begun| begun.at_once) else { return };
        let mut costs = self.costs();
        let measured = costs.entry(model).or_insert_with(|| Measured::new(version));
        if measured.digest != version.digest {
            // Another version has replaced the one that was measured.
            *measured = Measured::new(version);
        }
        measured.costs.inferred(images, time);
    }

    /// The session of this thread has ended its batch.
    pub(crate) fn measured(&self, worked: Worked) {
        let Some(service_time) = worked.service_time() else { return };
        let mut begun = None;
        self.set_quietly(|state| {
            state.service_time = Some(smoothed(state.service_time, service_time));
            begun = state.begun.get(&thread::current().id()).copied();
        });
        if let Some(Begun { model, inferred, .. }) = begun.filter(|begun| begun.at_once)
            && let Some(measured) = self.costs().get_mut(&model)
        {
            measured.costs.prepared(worked.busy.saturating_sub(inferred).div_f64(worked.images as f64));
        }
    }

    /// Reports how long an image took from its message to the sessions.
    pub(crate) fn fetched(&self, time: Duration) {
        self.set_quietly(|state| state.fetch_time = smoothed(Some(state.fetch_time), time));
    }

    /// Changes the state without waking its watchers: they wait only for a session to become free.
    fn set_quietly(&self, change: impl FnOnce(&mut State)) {
        self.state.send_if_modified(|state| {
            change(state);
            false
        });
    }

    fn costs(&self) -> MutexGuard<'_, HashMap<usize, Measured>> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn smoothed(average: Option<Duration>, sample: Duration) -> Duration {
    average.map_or(sample, |average| (average * (SMOOTHING - 1) + sample) / SMOOTHING)
}

impl State {
    fn is_idle(&self) -> bool {
        self.waiting > 0 || self.begun.is_empty()
    }

    /// The expected time until a session is free, if all are busy. Zero when one is late.
    fn next_is_free_in(&self, now: Instant) -> Duration {
        let remaining = self.begun.values().map(|begun| begun.expected_end.saturating_duration_since(now));
        remaining.min().unwrap_or_default()
    }

    /// The time from a receive to an image that is ready for a session. A fetch may be as slow as the last ones twice.
    fn receive_time(&self) -> Duration {
        CALL_TIME + 2 * self.fetch_time
    }
}

#[async_trait]
impl WorkerLoad for SessionLoad {
    fn deferral(&self) -> Option<Duration> {
        let state = self.state.borrow();
        (!state.is_idle()).then(|| state.next_is_free_in(Instant::now()).saturating_sub(state.receive_time()))
    }

    async fn until_idle(&self) {
        // Cannot fail, because `self` holds the sender.
        let _ = self.state.subscribe().wait_for(State::is_idle).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BatchTime;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn learned(sessions: usize) -> SessionLoad {
        SessionLoad::new(Batching::Learned { calls_are_billed: false }, sessions, &[Arc::new(version("0", &[]))])
    }

    /// A version whose batches take these times in the model, as `imgcls tune` measured them.
    fn version(digest: &str, batches: &[(usize, f64)]) -> TunedVersion {
        let time = |&(size, infer_ms): &(usize, f64)| BatchTime { size, infer_ms, batch_ms: infer_ms, gain: 0.0 };
        TunedVersion { digest: digest.to_owned(), batches: batches.iter().map(time).collect() }
    }

    /// One batch of this thread, in which each image takes `each` in the model and 2 ms besides.
    fn batch(load: &SessionLoad, images: usize, each: Duration) {
        let inferred = each * images as u32;
        load.begin(0, images, true);
        load.inferred(&version("0", &[]), images, inferred);
        load.measured(Worked { images: images as u64, busy: inferred + ms(2) * images as u32 });
    }

    #[test]
    fn busy_worker_leaves_messages_to_others_until_it_needs_one() {
        let load = learned(1);
        assert_eq!(load.deferral(), None);
        batch(&load, 1, ms(98));
        load.begin(0, 1, true);
        let deferral = load.deferral().unwrap();
        assert!(deferral > ms(50) && deferral + CALL_TIME <= ms(100), "{deferral:?}");
        // With a receive that takes longer than an image, it asks at once.
        load.fetched(ms(400));
        assert_eq!(load.deferral(), Some(Duration::ZERO));
    }

    #[test]
    fn gains_are_learned_for_each_model() {
        let load = learned(1);
        assert_eq!(load.plan().max_batch_size, 1);
        for _ in 0..8 {
            batch(&load, 1, ms(40));
            batch(&load, 2, ms(30));
            batch(&load, 4, ms(30));
        }
        assert_eq!(load.costs()[&0].costs.best_size(), 2);
        load.begin(1, 1, true);
        load.inferred(&version("1", &[]), 1, ms(5));
        assert_eq!(load.max_batch_size(1), 1);
        assert_eq!(load.costs()[&0].costs.best_size(), 2);
        // Another version of the first model.
        load.begin(0, 1, true);
        load.inferred(&version("2", &[]), 1, ms(5));
        assert_eq!(load.costs()[&0].costs.best_size(), 1);
    }

    #[test]
    fn another_version_begins_with_what_tune_measured_of_it() {
        let first = version("0", &[(1, 10.0), (2, 16.0)]);
        let load = SessionLoad::new(Batching::Learned { calls_are_billed: false }, 1, &[Arc::new(first)]);
        assert_eq!(load.max_batch_size(0), 2);
        let next = version("1", &[(1, 10.0), (2, 20.0), (4, 24.0)]);
        load.begin(0, 1, true);
        load.inferred(&next, 1, ms(10));
        assert_eq!(load.max_batch_size(0), 4);
        load.begin(0, 1, true);
        load.inferred(&version("2", &[]), 1, ms(10));
        assert_eq!(load.max_batch_size(0), 1);
    }

    #[test]
    fn sessions_without_a_batch_may_all_get_an_image() {
        let load = learned(4);
        assert_eq!(load.plan().ahead, 1);
        (0..3).for_each(|_| load.wants_batch());
        assert_eq!(load.plan().ahead, 3);
        load.begin(0, 1, false);
        assert_eq!(load.plan().ahead, 2);
    }

    #[test]
    fn session_that_had_to_wait_measures_no_batch() {
        let load = learned(1);
        for _ in 0..10 {
            for (images, each) in [(1, 40), (2, 20)] {
                load.begin(0, images, false);
                load.inferred(&version("0", &[]), images, ms(each) * images as u32);
                load.measured(Worked { images: images as u64, busy: ms(each) * images as u32 });
            }
        }
        assert_eq!(load.costs()[&0].costs.gain(2), None);
    }

    #[tokio::test]
    async fn worker_is_idle_while_a_session_waits() {
        let load = learned(1);
        batch(&load, 1, ms(10));
        assert!(load.deferral().is_some());
        load.waiting(async { assert_eq!(load.deferral(), None) }).await;
        assert!(load.deferral().is_some());
        load.waiting(load.until_idle()).await;
    }
}
