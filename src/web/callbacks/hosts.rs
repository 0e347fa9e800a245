//! A limit on the calls in flight to one host, so that a slow receiver does not delay the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Calls in flight to one host.
const MAX_CALLS: usize = 8;

/// The hosts that are being called.
#[derive(Clone, Default)]
pub(super) struct BusyHosts(Arc<Mutex<HashMap<String, usize>>>);

/// A call in flight, until it is dropped.
pub(super) struct BusyHost {
    hosts: BusyHosts,
    host: String,
}

impl BusyHosts {
    /// Begins a call. `None` if the host has enough of them.
    pub(super) fn begin(&self, host: &str) -> Option<BusyHost> {
        let mut calls = self.lock();
        let count = calls.entry(host.to_owned()).or_default();
        if *count >= MAX_CALLS {
            return None;
        }
        *count += 1;
        Some(BusyHost { hosts: self.clone(), host: host.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BusyHost {
    fn drop(&mut self) {
        let mut calls = self.hosts.lock();
        if let Some(count) = calls.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                calls.remove(&self.host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_has_a_bounded_number_of_calls() {
        let hosts = BusyHosts::default();
        let mut calls: Vec<_> =
            (0..MAX_CALLS).map(|_| hosts.begin("slow.example").expect("fewer calls than the limit")).collect();
        assert!(hosts.begin("slow.example").is_none());
        assert!(hosts.begin("other.example").is_some());
        calls.pop();
        assert!(hosts.begin("slow.example").is_some());
        drop(calls);
        assert!(hosts.lock().is_empty());
    }
}
