//! The clock that decisions are based on. It advances like the wall clock and does not follow its steps.
//!
//! If the wall clock is set five days ahead, or NTP corrects it by an hour, messages would suddenly be too old by that
//! clock, or invisible for an hour. The *service time* is therefore the time since boot (`CLOCK_BOOTTIME`, which cannot
//! be set) plus an offset. The offset is fixed when it is first needed. Afterwards it moves toward the wall clock by at most a
//! thousandth of the time that passes.
//!
//! - Local backend: the offset is stored in the database of the data directory, together with the id of the boot that it
//!   belongs to, so that all processes agree, no matter when they started (`sqlite/anchor.rs`).
//! - AWS: each process fixes the offset when it starts. If the dates in the answers of AWS differ from it by more than a
//!   minute, the clock of the machine is wrong, and the time of AWS is used.
//!
//! After a reboot the wall clock is trusted, but not behind the last service time that was stored and, if messages wait, not
//! more than [`LONGEST_ABSENCE`] ahead of it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rustix::time::ClockId;
use uuid::{ContextV7, Uuid};

/// The longest time that a machine is assumed to have been off while messages waited. They age by no more than this.
pub const LONGEST_ABSENCE: Duration = Duration::from_hours(24);
/// The offset moves toward the wall clock by one microsecond in this many.
const SLEW: i64 = 1_000;
/// The clocks of two machines may differ by this much and both be right. The date of an answer has whole seconds and is a
/// little old when it arrives.
const AGREEMENT: Duration = Duration::from_secs(60);
/// How often the offset is adjusted.
pub const ADJUST_EVERY: Duration = Duration::from_secs(60);
/// Two processes may read an adjusted offset a moment apart. A time since boot that is further back belongs to another boot.
const TOLERANCE_US: i64 = 1_000_000;

/// Both clocks of a machine at one instant, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Time since the Unix epoch, by the wall clock.
    pub wall_us: i64,
    /// Time since boot, including the time that the machine was suspended.
    pub boot_us: i64,
}

/// The clocks of a machine. Tests use clocks that they can step.
pub trait Source: Send + Sync {
    /// Reads both clocks.
    fn read(&self) -> Reading;
    /// Identifies the boot that `boot_us` counts from.
    fn boot_id(&self) -> String;
}

/// The clocks of this machine.
pub struct SystemSource;

impl Source for SystemSource {
    fn read(&self) -> Reading {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let boot = rustix::time::clock_gettime(MONOTONIC);
        Reading {
            wall_us: i64::try_from(wall.as_micros()).unwrap_or(i64::MAX),
            boot_us: boot.tv_sec * 1_000_000 + boot.tv_nsec / 1_000,
        }
    }

    /// Returns an empty id if the system has none. A reboot is then noticed because time runs backwards.
    fn boot_id(&self) -> String {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.trim().to_owned()
    }
}

#[cfg(target_os = "linux")]
const MONOTONIC: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const MONOTONIC: ClockId = ClockId::Monotonic;

/// The relation between the service time and the time since one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The boot that the offset is for.
    pub boot_id: String,
    /// The service time minus the time since boot.
    pub offset_us: i64,
    /// The service time when the offset was last adjusted.
    pub seen_us: i64,
}

impl Anchor {
    /// The first anchor, which trusts the wall clock.
    pub fn first(boot_id: String, reading: Reading) -> Anchor {
        Anchor { boot_id, offset_us: reading.wall_us.saturating_sub(reading.boot_us), seen_us: reading.wall_us }
    }

    /// The service time at a reading of the same boot.
    pub fn now_us(&self, reading: Reading) -> i64 {
        reading.boot_us.saturating_add(self.offset_us)
    }

    /// Returns true if this anchor is valid for a reading of that boot.
    pub fn is_of(&self, boot_id: &str, reading: Reading) -> bool {
        self.boot_id == boot_id && self.now_us(reading) >= self.seen_us.saturating_sub(TOLERANCE_US)
    }

    /// Returns true if the anchor should be adjusted ([`Anchor::adjusted`]).
    pub fn is_due(&self, reading: Reading) -> bool {
        self.now_us(reading).saturating_sub(self.seen_us) >= ADJUST_EVERY.as_micros() as i64
    }

