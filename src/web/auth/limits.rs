//! Limits per client: requests in a time, and requests at the same time.
//!
//! Each client has a bucket of tokens that fills up at the allowed rate. The number of clients that are remembered is
//! bounded: one with a full bucket and no open request is like one that was never seen, and is forgotten first. While no
//! client can be forgotten, new ones share one bucket.

use std::collections::HashMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::keys::KeyHash;

/// Clients that are remembered, at most; about 6 MiB.
const MAX_CLIENTS: usize = 65_536;
/// Clients are forgotten at most this often.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// A limit on the requests of one client in a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateLimit {
    per_second: f64,
    burst: u32,
}

impl RateLimit {
    /// The same rate with another number of requests at once.
    #[must_use]
    pub fn with_burst(self, burst: u32) -> RateLimit {
        RateLimit { burst, ..self }
    }

    /// Seconds in which an empty bucket becomes full.
    fn window_seconds(self) -> u64 {
        (f64::from(self.burst) / self.per_second).ceil() as u64
    }
}

impl FromStr for RateLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<RateLimit, String> {
        let wrong = || "give a number of requests per second, minute or hour: 10/s, 600/min, 5000/h".to_owned();
        let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
        let number: u32 = number.trim().parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
        let seconds = match unit.trim() {
            "s" | "sec" | "second" => 1.0,
            "m" | "min" | "minute" => 60.0,
            "h" | "hour" => 3_600.0,
            _ => return Err(wrong()),
        };
        Ok(RateLimit { per_second: f64::from(number) / seconds, burst: number })
    }
}

/// A sender whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Client {
    Key(KeyHash),
    Address(IpAddr),
    /// Clients that cannot be told apart.
    Others,
}

/// The limits, and what they counted.
pub(super) struct ClientLimits {
    rate: Option<RateLimit>,
    max_open: Option<u32>,
    max_clients: usize,
    counted: Mutex<Counted>,
}

struct Counted {
    clients: HashMap<Client, Entry>,
    forgotten_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    tokens: f64,
    at: Instant,
    open: u32,
}

/// The quota that a client has left, for the headers of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quota {
    pub(super) burst: u32,
    pub(super) window_seconds: u64,
    pub(super) remaining: u32,
    pub(super) full_after_seconds: u64,
}

/// A request that passed. It counts as open until it is dropped.
pub(super) struct Passed {
    limits: Arc<ClientLimits>,
    client: Client,
    /// `None` if there is no limit on the rate.
    pub(super) quota: Option<Quota>,
}

/// A request that the limits refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceeded {
    Rate { quota: Quota, retry_after_seconds: u32 },
    Open { limit: u32 },
}

impl ClientLimits {
    /// Returns `None` if there is nothing to limit.
    pub(super) fn new(rate: Option<RateLimit>, max_open: Option<u32>) -> Option<Arc<ClientLimits>> {
        let is_limited = rate.is_some() || max_open.is_some();
        is_limited.then(|| Arc::new(ClientLimits::with_clients(rate, max_open, MAX_CLIENTS)))
    }

    fn with_clients(rate: Option<RateLimit>, max_open: Option<u32>, max_clients: usize) -> ClientLimits {
        let counted = Mutex::new(Counted { clients: HashMap::new(), forgotten_at: None });
        ClientLimits { rate, max_open, max_clients, counted }
    }

    /// Counts a request of a client that arrives at `now`.
    ///
    /// # Errors
    /// If a limit is reached. The request is not counted then.
    pub(super) fn pass(self: &Arc<Self>, client: Client, now: Instant) -> Result<Passed, Exceeded> {
        let mut counted = self.lock();
        let client = self.counted_client(&mut counted, client, now);
        let full = self.rate.map_or(0.0, |rate| f64::from(rate.burst));
        let entry = counted.clients.entry(client).or_insert(Entry { tokens: full, at: now, open: 0 });
        if let Some(limit) = self.max_open.filter(|limit| entry.open >= *limit) {
            return Err(Exceeded::Open { limit });
        }
        let quota = match self.rate {
            Some(rate) => Some(entry.take(rate, now)?),
            None => None,
        };
        entry.open += 1;
        Ok(Passed { limits: Arc::clone(self), client, quota })
    }

    /// Returns the client that is counted: [`Client::Others`] if there is no space for another one.
    fn counted_client(&self, counted: &mut Counted, client: Client, now: Instant) -> Client {
        if counted.clients.len() < self.max_clients || counted.clients.contains_key(&client) {
            return client;
        }
        if counted.forgotten_at.is_none_or(|at| now.saturating_duration_since(at) >= FORGET_INTERVAL) {
            counted.forgotten_at = Some(now);
            let rate = self.rate;
            counted.clients.retain(|_, entry| entry.open > 0 || rate.is_some_and(|rate| !entry.is_full(rate, now)));
        }
        if counted.clients.len() < self.max_clients { client } else { Client::Others }
    }

