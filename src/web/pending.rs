//! Who waits for which id.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;
use uuid::Uuid;

/// What wakes a waiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// The whole result, as it stands in the store.
    Result(Bytes),
    /// It stands in the store; the reply was too small to carry it.
    Look,
}

/// The waiters of one web process, by id. Bounded by the connections that wait.
#[derive(Clone, Default)]
pub struct Pending(Arc<Mutex<HashMap<Uuid, Vec<Entry>>>>);

struct Entry {
    ticket: u64,
    wake: mpsc::Sender<Wake>,
}

/// One caller's place; given up when it is dropped, however the caller left.
pub struct Waiter {
    id: Uuid,
    ticket: u64,
    woken: mpsc::Receiver<Wake>,
    pending: Pending,
}

impl Pending {
    /// Registers a caller. To be called before the job can end: before it is sent, or before the store is read.
    pub fn wait_for(&self, id: Uuid) -> Waiter {
        // One place: a second wake for the same waiter says nothing new.
        let (wake, woken) = mpsc::channel(1);
        let ticket = rand::random();
        self.lock().entry(id).or_default().push(Entry { ticket, wake });
        Waiter { id, ticket, woken, pending: self.clone() }
    }

    pub fn is_waited_for(&self, id: Uuid) -> bool {
        self.lock().contains_key(&id)
    }

    /// Wakes all who wait for `id`.
    pub fn wake(&self, id: Uuid, wake: &Wake) {
        for entry in self.lock().remove(&id).unwrap_or_default() {
            // Full: woken already. Closed: just left.
            let _ = entry.wake.try_send(wake.clone());
        }
    }

    /// Each change of the map is one call that cannot fail half-way, so a poisoned lock still guards a whole map.
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Vec<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// The next wake. After one, nothing more comes.
    pub async fn woken(&mut self) -> Wake {
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
    async fn everybody_who_waits_for_an_id_is_woken_and_nobody_else() {
        let pending = Pending::default();
        let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
        let (mut first, mut second, third) = (pending.wait_for(one), pending.wait_for(one), pending.wait_for(other));
        assert!(pending.is_waited_for(one));
        pending.wake(one, &Wake::Look);
        assert_eq!((first.woken().await, second.woken().await), (Wake::Look, Wake::Look));
        assert!(!pending.is_waited_for(one), "nobody waits any more");
        assert_eq!(pending.lock().len(), 1);
        drop(third);
        assert_eq!(pending.lock().len(), 0);
    }
}