    /// The anchor from this reading on, moved toward the wall clock.
    #[must_use]
    pub fn adjusted(&self, boot_id: &str, reading: Reading) -> Anchor {
        if !self.is_of(boot_id, reading) {
            return self.after_reboot(boot_id, reading, LONGEST_ABSENCE);
        }
        let now_us = self.now_us(reading);
        let most = now_us.saturating_sub(self.seen_us).max(0) / SLEW;
        let correction = reading.wall_us.saturating_sub(now_us).clamp(-most, most);
        Anchor {
            boot_id: boot_id.to_owned(),
            offset_us: self.offset_us + correction,
            seen_us: self.seen_us.max(now_us + correction),
        }
    }

    /// The anchor by a clock that is trusted more. Returns `None` if both agree to within a minute.
    pub fn corrected(&self, trusted_us: i64, reading: Reading) -> Option<Anchor> {
        let difference_us = trusted_us.saturating_sub(self.now_us(reading));
        (difference_us.unsigned_abs() > AGREEMENT.as_micros() as u64).then(|| Anchor {
            boot_id: self.boot_id.clone(),
            offset_us: self.offset_us.saturating_add(difference_us),
            seen_us: trusted_us,
        })
    }

    /// The anchor after a reboot. It trusts the wall clock from the last service time that was seen until `longest_absence`
    /// after it.
    #[must_use]
    pub fn after_reboot(&self, boot_id: &str, reading: Reading, longest_absence: Duration) -> Anchor {
        let longest_us = i64::try_from(longest_absence.as_micros()).unwrap_or(i64::MAX);
        let latest_us = self.seen_us.saturating_add(longest_us);
        let now_us = reading.wall_us.clamp(self.seen_us, latest_us);
        Anchor::first(boot_id.to_owned(), Reading { wall_us: now_us, ..reading })
    }
}

/// The service time of one data directory or one process. It never runs backwards, except by a correction.
pub struct ServiceClock {
    source: Arc<dyn Source>,
    offset_us: AtomicI64,
    latest_us: AtomicI64,
}

impl ServiceClock {
    /// A clock that follows an anchor.
    pub fn new(source: Arc<dyn Source>, anchor: &Anchor) -> ServiceClock {
        ServiceClock { source, offset_us: AtomicI64::new(anchor.offset_us), latest_us: AtomicI64::new(i64::MIN) }
    }

    /// The service time, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        self.now_us() / 1_000
    }

    /// The service time, in microseconds since the Unix epoch.
    pub fn now_us(&self) -> i64 {
        let now_us = self.source.read().boot_us.saturating_add(self.offset_us.load(Ordering::Relaxed));
        self.latest_us.fetch_max(now_us, Ordering::Relaxed).max(now_us)
    }

    /// The clocks that it reads.
    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    /// Adopts a corrected offset, even if time runs backwards because of it.
    fn correct(&self, anchor: &Anchor) {
        self.follow(anchor);
        self.latest_us.store(i64::MIN, Ordering::Relaxed);
    }

    /// Adopts an adjusted offset.
    pub fn follow(&self, anchor: &Anchor) {
        self.offset_us.store(anchor.offset_us, Ordering::Relaxed);
    }
}

/// The clock of this process.
struct ProcessClock {
    clock: Arc<ServiceClock>,
    /// The anchor that this process adjusts. `None` if the clock is that of a data directory, which `sqlite` adjusts.
    own: Option<Mutex<Anchor>>,
}

static PROCESS: LazyLock<RwLock<ProcessClock>> = LazyLock::new(|| {
    let source = Arc::new(SystemSource);
    let anchor = Anchor::first(source.boot_id(), source.read());
    let clock = Arc::new(ServiceClock::new(source, &anchor));
    RwLock::new(ProcessClock { clock, own: Some(Mutex::new(anchor)) })
});

/// The service time of this process. The first call fixes the offset, so make one when the process starts.
pub fn now() -> Timestamp {
    let process = PROCESS.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(own) = &process.own {
        let mut anchor = own.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = process.clock.source.read();
        if anchor.is_due(reading) {
            *anchor = anchor.adjusted(&anchor.boot_id, reading);
            process.clock.follow(&anchor);
        }
    }
    Timestamp::from_microsecond(process.clock.now_us()).unwrap_or(Timestamp::MAX)
}

