//! The promises of the local queue alone: many processes on one file, kill -9, notifications, errors.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use imgcls::transport::local::{Sending, SqliteQueue, SqliteQueues};
use imgcls::transport::queued::queue::{
    Outgoing, Queue, QueueAttributes, QueueError, Queues as _, ReceiveOptions, Redrive,
};
use imgcls::transport::{MAX_BATCH, Receipt};
use rand::Rng as _;

use crate::children::{self, Worker, say};

pub const QUEUE: &str = "local";
const LONG: Duration = Duration::from_secs(300);
pub const LONG_POLL: Duration = Duration::from_secs(20);
/// Far longer than a notification takes, far shorter than a long poll.
pub const SOON: Duration = Duration::from_secs(5);

/// Far longer than a message takes. Messages that a killed process held are visible again after it.
const SHORT: Duration = Duration::from_secs(10);

const MESSAGES_EACH: usize = 200;
pub const WAKES: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_lose_and_double_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).await;
    let mut workers: Vec<Worker> =
        (0..4).map(|_| Worker::start("local_queue::worker_sends_receives_and_acks", directory.path())).collect();
    for worker in &mut workers {
        worker.expect_line("ready");
    }
    workers.iter_mut().for_each(Worker::go);
    let lines: Vec<String> = workers.iter_mut().flat_map(Worker::rest).collect();
    let of = |kind: &str| -> Vec<&str> { lines.iter().filter_map(|line| line.strip_prefix(kind)).collect() };
    let (sent, received) = (of("sent "), of("received "));
    assert_eq!(sent.len(), 4 * MESSAGES_EACH);
    assert_eq!(received.len(), sent.len(), "none twice");
    assert_eq!(received.iter().collect::<BTreeSet<_>>(), sent.iter().collect(), "none lost");
    assert_eq!(queue.depth().await.unwrap().visible, 0);
    workers.into_iter().for_each(Worker::expect_success);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_sends_receives_and_acks() {
    let Some(data_dir) = children::data_dir() else { return };
    let queue = open(&data_dir).await;
    say("ready");
    children::wait_for_go();
    let sender = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move {
            for index in 0..MESSAGES_EACH {
                let body = format!("{}-{index}", std::process::id());
                send(&*queue, &body).await;
                say(&format!("sent {body}"));
            }
        }
    });
    // After two seconds without a message all have sent, or the test fails.
    loop {
        let deliveries = queue.receive(options(Duration::from_secs(2))).await.unwrap();
        if deliveries.is_empty() {
            break;
        }
        let receipts: Vec<Receipt> = deliveries.iter().map(|delivery| delivery.receipt.clone()).collect();
        queue.ack(&receipts).await.unwrap();
        for delivery in &deliveries {
            say(&format!("received {}", delivery.body));
        }
    }
    sender.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_sender_loses_no_acknowledged_message() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).await;
    let mut acknowledged = BTreeSet::new();
    for _ in 0..5 {
        let mut worker = Worker::start("local_queue::worker_sends_until_killed", directory.path());
        for _ in 0..rand::rng().random_range(20..200) {
            acknowledged.insert(worker.line().expect("it sends until killed"));
        }
        worker.kill();
        acknowledged.extend(worker.rest());
    }
    let mut found = BTreeSet::new();
    loop {
        let deliveries = queue.receive(options(Duration::ZERO)).await.unwrap();
        if deliveries.is_empty() {
            break;
        }
        found.extend(deliveries.into_iter().map(|delivery| delivery.body));
    }
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "{lost:?}");
    let file = rusqlite::Connection::open(directory.path().join("imgcls.sqlite3")).unwrap();
    let check: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_sends_until_killed() {
    let Some(data_dir) = children::data_dir() else { return };
    let queue = open(&data_dir).await;
    let lanes = (0..4).map(|lane| {
        let queue = Arc::clone(&queue);
        async move {
            for index in 0.. {
                let body = format!("{}-{lane}-{index}", std::process::id());
                send(&*queue, &body).await;
                say(&body);
            }
        }
    });
    futures::future::join_all(lanes).await;
}

