//! The data of the local backend, for the retention loop: it measures how much is stored, lists the oldest objects of
//! finished jobs, and frees their space.
//!
//! This module decides what *may* be deleted; the caller decides what is. An image may be deleted once its job has a result,
//! and a result once its image is gone. A dead letter or an unacknowledged message that names the job keeps both. Messages
//! belong to the queue, which the caller queries ([`Candidate::unless_named`]).

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{OptionalExtension as _, params};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{delete, place, release_doubtful};
use crate::config::Names;
use crate::protocol::{self, ReplyHead, Status};
use crate::sqlite::{self, Database, Durability, FILE_NAME, Fault, Reader, Session, Snapshot};
use crate::transport::local::segments::{self, Appended, Place, Segments, Unwritten};

type Failure = sqlite::Failure<Fault>;

/// How long one transaction of deletions may hold the write lock before it leaves the rest to the next one.
const LONGEST_WRITE: Duration = Duration::from_millis(2);
/// Bodies that are moved to another segment in one transaction.
const MOVED_AT_ONCE: usize = 16;
/// Free pages of the database that are returned to the file system in one transaction. Each costs a few pages of the write-ahead log.
const VACUUMED_AT_ONCE: u32 = 64;
/// Free pages that are kept for new rows (1 MiB).
const KEPT_FREE_PAGES: u64 = 256;

/// The kind of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Uploaded images.
    Images,
    /// Results of jobs.
    Results,
}

/// Everything that a service keeps under its data directory.
pub struct LocalData {
    data_dir: PathBuf,
    database: Arc<Database>,
    segments: Arc<Segments>,
    reader: Arc<Mutex<Reader>>,
    names: Names,
}

/// How much is stored, in bytes as the file system allocates them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// The number of segment files.
    pub segment_files: u64,
    /// The size of the segment files.
    pub segment_bytes: u64,
    /// The size of the pages of the database that are in use.
    pub database_bytes: u64,
    /// The size of the pages of the database that are free for new rows.
    pub database_free_bytes: u64,
    /// The size of the write-ahead log. It has its own limit and does not count.
    pub log_bytes: u64,
    /// The bytes that this user may still write to the file system.
    pub disk_free_bytes: u64,
}

impl Usage {
    /// Returns the bytes that count against the limit.
    pub fn counted_bytes(&self) -> u64 {
        self.segment_bytes + self.database_bytes
    }
}

/// The objects of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// The number of objects.
    pub objects: u64,
    /// Their size.
    pub bytes: u64,
    /// Milliseconds since the Unix epoch. `None` when there is no object.
    pub oldest_ms: Option<i64>,
}

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
    row: i64,
    key: String,
    modified_ms: i64,
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

/// The outcome of a transaction of deletions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deleted {
    /// The number of objects.
    pub objects: u64,
    /// Their size.
    pub bytes: u64,
    /// The number of candidates that it visited. The others are left for the next transaction.
    pub visited: usize,
    /// The time for which it held the write lock.
    pub held: Duration,
}

/// The bytes of the bodies of each segment at the last garbage collection.
#[derive(Debug, Default)]
pub struct SeenSegments(HashMap<String, u64>);

/// The outcome of a garbage collection of the segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// The number of segment files that were deleted.
    pub removed_segments: u64,
    /// The number of bodies that were copied into another segment.
    pub moved_bodies: u64,
}

impl LocalData {
    /// Opens the data under `data_dir`, and creates it when it is missing.
    ///
    /// # Errors
    /// [`Fault::Fatal`] when the directory or file cannot be used; it says what to do.
    pub fn open(data_dir: &Path, names: Names) -> Result<LocalData, Fault> {
        let database = sqlite::open(data_dir)?;
        Ok(LocalData {
            segments: Arc::new(Segments::open(data_dir, Arc::clone(&database))?),
            reader: Arc::new(Mutex::new(Reader::open(data_dir)?)),
            data_dir: data_dir.to_owned(),
            database,
            names,
        })
    }

    /// Returns the service time, which dates objects, in milliseconds since the Unix epoch.
    pub async fn now_ms(&self) -> Result<i64, Fault> {
        self.database.engine.read(|session| Ok::<_, Failure>(session.now_ms)).await
    }

