//! A third backend in one file, which keeps everything in the memory of one process. It passes the conformance suite of
//! transports, and a web tier and a worker with the real model run on it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use imgcls::config::{Backend, Names};
use imgcls::model::{Limits, ModelChoice};
use imgcls::protocol::{
    ClassifyRequest, ImageRef, Incoming, REDRIVE_MARGIN, ServiceClass, WITHDRAWN_IMAGE, is_reply_queue_of, reply_queue,
};
use imgcls::shutdown::CancellationToken;
use imgcls::transport::{
    self, Completed, Completion, CompletionError, DeadLetter, DeadLetterScan, Delivery, Depth, ImageInfo, Inbox,
    InboxMode, JobPart, MessageTooLarge, NewJob, ObjectReader, Opener, QueueRole, Receipt, ReceivedReply, Removal,
    ReplyOutcome, ReplyTo, Resubmission, ResultWrite, ServiceOptions, Space, SubmitTimes, Transport, TransportError,
    Wanted, Withdrawal, WorkerLoad,
};
use imgcls::worker::Batching;
use imgcls::{web, worker};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::conformance;
use crate::harness::{label_of, request, test_image};

const MESSAGE_LIMIT: usize = 1 << 20;
const WAIT: Duration = Duration::from_secs(5);
/// Delay until a released reply becomes visible again, so that the same process does not receive it at once.
const RELEASE_FOR: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread")]
async fn toy_backend_passes_the_conformance_suite() {
    conformance::transport::all(&toy("toy"), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn web_tier_and_worker_answer_on_the_toy_backend() {
    let (backend, names) = (toy("toy-service"), Names::local("imgcls"));
    let stop = CancellationToken::new();
    let working = tokio::spawn(worker::run(worker_config(&backend, &names), stop.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(web::run(listener, web_config(&backend, &names), None, stop.clone()));
    let asking = tokio::task::spawn_blocking(move || {
        for name in ["cat.jpg", "rocket.jpg"] {
            let answer = request(address, "POST", "/v1/classify", &[], &test_image(name)).unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            let result: Value = serde_json::from_str(&answer.text()).unwrap();
            assert_eq!(result["predictions"][0]["label"], label_of(name).as_str());
            let id = result["id"].as_str().unwrap().to_owned();
            let image = request(address, "GET", &format!("/v1/jobs/{id}/image"), &[], b"").unwrap();
            assert!(image.status == 200 && image.body == test_image(name));
        }
        let broken = request(address, "POST", "/v1/classify", &[], b"\xff\xd8\xff no image").unwrap();
        assert_eq!(broken.status, 422, "{}", broken.text());
        assert_eq!(request(address, "GET", "/readyz", &[], b"").unwrap().status, 200);
    });
    asking.await.unwrap();
    stop.cancel();
    serving.await.unwrap().unwrap();
    working.await.unwrap().unwrap();
}

fn toy(name: &str) -> Backend {
    transport::register(name, Arc::new(ToyOpener::default()));
    Backend::Named { name: name.to_owned(), address: None }
}

/// The services of this backend, by the names of their request queues.
#[derive(Default)]
struct ToyOpener(Mutex<HashMap<String, Arc<Toy>>>);

#[async_trait]
impl Opener for ToyOpener {
    async fn open(&self, _backend: &Backend, names: &Names) -> Result<Arc<dyn Transport>, TransportError> {
        let mut services = self.0.lock().unwrap();
        let service = services.entry(names.request_queue.clone()).or_insert_with(|| Arc::new(Toy::new(names.clone())));
        Ok(Arc::new(Handle(Arc::clone(service))))
    }
}

struct Toy {
    names: Names,
    state: Mutex<State>,
    /// Notified when a message may have become visible.
    sent: Notify,
}

#[derive(Default)]
struct State {
    max_receive_count: u32,
    queues: BTreeMap<String, Vec<Message>>,
    images: HashMap<Uuid, (Bytes, SystemTime)>,
    results: HashMap<Uuid, Bytes>,
    records: HashMap<String, Bytes>,
    next_inbox: u64,
}

#[derive(Clone)]
struct Message {
    id: String,
    body: String,
    attributes: BTreeMap<String, String>,
    receive_count: u32,
    sent_at_ms: i64,
    visible_at: Instant,
}

impl Toy {
    fn new(names: Names) -> Toy {
        Toy { names, state: Mutex::default(), sent: Notify::new() }
    }

    fn request_queue(&self, class: ServiceClass) -> String {
        match class {
            ServiceClass::Interactive => self.names.request_queue.clone(),
            ServiceClass::Bulk => self.names.bulk_queue(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Receives visible messages. Requests that were received too often become dead letters instead.
    fn take(&self, queue: &str, max: usize, visibility_timeout: Duration) -> Result<Vec<Delivery>, TransportError> {
        let mut state = self.state();
        let (now, limit) = (Instant::now(), state.max_receive_count + REDRIVE_MARGIN);
        let is_requests = [self.names.request_queue.clone(), self.names.bulk_queue()].contains(&queue.to_owned());
        let is_dead = |message: &Message| is_requests && message.receive_count >= limit;
        let messages = state.queue(queue)?;
        let dead: Vec<Message> =
            messages.extract_if(.., |message| message.visible_at <= now && is_dead(message)).collect();
        let mut deliveries = Vec::new();
        for message in messages.iter_mut().filter(|message| message.visible_at <= now).take(max) {
            message.receive_count += 1;
            message.visible_at = now + visibility_timeout;
            deliveries.push(message.delivery());
        }
        state.queue(&self.names.dead_letter_queue())?.extend(dead);
        Ok(deliveries)
    }

    async fn receive(&self, queue: &str, max: usize, timeout: Duration) -> Result<Vec<Delivery>, TransportError> {
        let deadline = Instant::now() + WAIT;
        loop {
            let notified = self.sent.notified();
            let deliveries = self.take(queue, max, timeout)?;
            if !deliveries.is_empty() || Instant::now() >= deadline {
                return Ok(deliveries);
            }
            // The limit is shorter than any visibility timeout of a test.
            let _ = tokio::time::timeout(Duration::from_millis(20), notified).await;
        }
    }

    fn change(&self, queue: &str, receipts: &[Receipt], delay: Duration) -> Result<(), TransportError> {
        let mut state = self.state();
        for message in state.queue(queue)?.iter_mut().filter(|message| receipts.contains(&message.receipt())) {
            message.visible_at = Instant::now() + delay;
        }
        drop(state);
        self.sent.notify_waiters();
        Ok(())
    }
}

impl State {
    fn queue(&mut self, name: &str) -> Result<&mut Vec<Message>, TransportError> {
        self.queues.get_mut(name).ok_or_else(|| TransportError::Missing(name.to_owned()))
    }

    fn send(&mut self, queue: &str, body: String, attributes: BTreeMap<String, String>) -> Result<(), TransportError> {
        let sent_at_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
        let (id, visible_at) = (Uuid::now_v7().to_string(), Instant::now());
        self.queue(queue)?.push(Message { id, body, attributes, receive_count: 0, sent_at_ms, visible_at });
        Ok(())
    }

    fn delete(&mut self, queue: &str, receipts: &[Receipt]) -> Result<(), TransportError> {
        self.queue(queue)?.retain(|message| !receipts.contains(&message.receipt()));
        Ok(())
    }

    fn depth(&mut self, queue: &str) -> Result<Depth, TransportError> {
        let now = Instant::now();
        let mut depth = Depth::default();
        for message in self.queue(queue)? {
            match message.receive_count {
                _ if message.visible_at <= now => depth.visible += 1,
                0 => depth.delayed += 1,
                _ => depth.in_flight += 1,
            }
        }
        Ok(depth)
    }
}

impl Message {
    fn receipt(&self) -> Receipt {
        Receipt(format!("{} {}", self.id, self.receive_count))
    }

    fn delivery(&self) -> Delivery {
        Delivery {
            message_id: self.id.clone(),
            receipt: self.receipt(),
            body: self.body.clone(),
            attributes: self.attributes.clone(),
            receive_count: self.receive_count,
            sent_at_ms: self.sent_at_ms,
        }
    }
}

struct Handle(Arc<Toy>);

impl Handle {
    fn names(&self) -> &Names {
        &self.0.names
    }

    /// Does all steps under one lock, so that they are atomic.
    fn complete_one(&self, completion: &Completion) -> Result<Completed, TransportError> {
        let names = self.names().clone();
        let mut state = self.0.state();
        if let Some(id) = completion.withdrawn {
            state.images.remove(&id);
        }
        let mut completed = Completed { result: ResultWrite::Nothing, reply: None };
        let mut text = completion.reply.as_ref().map(|reply| reply.text.clone());
        if let Some(new) = &completion.result {
            completed.result = match state.results.get(&new.id).cloned() {
                None => {
                    state.results.insert(new.id, new.text.clone());
                    ResultWrite::Created
                }
                Some(stored) => {
                    text = text.map(|_| String::from_utf8_lossy(&stored).into_owned());
                    ResultWrite::AlreadyCompleted(Some(stored))
                }
            };
        }
        if let (Some(reply), Some(text)) = (&completion.reply, text) {
            let queue = match &reply.to {
                ReplyTo::Inbox(address) => address,
                ReplyTo::LegacyWebTier => &names.result_queue,
            };
            completed.reply = Some(if !is_reply_queue_of(&names.result_queue, queue) {
                ReplyOutcome::Foreign
            } else if state.send(queue, text, BTreeMap::new()).is_ok() {
                ReplyOutcome::Sent
            } else {
                ReplyOutcome::Gone
            });
        }
        if let Some(dead_letter) = &completion.dead_letter {
            let mut attributes = BTreeMap::from([
                ("reason".to_owned(), dead_letter.reason.clone()),
                ("attempts".to_owned(), dead_letter.attempts.to_string()),
            ]);
            attributes.extend(dead_letter.id.map(|id| ("id".to_owned(), id.to_string())));
            state.send(&names.dead_letter_queue(), dead_letter.body.clone(), attributes)?;
        }
        for queue in [names.request_queue.clone(), names.bulk_queue()] {
            state.delete(&queue, std::slice::from_ref(&completion.receipt))?;
        }
        Ok(completed)
    }
}

#[async_trait]
impl Transport for Handle {
    fn name(&self) -> &str {
        &self.names().request_queue
    }

    async fn prepare(&self, service: ServiceOptions) -> Result<(), TransportError> {
        let names = self.names();
        let mut state = self.0.state();
        state.max_receive_count = service.max_receive_count;
        let queues = [names.request_queue.clone(), names.bulk_queue(), names.dead_letter_queue()];
        for queue in queues.into_iter().chain([names.result_queue.clone()]) {
            state.queues.entry(queue).or_default();
        }
        Ok(())
    }

    async fn check(&self) -> Result<(), String> {
        self.0.state().queue(&self.names().request_queue).map(drop).map_err(|error| error.to_string())
    }

    async fn result(&self, id: Uuid) -> Result<Option<Bytes>, TransportError> {
        Ok(self.0.state().results.get(&id).cloned())
    }

    async fn image(&self, id: Uuid, max_bytes: u64) -> Result<Option<Bytes>, TransportError> {
        match self.0.state().images.get(&id) {
            Some((image, _)) if image.len() as u64 > max_bytes => {
                Err(TransportError::ObjectTooLarge { key: id.to_string(), size: image.len() as u64, limit: max_bytes })
            }
            found => Ok(found.map(|(image, _)| image.clone())),
        }
    }

    async fn interactive_depth(&self) -> Result<Depth, TransportError> {
        self.0.state().depth(&self.names().request_queue)
    }

    async fn bulk_depth(&self) -> Result<Depth, TransportError> {
        self.0.state().depth(&self.names().bulk_queue())
    }

    async fn discard_image(&self, id: Uuid) -> Result<(), TransportError> {
        let mut state = self.0.state();
        if state.results.contains_key(&id) {
            state.images.remove(&id);
        }
        Ok(())
    }

    async fn submit(&self, job: NewJob<'_>) -> Result<SubmitTimes, TransportError> {
        let queue = &self.0.request_queue(job.class());
        let too_large =
            |MessageTooLarge { size, limit }| TransportError::MessageTooLarge { queue: queue.clone(), size, limit };
        let message = job.message(&self.names().input_bucket, MESSAGE_LIMIT).map_err(too_large)?;
        let mut state = self.0.state();
        state.send(queue, message, BTreeMap::new())?;
        state.images.insert(job.id, (job.image.clone(), SystemTime::now()));
        drop(state);
        self.0.sent.notify_waiters();
        Ok(SubmitTimes::default())
    }

    async fn withdraw(&self, id: Uuid) -> Result<Withdrawal, TransportError> {
        let mut state = self.0.state();
        if state.results.contains_key(&id) {
            return Ok(Withdrawal::AlreadyCompleted);
        }
        let Some((image, _)) = state.images.get_mut(&id) else { return Ok(Withdrawal::NotStored) };
        *image = Bytes::from_static(WITHDRAWN_IMAGE);
        Ok(Withdrawal::Withdrawn)
    }

    async fn remove(&self, id: Uuid, tombstone: Bytes) -> Result<Removal, TransportError> {
        let mut state = self.0.state();
        if !state.results.contains_key(&id) && !state.images.contains_key(&id) {
            return Ok(Removal::Unknown);
        }
        if state.results.insert(id, tombstone).is_some() {
            state.images.remove(&id);
            return Ok(Removal::Removed);
        }
        if let Some((image, _)) = state.images.get_mut(&id) {
            *image = Bytes::from_static(WITHDRAWN_IMAGE);
        }
        Ok(Removal::Cancelled)
    }

    async fn record_once(&self, key: &str, text: Bytes) -> Result<Bytes, TransportError> {
        Ok(self.0.state().records.entry(key.to_owned()).or_insert(text).clone())
    }

    async fn record(&self, key: &str, _max_bytes: u64) -> Result<Option<Bytes>, TransportError> {
        Ok(self.0.state().records.get(key).cloned())
    }

    async fn record_keys(&self, prefix: &str, after: Option<&str>) -> Result<Vec<String>, TransportError> {
        let state = self.0.state();
        let wanted = state.records.keys().filter(|key| key.starts_with(prefix) && Some(key.as_str()) > after);
        let mut keys: Vec<String> = wanted.cloned().collect();
        keys.sort();
        Ok(keys)
    }

    async fn job_ids(&self, part: JobPart, after: Uuid, before: Uuid) -> Result<Vec<Uuid>, TransportError> {
        let state = self.0.state();
        let mut ids: Vec<Uuid> = match part {
            JobPart::Image => state.images.keys().copied().collect(),
            JobPart::Result => state.results.keys().copied().collect(),
        };
        ids.retain(|id| after < *id && *id < before);
        ids.sort_unstable();
        Ok(ids)
    }

    async fn send_request(&self, request: &ClassifyRequest) -> Result<(), TransportError> {
        let message = serde_json::to_string(request).unwrap();
        self.0.state().send(&self.0.request_queue(request.class()), message, BTreeMap::new())?;
        self.0.sent.notify_waiters();
        Ok(())
    }

    async fn foreign_image(&self, _image: &ImageRef, _max_bytes: u64) -> Result<Option<Bytes>, TransportError> {
        Ok(None)
    }

    async fn write_result(&self, id: Uuid, text: Bytes) -> Result<Bytes, TransportError> {
        Ok(self.0.state().results.entry(id).or_insert(text).clone())
    }

    async fn image_info(&self, id: Uuid) -> Result<Option<ImageInfo>, TransportError> {
        let info =
            |(image, modified): &(Bytes, SystemTime)| ImageInfo { size_bytes: image.len() as u64, modified: *modified };
        Ok(self.0.state().images.get(&id).map(info))
    }

    async fn open_image(&self, id: Uuid, max_bytes: u64) -> Result<Option<ObjectReader>, TransportError> {
        Ok(self.image(id, max_bytes).await?.map(ObjectReader::whole))
    }

    async fn open_inbox(&self, mode: InboxMode, _stack: &str) -> Result<Box<dyn Inbox>, TransportError> {
        let mut state = self.0.state();
        let queue = match mode {
            InboxMode::Shared => self.names().result_queue.clone(),
            InboxMode::Own => {
                state.next_inbox += 1;
                reply_queue(&self.names().result_queue, &format!("toy{}", state.next_inbox))
            }
        };
        state.queues.entry(queue.clone()).or_default();
        Ok(Box::new(ToyInbox { toy: Arc::clone(&self.0), queue, mode }))
    }

    async fn retention(&self) -> Result<Duration, TransportError> {
        Ok(Duration::from_secs(3600))
    }

    fn depth_interval(&self) -> Duration {
        Duration::from_millis(100)
    }

    async fn receive(&self, wanted: Wanted, _load: &dyn WorkerLoad) -> Result<Vec<Delivery>, TransportError> {
        let queue = self.0.request_queue(wanted.class);
        let has_interactive = || self.0.state().depth(&self.names().request_queue).is_ok_and(|depth| depth.visible > 0);
        while wanted.class == ServiceClass::Bulk && has_interactive() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.0.receive(&queue, wanted.max, wanted.visibility_timeout).await
    }

    async fn extend(&self, receipts: &[Receipt], visibility_timeout: Duration) -> Result<(), TransportError> {
        self.0.change(&self.names().request_queue, receipts, visibility_timeout)?;
        self.0.change(&self.names().bulk_queue(), receipts, visibility_timeout)
    }

    async fn release(&self, receipts: &[Receipt], delay: Duration) -> Result<(), TransportError> {
        self.0.change(&self.names().request_queue, receipts, delay)?;
        self.0.change(&self.names().bulk_queue(), receipts, delay)
    }

    async fn prepare_callbacks(&self) -> Result<(), TransportError> {
        self.0.state().queues.entry(self.names().callback_queue()).or_default();
        Ok(())
    }

    async fn send_callback(&self, message: String, delay: Duration) -> Result<(), TransportError> {
        let queue = self.names().callback_queue();
        let mut state = self.0.state();
        state.send(&queue, message, BTreeMap::new())?;
        if let Some(sent) = state.queue(&queue)?.last_mut() {
            sent.visible_at = Instant::now() + delay;
        }
        drop(state);
        self.0.sent.notify_waiters();
        Ok(())
    }

    async fn receive_callbacks(
        &self,
        max: usize,
        visibility_timeout: Duration,
    ) -> Result<Vec<Delivery>, TransportError> {
        self.0.receive(&self.names().callback_queue(), max, visibility_timeout).await
    }

    async fn delay_callback(&self, receipt: &Receipt, delay: Duration) -> Result<(), TransportError> {
        self.0.change(&self.names().callback_queue(), std::slice::from_ref(receipt), delay)
    }

    async fn end_callback(&self, receipt: &Receipt, kept: Option<DeadLetter>) -> Result<(), TransportError> {
        let names = self.names();
        let mut state = self.0.state();
        if let Some(DeadLetter { id, body, reason, attempts }) = kept {
            let mut attributes =
                BTreeMap::from([("reason".to_owned(), reason), ("attempts".to_owned(), attempts.to_string())]);
            attributes.extend(id.map(|id| ("id".to_owned(), id.to_string())));
            state.send(&names.dead_letter_queue(), body, attributes)?;
        }
        state.delete(&names.callback_queue(), std::slice::from_ref(receipt))
    }

    async fn complete(&self, batch: &mut [Completion]) -> Vec<Result<Completed, CompletionError>> {
        let failed = |error| CompletionError { step: "put_result", error };
        let answers = batch.iter().map(|completion| self.complete_one(completion).map_err(failed)).collect();
        self.0.sent.notify_waiters();
        answers
    }

    async fn queues(&self) -> Result<Vec<(String, QueueRole)>, TransportError> {
        let names = self.names();
        let role = |queue: &String| match queue {
            queue if *queue == names.request_queue => QueueRole::Requests,
            queue if *queue == names.bulk_queue() => QueueRole::BulkRequests,
            queue if *queue == names.callback_queue() => QueueRole::Callbacks,
            queue if *queue == names.dead_letter_queue() => QueueRole::DeadLetters,
            queue if *queue == names.result_queue => QueueRole::Results,
            _ => QueueRole::Replies,
        };
        Ok(self.0.state().queues.keys().map(|queue| (queue.clone(), role(queue))).collect())
    }

    async fn queue_depth(&self, queue: &str) -> Result<Option<Depth>, TransportError> {
        Ok(self.0.state().depth(queue).ok())
    }

    async fn oldest_age(&self, _queue: &str) -> Result<Option<Duration>, TransportError> {
        Ok(None)
    }

    async fn purge(&self, queue: &str) -> Result<(), TransportError> {
        self.0.state().queue(queue)?.clear();
        Ok(())
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetterScan>, TransportError> {
        let messages = self.0.state().queue(&self.names().dead_letter_queue())?.clone();
        Ok(Box::new(ToyScan { toy: Arc::clone(&self.0), messages }))
    }

    async fn resubmit(&self, job: Resubmission) -> Result<(), TransportError> {
        let mut state = self.0.state();
        let class = match Incoming::parse(&job.message) {
            Incoming::Job(request) => {
                if job.job.is_none() {
                    state.results.remove(&request.id);
                }
                request.class()
            }
            _ => ServiceClass::Interactive,
        };
        state.send(&self.0.request_queue(class), job.message, BTreeMap::new())?;
        if let Some((id, image, _)) = job.job {
            state.images.insert(id, (image, SystemTime::now()));
            state.results.remove(&id);
        }
        drop(state);
        self.0.sent.notify_waiters();
        Ok(())
    }
}

struct ToyInbox {
    toy: Arc<Toy>,
    queue: String,
    mode: InboxMode,
}

#[async_trait]
impl Inbox for ToyInbox {
    fn address(&self) -> String {
        self.queue.clone()
    }

    fn is_shared(&self) -> bool {
        self.mode == InboxMode::Shared
    }

    async fn receive(&self) -> Result<Vec<ReceivedReply>, TransportError> {
        let deliveries = self.toy.receive(&self.queue, 10, WAIT).await?;
        let reply = |Delivery { receipt, body, sent_at_ms, .. }| ReceivedReply { receipt, text: body, sent_at_ms };
        Ok(deliveries.into_iter().map(reply).collect())
    }

    async fn acknowledge(&self, handled: &[Receipt], released: &[Receipt]) {
        let _ = self.toy.state().delete(&self.queue, handled);
        let _ = self.toy.change(&self.queue, released, RELEASE_FOR);
    }

    async fn close(&self) {
        if self.mode == InboxMode::Own {
            self.toy.state().queues.remove(&self.queue);
        }
    }
}

struct ToyScan {
    toy: Arc<Toy>,
    messages: Vec<Message>,
}

#[async_trait]
impl DeadLetterScan for ToyScan {
    async fn next(&mut self, max: usize) -> Result<Vec<Delivery>, TransportError> {
        let max = max.min(self.messages.len());
        Ok(self.messages.drain(..max).map(|message| message.delivery()).collect())
    }

    fn keep(&mut self, _message: Delivery) {}

    async fn delete(&mut self, receipts: &[Receipt]) -> Result<(), TransportError> {
        self.toy.state().delete(&self.toy.names.dead_letter_queue(), receipts)
    }

    async fn close(self: Box<Self>) -> Result<(), TransportError> {
        Ok(())
    }
}

fn worker_config(backend: &Backend, names: &Names) -> worker::Config {
    worker::Config {
        backend: backend.clone(),
        names: names.clone(),
        read_buckets: Vec::new(),
        limits: Limits::default(),
        models: vec![ModelChoice::default()],
        max_model_bytes: u64::MAX,
        cache: None,
        shadow: None,
        visibility_timeout: Duration::from_secs(30),
        max_lease: Duration::from_secs(120),
        max_receive_count: 5,
        sessions: Some(1),
        batching: Batching::Fixed(2),
        max_batch_delay: Duration::ZERO,
        auto_scaling_group: String::new(),
        admin_listen: None,
        drain_on_stdin_close: false,
    }
}

fn web_config(backend: &Backend, names: &Names) -> web::Config {
    let minute = Duration::from_secs(60);
    web::Config {
        backend: backend.clone(),
        stack: "imgcls".to_owned(),
        names: names.clone(),
        read_buckets: Vec::new(),
        models: vec![ModelChoice::default()],
        limits: Limits::default(),
        wire: web::Wire::V1,
        result_queue_mode: web::ResultQueueMode::Own,
        job_ttl: minute,
        sync_timeout: minute,
        max_connections: Some(16),
        max_connections_per_address: 16,
        trusted_proxies: Vec::new(),
        allowed_hosts: Vec::new(),
        cors_origins: Vec::new(),
        max_buffered_bytes: 64 << 20,
        max_queue_depth: 100,
        idle_timeout: minute,
        body_timeout: minute,
        write_timeout: minute,
        drain_delay: Duration::ZERO,
        inline_bytes: 0,
        max_receive_count: 5,
        visibility_timeout: Duration::from_secs(30),
        space: Space::unbounded(),
        access: web::Access::default(),
        calls: web::CallsOut::default(),
        access_log: false,
        machine_hour: None,
    }
}
