//! The queues and buckets of one service.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, join_all, try_join};
use tokio::sync::OnceCell;

use super::classes::ByClass;
use super::object::{ObjectStore, StoreError};
use super::queue::{MAX_BATCH, Queue, QueueAttributes, QueueError, Queues};
use super::service::ServiceQueues;
use crate::config::Names;
use crate::protocol::{DEAD_LETTER_RETENTION, ServiceClass};
use crate::transport::error::TransportError;
use crate::transport::message::Receipt;
use crate::transport::port::ServiceOptions;

/// Opens a bucket by name, and makes it when it is missing.
pub(crate) type OpenBucket =
    Box<dyn Fn(String) -> BoxFuture<'static, Result<Arc<dyn ObjectStore>, StoreError>> + Send + Sync>;

/// Opens a bucket of others by name, and never makes it.
pub(crate) type OpenForeign =
    Box<dyn Fn(String) -> BoxFuture<'static, Result<Arc<dyn ObjectStore>, StoreError>> + Send + Sync>;

/// Opened when they are needed: a command that only reads a depth must not create a bucket.
pub(crate) struct Parts {
    pub names: Names,
    pub queues: Arc<dyn Queues>,
    open_bucket: OpenBucket,
    open_foreign: OpenForeign,
    /// The buckets of others that were opened: at most those of the allow-list.
    foreign: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    input: OnceCell<Arc<dyn ObjectStore>>,
    output: OnceCell<Arc<dyn ObjectStore>>,
    requests: OnceCell<Arc<dyn Queue>>,
    bulk: OnceCell<Arc<dyn Queue>>,
    callbacks: OnceCell<Arc<dyn Queue>>,
    results: OnceCell<Arc<dyn Queue>>,
    dead_letters: OnceCell<Arc<dyn Queue>>,
}

impl Parts {
    pub(crate) fn new(
        names: Names,
        queues: Arc<dyn Queues>,
        open_bucket: OpenBucket,
        open_foreign: OpenForeign,
    ) -> Parts {
        Parts {
            names,
            queues,
            open_bucket,
            open_foreign,
            foreign: Mutex::default(),
            input: OnceCell::new(),
            output: OnceCell::new(),
            requests: OnceCell::new(),
            bulk: OnceCell::new(),
            callbacks: OnceCell::new(),
            results: OnceCell::new(),
            dead_letters: OnceCell::new(),
        }
    }

    /// Makes what is missing.
    pub(crate) async fn prepare(&self, options: ServiceOptions) -> Result<(), TransportError> {
        let ServiceOptions { visibility_timeout, max_receive_count } = options;
        let service =
            ServiceQueues::open_or_create(&*self.queues, &self.names, visibility_timeout, max_receive_count).await?;
        // Handles that are open already are as good.
        let _ = self.requests.set(service.requests);
        if let Some(bulk) = service.bulk {
            let _ = self.bulk.set(bulk);
        }
        let _ = self.results.set(service.results);
        let _ = self.dead_letters.set(service.dead_letters);
        self.input().await?;
        // Results are put with a condition, images without.
        self.output().await?.prepare().await?;
        Ok(())
    }

    /// Makes the queue of callbacks if it is missing.
    pub(crate) async fn prepare_callbacks(&self) -> Result<(), QueueError> {
        let (name, queues) = (self.names.callback_queue(), &self.queues);
        let attributes = QueueAttributes { retention: DEAD_LETTER_RETENTION, ..QueueAttributes::default() };
        let open_or_create = || async {
            match queues.open(&name).await {
                Err(QueueError::NotFound(_)) => queues.create(&name, &attributes).await,
                opened => opened,
            }
        };
        self.callbacks.get_or_try_init(open_or_create).await.map(drop)
    }

    pub(crate) async fn input(&self) -> Result<&Arc<dyn ObjectStore>, StoreError> {
        self.input.get_or_try_init(|| (self.open_bucket)(self.names.input_bucket.clone())).await
    }

    pub(crate) async fn output(&self) -> Result<&Arc<dyn ObjectStore>, StoreError> {
        self.output.get_or_try_init(|| (self.open_bucket)(self.names.output_bucket.clone())).await
    }

    /// A bucket of others. Callers have checked that it may be read.
    pub(crate) async fn foreign(&self, bucket: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
        let opened = || self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        let found = opened().get(bucket).cloned();
        if let Some(store) = found {
            return Ok(store);
        }
        let store = (self.open_foreign)(bucket.to_owned()).await?;
        opened().insert(bucket.to_owned(), Arc::clone(&store));
        Ok(store)
    }

    pub(crate) async fn requests(&self) -> Result<&Arc<dyn Queue>, QueueError> {
        self.requests.get_or_try_init(|| self.queues.open(&self.names.request_queue)).await
    }

    pub(crate) async fn bulk(&self) -> Result<&Arc<dyn Queue>, QueueError> {
        let open = || async { self.queues.open(&self.names.bulk_queue()).await };
        self.bulk.get_or_try_init(open).await
    }

    pub(crate) async fn callbacks(&self) -> Result<&Arc<dyn Queue>, QueueError> {
        let open = || async { self.queues.open(&self.names.callback_queue()).await };
        self.callbacks.get_or_try_init(open).await
    }

    /// The request queue of a class.
    pub(crate) async fn requests_of(&self, class: ServiceClass) -> Result<&Arc<dyn Queue>, QueueError> {
        match class {
            ServiceClass::Interactive => self.requests().await,
            ServiceClass::Bulk => self.bulk().await,
        }
    }

    /// Sets how long from now deliveries of requests stay invisible, in calls at the same time that take at most
    /// [`MAX_BATCH`] receipts. Returns the first error.
    pub(crate) async fn set_visibility(&self, receipts: &[Receipt], timeout: Duration) -> Result<(), TransportError> {
        let ByClass { interactive, bulk } = ByClass::of(receipts);
        let interactive = self.set_visibility_in(ServiceClass::Interactive, &interactive, timeout);
        try_join(interactive, self.set_visibility_in(ServiceClass::Bulk, &bulk, timeout)).await.map(drop)
    }

    async fn set_visibility_in(
        &self,
        class: ServiceClass,
        receipts: &[Receipt],
        timeout: Duration,
    ) -> Result<(), TransportError> {
        if receipts.is_empty() {
            return Ok(());
        }
        let requests = self.requests_of(class).await?;
        let changes: Vec<_> = receipts.iter().map(|receipt| (receipt.clone(), timeout)).collect();
        let calls = changes.chunks(MAX_BATCH).map(|batch| requests.set_visibility(batch));
        Ok(join_all(calls).await.into_iter().collect::<Result<(), QueueError>>()?)
    }

    pub(crate) async fn results(&self) -> Result<&Arc<dyn Queue>, QueueError> {
        self.results.get_or_try_init(|| self.queues.open(&self.names.result_queue)).await
    }

    pub(crate) async fn dead_letters(&self) -> Result<&Arc<dyn Queue>, QueueError> {
        let open = || async { self.queues.open(&self.names.dead_letter_queue()).await };
        self.dead_letters.get_or_try_init(open).await
    }
}
