//! The connections of this process: how many there may be, whose they are, and which of them wait for a request.
//!
//! A connection that waits (for its first request, or for the next one) costs its client nothing, so it must cost others
//! nothing. Where most places are taken, connections that have waited for [`MAX_WAIT_UNDER_PRESSURE`] are closed; where
//! all are taken, a new connection replaces the one that has waited longest. A few places beyond the limit are kept for
//! health checks, so that a service that is full of requests still says so.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::metrics::METRICS;
use crate::config::Cidr;

/// Beyond the limit, for health checks alone.
const EXTRA_CONNECTIONS: usize = 32;
/// Beyond the limit, for telling clients that they have too many connections.
const REFUSED_CONNECTIONS: usize = 16;
/// How long a connection may wait for a request where most places are taken.
const MAX_WAIT_UNDER_PRESSURE: Duration = Duration::from_secs(2);
/// A connection that is replaced by a new one has waited at least so long: clients send their first request at once.
const MIN_WAIT_BEFORE_REPLACED: Duration = Duration::from_millis(100);
/// A connection that is told to close gives its place back within this time.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

pub struct Connections {
    permits: Arc<Semaphore>,
    extra: Arc<Semaphore>,
    refused: Arc<Semaphore>,
    max_usual: usize,
    max_per_address: usize,
    trusted_proxies: Vec<Cidr>,
    open: Mutex<HashMap<u64, Arc<Activity>>>,
    next_id: AtomicU64,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    started: Instant,
}

/// What a connection may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Usual,
    /// Beyond the limit: only health checks, unless a usual place becomes free.
    Extra,
    /// Its client has too many; it is only told so.
    Refused,
}

/// A place that is taken, given back when it is dropped.
pub struct Admission {
    pub activity: Arc<Activity>,
    pub connections: Arc<Connections>,
    id: u64,
    permit: Mutex<(Place, OwnedSemaphorePermit)>,
    _address: Option<AddressPlace>,
}

/// Whether a connection waits for a request, and since when.
pub struct Activity {
    /// Milliseconds since the start of [`Connections`], or one of the two below.
    waiting_since: AtomicU64,
    is_write_blocked: AtomicBool,
    /// What is written is the answer of a handler, until the last byte of it is.
    writes_answer: AtomicBool,
    is_extra: AtomicBool,
    close: CancellationToken,
    started: Instant,
}

/// A request is being answered.
const BUSY: u64 = u64::MAX;
/// It was told to close; no request is begun any more.
const CLOSING: u64 = u64::MAX - 1;

/// One of the places of an address, given back when it is dropped.
pub struct AddressPlace {
    address: IpAddr,
    connections: Arc<Connections>,
}

