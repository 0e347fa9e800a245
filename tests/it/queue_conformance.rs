//! Checks the contract of queues, which the local transport and the AWS transport are built on. The contract of
//! transports is checked in `conformance`.
//!
//! Times are whole seconds, because SQS accepts no others. A check that waits for a timeout receives until its message
//! comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imgcls::transport::local::SqliteQueues;
use imgcls::transport::queued::queue::{Outgoing, Queue, QueueAttributes, QueueError, Queues, ReceiveOptions, Redrive};
use imgcls::transport::{Delivery, MAX_BATCH, Receipt};
use uuid::Uuid;

use crate::conformance::{self, Exception, checks};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(300);
/// How long a message may take that must come.
const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn local_queues_conform() {
    let directory = tempfile::tempdir().unwrap();
    all(Arc::new(SqliteQueues::open(directory.path()).unwrap()), &[]).await;
}

/// Runs the suite. It creates queues with new random names, and deletes them.
pub async fn all(queues: Arc<dyn Queues>, exceptions: &[Exception]) {
    let queues = &*queues;
    let checks = checks![
        queues:
        message_is_delivered_as_sent,
        a_batch_is_answered_one_by_one,
        receive_on_an_empty_queue_returns_after_the_wait,
        waiting_receive_gets_a_new_message,
        received_message_is_invisible_then_redelivered,
        released_message_is_visible_at_once,
        extended_message_stays_invisible,
        stale_receipt_does_nothing,
        delayed_message_is_delivered_later,
        message_received_too_often_becomes_a_dead_letter,
        depth_counts_visible_and_in_flight,
        purge_deletes_all_messages,
        dropped_receive_loses_nothing,
        receivers_share_without_doubles,
        queues_are_created_opened_listed_and_deleted,
        tags_are_kept,
        attributes_are_kept,
        missing_queue_is_not_found,
    ];
    conformance::run(checks, exceptions).await;
}

async fn message_is_delivered_as_sent(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "as-sent", QueueAttributes::default()).await;
    let attributes: BTreeMap<String, String> =
        [("reason", "it's \"bad\" — ünïcode"), ("id", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let body = "{\"text\": \"line\\nbreak, ü, 漢字, 🦀\"}\nsecond line".to_owned();
    let sent = Outgoing { attributes, ..Outgoing::new(body) };
    scratch.send(std::slice::from_ref(&sent)).await;
    let delivery = scratch.receive_one(LONG).await;
    assert_eq!((&delivery.body, &delivery.attributes), (&sent.body, &sent.attributes));
    assert_eq!(delivery.receive_count, 1);
    assert!(!delivery.message_id.is_empty());
    let age_ms = now_ms() - delivery.sent_at_ms;
    assert!((-5_000..60_000).contains(&age_ms), "sent {age_ms} ms ago, by the queue's clock");
    scratch.remove().await;
}

async fn a_batch_is_answered_one_by_one(queues: &dyn Queues) {
    let attributes = QueueAttributes { max_message_bytes: 1_024, ..QueueAttributes::default() };
    let scratch = Scratch::new(queues, "batch", attributes).await;
    let mut messages: Vec<_> = (0..MAX_BATCH).map(|index| Outgoing::new(format!("message {index}"))).collect();
    messages[3].body = "x".repeat(1_025);
    messages[6].attributes.insert("reason".to_owned(), "x".repeat(1_020));
    let answers = scratch.queue.send(&messages).await.unwrap();
    assert_eq!(answers.len(), MAX_BATCH);
    for (index, answer) in answers.iter().enumerate() {
        match answer {
            Ok(()) => assert!(index != 3 && index != 6, "{index}"),
            Err(QueueError::TooLarge { size, limit, .. }) => assert!((index == 3 || index == 6) && size > limit),
            Err(other) => panic!("{index}: {other}"),
        }
    }
    let expected = (0..MAX_BATCH).filter(|index| *index != 3 && *index != 6).map(|index| format!("message {index}"));
    assert_eq!(scratch.drain(MAX_BATCH - 2).await, expected.collect::<BTreeSet<_>>());
    assert!(scratch.queue.send(&[]).await.unwrap().is_empty());
    scratch.queue.ack(&[]).await.unwrap();
    scratch.queue.set_visibility(&[]).await.unwrap();
    scratch.remove().await;
}

async fn receive_on_an_empty_queue_returns_after_the_wait(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "empty", QueueAttributes::default()).await;
    assert!(scratch.receive(MAX_BATCH, Duration::ZERO, LONG).await.is_empty());
    let start = Instant::now();
    assert!(scratch.receive(MAX_BATCH, SECOND, LONG).await.is_empty());
    assert!(start.elapsed() >= SECOND * 9 / 10, "it waited {:?}", start.elapsed());
    scratch.remove().await;
}