    /// Measures how much is stored. This costs a few system calls, however much that is.
    pub async fn usage(&self) -> Result<Usage, Fault> {
        let (data_dir, segments) = (self.data_dir.clone(), Arc::clone(&self.segments));
        self.read_aside(move |reader| {
            let (page_bytes, pages, free_pages) = reader.read(|snapshot| {
                let pragma = |name: &str| {
                    let sql = format!("PRAGMA {name}");
                    snapshot.connection.prepare_cached(&sql)?.query_row([], |row| row.get::<_, u64>(0))
                };
                Ok((pragma("page_size")?, pragma("page_count")?, pragma("freelist_count")?))
            })?;
            let at = |path: &Path, error: &std::io::Error| segments::fault(path, error);
            let found = segments.usage().map_err(|error| at(&data_dir, &error))?;
            let disk = rustix::fs::statvfs(&data_dir).map_err(|error| at(&data_dir, &error.into()))?;
            let log = data_dir.join(format!("{FILE_NAME}-wal"));
            Ok(Usage {
                segment_files: found.files,
                segment_bytes: found.allocated_bytes,
                database_bytes: page_bytes * pages.saturating_sub(free_pages),
                database_free_bytes: page_bytes * free_pages,
                log_bytes: fs::metadata(log).map_or(0, |metadata| metadata.len()),
                disk_free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            })
        })
        .await
    }

    /// Returns count, bytes and age of all objects of a kind.
    pub async fn totals(&self, kind: Kind) -> Result<Totals, Fault> {
        let bucket = self.bucket(kind).to_owned();
        self.read(move |snapshot| {
            let sql = "SELECT count(*), coalesce(sum(size_bytes), 0), min(modified_ms) FROM objects WHERE bucket = ?1";
            let mut select = snapshot.connection.prepare_cached(sql)?;
            select.query_row([bucket], |row| {
                Ok(Totals { objects: row.get(0)?, bytes: row.get(1)?, oldest_ms: row.get(2)? })
            })
        })
        .await
    }

