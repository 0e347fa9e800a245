//! Jobs: accepting one, waiting for its end, telling its state. Any web process can do each for any id.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::admission::{Admission, JobPermit};
use super::error::Problem;
use super::metrics::METRICS;
use super::pending::{Pending, Waiter, Wake};
use super::replies::Replies;
use super::results::Results;
use super::upload::Upload;
use super::withdrawal::{Untold, Withdrawals};
use crate::clock;
use crate::protocol::{self, ClassifyRequest, LegacyRequest, WIRE_VERSION};
use crate::queue::{self, Outgoing, Queue, QueueError};
use crate::store::{NoSpace, ObjectReader, ObjectStore, PutOptions, Space, StoreError};

/// When a waiter looks in the store first, in case its reply was lost; then with back-off.
const FIRST_LOOK: Duration = Duration::from_secs(2);
const LONGEST_LOOK: Duration = Duration::from_secs(10);
/// Of a caller whose patience has ended: it hears of an end that nobody told it.
const LAST_LOOK_PATIENCE: Duration = Duration::from_millis(500);
/// How long the image of a job that was refused is tried to be deleted, while its client waits for the refusal.
const CLEAN_UP_PATIENCE: Duration = Duration::from_secs(1);
/// How long an image does not fit by what the queue said once.
const LIMIT_KEPT_FOR: Duration = Duration::from_secs(10);
/// A worker that holds the message at its expiry still has the first word for so long.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);

/// How much later a job whose caller waits for its end may be on disk: many share a sync, and most ends come sooner.
const SHARED_SYNC: Duration = Duration::from_millis(50);

/// What the web tier says to workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Requests with an id, by reference.
    V1,
    /// The original's form, for its workers: the whole image in the message, under a name made of the id.
    Legacy,
}

pub struct Jobs {
    pub wire: Wire,
    pub requests: Arc<dyn Queue>,
    pub input: Arc<dyn ObjectStore>,
    pub results: Arc<Results>,
    pub pending: Pending,
    pub replies: Arc<Replies>,
    /// At most what the queue keeps a message, less a minute.
    pub job_ttl: Duration,
    pub inline_bytes: usize,
    pub limit: MessageLimit,
    pub admission: Arc<Admission>,
    pub withdrawals: Withdrawals,
    /// Cancelled when a drain has no more patience: who waits is told to ask again.
    pub give_up: CancellationToken,
    /// Whether there is space for another image.
    pub space: Space,
}

/// The largest message that the request queue takes, as far as this process knows: learnt anew when the queue refuses
/// one, and now and then while an image does not fit.
pub struct MessageLimit {
    bytes: AtomicUsize,
    asked_at: Mutex<Instant>,
}

impl MessageLimit {
    pub fn new(bytes: usize) -> Self {
        MessageLimit { bytes: bytes.into(), asked_at: Mutex::new(Instant::now()) }
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn learn(&self, bytes: usize) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether it is time to ask the queue; tells one caller, who then does.
    fn is_to_be_asked(&self) -> bool {
        let mut asked_at = self.asked_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = asked_at.elapsed() >= LIMIT_KEPT_FOR;
        if is_due {
            *asked_at = Instant::now();
        }
        is_due
    }
}

/// What a job is at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The result object's text.
    Final(Bytes),
    Queued,
    Unknown,
}

/// A job that was accepted.
pub struct Classified {
    pub id: Uuid,
    /// The result object's text, where it came in time.
    pub result: Option<Bytes>,
}

/// What a client may say about its job beside the image.
#[derive(Debug, Clone)]
pub struct Wishes {
    pub top_k: u32,
    pub traceparent: Option<String>,
}

impl Jobs {
    /// Accepts an image: once this returns, the job has an end, whatever dies.
    ///
    /// Dropped, which means that the client left, the job is withdrawn: nobody was told its id.
    pub async fn submit(&self, upload: Upload, wishes: Wishes) -> Result<Uuid, Problem> {
        let place = self.admission.admit(Duration::ZERO)?;
        let id = clock::new_id();
        let mut caller = self.caller(id, &place, &upload);
        let accepted = self.accept(id, &upload, &wishes, Duration::ZERO, &caller.untold).await;
        caller.answered(accepted.is_ok());
        accepted?;
        count(upload.bytes.len());
        Ok(id)
    }

