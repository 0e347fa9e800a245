//! The callers that wait for results, by the id of their job.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;
use uuid::Uuid;

/// The reason for which a waiter is woken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The whole result.
    Result(Bytes),
    /// The result is stored. It was too large for the reply, so that the waiter has to read it.
    ReadResult,
}

/// The waiters of one web process, by id. Bounded by the connections that wait.
#[derive(Clone, Default)]
pub(crate) struct Pending(Arc<Mutex<HashMap<Uuid, Vec<Entry>>>>);

struct Entry {
    ticket: u64,
    wake: mpsc::Sender<Wake>,
}

/// One waiting caller. Dropping it removes the caller, for whatever reason the caller left.
pub(crate) struct Waiter {
    id: Uuid,
    ticket: u64,
    woken: mpsc::Receiver<Wake>,
    pending: Pending,
}

impl Pending {
    /// Registers a caller. Call it before the job can have a result: before it is submitted, or before its result is read.
    pub(crate) fn wait_for(&self, id: Uuid) -> Waiter {
        // One wake is enough, since the waiter reads the result after it.
        let (wake, woken) = mpsc::channel(1);
        let ticket = rand::random();
        self.lock().entry(id).or_default().push(Entry { ticket, wake });
        Waiter { id, ticket, woken, pending: self.clone() }
    }

    pub(crate) fn is_waited_for(&self, id: Uuid) -> bool {
        self.lock().contains_key(&id)
    }

    /// Wakes all callers that wait for `id`.
    pub(crate) fn wake(&self, id: Uuid, wake: &Wake) {
        for entry in self.lock().remove(&id).unwrap_or_default() {
            // If the channel is full, the waiter was woken already. If it is closed, the waiter has just left.
            let _ = entry.wake.try_send(wake.clone());
        }
    }

    /// Each change of the map is one call that cannot fail half-way, so a poisoned lock still guards a consistent map.
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Vec<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    pub(crate) fn id(&self) -> Uuid {
        self.id
    }

    /// Waits for the wake. There is only one.
    pub(crate) async fn woken(&mut self) -> Wake {
        match self.woken.recv().await {
            Some(wake) => wake,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.pending.lock();
        if let Some(entries) = waiting.get_mut(&self.id) {
            entries.retain(|entry| entry.ticket != self.ticket);
            if entries.is_empty() {
                waiting.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_waiters_of_an_id_and_no_others_are_woken() {
        let pending = Pending::default();
        let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
        let (mut first, mut second, third) = (pending.wait_for(one), pending.wait_for(one), pending.wait_for(other));
        assert!(pending.is_waited_for(one));
        pending.wake(one, &Wake::ReadResult);
        assert_eq!((first.woken().await, second.woken().await), (Wake::ReadResult, Wake::ReadResult));
        assert!(!pending.is_waited_for(one), "nobody waits any more");
        assert_eq!(pending.lock().len(), 1);
        drop(third);
        assert_eq!(pending.lock().len(), 0);
    }
}
