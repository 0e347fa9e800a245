//! Limits the number of connections, in total and per client address, and closes idle ones to admit new ones.
//!
//! An idle connection (one that waits for its first request, or for the next one) costs its client nothing, so it must
//! not cost other clients anything. While most permits are taken, connections that have been idle for
//! [`MAX_IDLE_UNDER_PRESSURE`] are closed. When all permits are taken, a new connection replaces the one that has been
//! idle longest. A few spare permits beyond the limit serve health checks, so that a server that is full of requests
//! still answers them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::idle::IdleTracker;
use crate::config::Cidr;
use crate::web::metrics::METRICS;

/// Permits beyond the limit, for health checks only.
const SPARE_CONNECTIONS: usize = 32;
/// Permits beyond the limit, for telling clients that they have too many connections.
const REFUSED_CONNECTIONS: usize = 16;
/// How long a connection may be idle while most permits are taken.
const MAX_IDLE_UNDER_PRESSURE: Duration = Duration::from_secs(2);
/// Only a connection that has been idle for this long is replaced by a new one: clients send their first request at
/// once.
const MIN_IDLE_BEFORE_REPLACED: Duration = Duration::from_millis(100);
/// An idle connection releases its permit within this time after it was asked to close.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// The permits of all connections of this process.
pub(crate) struct Connections {
    permits: Arc<Semaphore>,
    spare: Arc<Semaphore>,
    refused: Arc<Semaphore>,
    limit: usize,
    max_per_address: usize,
    trusted_proxies: Vec<Cidr>,
    open: Mutex<HashMap<u64, Arc<IdleTracker>>>,
    next_id: AtomicU64,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    epoch: Instant,
}

/// The requests that a connection may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Regular,
    /// Beyond the limit: only health checks are answered, unless a regular permit becomes free.
    Spare,
    /// The client has too many connections: the only answer is an error that says so.
    Refused,
}

/// The permit of one connection, released when it is dropped.
pub(super) struct ConnectionPermit {
    pub(super) idle: Arc<IdleTracker>,
    pub(super) connections: Arc<Connections>,
    id: u64,
    permit: Mutex<(Slot, OwnedSemaphorePermit)>,
    _address: Option<AddressPermit>,
}

/// One of the connections or requests that a client address may have. Released when it is dropped.
pub(super) struct AddressPermit {
    address: IpAddr,
    connections: Arc<Connections>,
}

/// The client has as many connections or requests as one address may have.
#[derive(Debug)]
pub(super) struct AddressLimitReached;

/// The permit of one of several requests that a connection has at the same time. It counts as a connection of its own.
pub(super) struct RequestPermit {
    _permit: OwnedSemaphorePermit,
    _address: Option<AddressPermit>,
}

/// Why there is no permit for a further request of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestRefusal {
    /// All permits are taken.
    Full,
    /// The client has as many requests as it may have.
    Address,
}

impl Connections {
    /// `max_per_address` applies neither to this machine nor to `trusted_proxies`.
    pub(crate) fn new(max_connections: usize, max_per_address: usize, trusted_proxies: Vec<Cidr>) -> Connections {
        let max_connections = max_connections.min(Semaphore::MAX_PERMITS);
        Connections {
            permits: Arc::new(Semaphore::new(max_connections)),
            spare: Arc::new(Semaphore::new(SPARE_CONNECTIONS)),
            refused: Arc::new(Semaphore::new(REFUSED_CONNECTIONS)),
            limit: max_connections,
            max_per_address,
            trusted_proxies,
            open: Mutex::default(),
            next_id: AtomicU64::new(0),
            by_address: Mutex::default(),
            epoch: Instant::now(),
        }
    }

    /// Acquires a permit for a new connection. Waits while there is none and no connection can be closed for it.
    ///
    /// Returns `None` when the client has too many connections and many of those are being refused already.
    pub(super) async fn admit(self: &Arc<Self>, client: IpAddr) -> Option<ConnectionPermit> {
        let Ok(address) = self.acquire_address(client) else {
            METRICS.closed.with_label_values(&["too_many_of_one_address"]).inc();
            let permit = Arc::clone(&self.refused).try_acquire_owned().ok()?;
            return Some(self.connection_permit(Slot::Refused, permit, None));
        };
        let (slot, permit) = self.acquire().await;
        Some(self.connection_permit(slot, permit, address))
    }

