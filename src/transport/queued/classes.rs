//! The two classes of service: each has a request queue, and a delivery belongs to the queue that it came from.
//!
//! Bulk requests are taken while there is no interactive one. So that interactive load which never ends cannot stop them
//! for ever, one receive of bulk requests is allowed after [`INTERACTIVE_PER_BULK`] interactive requests.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::protocol::ServiceClass;
use crate::transport::message::{Delivery, Receipt};

/// Interactive requests that a process receives before one receive of bulk requests may come between them.
pub(crate) const INTERACTIVE_PER_BULK: u32 = 32;
/// Begins the receipts of bulk requests. No receipt of SQS has a colon.
const BULK: &str = "bulk:";

/// Receipts of the two request queues.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ByClass {
    pub interactive: Vec<Receipt>,
    pub bulk: Vec<Receipt>,
}

impl ByClass {
    /// Separates receipts that callers got, and turns them into those of the queues.
    pub(crate) fn of<'a>(receipts: impl IntoIterator<Item = &'a Receipt>) -> ByClass {
        let mut by_class = ByClass::default();
        for receipt in receipts {
            match split(receipt) {
                (ServiceClass::Interactive, receipt) => by_class.interactive.push(receipt),
                (ServiceClass::Bulk, receipt) => by_class.bulk.push(receipt),
            }
        }
        by_class
    }

    /// Each class with its receipts, without a class that has none.
    pub(crate) fn each(self) -> impl Iterator<Item = (ServiceClass, Vec<Receipt>)> {
        let both = [(ServiceClass::Interactive, self.interactive), (ServiceClass::Bulk, self.bulk)];
        both.into_iter().filter(|(_, receipts)| !receipts.is_empty())
    }
}

/// The class of a delivery, and its receipt in the queue of the class.
pub(crate) fn split(receipt: &Receipt) -> (ServiceClass, Receipt) {
    match receipt.0.strip_prefix(BULK) {
        Some(own) => (ServiceClass::Bulk, Receipt(own.to_owned())),
        None => (ServiceClass::Interactive, receipt.clone()),
    }
}

/// Marks the receipts of deliveries of the bulk queue.
pub(crate) fn marked(mut deliveries: Vec<Delivery>) -> Vec<Delivery> {
    for delivery in &mut deliveries {
        delivery.receipt.0.insert_str(0, BULK);
    }
    deliveries
}

/// Counts the interactive requests that this process received since the last bulk ones.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    interactive: AtomicU32,
}

impl Turns {
    /// Records a receive.
    pub(crate) fn received(&self, class: ServiceClass, requests: usize) {
        match class {
            ServiceClass::Interactive => {
                let requests = u32::try_from(requests).unwrap_or(u32::MAX);
                // Bounded, since the number only has to reach the limit.
                let add = |before: u32| Some(before.saturating_add(requests));
                let _ = self.interactive.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
            }
            ServiceClass::Bulk if requests > 0 => self.interactive.store(0, Ordering::Relaxed),
            ServiceClass::Bulk => {}
        }
    }

    /// Returns true if bulk requests may be received although interactive ones wait.
    pub(crate) fn is_turn_of_bulk(&self) -> bool {
        self.interactive.load(Ordering::Relaxed) >= INTERACTIVE_PER_BULK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_know_their_queue() {
        let receipt = |text: &str| Receipt(text.to_owned());
        let by_class = ByClass::of(&[receipt("1-1-a"), receipt("bulk:1-1-b"), receipt("2-1-c")]);
        assert_eq!(by_class.interactive, [receipt("1-1-a"), receipt("2-1-c")]);
        assert_eq!(by_class.bulk, [receipt("1-1-b")]);
        assert_eq!(ByClass::of(&[]).each().count(), 0);
    }

    #[test]
    fn bulk_has_a_turn_after_enough_interactive_requests() {
        let turns = Turns::default();
        turns.received(ServiceClass::Interactive, INTERACTIVE_PER_BULK as usize - 1);
        assert!(!turns.is_turn_of_bulk());
        turns.received(ServiceClass::Interactive, 1);
        assert!(turns.is_turn_of_bulk());
        turns.received(ServiceClass::Bulk, 0);
        assert!(turns.is_turn_of_bulk(), "a receive that found nothing is no turn");
        turns.received(ServiceClass::Bulk, 1);
        assert!(!turns.is_turn_of_bulk());
    }
}
