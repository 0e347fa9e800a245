//! Leases: the right to end a message, held by moving it. Renewed while held, spent by ending it.
//!
//! A lease is not renewed for ever: from the moment its image is fetched until it is classified it has `max_lease`. After
//! that the message is visible to every worker again, and what is still done with it here ends at a stale receipt. Two
//! stages do not count: an image that waits for others to end before it is begun, and one whose end is decided and only
//! has to be published, however long an outage of the store keeps it from being.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Config;
use super::prepare::LastFaults;
use super::publish::Published;
use crate::queue::{MAX_BATCH, Queue, QueueError, Receipt};

/// However short a lease may be.
const SHORTEST_TICK: Duration = Duration::from_millis(100);

/// Every lease of this worker. Renews all of them at a third of the visibility timeout, so that a renewal may fail
/// twice before a message comes to another worker.
#[derive(Clone)]
pub struct Keeper {
    queue: Arc<dyn Queue>,
    visibility_timeout: Duration,
    max_lease: Duration,
    last_faults: Arc<LastFaults>,
    held: Arc<Held>,
}

struct Held {
    leases: Mutex<HashMap<Receipt, Progress>>,
    count: watch::Sender<usize>,
}

/// How far a worker is with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is done with it yet.
    Waiting,
    Fetching,
    InLine,
    Decoding,
    Inferring,
    /// Its end is decided.
    Publishing,
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    id: Option<Uuid>,
    stage: Stage,
    /// When the first stage that counts began.
    began: Option<Instant>,
}

/// One delivery that this worker may end. Dropped unspent, it is renewed no more: the message comes again when its
/// visibility timeout ends.
pub struct Lease {
    receipt: Receipt,
    held: Arc<Held>,
}

impl Keeper {
    /// `last_faults` is told of leases that ran out.
    pub fn new(queue: Arc<dyn Queue>, config: &Config, last_faults: Arc<LastFaults>) -> Self {
        let &Config { visibility_timeout, max_lease, .. } = config;
        let held = Arc::new(Held { leases: Mutex::default(), count: watch::Sender::new(0) });
        Keeper { queue, visibility_timeout, max_lease, last_faults, held }
    }

    /// Takes charge of a delivery.
    pub fn hold(&self, receipt: Receipt) -> Lease {
        self.held.insert(receipt.clone());
        Lease { receipt, held: Arc::clone(&self.held) }
    }

    /// How many leases are held, as it changes.
    pub fn held_count(&self) -> watch::Receiver<usize> {
        self.held.count.subscribe()
    }

    /// Returns once at most `count` leases are held.
    pub async fn until_held_at_most(&self, count: usize) {
        let mut held = self.held.count.subscribe();
        // Fails only when the sender is gone, and `self` owns it.
        let _ = held.wait_for(|held| *held <= count).await;
    }

    /// Renews until cancelled.
    pub async fn renew(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval((self.visibility_timeout / 3).min(self.max_lease).max(SHORTEST_TICK));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let renewing = async {
            loop {
                ticks.tick().await;
                self.release_overdue(Instant::now()).await;
                if let Err(error) = self.set_visibility(&self.held(), self.visibility_timeout).await {
                    tracing::warn!(%error, "leases not renewed; trying again at the next tick");
                }
            }
        };
        let _: Option<()> = stop.run_until_cancelled(renewing).await;
    }

    /// What this worker may still end.
    pub fn held(&self) -> Vec<Receipt> {
        self.held.lock().keys().cloned().collect()
    }

    /// Gives up the leases that were renewed for long enough: their messages are visible to every worker at once.
    async fn release_overdue(&self, now: Instant) {
        let overdue = self.held.take_overdue(self.max_lease, now);
        if overdue.is_empty() {
            return;
        }
        for (_, Progress { id, stage, .. }) in &overdue {
            let reason = format!("the lease of {:?} (--max-lease) ran out while {}", self.max_lease, stage.name());
            tracing::warn!(?id, reason, "a message is left to another worker");
            if let Some(id) = id {
                self.last_faults.record(*id, reason);
            }
        }
        let receipts: Vec<Receipt> = overdue.into_iter().map(|(receipt, _)| receipt).collect();
        if let Err(error) = self.hand_back_all(&receipts).await {
            tracing::warn!(%error, "messages whose lease ran out come again after their visibility timeout");
        }
    }

