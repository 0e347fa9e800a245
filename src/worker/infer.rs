//! The inference threads: one OS thread has a session of each model, which no other thread runs, and decodes the images
//! that it classifies. So as many threads compute as the settings say, a tensor is read by the core that made it, and no
//! more images are decoded at a time than there are threads, however hostile they are.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::batch_queue::BatchQueue;
use super::cached::ModelClaim;
use super::job::{Answer, Origin, Outcome, Rules, Work, millis};
use super::lease::{Lease, Stage};
use super::metrics::{METRICS, Metrics};
use super::models::{self, Models};
use super::seat::Active;
use super::shadow::{ShadowImage, ShadowShare};
use super::stages::{Fetched, Finished};
use super::statistics::Statistics;
use super::thread::WorkerThread;
use super::watchdog::{Slot, Watchdog};
use crate::clock;
use crate::model::{self, Limits, ModelPackage, Tensor};
use crate::protocol::{ErrorCode, ImageFacts, Worked};
use crate::telemetry::trace::Span;

/// A delivery during its classification, with everything that its outcome needs.
pub(crate) struct Held {
    work: Work,
    lease: Lease,
    span: Span,
    body: String,
    claim: Option<ModelClaim>,
}

/// An image that is ready for the model.
struct Decoded {
    work: Work,
    lease: Lease,
    span: Span,
    /// The file, for the legacy form, which stores it, and for the shadow model. Empty otherwise.
    image: Bytes,
    is_for_shadow: bool,
    /// Others may wait for the answer, which is kept with these facts.
    claim: Option<(ModelClaim, ImageFacts)>,
    tensor: Tensor,
}

/// Starts `count` threads, each of which has a seat in every model.
///
/// A thread ends when its [`BatchQueue`] has ended, and then drops its sender of `finished`.
pub(crate) fn start(count: usize, shared: &Shared) -> anyhow::Result<Vec<WorkerThread>> {
    let start = |index: usize| {
        let shared = shared.clone();
        WorkerThread::spawn(format!("infer-{index}"), move || shared.run(index))
    };
    (0..count).map(start).collect()
}