/// Four processes send, receive and acknowledge, and are killed meanwhile, twice on the same file. Every message
/// that was sent and not acknowledged is there, and an acknowledged message is never delivered again.
#[tokio::test(flavor = "multi_thread")]
async fn four_killed_processes_lose_and_double_nothing() {
    const PROCESSES: usize = 4;
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).await;
    let mut lines = Vec::new();
    for _ in 0..2 {
        let together = Arc::new(Barrier::new(PROCESSES));
        let killed = (0..PROCESSES).map(|_| {
            let mut worker =
                Worker::start("local_queue::worker_sends_receives_and_acks_until_killed", directory.path());
            let together = Arc::clone(&together);
            tokio::task::spawn_blocking(move || {
                let mut said: Vec<String> = (0..rand::rng().random_range(300..600))
                    .map(|_| worker.line().expect("it goes on until killed"))
                    .collect();
                together.wait();
                worker.kill();
                said.extend(worker.rest());
                said
            })
        });
        for said in futures::future::join_all(killed).await {
            lines.extend(said.unwrap());
        }
    }
    let mut left = Vec::new();
    while let Some(delivery) = take_next(&*queue).await {
        left.push(delivery);
    }
    let of = |kind: &str| -> Vec<&str> { lines.iter().filter_map(|line| line.strip_prefix(kind)).collect() };
    let set = |bodies: &[&str]| -> BTreeSet<String> { bodies.iter().map(|body| (*body).to_owned()).collect() };
    let (sent, acking, acked) = (of("sent "), of("acking "), of("acked "));
    assert!(!acked.is_empty() && sent.len() > acked.len() / 2, "{} {}", sent.len(), acked.len());
    assert_eq!(set(&acked).len(), acked.len(), "acknowledged once each");
    let found: BTreeSet<String> = left.iter().cloned().collect();
    assert_eq!(found.len(), left.len(), "received once each");
    let (ended, may_be_gone) = (set(&acked), set(&acking));
    let lost: Vec<_> = sent.iter().filter(|body| !may_be_gone.contains(**body) && !found.contains(**body)).collect();
    assert!(lost.is_empty(), "{lost:?}");
    let again: Vec<_> = found.intersection(&ended).collect();
    assert!(again.is_empty(), "{again:?}");
}