    /// Reads one snapshot in the background.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshot) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        self.read_aside(move |reader| reader.read(work)).await
    }

    async fn read_aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Reader) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let reader = Arc::clone(&self.reader);
        let task =
            tokio::task::spawn_blocking(move || work(&mut reader.lock().unwrap_or_else(PoisonError::into_inner)));
        task.await.unwrap_or_else(|error| Err(Fault::Unavailable(format!("the operation ended early: {error}"))))
    }

    /// Returns the names of the queues and buckets of this data directory.
    pub fn names(&self) -> &Names {
        &self.names
    }

    fn bucket(&self, kind: Kind) -> &str {
        match kind {
            Kind::Images => &self.names.input_bucket,
            Kind::Results => &self.names.output_bucket,
        }
    }

    /// Deletes the first of the candidates, for at most a few milliseconds, and frees their space. An object that was written
    /// again since it was found stays. The space is freed once a power loss cannot bring the objects back, which may wait
    /// this long for a sync that others share.
    ///
    /// # Errors
    /// Those of the database; nothing was deleted then.
    pub async fn delete(&self, candidates: &[Candidate], shared_sync: Duration) -> Result<Deleted, Fault> {
        let named: Vec<(Arc<str>, Candidate)> =
            candidates.iter().map(|candidate| (self.bucket(candidate.kind).into(), candidate.clone())).collect();
        // Results are in the database. Those that a power loss brings back are deleted again.
        let has_bodies_elsewhere =
            candidates.iter().any(|candidate| candidate.size_bytes > super::MAX_ROW_BYTES as u64);
        let durability = if has_bodies_elsewhere { Durability::FullWithin(shared_sync) } else { Durability::Normal };
        let work = move |session: &mut Session| delete_for_a_while(session, named);
        let (deleted, unused) = self.database.engine.write(durability, work).await?;
        self.segments.release(unused).await;
        Ok(deleted)
    }

    /// Collects garbage in the segments that no process writes any more: removes those without a body, frees the bytes of
    /// failed and killed puts, and moves the bodies of those that are mostly dead. `seen` is the one of the last call.
    ///
    /// # Errors
    /// Those of the database or the directory. The call may be repeated.
    pub async fn collect_garbage(
        &self,
        seen: &mut SeenSegments,
        shutdown: &CancellationToken,
    ) -> Result<Collected, Fault> {
        let SeenSegments(seen) = seen;
        let mut collected = Collected::default();
        release_doubtful(&self.database, &self.segments).await;
        let names = self.beside(Segments::names).await?;
        seen.retain(|name, _| names.contains(name));
        for name in names {
            if shutdown.is_cancelled() {
                break;
            }
            // A segment that cannot be read does not keep the others from being collected.
            if let Err(error) = self.collect_segment(&name, seen, &mut collected, shutdown).await {
                tracing::debug!(%error, segment = name, "cannot free the dead space of a segment yet");
            }
        }
        Ok(collected)
    }

    async fn collect_segment(
        &self,
        name: &str,
        seen: &mut HashMap<String, u64>,
        collected: &mut Collected,
        shutdown: &CancellationToken,
    ) -> Result<(), Fault> {
        let claimed_name = name.to_owned();
        let claimed = self.beside(move |segments| segments.claim(&claimed_name)).await?;
        let Some(segment) = claimed else { return Ok(()) };
        // The rows are read only now, when no process can add one any more.
        let live = self.live(name).await?;
        let live_bytes: u64 = live.iter().map(|place| place.size_bytes.next_multiple_of(4 << 10)).sum();
        if live.is_empty() {
            self.on_disk().await?;
            self.beside(move |_| segment.remove()).await?;
            seen.remove(name);
            collected.removed_segments += 1;
            return Ok(());
        }
        let is_mostly_dead = live_bytes * 2 <= segment.length_bytes;
        // Bodies that are soon deleted anyway are not worth moving when their holes take no space.
        let is_stuck = self.segments.cannot_punch() || seen.get(name) == Some(&live_bytes);
        if is_mostly_dead && is_stuck {
            collected.moved_bodies += self.move_bodies(segment, live, shutdown).await?;
            return Ok(());
        }
        if !seen.contains_key(name) || segment.allocated_bytes > live_bytes + live_bytes / 8 {
            self.on_disk().await?;
            self.beside(move |segments| segments.punch_outside(&segment, &live)).await?;
        }
        seen.insert(name.to_owned(), live_bytes);
        Ok(())
    }

    /// Returns once everything that was read from the database is on disk: a power loss must not bring back a row whose bytes
    /// were freed.
    async fn on_disk(&self) -> Result<(), Fault> {
        self.database.engine.write::<_, Fault>(Durability::FULL, |_| Ok::<_, Failure>(())).await
    }

    /// Returns the bodies of a segment that rows name, by offset.
    async fn live(&self, segment: &str) -> Result<Vec<Place>, Fault> {
        let segment = segment.to_owned();
        self.read(move |snapshot| {
            let sql = "SELECT size_bytes, segment, offset, checksum FROM objects WHERE segment = ?1 ORDER BY offset";
            let mut select = snapshot.connection.prepare_cached(sql)?;
            let rows = select.query_map([segment], place)?;
            rows.filter_map(Result::transpose).collect()
        })
        .await
    }

    /// Moves bodies to the segment of this process and removes the segment that they came from. A damaged body stays, and its
    /// segment with it.
    async fn move_bodies(
        &self,
        segment: Unwritten,
        live: Vec<Place>,
        shutdown: &CancellationToken,
    ) -> Result<u64, Fault> {
        let mut moved_bodies = 0;
        for places in live.chunks(MOVED_AT_ONCE) {
            if shutdown.is_cancelled() {
                return Ok(moved_bodies);
            }
            let mut moves = Vec::new();
            for place in places {
                // A body that cannot be read, or is damaged, stays where it is.
                if let Ok(Some(body)) = self.segments.read_aside(place.clone()).await {
                    moves.push((place.clone(), self.segments.append_aside(body).await?));
                }
            }
            moved_bodies += moves.len() as u64;
            let work = move |session: &mut Session| move_rows(session, moves);
            let (moved, unused) = self.database.engine.write::<_, Fault>(Durability::FULL, work).await?;
            moved.into_iter().for_each(Appended::commit);
            self.segments.release(unused).await;
        }
        if self.live(&segment.name).await?.is_empty() {
            self.on_disk().await?;
            self.beside(move |_| segment.remove()).await?;
        }
        Ok(moved_bodies)
    }

    /// Returns free pages of the database to the file system when there are many. Returns false when there was nothing to do.
    /// A file that an earlier release created keeps its free pages, and new rows take them first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn vacuum_some(&self) -> Result<bool, Fault> {
        let work = |session: &mut Session| {
            let pragma = |name: &str| {
                let sql = format!("PRAGMA {name}");
                session.connection.prepare_cached(&sql)?.query_row([], |row| row.get::<_, u64>(0))
            };
            let (pages, free_pages) = (pragma("page_count")?, pragma("freelist_count")?);
            let is_incremental = pragma("auto_vacuum")? == 2;
            if !is_incremental || free_pages <= KEPT_FREE_PAGES.max(pages / 4) {
                return Ok::<_, Failure>(false);
            }
            let sql = format!("PRAGMA incremental_vacuum({VACUUMED_AT_ONCE})");
            let mut vacuum = session.connection.prepare_cached(&sql)?;
            let mut steps = vacuum.query([])?;
            while steps.next()?.is_some() {}
            Ok(true)
        };
        self.database.engine.write(Durability::Normal, work).await
    }

    /// Stores the limits that the service runs with, for commands that inspect its data.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn note_limits(&self, keep: [Duration; 2], max_data_bytes: u64) -> Result<(), Fault> {
        let service = self.service();
        let [keep_images_ms, keep_results_ms] = keep.map(sqlite::millis);
        let work = move |session: &mut Session| {
            let mut insert = session.connection.prepare_cached(
                "INSERT OR REPLACE INTO retention (service, keep_images_ms, keep_results_ms, max_data_bytes)
                 VALUES (?1, ?2, ?3, ?4)",
            )?;
            let max_data_bytes = i64::try_from(max_data_bytes).unwrap_or(i64::MAX);
            insert.execute(params![service, keep_images_ms, keep_results_ms, max_data_bytes])?;
            Ok::<_, Failure>(())
        };
        self.database.engine.write(Durability::Normal, work).await
    }

    /// Returns the limits that the service last ran with: how long images and results are kept, and how many bytes at most.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn noted_limits(&self) -> Result<Option<([Duration; 2], u64)>, Fault> {
        let service = self.service();
        self.read(move |snapshot| {
            let sql = "SELECT keep_images_ms, keep_results_ms, max_data_bytes FROM retention WHERE service = ?1";
            let limits = snapshot.connection.query_row(sql, [service], |row| {
                let keep = [row.get(0)?, row.get(1)?].map(Duration::from_millis);
                Ok((keep, row.get(2)?))
            });
            limits.optional()
        })
        .await
    }

    fn service(&self) -> String {
        format!("{}/{}", self.names.input_bucket, self.names.output_bucket)
    }

    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Segments) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let (segments, data_dir) = (Arc::clone(&self.segments), self.data_dir.clone());
        let task = tokio::task::spawn_blocking(move || match work(&segments) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(segments::fault(&data_dir, &error)),
            Err(error) => Err(Fault::Unavailable(format!("{}: {error}", data_dir.display()))),
            Ok(done) => Ok(done),
        });
        task.await.unwrap_or_else(|error| Err(Fault::Unavailable(format!("the operation ended early: {error}"))))
    }
}

