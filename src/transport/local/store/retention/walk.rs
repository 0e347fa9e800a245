//! A walk through the objects of one kind, oldest first, which finds those that may be deleted.
//!
//! An image may be deleted once its job has a result, and a result once its image is gone. A dead letter or an unacknowledged
//! message that names the job keeps both. Messages belong to the queue, which the caller queries
//! ([`Candidate::unless_named`]).

use rusqlite::{OptionalExtension as _, params};
use uuid::Uuid;

use super::Kind;
use crate::config::Names;
use crate::keys::journal::KEYS_FOLDER;
use crate::protocol::{self, ReplyHead, Status};
use crate::sqlite::Snapshot;

/// A part of a walk through the objects of one kind, oldest first.
#[derive(Debug, Clone, Copy)]
pub struct Walk {
    /// The kind of the objects.
    pub kind: Kind,
    /// The walk visits objects written before this.
    pub before_ms: i64,
    /// An image without a result, written before this, may belong to no job any more.
    pub orphaned_before_ms: i64,
    /// The end of the previous part. `None` at the start of the walk.
    pub after: Option<Position>,
    /// The number of objects that are read.
    pub limit: usize,
}

/// A place in the order of objects by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    modified_ms: i64,
    size_bytes: u64,
    row: i64,
}

/// The objects of a part of a walk that may be deleted.
pub struct Page {
    /// Objects that may be deleted, oldest first.
    pub candidates: Vec<Candidate>,
    /// The end of this part, from which the next one continues. `None` at the end of the walk.
    pub next: Option<Position>,
}

/// An object that may be deleted, unless a message names its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub(super) row: i64,
    pub(super) key: String,
    pub(super) modified_ms: i64,
    /// The size of the object.
    pub size_bytes: u64,
    /// The kind of the object.
    pub kind: Kind,
    /// `None` when no message can need it.
    pub unless_named: Option<NamedIn>,
}

/// Which messages keep an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedIn {
    pub job: Uuid,
    /// True if requests that no worker has received yet count too, because the job has no result. Otherwise dead letters count,
    /// and requests that were received and not deleted yet.
    pub any_request: bool,
}

impl Walk {
    /// Reads the next part, and returns the objects in it that may be deleted.
    ///
    /// # Errors
    /// Those of the database.
    pub fn read(&self, snapshot: &Snapshot, names: &Names) -> rusqlite::Result<Page> {
        let bucket = self.kind.bucket(names);
        let after = self.after.unwrap_or(Position { modified_ms: i64::MIN, size_bytes: 0, row: 0 });
        let mut select = snapshot.connection.prepare_cached(
            "SELECT rowid, key, modified_ms, size_bytes FROM objects INDEXED BY objects_by_age
             WHERE bucket = ?1 AND modified_ms < ?2 AND (modified_ms, size_bytes, rowid) > (?3, ?4, ?5)
             ORDER BY modified_ms, size_bytes, rowid LIMIT ?6",
        )?;
        let bounds = params![bucket, self.before_ms, after.modified_ms, after.size_bytes, after.row, self.limit as u64];
        let mut rows = select.query(bounds)?;
        let (mut page, mut visited) = (Page { candidates: Vec::new(), next: None }, 0);
        while let Some(row) = rows.next()? {
            visited += 1;
            let mut candidate = Candidate {
                row: row.get(0)?,
                key: row.get(1)?,
                modified_ms: row.get(2)?,
                size_bytes: row.get(3)?,
                kind: self.kind,
                unless_named: None,
            };
            page.next = Some(candidate.position());
            if let Some(condition) = self.condition(snapshot, names, &candidate)? {
                candidate.unless_named = condition;
                page.candidates.push(candidate);
            }
        }
        if visited < self.limit {
            page.next = None;
        }
        Ok(page)
    }

    /// Returns `None` when the object must be kept, and otherwise the messages that may still need it. An object of the legacy
    /// form belongs to no job.
    #[allow(clippy::option_option, reason = "kept, free, or free under a condition")]
    fn condition(
        &self,
        snapshot: &Snapshot,
        names: &Names,
        candidate: &Candidate,
    ) -> rusqlite::Result<Option<Option<NamedIn>>> {
        // Keys of clients belong to no job, and stay until they are revoked.
        if candidate.key.starts_with(KEYS_FOLDER) {
            return Ok(None);
        }
        match self.kind {
            Kind::Images => {
                let Some(job) = protocol::job_of_image_key(&candidate.key) else { return Ok(Some(None)) };
                Ok(match outcome_of(snapshot, &names.output_bucket, job)? {
                    Outcome::Complete => Some(None),
                    Outcome::Failed => Some(Some(NamedIn { job, any_request: false })),
                    Outcome::None if candidate.modified_ms < self.orphaned_before_ms => {
                        Some(Some(NamedIn { job, any_request: true }))
                    }
                    Outcome::None => None,
                })
            }
            Kind::Results => {
                let Some(job) = protocol::job_of_result_key(&candidate.key) else { return Ok(Some(None)) };
                // A job that has an image and no result would count as waiting, so the image is deleted first.
                let has_image = exists(snapshot, &names.input_bucket, &protocol::image_key(job))?;
                Ok((!has_image).then_some(Some(NamedIn { job, any_request: false })))
            }
        }
    }
}

impl Candidate {
    fn position(&self) -> Position {
        Position { modified_ms: self.modified_ms, size_bytes: self.size_bytes, row: self.row }
    }
}

/// The outcome of a job.
enum Outcome {
    /// The job succeeded or expired, so there is no dead letter of it.
    Complete,
    /// The job failed, so there may be a dead letter.
    Failed,
    None,
}

fn outcome_of(snapshot: &Snapshot, output_bucket: &str, job: Uuid) -> rusqlite::Result<Outcome> {
    let sql = "SELECT body FROM objects WHERE bucket = ?1 AND key = ?2";
    let mut select = snapshot.connection.prepare_cached(sql)?;
    let head = select
        .query_row(params![output_bucket, protocol::result_key(job)], |row| {
            // Large results are in segments, and their body here is empty. Treating them as failed is safe.
            let body = row.get_ref(0)?.as_blob().unwrap_or_default();
            Ok(serde_json::from_slice::<ReplyHead>(body).map_or(Status::Failed, |head| head.status))
        })
        .optional()?;
    Ok(match head {
        Some(Status::Succeeded | Status::Expired) => Outcome::Complete,
        Some(Status::Failed) => Outcome::Failed,
        // A legacy worker stored an output that no web tier has adopted yet.
        None if exists(snapshot, output_bucket, protocol::legacy_output_key(&job.to_string()))? => Outcome::Failed,
        None => Outcome::None,
    })
}

fn exists(snapshot: &Snapshot, bucket: &str, key: &str) -> rusqlite::Result<bool> {
    snapshot.connection.prepare_cached("SELECT 1 FROM objects WHERE bucket = ?1 AND key = ?2")?.exists([bucket, key])
}
