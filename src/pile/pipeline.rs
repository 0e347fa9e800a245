//! A run over a pile: threads that list, read and classify images, and the collector of their outcomes.
//!
//! ```text
//! list ──▶ read (several) ──▶ sessions: decode, infer ──▶ collect: the order of the input, output
//!                        └──▶ a service: send, wait ──┘
//! ```
//!
//! The stages are connected by bounded channels. Images finish out of order, and at most [`WINDOW`] of them are between
//! the first and the last stage, so that one slow image does not let the others pile up in memory. Each stage ends when
//! the one before it has ended.

use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;

use super::finished::Finished;
use super::memory::InputMemory;
use super::message::Message;
use super::output::Flow;
use super::progress::{Counters, Progress};
use super::queue::{self, bounded};
use super::read::{IsDone, Lister, Reader, Ready};
use super::service::Service;
use super::session::Sessions;
use super::source::Inputs;
use crate::model::{Limits, ModelChoice, ModelPackage, Session};
use crate::result_cache::ResultCache;
use crate::shutdown::CancellationToken;
use crate::worker::Watchdog;

/// The most images that were found and are not in the output yet. An outcome takes about a kilobyte.
const WINDOW: usize = 1024;
/// Memory for image files that are read ahead.
const INPUT_BYTES: u64 = 48 << 20;
/// More readers than this do not help a slow disk.
const MAX_READERS: usize = 8;
/// The most images that were found and are not read yet.
const MAX_LISTED: usize = 64;
/// Most images whose bytes wait to be classified or sent, and at least so many are read ahead, within [`INPUT_BYTES`].
const MAX_READY: usize = 64;
const MIN_READY: usize = 16;
/// How often the collector looks for a signal while no image finishes.
const TICK: Duration = Duration::from_millis(50);
/// The collector sleeps so long after it took outcomes. If it were woken for each, it would interrupt a session each time.
const PAUSE: Duration = Duration::from_millis(10);
/// The least capacity for messages that come in a pause. A session finishes up to four images in that time.
const MIN_MESSAGES: usize = 256;

/// The parts of a run.
pub(super) struct Run {
    pub inputs: Inputs,
    pub classifier: Classifier,
    pub limits: Limits,
    pub is_done: IsDone,
    pub counters: Arc<Counters>,
}

/// The stage that classifies the images.
pub(super) enum Classifier {
    Sessions(Box<OwnSessions>),
    Service(Box<Service>),
}

/// Sessions of this process.
pub(super) struct OwnSessions {
    pub package: ModelPackage,
    pub choice: ModelChoice,
    pub first: Session,
    /// Their number, with the first one. The threads of the others open them, while the first classifies.
    pub sessions: usize,
    /// Answers that are kept.
    pub cache: Option<Arc<ResultCache>>,
    pub top_k: u32,
    /// Reads when a photograph was taken.
    pub reads_time: bool,
}

/// The stage that classifies the images, while it runs.
enum Stage {
    Sessions(Arc<Sessions>),
    Service(Box<Service>),
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
        let Started { threads, stage, messages, window, end_watch } = self.start(&stop_threads)?;
        let mut collector = Collector { waiting: BTreeMap::new(), next: 0, total: None, window, sink };
        let end = collector.collect(&messages, &stage, progress, stop);
        drop(messages);
        let can_join = matches!(end, Ok(End::Complete)) && !stage.has_stuck_thread();
        if !can_join {
            stop_threads.cancel();
            while stage.is_busy() {
                thread::sleep(TICK / 10);
            }
        }
        drop(end_watch);
        let joined = if can_join { join(threads) } else { Ok(()) };
        stage.end();
        joined.and(end)
    }

    fn start(self, stop: &CancellationToken) -> anyhow::Result<Started> {
        let count = self.classifier.concurrency();
        let referenced_buckets = self.classifier.referenced_buckets();
        let max_image_bytes = self.limits.max_upload_bytes;
        let memory = InputMemory::new(INPUT_BYTES);
        let (messages_tx, messages) = sync_channel(MIN_MESSAGES.max(4 * count));
        let (window_tx, window) = sync_channel(WINDOW.max(2 * count));
        let (listed_tx, listed) = bounded(MAX_LISTED);
        let (ready_tx, ready) = bounded(count.clamp(MIN_READY, MAX_READY));
        let (end_watch, watch_until) = sync_channel(0);
        let (stage, mut threads) = match self.classifier {
            Classifier::Sessions(own) => {
                let (sessions, mut threads) = own.start(self.limits, ready, messages_tx.clone(), stop)?;
                let watched = Arc::clone(&sessions);
                threads.push(spawn("watchdog".to_owned(), move || watched.watch(&watch_until))?);
                (Stage::Sessions(sessions), threads)
            }
            Classifier::Service(service) => {
                let thread = service.start(ready, messages_tx.clone(), stop.clone())?;
                (Stage::Service(service), vec![thread])
            }
        };
        for number in 0..count.clamp(2, MAX_READERS) {
            let (listed, ready, messages) = (listed.clone(), ready_tx.clone(), messages_tx.clone());
            let (memory, referenced_buckets) = (Arc::clone(&memory), Arc::clone(&referenced_buckets));
            let reader = Reader { listed, ready, messages, memory, max_image_bytes, referenced_buckets };
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
        Ok(Started { threads, stage, messages, window, end_watch })
    }
}

