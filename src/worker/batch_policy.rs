//! Decides how many images a batch may have, and how many images a worker holds ahead of its sessions. Pure: what was
//! measured goes in, a [`Plan`] comes out.
//!
//! Each image of a batch waits for the others, so a batch is worth it only if it saves time. On a CPU that differs from
//! network to network: some gain a tenth, most gain nothing. So the time of an inference is measured for each batch size
//! in [`SIZES`], and where no size saves enough an image is classified by itself. A worker that runs tries another
//! size now and then, while it has more work than it can do ([`BatchCosts::begin`]).

use std::time::Duration;

use crate::model::{self, BATCH_SIZES as SIZES, BatchTime};
use crate::transport::MAX_BATCH;

/// How a worker groups images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batching {
    /// As the settings say: at most this many images in a batch, and one batch ahead for each session.
    Fixed(usize),
    /// As the measurements of the worker say.
    Learned {
        /// Each call to the queue is billed, so that images share calls as long as that adds little to their wait.
        calls_are_billed: bool,
    },
}

/// A version of a model, with what `imgcls tune` measured of it on this machine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TunedVersion {
    /// The digest of the version.
    pub digest: String,
    /// The times of its batches. Empty if they were not measured, or for other settings than those in use.
    pub batches: Vec<BatchTime>,
}

/// How many images are taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Most images in a batch.
    pub max_batch_size: usize,
    /// Most images that wait in this worker while its sessions are busy.
    pub ahead: usize,
    /// How many of these have to be missing before the next receive.
    pub for_a_receive: usize,
}

/// The measurements that a plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Sessions of the worker.
    pub sessions: usize,
    /// Those of them that wait for an image.
    pub idle_sessions: usize,
    /// The largest batch that saves enough time, or that is being tried.
    pub batch_size: usize,
    /// How long an image takes a session. `None` until it was measured.
    pub service_time: Option<Duration>,
    /// How long it takes from the beginning of a receive until a session can begin with the image.
    pub receive_time: Duration,
}

/// Images that share one billed call may take a session this long. Larger groups would save little money, and an idle
/// worker could begin with their last images much sooner.
const SHARED_CALL: Duration = Duration::from_millis(250);
/// The CPU time of a batch outside of its session: a receive and a completion. Images of one batch share it.
const CALLS_OF_A_BATCH: Duration = Duration::from_micros(250);
/// The median of fewer samples is not used.
const MIN_SAMPLES: usize = 4;
/// Each size is tried this often, every other batch; later one batch in [`TRIAL_INTERVAL`] tries a size.
const FIRST_TRIALS: u32 = 8;
const TRIAL_INTERVAL: u32 = 64;
/// A decision takes microseconds, and little changes from one batch to the next.
const DECISION_INTERVAL: u32 = 8;
/// The number of the latest measurements that a median is taken of.
const KEPT_SAMPLES: usize = 31;

impl Batching {
    /// The plan for these measurements.
    pub(crate) fn plan(&self, facts: &Facts) -> Plan {
        match self {
            Batching::Fixed(size) => {
                let for_a_receive = (*size).clamp(1, MAX_BATCH);
                Plan { max_batch_size: *size, ahead: facts.sessions * size, for_a_receive }
            }
            Batching::Learned { calls_are_billed } => learned(facts, *calls_are_billed),
        }
    }
}

/// A worker holds no more than keeps its sessions busy while it receives and fetches the next images, since what it holds
/// an idle worker could begin with.
fn learned(facts: &Facts, calls_are_billed: bool) -> Plan {
    let &Facts { sessions, idle_sessions, batch_size, service_time, receive_time } = facts;
    let images_in = |time: Duration| {
        let each = service_time.unwrap_or(Duration::MAX).max(Duration::from_micros(1));
        time.as_secs_f64() / each.as_secs_f64()
    };
    let shared_by = if calls_are_billed { (images_in(SHARED_CALL) as usize).clamp(1, MAX_BATCH) } else { 1 };
    let max_batch_size = batch_size.max(shared_by);
    let during_a_receive = (images_in(receive_time) * sessions as f64).ceil() as usize;
    let batches = if max_batch_size > 1 { sessions * max_batch_size } else { 1 };
    let of_busy = during_a_receive.max(batches).clamp(1, most_ahead(sessions));
    let for_a_receive = max_batch_size.max(of_busy / 2).clamp(1, MAX_BATCH);
    Plan { max_batch_size, ahead: of_busy.max(idle_sessions.min(sessions)), for_a_receive }
}