    /// Makes messages visible to other workers at once.
    pub async fn hand_back_all(&self, receipts: &[Receipt]) -> Result<(), QueueError> {
        self.set_visibility(receipts, Duration::ZERO).await
    }

    /// Deletes messages whose end is published.
    pub async fn ack(&self, leases: &[(Lease, Published)]) -> Result<(), QueueError> {
        let receipts: Vec<Receipt> = leases.iter().map(|(lease, _)| lease.receipt.clone()).collect();
        for batch in receipts.chunks(MAX_BATCH) {
            self.queue.ack_soon(batch).await?;
        }
        Ok(())
    }

    /// Gives one message up: it is visible to every worker after this long.
    pub async fn hand_back(&self, lease: Lease, after: Duration) -> Result<(), QueueError> {
        let receipt = lease.receipt.clone();
        // Spent first: a renewal that came in between would hide the message for its whole timeout.
        drop(lease);
        self.queue.set_visibility(&[(receipt, after)]).await
    }

    /// Batches go at the same time; of those that failed, the first error.
    async fn set_visibility(&self, receipts: &[Receipt], timeout: Duration) -> Result<(), QueueError> {
        let changes: Vec<_> = receipts.iter().map(|receipt| (receipt.clone(), timeout)).collect();
        let batches = changes.chunks(MAX_BATCH).map(|batch| self.queue.set_visibility(batch));
        join_all(batches).await.into_iter().collect()
    }
}

impl Stage {
    /// Whether the time of a lease goes on in it.
    fn counts(self) -> bool {
        !matches!(self, Stage::Waiting | Stage::Publishing)
    }

    fn name(self) -> &'static str {
        match self {
            Stage::Waiting => "waiting for its turn",
            Stage::Fetching => "fetching",
            Stage::InLine => "waiting for a session",
            Stage::Decoding => "decoding",
            Stage::Inferring => "inferring",
            Stage::Publishing => "publishing",
        }
    }
}

impl Held {
    /// Each change of the map is one call that cannot fail half-way, so a poisoned lock still guards a whole map.
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
    /// Says whose image it is, for the log.
    pub fn belongs_to(&self, id: Option<Uuid>) {
        if let Some(progress) = self.held.lock().get_mut(&self.receipt) {
            progress.id = id;
        }
    }

    /// Says how far the worker is. The time of the lease begins with the first stage that counts.
    pub fn enter(&self, stage: Stage) {
        if let Some(progress) = self.held.lock().get_mut(&self.receipt) {
            progress.stage = stage;
            if stage.counts() {
                progress.began.get_or_insert_with(Instant::now);
            }
        }
    }

    /// The message is another worker's by now: nothing that is done with it here is of use.
    pub fn has_run_out(&self) -> bool {
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
    fn only_the_stages_between_fetching_and_classifying_count() {
        let held = held();
        let leases = ["waiting", "fetching", "line", "published"].map(|receipt| lease(&held, receipt));
        leases[1].enter(Stage::Fetching);
        leases[2].enter(Stage::Fetching);
        leases[2].enter(Stage::InLine);
        leases[3].enter(Stage::Fetching);
        leases[3].enter(Stage::Publishing);
        let max_lease = Duration::from_secs(120);
        let now = Instant::now();
        assert!(held.take_overdue(max_lease, now + Duration::from_secs(119)).is_empty());
        let mut overdue = held.take_overdue(max_lease, now + Duration::from_secs(121));
        overdue.sort_by(|one, other| one.0.0.cmp(&other.0.0));
        let overdue: Vec<_> = overdue.iter().map(|(receipt, progress)| (receipt.0.as_str(), progress.stage)).collect();
        assert_eq!(overdue, [("fetching", Stage::Fetching), ("line", Stage::InLine)]);
        assert_eq!(leases.each_ref().map(Lease::has_run_out), [false, true, true, false]);
        assert_eq!(*held.count.borrow(), 2);
        drop(leases);
        assert_eq!(*held.count.borrow(), 0);
    }
}
