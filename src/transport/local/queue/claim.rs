//! Messages that a receive has taken and that its caller has not yet got.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::duration;
use super::messages::{self, Taken};
use crate::sqlite::{Calls, Session, WakeToken};
use crate::transport::message::{Delivery, Receipt};

/// Messages on their way from the thread of the database to the caller. When the caller's future is dropped, they become
/// visible again at once, and the delivery does not count.
pub(super) struct Claim {
    queue: String,
    deliveries: Vec<Delivery>,
    /// Time until the next message is visible.
    pub next_due: Option<Duration>,
    /// True once the transaction is committed. Before that, nothing was taken.
    committed: Arc<AtomicBool>,
    calls: Calls,
}

impl Claim {
    pub(super) fn new(queue: &str, taken: Taken, session: &Session, calls: Calls) -> Claim {
        Claim {
            queue: queue.to_owned(),
            deliveries: taken.deliveries,
            next_due: taken.next_due_ms.map(|due_ms| duration(due_ms.saturating_sub(session.now_ms))),
            committed: Arc::clone(&session.committed),
            calls,
        }
    }

    /// Returns true if no message was taken.
    pub(super) fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// Returns true if more messages can be received now.
    pub(super) fn has_more(&self) -> bool {
        self.next_due.is_some_and(|due| due.is_zero())
    }

    /// Releases the wake token when no message is left. Otherwise dropping it wakes the next waiter.
    pub(super) fn release_wake_token(&self, wake_token: Option<WakeToken>) {
        if let Some(wake_token) = wake_token
            && !self.has_more()
        {
            wake_token.release();
        }
    }

    pub(super) fn accept(mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.deliveries.is_empty() || !self.committed.load(Ordering::Acquire) {
            return;
        }
        let queue = std::mem::take(&mut self.queue);
        let receipts: Vec<Receipt> = self.deliveries.drain(..).map(|delivery| delivery.receipt).collect();
        self.calls.post_write(move |session| messages::undo_receive(session, &queue, &receipts));
    }
}
