//! The reply queue: owned by this process alone, so that no other web process can take its answers.
//!
//! It is new at every start, says every quarter of an hour that its owner lives, is deleted at drain, and made anew if
//! somebody removed it. Queues of owners that died are swept after an hour.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::metrics::METRICS;
use super::pending::{Pending, Wake};
use crate::protocol::{self, ReplyHead, TAG_ALIVE_AT};
use crate::queue::{
    Delivery, LONGEST_POLL, MAX_BATCH, Queue, QueueAttributes, QueueError, Queues, Receipt, ReceiveOptions,
};

const ALIVE_EVERY: Duration = Duration::from_secs(15 * 60);
const DEAD_AFTER: Duration = Duration::from_secs(3600);
/// A reply is read, handed over and deleted at once.
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(30);
/// Replies are worthless once nobody waits; the result object is the truth.
const RETENTION: Duration = Duration::from_secs(3600);
const REST_AFTER_FAULT: Duration = Duration::from_secs(1);
/// Random part of a reply queue's name, in hexadecimal digits. The sweep touches no name that does not end so.
const RANDOM_DIGITS: usize = 16;

pub struct Replies {
    queues: Arc<dyn Queues>,
    result_queue: String,
    pending: Pending,
    current: RwLock<Arc<dyn Queue>>,
}

impl Replies {
    /// Makes this process' reply queue.
    pub async fn open(queues: Arc<dyn Queues>, result_queue: String, pending: Pending) -> Result<Self, QueueError> {
        let queue = make(&*queues, &result_queue).await?;
        Ok(Replies { queues, result_queue, pending, current: RwLock::new(queue) })
    }

    /// What a request says in `reply_to`.
    pub fn reply_to(&self) -> String {
        self.current().name().to_owned()
    }

    /// Hands replies to those who wait until `stop`, then deletes the queue.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.receive() => {}
            () = self.stay_alive() => {}
        }
        let name = self.reply_to();
        if let Err(error) = self.queues.delete(&name).await {
            tracing::warn!(%error, queue = name, "reply queue not deleted; it is swept within two hours");
        }
    }

    async fn receive(&self) {
        let mut answered = Vec::new();
        loop {
            let queue = self.current();
            // What was handed over is deleted while the next replies are waited for.
            let ((), received) = tokio::join!(delete(&*queue, &answered), queue.receive(options()));
            answered = match received {
                Ok(deliveries) => deliveries.into_iter().map(|delivery| self.hand_over(delivery)).collect(),
                Err(error) => {
                    self.mend(&error).await;
                    Vec::new()
                }
            };
        }
    }

    fn hand_over(&self, delivery: Delivery) -> Receipt {
        let outcome = match serde_json::from_str::<ReplyHead>(&delivery.body) {
            Ok(head) => {
                let wake = if head.is_cut() { Wake::Look } else { Wake::Result(delivery.body.into()) };
                if self.pending.wake(head.id, &wake) { "waited_for" } else { "nobody_waits" }
            }
            Err(error) => {
                tracing::warn!(%error, "not a reply; deleted");
                "malformed"
            }
        };
        METRICS.replies.with_label_values(&[outcome]).inc();
        delivery.receipt
    }

    /// A queue that somebody removed is made anew; anything else is waited out. Meanwhile callers find their answers
    /// in the store.
    async fn mend(&self, error: &QueueError) {
        tracing::warn!(%error, "cannot receive replies");
        if matches!(error, QueueError::NotFound(_)) {
            match make(&*self.queues, &self.result_queue).await {
                Ok(queue) => {
                    tracing::info!(queue = queue.name(), "reply queue made anew");
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = queue;
                    return;
                }
                Err(error) => tracing::warn!(%error, "cannot make a reply queue"),
            }
        }
        tokio::time::sleep(REST_AFTER_FAULT).await;
    }

    async fn stay_alive(&self) {
        let mut ticks = tokio::time::interval(ALIVE_EVERY);
        loop {
            ticks.tick().await;
            let name = self.reply_to();
            if let Err(error) = tag_alive(&*self.queues, &name).await {
                tracing::warn!(%error, queue = name, "cannot say that the reply queue is alive");
            }
            if let Err(error) = sweep(&*self.queues, &self.result_queue, Timestamp::now()).await {
                tracing::warn!(%error, "cannot sweep reply queues");
            }
        }
    }

    fn current(&self) -> Arc<dyn Queue> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn make(queues: &dyn Queues, result_queue: &str) -> Result<Arc<dyn Queue>, QueueError> {
    let random = format!("{:0width$x}", rand::random::<u64>(), width = RANDOM_DIGITS);
    let name = protocol::reply_queue(result_queue, &random);
    let attributes =
        QueueAttributes { visibility_timeout: VISIBILITY_TIMEOUT, retention: RETENTION, ..QueueAttributes::default() };
    let queue = queues.create(&name, &attributes).await?;
    tag_alive(queues, &name).await?;
    Ok(queue)
}

async fn tag_alive(queues: &dyn Queues, name: &str) -> Result<(), QueueError> {
    queues.set_tag(name, TAG_ALIVE_AT, &Timestamp::now().to_string()).await
}

/// Deletes reply queues whose owner has not been heard of for an hour.
async fn sweep(queues: &dyn Queues, result_queue: &str, now: Timestamp) -> Result<(), QueueError> {
    for name in queues.list(&protocol::reply_queue(result_queue, "")).await? {
        if !is_ours(&name, result_queue) {
            continue;
        }
        let tags = match queues.tags(&name).await {
            Err(QueueError::NotFound(_)) => continue,
            tags => tags?,
        };
        match tags.get(TAG_ALIVE_AT).and_then(|at| at.parse::<Timestamp>().ok()) {
            // Its owner died between making and tagging it: it gets an hour from now.
            None => tag_alive(queues, &name).await?,
            Some(alive_at) if is_dead(alive_at, now) => {
                tracing::info!(queue = name, "swept: its owner has not been heard of for an hour");
                queues.delete(&name).await?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn is_ours(name: &str, result_queue: &str) -> bool {
    let random = name.strip_prefix(result_queue).and_then(|rest| rest.strip_prefix('-'));
    random.is_some_and(|random| random.len() == RANDOM_DIGITS && random.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_dead(alive_at: Timestamp, now: Timestamp) -> bool {
    now.as_second().saturating_sub(alive_at.as_second()) > DEAD_AFTER.as_secs().cast_signed()
}

fn options() -> ReceiveOptions {
    ReceiveOptions { max: MAX_BATCH, wait: LONGEST_POLL, visibility_timeout: VISIBILITY_TIMEOUT }
}

async fn delete(queue: &dyn Queue, receipts: &[Receipt]) {
    if !receipts.is_empty()
        && let Err(error) = queue.ack(receipts).await
    {
        tracing::debug!(%error, "replies not deleted; they come again and are deleted then");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sweep_knows_its_own() {
        assert!(is_ours("results-0123456789abcdef", "results"));
        for foreign in ["results", "results-dead", "results-0123456789abcdeg", "other-0123456789abcdef"] {
            assert!(!is_ours(foreign, "results"), "{foreign}");
        }
    }

    #[test]
    fn an_owner_is_dead_after_an_hour_of_silence() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(!is_dead(at("2026-01-01T00:00:00Z"), at("2026-01-01T01:00:00Z")));
        assert!(is_dead(at("2026-01-01T00:00:00Z"), at("2026-01-01T01:00:01Z")));
        assert!(!is_dead(at("2026-01-01T01:00:00Z"), at("2026-01-01T00:00:00Z")), "a clock behind ours");
    }
}
