//! Deletes objects of finished jobs, oldest first, in short transactions with pauses between them.

use std::collections::HashSet;
use std::ops::AddAssign;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::sqlite::{Fault, millis};
use crate::transport::local::{self, Candidate, Kind, LocalData, Page, Position, Walk};
use crate::transport::queued::queue::QueueAttributes;

/// Objects that are looked at in one snapshot.
const LOOKED_AT_ONCE: usize = 1_000;
/// Candidates that are handed to one transaction, which takes as many as its time allows.
const HANDED_AT_ONCE: usize = 256;
/// Shortest pause after a transaction whose space nobody waits for.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// How long deletions whose space nobody waits for wait for a sync that others share.
const SHARED_SYNC: Duration = Duration::from_millis(10);

pub struct Deletion<'a> {
    pub data: &'a LocalData,
    pub pace: Pace,
    pub shutdown: &'a CancellationToken,
    /// Only counts what would be deleted.
    pub is_dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Somebody waits for the space: half of the time is left to others.
    Urgent,
    /// Most of the time is left to others.
    Relaxed,
}

/// What was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    pub objects: u64,
    /// As they were stored.
    pub bytes: u64,
    /// The same in blocks of the disk.
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
    /// Deletes objects of a kind that were written before then, until it is enough, there are no more, or the process is
    /// asked to stop.
    ///
    /// # Errors
    /// Those of the file; what was deleted stays deleted.
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
            // No more than are needed: those are the oldest.
            let mut wanted = *freed;
            let mut count = 0;
            while count < left.len().min(HANDED_AT_ONCE) && !is_enough(&wanted) {
                wanted += Freed::of(&left[count]);
                count += 1;
            }
            let visited = if self.is_dry_run {
                *freed = wanted;
                count
            } else {
                let deleted = self.data.delete(&left[..count], self.shared_sync()).await?;
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

    /// The objects of the next part that no message keeps.
    async fn page(&self, kind: Kind, before_ms: i64, after: Option<Position>) -> Result<Page, Fault> {
        let now_ms = self.data.now_ms().await?;
        // A message that would still bring a result is gone by then.
        let orphaned_before_ms = now_ms.saturating_sub(millis(QueueAttributes::default().retention));
        let walk = Walk { kind, before_ms, orphaned_before_ms, after, limit: LOOKED_AT_ONCE };
        let names = self.data.names().clone();
        // One snapshot: between two, a message could move from one queue to another and be seen in neither.
        self.data
            .read(move |snapshot| {
                let mut page = walk.read(snapshot, &names)?;
                let conditions = || page.candidates.iter().filter_map(|candidate| candidate.unless_named);
                if conditions().next().is_some() {
                    let any_request = conditions().any(|named| named.any_request);
                    let letters = names.dead_letter_queue();
                    let named = local::named_jobs(snapshot, &names.request_queue, &letters, any_request)?;
                    page.candidates.retain(|candidate| is_free(candidate, &named));
                }
                Ok(page)
            })
            .await
    }

    fn shared_sync(&self) -> Duration {
        match self.pace {
            Pace::Urgent => Duration::ZERO,
            Pace::Relaxed => SHARED_SYNC,
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
