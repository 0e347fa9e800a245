//! Prints the log of the machines of a stack, from its log group.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::Outcome;
use super::names::ResourceNames;
use super::operations::{Provision, say};
use serde_json::json;

/// Time between two readings.
const INTERVAL: Duration = Duration::from_secs(2);
/// How much later than a newer event an older one may arrive: machines send their logs within seconds, and try again.
const LATEST_ARRIVAL: Duration = Duration::from_secs(60);

/// A line that a machine logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogEvent {
    pub id: String,
    /// Milliseconds since 1970.
    pub at: i64,
    /// The same for people.
    pub time: String,
    /// The instance.
    pub stream: String,
    pub message: String,
}

/// The events that were printed and may be read again, with their times.
#[derive(Default)]
struct Printed(BTreeMap<String, i64>);

impl Printed {
    /// Returns the events that are new, and the time from which to read next.
    fn take(&mut self, mut events: Vec<LogEvent>, start: i64) -> (Vec<LogEvent>, i64) {
        events.sort_by(|one, other| (one.at, &one.id).cmp(&(other.at, &other.id)));
        events.retain(|event| self.0.insert(event.id.clone(), event.at).is_none());
        let newest = self.0.values().max().copied().unwrap_or(start);
        let next = start.max(newest.saturating_sub(milliseconds(LATEST_ARRIVAL)));
        self.0.retain(|_, at| *at >= next);
        (events, next)
    }
}

impl Provision {
    /// Prints the log, and with `follows` what is added to it until this process is interrupted.
    pub(super) async fn logs(&self, since: Duration, follows: bool) -> anyhow::Result<Outcome> {
        let group = ResourceNames::of(&self.config.settings.stack).log_group;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut start = milliseconds(now.saturating_sub(since));
        let mut printed = Printed::default();
        loop {
            let (events, next) = printed.take(self.cloud.log_events(&group, start).await?, start);
            start = next;
            let lines: String = events.iter().map(|event| self.line(event)).collect();
            if !lines.is_empty() {
                say(&lines)?;
            }
            if !follows {
                return Ok(Outcome::Done);
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.shutdown.cancelled() => return Ok(Outcome::Done),
            }
        }
    }

    fn line(&self, event: &LogEvent) -> String {
        let LogEvent { time, stream, message, .. } = event;
        if self.config.json {
            return format!("{}\n", json!({"time": time, "machine": stream, "message": message}));
        }
        format!("{time} {stream} {message}\n")
    }
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, at: i64) -> LogEvent {
        LogEvent { id: id.into(), at, time: String::new(), stream: "i-1".into(), message: String::new() }
    }

    #[test]
    fn late_event_is_printed_and_none_twice() {
        let mut printed = Printed::default();
        let ids = |events: &[LogEvent]| events.iter().map(|event| event.id.clone()).collect::<String>();
        let (events, next) = printed.take(vec![event("b", 200_000), event("a", 100_000)], 0);
        assert_eq!((ids(&events).as_str(), next), ("ab", 140_000));
        let (events, next) = printed.take(vec![event("b", 200_000), event("c", 150_000)], next);
        assert_eq!((ids(&events).as_str(), next), ("c", 140_000));
        assert_eq!(printed.0.len(), 2, "what is not read again need not be known");
    }
}
