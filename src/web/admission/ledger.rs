//! Estimates the depth of the queue from what this process knows.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::progress::Submissions;

/// Counts this process's own jobs at once, and the depth of the queue each time it is read.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    sent: u64,
    ended: u64,
    submissions: Submissions,
    /// Jobs that this process sent and whose completion it has not seen.
    pub(super) outstanding: u64,
    /// Callers that wait for an answer.
    pub(super) waiting: u64,
    /// When reading the depth was last tried.
    tried_at: Option<Instant>,
    reading: Option<Reading>,
}

/// The depth of the queue at one moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    jobs: u64,
    visible: u64,
    counts: Counts,
}

/// The counts of the ledger before the depth is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    sent: u64,
    ended: u64,
}

impl Ledger {
    /// Counts a job that is about to be sent. `waits` says whether its caller waits for the answer.
    /// `now` is the time of the clock that makes ids.
    pub(super) fn record_job(&mut self, waits: bool, now: Timestamp) {
        self.sent += 1;
        self.submissions.record(now, self.sent);
        self.outstanding += 1;
        self.waiting += u64::from(waits);
    }

    /// Counts the end of a job of this process.
    pub(super) fn record_end(&mut self) {
        self.ended += 1;
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    /// Records that a caller does not wait any more.
    pub(super) fn stop_waiting(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// Returns the jobs in the queue: the last reading, and the jobs that this process sent and saw ended since.
    pub(super) fn depth(&self) -> u64 {
        match &self.reading {
            Some(Reading { jobs, counts, .. }) => {
                (jobs + (self.sent - counts.sent)).saturating_sub(self.ended - counts.ended)
            }
            None => self.outstanding,
        }
    }

    /// Returns the jobs in the queue up to and including the one that was submitted at `at`, at least 1.
    pub(super) fn position(&self, at: Timestamp) -> u64 {
        self.depth().saturating_sub(self.sent.saturating_sub(self.submissions.until(at))).max(1)
    }

    /// Returns the messages of the last reading that workers hold, or that are delayed.
    pub(super) fn in_flight(&self) -> u64 {
        self.reading.map_or(0, |reading| reading.jobs.saturating_sub(reading.visible))
    }

    /// Returns the visible messages of the last reading.
    pub(super) fn visible(&self) -> u64 {
        self.reading.map_or(0, |reading| reading.visible)
    }

    /// Begins a reading and returns the counts before it, or `None` when the last one was tried within `period`.
    pub(super) fn begin_reading(&mut self, period: Duration) -> Option<Counts> {
        if self.tried_at.is_some_and(|at| at.elapsed() < period) {
            return None;
        }
        self.tried_at = Some(Instant::now());
        Some(Counts { sent: self.sent, ended: self.ended })
    }

    /// Ends a reading: the queue had `jobs` jobs, of which `visible` were not being worked on.
    pub(super) fn end_reading(&mut self, jobs: u64, visible: u64, counts: Counts) {
        self.reading = Some(Reading { at: Instant::now(), jobs, visible, counts });
        // A job whose reply was lost ended unseen. There cannot be more outstanding jobs than jobs in the queue.
        self.outstanding = self.outstanding.min(self.depth());
    }

    /// Returns whether the last reading is older than `age`, or there is none.
    pub(super) fn is_older_than(&self, age: Duration) -> bool {
        self.reading.is_none_or(|reading| reading.at.elapsed() > age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn position_is_the_depth_less_the_jobs_that_were_submitted_later() {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let mut ledger = Ledger::default();
        (1..=10).for_each(|millis| ledger.record_job(false, at(millis)));
        assert_eq!([ledger.position(at(1)), ledger.position(at(4)), ledger.position(at(10))], [1, 4, 10]);
        (0..3).for_each(|_| ledger.record_end());
        assert_eq!([ledger.position(at(1)), ledger.position(at(4)), ledger.position(at(10))], [1, 1, 7]);
        let counts = ledger.begin_reading(Duration::ZERO).expect("never read");
        ledger.end_reading(107, 90, counts);
        assert_eq!((ledger.position(at(10)), ledger.in_flight()), (107, 17), "100 jobs of another process");
    }

    #[test]
    fn depth_is_the_last_reading_plus_jobs_sent_and_minus_jobs_ended_since() {
        let mut ledger = Ledger::default();
        ledger.record_job(true, NOW);
        assert_eq!((ledger.depth(), ledger.outstanding, ledger.waiting), (1, 1, 1));
        let counts = ledger.begin_reading(Duration::from_millis(1)).expect("never read");
        ledger.record_job(false, NOW);
        ledger.end_reading(40, 30, counts);
        assert_eq!((ledger.depth(), ledger.outstanding, ledger.visible()), (41, 2, 30));
        (0..50).for_each(|_| ledger.record_end());
        assert_eq!((ledger.depth(), ledger.outstanding), (0, 0));
    }

    #[test]
    fn next_reading_corrects_for_jobs_that_ended_unseen() {
        let mut ledger = Ledger::default();
        (0..10).for_each(|_| ledger.record_job(true, NOW));
        ledger.end_reading(3, 0, Counts { sent: 10, ended: 0 });
        assert_eq!(ledger.outstanding, 3);
        assert!(ledger.begin_reading(Duration::ZERO).is_some());
        assert!(ledger.begin_reading(Duration::from_secs(60)).is_none(), "tried a moment ago");
    }
}
