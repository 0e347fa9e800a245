//! The inference threads: one OS thread owns one session of the model, without a mutex, and decodes the images that it
//! classifies. So as many threads compute as there are sessions, a tensor is read by the core that made it, and no more
//! images are decoded at a time than there are sessions, however hostile they are.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::batch_queue::BatchQueue;
use super::job::{Origin, Outcome, Rules, Work, millis};
use super::lease::{Lease, Stage};
use super::metrics::METRICS;
use super::stages::{Fetched, Finished};
use super::statistics::Statistics;
use super::watchdog::{Slot, Watchdog};
use crate::clock;
use crate::config::Limits;
use crate::model::{self, ModelChoice, ModelPackage, Session, Tensor};
use crate::protocol::{ErrorCode, Worked};
use crate::telemetry::trace::Span;

/// A delivery during its classification, with everything that its outcome needs.
pub(crate) struct Held {
    work: Work,
    lease: Lease,
    span: Span,
    body: String,
}

/// An image that is ready for the model.
struct Decoded {
    work: Work,
    lease: Lease,
    span: Span,
    /// The file, for the legacy form, which stores it. Empty otherwise.
    image: Bytes,
    tensor: Tensor,
}

/// Opens `count` sessions at the same time, each on its own thread, and returns when all are warm.
///
/// A thread ends when its [`BatchQueue`] has ended, and then drops its sender of `finished`.
pub(crate) async fn start(count: usize, choice: &ModelChoice, shared: Shared) -> anyhow::Result<Vec<InferenceThread>> {
    let (opened_tx, mut opened) = mpsc::channel::<anyhow::Result<String>>(count);
    let mut threads = Vec::new();
    for index in 0..count {
        let (end, ended) = oneshot::channel();
        let (shared, choice, opened) = (shared.clone(), choice.clone(), opened_tx.clone());
        let handle = std::thread::Builder::new()
            .name(format!("infer-{index}"))
            .spawn(move || {
                shared.run(&choice, opened);
                let _ = end.send(());
            })
            .context("cannot start an inference thread")?;
        threads.push(InferenceThread { handle, ended });
    }
    drop(opened_tx);
    for _ in 0..count {
        let description = opened.recv().await.context("an inference thread ended while it opened its session")??;
        tracing::debug!(session = description, "session open");
    }
    Ok(threads)
}

pub(crate) struct InferenceThread {
    handle: JoinHandle<()>,
    ended: oneshot::Receiver<()>,
}

impl InferenceThread {
    /// Returns once the thread has ended.
    ///
    /// # Errors
    /// The thread panicked.
    pub(crate) async fn join(self) -> anyhow::Result<()> {
        // The thread sends this last, or drops it in a panic, so that joining it takes microseconds.
        let _ = self.ended.await;
        self.handle.join().map_err(|_| anyhow::anyhow!("an inference thread panicked"))
    }
}

/// State that all inference threads share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub package: Arc<ModelPackage>,
    pub limits: Limits,
    pub rules: Arc<Rules>,
    pub statistics: Arc<Statistics>,
    pub batches: Arc<BatchQueue>,
    pub watchdog: Arc<Watchdog<Held>>,
    pub finished: mpsc::Sender<Vec<Finished>>,
}

impl Shared {
    /// Waits until `shutdown` for a decoder that is stuck. Then fails its image and drains this worker: the other sessions
    /// finish their images.
    pub(crate) async fn end_stuck(self, shutdown: CancellationToken) {
        let Some(held) = self.watchdog.wait(&shutdown).await else { return };
        tracing::error!("a decoder does not stop; its image fails as `decode_timeout`, and this worker ends");
        let Held { work, lease, span, body } = held;
        let message = model::timeout_message(self.limits.decode_timeout);
        let outcome = work.failed(ErrorCode::DecodeTimeout, message, &body, clock::now(), &self.rules);
        lease.enter(Stage::Publishing);
        // Drain first, because the next step may wait for an outage to end.
        shutdown.cancel();
        if self.finished.send(vec![Finished { lease, span, outcome }]).await.is_err() {
            tracing::debug!("the publisher has ended; the message comes again");
        }
    }

    fn run(&self, choice: &ModelChoice, opened: mpsc::Sender<anyhow::Result<String>>) {
        let mut session = match Session::open(&self.package, choice) {
            Ok(session) => session,
            Err(error) => {
                let _ = opened.blocking_send(Err(error));
                return;
            }
        };
        let _ = opened.blocking_send(Ok(session.describe()));
        drop(opened);
        let slot = self.watchdog.slot();
        while let Some(batch) = self.batches.next() {
            let (began, images) = (Instant::now(), batch.len() as u64);
            if self.run_batch(&mut session, &slot, batch).is_err() {
                return;
            }
            let worked = Worked { images, busy: began.elapsed() };
            self.batches.measured(worked);
            self.statistics.add(worked);
        }
    }

