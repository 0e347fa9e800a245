//! This machine as an EC2 instance in an Auto Scaling group: protects it from scale-in while it works, notices when it
//! is to be terminated, and completes the lifecycle hook after it has drained. Outside of EC2 all of this does nothing.

mod aws;
mod notice;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::aws::Ec2;
pub use self::notice::Notice;
use crate::config::Backend;

/// Interval between two polls for a notice. Spot gives two minutes' notice, of which most is then left.
const NOTICE_POLL_INTERVAL: Duration = Duration::from_secs(5);
/// A worker that has been idle for this time gives up its protection. Each change is a call, and even at a busy queue a
/// worker is idle for moments between two images.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// The time doubles up to this one as long as images come soon after the protection was given up, so that a trickle of
/// images does not cost two calls each.
const LONGEST_IDLE_AFTER: Duration = Duration::from_secs(120);
/// Delay after a failed change of the protection.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// The EC2 instance that this process runs on, if any.
pub struct Instance(Option<Ec2>);

impl Instance {
    /// Queries the instance metadata service. If it does not answer within a second, this is not an instance. `group`
    /// is the Auto Scaling group that this worker belongs to if it is one.
    pub async fn find(backend: &Backend, group: &str) -> Instance {
        match backend.aws() {
            None => Instance(None),
            Some(aws) => Instance(Box::pin(Ec2::find(aws.region, aws.endpoint_url, group)).await),
        }
    }

    /// The reason to terminate this instance, if a notice was given.
    pub async fn notice(&self) -> Option<Notice> {
        match &self.0 {
            Some(ec2) => ec2.notice().await,
            None => None,
        }
    }

    /// Waits for a notice that this instance is to be terminated.
    pub async fn until_noticed(&self) -> Notice {
        if self.0.is_none() {
            return std::future::pending().await;
        }
        loop {
            if let Some(notice) = self.notice().await {
                return notice;
            }
            sleep(NOTICE_POLL_INTERVAL).await;
        }
    }

    /// Protects this instance from scale-in as long as `held` images are being processed, until `stop`.
    pub async fn protect_while_busy(&self, mut held: watch::Receiver<usize>, stop: CancellationToken) {
        let Some(ec2) = &self.0 else { return };
        let mut protection = Protection::default();
        while !stop.is_cancelled() {
            let is_busy = *held.borrow_and_update() > 0;
            match protection.next(is_busy, Instant::now()) {
                Step::Set(protected) => match ec2.set_protected(protected).await {
                    Ok(()) => protection.is_set = protected,
                    Err(reason) => {
                        tracing::warn!(
                            reason,
                            "cannot set the scale-in protection of this instance; it drains when it is terminated"
                        );
                        let _ = stop.run_until_cancelled(sleep(RETRY_DELAY)).await;
                    }
                },
                Step::Wait(until) => {
                    let timer = async {
                        match until {
                            Some(until) => sleep_until(until).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = timer => {}
                        // The sender outlives this task, so this cannot fail.
                        _ = held.changed() => {}
                    }
                }
            }
        }
    }

    /// Completes the lifecycle hook of the group: this instance holds no image any more and may be terminated.
    pub async fn drained(&self) {
        if let Some(ec2) = &self.0 {
            ec2.complete_lifecycle().await;
        }
    }
}

/// The protection as it was set last, and the start of the idle time.
#[derive(Debug)]
struct Protection {
    is_set: bool,
    idle_since: Option<Instant>,
    idle_after: Duration,
    /// The last time that the protection was to be given up.
    given_up: Option<Instant>,
}

impl Default for Protection {
    fn default() -> Protection {
        Protection { is_set: false, idle_since: None, idle_after: IDLE_AFTER, given_up: None }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Set(bool),
    /// Wait until then, or until the number of images changes.
    Wait(Option<Instant>),
}

impl Protection {
    fn next(&mut self, is_busy: bool, now: Instant) -> Step {
        if is_busy {
            self.idle_since = None;
            if let Some(at) = self.given_up.take() {
                let is_soon = now.duration_since(at) < LONGEST_IDLE_AFTER;
                self.idle_after = if is_soon { (self.idle_after * 2).min(LONGEST_IDLE_AFTER) } else { IDLE_AFTER };
            }
            return if self.is_set { Step::Wait(None) } else { Step::Set(true) };
        }
        let idle_until = *self.idle_since.get_or_insert(now) + self.idle_after;
        match self.is_set {
            false => Step::Wait(None),
            true if now >= idle_until => {
                self.given_up = Some(now);
                Step::Set(false)
            }
            true => Step::Wait(Some(idle_until)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_instance_is_protected_until_it_has_been_idle_for_a_while() {
        let start = Instant::now();
        let mut protection = Protection::default();
        assert_eq!(protection.next(false, start), Step::Wait(None));
        assert_eq!(protection.next(true, start), Step::Set(true));
        protection.is_set = true;
        assert_eq!(protection.next(true, start), Step::Wait(None));
        assert_eq!(protection.next(false, start), Step::Wait(Some(start + IDLE_AFTER)));
        // A short pause between two images does not count as idle.
        assert_eq!(protection.next(true, start + IDLE_AFTER), Step::Wait(None));
        assert_eq!(protection.next(false, start + IDLE_AFTER), Step::Wait(Some(start + 2 * IDLE_AFTER)));
        assert_eq!(protection.next(false, start + 2 * IDLE_AFTER), Step::Set(false));
    }

    #[test]
    fn trickle_of_images_costs_few_changes() {
        let start = Instant::now();
        // The changes in an hour of images that take a second each.
        let changes = |seconds_between: u64| {
            let (mut protection, mut changes) = (Protection::default(), 0);
            for second in 0..3_600 {
                let is_busy = second % seconds_between == 0;
                if let Step::Set(protected) = protection.next(is_busy, start + Duration::from_secs(second)) {
                    protection.is_set = protected;
                    changes += 1;
                }
            }
            changes
        };
        assert_eq!([2, 5, 10, 60, 100].map(changes), [1, 1, 3, 9, 11]);
        assert_eq!(changes(300), 24, "a pause that is longer than the protection");
    }
}
