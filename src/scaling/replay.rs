//! Readings played to a policy, as golden text; for tests of the policies.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Bounds, Observation, Policy, QueueDepth, State, decide};

/// Second, and the reading at it: visible and in flight, or none.
pub type Reading = (u64, Option<(u64, u64)>);

/// One line a reading: what was seen, and workers before → after. Each decision is carried out at once.
pub fn replay(policy: Policy, (min, max): (u32, u32), workers: u32, readings: &[Reading]) -> String {
    let bounds = Bounds::new(min, max).expect("bounds of the test");
    let (mut state, mut workers, mut text) = (State::default(), workers, String::new());
    for &(second, reading) in readings {
        let now = Duration::from_secs(second);
        let depth = reading.map(|(visible, in_flight)| QueueDepth { at: now, visible, in_flight });
        let (next, decision) = decide(&policy, bounds, state, &Observation { workers, depth }, now);
        let seen = reading.map_or("?".to_owned(), |(visible, in_flight)| format!("{visible}+{in_flight}"));
        writeln!(text, "{second}s {seen}: {workers} → {} ({})", decision.desired, decision.reason)
            .expect("a String takes everything");
        (state, workers) = (next, decision.desired);
    }
    text
}

pub fn golden(actual: &str, expected: &str) {
    let expected: String =
        expected.lines().map(str::trim).filter(|line| !line.is_empty()).fold(String::new(), |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        });
    assert_eq!(actual, expected, "\n--- actual ---\n{actual}");
}