impl Walk {
    /// Reads the next part, and returns the objects in it that may be deleted.
    ///
    /// # Errors
    /// Those of the database.
    pub fn read(&self, snapshot: &Snapshot, names: &Names) -> rusqlite::Result<Page> {
        let bucket = match self.kind {
            Kind::Images => &names.input_bucket,
            Kind::Results => &names.output_bucket,
        };
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

fn delete_for_a_while(
    session: &mut Session,
    candidates: Vec<(Arc<str>, Candidate)>,
) -> Result<(Deleted, Vec<Place>), Failure> {
    let started = Instant::now();
    let (mut deleted, mut unused) = (Deleted::default(), Vec::new());
    for (bucket, candidate) in candidates {
        let sql = "SELECT 1 FROM objects WHERE rowid = ?1 AND bucket = ?2 AND key = ?3 AND modified_ms = ?4";
        let identity = params![candidate.row, &*bucket, candidate.key, candidate.modified_ms];
        let is_same = session.connection.prepare_cached(sql)?.exists(identity)?;
        deleted.visited += 1;
        if is_same {
            let names = super::Names { bucket, key: candidate.key };
            unused.extend(delete(session, &names)?);
            deleted.objects += 1;
            deleted.bytes += candidate.size_bytes;
        }
        if started.elapsed() > LONGEST_WRITE {
            break;
        }
    }
    deleted.held = started.elapsed();
    Ok((deleted, unused))
}

/// Returns the moved bodies, and places of them that no row names since the object was deleted meanwhile.
fn move_rows(session: &mut Session, moves: Vec<(Place, Appended)>) -> Result<(Vec<Appended>, Vec<Place>), Failure> {
    let (mut moved, mut unused) = (Vec::new(), Vec::new());
    for (from, appended) in moves {
        let to = appended.place().clone();
        let mut update = session.connection.prepare_cached(
            "UPDATE objects SET segment = ?1, offset = ?2 WHERE segment = ?3 AND offset = ?4 AND checksum = ?5",
        )?;
        if update.execute(params![to.segment, to.offset, from.segment, from.offset, from.checksum])? == 0 {
            unused.push(to);
        }
        // All bodies share the sync of the transaction.
        session.sync(appended.file());
        moved.push(appended);
    }
    Ok((moved, unused))
}