/// The most images that any learned plan holds ahead.
fn most_ahead(sessions: usize) -> usize {
    sessions * MAX_BATCH
}

impl Batching {
    /// The most images that any plan holds ahead.
    pub(crate) fn most_ahead(&self, sessions: usize) -> usize {
        match self {
            Batching::Fixed(size) => sessions * size,
            Batching::Learned { .. } => most_ahead(sessions),
        }
    }
}

/// The measurements of one model.
#[derive(Debug, Clone, Default)]
pub(crate) struct BatchCosts {
    /// Inference of one batch, by the position of its size in [`SIZES`].
    inference: [Samples; SIZES.len()],
    /// Everything else that an image takes a session: decoding and preprocessing.
    preparation: Samples,
    /// How often each size was tried.
    trials: [u32; SIZES.len()],
    batches_since_trial: u32,
    /// The size that the next batch tries.
    trial: Option<usize>,
    /// The last decision, which is renewed every [`DECISION_INTERVAL`] batches. Zero before the first.
    decided: usize,
    batches_since_decision: u32,
}

impl BatchCosts {
    /// Begins with what `imgcls tune` measured, as if this worker had measured it.
    pub(crate) fn new(known: &[BatchTime]) -> BatchCosts {
        let mut costs = BatchCosts::default();
        for time in known {
            let Some(place) = place_of(time.size) else { continue };
            let inference = Duration::try_from_secs_f64(time.infer_ms / 1e3).unwrap_or_default();
            let batch = Duration::try_from_secs_f64(time.batch_ms / 1e3).unwrap_or_default();
            for _ in 0..MIN_SAMPLES {
                costs.inference[place].add(inference);
                costs.preparation.add(batch.saturating_sub(inference) / time.size as u32);
            }
            costs.trials[place] = FIRST_TRIALS;
        }
        costs.decided = costs.best_size();
        costs
    }

    /// Counts a batch that a busy session began without a pause, and decides whether the next one tries another size.
    /// Returns the new size if the best one has changed.
    pub(crate) fn begin(&mut self) -> Option<usize> {
        let before = self.decided;
        self.trial = None;
        self.batches_since_decision += 1;
        if self.batches_since_decision >= DECISION_INTERVAL {
            (self.decided, self.batches_since_decision) = (self.best_size(), 0);
        }
        self.batches_since_trial += 1;
        let (place, tried) = self.least_tried();
        let interval = if tried < FIRST_TRIALS { 2 } else { TRIAL_INTERVAL };
        if self.batches_since_trial >= interval {
            self.batches_since_trial = 0;
            self.trials[place] = tried.saturating_add(1);
            self.trial = Some(SIZES[place]);
        }
        (self.decided.max(1) != before.max(1)).then_some(self.decided)
    }

    /// Records an inference of a busy session.
    pub(crate) fn inferred(&mut self, images: usize, time: Duration) {
        if let Some(place) = place_of(images) {
            self.inference[place].add(time);
        }
    }

    /// Records how long an image took outside of the inference.
    pub(crate) fn prepared(&mut self, time: Duration) {
        self.preparation.add(time);
    }

    /// The most images of the next batch: the best size, unless another one is tried.
    pub(crate) fn size_limit(&self) -> usize {
        self.trial.unwrap_or(self.decided).max(1)
    }

    /// The smallest size that is about as good as the best one, or one if none saves enough.
    pub(crate) fn best_size(&self) -> usize {
        model::worthwhile_batch_size(SIZES.into_iter().filter_map(|size| Some((size, self.gain(size)?))))
    }

