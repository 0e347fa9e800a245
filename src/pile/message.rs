//! Messages of the threads of a run to the one that collects the outcomes.

use std::sync::mpsc::SyncSender;
use std::thread;

use anyhow::anyhow;

use super::finished::Finished;

/// A message to the collector.
pub(super) enum Message {
    /// An image is classified or failed.
    Finished(Box<Finished>),
    /// All images were found, and there are so many.
    Listed { images: u64 },
    /// The run cannot go on.
    Fault(anyhow::Error),
}

impl From<Finished> for Message {
    fn from(finished: Finished) -> Message {
        Message::Finished(Box::new(finished))
    }
}

/// Reports the panic of the thread that drops it.
pub(super) struct ReportPanic(pub SyncSender<Message>);

impl Drop for ReportPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            let name = thread::current().name().unwrap_or("unnamed").to_owned();
            let _ = self.0.send(Message::Fault(anyhow!("the thread {name} panicked; this is a bug")));
        }
    }
}
