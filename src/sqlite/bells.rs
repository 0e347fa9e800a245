//! Doorbells: how a send in one process wakes a receive in another without polling.
//!
//! Each queue that somebody waits for has an empty file `bells/<queue>`. Who made a message receivable opens that
//! file for writing and closes it again; the kernel tells every process that watches it. Nothing is written, so
//! ringing costs no disk, and where no file is nobody waits.
//!
//! A bell only says "look again". One that was missed costs at most [`RECHECK`].

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Fault, file};

/// How often a waiting receive looks without having been rung. What becomes receivable later than that from now needs
/// no bell: the next look sees when it is due.
pub const RECHECK: Duration = Duration::from_secs(1);
/// The same where no bell can be heard.
const RECHECK_DEAF: Duration = Duration::from_millis(10);

pub struct Bells {
    directory: PathBuf,
    heard: Arc<Mutex<Heard>>,
    /// None where the kernel offers no (more) watches.
    listener: Option<listener::Listener>,
}

/// The bells that this process listens to.
#[derive(Default)]
struct Heard {
    by_queue: HashMap<String, Arc<Notify>>,
    by_watch: HashMap<listener::Watch, String>,
}

/// A place at a bell.
pub struct Bell {
    notify: Arc<Notify>,
    /// Whether it was hung only now: what was sent before did not ring it.
    pub is_new: bool,
    pub recheck: Duration,
}

/// Having been woken. A bell wakes one waiter; who holds the baton either found nothing and lays it down, or, dropping
/// it, wakes the next. So a batch wakes as many as it feeds, and a cancelled waiter loses no wake.
pub struct Baton(Option<Arc<Notify>>);

impl Bells {
    pub fn open(data_dir: &Path) -> Result<Bells, Fault> {
        let directory = data_dir.join("bells");
        file::make_directory(&directory)?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let listener = listener::Listener::start(&directory, &heard)
            .inspect_err(|error| {
                tracing::warn!(%error, "no file watches (fs.inotify.max_user_instances?): the local queue polls");
            })
            .ok();
        Ok(Bells { directory, heard, listener })
    }

    pub fn listen(&self, queue: &str) -> Bell {
        let mut heard = lock(&self.heard);
        let hung = heard.by_queue.get(queue).map(Arc::clone);
        let notify = hung.clone().unwrap_or_default();
        let mut recheck = if self.is_deaf() { RECHECK_DEAF } else { RECHECK };
        if hung.is_none() {
            match self.hang(queue, &mut heard) {
                Ok(()) => drop(heard.by_queue.insert(queue.to_owned(), Arc::clone(&notify))),
                Err(error) => {
                    tracing::debug!(queue, %error, "no bell, polling");
                    recheck = RECHECK_DEAF;
                }
            }
        }
        Bell { notify, is_new: hung.is_none(), recheck }
    }

    /// Wakes who waits for the queue, in every process.
    pub fn ring(&self, queue: &str) {
        match OpenOptions::new().write(true).open(self.directory.join(queue)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(queue, %error, "a bell did not ring"),
        }
        if self.is_deaf()
            && let Some(notify) = lock(&self.heard).by_queue.get(queue)
        {
            notify.notify_one();
        }
    }

    /// Takes the bell down with its queue, which wakes who waits there.
    pub fn remove(&self, queue: &str) {
        // One that is not there is removed already; a left one is an empty file.
        let _ = std::fs::remove_file(self.directory.join(queue));
    }

    fn hang(&self, queue: &str, heard: &mut Heard) -> io::Result<()> {
        let path = self.directory.join(queue);
        drop(OpenOptions::new().create(true).append(true).open(&path)?);
        if let Some(listener) = &self.listener {
            heard.by_watch.insert(listener.watch(&path)?, queue.to_owned());
        }
        Ok(())
    }

    fn is_deaf(&self) -> bool {
        self.listener.as_ref().is_none_or(listener::Listener::has_ended)
    }
}

impl Bell {
    pub async fn rung(&self) -> Baton {
        self.notify.notified().await;
        Baton(Some(Arc::clone(&self.notify)))
    }
}

