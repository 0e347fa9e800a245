//! The intake: receive, fetch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::batch::Activity;
use super::infer::{Fetched, Finished};
use super::job::{self, ALONE_FROM_ATTEMPT, Ending, Rules, Triage, Work, millis};
use super::lease::{Keeper, Lease, Stage};
use super::metrics::METRICS;
use super::patience::{Rests, patiently, unless_final};
use crate::clock;
use crate::config::Limits;
use crate::protocol::{self, ClassifyRequest, ErrorCode, Incoming, Payload};
use crate::queue::{Delivery, LONGEST_POLL, MAX_BATCH, Queue, QueueError, ReceiveOptions};
use crate::store::{ObjectStore, StoreError};
use crate::telemetry::trace::{Side, Span};

/// How long a fetch is tried in place before it costs an attempt. The lease is renewed meanwhile.
const FETCH_PATIENCE: Duration = Duration::from_secs(20);

pub struct Intake {
    pub requests: Arc<dyn Queue>,
    pub input: Arc<dyn ObjectStore>,
    pub output: Arc<dyn ObjectStore>,
    pub limits: Limits,
    pub rules: Arc<Rules>,
    pub keeper: Keeper,
    pub last_faults: Arc<LastFaults>,
    pub visibility_timeout: Duration,
    /// One permit for each image that may wait for a session; those that run have given theirs back.
    pub places: Arc<Semaphore>,
    /// So many places have to be free before more is received: those of one batch, which are free as soon as a session
    /// begins with one. While that runs the next is received and fetched, and one call brings several messages.
    pub places_for_a_receive: u32,
    pub activity: watch::Receiver<Activity>,
    pub sessions: u32,
    pub fetched: mpsc::Sender<Fetched>,
    pub finished: mpsc::Sender<Vec<Finished>>,
}

impl Intake {
    /// Receives until shut down, then lets what it took go through.
    pub async fn run(self, shutdown: CancellationToken) {
        let intake = Arc::new(self);
        let mut jobs = JoinSet::new();
        let mut rests = Rests::default();
        let mut left_more = false;
        while let Some(received) = shutdown.run_until_cancelled(intake.receive(left_more)).await {
            match received {
                Ok((deliveries, places)) => {
                    rests = Rests::default();
                    // A fair share of two or more leaves some.
                    left_more = deliveries.len() >= places.len().min(2);
                    intake.dispatch(deliveries, places, &mut jobs, &shutdown).await;
                }
                Err(error) => {
                    METRICS.faults.with_label_values(&["receive"]).inc();
                    tracing::warn!(%error, "cannot receive; trying again");
                    let _ = shutdown.run_until_cancelled(rests.rest()).await;
                }
            }
            while jobs.try_join_next().is_some() {}
        }
        while jobs.join_next().await.is_some() {}
    }

    /// Takes at most as many messages as there are places for, so that this worker never holds what an idle one could
    /// do: what runs, plus one batch a session.
    ///
    /// `left_more`: whether the last receive left messages there, as far as can be told.
    async fn receive(&self, left_more: bool) -> Result<(Vec<Delivery>, Vec<OwnedSemaphorePermit>), QueueError> {
        let places = take_places(&self.places, self.places_for_a_receive).await;
        let mut may_look = left_more;
        loop {
            let wait = self.until_it_is_our_turn(may_look).await;
            let options =
                ReceiveOptions { max: places.len(), wait, visibility_timeout: self.visibility_timeout, is_fair: true };
            let deliveries = self.requests.receive(options).await?;
            if !deliveries.is_empty() || wait == LONGEST_POLL {
                METRICS.received.inc_by(deliveries.len() as u64);
                return Ok((deliveries, places));
            }
            may_look = false;
        }
    }

    /// While the sessions of this worker are busy, what arrives is first of all an idle worker's: this one only looks
    /// halfway to its next free session, so that what it finds is fetched by then, unless it `may_look` at once. Who looks
    /// earlier takes what another may be free for sooner. Returns how long to wait for a message.
    async fn until_it_is_our_turn(&self, may_look: bool) -> Duration {
        if !self.requests.is_cheap_to_look() {
            return LONGEST_POLL;
        }
        let mut activity = self.activity.clone();
        let free_in = activity.borrow().next_is_free_in(self.sessions);
        let rest = if may_look { Duration::ZERO } else { free_in / 2 };
        tokio::select! {
            biased;
            _ = activity.wait_for(|activity| activity.is_idle()) => LONGEST_POLL,
            () = tokio::time::sleep(rest) => Duration::ZERO,
        }
    }

