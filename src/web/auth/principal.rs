//! The sender of a request, as the handlers see it.

use std::sync::Arc;

use uuid::Uuid;

use crate::clock;
use crate::keys::{KeyRecord, Scope};

/// The sender of a request. The layer of keys adds it to the extensions of every request that passes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Principal {
    /// `None` if no key is needed: everybody may do everything, and jobs belong to nobody.
    key: Option<Arc<KeyRecord>>,
}

impl Principal {
    /// The principal of a server, or of a route, that needs no key.
    pub(super) fn everybody() -> Principal {
        Principal { key: None }
    }

    /// The principal of a key with this text, for tests.
    #[cfg(test)]
    pub(crate) fn of_key(text: &str, scopes: &[Scope]) -> Principal {
        Principal::of(Arc::new(KeyRecord {
            hash: crate::keys::KeyHash::of(text.as_bytes()),
            name: text.to_owned(),
            scopes: scopes.to_vec(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            expires_at: None,
        }))
    }

    pub(super) fn of(key: Arc<KeyRecord>) -> Principal {
        Principal { key: Some(key) }
    }

    /// Makes the id of a new job, which then belongs to the key of this principal.
    pub(crate) fn new_job_id(&self) -> Uuid {
        let id = clock::new_id();
        self.key.as_ref().map_or(id, |key| key.hash.mark(id))
    }

    /// The hash of the key, by which callers are told apart. `None` where no key is needed: everybody is one caller.
    pub(crate) fn key_hash(&self) -> Option<&[u8]> {
        self.key.as_ref().map(|key| key.hash.as_bytes())
    }

    /// The hash of the key in hexadecimal, as callbacks name it.
    pub(crate) fn key_hex(&self) -> Option<String> {
        self.key.as_ref().map(|key| key.hash.to_hex())
    }

    /// Returns true if the principal may read the job, its image and its result.
    pub(crate) fn may_read(&self, job: Uuid) -> bool {
        self.key.as_ref().is_none_or(|key| key.may(Scope::Read) || (key.may(Scope::Classify) && key.hash.owns(job)))
    }

    /// Returns true if the job belongs to the principal. Where no key is needed, every job does.
    pub(crate) fn owns(&self, job: Uuid) -> bool {
        self.key.as_ref().is_none_or(|key| key.hash.owns(job))
    }

    /// Returns true if the principal may cancel or delete the job.
    pub(crate) fn may_change(&self, job: Uuid) -> bool {
        self.key.as_ref().is_none_or(|key| key.may(Scope::Admin) || (key.may(Scope::Classify) && key.hash.owns(job)))
    }
}