impl Connections {
    pub fn new(max_connections: usize, max_per_address: usize, trusted_proxies: Vec<Cidr>) -> Connections {
        let max_connections = max_connections.min(Semaphore::MAX_PERMITS);
        Connections {
            permits: Arc::new(Semaphore::new(max_connections)),
            extra: Arc::new(Semaphore::new(EXTRA_CONNECTIONS)),
            refused: Arc::new(Semaphore::new(REFUSED_CONNECTIONS)),
            max_usual: max_connections,
            max_per_address,
            trusted_proxies,
            open: Mutex::default(),
            next_id: AtomicU64::new(0),
            by_address: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// Finds a place for a new connection; waits where there is none and nothing can be closed for it. None where its
    /// client has too many connections, and many of those are being refused.
    pub async fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Admission> {
        let Ok(address) = self.enter(client) else {
            METRICS.closed.with_label_values(&["too_many_of_one_address"]).inc();
            let permit = Arc::clone(&self.refused).try_acquire_owned().ok()?;
            return Some(self.admission(Place::Refused, permit, None));
        };
        let (place, permit) = self.permit().await;
        Some(self.admission(place, permit, address))
    }

    /// A usual place, else an extra one. Connections that wait are closed for it, as soon as they may be.
    async fn permit(&self) -> (Place, OwnedSemaphorePermit) {
        loop {
            if let Some(permit) = self.usual_permit().await {
                return (Place::Usual, permit);
            }
            if let Ok(permit) = Arc::clone(&self.extra).try_acquire_owned() {
                return (Place::Extra, permit);
            }
            self.replace_one(true);
            let extra = tokio::time::timeout(CLOSE_TIMEOUT, Arc::clone(&self.extra).acquire_owned());
            if let Ok(Ok(permit)) = extra.await {
                return (Place::Extra, permit);
            }
            self.close_waiting();
        }
    }

    fn admission(
        self: &Arc<Self>,
        place: Place,
        permit: OwnedSemaphorePermit,
        address: Option<AddressPlace>,
    ) -> Admission {
        let activity = Arc::new(Activity {
            waiting_since: AtomicU64::new(millis(self.started)),
            is_write_blocked: AtomicBool::new(false),
            writes_answer: AtomicBool::new(false),
            is_extra: AtomicBool::new(place != Place::Usual),
            close: CancellationToken::new(),
            started: self.started,
        });
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        lock(&self.open).insert(id, Arc::clone(&activity));
        Admission {
            activity,
            connections: Arc::clone(self),
            id,
            permit: Mutex::new((place, permit)),
            _address: address,
        }
    }

    async fn usual_permit(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Some(permit);
        }
        if !self.replace_one(false) {
            return None;
        }
        tokio::time::timeout(CLOSE_TIMEOUT, Arc::clone(&self.permits).acquire_owned()).await.ok()?.ok()
    }

    /// Counts a connection, or a request that a trusted proxy passes on, for its client; None where that is not counted.
    ///
    /// # Errors
    /// Where the client has as many as it may.
    pub fn enter(self: &Arc<Self>, client: IpAddr) -> Result<Option<AddressPlace>, ()> {
        let client = client.to_canonical();
        if client.is_loopback() || self.is_trusted_proxy(client) {
            return Ok(None);
        }
        let address = counted_address(client);
        let mut by_address = lock(&self.by_address);
        let count = by_address.entry(address).or_insert(0);
        if *count >= self.max_per_address {
            return Err(());
        }
        *count += 1;
        Ok(Some(AddressPlace { address, connections: Arc::clone(self) }))
    }

    pub fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted_proxies.iter().any(|proxy| proxy.contains(address))
    }

    pub fn max_per_address(&self) -> usize {
        self.max_per_address
    }

    /// Whether most places are taken.
    pub fn is_under_pressure(&self) -> bool {
        self.permits.available_permits() <= self.max_usual / 4
    }

    /// Closes what has waited too long for these times.
    pub fn close_waiting(&self) {
        let now = millis(self.started);
        let limit = MAX_WAIT_UNDER_PRESSURE.as_millis() as u64;
        for activity in lock(&self.open).values() {
            if activity.waited_since(now).is_some_and(|waited| waited >= limit) {
                activity.tell_to_close();
            }
        }
    }

    /// Closes the connection that has waited longest. False where none has waited for long enough.
    pub fn replace_one(&self, of_extra: bool) -> bool {
        let now = millis(self.started);
        let open = lock(&self.open);
        let candidates = open.values().filter(|activity| activity.is_extra.load(Ordering::Relaxed) == of_extra);
        let waiting = candidates.filter_map(|activity| Some((activity.waited_since(now)?, activity)));
        let longest = waiting.max_by_key(|(waited, _)| *waited);
        longest.is_some_and(|(waited, activity)| {
            waited >= MIN_WAIT_BEFORE_REPLACED.as_millis() as u64 && activity.tell_to_close()
        })
    }
}

/// Milliseconds since `started`.
fn millis(started: Instant) -> u64 {
    started.elapsed().as_millis() as u64
}

