//! Notifications between processes: how a send in one process wakes a receive in another without polling.
//!
//! Each queue that has waiters has a FIFO, `bells/<queue>`. A process that made a message receivable writes a byte into it,
//! and the kernel wakes one of the waiters of all processes; the others sleep on. Nothing is written to disk. If there is
//! no FIFO, or no process has it open, the queue has no waiter.
//!
//! A notification is only a hint to read the queue again. A lost one delays a waiter by at most [`RECHECK`].

mod fifo;
#[cfg_attr(target_os = "linux", path = "epoll.rs")]
#[cfg_attr(not(target_os = "linux"), path = "unsupported.rs")]
mod listener;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::listener::{Listener, Subscriber};
use super::fault::Fault;
use super::file;
use super::thread::lock;

/// How often a waiting receive polls the queue without a notification. A message that becomes receivable later than that
/// needs no notification: the next poll finds out when it is due.
pub const RECHECK: Duration = Duration::from_secs(1);
/// How often a receive polls that cannot be notified.
const RECHECK_WITHOUT_NOTIFICATIONS: Duration = Duration::from_millis(10);

/// Wakes waiters of queues, in this process and in others.
pub struct Notifier {
    directory: PathBuf,
    /// The queues that were waited for in this process.
    subscribers: Mutex<HashMap<String, Arc<Subscriber>>>,
    /// `None` if the kernel has no epoll.
    listener: Option<Listener>,
}

/// The subscription of a waiter to the notifications of a queue.
pub struct Subscription {
    /// `None` if this waiter cannot be notified.
    subscriber: Option<Arc<Subscriber>>,
    /// True if this process had not subscribed to the queue before, so that it was not notified of earlier messages.
    pub is_new: bool,
    /// How often the waiter has to poll without a notification.
    pub recheck: Duration,
}

/// Held by the one waiter that was woken. Call [`WakeToken::release`] when the queue is empty. Dropping it, also by
/// cancelling the waiter, wakes the next waiter, so a batch of messages wakes as many waiters as it feeds, and no
/// notification is lost.
pub struct WakeToken(Option<Arc<Subscriber>>);

impl Notifier {
    /// Starts the thread that waits for notifications. If that is impossible, waiters poll.
    ///
    /// # Errors
    /// [`Fault`] if the directory of the FIFOs cannot be created.
    pub fn open(data_dir: &Path) -> Result<Notifier, Fault> {
        let directory = data_dir.join("bells");
        file::make_directory(&directory)?;
        let listener = Listener::start()
            .inspect_err(|error| tracing::warn!(%error, "cannot start the notifier: the local queue polls"))
            .ok();
        Ok(Notifier { directory, subscribers: Mutex::default(), listener })
    }

    /// Subscribes to a queue.
    pub fn subscribe(&self, queue: &str) -> Subscription {
        let path = self.directory.join(queue);
        let mut subscribers = lock(&self.subscribers);
        if let Some(subscriber) = subscribers.get(queue).filter(|subscriber| subscriber.is_at(&path)) {
            return Subscription { subscriber: Some(Arc::clone(subscriber)), is_new: false, recheck: RECHECK };
        }
        match self.register(&path) {
            Ok(subscriber) => {
                subscribers.insert(queue.to_owned(), Arc::clone(&subscriber));
                Subscription { subscriber: Some(subscriber), is_new: true, recheck: RECHECK }
            }
            Err(error) => {
                tracing::debug!(queue, %error, "cannot subscribe to a queue: polling it");
                Subscription { subscriber: None, is_new: false, recheck: RECHECK_WITHOUT_NOTIFICATIONS }
            }
        }
    }

    /// Wakes one waiter of the queue.
    pub fn notify(&self, queue: &str) {
        let fifo = fifo::open_writer(&self.directory.join(queue));
        if let Err(error) = fifo.and_then(|fifo| fifo::notify(fifo.as_ref())) {
            tracing::debug!(queue, %error, "cannot notify the waiters of a queue");
        }
    }

    /// Removes the FIFO of a removed queue. One waiter is woken, finds the queue gone, and so wakes the next.
    pub fn remove(&self, queue: &str) {
        let path = self.directory.join(queue);
        let fifo = fifo::open_writer(&path);
        // If it is missing, it was removed already; one that is left behind does no harm.
        let _ = std::fs::remove_file(&path);
        lock(&self.subscribers).remove(queue);
        if let Err(error) = fifo.and_then(|fifo| fifo::notify(fifo.as_ref())) {
            tracing::debug!(queue, %error, "cannot notify the waiters of a removed queue");
        }
    }

    fn register(&self, path: &Path) -> io::Result<Arc<Subscriber>> {
        let listener = self.listener.as_ref().filter(|listener| !listener.has_ended());
        listener.ok_or(io::ErrorKind::Unsupported)?.register(path)
    }
}

impl Subscription {
    /// Waits for a notification, forever if this waiter cannot be notified.
    pub async fn notified(&self) -> WakeToken {
        match &self.subscriber {
            Some(subscriber) => {
                subscriber.notified().await;
                WakeToken(Some(Arc::clone(subscriber)))
            }
            None => std::future::pending().await,
        }
    }
}

impl WakeToken {
    /// Releases the token without waking another waiter.
    pub fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for WakeToken {
    fn drop(&mut self) {
        if let Some(subscriber) = &self.0 {
            subscriber.notify();
        }
    }
}