/// State that all inference threads share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub models: Arc<Models>,
    /// The share of the images that the shadow model gets, if there is one.
    pub shadow_share: Option<ShadowShare>,
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
        let Held { work, lease, span, body, claim } = held;
        // Images with the same content wait no longer.
        drop(claim);
        let message = model::timeout_message(self.limits.decode_timeout);
        let outcome = work.failed(ErrorCode::DecodeTimeout, message, &body, clock::now(), &self.rules);
        lease.enter(Stage::Publishing);
        // Drain first, because the next step may wait for an outage to end.
        shutdown.cancel();
        if self.finished.send(vec![Finished::new(lease, span, outcome)]).await.is_err() {
            tracing::debug!("the publisher has ended; the message comes again");
        }
    }

    fn run(&self, thread: usize) {
        let slot = self.watchdog.slot();
        while let Some(batch) = self.batches.next() {
            let (began, images) = (Instant::now(), batch.len() as u64);
            let Some(model) = batch.first().map(|image| image.model) else { continue };
            let mut active = self.models.begin_batch(model, thread);
            if self.run_batch(&mut active, &slot, batch).is_err() {
                return;
            }
            drop(active);
            let worked = Worked { images, busy: began.elapsed() };
            self.batches.measured(worked);
            self.statistics.add(worked);
        }
    }

    /// # Errors
    /// The receiver of finished images is gone, or the watchdog has given this thread up.
    fn run_batch(&self, active: &mut Active, slot: &Slot<Held>, batch: Vec<Fetched>) -> Result<(), ()> {
        let started = Instant::now();
        let mut decoded = Vec::with_capacity(batch.len());
        for fetched in batch {
            if fetched.lease.has_run_out() {
                continue;
            }
            match self.decode(fetched, &active.package, slot, started) {
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
            self.infer(active, decoded.split_off(rest))?;
        }
        Ok(())
    }

    /// # Errors
    /// The outcome of an image that could not be decoded or names another version of the model, or `None` if the watchdog
    /// has decided it.
    fn decode(
        &self,
        fetched: Fetched,
        package: &ModelPackage,
        slot: &Slot<Held>,
        started: Instant,
    ) -> Result<Decoded, Option<Box<Finished>>> {
        let Fetched { class: _, work, lease, span, model, body, image, permit, claim, since } = fetched;
        drop(permit);
        if let Some(wanted) = work.wanted_model()
            && !models::accepts(wanted, &package.model_ref())
        {
            let message = format!("{wanted:?} is not in use any more: another version replaced it");
            let outcome = work.failed(ErrorCode::UnknownModel, message, &body, clock::now(), &self.rules);
            return Err(Some(Box::new(Finished::new(lease, span, outcome))));
        }
        // The shadow model is compared with the first one only.
        let is_for_shadow = model == 0 && self.is_for_shadow(&work);
        let is_of_batch = work.is_of_batch();
        lease.enter(Stage::Decoding);
        let wants_facts = is_of_batch || claim.is_some();
        slot.begin(Held { work, lease, span, body, claim });
        let decoding = Instant::now();
        let prepared = model::prepare_sized(&image, package, &self.limits);
        let datetime_original = (wants_facts && prepared.is_ok()).then(|| model::datetime_original(&image)).flatten();
        let Some(Held { mut work, lease, span, body, claim }) = slot.end() else { return Err(None) };
        let decoded = decoding.elapsed();
        METRICS.stage("decoded").observe(decoded.as_secs_f64());
        Metrics::trace_stage(&span, "decoded", decoded);
        work.timings_ms.queued += millis(started.duration_since(since));
        work.timings_ms.decoded = millis(decoded);
        match prepared {
            Ok((tensor, (width, height))) => {
                let facts = ImageFacts { width, height, datetime_original };
                work.image = is_of_batch.then(|| facts.clone());
                let claim = claim.map(|claim| (claim, facts));
                let is_kept = is_for_shadow || matches!(work.origin, Origin::Legacy { .. });
                let image = if is_kept { image } else { Bytes::new() };
                Ok(Decoded { work, lease, span, image, is_for_shadow, claim, tensor })
            }
            Err(error) => {
                let outcome = work.failed(error.fault.into(), error.message, &body, clock::now(), &self.rules);
                Err(Some(Box::new(Finished::new(lease, span, outcome))))
            }
        }
    }

    /// Returns true if the shadow model gets the image after its result was published.
    fn is_for_shadow(&self, work: &Work) -> bool {
        let (Some(share), Some(id)) = (self.shadow_share, work.id()) else { return false };
        share.contains(id)
    }

    fn infer(&self, active: &mut Active, batch: Vec<Decoded>) -> Result<(), ()> {
        let started = Instant::now();
        for image in &batch {
            image.lease.enter(Stage::Inferring);
        }
        let outcome = active.session.infer(&batch.iter().map(|image| &image.tensor).collect::<Vec<_>>());
        let inferred = started.elapsed();
        if outcome.is_ok() {
            self.batches.inferred(&active.tuned, batch.len(), inferred);
        }
        METRICS.batch_size.observe(batch.len() as f64);
        METRICS.stage("inferred").observe(inferred.as_secs_f64());
        let mut probabilities = match outcome {
            Ok(probabilities) => Ok(probabilities.into_iter()),
            Err(error) => Err(format!("inference failed: {error:#}")),
        };
        let finished =
            batch.into_iter().map(|Decoded { mut work, lease, span, image, is_for_shadow, claim, .. }| {
                work.timings_ms.inferred = millis(inferred);
                Metrics::trace_stage(&span, "inferred", inferred);
                let for_shadow = is_for_shadow.then(|| image.clone());
                let outcome = match &mut probabilities {
                    Ok(rows) => self.conclude(work, &active.package, image, claim, rows.next().as_deref()),
                    Err(reason) => work.faulted(reason.clone()),
                };
                let shadow = for_shadow.and_then(|image| shadow_image(image, &outcome));
                Finished { lease, span, outcome, shadow }
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

    fn conclude(
        &self,
        work: Work,
        package: &ModelPackage,
        image: Bytes,
        claim: Option<(ModelClaim, ImageFacts)>,
        row: Option<&[f32]>,
    ) -> Outcome {
        let Some(row) = row else { return work.faulted("the model gave fewer answers than images".to_owned()) };
        let predictions = model::top_k(package, row, work.top_k);
        let labels = model::labels_above(package, row);
        let answer = Answer { predictions, labels, model: package.model_ref() };
        if let Some((claim, facts)) = claim {
            claim.answer(package, &answer, facts);
        }
        work.succeeded(answer, image, clock::now(), &self.rules)
    }
}

/// The image for the shadow model with the label to compare, if there is one.
fn shadow_image(image: Bytes, outcome: &Outcome) -> Option<ShadowImage> {
    let Outcome::Result { result, .. } = outcome else { return None };
    let label = result.predictions.first()?.label.clone();
    Some(ShadowImage { image, label })
}

impl Decoded {
    fn shape(&self) -> (usize, usize) {
        (self.tensor.height, self.tensor.width)
    }
}