/// Corrects the clock of this process by a clock that is known to be right, in seconds since the Unix epoch. Does nothing if
/// the clock is that of a data directory.
pub fn correct(trusted_seconds: i64) {
    let process = PROCESS.read().unwrap_or_else(PoisonError::into_inner);
    let Some(own) = &process.own else { return };
    let mut anchor = own.lock().unwrap_or_else(PoisonError::into_inner);
    let reading = process.clock.source.read();
    if let Some(corrected) = anchor.corrected(trusted_seconds.saturating_mul(1_000_000), reading) {
        let ahead_seconds = (anchor.now_us(reading) - corrected.now_us(reading)) / 1_000_000;
        tracing::warn!(ahead_seconds, "the clock of this machine is wrong: using the time of AWS");
        process.clock.correct(&corrected);
        *anchor = corrected;
    }
}

/// Makes the clock of a data directory the clock of this process ([`now`]).
pub fn use_for_process(clock: &Arc<ServiceClock>) {
    let mut process = PROCESS.write().unwrap_or_else(PoisonError::into_inner);
    *process = ProcessClock { clock: Arc::clone(clock), own: None };
}

/// A UUIDv7 whose time is the service time.
pub fn new_id() -> Uuid {
    /// Orders the ids of one millisecond by their creation.
    static CONTEXT: Mutex<ContextV7> = Mutex::new(ContextV7::new());
    let now_ms = now().as_millisecond().max(0).unsigned_abs();
    let (seconds, nanos) = (now_ms / 1_000, (now_ms % 1_000) as u32 * 1_000_000);
    let context = CONTEXT.lock().unwrap_or_else(PoisonError::into_inner);
    Uuid::new_v7(uuid::Timestamp::from_unix(&*context, seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 24 * 3_600_000;
    const START_MS: i64 = 1_800_000_000_000;

    fn reading(wall_ms: i64, boot_ms: i64) -> Reading {
        Reading { wall_us: 1_000 * (START_MS + wall_ms), boot_us: 1_000 * boot_ms }
    }

    fn anchor() -> Anchor {
        Anchor::first("a".to_owned(), reading(0, 5_000))
    }

    #[test]
    fn service_time_follows_a_wall_clock_step_by_a_thousandth_of_elapsed_time() {
        for (step_ms, slewed_ms) in [(5 * DAY_MS, 60), (-3_600_000, -60), (20, 20), (0, 0)] {
            let adjusted = anchor().adjusted("a", reading(60_000 + step_ms, 65_000));
            assert_eq!(adjusted.now_us(reading(0, 65_000)), 1_000 * (START_MS + 60_000 + slewed_ms), "{step_ms}");
        }
    }

    #[test]
    fn reboot_never_moves_time_backwards_nor_more_than_a_day_ahead() {
        for (wall_ms, now_ms) in [(-DAY_MS, 0), (3_600_000, 3_600_000), (50 * 365 * DAY_MS, DAY_MS)] {
            let rebooted = anchor().adjusted("b", reading(wall_ms, 100));
            assert_eq!(rebooted.now_us(reading(0, 100)), 1_000 * (START_MS + now_ms), "{wall_ms}");
            assert!(rebooted.is_of("b", reading(0, 200)));
        }
    }

    #[test]
    fn time_since_boot_that_runs_backwards_counts_as_a_reboot() {
        let rebooted = anchor().adjusted("a", reading(7_000, 10));
        assert_eq!(rebooted.now_us(reading(0, 10)), 1_000 * (START_MS + 7_000));
    }

    #[test]
    fn trusted_clock_corrects_only_differences_over_a_minute() {
        let at = reading(0, 5_000);
        for (trusted_ms, corrected_ms) in
            [(60_000, None), (-60_000, None), (61_000, Some(61_000)), (-DAY_MS, Some(-DAY_MS))]
        {
            let corrected = anchor().corrected(1_000 * (START_MS + trusted_ms), at).map(|anchor| anchor.now_us(at));
            assert_eq!(corrected, corrected_ms.map(|ms| 1_000 * (START_MS + ms)), "{trusted_ms}");
        }
    }

    #[test]
    fn service_clock_never_runs_backwards() {
        struct Fixed;
        impl Source for Fixed {
            fn read(&self) -> Reading {
                reading(0, 5_000)
            }
            fn boot_id(&self) -> String {
                "a".to_owned()
            }
        }
        let clock = ServiceClock::new(Arc::new(Fixed), &anchor());
        assert_eq!(clock.now_ms(), START_MS);
        clock.follow(&Anchor { offset_us: 0, ..anchor() });
        assert_eq!(clock.now_ms(), START_MS);
    }

    #[test]
    fn ids_are_ordered_by_creation() {
        let ids: Vec<Uuid> = (0..1_000).map(|_| new_id()).collect();
        assert!(ids.is_sorted());
    }
}
