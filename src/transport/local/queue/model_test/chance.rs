//! Time and chance of a run: virtual clocks, and a generator of random numbers that is made from the seed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::clock::{ADJUST_EVERY, Anchor, LONGEST_ABSENCE, Reading, ServiceClock, Source};
use crate::sqlite::millis;

/// The clocks of a machine, which the test sets.
pub(super) struct VirtualSource(Mutex<(Reading, u64)>);

impl Source for VirtualSource {
    fn read(&self) -> Reading {
        self.0.lock().expect("no panic").0
    }

    fn boot_id(&self) -> String {
        self.0.lock().expect("no panic").1.to_string()
    }
}

/// The service clock of a data directory on virtual clocks. It is adjusted as the owner of the file does it.
pub(super) struct Clock {
    source: Arc<VirtualSource>,
    anchor: Anchor,
    service: ServiceClock,
}

impl Clock {
    pub(super) fn new() -> Clock {
        let start = Reading { wall_us: 1_700_000_000_000_000, boot_us: 5_000_000 };
        let source = Arc::new(VirtualSource(Mutex::new((start, 0))));
        let anchor = Anchor::first(source.boot_id(), source.read());
        let service = ServiceClock::new(source.clone(), &anchor);
        Clock { source, anchor, service }
    }

    /// Lets time pass for all clocks. The service clock may run a thousandth faster or slower, since it follows the wall clock.
    pub(super) fn pass(&mut self, time: Duration) {
        let before_ms = self.now_ms();
        self.set(|reading| {
            reading.wall_us += millis(time) * 1_000;
            reading.boot_us += millis(time) * 1_000;
        });
        if self.anchor.is_due(self.source.read()) {
            self.anchor = self.anchor.adjusted(&self.source.boot_id(), self.source.read());
            self.service.follow(&self.anchor);
        }
        let passed_ms = self.now_ms() - before_ms;
        let slewed_ms = (millis(time) + millis(ADJUST_EVERY)) / 1_000 + 1;
        assert!(
            (passed_ms - millis(time)).abs() <= slewed_ms,
            "{time:?} passed and the clock advanced by {passed_ms} ms"
        );
    }

    pub(super) fn step(&mut self, by_ms: i64) {
        let before_ms = self.now_ms();
        self.set(|reading| reading.wall_us += by_ms * 1_000);
        assert_eq!(self.now_ms(), before_ms, "the service time follows a step");
    }

    /// Reboots the machine: the time since boot starts at zero, and the wall clock may show any time.
    pub(super) fn reboot(&mut self, wall_by_ms: i64) {
        let before_ms = self.now_ms();
        {
            let mut clocks = self.source.0.lock().expect("no panic");
            clocks.0 = Reading { wall_us: clocks.0.wall_us + wall_by_ms * 1_000, boot_us: 1_000 };
            clocks.1 += 1;
        }
        self.anchor = self.anchor.adjusted(&self.source.boot_id(), self.source.read());
        self.service = ServiceClock::new(self.source.clone(), &self.anchor);
        // The time that passed since the last adjustment is no longer known.
        let passed_ms = self.now_ms() - before_ms;
        assert!(passed_ms >= -2 * millis(ADJUST_EVERY) - 1, "a reboot turns the clock back by {passed_ms} ms");
        assert!(passed_ms <= millis(LONGEST_ABSENCE), "a reboot lets {passed_ms} ms pass");
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.service.now_ms()
    }

    fn set(&mut self, change: impl FnOnce(&mut Reading)) {
        change(&mut self.source.0.lock().expect("no panic").0);
    }
}

/// A small generator of random numbers. It is not a dependency, so that an update never changes the run of a seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    /// Returns the next number of the SplitMix64 sequence.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
