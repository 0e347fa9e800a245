//! Remembers why messages were released, for the dead letters that may follow.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

/// The last faults by job. It only informs people, so that it may forget the oldest.
#[derive(Default)]
pub(crate) struct LastFaults(Mutex<HashMap<Uuid, String>>);

impl LastFaults {
    const REMEMBERED: usize = 1_000;

    pub(crate) fn record(&self, id: Uuid, reason: String) {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() >= Self::REMEMBERED {
            faults.clear();
        }
        faults.insert(id, reason);
    }

    pub(crate) fn of(&self, id: Uuid) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}