async fn waiting_receive_gets_a_new_message(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "waiting", QueueAttributes::default()).await;
    let message = [Outgoing::new("late")];
    let (delivery, ()) = tokio::join!(scratch.receive_one(LONG), scratch.send(&message));
    assert_eq!(delivery.body, "late");
    scratch.remove().await;
}

async fn received_message_is_invisible_then_redelivered(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "hidden", QueueAttributes::default()).await;
    scratch.send(&[Outgoing::new("again")]).await;
    let first = scratch.receive_one(SECOND * 2).await;
    assert!(scratch.receive(1, Duration::ZERO, LONG).await.is_empty(), "hidden");
    let second = scratch.receive_one(LONG).await;
    assert_eq!((second.receive_count, &second.message_id), (2, &first.message_id));
    assert_eq!(second.sent_at_ms, first.sent_at_ms);
    assert_ne!(second.receipt, first.receipt);
    scratch.remove().await;
}

async fn released_message_is_visible_at_once(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "released", QueueAttributes::default()).await;
    scratch.send(&[Outgoing::new("back")]).await;
    let first = scratch.receive_one(LONG).await;
    scratch.queue.set_visibility(&[(first.receipt, Duration::ZERO)]).await.unwrap();
    assert_eq!(scratch.receive_one(LONG).await.receive_count, 2);
    scratch.remove().await;
}

async fn extended_message_stays_invisible(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "extended", QueueAttributes::default()).await;
    scratch.send(&[Outgoing::new("kept")]).await;
    let delivery = scratch.receive_one(SECOND * 2).await;
    scratch.queue.set_visibility(&[(delivery.receipt.clone(), LONG)]).await.unwrap();
    assert!(scratch.receive(1, SECOND * 3, LONG).await.is_empty(), "hidden beyond its first timeout");
    scratch.queue.ack(&[delivery.receipt]).await.unwrap();
    scratch.remove().await;
}

async fn stale_receipt_does_nothing(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "stale", QueueAttributes::default()).await;
    scratch.send(&[Outgoing::new("mine")]).await;
    let stale = scratch.receive_one(SECOND).await;
    let fresh = scratch.receive_one(LONG).await;
    scratch.queue.ack(std::slice::from_ref(&stale.receipt)).await.unwrap();
    scratch.queue.set_visibility(&[(stale.receipt.clone(), Duration::ZERO)]).await.unwrap();
    assert!(scratch.receive(1, SECOND, LONG).await.is_empty(), "the second delivery still holds it");
    scratch.queue.set_visibility(&[(fresh.receipt, Duration::ZERO)]).await.unwrap();
    let last = scratch.receive_one(LONG).await;
    assert_eq!(last.receive_count, 3, "it was not deleted");
    scratch.queue.ack(std::slice::from_ref(&last.receipt)).await.unwrap();
    scratch.queue.ack(std::slice::from_ref(&last.receipt)).await.unwrap();
    scratch.queue.set_visibility(&[(last.receipt, SECOND), (stale.receipt, SECOND)]).await.unwrap();
    scratch.remove().await;
}

async fn delayed_message_is_delivered_later(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "delayed", QueueAttributes::default()).await;
    let start = Instant::now();
    scratch.send(&[Outgoing { delay: SECOND * 2, ..Outgoing::new("later") }]).await;
    assert!(scratch.receive(1, Duration::ZERO, LONG).await.is_empty());
    assert_eq!(scratch.receive_one(LONG).await.receive_count, 1);
    assert!(start.elapsed() >= SECOND, "it came after {:?}", start.elapsed());
    scratch.remove().await;
}

