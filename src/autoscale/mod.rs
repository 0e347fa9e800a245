//! Observe the request queue, decide how many workers there should be, resize. The thinking is in [`scaling`]; here is
//! the loop that carries it out.

pub mod aws;
pub mod local;

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::scaling::{self, Bounds, Observation, Policy, QueueDepth, State};
use crate::shutdown::CancellationToken;
use crate::transport::{Depth, Transport, TransportError};

/// How often the queue is looked at: the longest that the first message waits for the first worker to be started.
const TICK: Duration = Duration::from_millis(250);
/// A reading that takes longer has failed; the loop must stay able to restart and to end workers.
const DEPTH_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub policy: Policy,
    pub bounds: Bounds,
    /// What a worker takes for an image, for a policy that asks. None: as the workers measure it; until they have, one
    /// worker is thought to be enough.
    pub service_time: Option<Duration>,
}

/// Holds the workers of `pool` at what the policy says, until `shutdown`; then drains all of them.
///
/// # Errors
/// Where the workers fail for a reason that starting them again does not mend. The others have drained by then.
pub async fn run(
    config: Config,
    queue: &dyn Transport,
    mut pool: local::Pool,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let origin = Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut state = State::default();
    let mut newest = None;
    let mut gauge = Gauge::default();
    let mut unmet = Unmet::default();
    let refused = pool.refused();
    let outcome = loop {
        tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            failure = pool.failure() => break Err(failure).context("the workers cannot be kept running"),
            _ = ticks.tick() => {}
        }
        let unmet = unmet.add(refused.load(Ordering::Relaxed), origin.elapsed());
        if let Some(depth) = gauge.read(queue).await {
            let visible = depth.visible.saturating_add(unmet);
            newest = Some(QueueDepth { at: origin.elapsed(), visible, in_flight: depth.in_flight });
        }
        let observation = Observation { workers: pool.size(), depth: newest };
        let service_time = config.service_time.or_else(|| pool.service_time()).unwrap_or_default();
        let policy = config.policy.with_service_time(service_time);
        let (next, decision) = scaling::decide(&policy, config.bounds, state, &observation, origin.elapsed());
        state = next;
        if decision.desired != pool.size() {
            tracing::info!(from = pool.size(), to = decision.desired, reason = %decision.reason, "scaling");
            pool.resize(decision.desired);
        }
    };
    pool.drain().await;
    outcome
}

/// Requests that were refused because the workers are too few. They are work that the queue does not show: counted as
/// waiting, or shedding would keep the number of workers at what is too small. Each is forgotten after some seconds.
#[derive(Default)]
struct Unmet {
    total: u64,
    recent: f64,
    at: Duration,
}

impl Unmet {
    const MEMORY: Duration = Duration::from_secs(20);
    /// Enough to want all the workers of a machine; more would only delay taking them away.
    const MOST: f64 = 1_000.0;

    /// `total`: all that were refused since the start. Returns how many of late.
    fn add(&mut self, total: u64, now: Duration) -> u64 {
        let age = now.saturating_sub(self.at).as_secs_f64();
        let kept = self.recent * (-age / Self::MEMORY.as_secs_f64()).exp();
        self.recent = (kept + (total - self.total) as f64).min(Self::MOST);
        (self.total, self.at) = (total, now);
        self.recent as u64
    }
}

/// Reads the depth; says once that it cannot, and once that it can again.
#[derive(Default)]
struct Gauge {
    failing: bool,
}

impl Gauge {
    async fn read(&mut self, queue: &dyn Transport) -> Option<Depth> {
        let read = match timeout(DEPTH_TIMEOUT, queue.depth()).await {
            Ok(read) => read,
            Err(_) => Err(TransportError::Unavailable(format!("no answer within {DEPTH_TIMEOUT:?}"))),
        };
        match read {
            Ok(depth) => {
                if self.failing {
                    tracing::info!(queue = queue.name(), "the queue can be read again");
                }
                self.failing = false;
                Some(depth)
            }
            Err(error) => {
                if !self.failing {
                    tracing::warn!(queue = queue.name(), %error, "cannot read the queue: no worker is taken away");
                }
                self.failing = true;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_requests_count_as_waiting_for_some_seconds() {
        let seconds = Duration::from_secs;
        let mut unmet = Unmet::default();
        assert_eq!(unmet.add(0, seconds(1)), 0);
        assert_eq!(unmet.add(100, seconds(2)), 100);
        assert_eq!(unmet.add(100, seconds(22)), 36);
        assert_eq!(unmet.add(100, seconds(202)), 0);
        assert_eq!(unmet.add(1_000_100, seconds(203)), 1_000);
        // Two a second and no more: the step policy, which wants more than 25, hears of it.
        let mut slow = Unmet::default();
        assert!((0..60).any(|second| slow.add(2 * second, seconds(second)) > 25));
    }
}
