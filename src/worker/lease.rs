//! Leases: the right to end a message, held by moving it. Renewed while held, spent by ending it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::publish::Published;
use crate::queue::{MAX_BATCH, Queue, QueueError, Receipt};

/// Every lease of this worker. Renews all of them at a third of the visibility timeout, so that a renewal may fail
/// twice before a message comes to another worker.
#[derive(Clone)]
pub struct Keeper {
    queue: Arc<dyn Queue>,
    visibility_timeout: Duration,
    held: Arc<Held>,
}

struct Held {
    receipts: Mutex<HashSet<Receipt>>,
    count: watch::Sender<usize>,
}

/// One delivery that this worker may end. Dropped unspent, it is renewed no more: the message comes again when its
/// visibility timeout ends.
pub struct Lease {
    receipt: Receipt,
    held: Arc<Held>,
}

impl Keeper {
    pub fn new(queue: Arc<dyn Queue>, visibility_timeout: Duration) -> Self {
        let held = Arc::new(Held { receipts: Mutex::default(), count: watch::Sender::new(0) });
        Keeper { queue, visibility_timeout, held }
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
        let mut ticks = tokio::time::interval(self.visibility_timeout / 3);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let renewing = async {
            loop {
                ticks.tick().await;
                if let Err(error) = self.set_visibility(&self.held(), self.visibility_timeout).await {
                    tracing::warn!(%error, "leases not renewed; trying again at the next tick");
                }
            }
        };
        let _: Option<()> = stop.run_until_cancelled(renewing).await;
    }

    /// What this worker may still end.
    pub fn held(&self) -> Vec<Receipt> {
        self.held.lock().iter().cloned().collect()
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

impl Held {
    /// Each change of the set is one call that cannot fail half-way, so a poisoned lock still guards a whole set.
    fn lock(&self) -> MutexGuard<'_, HashSet<Receipt>> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, receipt: Receipt) {
        let mut receipts = self.lock();
        receipts.insert(receipt);
        self.count.send_replace(receipts.len());
    }

    fn remove(&self, receipt: &Receipt) {
        let mut receipts = self.lock();
        receipts.remove(receipt);
        self.count.send_replace(receipts.len());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.held.remove(&self.receipt);
    }
}
