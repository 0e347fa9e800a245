//! Leases. A lease is the right to complete a message, and is renewed while it is held.
//!
//! A lease is not renewed forever: fetching and classifying an image may take at most `max_lease`. After that the message is
//! visible to every worker again, and this worker can no longer complete it because its receipt is stale. Two stages do
//! not count: waiting for other images before the first stage, and publishing the outcome, however long an outage delays
//! that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::last_faults::LastFaults;
use crate::transport::{Receipt, Transport, TransportError};

/// Renewals are not more frequent, however short a lease is.
const SHORTEST_TICK: Duration = Duration::from_millis(100);

/// Every lease of this worker. Renews all of them at a third of the visibility timeout, so that a renewal may fail
/// twice before a message comes to another worker.
#[derive(Clone)]
pub(crate) struct Keeper {
    transport: Arc<dyn Transport>,
    visibility_timeout: Duration,
    max_lease: Duration,
    last_faults: Arc<LastFaults>,
    held: Arc<Held>,
}

struct Held {
    leases: Mutex<HashMap<Receipt, Progress>>,
    count: watch::Sender<usize>,
}

/// The progress of a worker with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// No work on it has begun.
    Waiting,
    Fetching,
    Queued,
    Decoding,
    Inferring,
    /// Its outcome is decided.
    Publishing,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    id: Option<Uuid>,
    stage: Stage,
    /// When the first stage that counts began.
    began: Option<Instant>,
}

/// One delivery that this worker may complete. After it is dropped it is not renewed any more, and a message
/// that was not completed is delivered again after its visibility timeout.
pub(crate) struct Lease {
    receipt: Receipt,
    held: Arc<Held>,
}

impl Keeper {
    /// Leases that run out are recorded in `last_faults`.
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        visibility_timeout: Duration,
        max_lease: Duration,
        last_faults: Arc<LastFaults>,
    ) -> Self {
        let held = Arc::new(Held { leases: Mutex::default(), count: watch::Sender::new(0) });
        Keeper { transport, visibility_timeout, max_lease, last_faults, held }
    }

    /// Begins to hold a delivery.
    pub(crate) fn hold(&self, receipt: Receipt) -> Lease {
        self.held.insert(receipt.clone());
        Lease { receipt, held: Arc::clone(&self.held) }
    }

    /// Watches how many leases are held.
    pub(crate) fn held_count(&self) -> watch::Receiver<usize> {
        self.held.count.subscribe()
    }

    /// Returns once at most `count` leases are held.
    pub(crate) async fn until_held_at_most(&self, count: usize) {
        let mut held = self.held.count.subscribe();
        // Fails only when the sender is gone, and `self` owns it.
        let _ = held.wait_for(|held| *held <= count).await;
    }

    /// Renews until cancelled.
    pub(crate) async fn renew(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval((self.visibility_timeout / 3).min(self.max_lease).max(SHORTEST_TICK));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let renewing = async {
            loop {
                ticks.tick().await;
                self.release_overdue(Instant::now()).await;
                if let Err(error) = self.transport.extend(&self.held(), self.visibility_timeout).await {
                    tracing::warn!(%error, "leases not renewed; trying again at the next tick");
                }
            }
        };
        let _: Option<()> = stop.run_until_cancelled(renewing).await;
    }

    /// The receipts that this worker may still complete.
    pub(crate) fn held(&self) -> Vec<Receipt> {
        self.held.lock().keys().cloned().collect()
    }

    /// Releases the leases that have reached `max_lease`, so that their messages are visible to every worker at once.
    async fn release_overdue(&self, now: Instant) {
        let overdue = self.held.take_overdue(self.max_lease, now);
        if overdue.is_empty() {
            return;
        }
        for (_, Progress { id, stage, .. }) in &overdue {
            let reason = format!("the lease of {:?} (--max-lease) ran out while {}", self.max_lease, stage.name());
            tracing::warn!(id = id.map(tracing::field::display), reason, "a message is left to another worker");
            if let Some(id) = id {
                self.last_faults.record(*id, reason);
            }
        }
        let receipts: Vec<Receipt> = overdue.into_iter().map(|(receipt, _)| receipt).collect();
        if let Err(error) = self.release_all(&receipts).await {
            tracing::warn!(%error, "messages whose lease ran out come again after their visibility timeout");
        }
    }

    /// Makes messages visible to other workers at once.
    pub(crate) async fn release_all(&self, receipts: &[Receipt]) -> Result<(), TransportError> {
        self.transport.release(receipts, Duration::ZERO).await
    }

    /// Releases one message, so that it is visible to every worker after `delay`.
    pub(crate) async fn release(&self, lease: Lease, delay: Duration) -> Result<(), TransportError> {
        let receipt = lease.receipt.clone();
        // Dropped before the release, because a renewal after it would hide the message for its whole timeout.
        drop(lease);
        self.transport.release(&[receipt], delay).await
    }
}

