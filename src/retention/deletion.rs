//! Deletes objects of finished jobs, oldest first, in short transactions with pauses between them.

use std::collections::HashSet;
use std::ops::AddAssign;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::sqlite::{Fault, millis};
use crate::transport::local::{self, Candidate, Kind, LocalData, Page, Position, Walk};
use crate::transport::queued::queue::QueueAttributes;

/// Objects that one snapshot reads.
const PAGE_OBJECTS: usize = 1_000;
/// Candidates that are passed to one transaction, which deletes as many as its time allows.
const BATCH_CANDIDATES: usize = 256;
/// The shortest pause after a transaction at the relaxed pace.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// How long a deletion at the relaxed pace waits for a sync that it can share with other calls.
const SYNC_DELAY: Duration = Duration::from_millis(10);

/// Deletes objects, or counts those that it would delete.
pub struct Deletion<'a> {
    /// The data directory.
    pub data: &'a LocalData,
    /// How much time is left to other users of the database.
    pub pace: Pace,
    /// Ends the deletion early; what was deleted stays deleted.
    pub shutdown: &'a CancellationToken,
    /// Only counts.
    pub is_dry_run: bool,
}

/// How much time a deletion leaves to other users of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Half of it: an image waits for the space.
    Urgent,
    /// Most of it.
    Relaxed,
}

/// How much was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// The number of objects.
    pub objects: u64,
    /// The bytes of their bodies.
    pub bytes: u64,
    /// The bytes of the disk blocks that their bodies took.
    pub disk_bytes: u64,
}

impl AddAssign for Freed {
    fn add_assign(&mut self, other: Freed) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.disk_bytes += other.disk_bytes;
    }
}

impl Deletion<'_> {
    /// Deletes objects of a kind that were written before `before_ms`, until `is_enough` returns true, none is left, or the
    /// process ends.
    ///
    /// # Errors
    /// A fault of the database. What was deleted stays deleted.
    pub async fn delete(&self, kind: Kind, before_ms: i64, is_enough: impl Fn(&Freed) -> bool) -> Result<Freed, Fault> {
        let mut freed = Freed::default();
        let mut after = None;
        loop {
            if is_enough(&freed) || self.shutdown.is_cancelled() {
                return Ok(freed);
            }
            let Page { candidates, next } = self.page(kind, before_ms, after).await?;
            self.delete_candidates(&candidates, &mut freed, &is_enough).await?;
            after = next;
            if after.is_none() {
                return Ok(freed);
            }
        }
    }

    async fn delete_candidates(
        &self,
        mut left: &[Candidate],
        freed: &mut Freed,
        is_enough: &impl Fn(&Freed) -> bool,
    ) -> Result<(), Fault> {
        while !left.is_empty() && !is_enough(freed) && !self.shutdown.is_cancelled() {
            // Only the oldest ones that are needed.
            let mut wanted = *freed;
            let mut count = 0;
            while count < left.len().min(BATCH_CANDIDATES) && !is_enough(&wanted) {
                wanted += Freed::of(&left[count]);
                count += 1;
            }
            let visited = if self.is_dry_run {
                *freed = wanted;
                count
            } else {
                let deleted = self.data.delete(&left[..count], self.sync_delay()).await?;
                let visited = &left[..deleted.visited];
                let mut some = Freed::default();
                for candidate in visited {
                    some += Freed::of(candidate);
                }
                *freed += Freed { objects: deleted.objects, bytes: deleted.bytes, ..some };
                self.pause(deleted.held).await;
                deleted.visited
            };
            left = &left[visited..];
        }
        Ok(())
    }

    /// Returns the next objects that no message refers to.
    async fn page(&self, kind: Kind, before_ms: i64, after: Option<Position>) -> Result<Page, Fault> {
        let now_ms = self.data.now_ms().await?;
        // No message is older than the retention of its queue, so none can still produce a result of such an object.
        let orphaned_before_ms = now_ms.saturating_sub(millis(QueueAttributes::default().retention));
        let walk = Walk { kind, before_ms, orphaned_before_ms, after, limit: PAGE_OBJECTS };
        let names = self.data.names().clone();
        // In one snapshot: between two, a message could move from one queue to another and be in neither of them.
        self.data
            .read(move |snapshot| {
                let mut page = walk.read(snapshot, &names)?;
                let conditions = || page.candidates.iter().filter_map(|candidate| candidate.unless_named);
                if conditions().next().is_some() {
                    let any_request = conditions().any(|named| named.any_request);
                    let named = local::named_jobs(snapshot, &names, any_request)?;
                    page.candidates.retain(|candidate| is_free(candidate, &named));
                }
                Ok(page)
            })
            .await
    }

    fn sync_delay(&self) -> Duration {
        match self.pace {
            Pace::Urgent => Duration::ZERO,
            Pace::Relaxed => SYNC_DELAY,
        }
    }

    async fn pause(&self, held: Duration) {
        let pause = match self.pace {
            Pace::Urgent => held,
            Pace::Relaxed => (held * 3).max(SHORTEST_PAUSE),
        };
        let _ = self.shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

fn is_free(candidate: &Candidate, named: &HashSet<Uuid>) -> bool {
    candidate.unless_named.is_none_or(|condition| !named.contains(&condition.job))
}

impl Freed {
    fn of(candidate: &Candidate) -> Freed {
        let bytes = candidate.size_bytes;
        Freed { objects: 1, bytes, disk_bytes: bytes.next_multiple_of(4 << 10) }
    }
}
