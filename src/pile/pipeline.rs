//! A run over a pile: threads that list, read and classify images, and the collector of their outcomes.
//!
//! ```text
//! list ──▶ read (several) ──▶ sessions: decode, infer ──▶ collect: the order of the input, output
//! ```
//!
//! The stages are connected by bounded channels. Images finish out of order, and at most [`WINDOW`] of them are between
//! the first and the last stage, so that one slow image does not let the others pile up in memory. Each stage ends when
//! the one before it has ended.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;

use super::finished::Finished;
use super::memory::InputMemory;
use super::message::Message;
use super::output::Flow;
use super::progress::{Counters, Progress};
use super::read::{IsDone, Lister, Reader};
use super::session::Sessions;
use super::source::Inputs;
use crate::config::Limits;
use crate::model::{ModelChoice, ModelPackage, Session};
use crate::shutdown::CancellationToken;
use crate::worker::Watchdog;

/// The most images that were found and are not in the output yet. An outcome takes about a kilobyte.
const WINDOW: usize = 1024;
/// Memory for image files that are read ahead.
const INPUT_BYTES: u64 = 48 << 20;
/// More readers than this do not help a slow disk.
const MAX_READERS: usize = 8;
/// How often the collector looks for a signal while no image finishes.
const TICK: Duration = Duration::from_millis(50);

/// The parts of a run.
pub(super) struct Run {
    pub inputs: Inputs,
    pub package: ModelPackage,
    pub choice: ModelChoice,
    pub sessions: Vec<Session>,
    pub limits: Limits,
    pub top_k: u32,
    /// Reads when a photograph was taken.
    pub reads_time: bool,
    pub is_done: IsDone,
    pub counters: Arc<Counters>,
}

/// Takes the outcomes.
pub(super) trait Sink {
    /// Takes the next outcome.
    ///
    /// # Errors
    /// If it cannot be written. This ends the run.
    fn append(&mut self, image: Finished) -> anyhow::Result<Flow>;

    /// Called now and then while no outcome comes.
    ///
    /// # Errors
    /// Like those of [`Sink::append`].
    fn idle(&mut self) -> anyhow::Result<()>;
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Every image is in the output.
    Complete,
    /// The output takes no more images.
    Refused,
    /// A signal stopped the run.
    Interrupted,
}

impl Run {
    /// Classifies every image, and gives each outcome to `sink` in the order of the input. After a signal the images that
    /// a session has begun are finished.
    ///
    /// # Errors
    /// If `sink` fails, or a thread cannot go on.
    pub(super) fn collect(
        self,
        progress: &mut Progress,
        stop: &CancellationToken,
        sink: &mut impl Sink,
    ) -> anyhow::Result<End> {
        // Threads that wait for input or for a slow disk are not waited for when the run is stopped.
        let stop_threads = stop.child_token();
        let Started { threads, sessions, messages, window, end_watch } = self.start(&stop_threads)?;
        let mut collector = Collector { waiting: BTreeMap::new(), next: 0, total: None, window, sink };
        let end = loop {
            progress.refresh();
            match messages.recv_timeout(TICK) {
                Ok(message) => {
                    if collector.take(message, progress).inspect_err(|_| stop_threads.cancel())? == Flow::Stop {
                        stop_threads.cancel();
                        break End::Refused;
                    }
                }
                Err(RecvTimeoutError::Timeout) => collector.sink.idle()?,
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("all sessions ended early; this is a bug"),
            }
            if collector.is_complete() {
                break End::Complete;
            }
            if stop.is_cancelled() {
                break collector.drain(&messages, &sessions, progress)?;
            }
        };
        drop((end_watch, messages));
        if end == End::Complete && !sessions.watchdog.has_found_one() {
            for thread in threads {
                thread.join().map_err(|_| anyhow::anyhow!("a thread panicked; this is a bug"))?;
            }
        }
        Ok(end)
    }