    /// Acquires a permit for a further request of a connection, without waiting.
    pub(super) fn acquire_request(self: &Arc<Self>, client: IpAddr) -> Result<RequestPermit, RequestRefusal> {
        let address = self.acquire_address(client).map_err(|AddressLimitReached| RequestRefusal::Address)?;
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| RequestRefusal::Full)?;
        Ok(RequestPermit { _permit: permit, _address: address })
    }

    /// Counts a connection, or a request that a trusted proxy forwards, for its client. Returns `Ok(None)` for a client
    /// that is not counted.
    ///
    /// # Errors
    /// When the client has as many as it may have.
    pub(super) fn acquire_address(
        self: &Arc<Self>,
        client: IpAddr,
    ) -> Result<Option<AddressPermit>, AddressLimitReached> {
        let client = client.to_canonical();
        if client.is_loopback() || self.is_trusted_proxy(client) {
            return Ok(None);
        }
        let address = counted_address(client);
        let mut by_address = lock(&self.by_address);
        let count = by_address.entry(address).or_insert(0);
        if *count >= self.max_per_address {
            return Err(AddressLimitReached);
        }
        *count += 1;
        Ok(Some(AddressPermit { address, connections: Arc::clone(self) }))
    }

    pub(super) fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted_proxies.iter().any(|proxy| proxy.contains(address))
    }

    pub(super) fn max_per_address(&self) -> usize {
        self.max_per_address
    }

    /// Returns whether most permits are taken.
    pub(super) fn is_under_pressure(&self) -> bool {
        self.permits.available_permits() <= self.limit / 4
    }

    /// Closes the connections that have been idle for too long under pressure.
    pub(super) fn close_idle(&self) {
        let now = Instant::now();
        for connection in lock(&self.open).values() {
            if connection.idle_time(now).is_some_and(|time| time >= MAX_IDLE_UNDER_PRESSURE) {
                connection.request_close();
            }
        }
    }

    /// Closes the connection that has been idle longest, among those with a spare permit or those without. Returns
    /// `false` when none has been idle for long enough.
    pub(super) fn close_longest_idle(&self, is_spare: bool) -> bool {
        let now = Instant::now();
        let open = lock(&self.open);
        let candidates = open.values().filter(|connection| connection.is_spare() == is_spare);
        let idle = candidates.filter_map(|connection| Some((connection.idle_time(now)?, connection)));
        let longest = idle.max_by_key(|(time, _)| *time);
        longest.is_some_and(|(time, connection)| time >= MIN_IDLE_BEFORE_REPLACED && connection.request_close())
    }

    /// Acquires a regular permit, else a spare one. Closes idle connections for it as soon as that is allowed.
    async fn acquire(&self) -> (Slot, OwnedSemaphorePermit) {
        loop {
            if let Some(permit) = self.acquire_regular().await {
                return (Slot::Regular, permit);
            }
            if let Ok(permit) = Arc::clone(&self.spare).try_acquire_owned() {
                return (Slot::Spare, permit);
            }
            self.close_longest_idle(true);
            let spare = tokio::time::timeout(CLOSE_TIMEOUT, Arc::clone(&self.spare).acquire_owned());
            if let Ok(Ok(permit)) = spare.await {
                return (Slot::Spare, permit);
            }
            self.close_idle();
        }
    }

    async fn acquire_regular(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Some(permit);
        }
        if !self.close_longest_idle(false) {
            return None;
        }
        tokio::time::timeout(CLOSE_TIMEOUT, Arc::clone(&self.permits).acquire_owned()).await.ok()?.ok()
    }

    fn connection_permit(
        self: &Arc<Self>,
        slot: Slot,
        permit: OwnedSemaphorePermit,
        address: Option<AddressPermit>,
    ) -> ConnectionPermit {
        let idle = Arc::new(IdleTracker::new(self.epoch, slot != Slot::Regular));
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        lock(&self.open).insert(id, Arc::clone(&idle));
        ConnectionPermit {
            idle,
            connections: Arc::clone(self),
            id,
            permit: Mutex::new((slot, permit)),
            _address: address,
        }
    }
}