impl Stage {
    /// Returns true if the time in this stage counts against the lease.
    fn counts(self) -> bool {
        !matches!(self, Stage::Waiting | Stage::Publishing)
    }

    fn name(self) -> &'static str {
        match self {
            Stage::Waiting => "waiting for its turn",
            Stage::Fetching => "fetching",
            Stage::Queued => "waiting for a session",
            Stage::Decoding => "decoding",
            Stage::Inferring => "inferring",
            Stage::Publishing => "publishing",
        }
    }
}

impl Held {
    /// Each change of the map is one call that cannot fail half-way, so a poisoned lock still guards a consistent map.
    fn lock(&self) -> MutexGuard<'_, HashMap<Receipt, Progress>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, receipt: Receipt) {
        let mut leases = self.lock();
        leases.insert(receipt, Progress { id: None, stage: Stage::Waiting, began: None });
        self.count.send_replace(leases.len());
    }

    fn remove(&self, receipt: &Receipt) {
        let mut leases = self.lock();
        leases.remove(receipt);
        self.count.send_replace(leases.len());
    }

    fn take_overdue(&self, max_lease: Duration, now: Instant) -> Vec<(Receipt, Progress)> {
        let is_overdue = |_: &Receipt, progress: &mut Progress| {
            let began = progress.began.filter(|_| progress.stage.counts());
            began.is_some_and(|began| now.saturating_duration_since(began) >= max_lease)
        };
        let mut leases = self.lock();
        let overdue: Vec<_> = leases.extract_if(is_overdue).collect();
        if !overdue.is_empty() {
            self.count.send_replace(leases.len());
        }
        overdue
    }
}

impl Lease {
    /// The receipt, to complete the message with.
    pub(crate) fn receipt(&self) -> Receipt {
        self.receipt.clone()
    }

    /// Sets the id of the job, for the log.
    pub(crate) fn belongs_to(&self, id: Option<Uuid>) {
        if let Some(progress) = self.held.lock().get_mut(&self.receipt) {
            progress.id = id;
        }
    }

    /// Sets how far the worker is. The time of the lease begins with the first stage that counts.
    pub(crate) fn enter(&self, stage: Stage) {
        if let Some(progress) = self.held.lock().get_mut(&self.receipt) {
            progress.stage = stage;
            if stage.counts() {
                progress.began.get_or_insert_with(Instant::now);
            }
        }
    }

    /// Returns true if the lease has run out, so that another worker may have the message and work on it here is useless.
    pub(crate) fn has_run_out(&self) -> bool {
        !self.held.lock().contains_key(&self.receipt)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.held.remove(&self.receipt);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Arc<Held> {
        Arc::new(Held { leases: Mutex::default(), count: watch::Sender::new(0) })
    }

    fn lease(held: &Arc<Held>, receipt: &str) -> Lease {
        held.insert(Receipt(receipt.to_owned()));
        Lease { receipt: Receipt(receipt.to_owned()), held: Arc::clone(held) }
    }

    #[test]
    fn only_stages_between_fetching_and_classifying_count() {
        let held = held();
        let leases = ["waiting", "fetching", "line", "published"].map(|receipt| lease(&held, receipt));
        leases[1].enter(Stage::Fetching);
        leases[2].enter(Stage::Fetching);
        leases[2].enter(Stage::Queued);
        leases[3].enter(Stage::Fetching);
        leases[3].enter(Stage::Publishing);
        let max_lease = Duration::from_secs(120);
        let now = Instant::now();
        assert!(held.take_overdue(max_lease, now + Duration::from_secs(119)).is_empty());
        let mut overdue = held.take_overdue(max_lease, now + Duration::from_secs(121));
        overdue.sort_by(|one, other| one.0.0.cmp(&other.0.0));
        let overdue: Vec<_> = overdue.iter().map(|(receipt, progress)| (receipt.0.as_str(), progress.stage)).collect();
        assert_eq!(overdue, [("fetching", Stage::Fetching), ("line", Stage::Queued)]);
        assert_eq!(leases.each_ref().map(Lease::has_run_out), [false, true, true, false]);
        assert_eq!(*held.count.borrow(), 2);
        drop(leases);
        assert_eq!(*held.count.borrow(), 0);
    }
}
