//! Submits jobs, waits for their results and reads their states. Any web process can do so for any id.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::admission::{Admission, JobPermit};
use super::auth::Principal;
use super::error::Problem;
use super::metrics::METRICS;
use super::pending::{Pending, Waiter, Wake};
use super::replies::Replies;
use super::results::Results;
use super::upload::Upload;
use super::withdrawal::{UntoldJob, Withdrawals};
use crate::clock;
use crate::protocol::{self, Callback, CallbackKind, ClassifyRequest, WIRE_VERSION};
use crate::retry::Schedule;
use crate::transport::{
    Acknowledge, Depth, JobForm, NewJob, NoSpace, ObjectReader, Removal, Space, Transport, TransportError,
};

/// Delays after which a waiter reads the result without a reply, in case the reply was lost.
const READS: Schedule = Schedule::new(Duration::from_secs(2), Duration::from_secs(10));
/// The time limit of one last read of the result after a caller's deadline has passed. It finds a result whose reply was
/// lost.
const LAST_READ_TIMEOUT: Duration = Duration::from_millis(500);
/// A worker that holds the message may still complete the job for this long after its expiry.
const EXPIRY_MARGIN: Duration = Duration::from_secs(60);

/// The form in which the web tier talks to workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Requests with an id, by reference.
    V1,
    /// The legacy form, for legacy workers: the whole image in the message, under a name made of the id.
    Legacy,
}

pub(crate) struct Jobs {
    pub wire: Wire,
    pub transport: Arc<dyn Transport>,
    pub results: Arc<Results>,
    pub pending: Pending,
    pub replies: Arc<Replies>,
    /// The time from submission to expiry. It is at most the message retention of the transport, less a minute.
    pub job_ttl: Duration,
    /// The same for jobs of batches, which may wait as long as the transport keeps their messages.
    pub bulk_ttl: Duration,
    pub inline_bytes: usize,
    pub admission: Arc<Admission>,
    pub withdrawals: Withdrawals,
    /// Cancelled when a drain no longer waits for results. Callers then get an answer without the result.
    pub give_up: CancellationToken,
    /// Admits images as long as there is space for them.
    pub space: Space,
}

/// The state of a job at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// The job has this result.
    Final(Bytes),
    Queued,
    /// A client deleted the job.
    Removed,
    Unknown,
}

impl State {
    /// The state of a job that has a result.
    fn of_result(result: Bytes) -> State {
        if protocol::is_tombstone(&result) { State::Removed } else { State::Final(result) }
    }
}

/// A job that was accepted.
pub(crate) struct Classified {
    pub id: Uuid,
    /// The result, if it came in time.
    pub result: Option<Bytes>,
}

/// The options that a client may send with the image.
#[derive(Debug, Clone)]
pub(crate) struct JobOptions {
    pub top_k: u32,
    /// The model that classifies the image; `None` means the first of the service.
    pub model: Option<String>,
    pub traceparent: Option<String>,
    /// The sender of the image. The job belongs to its key.
    pub principal: Principal,
    /// The id, if it is chosen already. A client that left may ask for it again, so such a job is never withdrawn.
    pub id: Option<Uuid>,
    /// The batch that the image belongs to.
    pub batch: Option<Uuid>,
    /// The address that is called when the job has ended.
    pub callback: Option<String>,
}

impl JobOptions {
    /// Returns true if somebody learns of the job even if the client leaves before it is answered.
    fn is_told(&self) -> bool {
        self.id.is_some() || self.callback.is_some()
    }

    /// Makes the id of a new job of this caller.
    pub(crate) fn new_id(&self) -> Uuid {
        self.principal.new_job_id()
    }
}

impl Jobs {
    /// Accepts an image. Once this returns, the job will have a result, even if this process or a worker dies.
    ///
    /// If the future is dropped, which means that the client left, the job is withdrawn, since no client knows its id.
    pub(crate) async fn submit(&self, upload: Upload, options: JobOptions) -> Result<Uuid, Problem> {
        let permit = self.admission.admit(Duration::ZERO)?;
        let id = options.id.unwrap_or_else(|| options.new_id());
        let mut caller = self.caller(id, &permit, &upload, options.is_told());
        let accepted = self.accept(id, &upload, &options, Acknowledge::WhenDurable).await;
        caller.answered(accepted.is_ok());
        accepted?;
        count(upload.bytes.len());
        Ok(id)
    }

