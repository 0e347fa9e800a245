//! The data of the local backend, for the retention loop: it measures how much is stored, lists the oldest objects of
//! finished jobs, and frees their space.
//!
//! `walk` decides what *may* be deleted; the caller decides what is. `garbage` frees the bytes in segments that no row
//! names.

mod failures;
mod garbage;
mod walk;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{OptionalExtension as _, params};

pub use self::failures::FailedResult;
pub use self::garbage::{Collected, SeenSegments};
pub use self::walk::{Candidate, Page, Position, Walk};
use super::delete;
use crate::config::Names;
use crate::sqlite::{self, Database, Durability, FILE_NAME, Fault, Reader, Session, Snapshot};
use crate::transport::local::segments::{self, Place, Segments};

type Failure = sqlite::Failure<Fault>;

/// How long one transaction of deletions may hold the write lock before it leaves the rest to the next one.
const LONGEST_WRITE: Duration = Duration::from_millis(2);
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

impl Kind {
    /// The name in metrics and log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Images => "images",
            Kind::Results => "results",
        }
    }

    /// Returns the bucket of the objects.
    fn bucket(self, names: &Names) -> &str {
        match self {
            Kind::Images => &names.input_bucket,
            Kind::Results => &names.output_bucket,
        }
    }
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
        let bucket = kind.bucket(&self.names).to_owned();
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

    /// Deletes the first of the candidates, for at most a few milliseconds, and frees their space. An object that was written
    /// again since it was found stays. The space is freed once a power loss cannot bring the objects back, which may wait
    /// this long for a sync that others share.
    ///
    /// # Errors
    /// Those of the database; nothing was deleted then.
    pub async fn delete(&self, candidates: &[Candidate], shared_sync: Duration) -> Result<Deleted, Fault> {
        let named: Vec<(Arc<str>, Candidate)> =
            candidates.iter().map(|candidate| (candidate.kind.bucket(&self.names).into(), candidate.clone())).collect();
        // Results are in the database. Those that a power loss brings back are deleted again.
        let has_bodies_elsewhere =
            candidates.iter().any(|candidate| candidate.size_bytes > super::MAX_ROW_BYTES as u64);
        let durability = if has_bodies_elsewhere { Durability::FullWithin(shared_sync) } else { Durability::Normal };
        let work = move |session: &mut Session| delete_for_a_while(session, named);
        let (deleted, unused) = self.database.engine.write(durability, work).await?;
        self.segments.release(unused).await;
        Ok(deleted)
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
