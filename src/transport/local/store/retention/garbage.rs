//! Frees the space in segments that no process writes any more.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::Arc;

use rusqlite::params;
use tokio_util::sync::CancellationToken;

use super::{Failure, LocalData};
use crate::sqlite::{Durability, Fault, Session};
use crate::transport::local::segments::{self, Appended, BLOCK_BYTES, Place, Segments, Unwritten};
use crate::transport::local::store::{place, release_doubtful};

/// Bodies that are moved to another segment in one transaction.
const MOVED_AT_ONCE: usize = 16;

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
        let live_bytes = self.live_bytes(name).await?;
        if live_bytes == 0 {
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
            collected.moved_bodies += self.move_bodies(segment, shutdown).await?;
            return Ok(());
        }
        if !seen.contains_key(name) || segment.allocated_bytes > live_bytes + live_bytes / 8 {
            let live = self.live(name).await?;
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

    /// Returns the bytes of the blocks of all bodies of a segment that rows name. The index alone answers this, so that a pass
    /// over segments that nothing was deleted from reads no row.
    async fn live_bytes(&self, segment: &str) -> Result<u64, Fault> {
        let segment = segment.to_owned();
        self.read(move |snapshot| {
            let sql = "SELECT coalesce(sum((size_bytes + ?2 - 1) / ?2 * ?2), 0) FROM objects WHERE segment = ?1";
            snapshot.connection.prepare_cached(sql)?.query_row(params![segment, BLOCK_BYTES], |row| row.get(0))
        })
        .await
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
    async fn move_bodies(&self, segment: Unwritten, shutdown: &CancellationToken) -> Result<u64, Fault> {
        let live = self.live(&segment.name).await?;
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
        if self.live_bytes(&segment.name).await? == 0 {
            self.on_disk().await?;
            self.beside(move |_| segment.remove()).await?;
        }
        Ok(moved_bodies)
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