    /// Accepts an image and waits for its end; only the id when `patience` ends first. An end that comes before the image
    /// and its message are on disk is told without them: it stands, and until now nobody knew the id.
    ///
    /// Dropped, as [`Jobs::submit`].
    pub async fn classify(&self, upload: Upload, wishes: Wishes, patience: Duration) -> Result<Classified, Problem> {
        let place = self.admission.admit(patience)?;
        let id = clock::new_id();
        let mut caller = self.caller(id, &place, &upload);
        let classified = self.classify_as(id, upload, wishes, patience, &caller.untold).await;
        caller.answered(classified.is_ok());
        classified
    }

    /// Workers see that a job was withdrawn when they read its image from the store, so that one whose message carries the
    /// image is classified for nobody.
    fn caller<'a>(&'a self, id: Uuid, place: &'a JobPermit, upload: &Upload) -> Caller<'a> {
        let mut untold = self.withdrawals.untold(id);
        if self.wire == Wire::Legacy || upload.bytes.len() <= self.inline_bytes {
            untold.disarm();
        }
        Caller { untold, place }
    }

    async fn classify_as(
        &self,
        id: Uuid,
        upload: Upload,
        wishes: Wishes,
        patience: Duration,
        untold: &Untold<'_>,
    ) -> Result<Classified, Problem> {
        let waiter = self.pending.wait_for(id);
        let image_bytes = upload.bytes.len();
        let mut accepting = pin!(async {
            // Its memory is given back to other uploads once the image is stored, not when the answer is there.
            let upload = upload;
            self.accept(id, &upload, &wishes, SHARED_SYNC.min(patience), untold).await
        });
        let mut waiting = pin!(self.wait(waiter, patience));
        let ended = tokio::select! {
            biased;
            ended = &mut waiting => {
                if ended.is_none() {
                    accepting.await?;
                }
                ended
            }
            accepted = &mut accepting => {
                accepted?;
                waiting.await
            }
        };
        count(image_bytes);
        Ok(Classified { id, result: ended })
    }

    /// Once this returns, the job has an end, whatever dies. `durable_within`: how much later that may be, for others to
    /// share the way to the disk.
    async fn accept(
        &self,
        id: Uuid,
        upload: &Upload,
        wishes: &Wishes,
        durable_within: Duration,
        untold: &Untold<'_>,
    ) -> Result<(), Problem> {
        // Held until the image is stored.
        let _space = self.space.admit(upload.bytes.len() as u64).await.map_err(|full| no_space(&full))?;
        self.look_at_limit(id, upload).await;
        // First: what does not fit the queue in the original's form is refused before anything is stored.
        let message = self.message(id, upload, wishes)?;
        let send = async {
            untold.sends();
            let sent = self.send(message, id, upload, wishes, durable_within).await;
            if sent.is_err() {
                self.forget_image(id).await;
            }
            sent
        };
        if self.input.is_put_in_line_with_sends(upload.bytes.len()) {
            // Polled in this order. Should the image alone fail, nobody was told the id of the message.
            futures::try_join!(self.store(id, upload, durable_within), send).map(drop)
        } else {
            // The message waits for it.
            self.store(id, upload, Duration::ZERO).await?;
            send.await
        }
    }

    async fn store(&self, id: Uuid, upload: &Upload, durable_within: Duration) -> Result<(), Problem> {
        let _timer = METRICS.stage("stored").start_timer();
        let options = PutOptions { if_none_match: false, content_type: Some(upload.content_type), durable_within };
        let put = self.input.put(&protocol::image_key(id), upload.bytes.clone(), options).await;
        put.map(drop).map_err(|error| store_problem(&error))
    }

