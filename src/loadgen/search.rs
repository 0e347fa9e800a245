//! The highest rate that keeps conditions, such as `p99<500ms`.
//!
//! Each trial is an open loop at one rate. [`Bisection`] chooses the rates: it doubles or halves until one rate passes and
//! a higher one fails, and then takes the middle between them. A trial ends at the first request that fails. A single
//! trial can pass by luck, so the rate that is reported has passed a second, longer trial with other arrivals.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::client::{Client, Target};
use super::config::Config;
use super::dialect::{Answer, Prepared};
use super::driver::{self, Load, Observer, Pace, Request, RunResult, Size};
use super::expect::{Expectations, Verdict};
use super::failure::Failure;
use super::report::{Report, SearchReport, TrialReport};
use crate::telemetry;
use crate::workload::Arrivals;

/// Length of a trial unless `--duration` gives one.
const TRIAL_LENGTH: Duration = Duration::from_secs(10);
/// A p99 needs at least this many requests; a trial at a low rate lasts longer for them, at most this long.
const FEWEST_REQUESTS: f64 = 200.0;
const LONGEST_TRIAL: Duration = Duration::from_mins(2);
/// How long the answers of a trial may be behind before the rate counts as too high.
const GRACE: Duration = Duration::from_secs(10);
/// The load from which the first rate follows.
const CALIBRATION: Duration = Duration::from_secs(2);
const CALIBRATION_CONCURRENCY: usize = 8;
const FIRST_SHARE: f64 = 0.8;
/// How long the requests of a failed trial may keep the target busy.
const REST_TIMEOUT: Duration = Duration::from_mins(1);
/// This share of late starts says that the machine that sends is too slow.
const MAX_LATE_SHARE: f64 = 0.01;

/// Chooses the rate of the next trial.
#[derive(Debug, Clone)]
struct Bisection {
    next: f64,
    /// The highest rate that passed.
    passed: Option<f64>,
    /// The lowest rate that failed.
    failed: Option<f64>,
    /// True once any rate has passed, so that the answer is near `failed`.
    any_passed: bool,
    /// True once `passed` has passed twice.
    is_confirmed: bool,
    trials: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Try(f64),
    /// Try the best rate again.
    Confirm(f64),
    Done,
}

impl Bisection {
    /// The search ends when the two rates are this close.
    const PRECISION: f64 = 1.05;
    const MAX_TRIALS: u32 = 24;
    const LOWEST: f64 = 0.2;
    const HIGHEST: f64 = 1e6;

    fn new(first: f64) -> Bisection {
        let next = first.clamp(Self::LOWEST, Self::HIGHEST);
        Bisection { next, passed: None, failed: None, any_passed: false, is_confirmed: false, trials: 0 }
    }

    fn step(&self) -> Step {
        let out_of_range = self.next < Self::LOWEST || self.next > Self::HIGHEST;
        let is_found = match (self.passed, self.failed) {
            (Some(passed), Some(failed)) => failed <= passed * Self::PRECISION * (1.0 + 1e-9),
            _ => out_of_range,
        };
        match self.passed {
            _ if self.trials >= Self::MAX_TRIALS => Step::Done,
            Some(passed) if is_found && !self.is_confirmed => Step::Confirm(passed),
            _ if is_found => Step::Done,
            _ => Step::Try(self.next),
        }
    }

    fn record(&mut self, rate: f64, has_passed: bool) {
        self.trials += 1;
        if has_passed {
            self.is_confirmed = self.passed == Some(rate);
            self.passed = Some(rate);
            self.any_passed = true;
        } else {
            self.failed = Some(rate);
            if self.passed.is_some_and(|passed| passed >= rate) {
                // Its first trial passed by luck.
                self.passed = None;
            }
        }
        self.next = match (self.passed, self.failed) {
            (Some(passed), Some(failed)) => (passed * failed).sqrt(),
            (Some(passed), None) => passed * 2.0,
            (None, Some(failed)) if self.any_passed => failed / Self::PRECISION,
            (None, Some(failed)) => failed / 2.0,
            (None, None) => self.next,
        };
    }
}