    /// Returns true if workers get messages of the legacy form, which have no batches.
    pub(crate) fn is_legacy(&self) -> bool {
        self.wire == Wire::Legacy
    }

    /// Accepts an image of a batch. It does not count for admission, because no caller waits behind it.
    pub(crate) async fn submit_to_batch(&self, upload: Upload, options: JobOptions) -> Result<(), Problem> {
        let id = options.id.unwrap_or_else(|| options.new_id());
        self.accept(id, &upload, &options, Acknowledge::WhenDurable).await?;
        count(upload.bytes.len());
        Ok(())
    }

    /// Accepts an image and waits for its result. Returns only the id if `timeout` passes first. A result that comes
    /// before image and message are durable is returned without waiting for them, because no client knew the id yet.
    ///
    /// A dropped future withdraws the job, as in [`Jobs::submit`].
    pub(crate) async fn classify(
        &self,
        upload: Upload,
        options: JobOptions,
        timeout: Duration,
    ) -> Result<Classified, Problem> {
        let permit = self.admission.admit(timeout)?;
        let id = options.id.unwrap_or_else(|| options.new_id());
        let mut caller = self.caller(id, &permit, &upload, options.is_told());
        let classified = self.classify_as(id, upload, options, timeout).await;
        caller.answered(classified.is_ok());
        classified
    }

    /// Workers find out that a job was withdrawn when they read its image. A job whose message contains the image is
    /// therefore never withdrawn, and is classified even if its client has left. `is_told` says that a client may know the id.
    fn caller<'a>(&'a self, id: Uuid, permit: &'a JobPermit, upload: &Upload, is_told: bool) -> Caller<'a> {
        let mut untold = self.withdrawals.untold(id);
        if is_told || self.wire == Wire::Legacy || upload.bytes.len() <= self.inline_bytes {
            untold.disarm();
        }
        Caller { untold, permit }
    }

    async fn classify_as(
        &self,
        id: Uuid,
        upload: Upload,
        options: JobOptions,
        timeout: Duration,
    ) -> Result<Classified, Problem> {
        let waiter = self.pending.wait_for(id);
        let image_bytes = upload.bytes.len();
        let mut accepting = pin!(async {
            // The upload is dropped as soon as the image is stored, so that its memory is not held until the result.
            let upload = upload;
            self.accept(id, &upload, &options, Acknowledge::WithResult(timeout)).await
        });
        let mut waiting = pin!(self.wait(waiter, timeout));
        let result = tokio::select! {
            biased;
            result = &mut waiting => {
                if result.is_none() {
                    accepting.await?;
                }
                result
            }
            accepted = &mut accepting => {
                accepted?;
                waiting.await
            }
        };
        count(image_bytes);
        Ok(Classified { id, result })
    }

    async fn accept(
        &self,
        id: Uuid,
        upload: &Upload,
        options: &JobOptions,
        acknowledge: Acknowledge,
    ) -> Result<(), Problem> {
        if let Some(url) = &options.callback {
            // Before the job, so that no job is accepted whose receiver is never called.
            let callback = Callback::new(CallbackKind::Job, id, url.clone(), options.principal.key_hex());
            self.transport.send_callback(callback.to_json(), Duration::ZERO).await.map_err(submit_problem)?;
        }
        // Held until the image is stored.
        let _space = self.space.admit(upload.bytes.len() as u64).await.map_err(|full| no_space(&full))?;
        let form = self.form(id, upload, options);
        let job = NewJob { id, image: &upload.bytes, content_type: upload.content_type, form, acknowledge };
        let times = self.transport.submit(job).await.map_err(submit_problem)?;
        METRICS.stage("stored").observe(times.stored.as_secs_f64());
        METRICS.stage("sent").observe(times.sent.as_secs_f64());
        Ok(())
    }