    /// The share of the time of an image that a batch saves. `None` if too little was measured.
    pub(crate) fn gain(&self, size: usize) -> Option<f64> {
        Some(1.0 - self.seconds_per_image(size)? / self.seconds_per_image(1)?)
    }

    fn seconds_per_image(&self, size: usize) -> Option<f64> {
        let inference = self.inference[place_of(size)?].median()?;
        let preparation = self.preparation.median()?;
        Some(preparation.as_secs_f64() + (inference + CALLS_OF_A_BATCH).as_secs_f64() / size as f64)
    }

    fn least_tried(&self) -> (usize, u32) {
        // The size in use is measured without trials.
        let others = (0..SIZES.len()).filter(|place| SIZES[*place] != self.decided.max(1));
        others.map(|place| (place, self.trials[place])).min_by_key(|(_, tried)| *tried).unwrap_or((0, 0))
    }
}

fn place_of(size: usize) -> Option<usize> {
    SIZES.iter().position(|known| *known == size)
}

/// The latest measurements of one duration. Their median ignores the pauses of a shared machine.
#[derive(Debug, Clone, Default)]
struct Samples {
    kept: Vec<Duration>,
    next: usize,
}

impl Samples {
    fn add(&mut self, sample: Duration) {
        if self.kept.len() < KEPT_SAMPLES {
            self.kept.push(sample);
        } else {
            self.kept[self.next] = sample;
            self.next = (self.next + 1) % KEPT_SAMPLES;
        }
    }

