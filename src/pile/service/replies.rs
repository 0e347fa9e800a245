//! Replies of workers to this process, and the waiters that they wake.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::open_inbox;
use crate::protocol::ReplyHead;
use crate::retry::Schedule;
use crate::transport::{Inbox, Receipt, ReceivedReply, Transport};

/// Pauses after a receive that failed.
const BACKOFF: Schedule = Schedule::new(Duration::from_secs(1), Duration::from_secs(20));

/// The replies to this process.
pub(super) struct Replies {
    inbox: Option<Box<dyn Inbox>>,
    waiters: Mutex<HashMap<Uuid, Vec<oneshot::Sender<Option<Bytes>>>>>,
}

impl Replies {
    /// Opens an inbox of this process alone. Without one, waiters only read results.
    pub(super) async fn open(transport: &dyn Transport, stack: &str) -> Replies {
        Replies { inbox: open_inbox(transport, stack).await, waiters: Mutex::default() }
    }

    /// The address for the member `reply_to` of requests.
    pub(super) fn address(&self) -> Option<String> {
        self.inbox.as_ref().map(|inbox| inbox.address())
    }

    /// Registers a waiter. Call it before the job can have a result. It gets the result, or `None` if it has to read it.
    pub(super) fn wait_for(&self, id: Uuid) -> oneshot::Receiver<Option<Bytes>> {
        let (wake, woken) = oneshot::channel();
        self.waiters().entry(id).or_default().push(wake);
        woken
    }

    /// Forgets the waiters of a job.
    pub(super) fn forget(&self, id: Uuid) {
        self.waiters().remove(&id);
    }

    /// Passes replies to their waiters, until the future is dropped.
    pub(super) async fn run(&self) {
        let Some(inbox) = &self.inbox else { return };
        tokio::select! {
            () = self.receive(&**inbox) => {}
            () = inbox.maintain() => {}
        }
    }

    /// Removes the inbox.
    pub(super) async fn close(&self) {
        if let Some(inbox) = &self.inbox {
            inbox.close().await;
        }
    }

    async fn receive(&self, inbox: &dyn Inbox) {
        let mut backoff = BACKOFF.start();
        loop {
            match inbox.receive().await {
                Ok(replies) => {
                    backoff.reset();
                    let handled: Vec<Receipt> = replies.into_iter().map(|reply| self.wake(reply)).collect();
                    inbox.acknowledge(&handled, &[]).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot receive replies; the results are read from the store meanwhile");
                    tokio::time::sleep(backoff.next_delay_with_jitter()).await;
                }
            }
        }
    }

    fn wake(&self, ReceivedReply { receipt, text, .. }: ReceivedReply) -> Receipt {
        if let Ok(head) = serde_json::from_str::<ReplyHead>(&text) {
            let result = (!head.is_cut()).then(|| Bytes::from(text));
            for waiter in self.waiters().remove(&head.id).unwrap_or_default() {
                // The run may have been stopped.
                let _ = waiter.send(result.clone());
            }
        }
        receipt
    }

    /// Each change of the map is one call that cannot fail half-way, so a poisoned lock still guards a consistent map.
    fn waiters(&self) -> MutexGuard<'_, HashMap<Uuid, Vec<oneshot::Sender<Option<Bytes>>>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
