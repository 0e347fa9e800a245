//! Messages that are processed alone, because they may have ended the workers that had them before.
//!
//! The loops of both classes receive at the same time. While a message is processed alone neither receives, and messages
//! of both loops that wait for their turn do not count as being processed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, watch};

pub(crate) struct Alone {
    gate: RwLock<()>,
    waiting: Arc<AtomicUsize>,
    /// Loops that wait for a turn.
    wanted: watch::Sender<usize>,
}

/// A loop that waits for a turn.
struct WantedTurn<'a>(&'a watch::Sender<usize>);

impl Default for Alone {
    fn default() -> Self {
        Alone { gate: RwLock::default(), waiting: Arc::default(), wanted: watch::Sender::new(0) }
    }
}

impl Drop for WantedTurn<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|wanted| *wanted -= 1);
    }
}

/// A received message that waits for its turn. Dropping it ends the wait.
pub(crate) struct WaitingMessage(Arc<AtomicUsize>);

impl Alone {
    /// Waits until no message is processed alone. Hold the guard from the receive until the messages are held or counted
    /// as waiting.
    pub(crate) async fn together(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    /// Waits until the other loop does not receive. It does not begin to while the guard is held.
    pub(crate) async fn turn(&self) -> RwLockWriteGuard<'_, ()> {
        self.wanted.send_modify(|wanted| *wanted += 1);
        let _wanted = WantedTurn(&self.wanted);
        self.gate.write().await
    }

    /// Resolves while a loop waits for a turn. A receive that finds nothing is given up then.
    pub(crate) async fn is_wanted(&self) {
        // Cannot fail, because `self` holds the sender.
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted > 0).await;
    }

    /// Counts a message that waits for its turn. Call it while the guard of [`Alone::together`] is held.
    pub(crate) fn wait(&self) -> WaitingMessage {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        WaitingMessage(Arc::clone(&self.waiting))
    }

    /// The messages of both loops that wait for their turn.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

impl Drop for WaitingMessage {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