    fn form(&self, id: Uuid, upload: &Upload, options: &JobOptions) -> JobForm {
        if self.wire == Wire::Legacy {
            return JobForm::Legacy;
        }
        let submitted_at = clock::now();
        let ttl = if options.batch.is_some() { self.bulk_ttl } else { self.job_ttl };
        let request = ClassifyRequest {
            v: WIRE_VERSION,
            id,
            filename: upload.filename.clone(),
            content_type: Some(upload.content_type.to_owned()),
            image: None,
            image_data: None,
            top_k: options.top_k,
            model: options.model.clone(),
            batch: options.batch,
            submitted_at,
            expires_at: submitted_at.saturating_add(ttl).unwrap_or(Timestamp::MAX),
            // Nobody waits for the images of a batch.
            reply_to: options.batch.is_none().then(|| self.replies.reply_to()),
            traceparent: options.traceparent.clone(),
        };
        JobForm::Request { request: Box::new(request), inline_bytes: self.inline_bytes }
    }

    /// Waits for the result of a job: the reply wakes the waiter, the stored result is the truth. Returns `None` if
    /// `timeout` passes first.
    async fn wait(&self, mut waiter: Waiter, timeout: Duration) -> Option<Bytes> {
        METRICS.waiting.inc();
        let _timer = METRICS.stage("waited").start_timer();
        let _counted = Counted;
        let id = waiter.id();
        tokio::select! {
            result = self.until_result(&mut waiter) => return Some(result),
            () = tokio::time::sleep(timeout) => {}
            () = self.give_up.cancelled() => {}
        }
        let last_read = tokio::time::timeout(LAST_READ_TIMEOUT, self.result(id)).await;
        last_read.ok()?.ok()?
    }