    fn start(self, stop: &CancellationToken) -> anyhow::Result<Started> {
        let count = self.sessions.len();
        let max_image_bytes = self.limits.max_upload_bytes;
        let memory = InputMemory::new(INPUT_BYTES);
        let (messages_tx, messages) = sync_channel(2 * count);
        let (window_tx, window) = sync_channel(WINDOW);
        let (listed_tx, listed) = sync_channel(2 * MAX_READERS);
        let (ready_tx, ready) = sync_channel(count);
        let sessions = Arc::new(Sessions {
            package: self.package,
            choice: self.choice,
            limits: self.limits,
            top_k: self.top_k,
            reads_time: self.reads_time,
            ready: Mutex::new(ready),
            messages: messages_tx.clone(),
            stop: stop.clone(),
            watchdog: Watchdog::new(self.limits.decode_timeout),
            busy: AtomicUsize::new(0),
        });
        let mut threads = Vec::new();
        for (number, session) in self.sessions.into_iter().enumerate() {
            threads.push(sessions.start(format!("session-{number}"), session)?);
        }
        let listed = Arc::new(Mutex::new(listed));
        for number in 0..count.clamp(2, MAX_READERS) {
            let (listed, ready, messages) = (Arc::clone(&listed), ready_tx.clone(), messages_tx.clone());
            let reader = Reader { listed, ready, messages, memory: Arc::clone(&memory), max_image_bytes };
            threads.push(spawn(format!("read-{number}"), move || reader.run())?);
        }
        let lister = Lister {
            inputs: self.inputs,
            max_image_bytes,
            is_done: self.is_done,
            memory,
            counters: self.counters,
            stop: stop.clone(),
            window: window_tx,
            listed: listed_tx,
            messages: messages_tx,
        };
        threads.push(spawn("list".to_owned(), move || lister.run())?);
        let (end_watch, watch_until) = sync_channel(0);
        let watched = Arc::clone(&sessions);
        threads.push(spawn("watchdog".to_owned(), move || watched.watch(&watch_until))?);
        Ok(Started { threads, sessions, messages, window, end_watch })
    }
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(work).context("cannot start a thread; give a smaller --jobs")
}

struct Started {
    threads: Vec<JoinHandle<()>>,
    sessions: Arc<Sessions>,
    messages: Receiver<Message>,
    window: Receiver<()>,
    /// Dropping it ends the watchdog.
    end_watch: SyncSender<()>,
}

/// Puts outcomes into the order of the input.
struct Collector<'a, S> {
    waiting: BTreeMap<u64, Finished>,
    /// The number of the next image of the output.
    next: u64,
    /// The number of images, once all are found.
    total: Option<u64>,
    /// Has a token for each image that is under way.
    window: Receiver<()>,
    sink: &'a mut S,
}

impl<S: Sink> Collector<'_, S> {
    fn is_complete(&self) -> bool {
        self.total == Some(self.next)
    }

    fn take(&mut self, message: Message, progress: &mut Progress) -> anyhow::Result<Flow> {
        match message {
            Message::Listed { images } => self.total = Some(images),
            Message::Fault(error) => return Err(error),
            Message::Finished(finished) => {
                self.waiting.insert(finished.sequence, *finished);
            }
        }
        while let Some(finished) = self.waiting.remove(&self.next) {
            self.next += 1;
            let _ = self.window.try_recv();
            let has_failed = finished.outcome.is_err();
            let flow = self.sink.append(finished)?;
            progress.advance(has_failed);
            if flow == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }

    /// Takes the outcomes of images that were begun. Those after an image that was not begun are classified again by
    /// the next run.
    fn drain(
        &mut self,
        messages: &Receiver<Message>,
        sessions: &Sessions,
        progress: &mut Progress,
    ) -> anyhow::Result<End> {
        loop {
            // In this order: an outcome is sent before its session counts as free.
            let are_busy = sessions.are_busy();
            match messages.try_recv() {
                Ok(message) => {
                    if self.take(message, progress)? == Flow::Stop {
                        return Ok(End::Refused);
                    }
                }
                Err(TryRecvError::Empty) if are_busy => thread::sleep(TICK / 10),
                Err(_) => return Ok(if self.is_complete() { End::Complete } else { End::Interrupted }),
            }
        }
    }
}
