//! Withdrawal: a caller left before anybody was told the id of its job, so that nobody can ever ask for the answer.
//!
//! The job's message stays in the queue, and its image is replaced by a marker ([`protocol::WITHDRAWN_IMAGE`]). A worker
//! that finds the marker deletes it and the message, without inference and without a result. The image is replaced
//! rather than deleted so that a worker can tell a withdrawn job from an image that was lost: the latter ends as
//! `input_missing`, because somebody may know its id.
//!
//! A job whose id was told is never withdrawn: [`Untold`] is disarmed before the answer leaves. A job that has a result is
//! left as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::metrics::METRICS;
use crate::protocol;
use crate::store::{ObjectStore, PutOptions, StoreError};

/// Withdrawals that wait. More are given up: their jobs are classified for nobody.
const MAX_WAITING: usize = 1_024;
const CONCURRENCY: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(2);
/// A marker that a power loss undoes costs one inference for nobody.
const FLUSH_DELAY: Duration = Duration::from_secs(1);

/// Where callers leave the jobs that they withdraw.
#[derive(Clone)]
pub struct Withdrawals(mpsc::Sender<Withdrawal>);

/// The other end, for the one task that carries them out.
pub struct Inbox(mpsc::Receiver<Withdrawal>);

struct Withdrawal {
    id: Uuid,
    /// A message may be in the queue that names the image.
    may_be_sent: bool,
}

/// A job whose id nobody was told yet. Dropped armed, the job is withdrawn.
pub struct Untold<'a> {
    id: Uuid,
    withdrawals: &'a Withdrawals,
    may_be_sent: AtomicBool,
    is_armed: bool,
}

pub fn channel() -> (Withdrawals, Inbox) {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    (Withdrawals(sender), Inbox(receiver))
}

impl Withdrawals {
    pub fn untold(&self, id: Uuid) -> Untold<'_> {
        Untold { id, withdrawals: self, may_be_sent: AtomicBool::new(false), is_armed: true }
    }
}

impl Untold<'_> {
    /// To be called before the job's message is sent.
    pub fn sends(&self) {
        self.may_be_sent.store(true, Ordering::Relaxed);
    }

    /// The id is about to be told, or the job was refused and its image is gone.
    pub fn disarm(&mut self) {
        self.is_armed = false;
    }

    pub fn is_armed(&self) -> bool {
        self.is_armed
    }
}

impl Drop for Untold<'_> {
    fn drop(&mut self) {
        if !self.is_armed {
            return;
        }
        let may_be_sent = self.may_be_sent.load(Ordering::Relaxed);
        if self.withdrawals.0.try_send(Withdrawal { id: self.id, may_be_sent }).is_err() {
            METRICS.withdrawals.with_label_values(&["given_up"]).inc();
        }
    }
}

impl Inbox {
    /// Carries withdrawals out until `stop`, then those that are left.
    pub async fn run(self, input: Arc<dyn ObjectStore>, output: Arc<dyn ObjectStore>, stop: CancellationToken) {
        let (input, output, stop) = (&*input, &*output, &stop);
        let next = |mut inbox: Inbox| async move {
            let withdrawal = tokio::select! {
                biased;
                withdrawal = inbox.0.recv() => withdrawal,
                () = stop.cancelled() => inbox.0.try_recv().ok(),
            };
            withdrawal.map(|withdrawal| (withdrawal, inbox))
        };
        let carry_out = |withdrawal: Withdrawal| async move {
            let outcome = tokio::time::timeout(TIMEOUT, withdrawal.carry_out(input, output)).await;
            let label = match outcome {
                Ok(Ok(label)) => label,
                Ok(Err(error)) => {
                    tracing::debug!(%error, id = %withdrawal.id, "cannot withdraw a job; it is classified for nobody");
                    "failed"
                }
                Err(_) => "failed",
            };
            METRICS.withdrawals.with_label_values(&[label]).inc();
        };
        stream::unfold(self, next).for_each_concurrent(CONCURRENCY, carry_out).await;
    }
}

impl Withdrawal {
    /// What became of it, for the counter.
    async fn carry_out(&self, input: &dyn ObjectStore, output: &dyn ObjectStore) -> Result<&'static str, StoreError> {
        let image = protocol::image_key(self.id);
        if output.head(&protocol::result_key(self.id)).await?.is_some() {
            return Ok("ended");
        }
        if input.head(&image).await?.is_none() {
            return Ok("not_stored");
        }
        if self.may_be_sent {
            let marker = Bytes::from_static(protocol::WITHDRAWN_IMAGE);
            let options = PutOptions { durable_within: FLUSH_DELAY, ..PutOptions::default() };
            input.put(&image, marker, options).await.map(drop)?;
        } else {
            input.delete(&image).await?;
        }
        Ok("withdrawn")
    }
}
