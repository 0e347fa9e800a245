//! Where the answers of workers come in: this process' own reply queue, or the one that all web processes share.
//!
//! The own queue is new at every start, says every quarter of an hour that its owner lives, is deleted at drain, and
//! made anew if somebody removed it. Queues of owners that died are swept after an hour.
//!
//! On the shared queue (the original's form) a reply that nobody here waits for is handed back, so that another process
//! gets it, and removed once nobody can be waiting for it any more. No reply is swallowed: before it goes, its job has an
//! end in the store.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::admission::Admission;
use super::metrics::METRICS;
use super::pending::{Pending, Wake};
use super::results::Results;
use crate::clock;
use crate::protocol::{self, ReplyHead, TAG_ALIVE_AT, TAG_STACK, TimingsMs};
use crate::queue::{
    Delivery, LONGEST_POLL, MAX_BATCH, Queue, QueueAttributes, QueueError, Queues, Receipt, ReceiveOptions,
};

const ALIVE_EVERY: Duration = Duration::from_secs(15 * 60);
const DEAD_AFTER: Duration = Duration::from_secs(3600);
/// A reply is read, handed over and deleted at once.
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(30);
/// On the shared queue what is held here is held from others, should this process die.
const SHARED_VISIBILITY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reply for another process stays invisible to this one too.
const HAND_BACK_FOR: Duration = Duration::from_secs(2);
/// Who waits has looked in the store by then.
const FOREIGN_KEPT_FOR: Duration = Duration::from_secs(60);
/// Replies are worthless once nobody waits; the result object is the truth.
const RETENTION: Duration = Duration::from_secs(3600);
const REST_AFTER_FAULT: Duration = Duration::from_secs(1);
/// At the end of a drain, which may take 10 s in all.
const DELETE_PATIENCE: Duration = Duration::from_secs(1);
/// Random part of a reply queue's name, in hexadecimal digits. The sweep touches no name that does not end so.
const RANDOM_DIGITS: usize = 16;

/// Which queue the replies to this process come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultQueueMode {
    /// One that is this process' own; the shared one where it may not make queues.
    Own,
    /// The result queue, with every other web process.
    Shared,
}

pub struct Replies {
    queues: Arc<dyn Queues>,
    result_queue: Arc<dyn Queue>,
    pending: Pending,
    results: Arc<Results>,
    admission: Arc<Admission>,
    /// Its name goes onto the queue, so that whoever removes the stack finds it.
    stack: String,
    inbox: RwLock<Inbox>,
}

#[derive(Clone)]
struct Inbox {
    mode: ResultQueueMode,
    queue: Arc<dyn Queue>,
}

/// What a message on a reply queue says.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Ours(ReplyHead),
    /// In the original's form, to a job of a web tier that speaks it.
    Legacy {
        id: Uuid,
        filename: String,
        answer: String,
    },
    /// Somebody else's: of the original's web tier, or none at all.
    Foreign,
}

/// What becomes of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    HandOver,
    HandBack,
    Remove,
}

/// Replies that were dealt with and are still to be told to the queue.
#[derive(Default)]
struct Handled {
    done: Vec<Receipt>,
    handed_back: Vec<(Receipt, Duration)>,
}

impl Replies {
    /// Makes this process' reply queue, or goes to the shared one. `result_queue`: the shared one.
    pub async fn open(
        queues: Arc<dyn Queues>,
        result_queue: Arc<dyn Queue>,
        mode: ResultQueueMode,
        pending: Pending,
        results: Arc<Results>,
        admission: Arc<Admission>,
        stack: String,
    ) -> Result<Self, QueueError> {
        let inbox = match mode {
            ResultQueueMode::Own => open_own(&*queues, &result_queue, &stack).await?,
            ResultQueueMode::Shared => Inbox { mode, queue: Arc::clone(&result_queue) },
        };
        Ok(Replies { queues, result_queue, pending, results, admission, stack, inbox: RwLock::new(inbox) })
    }

    /// What a request says in `reply_to`.
    pub fn reply_to(&self) -> String {
        self.inbox().queue.name().to_owned()
    }

