//! The answers of the last minute, for the view of the service.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The time from submission to reply of the jobs that ended lately.
#[derive(Debug, Default)]
pub(super) struct RecentAnswers {
    /// When each came, oldest first, and how long its job took in milliseconds.
    answers: VecDeque<(Instant, f32)>,
    /// When each machine of workers sent its last answer, where they are counted.
    machines: HashMap<String, Instant>,
}

/// A summary of [`RecentAnswers`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RecentSummary {
    pub(crate) images_per_second: f64,
    /// The median of the times from submission to reply; `None` without an answer.
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    /// The machine hours of 1,000 images; `None` where machines are not counted, and without an answer.
    pub(crate) machine_hours_per_thousand: Option<f64>,
}

impl RecentAnswers {
    /// Bounds the memory. At higher rates the summary covers less than its window.
    const MOST: usize = 8192;
    const MOST_MACHINES: usize = 10_000;
    const WINDOW: Duration = Duration::from_secs(60);
    /// The rate is that of the last seconds, so that a chart shows how it changes.
    const RATE_WINDOW: Duration = Duration::from_secs(5);

    pub(super) fn record(&mut self, now: Instant, took: Duration, machine: Option<String>) {
        if let Some(machine) =
            machine.filter(|machine| self.machines.len() < Self::MOST_MACHINES || self.machines.contains_key(machine))
        {
            self.machines.insert(machine, now);
        }
        if self.answers.len() == Self::MOST {
            self.answers.pop_front();
        }
        self.answers.push_back((now, took.as_secs_f32() * 1e3));
    }

    pub(super) fn summary(&mut self, now: Instant) -> RecentSummary {
        let age = |at: &Instant| now.saturating_duration_since(*at);
        while self.answers.front().is_some_and(|(at, _)| age(at) > Self::WINDOW) {
            self.answers.pop_front();
        }
        self.machines.retain(|_, last| age(last) <= Self::WINDOW);
        let is_full = self.answers.len() == Self::MOST;
        let lately = self.answers.iter().filter(|(at, _)| age(at) <= Self::RATE_WINDOW).count();
        let span = match self.answers.front() {
            Some((first, _)) if is_full => age(first).min(Self::RATE_WINDOW),
            _ => Self::RATE_WINDOW,
        };
        let span_of_all = self.answers.front().map(|(first, _)| age(first)).unwrap_or_default();
        let mut times: Vec<f64> = self.answers.iter().map(|(_, millis)| f64::from(*millis)).collect();
        times.sort_by(f64::total_cmp);
        let quantile = |share: f64| times.get(rank(times.len(), share)).copied();
        RecentSummary {
            images_per_second: lately as f64 / span.as_secs_f64().max(0.001),
            p50_ms: quantile(0.5),
            p99_ms: quantile(0.99),
            machine_hours_per_thousand: self.machine_hours_per_thousand(if is_full {
                span_of_all
            } else {
                Self::WINDOW
            }),
        }
    }
}

impl RecentAnswers {
    /// The hours of all machines that have sent an answer, in the time that the answers cover, for each 1,000 of them.
    fn machine_hours_per_thousand(&self, covered: Duration) -> Option<f64> {
        let hours = self.machines.len() as f64 * covered.as_secs_f64() / 3_600.0;
        let is_known = !self.machines.is_empty() && !self.answers.is_empty();
        is_known.then(|| hours / self.answers.len() as f64 * 1e3)
    }
}

/// The index of a quantile among sorted values, by the nearest rank.
fn rank(count: usize, share: f64) -> usize {
    ((count as f64 * share).ceil() as usize).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_covers_the_last_minute_and_its_rate_the_last_seconds() {
        let begin = Instant::now();
        let mut recent = RecentAnswers::default();
        assert_eq!(recent.summary(begin), RecentSummary::default());
        for second in 0..100 {
            recent.record(
                begin + Duration::from_secs(second),
                Duration::from_millis(if second == 99 { 500 } else { 10 }),
                Some(format!("host-{}", second % 3)),
            );
        }
        let summary = recent.summary(begin + Duration::from_secs(99));
        assert!((summary.images_per_second - 1.2).abs() < 0.01, "{summary:?}");
        assert_eq!(summary.p50_ms.map(f64::round), Some(10.0));
        assert_eq!(summary.p99_ms.map(f64::round), Some(500.0));
        // 61 answers of three machines in a minute.
        let hours = summary.machine_hours_per_thousand.unwrap();
        assert!((hours - 3.0 / 60.0 / 61.0 * 1e3).abs() < 1e-9, "{hours}");
        assert_eq!(recent.summary(begin + Duration::from_secs(300)), RecentSummary::default());
    }

    #[test]
    fn memory_is_bounded_and_the_rate_stays_right() {
        let begin = Instant::now();
        let mut recent = RecentAnswers::default();
        for count in 0..100_000_u32 {
            recent.record(begin + Duration::from_micros(100) * count, Duration::from_millis(1), None);
        }
        assert_eq!(recent.answers.len(), RecentAnswers::MOST);
        let rate = recent.summary(begin + Duration::from_secs(10)).images_per_second;
        assert!((9_000.0..=11_000.0).contains(&rate), "{rate}");
    }
}