    /// Nobody was told the id; the image would only take room.
    async fn forget_image(&self, id: Uuid) {
        match tokio::time::timeout(CLEAN_UP_PATIENCE, self.input.delete(&protocol::image_key(id))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, %id, "image of a refused job not deleted"),
            Err(_) => tracing::debug!(%id, "image of a refused job not deleted in time"),
        }
    }

    /// Somebody may have raised the queue's limit: asked when that would change how this image travels.
    async fn look_at_limit(&self, id: Uuid, upload: &Upload) {
        let wished_bytes = match self.wire {
            Wire::V1 if upload.bytes.len() <= self.inline_bytes => protocol::inline_request_bytes(upload.bytes.len()),
            Wire::V1 => 0,
            Wire::Legacy => {
                protocol::legacy_request_bytes(upload.bytes.len(), &protocol::legacy_name(id, upload.content_type))
            }
        };
        if wished_bytes <= self.limit.bytes() || !self.limit.is_to_be_asked() {
            return;
        }
        match self.requests.attributes().await {
            Ok(attributes) => self.limit.learn(attributes.max_message_bytes),
            Err(error) => tracing::debug!(%error, "the queue's limit is taken to be what it was"),
        }
    }

    async fn send(
        &self,
        message: String,
        id: Uuid,
        upload: &Upload,
        wishes: &Wishes,
        durable_within: Duration,
    ) -> Result<(), Problem> {
        let _timer = METRICS.stage("sent").start_timer();
        let outgoing = |body| Outgoing { durable_within, ..Outgoing::new(body) };
        match queue::send_one(&*self.requests, outgoing(message)).await {
            Ok(()) => Ok(()),
            // Somebody lowered the queue's limit.
            Err(QueueError::TooLarge { limit, .. }) => {
                tracing::info!(queue = self.requests.name(), limit, "the queue takes less than it did");
                self.limit.learn(limit);
                let smaller = self.message(id, upload, wishes)?;
                let sent = queue::send_one(&*self.requests, outgoing(smaller)).await;
                sent.map_err(|error| queue_problem(&error))
            }
            Err(error) => Err(queue_problem(&error)),
        }
    }

    /// What is sent for an image, of a size that the queue takes.
    ///
    /// # Errors
    /// Only in the original's form, which has no references: 413.
    fn message(&self, id: Uuid, upload: &Upload, wishes: &Wishes) -> Result<String, Problem> {
        let limit = self.limit.bytes();
        match self.wire {
            Wire::V1 => Ok(self.request(id, upload, wishes, limit).into_message(self.input.bucket(), limit)),
            Wire::Legacy => {
                let filename = protocol::legacy_name(id, upload.content_type);
                let size = protocol::legacy_request_bytes(upload.bytes.len(), &filename);
                if size > limit {
                    return Err(Problem::too_large_for_queue(self.requests.name(), size, limit));
                }
                Ok(LegacyRequest::new(&upload.bytes, filename).to_json())
            }
        }
    }

    fn request(&self, id: Uuid, upload: &Upload, wishes: &Wishes, limit: usize) -> ClassifyRequest {
        let bucket = self.input.bucket();
        let (image, image_data) = protocol::inline_or_reference(&upload.bytes, id, bucket, self.inline_bytes, limit);
        let submitted_at = clock::now();
        ClassifyRequest {
            v: WIRE_VERSION,
            id,
            filename: upload.filename.clone(),
            content_type: Some(upload.content_type.to_owned()),
            image,
            image_data,
            top_k: wishes.top_k,
            submitted_at,
            expires_at: submitted_at.saturating_add(self.job_ttl).unwrap_or(Timestamp::MAX),
            reply_to: Some(self.replies.reply_to()),
            traceparent: wishes.traceparent.clone(),
        }
    }

    /// Waits for the end of a job: the reply wakes, the store is the truth. None when `patience` ends first.
    async fn wait(&self, mut waiter: Waiter, patience: Duration) -> Option<Bytes> {
        METRICS.waiting.inc();
        let _timer = METRICS.stage("waited").start_timer();
        let _counted = Counted;
        let id = waiter.id();
        tokio::select! {
            result = self.until_result(&mut waiter) => return Some(result),
            () = tokio::time::sleep(patience) => {}
            () = self.give_up.cancelled() => {}
        }
        let last_look = tokio::time::timeout(LAST_LOOK_PATIENCE, self.result(id)).await;
        last_look.ok()?.ok()?
    }

    /// A look that finds the store out of order keeps no reply waiting.
    async fn until_result(&self, waiter: &mut Waiter) -> Bytes {
        let id = waiter.id();
        let mut look_after = FIRST_LOOK;
        loop {
            let look = async {
                tokio::time::sleep(look_after).await;
                self.result(id).await
            };
            let found = tokio::select! {
                wake = waiter.woken() => match wake {
                    Wake::Result(result) => return result,
                    Wake::Look => {
                        look_after = Duration::ZERO;
                        continue;
                    }
                },
                found = look => found,
            };
            match found {
                Ok(Some(result)) => return result,
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, %id, "cannot look for a result"),
            }
            look_after = (look_after * 2).clamp(FIRST_LOOK, LONGEST_LOOK);
        }
    }

    /// The state of any id, waiting up to `patience` for its end.
    pub async fn state(&self, id: Uuid, patience: Duration) -> Result<State, Problem> {
        // Before the first look: an end between look and wait would go unnoticed.
        let waiter = self.pending.wait_for(id);
        let state = self.look(id).await?;
        if state != State::Queued || patience.is_zero() {
            return Ok(state);
        }
        Ok(self.wait(waiter, patience).await.map_or(State::Queued, State::Final))
    }

    async fn look(&self, id: Uuid) -> Result<State, Problem> {
        // In either form, whatever this process speaks: the job may be of a time when the other one was spoken.
        if let Some(result) = self.results.get_or_adopt(id).await.map_err(|error| store_problem(&error))? {
            return Ok(State::Final(result));
        }
        let image = self.input.head(&protocol::image_key(id)).await.map_err(|error| store_problem(&error))?;
        let Some(image) = image else {
            // The job may have finished since the first look, and its image be deleted already.
            let result = self.results.get(id).await.map_err(|error| store_problem(&error))?;
            return Ok(result.map_or(State::Unknown, State::Final));
        };
        match self.expires_at(id, image.modified) {
            Some(expires_at) if clock::now() > expires_at => {
                self.results.expire(id).await.map(State::Final).map_err(|error| store_problem(&error))
            }
            _ => Ok(State::Queued),
        }
    }

    /// The image of a job, as it was uploaded, to be read in pieces.
    pub async fn image(&self, id: Uuid, max_bytes: u64) -> Result<Option<ObjectReader>, Problem> {
        self.input.read(&protocol::image_key(id), max_bytes).await.map_err(|error| store_problem(&error))
    }

    /// Why there is no image of that id.
    pub async fn no_image(&self, id: Uuid) -> Problem {
        match self.results.get(id).await {
            Ok(Some(_)) => Problem::image_not_kept(id),
            Ok(None) => Problem::no_such_job(&id.to_string()),
            Err(error) => store_problem(&error),
        }
    }

    /// What a waiter looks for.
    async fn result(&self, id: Uuid) -> Result<Option<Bytes>, StoreError> {
        match self.wire {
            Wire::V1 => self.results.get(id).await,
            Wire::Legacy => self.results.get_or_adopt(id).await,
        }
    }

    /// From when on this process may say itself that a job expired. Who sends a job again writes its image anew, and its
    /// time runs from then on.
    fn expires_at(&self, id: Uuid, stored_at: SystemTime) -> Option<Timestamp> {
        let submitted_at = protocol::submitted_at(id)?;
        let runs_from = Timestamp::try_from(stored_at).map_or(submitted_at, |stored_at| stored_at.max(submitted_at));
        runs_from.saturating_add(self.job_ttl + EXPIRY_MARGIN).ok()
    }
}

