//! Control loops that scale workers: observe the request queue, decide how many workers there should be, resize.
//!
//! The decision is made by [`scaling_policy`]. [`run`] applies it to worker processes on this machine, [`aws`] to an Auto
//! Scaling group.

pub mod aws;
mod depth;
mod metrics;
mod pool;
mod process;
mod progress;
mod service_time;

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::depth::DepthReader;
pub use self::pool::{DRAIN_TIMEOUT, WorkerPool};
pub use self::process::WorkerCommand;
pub use self::service_time::ServiceTime;
use crate::config::Backend;
use crate::scaling_policy::{self, Bounds, Observation, Policy, QueueDepth, State};
use crate::shutdown::CancellationToken;
use crate::transport::Transport;

/// Interval between two readings of a queue on this machine.
const LOCAL_INTERVAL: Duration = Duration::from_millis(250);
/// The same of a queue on another machine, which the loops of many machines may read.
const REMOTE_INTERVAL: Duration = Duration::from_secs(1);

/// Configuration of the loop that scales worker processes.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// The scaling policy.
    pub policy: Policy,
    /// Smallest and largest number of workers.
    pub bounds: Bounds,
    /// The time that a worker needs for an image, for policies that depend on it. If absent, the workers measure it;
    /// until they have, one worker is taken to be enough.
    pub service_time: Option<Duration>,
    /// Interval between two readings of the queue, and so the longest wait of the first message for the start of a
    /// worker.
    pub interval: Duration,
}

/// The interval at which the queue of a backend is read for worker processes.
pub fn reading_interval(backend: &Backend) -> Duration {
    if backend.calls_hold_connections() { REMOTE_INTERVAL } else { LOCAL_INTERVAL }
}

/// Keeps the size of `pool` at what the policy decides, until `shutdown`; then drains it.
///
/// `queue_failure` resolves when this process cannot go on with its queues.
///
/// # Errors
/// The queues have failed, or the workers fail for a reason that a restart does not repair. All workers have drained by
/// then.
pub async fn run(
    config: Config,
    queue: &dyn Transport,
    queue_failure: impl Future<Output = String>,
    mut pool: WorkerPool,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let origin = Instant::now();
    let mut ticks = interval(config.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut state = State::default();
    let mut newest = None;
    let mut depth_reader = DepthReader::default();
    let mut unmet = UnmetDemand::default();
    let refused = pool.refused();
    let mut queue_failure = std::pin::pin!(queue_failure);
    let outcome = loop {
        tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            failure = &mut queue_failure => break Err(anyhow!(failure)),
            failure = pool.failure() => break Err(failure).context("the workers cannot be kept running"),
            _ = ticks.tick() => {}
        }
        let unmet = unmet.add(refused.load(Ordering::Relaxed), origin.elapsed());
        if let Some(depth) = depth_reader.read(queue).await {
            let visible = depth.visible.saturating_add(unmet);
            newest = Some(QueueDepth { at: origin.elapsed(), visible, in_flight: depth.in_flight });
        }
        let observation = Observation { workers: pool.size(), depth: newest };
        let service_time = config.service_time.or_else(|| pool.service_time().long_term()).unwrap_or_default();
        let policy = config.policy.with_service_time(service_time);
        let (next, decision) = scaling_policy::decide(&policy, config.bounds, state, &observation, origin.elapsed());
        state = next;
        if decision.desired != pool.size() {
            tracing::info!(from = pool.size(), to = decision.desired, reason = %decision.reason, "scaling");
            pool.resize(decision.desired);
        }
    };
    pool.drain().await;
    outcome
}

/// Recent requests that were refused because there are too few workers. They count as waiting messages: the queue does
/// not show them, and load shedding would otherwise keep the number of workers too small.
#[derive(Default)]
struct UnmetDemand {
    total: u64,
    recent: f64,
    at: Duration,
}

impl UnmetDemand {
    /// Time constant of the exponential decay of older refusals.
    const DECAY: Duration = Duration::from_secs(20);
    /// Enough to want all workers of a machine. A larger value would only delay scaling in.
    const MOST: f64 = 1_000.0;

    /// Takes the number of all refusals since the start, and returns the number of recent ones.
    fn add(&mut self, total: u64, now: Duration) -> u64 {
        let age = now.saturating_sub(self.at).as_secs_f64();
        let kept = self.recent * (-age / Self::DECAY.as_secs_f64()).exp();
        self.recent = (kept + (total - self.total) as f64).min(Self::MOST);
        (self.total, self.at) = (total, now);
        self.recent as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_requests_count_as_waiting_for_some_seconds() {
        let seconds = Duration::from_secs;
        let mut unmet = UnmetDemand::default();
        assert_eq!(unmet.add(0, seconds(1)), 0);
        assert_eq!(unmet.add(100, seconds(2)), 100);
        assert_eq!(unmet.add(100, seconds(22)), 36);
        assert_eq!(unmet.add(100, seconds(202)), 0);
        assert_eq!(unmet.add(1_000_100, seconds(203)), 1_000);
        // Two refusals a second exceed the threshold of the step policy, which is 25.
        let mut slow = UnmetDemand::default();
        assert!((0..60).any(|second| slow.add(2 * second, seconds(second)) > 25));
    }
}