    /// Waits for a reply, and reads the result from time to time. A read that hangs delays no reply.
    async fn until_result(&self, waiter: &mut Waiter) -> Bytes {
        let id = waiter.id();
        let mut backoff = READS.start();
        let mut read_after = backoff.next_delay();
        loop {
            let read = async {
                tokio::time::sleep(read_after).await;
                self.result(id).await
            };
            let found = tokio::select! {
                wake = waiter.woken() => match wake {
                    Wake::Result(result) => return result,
                    Wake::ReadResult => {
                        read_after = Duration::ZERO;
                        continue;
                    }
                },
                found = read => found,
            };
            match found {
                Ok(Some(result)) => return result,
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, %id, "cannot read a result"),
            }
            read_after = backoff.next_delay();
        }
    }

    /// Returns the state of any id, after waiting up to `timeout` for its result.
    pub(crate) async fn state(&self, id: Uuid, timeout: Duration) -> Result<State, Problem> {
        // Before the first read: a result between read and wait would go unnoticed.
        let waiter = self.pending.wait_for(id);
        let state = self.read_state(id).await?;
        if state != State::Queued || timeout.is_zero() {
            return Ok(state);
        }
        Ok(self.wait(waiter, timeout).await.map_or(State::Queued, State::of_result))
    }

    /// Returns the state of a job for the sender of callbacks, which is no waiting client, after waiting up to `timeout`.
    pub(crate) async fn state_for_callback(&self, id: Uuid, timeout: Duration) -> Result<State, Problem> {
        let mut waiter = self.pending.wait_for(id);
        let state = self.read_state(id).await?;
        if state != State::Queued || timeout.is_zero() {
            return Ok(state);
        }
        let result = tokio::time::timeout(timeout, self.until_result(&mut waiter)).await;
        Ok(result.map_or(State::Queued, State::of_result))
    }

    /// Cancels a job that waits, or removes the image and the result of one that ended.
    ///
    /// # Errors
    /// 404 for a job that does not exist, or was removed before.
    pub(crate) async fn remove(&self, id: Uuid) -> Result<Removal, Problem> {
        let unknown = || Problem::no_such_job(&id.to_string());
        let known = self.results.get(id).await.map_err(|error| read_problem(&error))?;
        if known.is_some_and(|result| protocol::is_tombstone(&result)) {
            return Err(unknown());
        }
        let removal = self.results.remove(id).await.map_err(|error| read_problem(&error))?;
        if removal == Removal::Unknown {
            return Err(unknown());
        }
        self.pending.wake(id, &Wake::ReadResult);
        Ok(removal)
    }

    async fn read_state(&self, id: Uuid) -> Result<State, Problem> {
        // Reads the results of both wire forms: the job may be older than the last change of `--wire`.
        if let Some(result) = self.results.get_or_adopt(id).await.map_err(|error| read_problem(&error))? {
            return Ok(State::of_result(result));
        }
        let image = self.transport.image_info(id).await.map_err(|error| read_problem(&error))?;
        let Some(image) = image else {
            // The job may have finished since the first read, and its image may be deleted already.
            let result = self.results.get(id).await.map_err(|error| read_problem(&error))?;
            return Ok(result.map_or(State::Unknown, State::of_result));
        };
        match self.expires_at(id, image.modified) {
            Some(expires_at) if clock::now() > expires_at && !self.may_wait_in_bulk(expires_at).await? => {
                self.results.expire(id).await.map(State::of_result).map_err(|error| read_problem(&error))
            }
            _ => Ok(State::Queued),
        }
    }

    /// Returns true if a job that `expires_at` may be one of a batch, which waits longer: as long as there are any.
    async fn may_wait_in_bulk(&self, expires_at: Timestamp) -> Result<bool, Problem> {
        let longest = expires_at.saturating_add(self.bulk_ttl).unwrap_or(Timestamp::MAX);
        if clock::now() > longest {
            return Ok(false);
        }
        let depths = tokio::try_join!(self.transport.depth(), self.transport.interactive_depth());
        let (all, interactive) = depths.map_err(|error| read_problem(&error))?;
        let count = |depth: Depth| depth.visible + depth.in_flight + depth.delayed;
        Ok(count(all) > count(interactive))
    }

    /// Opens the image of a job, as it was uploaded, for reading in pieces.
    pub(crate) async fn image(&self, id: Uuid, max_bytes: u64) -> Result<Option<ObjectReader>, Problem> {
        self.transport.open_image(id, max_bytes).await.map_err(|error| read_problem(&error))
    }

    /// Returns the reason why there is no image with this id.
    pub(crate) async fn no_image(&self, id: Uuid) -> Problem {
        match self.results.get(id).await {
            Ok(Some(result)) if !protocol::is_tombstone(&result) => Problem::image_not_kept(id),
            Ok(_) => Problem::no_such_job(&id.to_string()),
            Err(error) => read_problem(&error),
        }
    }

    /// Reads the result of a job in the wire form of this process.
    async fn result(&self, id: Uuid) -> Result<Option<Bytes>, TransportError> {
        match self.wire {
            Wire::V1 => self.results.get(id).await,
            Wire::Legacy => self.results.get_or_adopt(id).await,
        }
    }

    /// Returns the time after which this process may expire a job itself. A redrive writes the image again, and the time of
    /// the job then runs from that moment.
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

/// A caller that was not answered yet. If it is dropped before, the client has left and the job is withdrawn.
struct Caller<'a> {
    untold: UntoldJob<'a>,
    permit: &'a JobPermit,
}

impl Caller<'_> {
    /// Call this before the answer is sent. The answer contains the id unless the job was refused.
    fn answered(&mut self, is_accepted: bool) {
        self.untold.disarm();
        if !is_accepted {
            self.permit.forget_job();
        }
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.untold.is_armed() {
            self.permit.forget_job();
        }
    }
}

/// Counts a waiter in the gauge until it is dropped.
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

/// The answer when jobs cannot be submitted.
pub(crate) fn submit_problem(error: TransportError) -> Problem {
    if let TransportError::MessageTooLarge { queue, size, limit } = error {
        return Problem::too_large_for_queue(&queue, size, limit);
    }
    tracing::warn!(%error, "a job cannot be submitted");
    Problem::unavailable("images cannot be stored and queued at the moment; send it again shortly")
}

/// The answer when an image or a result cannot be read.
pub(crate) fn read_problem(error: &TransportError) -> Problem {
    if let TransportError::Damaged { key, .. } = error {
        tracing::error!(%error, "a stored object is damaged");
        return Problem::damaged(key);
    }
    tracing::warn!(%error, "a stored object cannot be read");
    Problem::unavailable("images and results cannot be read at the moment; try again shortly")
}
