//! Waits for notifications with epoll.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

use super::fifo;
use crate::sqlite::thread::lock;

/// The one thread of a process that waits for bytes in the FIFOs. It watches only the FIFOs of queues that have a waiter in
/// this process; bytes in the others are for other processes.
pub(super) struct Listener {
    epoll: Arc<OwnedFd>,
    subscribers: Arc<Mutex<Subscribers>>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Subscribers {
    by_key: HashMap<u64, Weak<Subscriber>>,
    last_key: u64,
}

/// The key of the event that stops the thread. The keys of subscribers begin after it.
const STOP: u64 = 0;

/// The waiters of one queue in this process.
pub(super) struct Subscriber {
    key: u64,
    fifo: File,
    inode: u64,
    epoll: Arc<OwnedFd>,
    waiters: Mutex<Waiters>,
    notify: Notify,
}

#[derive(Default)]
struct Waiters {
    count: usize,
    /// True if epoll watches the FIFO.
    is_registered: bool,
}

impl Listener {
    pub(super) fn start() -> io::Result<Listener> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
        let subscribers = Arc::<Mutex<Subscribers>>::default();
        let run = {
            let (epoll, subscribers) = (Arc::clone(&epoll), Arc::clone(&subscribers));
            move || {
                if let Err(error) = listen(&epoll, &subscribers) {
                    tracing::warn!(%error, "the notifier has failed: the local queue polls");
                }
            }
        };
        let thread = std::thread::Builder::new().name("queue-notifier".to_owned()).spawn(run)?;
        Ok(Listener { epoll, subscribers, stop, thread: Some(thread) })
    }

    /// Creates the subscriber of the queue with this FIFO.
    pub(super) fn register(&self, path: &Path) -> io::Result<Arc<Subscriber>> {
        let fifo = fifo::open_reader(path)?;
        let inode = fifo.metadata()?.ino();
        let mut subscribers = lock(&self.subscribers);
        subscribers.by_key.retain(|_, subscriber| subscriber.strong_count() > 0);
        subscribers.last_key += 1;
        let subscriber = Arc::new(Subscriber {
            key: subscribers.last_key,
            fifo,
            inode,
            epoll: Arc::clone(&self.epoll),
            waiters: Mutex::default(),
            notify: Notify::new(),
        });
        subscribers.by_key.insert(subscriber.key, Arc::downgrade(&subscriber));
        Ok(subscriber)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let stopped = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        debug_assert!(stopped.is_ok(), "an event takes a first write; this is a bug");
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the notifier panicked; this is a bug");
        }
    }
}

fn listen(epoll: &OwnedFd, subscribers: &Mutex<Subscribers>) -> io::Result<()> {
    let mut events = Vec::with_capacity(16);
    loop {
        events.clear();
        match epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let key = event.data.u64();
            if key == STOP {
                return Ok(());
            }
            let subscriber = lock(subscribers).by_key.get(&key).and_then(Weak::upgrade);
            if let Some(subscriber) = subscriber {
                subscriber.wake_one();
            }
        }
    }
}

impl Subscriber {
    /// Returns true if the FIFO of this subscriber is still at this path, and not that of a queue that was created again.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        rustix::fs::stat(path).is_ok_and(|found| found.st_ino == self.inode)
    }

    /// Wakes one waiter of the queue, in this process or in another.
    pub(super) fn notify(&self) {
        if let Err(error) = fifo::notify(Some(&self.fifo)) {
            tracing::debug!(%error, "cannot notify the waiters of a queue");
        }
    }

    /// Waits until this waiter is woken.
    pub(super) async fn notified(&self) {
        let mut waiter = Waiter::add(self);
        self.notify.notified().await;
        waiter.is_woken = true;
    }

    /// Consumes the notifications in the FIFO and wakes one waiter. Called by the thread.
    fn wake_one(&self) {
        let mut waiters = lock(&self.waiters);
        if !waiters.is_registered {
            return;
        }
        // Before the FIFO is emptied, so that the next notification goes to another process.
        self.unregister(&mut waiters);
        let mut bytes = [0; 4096];
        while matches!((&self.fifo).read(&mut bytes), Ok(1..)) {}
        self.notify.notify_one();
    }

    fn register(&self, waiters: &mut Waiters) {
        // Exclusive: the kernel wakes one of all processes that wait at the FIFO.
        let flags = EventFlags::IN | EventFlags::EXCLUSIVE;
        match epoll::add(&self.epoll, &self.fifo, EventData::new_u64(self.key), flags) {
            Ok(()) => waiters.is_registered = true,
            Err(error) => tracing::debug!(%error, "cannot add the FIFO to epoll; its waiters poll every second"),
        }
    }

    fn unregister(&self, waiters: &mut Waiters) {
        waiters.is_registered = false;
        if let Err(error) = epoll::delete(&self.epoll, &self.fifo) {
            tracing::debug!(%error, "cannot remove the FIFO from epoll");
        }
    }
}

/// One waiter. Epoll watches the FIFO while there are waiters and none of them is being woken.
struct Waiter<'a> {
    subscriber: &'a Subscriber,
    is_woken: bool,
}

impl Waiter<'_> {
    fn add(subscriber: &Subscriber) -> Waiter<'_> {
        let mut waiters = lock(&subscriber.waiters);
        waiters.count += 1;
        if !waiters.is_registered {
            subscriber.register(&mut waiters);
        }
        Waiter { subscriber, is_woken: false }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiters = lock(&self.subscriber.waiters);
        waiters.count -= 1;
        match (waiters.count, waiters.is_registered) {
            (0, true) => self.subscriber.unregister(&mut waiters),
            // The notification was for a waiter that has just left: pass it on.
            (0, false) if !self.is_woken => self.subscriber.notify(),
            (0, false) | (_, true) => {}
            (_, false) => self.subscriber.register(&mut waiters),
        }
    }
}