    /// Every change is made completely under the lock, so that a poisoned one still guards consistent numbers.
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Takes a token, if there is one.
    fn take(&mut self, rate: RateLimit, now: Instant) -> Result<Quota, Exceeded> {
        let tokens = self.tokens_at(rate, now);
        let is_enough = tokens >= 1.0;
        (self.tokens, self.at) = (if is_enough { tokens - 1.0 } else { tokens }, now);
        let missing = f64::from(rate.burst) - self.tokens;
        let quota = Quota {
            burst: rate.burst,
            window_seconds: rate.window_seconds().max(1),
            remaining: self.tokens as u32,
            full_after_seconds: (missing / rate.per_second).ceil() as u64,
        };
        if is_enough {
            return Ok(quota);
        }
        let retry_after_seconds = ((1.0 - tokens) / rate.per_second).ceil().max(1.0) as u32;
        Err(Exceeded::Rate { quota, retry_after_seconds })
    }

    fn tokens_at(&self, rate: RateLimit, now: Instant) -> f64 {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        (self.tokens + earned).min(f64::from(rate.burst))
    }

    fn is_full(&self, rate: RateLimit, now: Instant) -> bool {
        self.tokens_at(rate, now) >= f64::from(rate.burst)
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        let mut counted = self.limits.lock();
        if let Some(entry) = counted.clients.get_mut(&self.client) {
            entry.open = entry.open.saturating_sub(1);
            // Without a rate there is nothing else to remember.
            if entry.open == 0 && self.limits.rate.is_none() {
                counted.clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u32) -> Client {
        Client::Address(IpAddr::from(number.to_be_bytes()))
    }

    #[test]
    fn a_client_may_send_its_burst_and_then_at_its_rate() {
        let rate: RateLimit = "2/s".parse().unwrap();
        let limits = ClientLimits::new(Some(rate.with_burst(3)), None).unwrap();
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        for remaining in [2, 1, 0] {
            let passed = limits.pass(client(1), start).expect("within the burst");
            let quota = passed.quota.unwrap();
            assert_eq!((quota.burst, quota.window_seconds, quota.remaining), (3, 2, remaining));
        }
        let Err(Exceeded::Rate { retry_after_seconds, .. }) = limits.pass(client(1), at(100)) else { panic!("passed") };
        assert_eq!(retry_after_seconds, 1);
        assert!(limits.pass(client(2), at(100)).is_ok(), "each client has a bucket of its own");
        assert!(limits.pass(client(1), at(500)).is_ok());
        assert!(limits.pass(client(1), at(500)).is_err());
        assert!(limits.pass(client(1), at(60_000)).is_ok_and(|passed| passed.quota.unwrap().remaining == 2));
    }

    #[test]
    fn open_requests_count_until_they_end() {
        let limits = ClientLimits::new(None, Some(2)).unwrap();
        let now = Instant::now();
        let first = limits.pass(client(1), now).expect("the first");
        let _second = limits.pass(client(1), now).expect("the second");
        assert_eq!(limits.pass(client(1), now).err(), Some(Exceeded::Open { limit: 2 }));
        assert!(limits.pass(client(2), now).is_ok());
        drop(first);
        assert!(limits.pass(client(1), now).is_ok());
        assert_eq!(limits.lock().clients.len(), 1, "clients without an open request are forgotten");
    }

    #[test]
    fn the_number_of_remembered_clients_is_bounded() {
        let rate: RateLimit = "60/min".parse().unwrap();
        let limits = Arc::new(ClientLimits::with_clients(Some(rate.with_burst(1)), None, 10));
        let start = Instant::now();
        for number in 0..1_000 {
            let passed = limits.pass(client(number), start);
            assert_eq!(passed.is_ok(), number < 11, "client {number}: beyond the bound, clients share one bucket");
        }
        assert_eq!(limits.lock().clients.len(), 11);
        assert!(limits.pass(client(2_000), start + Duration::from_secs(2)).is_ok(), "full buckets are forgotten");
        assert!(limits.lock().clients.len() <= 2);
    }

    #[test]
    fn rates_are_parsed() {
        for (text, per_second, burst) in [("10/s", 10.0, 10), ("600/min", 10.0, 600), (" 36 / h", 0.01, 36)] {
            assert_eq!(text.parse(), Ok(RateLimit { per_second, burst }), "{text}");
        }
        for text in ["", "10", "0/s", "-1/s", "1/day", "x/s", "1.5/s"] {
            assert!(text.parse::<RateLimit>().is_err(), "{text}");
        }
    }
}
