//! The first stage: receives messages and fetches their images.
//!
//! Each class of service has a loop that receives, with permits of its own. The transport decides when bulk messages come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, RwLockReadGuard, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::alone::Alone;
use super::batch_policy::Plan;
use super::cached::{self, Known};
use super::job::{self, ALONE_FROM_ATTEMPT, Outcome, Rules, Triage, Work, millis};
use super::last_faults::LastFaults;
use super::lease::{Keeper, Lease, Stage};
use super::metrics::{METRICS, Metrics};
use super::models::Models;
use super::retrying::{BACKOFF, retry_for, unless_final};
use super::session_load::SessionLoad;
use super::stages::{Fetched, Finished};
use crate::clock;
use crate::model::Limits;
use crate::protocol::{self, ClassifyRequest, ErrorCode, ImageRef, Incoming, ObjectEvent, Payload, ServiceClass};
use crate::result_cache::ResultCache;
use crate::telemetry::trace::{Side, Span};
use crate::transport::{Delivery, MAX_BATCH, Transport, TransportError, Wanted};

/// How long a fetch is retried before it costs an attempt. The lease is renewed meanwhile.
const FETCH_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Intake {
    pub transport: Arc<dyn Transport>,
    pub limits: Limits,
    pub rules: Arc<Rules>,
    /// Answers that are kept.
    pub cache: Option<Arc<ResultCache>>,
    pub models: Arc<Models>,
    pub keeper: Keeper,
    pub last_faults: Arc<LastFaults>,
    pub visibility_timeout: Duration,
    /// The permits of interactive images: one for each that may ever wait for a session ([`SessionLoad::most_ahead`]);
    /// images that a session has begun have released theirs. The plan of the moment decides how many are used.
    pub interactive_permits: Arc<Semaphore>,
    /// The same for images of batches.
    pub bulk_permits: Arc<Semaphore>,
    pub alone: Alone,
    pub load: Arc<SessionLoad>,
    pub fetched: mpsc::Sender<Fetched>,
    pub finished: mpsc::Sender<Vec<Finished>>,
}

