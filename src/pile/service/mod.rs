//! `--through queue`: the images go through the queue of a service, instead of through sessions of this process.
//!
//! ```text
//! read ──▶ send: submit ──▶ workers of the service ──▶ result ──▶ collect
//! ```
//!
//! Each image is a job of one batch, whose requests go to the bulk queue. At most as many jobs as `--jobs` says are under
//! way. A reply wakes the waiter of its job; the stored result is the truth, and is read now and then in case a reply was
//! lost.
//!
//! The id of a job follows from the batch, the path and the content (`job_id`). So a run that continues another one finds
//! the results of jobs that the other had sent, and a job that both sent has one result.
//!
//! - `client`: one job, from its image to its outcome; `replies`: wakes the waiters; `send`: the thread that starts jobs

mod client;
mod job_id;
mod replies;
mod send;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use tokio::runtime::{self, Runtime};
use uuid::Uuid;

use self::client::Client;
use self::replies::Replies;
use super::message::Message;
use super::output::Batch;
use super::queue::Receiver;
use super::read::Ready;
use crate::clock;
use crate::config::{Backend, Names};
use crate::protocol::{self, BatchSource, RETENTION_MARGIN, WIRE_VERSION};
use crate::shutdown::CancellationToken;
use crate::transport::{self, InboxMode, ServiceOptions, TransportError};

/// Jobs under way if `--jobs` does not say. Enough for a fleet of a hundred workers whose images take a second.
const DEFAULT_JOBS: usize = 256;
/// Calls of the transport and replies are served by these threads; the CPU time is that of the uploads.
const RUNTIME_THREADS: usize = 2;
/// How long the end of a run waits for its reply queue to be removed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The service that classifies the images.
#[derive(Debug, Clone)]
pub struct Through {
    /// The backend of the service.
    pub backend: Backend,
    /// The names of its queues and buckets.
    pub names: Names,
    /// The options of queues that are created.
    pub options: ServiceOptions,
    /// The stack, a tag of the reply queue.
    pub stack: String,
    /// The model that classifies the images, as requests name it. `None` means the first of the service.
    pub model: Option<String>,
    /// The buckets that the workers of the service read: images in them are not copied.
    pub read_buckets: Vec<String>,
    /// The batch to continue. `None` means that of the log, or a new one.
    pub batch: Option<Uuid>,
}

/// The connection to a service.
pub(super) struct Service {
    runtime: Runtime,
    client: Arc<Client>,
    replies: Arc<Replies>,
    jobs: usize,
    read_buckets: Arc<[String]>,
    stop: CancellationToken,
}

impl Service {
    /// Opens the transport, and an inbox for the replies.
    ///
    /// # Errors
    /// The backend cannot be used, or the batch is unusable.
    pub(super) fn open(through: &Through, batch: Batch, top_k: u32, jobs: Option<usize>) -> anyhow::Result<Service> {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(RUNTIME_THREADS).enable_all().build();
        let runtime = runtime.context("cannot start the runtime")?;
        let opened = runtime.block_on(async {
            let transport = transport::open(&through.backend, &through.names).await?;
            transport.prepare(through.options).await?;
            let longest = transport.retention().await?.saturating_sub(RETENTION_MARGIN);
            let replies = Replies::open(&*transport, &through.stack).await;
            let document = document(batch, top_k, through.model.clone());
            if let Err(error) = transport.record_once(&protocol::batch_key(batch.id), document).await {
                tracing::warn!(%error, "cannot store the document of the batch; `imgcls batch list` does not show it");
            }
            Ok::<_, TransportError>((transport, longest, replies))
        });
        let (transport, job_ttl, replies) = opened.context("cannot use the service")?;
        let replies = Arc::new(replies);
        let client =
            Client { transport, replies: Arc::clone(&replies), batch, model: through.model.clone(), top_k, job_ttl };
        let jobs = jobs.and_then(NonZeroUsize::new).map_or(DEFAULT_JOBS, NonZeroUsize::get);
        let read_buckets = through.read_buckets.clone().into();
        Ok(Service { runtime, client: Arc::new(client), replies, jobs, read_buckets, stop: CancellationToken::new() })
    }

    /// The buckets that the workers of the service read.
    pub(super) fn read_buckets(&self) -> Arc<[String]> {
        Arc::clone(&self.read_buckets)
    }

    /// The most jobs that are under way.
    pub(super) fn jobs(&self) -> usize {
        self.jobs
    }

    /// Starts the thread that sends the images of `ready`, until there are no more.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub(super) fn start(
        &self,
        ready: Receiver<Ready>,
        messages: SyncSender<Message>,
        stop: CancellationToken,
    ) -> anyhow::Result<JoinHandle<()>> {
        let (replies, stop_replies) = (Arc::clone(&self.replies), self.stop.clone());
        self.runtime.spawn(async move { stop_replies.run_until_cancelled(replies.run()).await });
        let sender = send::Sender {
            runtime: self.runtime.handle().clone(),
            client: Arc::clone(&self.client),
            jobs: self.jobs,
            ready,
            messages,
            stop,
        };
        sender.start()
    }

    /// Ends the connection. Jobs that are under way go on in the service; a later run of the batch finds their results.
    pub(super) fn end(self) {
        self.stop.cancel();
        let closed = self.runtime.block_on(tokio::time::timeout(CLOSE_TIMEOUT, self.replies.close()));
        if closed.is_err() {
            tracing::warn!("cannot remove the reply queue of this run in time; a web process removes it later");
        }
        self.runtime.shutdown_background();
    }
}

/// The document of the batch, by which `imgcls batch list` shows it.
fn document(batch: Batch, top_k: u32, model: Option<String>) -> Bytes {
    let (created_at, source, items) = (clock::now(), BatchSource::Sender, Vec::new());
    let document = protocol::Batch { v: WIRE_VERSION, id: batch.id, created_at, source, top_k, model, items };
    Bytes::from(serde_json::to_vec(&document).expect("ids and names; this is a bug"))
}

/// The inbox of this process, or `None` if it may not have one: then it only reads results.
async fn open_inbox(transport: &dyn transport::Transport, stack: &str) -> Option<Box<dyn transport::Inbox>> {
    match transport.open_inbox(InboxMode::Own, stack).await {
        // A shared inbox would take the replies of web processes.
        Ok(inbox) => Some(inbox).filter(|inbox| !inbox.is_shared()),
        Err(error) => {
            tracing::warn!(%error, "cannot open a reply queue; the results are read from the store instead");
            None
        }
    }
}