impl ConnectionPermit {
    pub(super) fn slot(&self) -> Slot {
        lock(&self.permit).0
    }

    /// The slot of a connection that has a request. A spare slot becomes a regular one when a regular permit is free or
    /// can be freed.
    pub(super) async fn slot_for_request(&self) -> Slot {
        let slot = self.slot();
        if slot == Slot::Spare
            && let Some(permit) = self.connections.acquire_regular().await
        {
            *lock(&self.permit) = (Slot::Regular, permit);
            self.idle.became_regular();
            return Slot::Regular;
        }
        slot
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        lock(&self.connections.open).remove(&self.id);
    }
}

impl Drop for AddressPermit {
    fn drop(&mut self) {
        let mut by_address = lock(&self.connections.by_address);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// The address that a client is counted by. A client of IPv6 has at least a whole /64 network.
pub(super) fn counted_address(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Every change is one call that cannot fail half-way, so a poisoned lock still guards a consistent map.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn admit(connections: &Arc<Connections>, client: &str) -> ConnectionPermit {
        connections.admit(client.parse().unwrap()).await.expect("a permit")
    }

    #[tokio::test]
    async fn each_address_is_limited_except_loopback_and_trusted_proxies() {
        let proxies = vec!["10.0.0.0/8".parse().unwrap()];
        let connections = Arc::new(Connections::new(100, 2, proxies));
        let _one = admit(&connections, "192.0.2.1").await;
        let two = admit(&connections, "::ffff:192.0.2.1").await;
        assert_eq!(admit(&connections, "192.0.2.1").await.slot(), Slot::Refused);
        assert_eq!(admit(&connections, "192.0.2.2").await.slot(), Slot::Regular);
        drop(two);
        assert_eq!(admit(&connections, "192.0.2.1").await.slot(), Slot::Regular);
        let _v6 = [admit(&connections, "2001:db8::1").await, admit(&connections, "2001:db8::2").await];
        assert_eq!(admit(&connections, "2001:db8::3").await.slot(), Slot::Refused);
        assert_eq!(admit(&connections, "2001:db8:0:1::3").await.slot(), Slot::Regular);
        let mut many = Vec::new();
        for client in ["127.0.0.1", "::1", "10.1.2.3", "127.0.0.1", "10.1.2.3", "127.0.0.1", "10.1.2.3"] {
            many.push(admit(&connections, client).await);
        }
        assert!(many.iter().all(|permit| permit.slot() == Slot::Regular));
    }

    #[tokio::test]
    async fn new_connection_replaces_the_longest_idle_one_and_never_a_busy_one() {
        let connections = Arc::new(Connections::new(2, 100, Vec::new()));
        let client = "127.0.0.1";
        let busy = admit(&connections, client).await;
        assert!(busy.idle.begin_request());
        let waiting = admit(&connections, client).await;
        assert!(connections.is_under_pressure());
        std::thread::sleep(MIN_IDLE_BEFORE_REPLACED);
        let tracker = Arc::clone(&waiting.idle);
        let closing = async {
            tracker.close_requested().await;
            drop(waiting);
        };
        let (new, ()) = tokio::join!(admit(&connections, client), closing);
        assert_eq!(new.slot(), Slot::Regular);
        assert!(!tracker.begin_request(), "it was asked to close");
        assert!(new.idle.begin_request());
        let spare = admit(&connections, client).await;
        assert_eq!(spare.slot_for_request().await, Slot::Spare, "both are busy");
        drop(new);
        assert_eq!(spare.slot_for_request().await, Slot::Regular);
        busy.idle.end_request();
        assert!(busy.idle.begin_request(), "it goes on");
    }
}
