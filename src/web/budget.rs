//! A limit on the memory that the requests of this process share.
//!
//! A reservation grows as bytes arrive, not by the length that a client announces. Several uploads can therefore be
//! incomplete when the budget is full. The newest one that holds memory is then refused, so that the older ones can
//! complete. The oldest is never refused in favour of another, so at least one always makes progress.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// No memory is left, or an older request needed the memory of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// A shared amount of memory.
#[derive(Clone)]
pub(super) struct Budget(Arc<Shared>);

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
    /// The reservations that may still be refused, oldest first.
    growing: BTreeMap<u64, Growing>,
}

struct Growing {
    bytes: u64,
    refuse: CancellationToken,
}

/// A share of a [`Budget`], released when it is dropped.
pub(super) struct Reservation {
    budget: Budget,
    ticket: u64,
    bytes: u64,
    refused: CancellationToken,
}

impl Budget {
    /// The gauge `used` shows how much of the budget is taken.
    pub(super) fn new(limit_bytes: u64, used: IntGauge) -> Budget {
        Budget(Arc::new(Shared { limit_bytes, used, state: Mutex::default(), released: Notify::new() }))
    }

    /// Begins an empty reservation. Until [`Reservation::complete`] it may be refused in favour of an older one.
    pub(super) fn begin(&self) -> Reservation {
        let refused = CancellationToken::new();
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.growing.insert(ticket, Growing { bytes: 0, refuse: refused.clone() });
        Reservation { budget: self.clone(), ticket, bytes: 0, refused }
    }

    /// Makes a reservation of a fixed size, which is not refused later.
    ///
    /// # Errors
    /// When that much is not available.
    pub(super) fn try_reserve(&self, bytes: u64) -> Result<Reservation, Full> {
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

    /// Every change of the state is completed under the lock, so a poisoned one still guards a consistent state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The outcome of one try to grow.
enum Growth {
    Done,
    Refused,
    /// Newer reservations were refused and will release their memory in a moment.
    Wait,
}

impl Reservation {
    /// Grows to `bytes` in total. Waits while newer reservations release their memory.
    ///
    /// # Errors
    /// When newer reservations hold too little memory, or when an older one needs the memory of this one.
    pub(super) async fn grow_to(&mut self, bytes: u64) -> Result<(), Full> {
        let budget = self.budget.clone();
        loop {
            // Registered before the try, so that a release between the two is not missed.
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

    /// Returns how much is reserved.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Moves a part of this reservation, which is complete, into one of its own.
    pub(super) fn split_off(&mut self, bytes: u64) -> Reservation {
        let mut part = self.budget.begin();
        part.complete();
        part.bytes = bytes.min(self.bytes);
        self.bytes -= part.bytes;
        part
    }

    /// Keeps this reservation from being refused from now on.
    pub(super) fn complete(&mut self) {
        self.budget.lock().growing.remove(&self.ticket);
    }

    /// Completes once an older reservation needs this memory. Drop this one then.
    pub(super) async fn refused(&self) {
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
    async fn released_memory_can_be_reserved_again() {
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
        assert_eq!(second.grow_to(11).await, Err(Full), "more than the limit");
        second.grow_to(10).await.unwrap();
    }

    #[tokio::test]
    async fn parts_of_a_reservation_are_released_one_by_one() {
        let budget = budget(10);
        let mut whole = budget.begin();
        whole.grow_to(9).await.unwrap();
        whole.complete();
        let (first, second) = (whole.split_off(4), whole.split_off(100));
        assert_eq!((first.bytes(), second.bytes(), whole.bytes()), (4, 5, 0));
        drop(whole);
        assert!(budget.try_reserve(2).is_err());
        drop(first);
        assert!(budget.try_reserve(5).is_ok());
    }

    #[tokio::test]
    async fn newest_incomplete_reservation_is_refused_for_an_older_one() {
        let budget = budget(10);
        let (mut old, mut new, mut empty) = (budget.begin(), budget.begin(), budget.begin());
        old.grow_to(5).await.unwrap();
        new.grow_to(5).await.unwrap();
        assert_eq!(empty.grow_to(1).await, Err(Full));
        assert_eq!(new.grow_to(6).await, Err(Full), "no newer one holds memory");
        let releasing = async move {
            new.refused().await;
            assert_eq!(new.grow_to(1).await, Err(Full));
        };
        let (grown, ()) = tokio::join!(old.grow_to(10), releasing);
        assert_eq!(grown, Ok(()));
        assert!(!empty.refused.is_cancelled(), "it holds no memory");
    }

    #[tokio::test]
    async fn complete_reservation_is_not_refused() {
        let budget = budget(10);
        let (mut old, mut new) = (budget.begin(), budget.begin());
        old.grow_to(5).await.unwrap();
        new.grow_to(5).await.unwrap();
        new.complete();
        assert_eq!(old.grow_to(6).await, Err(Full));
        assert!(!new.refused.is_cancelled());
    }
}
