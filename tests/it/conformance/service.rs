//! The service that a check of a transport runs on, and what checks say about messages.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use imgcls::config::{Backend, Names};
use imgcls::protocol::{ClassifyRequest, Incoming, ServiceClass};
use imgcls::transport::{
    self, Acknowledge, Completed, Completion, Delivery, Idle, Inbox, InboxMode, JobForm, MAX_BATCH, NewJob, NewResult,
    Receipt, Reply, ReplyTo, ServiceOptions, Transport, Wanted, WorkerLoad,
};
use uuid::Uuid;

use crate::harness::classify_request;

pub const SECOND: Duration = Duration::from_secs(1);
/// Longer than any test.
pub const LONG: Duration = Duration::from_secs(300);
/// How long a message may take that must come.
pub const TIMEOUT: Duration = Duration::from_secs(30);
pub const MANY: u64 = 64 << 20;
/// Deliveries after which a message of most checks becomes a dead letter, besides the margin of the redrive.
pub const MAX_RECEIVE_COUNT: u32 = 1;

/// The service of one check.
pub struct Service {
    pub names: Names,
    pub transport: Arc<dyn Transport>,
}

impl Service {
    pub async fn start(backend: &Backend) -> Service {
        Service::start_with(backend, MAX_RECEIVE_COUNT).await
    }

    /// A service whose messages become dead letters after more deliveries than in other checks.
    pub async fn start_with(backend: &Backend, max_receive_count: u32) -> Service {
        let names = names();
        let transport = transport::open(backend, &names).await.unwrap();
        transport.prepare(ServiceOptions { max_receive_count, ..options() }).await.unwrap();
        Service { names, transport }
    }

    pub fn form(id: Uuid, inline_bytes: usize) -> JobForm {
        let request = ClassifyRequest {
            filename: "it's \"a\" ünïcode 🦀.jpg".to_owned(),
            content_type: Some("image/jpeg".to_owned()),
            ..classify_request(id)
        };
        JobForm::Request { request: Box::new(request), inline_bytes }
    }

    /// Submits a job of a batch.
    pub async fn submit_bulk(&self, image: &[u8]) -> Uuid {
        let (id, image) = (Uuid::now_v7(), Bytes::copy_from_slice(image));
        let request = ClassifyRequest { batch: Some(Uuid::now_v7()), ..classify_request(id) };
        let form = JobForm::Request { request: Box::new(request), inline_bytes: 0 };
        let acknowledge = Acknowledge::WhenDurable;
        let job = NewJob { id, image: &image, content_type: "image/jpeg", form, acknowledge };
        self.transport.submit(job).await.unwrap();
        id
    }

    /// Receives one bulk request, as a worker does: while another call waits for interactive ones and gets none.
    pub async fn receive_bulk(&self, visibility_timeout: Duration) -> Delivery {
        let wanted = Wanted { class: ServiceClass::Bulk, max: 1, visibility_timeout };
        // A server may go on with this receive after it was dropped, and hides the next message for so long.
        let interactive = Wanted { class: ServiceClass::Interactive, max: 1, visibility_timeout: SECOND };
        let bulk = async {
            loop {
                let received = self.transport.receive(wanted, &Idle).await.unwrap();
                if let Some(delivery) = received.into_iter().next() {
                    return delivery;
                }
            }
        };
        let interactive = async {
            loop {
                let received = self.transport.receive(interactive, &Idle).await.unwrap();
                assert!(received.is_empty(), "{received:?} is of the other class");
            }
        };
        tokio::select! {
            delivery = bulk => delivery,
            never = interactive => never,
        }
    }

    pub async fn submit(&self, image: &[u8], inline_bytes: usize) -> Uuid {
        let (id, image) = (Uuid::now_v7(), Bytes::copy_from_slice(image));
        let form = Service::form(id, inline_bytes);
        let acknowledge = Acknowledge::WhenDurable;
        let job = NewJob { id, image: &image, content_type: "image/jpeg", form, acknowledge };
        self.transport.submit(job).await.unwrap();
        id
    }

    pub async fn receive(&self, max: usize, visibility_timeout: Duration, load: &dyn WorkerLoad) -> Vec<Delivery> {
        let wanted = Wanted { class: ServiceClass::Interactive, max, visibility_timeout };
        let deliveries = self.transport.receive(wanted, load).await.unwrap();
        assert!(deliveries.len() <= max);
        deliveries
    }

    pub async fn receive_one(&self, visibility_timeout: Duration) -> Delivery {
        let mut deliveries = until_some(async || self.receive(1, visibility_timeout, &Idle).await).await;
        deliveries.remove(0)
    }