    /// # Errors
    /// The receiver of finished images is gone, or the watchdog has given this thread up.
    fn run_batch(&self, session: &mut Session, slot: &Slot<Held>, batch: Vec<Fetched>) -> Result<(), ()> {
        let started = Instant::now();
        let mut decoded = Vec::with_capacity(batch.len());
        for fetched in batch {
            if fetched.lease.has_run_out() {
                continue;
            }
            match self.decode(fetched, slot, started) {
                Ok(image) => decoded.push(image),
                Err(Some(finished)) => self.finish(vec![*finished])?,
                Err(None) => return Err(()),
            }
        }
        decoded.retain(|image| !image.lease.has_run_out());
        // A model of native size gets many shapes; one inference takes images of one.
        decoded.sort_by_key(Decoded::shape);
        while let Some(shape) = decoded.last().map(Decoded::shape) {
            let rest = decoded.partition_point(|image| image.shape() < shape);
            self.infer(session, decoded.split_off(rest))?;
        }
        Ok(())
    }

    /// # Errors
    /// The outcome of an image that could not be decoded, or `None` if the watchdog has decided it.
    fn decode(&self, fetched: Fetched, slot: &Slot<Held>, started: Instant) -> Result<Decoded, Option<Box<Finished>>> {
        let Fetched { work, lease, span, body, image, permit, since } = fetched;
        drop(permit);
        lease.enter(Stage::Decoding);
        slot.begin(Held { work, lease, span, body });
        let decoding = Instant::now();
        let tensor = model::prepare(&image, &self.package, &self.limits);
        let Some(Held { mut work, lease, span, body }) = slot.end() else { return Err(None) };
        let decoded = decoding.elapsed();
        METRICS.stage("decoded").observe(decoded.as_secs_f64());
        span.stage("decoded", decoded);
        work.timings_ms.queued += millis(started.duration_since(since));
        work.timings_ms.decoded = millis(decoded);
        match tensor {
            Ok(tensor) => {
                let image = if matches!(work.origin, Origin::Legacy { .. }) { image } else { Bytes::new() };
                Ok(Decoded { work, lease, span, image, tensor })
            }
            Err(error) => {
                let outcome = work.failed(error.code, error.message, &body, clock::now(), &self.rules);
                Err(Some(Box::new(Finished { lease, span, outcome })))
            }
        }
    }

    fn infer(&self, session: &mut Session, batch: Vec<Decoded>) -> Result<(), ()> {
        let started = Instant::now();
        for image in &batch {
            image.lease.enter(Stage::Inferring);
        }
        let outcome = session.infer(&batch.iter().map(|image| &image.tensor).collect::<Vec<_>>());
        let inferred = started.elapsed();
        if outcome.is_ok() {
            self.batches.inferred(&self.package.model_ref().digest, batch.len(), inferred);
        }
        METRICS.batch_size.observe(batch.len() as f64);
        METRICS.stage("inferred").observe(inferred.as_secs_f64());
        let mut probabilities = match outcome {
            Ok(probabilities) => Ok(probabilities.into_iter()),
            Err(error) => Err(format!("inference failed: {error:#}")),
        };
        let finished = batch.into_iter().map(|Decoded { mut work, lease, span, image, .. }| {
            work.timings_ms.inferred = millis(inferred);
            span.stage("inferred", inferred);
            let outcome = match &mut probabilities {
                Ok(rows) => self.conclude(work, image, rows.next().as_deref()),
                Err(reason) => work.faulted(reason.clone()),
            };
            Finished { lease, span, outcome }
        });
        self.finish(finished.collect())
    }

    /// Images that finish together are published together.
    fn finish(&self, finished: Vec<Finished>) -> Result<(), ()> {
        for image in &finished {
            image.lease.enter(Stage::Publishing);
        }
        self.finished.blocking_send(finished).map_err(|_| ())
    }

    fn conclude(&self, work: Work, image: Bytes, row: Option<&[f32]>) -> Outcome {
        let Some(row) = row else { return work.faulted("the model gave fewer answers than images".to_owned()) };
        let predictions = model::top_k(&self.package, row, work.top_k);
        work.succeeded(predictions, image, self.package.model_ref(), clock::now(), &self.rules)
    }
}

impl Decoded {
    fn shape(&self) -> (usize, usize) {
        (self.tensor.height, self.tensor.width)
    }
}
