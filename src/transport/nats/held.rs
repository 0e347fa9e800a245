//! The deliveries that this process holds. JetStream takes an acknowledgement from any delivery of a message, also from one
//! whose time is over and whose message another process has by now. So a receipt is used only while its time lasts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::transport::message::Receipt;

/// Receipts whose time is over are removed when there are twice as many as after the last removal, and at least this many.
const REMOVE_FROM: usize = 256;

/// The receipts of this process, each with the time at which its message becomes visible again.
#[derive(Default)]
pub(super) struct Held(Mutex<Receipts>);

#[derive(Default)]
struct Receipts {
    until: HashMap<String, Instant>,
    remove_at: usize,
}

impl Held {
    /// Records a delivery, or changes until when it is held.
    pub(super) fn hold(&self, receipt: &Receipt, timeout: Duration) {
        let now = Instant::now();
        let mut receipts = self.lock();
        receipts.until.insert(receipt.0.clone(), now + timeout);
        if receipts.until.len() > receipts.remove_at.max(REMOVE_FROM) {
            receipts.until.retain(|_, until| *until > now);
            receipts.remove_at = receipts.until.len() * 2;
        }
    }

    /// Returns true if the delivery is still held.
    pub(super) fn is_held(&self, receipt: &Receipt) -> bool {
        self.lock().until.get(&receipt.0).is_some_and(|until| *until > Instant::now())
    }

    /// Forgets a delivery that was acknowledged or released.
    pub(super) fn forget(&self, receipt: &Receipt) {
        self.lock().until.remove(&receipt.0);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Receipts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_are_held_until_their_time_is_over() {
        let held = Held::default();
        let receipt = |number: usize| Receipt(number.to_string());
        held.hold(&receipt(1), Duration::from_secs(300));
        assert!(held.is_held(&receipt(1)) && !held.is_held(&receipt(2)));
        held.hold(&receipt(1), Duration::ZERO);
        assert!(!held.is_held(&receipt(1)));
        for number in 0..10 * REMOVE_FROM {
            held.hold(&receipt(number), Duration::ZERO);
        }
        assert!(held.lock().until.len() <= REMOVE_FROM + 1);
    }
}
