//! Doorbells: how a send in one process wakes a receive in another without polling.
//!
//! Each queue that somebody waits for has a FIFO, `bells/<queue>`. Who made a message receivable writes a byte into it,
//! and the kernel wakes one of those who wait, whichever process they are in: the others sleep on. Nothing reaches the
//! disk, and where no FIFO is, or nobody has it open, nobody waits.
//!
//! A bell only says "look again". One that was missed costs at most [`RECHECK`].

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::OFlags;

use super::{Fault, file, lock};

/// How often a waiting receive looks without having been rung. What becomes receivable later than that from now needs
/// no bell: the next look sees when it is due.
pub const RECHECK: Duration = Duration::from_secs(1);
/// The same where no bell can be heard.
const RECHECK_DEAF: Duration = Duration::from_millis(10);

pub struct Notifier {
    directory: PathBuf,
    /// Of the queues that were waited for in this process.
    ears: Mutex<HashMap<String, Arc<listener::Ear>>>,
    /// None where the kernel offers none.
    listener: Option<listener::Listener>,
}

/// A place at a bell.
pub struct Subscription {
    /// None where it cannot be heard.
    ear: Option<Arc<listener::Ear>>,
    /// Whether it was hung only now: what was sent before did not ring it.
    pub is_new: bool,
    pub recheck: Duration,
}

/// Having been woken, and nobody else. Who looked and left nothing behind lays it down; dropped, also with a cancelled
/// waiter, it wakes the next. So a batch wakes as many as it feeds, and no wake is lost.
pub struct WakeToken(Option<Arc<listener::Ear>>);

impl Notifier {
    pub fn open(data_dir: &Path) -> Result<Notifier, Fault> {
        let directory = data_dir.join("bells");
        file::make_directory(&directory)?;
        let listener = listener::Listener::start()
            .inspect_err(|error| tracing::warn!(%error, "no doorbells: the local queue polls"))
            .ok();
        Ok(Notifier { directory, ears: Mutex::default(), listener })
    }

    pub fn subscribe(&self, queue: &str) -> Subscription {
        let path = self.directory.join(queue);
        let mut ears = lock(&self.ears);
        if let Some(ear) = ears.get(queue).filter(|ear| ear.is_at(&path)) {
            return Subscription { ear: Some(Arc::clone(ear)), is_new: false, recheck: RECHECK };
        }
        match self.hang(&path) {
            Ok(ear) => {
                ears.insert(queue.to_owned(), Arc::clone(&ear));
                Subscription { ear: Some(ear), is_new: true, recheck: RECHECK }
            }
            Err(error) => {
                tracing::debug!(queue, %error, "no bell, polling");
                Subscription { ear: None, is_new: false, recheck: RECHECK_DEAF }
            }
        }
    }

    /// Wakes one of those who wait for the queue.
    pub fn notify(&self, queue: &str) {
        if let Err(error) = open_to_ring(&self.directory.join(queue)).and_then(|bell| strike(bell.as_ref())) {
            tracing::debug!(queue, %error, "a bell did not ring");
        }
    }

    /// Takes the bell down with its queue. Who waits there is woken, finds the queue gone, and so wakes the next.
    pub fn remove(&self, queue: &str) {
        let path = self.directory.join(queue);
        let bell = open_to_ring(&path);
        // One that is not there is removed already; a left one does no harm.
        let _ = std::fs::remove_file(&path);
        lock(&self.ears).remove(queue);
        if let Err(error) = bell.and_then(|bell| strike(bell.as_ref())) {
            tracing::debug!(queue, %error, "the bell of a removed queue did not ring");
        }
    }

    fn hang(&self, path: &Path) -> io::Result<Arc<listener::Ear>> {
        let listener = self.listener.as_ref().filter(|listener| !listener.has_ended());
        let listener = listener.ok_or(io::ErrorKind::Unsupported)?;
        listener.hang(path)
    }
}

impl Subscription {
    /// Waits until rung; for ever where it cannot be heard.
    pub async fn notified(&self) -> WakeToken {
        match &self.ear {
            Some(ear) => {
                ear.struck().await;
                WakeToken(Some(Arc::clone(ear)))
            }
            None => std::future::pending().await,
        }
    }
}