async fn message_received_too_often_becomes_a_dead_letter(queues: &dyn Queues) {
    let dead = Scratch::new(queues, "dead", QueueAttributes::default()).await;
    let redrive = Redrive { dead_letter_queue: dead.queue.name().to_owned(), max_receive_count: 2 };
    let attributes = QueueAttributes { redrive: Some(redrive), ..QueueAttributes::default() };
    let scratch = Scratch::new(queues, "redrive", attributes).await;
    scratch.send(&[Outgoing::new("poison")]).await;
    let mut sent_at_ms = 0;
    for attempt in 1..=2 {
        let delivery = scratch.receive_one(LONG).await;
        assert_eq!(delivery.receive_count, attempt);
        sent_at_ms = delivery.sent_at_ms;
        scratch.queue.set_visibility(&[(delivery.receipt, Duration::ZERO)]).await.unwrap();
    }
    scratch.send(&[Outgoing::new("healthy")]).await;
    assert_eq!(scratch.receive_one(LONG).await.body, "healthy", "dead letters do not stand in the way");
    assert!(scratch.receive(MAX_BATCH, SECOND, LONG).await.is_empty());
    let dead_letter = dead.receive_one(LONG).await;
    assert_eq!((dead_letter.body.as_str(), dead_letter.sent_at_ms), ("poison", sent_at_ms));
    scratch.remove().await;
    dead.remove().await;
}

async fn depth_counts_visible_and_in_flight(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "depth", QueueAttributes::default()).await;
    assert_eq!(scratch.counts().await, (0, 0, 0));
    let later = Outgoing { delay: LONG, ..Outgoing::new("later") };
    scratch.send(&[Outgoing::new("a"), Outgoing::new("b"), Outgoing::new("c"), later]).await;
    scratch.expect_counts((3, 0, 1)).await;
    let delivery = scratch.receive_one(LONG).await;
    scratch.expect_counts((2, 1, 1)).await;
    scratch.queue.ack(&[delivery.receipt]).await.unwrap();
    scratch.expect_counts((2, 0, 1)).await;
    scratch.remove().await;
}

async fn purge_deletes_all_messages(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "purge", QueueAttributes::default()).await;
    scratch.send(&[Outgoing::new("a"), Outgoing::new("b")]).await;
    let delivery = scratch.receive_one(LONG).await;
    scratch.queue.purge().await.unwrap();
    scratch.expect_counts((0, 0, 0)).await;
    scratch.queue.ack(&[delivery.receipt]).await.unwrap();
    scratch.send(&[Outgoing::new("after")]).await;
    assert_eq!(scratch.receive_one(LONG).await.body, "after");
    scratch.remove().await;
}

async fn dropped_receive_loses_nothing(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "dropped", QueueAttributes::default()).await;
    let bodies: BTreeSet<String> = (0..30).map(|index| format!("message {index}")).collect();
    let mut received = BTreeSet::new();
    for body in &bodies {
        scratch.send(&[Outgoing::new(body.clone())]).await;
        // Two receives race, and the loser is dropped wherever it is.
        let deliveries = tokio::select! {
            deliveries = scratch.receive(MAX_BATCH, Duration::ZERO, SECOND * 3) => deliveries,
            deliveries = scratch.receive(MAX_BATCH, Duration::ZERO, SECOND * 3) => deliveries,
        };
        scratch.ack_all(deliveries, &mut received).await;
    }
    let start = Instant::now();
    while received.len() < bodies.len() && start.elapsed() < DEADLINE {
        let deliveries = scratch.receive(MAX_BATCH, SECOND, LONG).await;
        scratch.ack_all(deliveries, &mut received).await;
    }
    assert_eq!(received, bodies);
    scratch.remove().await;
}