    async fn dispatch(
        self: &Arc<Self>,
        deliveries: Vec<Delivery>,
        places: Vec<OwnedSemaphorePermit>,
        jobs: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) {
        // All leases first: those that have to wait for their turn below are renewed too.
        let held: Vec<_> = deliveries
            .into_iter()
            .zip(places)
            .map(|(delivery, place)| (self.keeper.hold(delivery.receipt.clone()), delivery, place))
            .collect();
        let (alone, together): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|(_, delivery, _)| delivery.receive_count >= ALONE_FROM_ATTEMPT);
        for (lease, delivery, place) in together {
            jobs.spawn(Arc::clone(self).prepare(lease, delivery, place));
        }
        let mut left = alone.len();
        for (lease, delivery, place) in alone {
            if shutdown.run_until_cancelled(self.keeper.until_held_at_most(left)).await.is_none() {
                let ending = Ending::HandBack { id: None, after: Duration::ZERO, reason: "draining".to_owned() };
                self.finish(lease, Span::default(), ending).await;
                continue;
            }
            jobs.spawn(Arc::clone(self).prepare(lease, delivery, place));
            left -= 1;
            // While the last one runs, nothing is received either: it is alone.
            let _ = shutdown.run_until_cancelled(self.keeper.until_held_at_most(left)).await;
        }
    }

    /// One delivery, from its body to an image or to its end.
    async fn prepare(self: Arc<Self>, lease: Lease, delivery: Delivery, place: OwnedSemaphorePermit) {
        lease.enter(Stage::Fetching);
        let incoming = Incoming::parse(&delivery.body);
        lease.belongs_to(incoming.id());
        let mut span = Span::begin(Side::Consumer, incoming.traceparent(), || "classify".into());
        span.set("imgcls.attempt", i64::from(delivery.receive_count));
        match self.image_of(incoming, &delivery, &span).await {
            Ok((work, image)) => {
                let body = delivery.body;
                lease.enter(Stage::InLine);
                let fetched = Fetched { work, lease, span, body, image, place, since: Instant::now() };
                if self.fetched.send(fetched).await.is_err() {
                    tracing::debug!("the inference threads have ended; the message comes again");
                }
            }
            Err(ending) => self.finish(lease, span, ending).await,
        }
    }

    async fn finish(&self, lease: Lease, span: Span, ending: Ending) {
        lease.enter(Stage::Publishing);
        if self.finished.send(vec![Finished { lease, span, ending }]).await.is_err() {
            tracing::debug!("the publisher has ended; the message comes again");
        }
    }

    async fn image_of(&self, incoming: Incoming, delivery: &Delivery, span: &Span) -> Result<(Work, Bytes), Ending> {
        let mut work = self.triage(incoming, delivery).await?;
        let fetching = Instant::now();
        let image = match self.fetch(&mut work).await {
            Ok(image) => image,
            Err(Fetch::Failed(code, message)) => {
                return Err(work.failed(code, message, &delivery.body, clock::now(), &self.rules));
            }
            Err(Fetch::Damaged(reason)) => {
                return Err(work.damaged(&reason, &delivery.body, clock::now(), &self.rules));
            }
            Err(Fetch::Withdrawn(id)) => return Err(Ending::Withdrawn { id }),
            Err(Fetch::Fault(reason)) => return Err(work.faulted(reason)),
        };
        let fetched = fetching.elapsed();
        METRICS.stage("fetched").observe(fetched.as_secs_f64());
        span.stage("fetched", fetched);
        work.timings_ms.fetched = millis(fetched);
        Ok((work, image))
    }

    async fn triage(&self, incoming: Incoming, delivery: &Delivery) -> Result<Work, Ending> {
        let attempt = delivery.receive_count;
        if attempt > 1 {
            METRICS.redelivered.inc();
        }
        match job::triage(incoming, &delivery.body, attempt, clock::now(), &self.rules) {
            Triage::Classify(work) => Ok(work),
            Triage::End(ending) => Err(ending),
            Triage::LookUp(request) => self.look_up(request, delivery).await,
        }
    }

    /// Of a request that was delivered before: the result that stands, else what is to be done with it.
    async fn look_up(&self, request: Box<ClassifyRequest>, delivery: &Delivery) -> Result<Work, Ending> {
        let (id, attempt) = (request.id, delivery.receive_count);
        match self.stored_result(id).await {
            Ok(Ok(Some(stored))) => {
                tracing::info!(%id, attempt, "delivered again after its end; answered again");
                return Err(Ending::Again { stored, reply_to: request.reply_to });
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                return Err(job::damaged_result(&request, &delivery.body, attempt, &error.to_string()));
            }
            Err(error) => return Err(job::hand_back(Some(id), attempt, error.to_string())),
        }
        let last_fault = self.last_faults.of(id);
        job::settle(request, &delivery.body, attempt, last_fault.as_deref(), clock::now(), &self.rules)
            .map_err(|ending| *ending)
    }

    /// The inner error is of this result alone, the outer one of the store.
    async fn stored_result(&self, id: Uuid) -> Result<Result<Option<Bytes>, StoreError>, StoreError> {
        let key = protocol::result_key(id);
        let read = || async { unless_final(self.output.get(&key, protocol::MAX_RESULT_BYTES).await) };
        patiently("look_up", FETCH_PATIENCE, read).await
    }

    async fn fetch(&self, work: &mut Work) -> Result<Bytes, Fetch> {
        let limit = self.limits.max_upload_bytes;
        let id = match &mut work.payload {
            Payload::Inline(bytes) if bytes.len() as u64 > limit => {
                return Err(Fetch::Failed(ErrorCode::InputTooLarge, format!("{} bytes, at most {limit}", bytes.len())));
            }
            Payload::Inline(bytes) => return Ok(Bytes::from(std::mem::take(bytes))),
            Payload::Stored(id) => *id,
        };
        let key = protocol::image_key(id);
        let read = || async { unless_final(self.input.get(&key, limit).await) };
        match patiently("fetch", FETCH_PATIENCE, read).await {
            Ok(Ok(Some(image))) if image == protocol::WITHDRAWN_IMAGE => Err(Fetch::Withdrawn(id)),
            Ok(Ok(Some(image))) => Ok(image),
            Ok(Ok(None)) => Err(Fetch::Failed(ErrorCode::InputMissing, format!("no object {key}"))),
            Ok(Err(StoreError::TooLarge { size, .. })) => {
                Err(Fetch::Failed(ErrorCode::InputTooLarge, format!("{size} bytes, at most {limit}")))
            }
            Ok(Err(error)) => Err(Fetch::Damaged(error.to_string())),
            Err(error) => Err(Fetch::Fault(error.to_string())),
        }
    }
}

/// Why there is no image.
enum Fetch {
    Failed(ErrorCode, String),
    /// Not the bytes that were stored; no retry brings them back.
    Damaged(String),
    /// The client left before anybody was told the id.
    Withdrawn(Uuid),
    Fault(String),
}

/// Waits for so many places, then takes all that are free, at most a batch.
async fn take_places(places: &Arc<Semaphore>, at_least: u32) -> Vec<OwnedSemaphorePermit> {
    let Ok(mut first) = Arc::clone(places).acquire_many_owned(at_least).await else {
        return std::future::pending().await;
    };
    let more = std::iter::from_fn(|| Arc::clone(places).try_acquire_owned().ok());
    std::iter::from_fn(|| first.split(1)).chain(more).take(MAX_BATCH).collect()
}

/// Why jobs were handed back, for the dead letter that may follow. A help for people, so it may forget.
#[derive(Default)]
pub struct LastFaults(Mutex<HashMap<Uuid, String>>);

impl LastFaults {
    const REMEMBERED: usize = 1_000;

    pub fn record(&self, id: Uuid, reason: String) {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() >= Self::REMEMBERED {
            faults.clear();
        }
        faults.insert(id, reason);
    }

    fn of(&self, id: Uuid) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}