/// Ends a trial at its first failure, which decides it.
struct UntilFailure(CancellationToken);

impl Observer for UntilFailure {
    fn answered(&self, _request: &Request<'_>, _answer: &Answer<'_>, _verdict: &Verdict) {}

    fn failed(&self, _request: &Request<'_>, _failure: &Failure) {
        self.0.cancel();
    }
}

/// The parts of a search that do not change.
pub(super) struct Search<'a> {
    pub config: &'a Config,
    pub target: &'a Arc<Target>,
    pub images: Vec<(String, Prepared)>,
    pub shutdown: &'a CancellationToken,
}

impl Search<'_> {
    /// Searches, and reports each trial on standard error as it ends.
    pub(super) async fn run(&self) -> SearchReport {
        let conditions = self.config.find_rate.iter().map(ToString::to_string).collect();
        let mut report = SearchReport {
            url: self.config.url.to_string(),
            conditions,
            rate_per_second: None,
            fails_at_per_second: None,
            interrupted: false,
            trials: Vec::new(),
            hints: Vec::new(),
        };
        let first = match &self.config.arrivals {
            Some(arrivals) => arrivals.rate().unwrap_or(1.0),
            None => self.calibrate().await,
        };
        let mut bisection = Bisection::new(first);
        loop {
            let (rate, length_factor) = match bisection.step() {
                Step::Try(rate) => (rate, 1),
                Step::Confirm(rate) => (rate, 2),
                Step::Done => break,
            };
            let trial = self.trial(rate, length_factor, u64::from(bisection.trials)).await;
            if self.shutdown.is_cancelled() {
                report.interrupted = true;
                break;
            }
            self.say(&trial);
            bisection.record(rate, trial.passed);
            if !trial.passed {
                self.rest().await;
            }
            report.trials.push(trial);
        }
        report.rate_per_second = bisection.passed.filter(|_| bisection.is_confirmed);
        report.fails_at_per_second = bisection.failed;
        let is_late = |trial: &TrialReport| trial.late as f64 > MAX_LATE_SHARE * (trial.ok + trial.failed) as f64;
        if report.trials.iter().any(is_late) {
            report.hints.push(
                "this machine was too slow to send some of the requests on time; send from another one, or the rate is too low"
                    .to_owned(),
            );
        }
        report
    }

    /// The rate to begin with, from a short closed loop.
    async fn calibrate(&self) -> f64 {
        let concurrency = self.config.concurrency.min(CALIBRATION_CONCURRENCY);
        let size = Size { num_request: u64::MAX, concurrency, duration: Some(CALIBRATION) };
        let result = self.drive(size, Pace::Closed, self.shutdown).await;
        let seconds = result.wall.as_secs_f64();
        if seconds > 0.0 { FIRST_SHARE * result.measurement.ok() as f64 / seconds } else { 1.0 }
    }

    async fn trial(&self, rate: f64, length_factor: u32, number: u64) -> TrialReport {
        let wanted = self.config.duration.unwrap_or(TRIAL_LENGTH);
        let least = Duration::try_from_secs_f64(FEWEST_REQUESTS / rate).unwrap_or(LONGEST_TRIAL).min(LONGEST_TRIAL);
        let length = wanted.max(least) * length_factor;
        let arrivals = Arrivals::Poisson { rate };
        let seed = self.config.seed.wrapping_add(number);
        let num_request = arrivals.count_within(u64::MAX, length, seed).max(1);
        let size = Size { num_request, concurrency: self.config.concurrency, duration: None };
        let cut_off = self.shutdown.child_token();
        let work = self.drive(size, Pace::Open(Box::new(arrivals.offsets(seed))), &cut_off);
        let timer = async {
            tokio::time::sleep(length + GRACE).await;
            cut_off.cancel();
            std::future::pending::<()>().await;
        };
        let result = tokio::select! {
            result = work => result,
            () = timer => unreachable!("it never ends; this is a bug"),
        };
        let config = Config { thresholds: self.config.find_rate.clone(), ..self.config.clone() };
        let report = Report::new(&config, &result, &[], |image| self.images[image].0.clone());
        let (ok, failed) = (report.requests.ok, report.requests.failed);
        let has_passed = !result.interrupted && failed == 0 && ok > 0 && !report.threshold_missed();
        TrialReport {
            rate_per_second: rate,
            seconds: length.as_secs_f64(),
            ok,
            failed,
            cut_off: result.interrupted && failed == 0,
            late: result.measurement.lag.late,
            p50_ms: report.latency_ms.as_ref().map(|latency| latency.p50),
            p99_ms: report.latency_ms.as_ref().map(|latency| latency.p99),
            passed: has_passed,
            conditions: report.thresholds,
        }
    }

    /// Waits until a single request is answered: the target has then worked off what a trial left, at most for a while.
    async fn rest(&self) {
        let size = Size { num_request: 1, concurrency: 1, duration: None };
        let _ = tokio::time::timeout(REST_TIMEOUT, self.drive(size, Pace::Closed, self.shutdown)).await;
    }

    async fn drive(&self, size: Size, pace: Pace, stop: &CancellationToken) -> RunResult {
        let stop = stop.child_token();
        let observer: Arc<dyn Observer> = Arc::new(UntilFailure(stop.clone()));
        let load = Load::new(self.images.clone(), Expectations::default(), vec![observer]);
        driver::drive(&load, self.target, Client::new(Arc::clone(self.target), 0), size, pace, &stop).await
    }

    fn say(&self, trial: &TrialReport) {
        if self.config.live {
            let verdict = if trial.passed { "holds" } else { "does not hold" };
            telemetry::stderr_line(&format!("{:.2}/s for {:.0} s: {verdict}", trial.rate_per_second, trial.seconds));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches for the largest rate that `passes`, and returns it with the number of trials.
    fn search(first: f64, mut passes: impl FnMut(f64, u32) -> bool) -> (Option<f64>, u32) {
        let mut bisection = Bisection::new(first);
        loop {
            match bisection.step() {
                Step::Try(rate) | Step::Confirm(rate) => {
                    let has_passed = passes(rate, bisection.trials);
                    bisection.record(rate, has_passed);
                }
                Step::Done => return (bisection.passed.filter(|_| bisection.is_confirmed), bisection.trials),
            }
        }
    }

    #[test]
    fn found_rate_is_within_five_percent_of_the_limit() {
        for (first, limit) in [(1.0, 137.0), (100.0, 137.0), (5_000.0, 137.0), (80.0, 0.7), (1.0, 1.0)] {
            let (found, trials) = search(first, |rate, _| rate <= limit);
            let found = found.unwrap();
            assert!(found <= limit && found >= limit / 1.051, "{first} {limit}: {found} after {trials}");
            assert!(trials <= 20, "{first} {limit}: {trials}");
        }
    }

    #[test]
    fn rate_that_passed_by_luck_is_not_reported() {
        // Every first trial of a rate up to 120 passes, and a second one only up to 100.
        let mut seen = Vec::new();
        let (found, _) = search(50.0, |rate, _| {
            let is_again = seen.contains(&rate.to_bits());
            seen.push(rate.to_bits());
            rate <= if is_again { 100.0 } else { 120.0 }
        });
        assert!(found.is_none_or(|found| found <= 100.0), "{found:?}");
    }

    #[test]
    fn search_ends_if_every_rate_passes_or_none_does() {
        assert!(search(1.0, |_, _| true).0.unwrap() >= Bisection::HIGHEST / 2.0);
        assert_eq!(search(100.0, |_, _| false).0, None);
    }
}