impl Intake {
    /// Receives until `shutdown`, then waits until all received messages have left this stage.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let intake = Arc::new(self);
        tokio::join!(
            intake.run_class(ServiceClass::Interactive, &shutdown),
            intake.run_class(ServiceClass::Bulk, &shutdown)
        );
    }

    async fn run_class(self: &Arc<Self>, class: ServiceClass, shutdown: &CancellationToken) {
        let mut jobs = JoinSet::new();
        let mut backoff = BACKOFF.start();
        while let Some(received) = shutdown.run_until_cancelled(self.receive(class)).await {
            match received {
                Ok(received) => {
                    backoff.reset();
                    self.dispatch(received, &mut jobs, shutdown).await;
                }
                Err(error) => {
                    METRICS.faults.with_label_values(&["receive"]).inc();
                    tracing::warn!(%error, "cannot receive; trying again");
                    let pause = tokio::time::sleep(backoff.next_delay_with_jitter());
                    let _ = shutdown.run_until_cancelled(pause).await;
                }
            }
            while jobs.try_join_next().is_some() {}
        }
        while jobs.join_next().await.is_some() {}
    }

    /// Receives at most as many messages as the plan leaves free. A worker thus holds the images that its sessions process
    /// and few more, and leaves the others to idle workers.
    async fn receive(&self, class: ServiceClass) -> Result<Received<'_>, TransportError> {
        let permits = match class {
            ServiceClass::Interactive => &self.interactive_permits,
            ServiceClass::Bulk => &self.bulk_permits,
        };
        let permits = take_permits(permits, &self.load).await;
        let wanted = Wanted { class, max: permits.len(), visibility_timeout: self.visibility_timeout };
        let together = self.alone.together().await;
        let deliveries = tokio::select! {
            biased;
            received = self.transport.receive(wanted, &*self.load) => received?,
            () = self.alone.is_wanted() => Vec::new(),
        };
        METRICS.received.inc_by(deliveries.len() as u64);
        Ok(Received { class, deliveries, permits, together })
    }

    async fn dispatch(self: &Arc<Self>, received: Received<'_>, jobs: &mut JoinSet<()>, shutdown: &CancellationToken) {
        let Received { class, deliveries, permits, together: receiving } = received;
        // Take all leases first, so that the messages that wait below are renewed too.
        let held: Vec<_> = deliveries
            .into_iter()
            .zip(permits)
            .map(|(delivery, permit)| (self.keeper.hold(delivery.receipt.clone()), delivery, permit))
            .collect();
        let (alone, together): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|(_, delivery, _)| delivery.receive_count >= ALONE_FROM_ATTEMPT);
        for (lease, delivery, permit) in together {
            jobs.spawn(Arc::clone(self).prepare(class, lease, delivery, permit));
        }
        // Counted before the loop of the other class may be alone.
        let mut waiting: Vec<_> = alone.iter().map(|_| self.alone.wait()).collect();
        drop(receiving);
        for (lease, delivery, permit) in alone {
            let turn = async {
                let turn = self.alone.turn().await;
                self.keeper.until_held_at_most(self.alone.waiting()).await;
                turn
            };
            let Some(turn) = shutdown.run_until_cancelled(turn).await else {
                waiting.pop();
                let outcome = Outcome::Release { id: None, after: Duration::ZERO, reason: "draining".to_owned() };
                self.finish(lease, Span::default(), outcome).await;
                continue;
            };
            waiting.pop();
            jobs.spawn(Arc::clone(self).prepare(class, lease, delivery, permit));
            // This also waits for the last one, so that nothing is received while it runs.
            let ended = self.keeper.until_held_at_most(self.alone.waiting());
            let _ = shutdown.run_until_cancelled(ended).await;
            drop(turn);
        }
    }

    /// Takes one delivery from its body to an image or to its outcome.
    async fn prepare(
        self: Arc<Self>,
        class: ServiceClass,
        lease: Lease,
        delivery: Delivery,
        permit: OwnedSemaphorePermit,
    ) {
        lease.enter(Stage::Fetching);
        let incoming = Incoming::parse(&delivery.body);
        lease.belongs_to(incoming.id());
        let mut span = Span::begin(Side::Consumer, incoming.traceparent(), || "classify".into());
        span.set("imgcls.attempt", i64::from(delivery.receive_count));
        match self.image_of(incoming, &delivery, &span).await {
            Ok((mut work, model, image)) => {
                let body = delivery.body;
                lease.enter(Stage::Queued);
                let since = Instant::now();
                let claim = match self.look_up_answer(class, &work, model, &image).await {
                    Known::Nothing(claim) => claim,
                    Known::Answer(answer, facts) => {
                        span.set("imgcls.cached", true);
                        work.timings_ms.queued += millis(since.elapsed());
                        work.image = work.is_of_batch().then_some(facts);
                        let outcome = work.succeeded(answer, image, clock::now(), &self.rules);
                        return self.finish(lease, span, outcome).await;
                    }
                };
                let fetched = Fetched { class, work, lease, span, model, body, image, permit, claim, since };
                if self.fetched.send(fetched).await.is_err() {
                    tracing::debug!("the inference threads have ended; the message comes again");
                }
            }
            Err(outcome) => self.finish(lease, span, outcome).await,
        }
    }

    async fn finish(&self, lease: Lease, span: Span, outcome: Outcome) {
        lease.enter(Stage::Publishing);
        if self.finished.send(vec![Finished::new(lease, span, outcome)]).await.is_err() {
            tracing::debug!("the publisher has ended; the message comes again");
        }
    }

    /// Returns the work with the place of its model in the list, and the image.
    async fn image_of(
        &self,
        incoming: Incoming,
        delivery: &Delivery,
        span: &Span,
    ) -> Result<(Work, usize, Bytes), Outcome> {
        let mut work = self.triage(incoming, delivery).await?;
        let model = match self.models.select(work.wanted_model()) {
            Ok(model) => model,
            Err(message) => {
                return Err(work.failed(ErrorCode::UnknownModel, message, &delivery.body, clock::now(), &self.rules));
            }
        };
        let fetching = Instant::now();
        let image = match self.fetch(&mut work).await {
            Ok(image) => image,
            Err(Fetch::Failed(code, message)) => {
                return Err(work.failed(code, message, &delivery.body, clock::now(), &self.rules));
            }
            Err(Fetch::Damaged(reason)) => {
                return Err(work.damaged(&reason, &delivery.body, clock::now(), &self.rules));
            }
            Err(Fetch::Withdrawn(id)) => return Err(Outcome::Withdrawn { id }),
            Err(Fetch::Fault(reason)) => return Err(work.faulted(reason)),
        };
        let fetched = fetching.elapsed();
        METRICS.stage("fetched").observe(fetched.as_secs_f64());
        Metrics::trace_stage(span, "fetched", fetched);
        self.load.fetched(fetched);
        work.timings_ms.fetched = millis(fetched);
        Ok((work, model, image))
    }

    async fn look_up_answer(&self, class: ServiceClass, work: &Work, model: usize, image: &Bytes) -> Known {
        let Some(cache) = &self.cache else { return Known::Nothing(None) };
        cached::look_up(cache, class, work, &self.models.package(model), self.limits.max_pixels, image).await
    }

    async fn triage(&self, incoming: Incoming, delivery: &Delivery) -> Result<Work, Outcome> {
        let attempt = delivery.receive_count;
        if attempt > 1 {
            METRICS.redelivered.inc();
        }
        match job::triage(incoming, &delivery.body, attempt, clock::now(), &self.rules) {
            Triage::Classify(work) => Ok(work),
            Triage::Done(outcome) => Err(outcome),
            Triage::Divide(messages) => Err(self.divide(&messages, attempt).await),
            Triage::LookUp(request) => self.look_up(request, delivery).await,
            Triage::LookUpObject(work, event) => self.look_up_object(work, &event).await,
        }
    }

    /// Sends each part of a message as a message of its own. If this worker dies before it acknowledges the message, parts
    /// come twice, which events of S3 may do anyway.
    async fn divide(&self, messages: &[String], attempt: u32) -> Outcome {
        let send = || async { self.transport.send_bulk_messages(messages).await };
        match retry_for("divide", FETCH_TIMEOUT, send).await {
            Ok(()) => Outcome::Acknowledged { reason: "each of its events is a message of its own now" },
            Err(error) => job::release(None, attempt, error.to_string()),
        }
    }

    /// Decides on a request that was delivered before: it is completed already if its result exists.
    async fn look_up(&self, request: Box<ClassifyRequest>, delivery: &Delivery) -> Result<Work, Outcome> {
        let (id, attempt) = (request.id, delivery.receive_count);
        match self.stored_result(id).await {
            Ok(Ok(Some(stored))) => {
                tracing::info!(%id, attempt, "delivered again after its end; sending its stored result again");
                return Err(Outcome::AlreadyCompleted { stored, reply_to: request.reply_to });
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                return Err(job::damaged_result(&request, &delivery.body, attempt, &error.to_string()));
            }
            Err(error) => return Err(job::release(Some(id), attempt, error.to_string())),
        }
        let last_fault = self.last_faults.of(id);
        job::decide(request, &delivery.body, attempt, last_fault.as_deref(), clock::now(), &self.rules)
            .map_err(|outcome| *outcome)
    }

    /// Decides on an event: it is completed already if the result of it or of a later one is stored.
    async fn look_up_object(&self, work: Work, event: &ObjectEvent) -> Result<Work, Outcome> {
        let key = protocol::object_result_key(&event.bucket, &event.key);
        let read = || async { unless_final(self.transport.object_result(&key).await) };
        match retry_for("look_up", FETCH_TIMEOUT, read).await {
            Ok(Ok(Some(stored))) if protocol::is_current(&stored, &event.sequencer) => {
                Err(Outcome::Acknowledged { reason: "the result of this event or of a later one is stored" })
            }
            // A damaged result is replaced.
            Ok(_) => Ok(work),
            Err(error) => Err(work.faulted(error.to_string())),
        }
    }

    /// Reads a stored result. The inner error is a fault of this result, the outer one a fault of the transport.
    async fn stored_result(&self, id: Uuid) -> Result<Result<Option<Bytes>, TransportError>, TransportError> {
        let read = || async { unless_final(self.transport.result(id).await) };
        retry_for("look_up", FETCH_TIMEOUT, read).await
    }

    async fn fetch(&self, work: &mut Work) -> Result<Bytes, Fetch> {
        let limit = self.limits.max_upload_bytes;
        let id = match &mut work.payload {
            Payload::Inline(bytes) if bytes.len() as u64 > limit => {
                return Err(Fetch::Failed(ErrorCode::InputTooLarge, format!("{} bytes, at most {limit}", bytes.len())));
            }
            Payload::Inline(bytes) => return Ok(Bytes::from(std::mem::take(bytes))),
            Payload::Stored(id) => *id,
            Payload::Foreign(image) => {
                let image = image.clone();
                return self.fetch_foreign(&image, limit).await;
            }
        };
        let read = || async { unless_final(self.transport.image(id, limit).await) };
        match retry_for("fetch", FETCH_TIMEOUT, read).await {
            Ok(Ok(Some(image))) if image == protocol::WITHDRAWN_IMAGE => Err(Fetch::Withdrawn(id)),
            Ok(Ok(Some(image))) => Ok(image),
            Ok(Ok(None)) => {
                Err(Fetch::Failed(ErrorCode::InputMissing, format!("no object {}", protocol::image_key(id))))
            }
            Ok(Err(TransportError::ObjectTooLarge { size, .. })) => {
                Err(Fetch::Failed(ErrorCode::InputTooLarge, format!("{size} bytes, at most {limit}")))
            }
            Ok(Err(error)) => Err(Fetch::Damaged(error.to_string())),
            Err(error) => Err(Fetch::Fault(error.to_string())),
        }
    }
}

