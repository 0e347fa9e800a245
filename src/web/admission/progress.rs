//! How far a job is from its answer: its position in the queue, and when it is expected to end. All of it is pure.
//!
//! The queue does not tell the position of a message. It is about first in, first out, so the jobs in front of one are those
//! in the queue less those that were submitted after it. What this process submitted is counted exactly ([`Submissions`]);
//! jobs of other web processes count as if they were in front.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::estimate::times;

/// How many jobs this process had submitted by when. The newest are exact, older ones become coarser.
#[derive(Debug, Default)]
pub(super) struct Submissions {
    /// Milliseconds of the clock that makes ids, and the number of jobs submitted until then.
    counts: VecDeque<(i64, u64)>,
}

impl Submissions {
    const MOST: usize = 2048;

    /// Records that `sent` jobs were submitted until `now`.
    pub(super) fn record(&mut self, now: Timestamp, sent: u64) {
        let now = now.as_millisecond();
        match self.counts.back_mut() {
            Some((at, count)) if *at >= now => *count = sent,
            _ => self.counts.push_back((now, sent)),
        }
        if self.counts.len() > Self::MOST {
            // Every second entry of the older half is kept.
            let recent = self.counts.split_off(Self::MOST / 2);
            let kept = self.counts.iter().skip(1).step_by(2).copied();
            self.counts = kept.chain(recent).collect();
        }
    }

    /// Returns how many jobs had been submitted by `at`.
    pub(super) fn until(&self, at: Timestamp) -> u64 {
        let later = self.counts.partition_point(|(known, _)| *known <= at.as_millisecond());
        match later.checked_sub(1).and_then(|index| self.counts.get(index)) {
            Some((_, count)) => *count,
            // The job is older than everything that is known here.
            None => self.counts.front().map_or(0, |(_, count)| count.saturating_sub(1)),
        }
    }
}

/// Records whether workers run, and how long the last one took to start.
#[derive(Debug, Default)]
pub(super) struct Presence {
    absent_since: Option<Instant>,
    start_time: Option<Duration>,
}

impl Presence {
    /// Records that a worker runs, or that jobs wait and none runs. `shortest_start` is the shortest absence that counts as
    /// the start of a worker, and not as a gap between two readings of the queue.
    pub(super) fn observe(&mut self, is_present: bool, now: Instant, shortest_start: Duration) {
        match (is_present, self.absent_since) {
            (true, Some(since)) => {
                self.absent_since = None;
                let took = now.saturating_duration_since(since);
                if took >= shortest_start {
                    self.start_time = Some(took);
                }
            }
            (false, None) => self.absent_since = Some(now),
            _ => {}
        }
    }

    /// Records that no job waits, so that the absence of workers means nothing.
    pub(super) fn idle(&mut self) {
        self.absent_since = None;
    }

    /// Returns for how long no worker has run.
    pub(super) fn absent_for(&self, now: Instant) -> Option<Duration> {
        self.absent_since.map(|since| now.saturating_duration_since(since))
    }

    pub(super) fn start_time(&self) -> Option<Duration> {
        self.start_time
    }
}

/// The facts from which the end of a job is estimated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Situation {
    /// The jobs in the queue up to and including this one.
    pub(super) position: u64,
    /// The mean time between the ends of two jobs.
    pub(super) time_per_job: Option<Duration>,
    /// How long a worker takes for an image.
    pub(super) service_time: Option<Duration>,
    /// For how long no worker has run; `None` while one does.
    pub(super) absent_for: Option<Duration>,
    /// How long the last worker took to start.
    pub(super) start_time: Option<Duration>,
}

/// The progress of a job that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The jobs in the queue up to and including this one: 1 is the next, or is being processed.
    pub(crate) position: u64,
    pub(crate) stage: Stage,
    /// How long until the job is expected to end, if that is known.
    pub(crate) eta: Option<Duration>,
    /// True if no worker has run for longer than one takes to start.
    pub(crate) lacks_worker: bool,
}

/// The reason why a job has no result yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Workers run.
    Queued,
    /// No worker runs.
    WaitingForCapacity,
}

impl Stage {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Stage::Queued => "queued",
            Stage::WaitingForCapacity => "waiting_for_capacity",
        }
    }
}

/// After this time without a worker the client is told so, unless starting one is known to take longer.
const LACKS_WORKER_AFTER: Duration = Duration::from_secs(10);