    /// Expects that `receiving` ends only after `change`. It is one receive from before the change until after it: a
    /// receive that is abandoned can go on at a server, and would count as a delivery that nobody got.
    pub async fn one_after<T>(
        &self,
        receiving: impl Future<Output = Delivery>,
        change: impl Future<Output = T>,
    ) -> Delivery {
        let mut receiving = pin!(receiving);
        let early = tokio::time::timeout(SECOND, receiving.as_mut()).await;
        assert!(early.is_err(), "it came too early: {early:?}");
        tokio::join!(receiving, change).0
    }

    pub async fn complete(&self, mut batch: Vec<Completion>) -> Vec<Completed> {
        let answers = self.transport.complete(&mut batch).await;
        assert_eq!(answers.len(), batch.len());
        answers.into_iter().map(Result::unwrap).collect()
    }

    pub async fn complete_one(&self, completion: Completion) -> Completed {
        self.complete(vec![completion]).await.remove(0)
    }

    /// Deletes the messages, and returns their jobs.
    pub async fn delete(&self, deliveries: Vec<Delivery>) -> Vec<Uuid> {
        let ids = deliveries.iter().map(|delivery| request_of(delivery).id).collect();
        self.complete(deliveries.into_iter().map(|delivery| Completion::new(delivery.receipt)).collect()).await;
        ids
    }

    pub async fn inbox(&self, mode: InboxMode) -> Box<dyn Inbox> {
        self.transport.open_inbox(mode, "stack").await.unwrap()
    }

    /// Receives the only dead letter and keeps it in its queue.
    pub async fn dead_letter(&self) -> Delivery {
        let mut scan = self.transport.dead_letters().await.unwrap();
        let mut dead_letters = until_some(async || scan.next(MAX_BATCH).await.unwrap()).await;
        let dead_letter = dead_letters.remove(0);
        scan.keep(dead_letter.clone());
        scan.close().await.unwrap();
        dead_letter
    }

    /// Waits until the depth is as expected, because some backends count only approximately.
    pub async fn expect_depth(&self, expected: (u64, u64)) {
        let start = Instant::now();
        loop {
            let depth = self.transport.depth().await.unwrap();
            let found = (depth.visible, depth.in_flight);
            if found == expected {
                return;
            }
            assert!(start.elapsed() < TIMEOUT, "{found:?} visible and in flight, not {expected:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A worker whose sessions are busy.
pub struct Busy;

#[async_trait]
impl WorkerLoad for Busy {
    fn deferral(&self) -> Option<Duration> {
        Some(Duration::from_millis(50))
    }

    async fn until_idle(&self) {
        std::future::pending::<()>().await;
    }
}

pub fn names() -> Names {
    let unique = Uuid::now_v7().simple().to_string();
    Names {
        request_queue: format!("requests-{unique}"),
        result_queue: format!("r-{unique}"),
        input_bucket: format!("input-{unique}"),
        output_bucket: format!("output-{unique}"),
    }
}

pub fn options() -> ServiceOptions {
    ServiceOptions { visibility_timeout: Duration::from_secs(30), max_receive_count: MAX_RECEIVE_COUNT }
}

pub fn completion(delivery: &Delivery, id: Uuid, text: &str, reply_to: &str) -> Completion {
    let mut completion = Completion::new(Receipt(delivery.receipt.0.clone()));
    completion.result = Some(NewResult { id, text: Bytes::from(text.to_owned()) });
    completion.reply = Some(Reply { to: ReplyTo::Inbox(reply_to.to_owned()), text: text.to_owned() });
    completion
}

pub fn request_of(delivery: &Delivery) -> ClassifyRequest {
    match Incoming::parse(&delivery.body) {
        Incoming::Job(request) => *request,
        other => panic!("{other:?}"),
    }
}

pub fn result_text(id: Uuid, filename: &str) -> String {
    serde_json::json!({"v": 1, "id": id, "status": "failed", "filename": filename}).to_string()
}

/// The texts of the next replies, which are deleted.
pub async fn receive_replies(inbox: &dyn Inbox, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let replies = until_some(async || inbox.receive().await.unwrap()).await;
        let receipts: Vec<Receipt> = replies.iter().map(|reply| reply.receipt.clone()).collect();
        inbox.acknowledge(&receipts, &[]).await;
        texts.extend(replies.into_iter().map(|reply| reply.text));
    }
    texts
}

/// Calls until something comes.
pub async fn until_some<T>(mut call: impl AsyncFnMut() -> Vec<T>) -> Vec<T> {
    let start = Instant::now();
    loop {
        let found = tokio::time::timeout(TIMEOUT, call()).await.unwrap_or_default();
        if !found.is_empty() {
            return found;
        }
        assert!(start.elapsed() < TIMEOUT, "nothing came");
    }
}

pub fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since_epoch.as_millis()).unwrap()
}
