//! Withdraws jobs whose clients left before they got the id, so that no client can ever ask for the result.
//!
//! The message of the job stays in the queue, and its image is replaced by a marker. A worker that finds the marker deletes
//! it and the message, without inference and without a result. The image is replaced rather than deleted so that a worker
//! can distinguish a withdrawn job from an image that was lost: the latter fails with `input_missing`, because a client may
//! know its id.
//!
//! A job whose id a client knows is never withdrawn: [`UntoldJob`] is disarmed before the answer is sent. A job that has a result
//! stays as it is.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::metrics::METRICS;
use crate::transport::{Transport, Withdrawal};

/// Capacity of the queue of withdrawals. Further ones are dropped, and their jobs are classified in vain.
const MAX_WAITING: usize = 1_024;
const CONCURRENCY: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(2);

/// The queue into which callers put the jobs that they withdraw.
#[derive(Clone)]
pub(crate) struct Withdrawals(mpsc::Sender<Uuid>);

/// The receiver, for the one task that carries withdrawals out.
pub(crate) struct WithdrawalTask(mpsc::Receiver<Uuid>);

/// A job whose id no client knows yet. Dropping it while it is armed withdraws the job.
pub(crate) struct UntoldJob<'a> {
    id: Uuid,
    withdrawals: &'a Withdrawals,
    is_armed: bool,
}

pub(crate) fn channel() -> (Withdrawals, WithdrawalTask) {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    (Withdrawals(sender), WithdrawalTask(receiver))
}

impl Withdrawals {
    pub(crate) fn untold(&self, id: Uuid) -> UntoldJob<'_> {
        UntoldJob { id, withdrawals: self, is_armed: true }
    }
}

impl UntoldJob<'_> {
    /// Call this before the id is sent to the client, and if the job was refused.
    pub(crate) fn disarm(&mut self) {
        self.is_armed = false;
    }

    pub(crate) fn is_armed(&self) -> bool {
        self.is_armed
    }
}

impl Drop for UntoldJob<'_> {
    fn drop(&mut self) {
        if self.is_armed && self.withdrawals.0.try_send(self.id).is_err() {
            METRICS.withdrawals.with_label_values(&["given_up"]).inc();
        }
    }
}

impl WithdrawalTask {
    /// Carries withdrawals out until `stop`, then those that are left.
    pub(crate) async fn run(self, transport: Arc<dyn Transport>, stop: CancellationToken) {
        let (transport, stop) = (&*transport, &stop);
        let next = |mut task: WithdrawalTask| async move {
            let id = tokio::select! {
                biased;
                id = task.0.recv() => id,
                () = stop.cancelled() => task.0.try_recv().ok(),
            };
            id.map(|id| (id, task))
        };
        let withdraw = |id: Uuid| async move {
            let label = match tokio::time::timeout(TIMEOUT, transport.withdraw(id)).await {
                Ok(Ok(Withdrawal::Withdrawn)) => "withdrawn",
                Ok(Ok(Withdrawal::AlreadyCompleted)) => "ended",
                Ok(Ok(Withdrawal::NotStored)) => "not_stored",
                Ok(Err(error)) => {
                    tracing::debug!(%error, %id, "cannot withdraw a job; it is classified for nobody");
                    "failed"
                }
                Err(_) => "failed",
            };
            METRICS.withdrawals.with_label_values(&[label]).inc();
        };
        stream::unfold(self, next).for_each_concurrent(CONCURRENCY, withdraw).await;
    }
}