async fn receivers_share_without_doubles(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "shared", QueueAttributes::default()).await;
    for batch in 0..5 {
        let messages: Vec<_> = (0..MAX_BATCH).map(|index| Outgoing::new(format!("{batch}-{index}"))).collect();
        scratch.send(&messages).await;
    }
    let receiver = || async {
        let mut bodies = Vec::new();
        loop {
            let deliveries = scratch.receive(3, SECOND, LONG).await;
            if deliveries.is_empty() {
                return bodies;
            }
            bodies.extend(deliveries.iter().map(|delivery| delivery.body.clone()));
            let receipts: Vec<_> = deliveries.into_iter().map(|delivery| delivery.receipt).collect();
            scratch.queue.ack(&receipts).await.unwrap();
        }
    };
    let (a, b, c) = tokio::join!(receiver(), receiver(), receiver());
    let all: Vec<String> = [a, b, c].concat();
    assert_eq!(all.len(), 5 * MAX_BATCH);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 5 * MAX_BATCH);
    scratch.remove().await;
}

async fn queues_are_created_opened_listed_and_deleted(queues: &dyn Queues) {
    let prefix = format!("list-{}", Uuid::now_v7().simple());
    let name = |suffix: &str| format!("{prefix}-{suffix}");
    for suffix in ["b", "a", "a"] {
        assert_eq!(queues.create(&name(suffix), &QueueAttributes::default()).await.unwrap().name(), name(suffix));
    }
    assert_eq!(queues.list(&prefix).await.unwrap(), [name("a"), name("b")]);
    assert_eq!(queues.open(&name("a")).await.unwrap().name(), name("a"));
    queues.delete(&name("a")).await.unwrap();
    queues.delete(&name("a")).await.unwrap();
    assert_eq!(queues.list(&prefix).await.unwrap(), [name("b")]);
    assert!(matches!(queues.open(&name("a")).await, Err(QueueError::NotFound(_))));
    queues.delete(&name("b")).await.unwrap();
    assert!(queues.list(&prefix).await.unwrap().is_empty());
    for bad in ["", "a/b", "..", "ü", &"q".repeat(81)] {
        assert!(matches!(queues.create(bad, &QueueAttributes::default()).await, Err(QueueError::Fatal(_))), "{bad}");
    }
}

async fn tags_are_kept(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "tags", QueueAttributes::default()).await;
    let name = scratch.queue.name();
    assert!(queues.tags(name).await.unwrap().is_empty());
    queues.set_tag(name, "imgcls:alive_at", "2026-01-01T00:00:00Z").await.unwrap();
    queues.set_tag(name, "owner", "a").await.unwrap();
    queues.set_tag(name, "imgcls:alive_at", "2026-01-01T00:15:00Z").await.unwrap();
    let expected = [("imgcls:alive_at", "2026-01-01T00:15:00Z"), ("owner", "a")];
    assert_eq!(queues.tags(name).await.unwrap(), expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    scratch.remove().await;
}

async fn attributes_are_kept(queues: &dyn Queues) {
    let dead = Scratch::new(queues, "kept-dead", QueueAttributes::default()).await;
    let attributes = QueueAttributes {
        visibility_timeout: SECOND * 45,
        retention: SECOND * 7_200,
        max_message_bytes: 262_144,
        redrive: Some(Redrive { dead_letter_queue: dead.queue.name().to_owned(), max_receive_count: 10 }),
    };
    let scratch = Scratch::new(queues, "kept", attributes.clone()).await;
    assert_eq!(scratch.queue.attributes().await.unwrap(), attributes);
    assert_eq!(dead.queue.attributes().await.unwrap(), QueueAttributes::default());
    queues.create(scratch.queue.name(), &attributes).await.unwrap();
    assert_eq!(scratch.queue.attributes().await.unwrap(), attributes);
    let raised = Redrive { dead_letter_queue: dead.queue.name().to_owned(), max_receive_count: 25 };
    scratch.queue.set_redrive(&raised).await.unwrap();
    let changed = QueueAttributes { redrive: Some(raised), ..attributes };
    assert_eq!(scratch.queue.attributes().await.unwrap(), changed);
    scratch.remove().await;
    dead.remove().await;
}

