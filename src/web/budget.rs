//! The memory that the requests of this process share.
//!
//! A reservation grows as bytes arrive, never by what a client announces. So several uploads can be half received when
//! the budget is full: the newest one that holds memory is then refused, which gives the older ones room to complete. The
//! oldest is never refused for the sake of another, so somebody always gets on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// No memory is left, or an older request needed what this one held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

#[derive(Clone)]
pub struct Budget(Arc<Shared>);

struct Shared {
    limit_bytes: u64,
    used: IntGauge,
    state: Mutex<State>,
    released: Notify,
}

#[derive(Default)]
struct State {
    used_bytes: u64,
    next_ticket: u64,
    /// Those that may still be refused, oldest first.
    growing: BTreeMap<u64, Growing>,
}

struct Growing {
    bytes: u64,
    refuse: CancellationToken,
}

/// A share of the [`Budget`], given back when it is dropped.
pub struct Reservation {
    budget: Budget,
    ticket: u64,
    bytes: u64,
    refused: CancellationToken,
}

impl Budget {
    /// `used` tells how much of it is taken.
    pub fn new(limit_bytes: u64, used: IntGauge) -> Budget {
        Budget(Arc::new(Shared { limit_bytes, used, state: Mutex::default(), released: Notify::new() }))
    }

    /// An empty reservation. Until [`Reservation::complete`] it may be refused in favour of an older one.
    pub fn begin(&self) -> Reservation {
        let refused = CancellationToken::new();
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.growing.insert(ticket, Growing { bytes: 0, refuse: refused.clone() });
        Reservation { budget: self.clone(), ticket, bytes: 0, refused }
    }

    /// A reservation of a fixed size; it is never refused later.
    pub fn try_reserve(&self, bytes: u64) -> Result<Reservation, Full> {
        let mut reservation = self.begin();
        reservation.complete();
        let mut state = self.lock();
        if state.used_bytes.saturating_add(bytes) > self.0.limit_bytes {
            return Err(Full);
        }
        state.used_bytes += bytes;
        self.0.used.add(bytes.cast_signed());
        reservation.bytes = bytes;
        drop(state);
        Ok(reservation)
    }

    /// Every change of the state is made whole under the lock, so a poisoned one still guards a whole state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What growing did.
enum Growth {
    Done,
    Refused,
    /// Newer reservations were refused; their memory comes back in a moment.
    Wait,
}

impl Reservation {
    /// Grows to `bytes` in all.
    ///
    /// # Errors
    /// [`Full`] where nobody newer holds memory that could be had, or an older one needs this memory.
    pub async fn grow_to(&mut self, bytes: u64) -> Result<(), Full> {
        let budget = self.budget.clone();
        loop {
            // Before the attempt, so that a release between the two is not missed.
            let released = budget.0.released.notified();
            match self.try_grow_to(bytes) {
                Growth::Done => return Ok(()),
                Growth::Refused => return Err(Full),
                Growth::Wait => {}
            }
            tokio::select! {
                () = released => {}
                () = self.refused.cancelled() => return Err(Full),
            }
        }
    }

    fn try_grow_to(&mut self, bytes: u64) -> Growth {
        let more = bytes.saturating_sub(self.bytes);
        let mut state = self.budget.lock();
        if self.refused.is_cancelled() {
            return Growth::Refused;
        }
        let missing = state.used_bytes.saturating_add(more).saturating_sub(self.budget.0.limit_bytes);
        if missing > 0 {
            return refuse_newer(&state.growing, self.ticket, missing);
        }
        state.used_bytes += more;
        self.budget.0.used.add(more.cast_signed());
        self.bytes += more;
        if let Some(growing) = state.growing.get_mut(&self.ticket) {
            growing.bytes = self.bytes;
        }
        Growth::Done
    }

    /// From now on it is not refused any more.
    pub fn complete(&mut self) {
        self.budget.lock().growing.remove(&self.ticket);
    }

    /// Returns once an older reservation needs this memory; drop it then.
    pub async fn refused(&self) {
        self.refused.cancelled().await;
    }
}

/// Refuses the newest holders of memory until `missing` bytes will come back.
fn refuse_newer(growing: &BTreeMap<u64, Growing>, than: u64, missing: u64) -> Growth {
    let mut coming = 0;
    let mut chosen = Vec::new();
    for (_, newer) in growing.range(than + 1..).rev().filter(|(_, newer)| newer.bytes > 0) {
        coming += newer.bytes;
        chosen.push(newer);
        if coming >= missing {
            for newer in chosen {
                newer.refuse.cancel();
            }
            return Growth::Wait;
        }
    }
    Growth::Refused
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.used_bytes -= self.bytes;
        self.budget.0.used.sub(self.bytes.cast_signed());
        state.growing.remove(&self.ticket);
        drop(state);
        self.budget.0.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(limit_bytes: u64) -> Budget {
        Budget::new(limit_bytes, IntGauge::new("test", "test").unwrap())
    }

    #[tokio::test]
    async fn the_budget_is_shared_and_given_back() {
        let budget = budget(10);
        let mut first = budget.begin();
        first.grow_to(8).await.unwrap();
        first.grow_to(4).await.unwrap();
        let mut second = budget.begin();
        assert_eq!(second.grow_to(3).await, Err(Full));
        assert!(budget.try_reserve(3).is_err());
        let small = budget.try_reserve(2).ok().unwrap();
        drop(first);
        second.grow_to(8).await.unwrap();
        drop(small);
        assert_eq!(second.grow_to(11).await, Err(Full), "more than there is");
        second.grow_to(10).await.unwrap();
    }

    #[tokio::test]
    async fn of_two_half_received_the_newest_gives_way() {
        let budget = budget(10);
        let (mut old, mut new, mut empty) = (budget.begin(), budget.begin(), budget.begin());
        old.grow_to(5).await.unwrap();
        new.grow_to(5).await.unwrap();
        assert_eq!(empty.grow_to(1).await, Err(Full));
        assert_eq!(new.grow_to(6).await, Err(Full), "nobody newer holds memory");
        let giving_way = async move {
            new.refused().await;
            assert_eq!(new.grow_to(1).await, Err(Full));
        };
        let (grown, ()) = tokio::join!(old.grow_to(10), giving_way);
        assert_eq!(grown, Ok(()));
        assert!(!empty.refused.is_cancelled(), "it holds nothing that could be had");
    }

    #[tokio::test]
    async fn what_is_complete_is_not_refused() {
        let budget = budget(10);
        let (mut old, mut new) = (budget.begin(), budget.begin());
        old.grow_to(5).await.unwrap();
        new.grow_to(5).await.unwrap();
        new.complete();
        assert_eq!(old.grow_to(6).await, Err(Full));
        assert!(!new.refused.is_cancelled());
    }
}