    /// Hands replies to those who wait until `stop`, then deletes the queue that is this process' own.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.receive() => {}
            () = self.stay_alive() => {}
        }
        let Inbox { mode, queue } = self.inbox();
        if mode == ResultQueueMode::Own {
            self.delete(&*queue).await;
        }
    }

    async fn delete(&self, queue: &dyn Queue) {
        let deleted = tokio::time::timeout(DELETE_PATIENCE, self.queues.delete(queue.name())).await;
        let reason = match deleted {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(reason, queue = queue.name(), "reply queue not deleted; it is swept within two hours");
    }

    async fn receive(&self) {
        let mut handled = Handled::default();
        loop {
            let inbox = self.inbox();
            // What was dealt with is told to the queue while the next replies are waited for.
            let ((), received) = tokio::join!(handled.tell(&*inbox.queue), inbox.queue.receive(options(inbox.mode)));
            handled = match received {
                Ok(deliveries) => self.handle(inbox.mode, deliveries).await,
                Err(error) => {
                    self.mend(&error).await;
                    Handled::default()
                }
            };
        }
    }

    async fn handle(&self, mode: ResultQueueMode, deliveries: Vec<Delivery>) -> Handled {
        let now = clock::now();
        let mut handled = Handled::default();
        let dealt_with = deliveries.into_iter().map(|delivery| self.deal_with(mode, delivery, now));
        for (receipt, fate) in join_all(dealt_with).await {
            match fate {
                Fate::HandOver | Fate::Remove => handled.done.push(receipt),
                Fate::HandBack => handled.handed_back.push((receipt, HAND_BACK_FOR)),
            }
        }
        handled
    }

    /// Carries out what is decided on a reply; what became of it.
    async fn deal_with(&self, mode: ResultQueueMode, delivery: Delivery, now: Timestamp) -> (Receipt, Fate) {
        let Delivery { receipt, body, sent_at_ms, .. } = delivery;
        let reply = Reply::read(&body);
        let is_waited_for = reply.id().is_some_and(|id| self.pending.is_waited_for(id));
        let age = Duration::from_millis(now.as_millisecond().saturating_sub(sent_at_ms).max(0).unsigned_abs());
        let mut fate = decide(mode, is_waited_for, age);
        if is_waited_for || mode == ResultQueueMode::Own && reply != Reply::Foreign {
            self.count_end(&body);
        }
        if fate != Fate::HandBack
            && let Err(error) = self.end(&reply, body).await
        {
            tracing::warn!(%error, "the end of a job cannot be written; its reply is handed back");
            fate = Fate::HandBack;
        }
        METRICS.replies.with_label_values(&[outcome(&reply, fate)]).inc();
        if reply == Reply::Foreign && fate == Fate::Remove {
            tracing::warn!(age_seconds = age.as_secs(), "not a reply to any job; deleted");
        }
        (receipt, fate)
    }

    /// Tells admission that a job of this process has ended.
    fn count_end(&self, body: &str) {
        #[derive(serde::Deserialize)]
        struct Timed {
            timings_ms: TimingsMs,
        }
        let reads_timings = self.admission.uses_timings();
        let timed = reads_timings.then(|| serde_json::from_str::<Timed>(body).ok()).flatten();
        self.admission.record_end(timed.map(|timed| timed.timings_ms).as_ref());
    }

    /// Wakes those who wait. Before that, the end of a job stands in the store: our workers have written it, the
    /// original's may not have.
    async fn end(&self, reply: &Reply, body: String) -> Result<(), crate::store::StoreError> {
        let (id, wake) = match reply {
            Reply::Ours(head) if head.is_cut() => (head.id, Wake::Look),
            Reply::Ours(head) => (head.id, Wake::Result(body.into())),
            Reply::Legacy { id, filename, answer } => {
                (*id, Wake::Result(self.results.adopt(*id, filename, answer).await?))
            }
            Reply::Foreign => return Ok(()),
        };
        self.pending.wake(id, &wake);
        Ok(())
    }

    /// A queue that somebody removed is made anew; anything else is waited out. Meanwhile callers find their answers
    /// in the store.
    async fn mend(&self, error: &QueueError) {
        tracing::warn!(%error, "cannot receive replies");
        if matches!(error, QueueError::NotFound(_)) {
            match self.make_again().await {
                Ok(inbox) => {
                    tracing::info!(queue = inbox.queue.name(), "reply queue made anew");
                    *self.inbox.write().unwrap_or_else(PoisonError::into_inner) = inbox;
                    return;
                }
                Err(error) => tracing::warn!(%error, "cannot make a reply queue"),
            }
        }
        tokio::time::sleep(REST_AFTER_FAULT).await;
    }

    async fn make_again(&self) -> Result<Inbox, QueueError> {
        match self.inbox().mode {
            ResultQueueMode::Own => open_own(&*self.queues, &self.result_queue, &self.stack).await,
            mode @ ResultQueueMode::Shared => {
                let queue = self.queues.create(self.result_queue.name(), &QueueAttributes::default()).await?;
                Ok(Inbox { mode, queue })
            }
        }
    }

    async fn stay_alive(&self) {
        let mut ticks = tokio::time::interval(ALIVE_EVERY);
        loop {
            ticks.tick().await;
            let Inbox { mode: ResultQueueMode::Own, queue } = self.inbox() else { continue };
            if let Err(error) = tag_alive(&*self.queues, queue.name()).await {
                tracing::warn!(%error, queue = queue.name(), "cannot say that the reply queue is alive");
            }
            if let Err(error) = sweep(&*self.queues, self.result_queue.name(), clock::now()).await {
                tracing::warn!(%error, "cannot sweep reply queues");
            }
        }
    }

    fn inbox(&self) -> Inbox {
        self.inbox.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Reply {
    fn read(body: &str) -> Reply {
        if let Ok(head) = serde_json::from_str(body) {
            return Reply::Ours(head);
        }
        match protocol::read_legacy_reply(body) {
            Some((filename, answer)) => match protocol::legacy_job_id(&filename) {
                Some(id) => Reply::Legacy { id, filename, answer },
                None => Reply::Foreign,
            },
            None => Reply::Foreign,
        }
    }

    fn id(&self) -> Option<Uuid> {
        match self {
            Reply::Ours(head) => Some(head.id),
            Reply::Legacy { id, .. } => Some(*id),
            Reply::Foreign => None,
        }
    }
}

/// Whom a reply goes to. `age`: since it was sent.
fn decide(mode: ResultQueueMode, is_waited_for: bool, age: Duration) -> Fate {
    match mode {
        _ if is_waited_for => Fate::HandOver,
        ResultQueueMode::Shared if age <= FOREIGN_KEPT_FOR => Fate::HandBack,
        ResultQueueMode::Own | ResultQueueMode::Shared => Fate::Remove,
    }
}

/// For the counter of replies.
fn outcome(reply: &Reply, fate: Fate) -> &'static str {
    match fate {
        Fate::HandOver => "waited_for",
        Fate::HandBack => "handed_back",
        Fate::Remove if *reply == Reply::Foreign => "foreign",
        Fate::Remove => "nobody_waits",
    }
}

impl Handled {
    async fn tell(&self, queue: &dyn Queue) {
        if !self.done.is_empty()
            && let Err(error) = queue.ack(&self.done).await
        {
            tracing::debug!(%error, "replies not deleted; they come again and are deleted then");
        }
        if !self.handed_back.is_empty()
            && let Err(error) = queue.set_visibility(&self.handed_back).await
        {
            tracing::debug!(%error, "replies not handed back; they come again after their visibility timeout");
        }
    }
}

/// An own queue, or, where none may be made, the shared one.
async fn open_own(queues: &dyn Queues, result_queue: &Arc<dyn Queue>, stack: &str) -> Result<Inbox, QueueError> {
    match make(queues, result_queue.name(), stack).await {
        Ok(queue) => Ok(Inbox { mode: ResultQueueMode::Own, queue }),
        Err(QueueError::Fatal(reason)) => {
            tracing::warn!(
                reason,
                queue = result_queue.name(),
                "no reply queue of its own can be made; sharing the result queue (--result-queue-mode shared)"
            );
            Ok(Inbox { mode: ResultQueueMode::Shared, queue: Arc::clone(result_queue) })
        }
        Err(error) => Err(error),
    }
}

async fn make(queues: &dyn Queues, result_queue: &str, stack: &str) -> Result<Arc<dyn Queue>, QueueError> {
    let random = format!("{:0width$x}", rand::random::<u64>(), width = RANDOM_DIGITS);
    let name = protocol::reply_queue(result_queue, &random);
    let attributes =
        QueueAttributes { visibility_timeout: VISIBILITY_TIMEOUT, retention: RETENTION, ..QueueAttributes::default() };
    let queue = queues.create_own(&name, &attributes).await?;
    queues.set_tag(&name, TAG_STACK, stack).await?;
    tag_alive(queues, &name).await?;
    Ok(queue)
}

async fn tag_alive(queues: &dyn Queues, name: &str) -> Result<(), QueueError> {
    queues.set_tag(name, TAG_ALIVE_AT, &clock::now().to_string()).await
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

fn options(mode: ResultQueueMode) -> ReceiveOptions {
    let visibility_timeout = match mode {
        ResultQueueMode::Own => VISIBILITY_TIMEOUT,
        ResultQueueMode::Shared => SHARED_VISIBILITY_TIMEOUT,
    };
    ReceiveOptions { max: MAX_BATCH, wait: LONGEST_POLL, visibility_timeout, is_fair: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01936d5c-7e00-7abc-8def-0123456789ab";

    #[test]
    fn a_reply_is_kept_for_others_on_the_shared_queue_until_nobody_can_wait() {
        use ResultQueueMode::{Own, Shared};
        let seconds = Duration::from_secs;
        assert_eq!(decide(Own, true, seconds(0)), Fate::HandOver);
        assert_eq!(decide(Own, false, seconds(0)), Fate::Remove);
        assert_eq!(decide(Shared, true, seconds(3600)), Fate::HandOver);
        assert_eq!(decide(Shared, false, seconds(60)), Fate::HandBack);
        assert_eq!(decide(Shared, false, seconds(61)), Fate::Remove);
    }

    #[test]
    fn replies_of_both_forms_are_told_from_those_of_others() {
        let id: Uuid = ID.parse().unwrap();
        let cut = format!(r#"{{"v":1,"id":"{ID}","status":"succeeded"}}"#);
        assert!(matches!(Reply::read(&cut), Reply::Ours(head) if head.id == id));
        let seed = format!(r#"{{"{ID}.jpg":" bathtub)\n"}}"#);
        let expected = Reply::Legacy { id, filename: format!("{ID}.jpg"), answer: " bathtub)\n".to_owned() };
        assert_eq!(Reply::read(&seed), expected);
        for foreign in [r#"{"test_0.JPEG":"bathtub"}"#, "{}", "[]", "7", "{", r#"{"a":"b","c":"d"}"#, r#"{"a":1}"#] {
            assert_eq!(Reply::read(foreign), Reply::Foreign, "{foreign}");
        }
    }

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