/// Takes and acknowledges the next message. `None` once no message is visible or held.
async fn take_next(queue: &dyn Queue) -> Option<String> {
    loop {
        let depth = queue.depth().await.unwrap();
        if depth.visible + depth.in_flight == 0 {
            return None;
        }
        let next = ReceiveOptions { max: 1, ..options(Duration::from_secs(1)) };
        if let Some(delivery) = queue.receive(next).await.unwrap().pop() {
            queue.ack(&[delivery.receipt]).await.unwrap();
            return Some(delivery.body);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_sends_receives_and_acks_until_killed() {
    let Some(data_dir) = children::data_dir() else { return };
    let queue = open(&data_dir).await;
    let senders = (0..4).map(|lane| {
        let queue = Arc::clone(&queue);
        async move {
            for index in 0.. {
                let body = format!("{}-{lane}-{index}", std::process::id());
                send(&*queue, &body).await;
                say(&format!("sent {body}"));
            }
        }
    });
    let receiver = async {
        loop {
            let short = ReceiveOptions { visibility_timeout: SHORT, ..options(LONG_POLL) };
            let deliveries = queue.receive(short).await.unwrap();
            for delivery in &deliveries {
                say(&format!("acking {}", delivery.body));
            }
            let receipts: Vec<Receipt> = deliveries.iter().map(|delivery| delivery.receipt.clone()).collect();
            queue.ack(&receipts).await.unwrap();
            for delivery in &deliveries {
                say(&format!("acked {}", delivery.body));
            }
        }
    };
    futures::future::join(futures::future::join_all(senders), receiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn send_wakes_a_receive_in_another_process() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).await;
    let mut worker = Worker::start("local_queue::worker_receives_some", directory.path());
    worker.expect_line("ready");
    let start = Instant::now();
    for index in 0..WAKES {
        send(&*queue, &index.to_string()).await;
        worker.expect_line(&index.to_string());
    }
    // Without notifications each would take the second until the receive polls again.
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    worker.expect_success();
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_receives_some() {
    let Some(data_dir) = children::data_dir() else { return };
    let queue = open(&data_dir).await;
    say("ready");
    for _ in 0..WAKES {
        let delivery = queue.receive(options(LONG_POLL)).await.unwrap().pop().unwrap();
        say(&delivery.body);
        queue.ack(&[delivery.receipt]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_waiting_receives_share_a_batch() {
    let directory = tempfile::tempdir().unwrap();
    let (sender, receiver) = (open(directory.path()).await, open(directory.path()).await);
    let start = Instant::now();
    for round in 0..WAKES {
        let waiting = (0..MAX_BATCH).map(|_| receiver.receive(ReceiveOptions { max: 1, ..options(LONG_POLL) }));
        let batch: Vec<_> = (0..MAX_BATCH).map(|index| Outgoing::new(format!("{round}-{index}"))).collect();
        let (received, sent) = tokio::join!(futures::future::join_all(waiting), sender.send(&batch));
        assert!(sent.unwrap().iter().all(Result::is_ok));
        let bodies: BTreeSet<String> =
            received.into_iter().flat_map(Result::unwrap).map(|delivery| delivery.body).collect();
        assert_eq!(bodies, batch.into_iter().map(|message| message.body).collect());
    }
    // One notification for each batch. If a woken waiter did not wake the next one, the others would poll after a second.
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_receive_gets_delayed_and_released_messages() {
    let directory = tempfile::tempdir().unwrap();
    let (here, there) = (open(directory.path()).await, open(directory.path()).await);
    let millis = Duration::from_millis;
    let start = Instant::now();
    here.send(&[Outgoing { delay: millis(300), ..Outgoing::new("delayed") }]).await.unwrap();
    let first = there.receive(ReceiveOptions { visibility_timeout: millis(200), ..options(LONG_POLL) }).await.unwrap();
    assert!((millis(250)..SOON).contains(&start.elapsed()), "{:?}", start.elapsed());
    let second = there.receive(options(LONG_POLL)).await.unwrap().pop().unwrap();
    assert_eq!((first[0].receive_count, second.receive_count), (1, 2));
    assert!((millis(400)..SOON).contains(&start.elapsed()), "{:?}", start.elapsed());
    let release = [(second.receipt, Duration::ZERO)];
    let (third, back) = tokio::join!(here.receive(options(LONG_POLL)), there.set_visibility(&release));
    back.unwrap();
    assert_eq!(third.unwrap()[0].receive_count, 3);
    assert!(start.elapsed() < SOON * 2, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_receive_releases_at_once_and_counts_no_delivery() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).await;
    for round in 0..200 {
        send(&*queue, "held by nobody").await;
        // Dropped after none, one or a few polls: before, while and after the thread takes the message.
        let mut receive = queue.receive(options(LONG_POLL));
        let mut deliveries_so_far = 0;
        for _ in 0..round % 4 {
            if let std::task::Poll::Ready(taken) = futures::poll!(&mut receive) {
                queue.set_visibility(&[(taken.unwrap().remove(0).receipt, Duration::ZERO)]).await.unwrap();
                deliveries_so_far = 1;
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(receive);
        let start = Instant::now();
        let delivery = queue.receive(options(LONG_POLL)).await.unwrap().pop().unwrap();
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        assert_eq!(delivery.receive_count, deliveries_so_far + 1);
        queue.ack(&[delivery.receipt]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_deleted_elsewhere_is_not_found_until_it_is_created_again() {
    let directory = tempfile::tempdir().unwrap();
    let queues = SqliteQueues::open(directory.path()).unwrap();
    let here = queues.create(QUEUE, &QueueAttributes::default()).await.unwrap();
    send(&*here, "old").await;
    let stale = here.receive(options(Duration::ZERO)).await.unwrap().remove(0).receipt;
    let elsewhere = SqliteQueues::open(directory.path()).unwrap();
    let start = Instant::now();
    let (received, removed) = tokio::join!(here.receive(options(LONG_POLL)), elsewhere.delete(QUEUE));
    removed.unwrap();
    assert!(matches!(received, Err(QueueError::NotFound(_))), "a waiting receive fails when its queue is deleted");
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    let there = elsewhere.create(QUEUE, &QueueAttributes::default()).await.unwrap();
    send(&*there, "new").await;
    here.ack(std::slice::from_ref(&stale)).await.unwrap();
    here.set_visibility(&[(stale, LONG)]).await.unwrap();
    assert_eq!(here.receive(options(LONG_POLL)).await.unwrap()[0].body, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn receive_of_a_share_leaves_some_to_others() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).await;
    for index in 0..17 {
        send(&*queue, &index.to_string()).await;
    }
    let now = options(Duration::ZERO);
    let mut taken = vec![queue.receive_share(ReceiveOptions { max: 3, ..now }).await.unwrap().len()];
    for _ in 0..9 {
        taken.push(queue.receive_share(now).await.unwrap().len());
    }
    assert_eq!(taken, [3, 3, 2, 2, 2, 2, 1, 1, 1, 0], "of 17, 14, 11, 9, 7, 5, 3, 2, 1 and none");
}

/// A send with a flush delay shares the sync of another call, here of the next send without one.
#[tokio::test(flavor = "multi_thread")]
async fn send_with_a_flush_delay_is_received_at_once_and_durable_with_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).await;
    let sender = Arc::clone(&queue);
    let later = Sending::Durable { within: LONG };
    let sending = tokio::spawn(async move { sender.send_as(&[Outgoing::new("patient")], later).await });
    let delivery = queue.receive(options(LONG_POLL)).await.unwrap().remove(0);
    assert_eq!(delivery.body, "patient");
    assert!(!sending.is_finished(), "it is not on disk yet");
    send(&*queue, "impatient").await;
    let sent = tokio::time::timeout(SOON, sending).await.expect("its sync was the other's").unwrap();
    sent.unwrap().remove(0).unwrap();
}

#[test]
fn acknowledgement_is_not_deferred() {
    let directory = tempfile::tempdir().unwrap();
    // Without a timer, so that a call that waits panics.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let queue = open(directory.path()).await;
        send(&*queue, "done").await;
        let delivery = queue.receive(options(Duration::ZERO)).await.unwrap().remove(0);
        queue.ack(&[delivery.receipt]).await.unwrap();
        assert_eq!(queue.depth().await.unwrap().in_flight, 0);
    });
}

#[tokio::test]
async fn deferred_acknowledgement_is_committed_alone_with_the_next_call_or_at_the_end_of_its_process() {
    let directory = tempfile::tempdir().unwrap();
    let queue = open(directory.path()).await;
    for body in ["alone", "with the next call", "at the end"] {
        send(&*queue, body).await;
    }
    let deliveries = queue.receive(options(Duration::ZERO)).await.unwrap();
    let [alone, with_the_next, at_the_end] = &*deliveries else { panic!("three were sent: {deliveries:?}") };
    let in_flight = async || queue.depth().await.unwrap().in_flight;

    queue.ack_soon(std::slice::from_ref(&alone.receipt)).await.unwrap();
    assert_eq!(in_flight().await, 2);

    let receipts = [with_the_next.receipt.clone()];
    assert!(queue.ack_soon(&receipts).now_or_never().is_none(), "its caller goes away while it waits for others");
    assert_eq!(in_flight().await, 2, "nobody was woken for it, and who only looks takes nothing along");
    send(&*queue, "next").await;
    assert_eq!(in_flight().await, 1);

    let receipts = [at_the_end.receipt.clone()];
    assert!(queue.ack_soon(&receipts).now_or_never().is_none());
    drop(queue);
    let depth = open(directory.path()).await.depth().await.unwrap();
    assert_eq!((depth.visible, depth.in_flight), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_receipts_do_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let queues = SqliteQueues::open(directory.path()).unwrap();
    let queue = queues.create(QUEUE, &QueueAttributes::default()).await.unwrap();
    let other = queues.create("other", &QueueAttributes::default()).await.unwrap();
    send(&*queue, "safe").await;
    let delivery = queue.receive(options(Duration::ZERO)).await.unwrap().remove(0);
    let nonsense =
        ["", "1", "1-", "-1", "1-1-1", "' OR 1=1 --", "99999999999999999999-1"].map(|text| Receipt(text.into()));
    queue.ack(&nonsense).await.unwrap();
    other.ack(std::slice::from_ref(&delivery.receipt)).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().in_flight, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_messages_are_gone_and_dead_letters_keep_their_age() {
    let directory = tempfile::tempdir().unwrap();
    let queues = SqliteQueues::open(directory.path()).unwrap();
    let retention = Duration::from_secs(1);
    let short = QueueAttributes { retention, ..QueueAttributes::default() };
    let dead = queues.create("dead", &short).await.unwrap();
    let redrive = Some(Redrive { dead_letter_queue: "dead".to_owned(), max_receive_count: 1 });
    let queue = queues.create(QUEUE, &QueueAttributes { redrive, ..short }).await.unwrap();
    send(&*queue, "poison").await;
    let again = ReceiveOptions { visibility_timeout: Duration::ZERO, ..options(Duration::ZERO) };
    assert_eq!(queue.receive(again).await.unwrap().len(), 1);
    assert!(queue.receive(again).await.unwrap().is_empty());
    let depth = dead.depth().await.unwrap();
    assert_eq!(depth.visible, 1);
    assert!(dead.oldest_age().await.unwrap().unwrap() < retention);
    send(&*queue, "forgotten").await;
    let start = Instant::now();
    while dead.depth().await.unwrap().visible + queue.depth().await.unwrap().visible > 0 {
        assert!(start.elapsed() < SOON, "they are too old by now");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(start.elapsed() > retention / 2);
    assert_eq!(queue.oldest_age().await.unwrap(), None);
    assert!(queue.receive(options(Duration::ZERO)).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_dead_letter_queue_loses_no_message() {
    let directory = tempfile::tempdir().unwrap();
    let queues = SqliteQueues::open(directory.path()).unwrap();
    let redrive = Some(Redrive { dead_letter_queue: "never-made".to_owned(), max_receive_count: 1 });
    let queue = queues.create(QUEUE, &QueueAttributes { redrive, ..QueueAttributes::default() }).await.unwrap();
    send(&*queue, "kept").await;
    let again = ReceiveOptions { visibility_timeout: Duration::ZERO, ..options(Duration::ZERO) };
    for count in 1..=3 {
        assert_eq!(queue.receive(again).await.unwrap()[0].receive_count, count);
    }
}

#[test]
fn unusable_file_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let refusal = |data_dir: &Path| match SqliteQueues::open(data_dir) {
        Err(QueueError::Fatal(text)) => {
            assert!(text.contains("--data-dir") && !text.contains('\n'), "{text}");
            text
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{} was opened", data_dir.display()),
    };
    let with_file = |name: &str, write: &dyn Fn(&Path)| {
        let data_dir = directory.path().join(name);
        std::fs::create_dir(&data_dir).unwrap();
        write(&data_dir.join("imgcls.sqlite3"));
        data_dir
    };
    let sql = |path: &Path, text: &str| rusqlite::Connection::open(path).unwrap().execute_batch(text).unwrap();

    let text_file = with_file("text", &|path| std::fs::write(path, "not a database, by no means".repeat(99)).unwrap());
    assert!(refusal(&text_file).contains("not a file of imgcls"));
    let foreign = with_file("foreign", &|path| sql(path, "CREATE TABLE bookmarks (url TEXT)"));
    assert!(refusal(&foreign).contains("another program"));
    let newer = with_file("newer", &|path| {
        drop(SqliteQueues::open(path.parent().unwrap()).unwrap());
        sql(path, "PRAGMA user_version = 99");
    });
    assert!(refusal(&newer).contains("schema 99"));
    assert!(refusal(&text_file.join("imgcls.sqlite3").join("below-a-file")).contains("cannot be made"));
    let blocked_directory = with_file("bells", &|path| std::fs::write(path.with_file_name("bells"), "").unwrap());
    assert!(refusal(&blocked_directory).contains("cannot be made"));
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_together_all_open_the_new_file() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("made/by/the/first");
    let workers: Vec<Worker> = (0..6).map(|_| Worker::start("local_queue::worker_opens", &data_dir)).collect();
    for mut worker in workers {
        worker.expect_line("opened");
        worker.expect_success();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_opens() {
    let Some(data_dir) = children::data_dir() else { return };
    open(&data_dir).await;
    say("opened");
}

pub async fn open(data_dir: &Path) -> Arc<SqliteQueue> {
    let queues = SqliteQueues::open(data_dir).unwrap();
    Arc::new(queues.create_queue(QUEUE, &QueueAttributes::default()).await.unwrap())
}

pub async fn send(queue: &dyn Queue, body: &str) {
    queue.send(&[Outgoing::new(body)]).await.unwrap().remove(0).unwrap();
}

pub fn options(wait: Duration) -> ReceiveOptions {
    ReceiveOptions { max: MAX_BATCH, wait, visibility_timeout: LONG }
}
