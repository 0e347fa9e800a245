//! Replays readings to a policy and formats the decisions, for golden tests.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Bounds, Observation, Policy, QueueDepth, State, decide};

/// The second of a reading, and the numbers of visible messages and messages in flight; `None` is a missing reading.
pub(super) type Reading = (u64, Option<(u64, u64)>);

/// One line for each reading: what was read, and the number of workers before → after. Each decision is applied at
/// once.
pub(super) fn replay(policy: Policy, (min, max): (u32, u32), workers: u32, readings: &[Reading]) -> String {
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

pub(super) fn golden(actual: &str, expected: &str) {
    let expected: String =
        expected.lines().map(str::trim).filter(|line| !line.is_empty()).fold(String::new(), |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        });
    assert_eq!(actual, expected, "\n--- actual ---\n{actual}");
}
