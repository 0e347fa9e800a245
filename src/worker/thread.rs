//! Threads of a worker that the stages wait for.

use std::thread::JoinHandle;

use anyhow::Context as _;
use tokio::sync::oneshot;

pub(crate) struct WorkerThread {
    handle: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl WorkerThread {
    /// Starts a thread.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub(crate) fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> anyhow::Result<WorkerThread> {
        let (end, ended) = oneshot::channel();
        let failure = format!("cannot start the thread {name}");
        let thread = std::thread::Builder::new().name(name);
        let handle = thread.spawn(move || {
            work();
            let _ = end.send(());
        });
        Ok(WorkerThread { handle: handle.context(failure)?, ended })
    }

    /// Returns once the thread has ended.
    ///
    /// # Errors
    /// The thread panicked.
    pub(crate) async fn join(self) -> anyhow::Result<()> {
        // The thread sends this last, or drops it in a panic, so that joining it takes microseconds.
        let _ = self.ended.await;
        let name = self.handle.thread().name().unwrap_or("unnamed").to_owned();
        self.handle.join().map_err(|_| anyhow::anyhow!("the thread {name} panicked"))
    }
}
