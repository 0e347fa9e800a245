//! The local queue: SQS's semantics in the SQLite file that any number of processes on this machine share.
//!
//! `messages` says in SQL what a queue does; `crate::sqlite` shares the file and groups calls into transactions.
//!
//! Beyond the contract of [`Queue`]:
//!
//! - A send returns when the message is synced to disk. A power loss may undo a receive, an extension or an
//!   acknowledgement; each only means one more delivery. A killed process undoes nothing that had returned.
//! - A handle is a name. When the queue was removed, every call returns `NotFound`. When it is created again under that
//!   name, the same handle works on the new queue, and receipts of the old one do nothing.
//! - Messages come by the time at which they became visible, which is the order of sending unless one is redelivered.
//! - Time is the service time of the data directory ([`crate::clock`]), which no step of the wall clock moves.
//! - A transient message ([`Sending::Transient`]) to a queue that one process owns ([`SqliteQueues::create_own`]) is sent
//!   as a datagram that bypasses the database when that is possible (`direct`). It is not part of the depth, and is lost
//!   with the process that received it.

mod claim;
mod direct;
mod expiry;
mod handle;
pub(in crate::transport::local) mod messages;
#[cfg(test)]
mod model_test;
mod named;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use self::direct::{Direct, Inbox};
pub use self::handle::{Sending, SqliteQueue};
pub use self::named::named_jobs;
use crate::clock::Source;
use crate::config;
use crate::sqlite::{self, Database, Durability, Fault, ReadPhase, Session};
use crate::transport::queued::queue::{Queue, QueueAttributes, QueueError, Queues};

/// The queues of one data directory.
pub struct SqliteQueues {
    database: Arc<Database>,
    direct: Option<Arc<Direct>>,
}

impl From<Fault> for QueueError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unavailable(reason) => QueueError::Unavailable(reason),
            Fault::Fatal(reason) => QueueError::Fatal(reason),
        }
    }
}

impl SqliteQueues {
    /// Opens the queues under `data_dir`, and creates the file when it is missing.
    ///
    /// # Errors
    /// [`QueueError::Fatal`] when the directory or file cannot be used; it says what to do.
    pub fn open(data_dir: &Path) -> Result<SqliteQueues, QueueError> {
        Ok(SqliteQueues::over(sqlite::open(data_dir)?, data_dir))
    }

    /// As [`SqliteQueues::open`], with another clock than that of the machine. Meant for tests.
    ///
    /// # Errors
    /// As [`SqliteQueues::open`].
    pub fn open_with(data_dir: &Path, clock: Arc<dyn Source>) -> Result<SqliteQueues, QueueError> {
        Ok(SqliteQueues::over(sqlite::open_with(data_dir, clock)?, data_dir))
    }

    fn over(database: Arc<Database>, data_dir: &Path) -> SqliteQueues {
        database.upkeep.add("remove expired messages", || Box::new(expiry::remove_some));
        SqliteQueues { database, direct: Direct::open(data_dir).map(Arc::new) }
    }

    /// Creates the queue, or leaves it as it is when it exists.
    ///
    /// # Errors
    /// [`QueueError::Fatal`] when the name is not valid.
    pub async fn create_queue(&self, name: &str, attributes: &QueueAttributes) -> Result<SqliteQueue, QueueError> {
        let name = self.make(name, attributes).await?;
        Ok(self.queue(name, None))
    }

    /// As [`SqliteQueues::create_queue`], for a queue that only this handle receives from. Transient messages reach it as
    /// datagrams for as long as the handle lives.
    ///
    /// # Errors
    /// As [`SqliteQueues::create_queue`].
    pub async fn create_own(&self, name: &str, attributes: &QueueAttributes) -> Result<SqliteQueue, QueueError> {
        let name = self.make(name, attributes).await?;
        let inbox = self.direct.as_ref().and_then(|direct| direct.own(&name, &self.database.clock));
        Ok(self.queue(name, inbox))
    }

    /// Returns a handle on a queue, whether the queue exists or not.
    pub(in crate::transport::local) fn handle(&self, name: &str) -> SqliteQueue {
        self.queue(name.to_owned(), None)
    }

    pub(in crate::transport::local) fn database(&self) -> &Arc<Database> {
        &self.database
    }

    /// Returns true if a transient message with this text is likely to reach its queue as a datagram.
    pub(in crate::transport::local) fn may_send_direct(&self, queue: &str, body: &str) -> bool {
        self.direct.as_ref().is_some_and(|direct| direct.may_reach(queue, body))
    }

    fn queue(&self, name: String, inbox: Option<Inbox>) -> SqliteQueue {
        SqliteQueue::new(name, Arc::clone(&self.database), self.direct.clone(), inbox)
    }

    /// Creates the queue. Returns its name.
    async fn make(&self, name: &str, attributes: &QueueAttributes) -> Result<String, QueueError> {
        let name = config::queue_name(name).map_err(|why| QueueError::Fatal(format!("{why}: not {name:?}")))?;
        let (looked_for, created, attributes) = (name.clone(), name.clone(), attributes.clone());
        let look = move |session: &Session| {
            Ok(if messages::exists(session, &looked_for)? { ReadPhase::Answer(()) } else { ReadPhase::Write })
        };
        let work = move |session: &mut Session| messages::create(session, &created, &attributes);
        self.database.engine.call(Durability::FULL, look, work).await?;
        Ok(name)
    }
}

#[async_trait]
impl Queues for SqliteQueues {
    async fn create(&self, name: &str, attributes: &QueueAttributes) -> Result<Arc<dyn Queue>, QueueError> {
        Ok(Arc::new(self.create_queue(name, attributes).await?))
    }

    async fn open(&self, name: &str) -> Result<Arc<dyn Queue>, QueueError> {
        let wanted = name.to_owned();
        if self.database.engine.read(move |session| messages::exists(session, &wanted)).await? {
            Ok(Arc::new(self.handle(name)))
        } else {
            Err(QueueError::NotFound(name.to_owned()))
        }
    }

    async fn delete(&self, name: &str) -> Result<(), QueueError> {
        match handle::purge(&self.database, name).await {
            Ok(()) => {}
            Err(QueueError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        let (name, deleted) = (name.to_owned(), name.to_owned());
        let work = move |session: &mut Session| {
            messages::delete(session, &deleted)?;
            Ok(session.removed.contains(&deleted))
        };
        // Only the socket of a queue that existed is removed: its name was checked at creation, so it cannot be a path.
        if self.database.engine.write::<_, QueueError>(Durability::FULL, work).await?
            && let Some(direct) = &self.direct
        {
            direct.remove(&name);
        }
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, QueueError> {
        let prefix = prefix.to_owned();
        self.database.engine.read(move |session| messages::list(session, &prefix)).await
    }

    async fn tags(&self, name: &str) -> Result<BTreeMap<String, String>, QueueError> {
        let name = name.to_owned();
        self.database.engine.read(move |session| messages::tags(session, &name)).await
    }

    async fn set_tag(&self, name: &str, key: &str, value: &str) -> Result<(), QueueError> {
        let (name, key, value) = (name.to_owned(), key.to_owned(), value.to_owned());
        let work = move |session: &mut Session| messages::set_tag(session, &name, &key, &value);
        self.database.engine.write(Durability::FULL, work).await
    }

    async fn failure(&self) -> String {
        self.database.failure().await
    }
}

fn duration(millis: i64) -> Duration {
    Duration::from_millis(millis.max(0).unsigned_abs())
}
