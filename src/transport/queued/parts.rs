//! The queues and buckets of one service.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use tokio::sync::OnceCell;

use super::object::{ObjectStore, StoreError};
use super::queue::{MAX_BATCH, Queue, QueueError, Queues};
use super::service::ServiceQueues;
use crate::config::Names;
use crate::transport::error::TransportError;
use crate::transport::message::Receipt;
use crate::transport::port::ServiceOptions;

/// Opens a bucket by name, and makes it when it is missing.
pub(crate) type OpenBucket =
    Box<dyn Fn(String) -> BoxFuture<'static, Result<Arc<dyn ObjectStore>, StoreError>> + Send + Sync>;

/// Opened when they are needed: a command that only reads a depth must not create a bucket.
pub(crate) struct Parts {
    pub names: Names,
    pub queues: Arc<dyn Queues>,
    open_bucket: OpenBucket,
    /// Opens buckets of others, which exist. `None` on a backend that has none.
    open_other: Option<OpenBucket>,
    others: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    input: OnceCell<Arc<dyn ObjectStore>>,
    output: OnceCell<Arc<dyn ObjectStore>>,
    requests: OnceCell<Arc<dyn Queue>>,
    results: OnceCell<Arc<dyn Queue>>,
    dead_letters: OnceCell<Arc<dyn Queue>>,
}

impl Parts {
    pub(crate) fn new(names: Names, queues: Arc<dyn Queues>, open_bucket: OpenBucket) -> Parts {
        Parts {
            names,
            queues,
            open_bucket,
            open_other: None,
            others: Mutex::default(),
            input: OnceCell::new(),
            output: OnceCell::new(),
            requests: OnceCell::new(),
            results: OnceCell::new(),
            dead_letters: OnceCell::new(),
        }
    }

    /// The same with buckets of others.
    pub(crate) fn with_others(self, open_other: OpenBucket) -> Parts {
        Parts { open_other: Some(open_other), ..self }
    }

    /// A bucket of others.
    ///
    /// # Errors
    /// [`StoreError::Fatal`] if the backend has none.
    pub(crate) async fn other(&self, bucket: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
        if let Some(opened) = self.others().get(bucket) {
            return Ok(Arc::clone(opened));
        }
        let Some(open) = &self.open_other else {
            let reason = "this backend has no buckets of others".to_owned();
            return Err(StoreError::Fatal { bucket: bucket.to_owned(), reason });
        };
        let opened = open(bucket.to_owned()).await?;
        self.others().insert(bucket.to_owned(), Arc::clone(&opened));
        Ok(opened)
    }

    /// Each change is one call, so the map is valid even if the lock is poisoned.
    fn others(&self) -> MutexGuard<'_, HashMap<String, Arc<dyn ObjectStore>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what is missing.
    pub(crate) async fn prepare(&self, options: ServiceOptions) -> Result<(), TransportError> {
        let ServiceOptions { visibility_timeout, max_receive_count } = options;
        let service =
            ServiceQueues::open_or_create(&*self.queues, &self.names, visibility_timeout, max_receive_count).await?;
        // Handles that are open already are as good.
        let _ = self.requests.set(service.requests);
        let _ = self.results.set(service.results);
        let _ = self.dead_letters.set(service.dead_letters);
        self.input().await?;
        self.output().await?;
        Ok(())
    }

    pub(crate) async fn input(&self) -> Result<&Arc<dyn ObjectStore>, StoreError> {
        self.input.get_or_try_init(|| (self.open_bucket)(self.names.input_bucket.clone())).await
    }

    pub(crate) async fn output(&self) -> Result<&Arc<dyn ObjectStore>, StoreError> {
        self.output.get_or_try_init(|| (self.open_bucket)(self.names.output_bucket.clone())).await
    }

    pub(crate) async fn requests(&self) -> Result<&Arc<dyn Queue>, QueueError> {
        self.requests.get_or_try_init(|| self.queues.open(&self.names.request_queue)).await
    }

    /// Sets how long from now deliveries of requests stay invisible, in calls at the same time that take at most
    /// [`MAX_BATCH`] receipts. Returns the first error.
    pub(crate) async fn set_visibility(&self, receipts: &[Receipt], timeout: Duration) -> Result<(), TransportError> {
        let requests = self.requests().await?;
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
