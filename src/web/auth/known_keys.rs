//! The keys that a web process knows. It reads them every few seconds, so that a request costs no call to the store.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::decide::Presented;
use crate::keys::{Documents, KeyHash, KeyRecord, KeyTable, KeysError, journal};

/// How often the keys are read. A new or revoked key is known after that and the time of one read, within 10 s.
const READ_INTERVAL: Duration = Duration::from_secs(3);

/// The keys of the service, as they were read last.
pub(super) struct KnownKeys {
    documents: Arc<dyn Documents>,
    known: RwLock<Known>,
}

struct Known {
    table: KeyTable,
    by_hash: HashMap<KeyHash, Arc<KeyRecord>>,
}

impl KnownKeys {
    /// Reads the keys for the first time.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) async fn open(documents: Arc<dyn Documents>) -> Result<KnownKeys, KeysError> {
        let table = journal::read(&*documents, &KeyTable::default()).await?;
        Ok(KnownKeys { documents, known: RwLock::new(Known::of(table)) })
    }

    /// Reads the keys again and again, until `stop`. While they cannot be read, those that were read last stay valid.
    pub(super) async fn follow(&self, stop: &CancellationToken) {
        let mut is_failing = false;
        while stop.run_until_cancelled(tokio::time::sleep(READ_INTERVAL)).await.is_some() {
            let table = self.table();
            match journal::read(&*self.documents, &table).await {
                Ok(new) => {
                    if new.number != table.number {
                        tracing::info!(keys = new.keys.len(), "the keys of clients have changed");
                        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Known::of(new);
                    }
                    is_failing = false;
                }
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(%error, "cannot read the keys of clients; those that were read last stay valid");
                    }
                    is_failing = true;
                }
            }
        }
    }

    pub(super) fn table(&self) -> KeyTable {
        self.known.read().unwrap_or_else(PoisonError::into_inner).table.clone()
    }

    /// Finds the key of a request. The search is by hash, so that its time says nothing about a key.
    pub(super) fn find(&self, hash: Option<KeyHash>) -> Presented {
        let Some(hash) = hash else { return Presented::Nothing };
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.by_hash.get(&hash).map_or(Presented::Unknown, |key| Presented::Known(Arc::clone(key)))
    }
}

impl Known {
    fn of(table: KeyTable) -> Known {
        let by_hash = table.keys.iter().map(|key| (key.hash, Arc::new(key.clone()))).collect();
        Known { table, by_hash }
    }
}
