//! This machine, where it is an EC2 instance in an Auto Scaling group: it says when it works and may not be taken away, hears
//! that it is to end, and says when it has drained. Elsewhere nothing of this happens.

mod aws;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::aws::Ec2;
use crate::config::Backend;

/// How often it is asked whether this instance is to end: of two minutes' notice on Spot most is left.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A worker that has had nothing to do for so long may be taken away. Not at once: each change is a call, and between two
/// images of a busy queue there are moments without any.
const IDLE_AFTER: Duration = Duration::from_secs(5);
const REST_AFTER_FAULT: Duration = Duration::from_secs(5);

/// Where this process runs.
pub struct Instance(Option<Ec2>);

/// Why an instance is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The group takes it away and waits until it has drained.
    ScaleIn,
    /// EC2 wants it back within two minutes.
    Spot,
}

impl Instance {
    /// Asks the instance metadata service; where none answers within a second, this is no instance. `group`: the Auto
    /// Scaling group that this worker belongs to if it is one.
    pub async fn find(backend: &Backend, group: &str) -> Instance {
        match backend {
            Backend::Local { .. } | Backend::Named { .. } => Instance(None),
            Backend::Aws { region, endpoint_url } => {
                Instance(Box::pin(Ec2::find(region.as_deref(), endpoint_url.as_deref(), group)).await)
            }
        }
    }

    /// Whether this instance is to end, as far as is known now.
    pub async fn notice(&self) -> Option<Notice> {
        match &self.0 {
            Some(ec2) => ec2.notice().await,
            None => None,
        }
    }

    /// Returns once this instance is to end.
    pub async fn until_noticed(&self) -> Notice {
        if self.0.is_none() {
            return std::future::pending().await;
        }
        loop {
            if let Some(notice) = self.notice().await {
                return notice;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Keeps this instance from being taken away as long as images are held, until `stop`.
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
                            "cannot say whether this instance may be taken away; it drains if it is"
                        );
                        let _ = stop.run_until_cancelled(sleep(REST_AFTER_FAULT)).await;
                    }
                },
                Step::Wait(until) => {
                    let end = async {
                        match until {
                            Some(until) => sleep_until(until).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = end => {}
                        // Fails only when the leases are gone, which end after this.
                        _ = held.changed() => {}
                    }
                }
            }
        }
    }

    /// Lets the group that takes this instance away go on: nothing is held any more.
    pub async fn drained(&self) {
        if let Some(ec2) = &self.0 {
            ec2.complete_lifecycle().await;
        }
    }
}

/// What the group was told, and since when there has been nothing to do.
#[derive(Debug, Default)]
struct Protection {
    is_set: bool,
    idle_since: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Set(bool),
    /// Until then or until something changes.
    Wait(Option<Instant>),
}

impl Protection {
    fn next(&mut self, is_busy: bool, now: Instant) -> Step {
        if is_busy {
            self.idle_since = None;
            return if self.is_set { Step::Wait(None) } else { Step::Set(true) };
        }
        let idle_until = *self.idle_since.get_or_insert(now) + IDLE_AFTER;
        match self.is_set {
            false => Step::Wait(None),
            true if now >= idle_until => Step::Set(false),
            true => Step::Wait(Some(idle_until)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_instance_is_protected_and_an_idle_one_is_not_after_a_while() {
        let start = Instant::now();
        let mut protection = Protection::default();
        assert_eq!(protection.next(false, start), Step::Wait(None));
        assert_eq!(protection.next(true, start), Step::Set(true));
        protection.is_set = true;
        assert_eq!(protection.next(true, start), Step::Wait(None));
        assert_eq!(protection.next(false, start), Step::Wait(Some(start + IDLE_AFTER)));
        // Between two images there is a moment without any.
        assert_eq!(protection.next(true, start + IDLE_AFTER), Step::Wait(None));
        assert_eq!(protection.next(false, start + IDLE_AFTER), Step::Wait(Some(start + 2 * IDLE_AFTER)));
        assert_eq!(protection.next(false, start + 2 * IDLE_AFTER), Step::Set(false));
    }
}
