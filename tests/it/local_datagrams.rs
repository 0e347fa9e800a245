//! Messages from one process to the owner of a queue that bypass the database, and those that cannot.

use std::time::{Duration, Instant};

use imgcls::transport::local::{Sending, SqliteQueue, SqliteQueues};
use imgcls::transport::queued::queue::{Outgoing, Queue as _, QueueAttributes, QueueError, Queues as _};
use imgcls::transport::{Depth, Receipt};

use crate::local_queue::{LONG_POLL, QUEUE, SOON, WAKES, open, options, send};

#[tokio::test(flavor = "multi_thread")]
async fn transient_message_to_its_owner_bypasses_the_database() {
    let directory = tempfile::tempdir().unwrap();
    let queues = SqliteQueues::open(directory.path()).unwrap();
    let owner = queues.create_own(QUEUE, &QueueAttributes::default()).await.unwrap();
    let elsewhere = open(directory.path()).await;
    // The receive has read the database and waits.
    let (received, ()) = tokio::join!(owner.receive(options(LONG_POLL)), send_transient(&elsewhere, "direct"));
    let delivery = received.unwrap().remove(0);
    assert_eq!((delivery.body.as_str(), delivery.receive_count), ("direct", 1));
    assert_eq!(owner.depth().await.unwrap(), Depth::default(), "nothing of it is in the file");
    owner.ack(std::slice::from_ref(&delivery.receipt)).await.unwrap();
    // Too late, since it is acknowledged.
    owner.set_visibility(&[(delivery.receipt, Duration::ZERO)]).await.unwrap();
    assert_eq!(owner.depth().await.unwrap(), Depth::default());

    send_transient(&elsewhere, "released").await;
    let delivery = owner.receive(options(LONG_POLL)).await.unwrap().remove(0);
    owner.set_visibility(&[(delivery.receipt, Duration::ZERO)]).await.unwrap();
    let delivery = owner.receive(options(LONG_POLL)).await.unwrap().remove(0);
    assert_eq!(delivery.body, "released");
    owner.ack(&[delivery.receipt]).await.unwrap();
    assert_eq!(owner.depth().await.unwrap(), Depth::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_cannot_be_datagrams_go_into_the_database() {
    const MANY: usize = 100;
    let directory = tempfile::tempdir().unwrap();
    let queues = SqliteQueues::open(directory.path()).unwrap();
    let owner = queues.create_own(QUEUE, &QueueAttributes::default()).await.unwrap();
    let elsewhere = open(directory.path()).await;
    // More messages than a socket buffers, one that is too long, an empty one, and one that must survive a power loss.
    let mut expected: Vec<String> = (0..MANY).map(|index| index.to_string()).collect();
    expected.extend(["long ".repeat(40_000), String::new()]);
    for body in &expected {
        send_transient(&elsewhere, body).await;
    }
    send(&*elsewhere, "durable").await;
    expected.push("durable".to_owned());
    assert!(owner.depth().await.unwrap().visible >= 3);
    let mut received = Vec::new();
    while received.len() < expected.len() {
        let deliveries = owner.receive(options(LONG_POLL)).await.unwrap();
        assert!(!deliveries.is_empty(), "{} of {} came", received.len(), expected.len());
        received.extend(deliveries.iter().map(|delivery| delivery.body.clone()));
        let receipts: Vec<Receipt> = deliveries.into_iter().map(|delivery| delivery.receipt).collect();
        owner.ack(&receipts).await.unwrap();
    }
    received.sort();
    expected.sort();
    assert!(received == expected, "each once");

    drop(owner);
    send_transient(&elsewhere, "nobody is there").await;
    assert_eq!(elsewhere.receive(options(Duration::ZERO)).await.unwrap()[0].body, "nobody is there");
}

/// The owner waits at the socket, and the message comes through the database.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_owner_is_woken_by_datagrams_and_notifications() {
    let directory = tempfile::tempdir().unwrap();
    let queues = SqliteQueues::open(directory.path()).unwrap();
    let owner = queues.create_own(QUEUE, &QueueAttributes::default()).await.unwrap();
    for index in 0..WAKES {
        let body = index.to_string();
        let start = Instant::now();
        let send_either = async {
            if index.is_multiple_of(2) { send(&owner, &body).await } else { send_transient(&owner, &body).await }
        };
        let (received, ()) = tokio::join!(owner.receive(options(LONG_POLL)), send_either);
        let delivery = received.unwrap().remove(0);
        assert_eq!(delivery.body, body);
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        owner.ack(&[delivery.receipt]).await.unwrap();
    }
    let (received, removed) = tokio::join!(owner.receive(options(LONG_POLL)), queues.delete(QUEUE));
    removed.unwrap();
    assert!(matches!(received, Err(QueueError::NotFound(_))), "and that it is gone");
}

async fn send_transient(queue: &SqliteQueue, body: &str) {
    queue.send_as(&[Outgoing::new(body)], Sending::Transient).await.unwrap().remove(0).unwrap();
}