fn count(image_bytes: usize) {
    METRICS.accepted.inc();
    METRICS.upload_bytes.inc_by(image_bytes as u64);
}

/// A caller that was not answered yet. When its future is dropped, no reply will tell the end of its job.
struct Caller<'a> {
    untold: Untold<'a>,
    place: &'a JobPermit,
}

impl Caller<'_> {
    /// To be called before the answer leaves, which tells the id unless the job was refused.
    fn answered(&mut self, is_accepted: bool) {
        self.untold.disarm();
        if !is_accepted {
            self.place.forget_job();
        }
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.untold.is_armed() {
            self.place.forget_job();
        }
    }
}

/// Counts a waiter down, however it leaves.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        METRICS.waiting.dec();
    }
}

fn no_space(full: &NoSpace) -> Problem {
    tracing::warn!(used_bytes = full.used_bytes, limit_bytes = full.limit_bytes, "no space for another image");
    Problem::no_space(full.to_string())
}

pub fn store_problem(error: &StoreError) -> Problem {
    if let StoreError::Damaged { key, .. } = error {
        tracing::error!(%error, "store");
        return Problem::damaged(key);
    }
    tracing::warn!(%error, "store");
    Problem::unavailable("images cannot be stored or read at the moment; send it again shortly")
}

fn queue_problem(error: &QueueError) -> Problem {
    tracing::warn!(%error, "queue");
    Problem::unavailable("the queue takes nothing at the moment; send the image again shortly")
}