impl Intake {
    /// Reads an image of a bucket of others. A bucket that may not be read is a fault of ours, which an operator can
    /// solve while the message is retried.
    async fn fetch_foreign(&self, image: &ImageRef, limit: u64) -> Result<Bytes, Fetch> {
        let read = || async { unless_final(self.transport.foreign_image(image, limit).await) };
        let missing = || format!("no object {:?} in bucket {:?}", image.key, image.bucket);
        match retry_for("fetch", FETCH_TIMEOUT, read).await {
            Ok(Ok(Some(bytes))) => Ok(bytes),
            Ok(Ok(None)) => Err(Fetch::Failed(ErrorCode::InputMissing, missing())),
            Ok(Err(TransportError::ObjectTooLarge { size, .. })) => {
                Err(Fetch::Failed(ErrorCode::InputTooLarge, format!("{size} bytes, at most {limit}")))
            }
            Ok(Err(error)) => Err(Fetch::Damaged(error.to_string())),
            Err(error) => Err(Fetch::Fault(error.to_string())),
        }
    }
}

/// The messages of one receive.
struct Received<'a> {
    class: ServiceClass,
    deliveries: Vec<Delivery>,
    permits: Vec<OwnedSemaphorePermit>,
    /// Held until the leases of the messages are taken.
    together: RwLockReadGuard<'a, ()>,
}

/// The reason why an image could not be fetched.
enum Fetch {
    Failed(ErrorCode, String),
    /// The bytes differ from those that were stored. A retry would not help.
    Damaged(String),
    /// The client left before it got the id.
    Withdrawn(Uuid),
    Fault(String),
}

/// Waits until the plan allows a receive. Then takes all permits that it leaves free, at most a batch of the transport.
async fn take_permits(permits: &Arc<Semaphore>, load: &SessionLoad) -> Vec<OwnedSemaphorePermit> {
    let unused = |plan: Plan| load.most_ahead().saturating_sub(plan.ahead);
    let plan = load.plan();
    let at_least = unused(plan) + plan.for_a_receive.min(load.most_ahead());
    let Ok(mut free) = Arc::clone(permits).acquire_many_owned(at_least as u32).await else {
        return std::future::pending().await;
    };
    // The plan may have changed meanwhile.
    let unused = unused(load.plan());
    while let Ok(more) = Arc::clone(permits).try_acquire_owned() {
        free.merge(more);
    }
    let taken = free.num_permits().saturating_sub(unused).clamp(1, MAX_BATCH);
    std::iter::from_fn(|| free.split(1)).take(taken).collect()
}