impl Activity {
    /// False where the connection was told to close: it closes without an answer.
    pub fn begin_request(&self) -> bool {
        self.writes_answer.store(true, Ordering::Release);
        self.waiting_since
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |since| (since != CLOSING).then_some(BUSY))
            .is_ok()
    }

    /// Everything that was to be written is.
    pub fn flushed(&self) {
        if self.waiting_since.load(Ordering::Acquire) != BUSY {
            self.writes_answer.store(false, Ordering::Release);
        }
    }

    /// Whether bytes that are written now may be those of a handler's answer.
    pub fn writes_answer(&self) -> bool {
        self.writes_answer.load(Ordering::Acquire)
    }

    pub fn end_request(&self) {
        let now = millis(self.started);
        // Whoever was told to close stays so.
        let _ = self.waiting_since.compare_exchange(BUSY, now, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Of an answer that is not sent to its end.
    pub fn set_write_blocked(&self, is_blocked: bool) {
        self.is_write_blocked.store(is_blocked, Ordering::Relaxed);
    }

    /// Returns once the connection has to close.
    pub async fn told_to_close(&self) {
        self.close.cancelled().await;
    }

    /// How long it has waited for a request, in milliseconds; None where it does not.
    fn waited_since(&self, now: u64) -> Option<u64> {
        let since = self.waiting_since.load(Ordering::Acquire);
        let waits = since != BUSY && since != CLOSING && !self.is_write_blocked.load(Ordering::Relaxed);
        waits.then(|| now.saturating_sub(since))
    }

    fn tell_to_close(&self) -> bool {
        let since = self.waiting_since.load(Ordering::Acquire);
        if since == BUSY || since == CLOSING {
            return false;
        }
        let is_told = self.waiting_since.compare_exchange(since, CLOSING, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if is_told {
            METRICS.closed.with_label_values(&["waited_too_long"]).inc();
            self.close.cancel();
        }
        is_told
    }
}

impl Admission {
    pub fn place(&self) -> Place {
        lock(&self.permit).0
    }

    /// The place of a connection that has a request: an extra one becomes a usual one where one is free or can be freed.
    pub async fn place_for_request(&self) -> Place {
        if self.place() == Place::Extra
            && let Some(permit) = self.connections.usual_permit().await
        {
            *lock(&self.permit) = (Place::Usual, permit);
            self.activity.is_extra.store(false, Ordering::Relaxed);
        }
        self.place()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        lock(&self.connections.open).remove(&self.id);
    }
}

impl Drop for AddressPlace {
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

/// A client of IPv6 has at least a whole /64.
fn counted_address(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Every change is one call that cannot fail half-way, so a poisoned lock still guards a whole map.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn admit(connections: &Arc<Connections>, client: &str) -> Admission {
        connections.admit(client.parse().unwrap()).await.expect("a place")
    }

    #[tokio::test]
    async fn a_client_has_a_limit_and_loopback_and_proxies_have_none() {
        let proxies = vec!["10.0.0.0/8".parse().unwrap()];
        let connections = Arc::new(Connections::new(100, 2, proxies));
        let _one = admit(&connections, "192.0.2.1").await;
        let two = admit(&connections, "::ffff:192.0.2.1").await;
        assert_eq!(admit(&connections, "192.0.2.1").await.place(), Place::Refused);
        assert_eq!(admit(&connections, "192.0.2.2").await.place(), Place::Usual);
        drop(two);
        assert_eq!(admit(&connections, "192.0.2.1").await.place(), Place::Usual);
        let _v6 = [admit(&connections, "2001:db8::1").await, admit(&connections, "2001:db8::2").await];
        assert_eq!(admit(&connections, "2001:db8::3").await.place(), Place::Refused);
        assert_eq!(admit(&connections, "2001:db8:0:1::3").await.place(), Place::Usual);
        let mut many = Vec::new();
        for client in ["127.0.0.1", "::1", "10.1.2.3", "127.0.0.1", "10.1.2.3", "127.0.0.1", "10.1.2.3"] {
            many.push(admit(&connections, client).await);
        }
        assert!(many.iter().all(|admission| admission.place() == Place::Usual));
    }

    #[tokio::test]
    async fn a_new_connection_replaces_the_one_that_waits_longest_and_none_that_is_busy() {
        let connections = Arc::new(Connections::new(2, 100, Vec::new()));
        let client = "127.0.0.1";
        let busy = admit(&connections, client).await;
        assert!(busy.activity.begin_request());
        let waiting = admit(&connections, client).await;
        assert!(connections.is_under_pressure());
        std::thread::sleep(MIN_WAIT_BEFORE_REPLACED);
        let activity = Arc::clone(&waiting.activity);
        let closing = async {
            activity.told_to_close().await;
            drop(waiting);
        };
        let (new, ()) = tokio::join!(admit(&connections, client), closing);
        assert_eq!(new.place(), Place::Usual);
        assert!(!activity.begin_request(), "it was told to close");
        assert!(new.activity.begin_request());
        let extra = admit(&connections, client).await;
        assert_eq!(extra.place_for_request().await, Place::Extra, "both are busy");
        drop(new);
        assert_eq!(extra.place_for_request().await, Place::Usual);
        busy.activity.end_request();
        assert!(busy.activity.begin_request(), "it goes on");
    }
}