impl Progress {
    pub(super) fn of(situation: Situation) -> Progress {
        let Situation { position, time_per_job, service_time, absent_for, start_time } = situation;
        let service_time = service_time.or(time_per_job);
        let work = |time_per_job| service_time.map(|one| times(time_per_job, position).max(one));
        let Some(absent_for) = absent_for else {
            let eta = time_per_job.or(service_time).and_then(work);
            return Progress { position, stage: Stage::Queued, eta, lacks_worker: false };
        };
        let longest = start_time.map_or(LACKS_WORKER_AFTER, |start| LACKS_WORKER_AFTER.max(start + start / 2));
        let lacks_worker = absent_for > longest;
        // One worker starts first, and takes the images one after the other.
        let start = start_time.map(|start| start.saturating_sub(absent_for)).filter(|_| !lacks_worker);
        let eta = start.zip(service_time.and_then(work)).map(|(start, work)| start.saturating_add(work));
        Progress { position, stage: Stage::WaitingForCapacity, eta, lacks_worker }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    #[test]
    fn jobs_that_were_submitted_later_are_counted() {
        let mut submissions = Submissions::default();
        assert_eq!(submissions.until(at(5)), 0);
        for (millis, sent) in [(10, 1), (20, 2), (20, 3), (30, 4)] {
            submissions.record(at(millis), sent);
        }
        for (millis, expected) in [(5, 0), (10, 1), (19, 1), (20, 3), (29, 3), (30, 4), (99, 4)] {
            assert_eq!(submissions.until(at(millis)), expected, "{millis}");
        }
    }

    #[test]
    fn old_submissions_become_coarser_and_stay_ordered() {
        let mut submissions = Submissions::default();
        (1..100_000).for_each(|sent: i64| submissions.record(at(sent), sent.unsigned_abs()));
        assert!(submissions.counts.len() <= Submissions::MOST);
        assert_eq!(submissions.until(at(99_500)), 99_500, "the newest are exact");
        let known: Vec<u64> = (0..100).map(|step| submissions.until(at(step * 1_000))).collect();
        assert!(known.is_sorted(), "{known:?}");
    }

    #[test]
    fn start_of_a_worker_is_measured_from_the_first_job_that_waited() {
        let begin = Instant::now();
        let mut presence = Presence::default();
        presence.observe(false, begin, SECOND);
        presence.observe(false, begin + SECOND, SECOND);
        assert_eq!(presence.absent_for(begin + 2 * SECOND), Some(2 * SECOND));
        presence.observe(true, begin + 3 * SECOND, SECOND);
        assert_eq!((presence.absent_for(begin + 4 * SECOND), presence.start_time()), (None, Some(3 * SECOND)));
        presence.observe(false, begin + 5 * SECOND, SECOND);
        presence.observe(true, begin + 5 * SECOND, SECOND);
        assert_eq!(presence.start_time(), Some(3 * SECOND), "a gap between two readings is not a start");
        presence.observe(false, begin, SECOND);
        presence.idle();
        assert_eq!(presence.absent_for(begin + SECOND), None);
    }

    #[test]
    fn eta_is_the_work_ahead_and_while_no_worker_runs_also_the_rest_of_its_start() {
        let known = Situation {
            position: 20,
            time_per_job: Some(SECOND / 10),
            service_time: Some(SECOND / 5),
            absent_for: None,
            start_time: Some(4 * SECOND),
        };
        let running = Progress::of(known);
        assert_eq!((running.stage, running.eta), (Stage::Queued, Some(2 * SECOND)));
        let next = Progress::of(Situation { position: 1, ..known });
        assert_eq!(next.eta, Some(SECOND / 5), "an image takes as long as a worker needs for it");
        let absent =
            |seconds| Progress::of(Situation { time_per_job: None, absent_for: Some(SECOND * seconds), ..known });
        let starting = absent(1);
        assert_eq!((starting.stage, starting.eta), (Stage::WaitingForCapacity, Some(7 * SECOND)));
        assert!(!absent(10).lacks_worker);
        assert_eq!((absent(11).lacks_worker, absent(11).eta), (true, None));
        let slow = Progress::of(Situation { start_time: Some(60 * SECOND), absent_for: Some(80 * SECOND), ..known });
        assert!(!slow.lacks_worker, "a start of a minute may take one and a half");
        let unknown = Progress::of(Situation { position: 1, ..Situation::default() });
        assert_eq!(unknown.eta, None);
    }
}