impl Classifier {
    /// How many images are classified at the same time.
    fn concurrency(&self) -> usize {
        match self {
            Classifier::Sessions(own) => own.sessions,
            Classifier::Service(service) => service.jobs(),
        }
    }
}

impl Classifier {
    /// The answers that this process keeps.
    pub(super) fn cache(&self) -> Option<Arc<ResultCache>> {
        match self {
            Classifier::Sessions(own) => own.cache.clone(),
            Classifier::Service(_) => None,
        }
    }

    /// The buckets whose images are not read by this process.
    fn referenced_buckets(&self) -> Arc<[String]> {
        match self {
            Classifier::Sessions(_) => Arc::new([]),
            Classifier::Service(service) => service.read_buckets(),
        }
    }
}

impl OwnSessions {
    /// Starts a thread for each session.
    fn start(
        self,
        limits: Limits,
        ready: queue::Receiver<Ready>,
        messages: SyncSender<Message>,
        stop: &CancellationToken,
    ) -> anyhow::Result<(Arc<Sessions>, Vec<JoinHandle<()>>)> {
        let shared = Arc::new(Sessions {
            package: self.package,
            choice: self.choice,
            limits,
            cache: self.cache,
            top_k: self.top_k,
            reads_time: self.reads_time,
            ready,
            messages,
            stop: stop.clone(),
            watchdog: Watchdog::new(limits.decode_timeout),
            busy: AtomicUsize::new(0),
        });
        let mut first = Some(self.first);
        let start = |number| shared.start(format!("session-{number}"), first.take());
        let threads = (0..self.sessions).map(start).collect::<anyhow::Result<Vec<_>>>()?;
        Ok((shared, threads))
    }
}

impl Stage {
    /// Returns true if a stopped run waits for images that were begun. Jobs of a service go on without this process.
    fn is_busy(&self) -> bool {
        match self {
            Stage::Sessions(sessions) => sessions.are_busy(),
            Stage::Service(_) => false,
        }
    }

    fn has_stuck_thread(&self) -> bool {
        match self {
            Stage::Sessions(sessions) => sessions.watchdog.has_found_one(),
            Stage::Service(_) => false,
        }
    }

    fn end(self) {
        match self {
            Stage::Sessions(_) => {}
            Stage::Service(service) => service.end(),
        }
    }
}

fn join(threads: Vec<JoinHandle<()>>) -> anyhow::Result<()> {
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked; this is a bug"))?;
    }
    Ok(())
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> anyhow::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(work).context("cannot start a thread; give a smaller --jobs")
}

struct Started {
    threads: Vec<JoinHandle<()>>,
    stage: Stage,
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
    fn collect(
        &mut self,
        messages: &Receiver<Message>,
        stage: &Stage,
        progress: &mut Progress,
        stop: &CancellationToken,
    ) -> anyhow::Result<End> {
        loop {
            progress.refresh();
            let before = self.next;
            match messages.recv_timeout(TICK) {
                Ok(message) => {
                    for message in iter::once(message).chain(messages.try_iter()) {
                        if self.take(message, progress)? == Flow::Stop {
                            return Ok(End::Refused);
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.sink.idle()?,
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("all threads ended early; this is a bug"),
            }
            if self.is_complete() {
                return Ok(End::Complete);
            }
            if stop.is_cancelled() {
                return self.drain(messages, stage, progress);
            }
            if self.next > before {
                thread::sleep(PAUSE);
            }
        }
    }

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
    fn drain(&mut self, messages: &Receiver<Message>, stage: &Stage, progress: &mut Progress) -> anyhow::Result<End> {
        loop {
            // In this order: an outcome is sent before its session counts as free.
            let is_busy = stage.is_busy();
            match messages.try_recv() {
                Ok(message) => {
                    if self.take(message, progress)? == Flow::Stop {
                        return Ok(End::Refused);
                    }
                }
                Err(TryRecvError::Empty) if is_busy => thread::sleep(TICK / 10),
                Err(_) => return Ok(if self.is_complete() { End::Complete } else { End::Interrupted }),
            }
        }
    }
}