impl WakeToken {
    pub fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for WakeToken {
    fn drop(&mut self) {
        if let Some(ear) = &self.0 {
            ear.strike();
        }
    }
}

/// None where nobody can be waiting.
fn open_to_ring(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path) {
        Ok(bell) => Ok(Some(bell)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Nobody has it open for reading.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn strike(bell: Option<&File>) -> io::Result<()> {
    match bell.map(|mut bell| bell.write(&[1])) {
        None | Some(Ok(_)) => Ok(()),
        // Full: struck often enough. Broken: whoever had it open is gone.
        Some(Err(error)) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::BrokenPipe) => Ok(()),
        Some(Err(error)) => Err(error),
    }
}

#[cfg(target_os = "linux")]
mod listener {
    use std::collections::HashMap;
    use std::fs::{File, OpenOptions};
    use std::io::{self, Read as _};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
    use std::path::Path;
    use std::sync::{Arc, Mutex, Weak};
    use std::thread::JoinHandle;

    use rustix::event::epoll::{self, EventData, EventFlags};
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{self, OFlags};
    use tokio::sync::Notify;

    use super::lock;

    /// The one thread of a process that hears bells. It waits only at those that somebody here waits for: a bell that
    /// nobody needs to hear in this process is left to another.
    pub(super) struct Listener {
        epoll: Arc<OwnedFd>,
        ears: Arc<Mutex<Ears>>,
        stop: OwnedFd,
        thread: Option<JoinHandle<()>>,
    }

    #[derive(Default)]
    struct Ears {
        by_key: HashMap<u64, Weak<Ear>>,
        last_key: u64,
    }

    /// What the event to stop is known by; keys of ears begin after it.
    const STOP: u64 = 0;

    /// This process' end of a bell.
    pub(super) struct Ear {
        key: u64,
        fifo: File,
        inode: u64,
        epoll: Arc<OwnedFd>,
        waiting: Mutex<Waiting>,
        notify: Notify,
    }

    #[derive(Default)]
    struct Waiting {
        count: usize,
        /// Whether the thread would hear it.
        is_heard: bool,
    }

    impl Listener {
        pub fn start() -> io::Result<Listener> {
            let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
            let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
            let ears = Arc::<Mutex<Ears>>::default();
            let run = {
                let (epoll, ears) = (Arc::clone(&epoll), Arc::clone(&ears));
                move || {
                    if let Err(error) = listen(&epoll, &ears) {
                        tracing::warn!(%error, "the notifier of the local queue are gone: it polls");
                    }
                }
            };
            let thread = std::thread::Builder::new().name("queue-bells".to_owned()).spawn(run)?;
            Ok(Listener { epoll, ears, stop, thread: Some(thread) })
        }

        pub fn hang(&self, path: &Path) -> io::Result<Arc<Ear>> {
            let fifo = make_fifo(path)?;
            let inode = fifo.metadata()?.ino();
            let mut ears = lock(&self.ears);
            ears.by_key.retain(|_, ear| ear.strong_count() > 0);
            ears.last_key += 1;
            let key = ears.last_key;
            let epoll = Arc::clone(&self.epoll);
            let ear = Arc::new(Ear { key, fifo, inode, epoll, waiting: Mutex::default(), notify: Notify::new() });
            ears.by_key.insert(key, Arc::downgrade(&ear));
            Ok(ear)
        }

        pub fn has_ended(&self) -> bool {
            self.thread.as_ref().is_none_or(JoinHandle::is_finished)
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            // Adds up until read, which nobody does; the thread ends at the first.
            let stopped = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
            debug_assert!(stopped.is_ok(), "an event takes a first write; this is a bug");
            if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("the thread that hears notifier panicked; this is a bug");
            }
        }
    }

    /// Opened, and made where it is not there. Another kind of file under that name is of an earlier release.
    fn make_fifo(path: &Path) -> io::Result<File> {
        for _ in 0..2 {
            match fs::mkfifoat(fs::CWD, path, fs::Mode::from_raw_mode(0o600)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            // For both: it then needs nobody else to be open.
            let flags = OFlags::NONBLOCK.bits().cast_signed();
            let fifo = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
            if fifo.metadata()?.file_type().is_fifo() {
                return Ok(fifo);
            }
            std::fs::remove_file(path)?;
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn listen(epoll: &OwnedFd, ears: &Mutex<Ears>) -> io::Result<()> {
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
                let ear = lock(ears).by_key.get(&key).and_then(Weak::upgrade);
                if let Some(ear) = ear {
                    ear.hear();
                }
            }
        }
    }

    impl Ear {
        /// Whether the bell of that path is still this one, and not one of a queue that was made again.
        pub fn is_at(&self, path: &Path) -> bool {
            fs::stat(path).is_ok_and(|found| found.st_ino == self.inode)
        }

        pub fn strike(&self) {
            if let Err(error) = super::strike(Some(&self.fifo)) {
                tracing::debug!(%error, "a bell did not ring");
            }
        }

        /// Waits until the bell rings for this waiter.
        pub async fn struck(&self) {
            let mut place = Place::take(self);
            self.notify.notified().await;
            place.is_woken = true;
        }

        /// On the thread: takes what was rung and wakes one.
        fn hear(&self) {
            let mut waiting = lock(&self.waiting);
            if !waiting.is_heard {
                return;
            }
            // At once, so that the next ring wakes another.
            self.stop_hearing(&mut waiting);
            let mut rung = [0; 4096];
            while matches!((&self.fifo).read(&mut rung), Ok(1..)) {}
            self.notify.notify_one();
        }

        fn start_hearing(&self, waiting: &mut Waiting) {
            // Exclusive: of all processes that wait at it, the kernel wakes one.
            let flags = EventFlags::IN | EventFlags::EXCLUSIVE;
            match epoll::add(&self.epoll, &self.fifo, EventData::new_u64(self.key), flags) {
                Ok(()) => waiting.is_heard = true,
                Err(error) => tracing::debug!(%error, "a bell cannot be heard; its waiters look every second"),
            }
        }

        fn stop_hearing(&self, waiting: &mut Waiting) {
            waiting.is_heard = false;
            if let Err(error) = epoll::delete(&self.epoll, &self.fifo) {
                tracing::debug!(%error, "a bell is still heard");
            }
        }
    }

    /// Held while waiting at a bell.
    struct Place<'a> {
        ear: &'a Ear,
        is_woken: bool,
    }

    impl Place<'_> {
        fn take(ear: &Ear) -> Place<'_> {
            let mut waiting = lock(&ear.waiting);
            waiting.count += 1;
            if !waiting.is_heard {
                ear.start_hearing(&mut waiting);
            }
            Place { ear, is_woken: false }
        }
    }

    impl Drop for Place<'_> {
        fn drop(&mut self) {
            let mut waiting = lock(&self.ear.waiting);
            waiting.count -= 1;
            match (waiting.count, waiting.is_heard) {
                (0, true) => self.ear.stop_hearing(&mut waiting),
                // It rang for a waiter that has just left.
                (0, false) if !self.is_woken => self.ear.strike(),
                (0, false) | (_, true) => {}
                (_, false) => self.ear.start_hearing(&mut waiting),
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod listener {
    use std::convert::Infallible;
    use std::io;
    use std::path::Path;
    use std::sync::Arc;

    pub(super) struct Listener(Infallible);
    pub(super) struct Ear(Infallible);

    impl Listener {
        pub fn start() -> io::Result<Listener> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub fn hang(&self, _: &Path) -> io::Result<Arc<Ear>> {
            match self.0 {}
        }

        pub fn has_ended(&self) -> bool {
            match self.0 {}
        }
    }

    impl Ear {
        pub fn is_at(&self, _: &Path) -> bool {
            match self.0 {}
        }

        pub fn strike(&self) {
            match self.0 {}
        }

        pub async fn struck(&self) {
            match self.0 {}
        }
    }
}