async fn missing_queue_is_not_found(queues: &dyn Queues) {
    let scratch = Scratch::new(queues, "missing", QueueAttributes::default()).await;
    scratch.send(&[Outgoing::new("lost with the queue")]).await;
    let receipt = scratch.receive_one(LONG).await.receipt;
    let name = scratch.queue.name().to_owned();
    queues.delete(&name).await.unwrap();
    let queue = &scratch.queue;
    let not_found = |outcome: Result<(), QueueError>| match outcome {
        Err(QueueError::NotFound(missing)) => assert_eq!(missing, name),
        other => panic!("{other:?}"),
    };
    not_found(queue.send(&[Outgoing::new("nowhere")]).await.map(drop));
    not_found(queue.receive(options(1, SECOND, LONG)).await.map(drop));
    not_found(queue.ack(std::slice::from_ref(&receipt)).await);
    not_found(queue.set_visibility(&[(receipt, LONG)]).await);
    not_found(queue.depth().await.map(drop));
    not_found(queue.attributes().await.map(drop));
    not_found(queue.purge().await);
    not_found(queues.tags(&name).await.map(drop));
    not_found(queues.set_tag(&name, "a", "b").await);
}

/// A queue of one test.
struct Scratch<'a> {
    queues: &'a dyn Queues,
    queue: Arc<dyn Queue>,
}

impl<'a> Scratch<'a> {
    async fn new(queues: &'a dyn Queues, label: &str, attributes: QueueAttributes) -> Scratch<'a> {
        let name = format!("{label}-{}", Uuid::now_v7().simple());
        Scratch { queues, queue: queues.create(&name, &attributes).await.unwrap() }
    }

    async fn send(&self, messages: &[Outgoing]) {
        let answers = self.queue.send(messages).await.unwrap();
        assert!(answers.len() == messages.len() && answers.iter().all(Result::is_ok), "{answers:?}");
    }

    async fn receive(&self, max: usize, wait: Duration, visibility_timeout: Duration) -> Vec<Delivery> {
        let deliveries = self.queue.receive(options(max, wait, visibility_timeout)).await.unwrap();
        assert!(deliveries.len() <= max);
        deliveries
    }

    async fn receive_one(&self, visibility_timeout: Duration) -> Delivery {
        let mut deliveries = self.receive(1, DEADLINE, visibility_timeout).await;
        deliveries.pop().expect("a message comes")
    }

    async fn ack_all(&self, deliveries: Vec<Delivery>, bodies: &mut BTreeSet<String>) {
        let (receipts, received): (Vec<Receipt>, Vec<String>) =
            deliveries.into_iter().map(|delivery| (delivery.receipt, delivery.body)).unzip();
        self.queue.ack(&receipts).await.unwrap();
        bodies.extend(received);
    }

    /// The bodies of the next messages, which are acknowledged.
    async fn drain(&self, count: usize) -> BTreeSet<String> {
        let mut bodies = BTreeSet::new();
        while bodies.len() < count {
            let deliveries = self.receive(MAX_BATCH, DEADLINE, LONG).await;
            assert!(!deliveries.is_empty(), "only {bodies:?} came");
            self.ack_all(deliveries, &mut bodies).await;
        }
        bodies
    }

    async fn counts(&self) -> (u64, u64, u64) {
        let depth = self.queue.depth().await.unwrap();
        (depth.visible, depth.in_flight, depth.delayed)
    }

    /// SQS's counts are approximate: they come to be right.
    async fn expect_counts(&self, expected: (u64, u64, u64)) {
        let start = Instant::now();
        let mut counts = self.counts().await;
        while counts != expected && start.elapsed() < DEADLINE {
            tokio::time::sleep(Duration::from_millis(50)).await;
            counts = self.counts().await;
        }
        assert_eq!(counts, expected, "(visible, in flight, delayed)");
    }

    async fn remove(self) {
        self.queues.delete(self.queue.name()).await.unwrap();
    }
}

fn options(max: usize, wait: Duration, visibility_timeout: Duration) -> ReceiveOptions {
    ReceiveOptions { max, wait, visibility_timeout }
}

fn now_ms() -> i64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since_epoch.as_millis()).unwrap()
}