impl Baton {
    pub fn lay_down(mut self) {
        self.0 = None;
    }
}

impl Drop for Baton {
    fn drop(&mut self) {
        if let Some(notify) = &self.0 {
            notify.notify_one();
        }
    }
}

impl Heard {
    fn wake(&self, watch: &listener::Watch) {
        if let Some(notify) = self.by_watch.get(watch).and_then(|queue| self.by_queue.get(queue)) {
            notify.notify_one();
        }
    }

    fn wake_all(&self) {
        self.by_queue.values().for_each(|notify| notify.notify_one());
    }

    /// The file is gone: the next [`Bells::listen`] hangs a new one.
    fn forget(&mut self, watch: &listener::Watch) {
        if let Some(notify) = self.by_watch.remove(watch).and_then(|queue| self.by_queue.remove(&queue)) {
            notify.notify_one();
        }
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    // Nothing that runs under the lock leaves the maps half changed.
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(target_os = "linux")]
mod listener {
    use std::io;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};
    use std::thread::JoinHandle;

    use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};

    use super::{Heard, lock};

    pub(super) type Watch = WatchDescriptor;

    /// The one thread of a process that hears bells.
    pub(super) struct Listener {
        watches: Watches,
        /// A watch on the directory that never fires; to remove it ends the thread.
        sentinel: WatchDescriptor,
        is_closing: Arc<AtomicBool>,
        thread: Option<JoinHandle<()>>,
    }

    impl Listener {
        pub fn start(directory: &Path, heard: &Arc<Mutex<Heard>>) -> io::Result<Listener> {
            let inotify = Inotify::init()?;
            let sentinel = inotify.watches().add(directory, WatchMask::DELETE_SELF)?;
            let watches = inotify.watches();
            let is_closing = Arc::new(AtomicBool::new(false));
            let run = {
                let (heard, sentinel, is_closing) = (Arc::clone(heard), sentinel.clone(), Arc::clone(&is_closing));
                move || {
                    let end = listen(inotify, &sentinel, &heard);
                    if !is_closing.load(Ordering::Acquire) {
                        tracing::warn!(reason = %end, "the bells of the local queue are gone: it polls");
                    }
                }
            };
            let thread = std::thread::Builder::new().name("queue-bells".to_owned()).spawn(run)?;
            Ok(Listener { watches, sentinel, is_closing, thread: Some(thread) })
        }

        pub fn watch(&self, path: &Path) -> io::Result<Watch> {
            self.watches.clone().add(path, WatchMask::CLOSE_WRITE | WatchMask::DELETE_SELF)
        }

        pub fn has_ended(&self) -> bool {
            self.thread.as_ref().is_none_or(JoinHandle::is_finished)
        }
    }

    impl Drop for Listener {
        fn drop(&mut self) {
            self.is_closing.store(true, Ordering::Release);
            // Fails only when the directory was removed, and then the thread has ended already.
            let _ = self.watches.remove(self.sentinel.clone());
            if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("the thread that hears bells panicked; this is a bug");
            }
        }
    }

    /// Returns why it ended.
    fn listen(mut inotify: Inotify, sentinel: &WatchDescriptor, heard: &Mutex<Heard>) -> String {
        // Events carry no names, since only files are watched: each is 16 bytes.
        let mut buffer = [0; 4096];
        loop {
            let events = match inotify.read_events_blocking(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return error.to_string(),
            };
            let mut heard = lock(heard);
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    heard.wake_all();
                } else if !event.mask.contains(EventMask::IGNORED) {
                    heard.wake(&event.wd);
                } else if event.wd == *sentinel {
                    return "the directory was removed".to_owned();
                } else {
                    heard.forget(&event.wd);
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod listener {
    use std::io;
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use super::Heard;

    pub(super) type Watch = ();

    pub(super) struct Listener(std::convert::Infallible);

    impl Listener {
        pub fn start(_: &Path, _: &Arc<Mutex<Heard>>) -> io::Result<Listener> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub fn watch(&self, _: &Path) -> io::Result<Watch> {
            match self.0 {}
        }

        pub fn has_ended(&self) -> bool {
            match self.0 {}
        }
    }
}