    fn median(&self) -> Option<Duration> {
        if self.kept.len() < MIN_SAMPLES {
            return None;
        }
        let mut sorted = self.kept.clone();
        let middle = sorted.len() / 2;
        Some(*sorted.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    /// Measurements of a network whose batches take `each` ms for an image, by size.
    fn costs(preparation: f64, each: [f64; 4]) -> BatchCosts {
        let mut costs = BatchCosts::default();
        for _ in 0..MIN_SAMPLES {
            costs.prepared(ms(preparation));
            for (size, each) in SIZES.into_iter().zip(each) {
                costs.inferred(size, ms(each * size as f64));
            }
        }
        costs
    }

    #[test]
    fn batches_that_save_less_than_a_twentieth_are_not_made() {
        assert_eq!(costs(3.0, [19.0, 18.6, 18.3, 18.2]).best_size(), 1);
        assert_eq!(costs(3.0, [100.0, 101.0, 103.0, 105.0]).best_size(), 1);
        assert_eq!(BatchCosts::default().best_size(), 1);
    }

    #[test]
    fn smallest_batch_that_is_about_as_good_as_the_best_is_chosen() {
        assert_eq!(costs(0.7, [4.2, 4.1, 3.7, 3.68]).best_size(), 4);
        assert_eq!(costs(0.7, [4.2, 3.5, 3.5, 3.5]).best_size(), 2);
        assert_eq!(costs(0.0, [10.0, 8.0, 6.0, 4.0]).best_size(), 8);
    }

    #[test]
    fn long_decoding_makes_the_gain_of_a_batch_small() {
        let each = [4.2, 3.8, 3.6, 3.6];
        assert!(costs(0.7, each).best_size() > 1);
        assert_eq!(costs(30.0, each).best_size(), 1);
    }

    #[test]
    fn pauses_of_the_machine_do_not_change_the_decision() {
        let mut costs = costs(0.7, [4.2, 3.5, 3.5, 3.5]);
        for _ in 0..KEPT_SAMPLES {
            costs.inferred(1, ms(4.2));
            costs.inferred(2, ms(7.0));
        }
        for _ in 0..5 {
            costs.inferred(2, ms(90.0));
        }
        assert_eq!(costs.best_size(), 2);
    }

    #[test]
    fn each_size_is_tried_and_then_measured_again_from_time_to_time() {
        let mut costs = BatchCosts::default();
        let mut limits = |batches: usize| -> Vec<usize> {
            (0..batches)
                .map(|_| {
                    costs.begin();
                    costs.size_limit()
                })
                .collect()
        };
        let first = limits(50);
        for size in [2, 4, 8] {
            assert_eq!(first.iter().filter(|limit| **limit == size).count(), FIRST_TRIALS as usize, "{first:?}");
        }
        let later = limits(256);
        assert!((3..=4).contains(&later.iter().filter(|limit| **limit > 1).count()), "{later:?}");
    }

    #[test]
    fn what_was_measured_before_is_not_tried_again_at_once() {
        let time =
            |size: usize, infer_ms: f64| BatchTime { size, infer_ms, batch_ms: infer_ms + size as f64, gain: 0.0 };
        let mut costs = BatchCosts::new(&[time(1, 10.0), time(2, 16.0), time(4, 31.0), time(8, 62.0), time(3, 1.0)]);
        assert_eq!(costs.best_size(), 4);
        let gain = costs.gain(4).unwrap();
        assert!((0.18..0.22).contains(&gain), "{gain}");
        costs.begin();
        costs.begin();
        assert_eq!(costs.size_limit(), 4);
    }

    const LOCAL: Batching = Batching::Learned { calls_are_billed: false };
    const BILLED: Batching = Batching::Learned { calls_are_billed: true };

    fn facts(batch_size: usize, service: f64, receive: f64) -> Facts {
        Facts { sessions: 1, idle_sessions: 0, batch_size, service_time: Some(ms(service)), receive_time: ms(receive) }
    }

    #[test]
    fn worker_holds_no_more_than_hides_the_time_of_a_receive() {
        let ahead = |service, receive| LOCAL.plan(&facts(1, service, receive)).ahead;
        assert_eq!([ahead(100.0, 2.5), ahead(19.0, 2.5), ahead(5.0, 2.5), ahead(0.5, 2.5)], [1, 1, 1, 5]);
        assert_eq!([ahead(19.0, 60.0), ahead(0.1, 60.0)], [4, MAX_BATCH]);
        let many = Facts { sessions: 8, ..facts(1, 20.0, 2.5) };
        assert_eq!(LOCAL.plan(&many), Plan { max_batch_size: 1, ahead: 1, for_a_receive: 1 });
        let idle = Facts { idle_sessions: 5, ..many };
        assert_eq!(LOCAL.plan(&idle), Plan { max_batch_size: 1, ahead: 5, for_a_receive: 1 });
        let unknown = Facts { service_time: None, ..facts(1, 0.0, 2.5) };
        assert_eq!([LOCAL.plan(&unknown).ahead, BILLED.plan(&unknown).ahead], [1, 1]);
    }

    #[test]
    fn batches_that_save_time_are_held_ahead_for_each_session() {
        let two = Facts { sessions: 2, ..facts(4, 5.0, 2.5) };
        assert_eq!(LOCAL.plan(&two), Plan { max_batch_size: 4, ahead: 8, for_a_receive: 4 });
    }

    #[test]
    fn billed_calls_are_shared_by_the_images_of_a_quarter_of_a_second() {
        let size = |service| BILLED.plan(&facts(1, service, 20.0)).max_batch_size;
        assert_eq!([size(4.5), size(19.0), size(100.0)], [MAX_BATCH, MAX_BATCH, 2]);
        assert_eq!(BILLED.plan(&facts(1, 4.5, 20.0)), Plan { max_batch_size: 10, ahead: 10, for_a_receive: 10 });
        assert_eq!(BILLED.plan(&facts(1, 300.0, 20.0)), Plan { max_batch_size: 1, ahead: 1, for_a_receive: 1 });
    }

    #[test]
    fn fixed_size_takes_precedence_over_every_measurement() {
        let three = Facts { sessions: 2, ..facts(8, 100.0, 2.5) };
        assert_eq!(Batching::Fixed(3).plan(&three), Plan { max_batch_size: 3, ahead: 6, for_a_receive: 3 });
        assert_eq!(Batching::Fixed(32).plan(&three), Plan { max_batch_size: 32, ahead: 64, for_a_receive: 10 });
    }
}
