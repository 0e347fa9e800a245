//! The jobs that messages of a service name: their images and results may still be needed.

use std::collections::HashSet;

use rusqlite::params;
use uuid::Uuid;

use crate::config::Names;
use crate::protocol::{self, Callback, Incoming};
use crate::sqlite::Snapshot;

/// The jobs that dead letters and callbacks name, and requests that were received and not yet deleted; with `any_request`, also
/// requests that nobody has received yet. A message that is too old to be delivered counts until it is removed.
///
/// # Errors
/// Those of the database.
pub fn named_jobs(snapshot: &Snapshot, names: &Names, any_request: bool) -> rusqlite::Result<HashSet<Uuid>> {
    let fewest_receives = u32::from(!any_request);
    let mut named = HashSet::new();
    let queues = [
        (names.dead_letter_queue(), 0),
        (names.request_queue.clone(), fewest_receives),
        (names.bulk_queue(), fewest_receives),
        // The result is needed until its receiver was told.
        (names.callback_queue(), 0),
    ];
    for (queue, fewest_receives) in queues {
        // The receive count is in the index, so that only the bodies of wanted messages are read.
        let mut select = snapshot.connection.prepare_cached(
            "SELECT messages.body, messages.attributes ->> '$.id' FROM messages INDEXED BY messages_due
             WHERE queue_id = (SELECT id FROM queues WHERE name = ?1) AND receive_count >= ?2",
        )?;
        let mut rows = select.query(params![queue, fewest_receives])?;
        while let Some(row) = rows.next()? {
            let said = row.get_ref(1)?.as_str().unwrap_or_default().parse().ok();
            named.extend(job_of(row.get_ref(0)?.as_str().unwrap_or_default()).or(said));
        }
    }
    Ok(named)
}

fn job_of(body: &str) -> Option<Uuid> {
    if let Some(callback) = Callback::parse(body) {
        return Some(callback.id);
    }
    match Incoming::parse(body) {
        Incoming::Job(request) => Some(request.id),
        Incoming::Legacy(request) => protocol::legacy_job_id(&request.filename),
        Incoming::Malformed { id, .. } => id,
        Incoming::UnknownVersion { .. } | Incoming::Notification(_) => None,
    }
}
