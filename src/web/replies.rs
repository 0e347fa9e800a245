//! Replies of workers. They arrive in the inbox of this process, which other web processes may share.
//!
//! In a shared inbox (the legacy form), a reply that no caller of this process waits for is released, so that another
//! process receives it. It is deleted once nobody can be waiting for it any more. No answer is lost that way, because the result of
//! the job is stored before the reply is deleted.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::admission::Admission;
use super::metrics::METRICS;
use super::pending::{Pending, Wake};
use super::queue_state::QueueState;
use super::results::Results;
use crate::clock;
use crate::protocol::{self, ReplyHead, TimingsMs};
use crate::retry::Schedule;
use crate::transport::{Inbox, Receipt, ReceivedReply, TransportError};

/// How long a reply that nobody here waits for is kept. Waiters have read the stored result by then.
const FOREIGN_KEPT_FOR: Duration = Duration::from_secs(60);
/// The delay after a receive that failed.
const BACKOFF: Schedule = Schedule::new(Duration::from_secs(1), Duration::from_secs(1));

pub(crate) struct Replies {
    pub inbox: Box<dyn Inbox>,
    pub pending: Pending,
    pub results: Arc<Results>,
    pub admission: Arc<Admission>,
    pub queues: Arc<QueueState>,
}

/// A message of the inbox.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Ours(ReplyHead),
    /// A reply in the legacy form to a job of a web tier that speaks it.
    Legacy {
        id: Uuid,
        filename: String,
        answer: String,
    },
    /// A reply to a legacy web tier, or a message that is not a reply.
    Foreign,
}

/// The disposition of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disposition {
    HandOver,
    Release,
    Remove,
}

/// Replies that were processed and are not acknowledged to the inbox yet.
#[derive(Default)]
struct Processed {
    handled: Vec<Receipt>,
    released: Vec<Receipt>,
}

impl Replies {
    /// Returns the address for the member `reply_to` of requests.
    pub(crate) fn reply_to(&self) -> String {
        self.inbox.address()
    }

    /// Hands replies to waiting callers until `stop`, then closes the inbox.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.receive() => {}
            () = self.inbox.maintain() => {}
        }
        self.inbox.close().await;
    }

    async fn receive(&self) {
        let mut processed = Processed::default();
        let mut backoff = BACKOFF.start();
        loop {
            // Replies are acknowledged while the next ones are awaited.
            let acknowledgement = self.inbox.acknowledge(&processed.handled, &processed.released);
            let ((), received) = tokio::join!(acknowledgement, self.inbox.receive());
            processed = match received {
                Ok(replies) => self.handle(replies).await,
                Err(error) => {
                    // Callers read the stored results in the meantime.
                    tracing::warn!(%error, "cannot receive replies");
                    tokio::time::sleep(backoff.next_delay()).await;
                    Processed::default()
                }
            };
        }
    }

    async fn handle(&self, replies: Vec<ReceivedReply>) -> Processed {
        let now = clock::now();
        let mut processed = Processed::default();
        if !replies.is_empty() {
            self.queues.record_worker();
        }
        let processing = replies.into_iter().map(|reply| self.process(reply, now));
        for (receipt, disposition) in join_all(processing).await {
            match disposition {
                Disposition::HandOver | Disposition::Remove => processed.handled.push(receipt),
                Disposition::Release => processed.released.push(receipt),
            }
        }
        processed
    }

    /// Decides what to do with a reply, and does it except for the acknowledgement.
    async fn process(&self, received: ReceivedReply, now: Timestamp) -> (Receipt, Disposition) {
        let ReceivedReply { receipt, text, sent_at_ms } = received;
        let is_shared = self.inbox.is_shared();
        let reply = Reply::read(&text);
        let is_waited_for = reply.id().is_some_and(|id| self.pending.is_waited_for(id));
        let age = Duration::from_millis(now.as_millisecond().saturating_sub(sent_at_ms).max(0).unsigned_abs());
        let mut disposition = decide(is_shared, is_waited_for, age);
        if is_waited_for || !is_shared && reply != Reply::Foreign {
            self.count_end(&text);
            if let Some(submitted_at) = reply.id().and_then(protocol::submitted_at) {
                let took = now.as_millisecond().saturating_sub(submitted_at.as_millisecond()).max(0);
                self.admission.record_answer(Duration::from_millis(took.unsigned_abs()), &text);
            }
        }
        if disposition != Disposition::Release
            && let Err(error) = self.hand_over(&reply, text).await
        {
            tracing::warn!(%error, "the result of a job cannot be written; its reply is released");
            disposition = Disposition::Release;
        }
        METRICS.replies.with_label_values(&[outcome(&reply, disposition)]).inc();
        if reply == Reply::Foreign && disposition == Disposition::Remove {
            tracing::warn!(age_seconds = age.as_secs(), "not a reply to any job; deleted");
        }
        (receipt, disposition)
    }

    /// Reports to admission that a job of this process has ended.
    fn count_end(&self, body: &str) {
        #[derive(serde::Deserialize)]
        struct Timed {
            timings_ms: TimingsMs,
        }
        let reads_timings = self.admission.uses_timings();
        let timed = reads_timings.then(|| serde_json::from_str::<Timed>(body).ok()).flatten();
        self.admission.record_end(timed.map(|timed| timed.timings_ms).as_ref());
    }

    /// Wakes the waiters of a job. The result of the job is stored before that: our workers have already written it, and for
    /// legacy workers it is written here.
    async fn hand_over(&self, reply: &Reply, body: String) -> Result<(), TransportError> {
        let (id, wake) = match reply {
            Reply::Ours(head) if head.is_cut() => (head.id, Wake::ReadResult),
            Reply::Ours(head) => (head.id, Wake::Result(body.into())),
            Reply::Legacy { id, filename, answer } => {
                (*id, Wake::Result(self.results.adopt(*id, filename, answer).await?))
            }
            Reply::Foreign => return Ok(()),
        };
        self.pending.wake(id, &wake);
        Ok(())
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

/// Decides what to do with a reply that was sent `age` ago.
fn decide(is_shared: bool, is_waited_for: bool, age: Duration) -> Disposition {
    if is_waited_for {
        Disposition::HandOver
    } else if is_shared && age <= FOREIGN_KEPT_FOR {
        Disposition::Release
    } else {
        Disposition::Remove
    }
}

/// Returns the label for the counter of replies.
fn outcome(reply: &Reply, disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::HandOver => "waited_for",
        Disposition::Release => "handed_back",
        Disposition::Remove if *reply == Reply::Foreign => "foreign",
        Disposition::Remove => "nobody_waits",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01936d5c-7e00-7abc-8def-0123456789ab";

    #[test]
    fn replies_on_the_shared_inbox_are_left_to_others_until_nobody_can_wait() {
        let seconds = Duration::from_secs;
        let (own, shared) = (false, true);
        assert_eq!(decide(own, true, seconds(0)), Disposition::HandOver);
        assert_eq!(decide(own, false, seconds(0)), Disposition::Remove);
        assert_eq!(decide(shared, true, seconds(3600)), Disposition::HandOver);
        assert_eq!(decide(shared, false, seconds(60)), Disposition::Release);
        assert_eq!(decide(shared, false, seconds(61)), Disposition::Remove);
    }

    #[test]
    fn replies_of_both_forms_are_distinguished_from_foreign_ones() {
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
}
